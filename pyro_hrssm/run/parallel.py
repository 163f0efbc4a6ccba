"""The processes of one run, which `torchrun` starts: they agree, add up gradients and leave the files to the first.

One process alone is the plain case: every call then gives back what it was given, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyro_hrssm.errors import InputError, one_line

STEP_TIMEOUT = datetime.timedelta(minutes=10)
"""Longest wait for a step of the others. One that dies is noticed at once, by its connection: this is for hanging."""

PATIENCE = datetime.timedelta(days=1)
"""Longest wait for what the first process does alone: evaluation, figures, a checkpoint, a download."""

Value = TypeVar("Value")


class ProcessError(RuntimeError):
    """Another process of the run is gone: one line."""


@dataclass(frozen=True)
class Processes:
    """All processes that train one model, seen from one of them; by default this one is alone."""

    rank: int = 0
    """This process, from 0."""
    size: int = 1
    """How many there are."""
    waits: Any = None
    """The group in which they wait for what the first one does alone."""

    @property
    def leads(self) -> bool:
        """Whether this one writes the run's files and prints."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's share of a joined batch of indices [B]: [B / size], the shares in the processes' order."""
        if self.size == 1:
            return batch
        self.check_divides(len(batch))
        return batch.chunk(self.size)[self.rank]

    def check_divides(self, batch_size: int) -> None:
        """Raise :class:`InputError` where a batch has no equal share for every process."""
        if batch_size % self.size:
            raise InputError(f"batch_size must be divisible by the {self.size} processes, found {batch_size}")

    def noise_seed(self, *numbers: int) -> int:
        """A seed that depends on the numbers and on the process."""
        text = " ".join(map(str, (*numbers, self.rank)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of the processes' values, in their place; bit for bit the same in all of them."""
        if self.size > 1:
            with _peers():
                dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        with _peers():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean of each of these values over the processes."""
        if self.size == 1:
            return list(values)
        return (self.add_up(torch.tensor(values, dtype=torch.float64)) / self.size).tolist()

    def gather(self, value: Value) -> list[Value]:
        """Everybody's value, in the processes' order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(values, value)
        return values

    def on_first(self, work: Callable[[], Value]) -> Value:
        """What the first process gets by this work, which the others wait for; what it raises, all raise."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = work()
            except Exception as error:
                self._share([None, _sendable(error)])
                raise
        result, failure = self._share(outcome)
        if failure is not None:
            raise failure
        return result

    def after_first(self, work: Callable[[], Value]) -> Value:
        """What each gets by this work, which the first does before the others: what it downloads they find."""
        if self.size == 1:
            return work()
        done: list[Value] = []
        self.on_first(lambda: done.append(work()))
        return done[0] if done else work()

    def _share(self, outcome: list[Any]) -> list[Any]:
        with _peers():
            dist.broadcast_object_list(outcome, src=0, group=self.waits)
        return outcome


ALONE = Processes()
"""The one process of a run that shares nothing."""


def distributed() -> bool:
    """Whether this process was started as one of several."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() and os.environ["WORLD_SIZE"] != "1"


def world_size() -> int:
    """How many processes this one was started with."""
    return int(os.environ["WORLD_SIZE"]) if distributed() else 1


def local_rank() -> int:
    """This process's number on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if distributed() else 0


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """All processes of this run, connected: by NCCL between GPUs, by gloo otherwise."""
    if not distributed():
        yield ALONE
        return
    with _peers():
        # What is agreed on lies in the host's memory: gloo carries that also between GPUs' processes.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=STEP_TIMEOUT)
        waits = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield Processes(dist.get_rank(), dist.get_world_size(), waits)
    # Not after an error: there the connections may be what failed.
    dist.destroy_process_group()


def digest(module: nn.Module) -> str:
    """SHA-256 of all parameters: equal where they are equal bit for bit."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Say in one line that a peer is gone."""
    try:
        with warnings.catch_warnings():
            # Old versions of torch warn of how they themselves unpack what processes tell each other.
            warnings.filterwarnings("ignore", "You are using `torch.load`", FutureWarning)
            yield
    except RuntimeError as error:
        reason = one_line(re.sub(r"^\[.*?\]\s*", "", str(error).split("\n")[0]))  # without a place in gloo's sources
        raise ProcessError(
            f"another process of this run ended or hangs (it may say why); the last checkpoint is whole: {reason}"
        ) from error


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(one_line(error))
    return error
