"""The processes of one run, which `torchrun` starts: they agree, add up gradients and leave files to the first process.

With one process alone, every call returns this process's own value, and nothing is sent.
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
"""Longest wait for a step of the other processes, against one that hangs; one that dies closes its connection."""

PATIENCE = datetime.timedelta(days=1)
"""Longest wait for work that the first process does alone: evaluation, figures, a checkpoint, a download."""

Value = TypeVar("Value")


class ProcessError(RuntimeError):
    """Another process of the run ended or hangs: one line."""


@dataclass(frozen=True)
class Processes:
    """All processes that train one model, seen from one of them; by default there is only this process."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    waits: Any = None
    """The group in which the processes wait for work that the first process does alone."""

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files and prints."""
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
        """Replace `values` by the sum over the processes, which is bit for bit the same in all of them."""
        if self.size > 1:
            with _peers():
                dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
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
        """The values of all processes, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(values, value)
        return values

    def on_first(self, work: Callable[[], Value]) -> Value:
        """The first process's result of this work, for which the others wait; its error is raised in all processes."""
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
        """Each process's own result of this work, which the first process does first: the others find its downloads."""
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
"""The only process of a run that has no others."""


def distributed() -> bool:
    """Whether this process is one of several started together."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() and os.environ["WORLD_SIZE"] != "1"


def world_size() -> int:
    """Number of processes started together, this one included."""
    return int(os.environ["WORLD_SIZE"]) if distributed() else 1


def local_rank() -> int:
    """This process's number on its machine, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if distributed() else 0


def device_named(name: str | torch.device) -> torch.device:
    """The device of this name: `cpu`, `cuda`, which is this process's own GPU, `auto`, a GPU where there is one, or one
    that torch knows, such as `cuda:1`.
    """
    if name not in ("auto", "cpu", "cuda"):
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise InputError(f"device must be auto, cpu, cuda or one of torch's, found {one_line(name)}") from error
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch finds no GPU here; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if not distributed():
        return torch.device("cuda")
    number = local_rank()
    if number >= torch.cuda.device_count():
        raise InputError(f"every process needs a GPU of its own, found {torch.cuda.device_count()}: start fewer")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Connect all processes of this run: by NCCL between GPUs, by gloo otherwise."""
    if not distributed():
        yield ALONE
        return
    with _peers():
        # Values to agree on lie in the host's memory, which gloo sends between the processes of GPUs too.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=STEP_TIMEOUT)
        waits = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield Processes(dist.get_rank(), dist.get_world_size(), waits)
    # The group is not destroyed after an error, because the connections may be what failed.
    dist.destroy_process_group()


def digest(module: nn.Module) -> str:
    """SHA-256 of all parameters: equal digests mean parameters that are equal bit for bit."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Turn the error of a lost peer into one line."""
    try:
        with warnings.catch_warnings():
            # Old versions of torch warn of their own unpickling of the objects that processes send each other.
            warnings.filterwarnings("ignore", "You are using `torch.load`", FutureWarning)
            yield
    except RuntimeError as error:
        reason = one_line(re.sub(r"^\[.*?\]\s*", "", str(error).split("\n")[0]))  # without the line of gloo's source
        raise ProcessError(
            f"another process of this run ended or hangs (it may say why); the last checkpoint is whole: {reason}"
        ) from error


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(one_line(error))
    return error
