"""Training batches in their order, read by this process, or ahead of time by worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_hrssm.data.batches import Batch
from pyro_hrssm.data.sequences import Sequences
from pyro_hrssm.errors import InputError


class LoaderError(RuntimeError):
    """A process that reads batches ended: one line."""


@contextlib.contextmanager
def reading(
    data: Sequences, indices: Iterable[Tensor], workers: int, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """The batches `data.batch(index)` of these indices [B], in their order; the same for any number of workers.

    Arguments:
        workers: number of processes that read ahead, two batches each; 0 to read on demand in this process. The
            workers end with the context, even after an error.
        device: the device for which the batches are read; for a GPU they are put into pinned memory.
    """
    if workers == 0:
        yield (data.batch(index) for index in indices)
        return
    # Where fork exists, workers are forked: they then share memory-mapped arrays instead of copying them.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with warnings.catch_warnings():
        # The user chooses the number of workers, and threads that only wait, such as TensorBoard's, allow a fork.
        warnings.filterwarnings("ignore", "This DataLoader will create|This process .* is multi-threaded")
        loader: DataLoader[Any] = DataLoader(
            _Batches(data),
            sampler=(index.numpy() for index in indices),
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_deaf,
            multiprocessing_context=method,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # the loader's seeds must not use up the run's random numbers
        )
        iterator: Any = iter(loader)
    try:
        yield _checked(iterator)
    finally:
        # Workers end now, rather than when the last reference to an error's stack frames is gone.
        iterator._shutdown_workers()


class _Batches(Dataset[Any]):
    def __init__(self, data: Sequences) -> None:
        self.data = data

    def __getitem__(self, index: Any) -> Batch | InputError:
        try:
            return self.data.batch(index)
        except InputError as error:  # returned, because torch would wrap a raised error into a traceback's text
            return error


def _as_it_is(value: Any) -> Any:
    return value


def _deaf(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which may reach the whole process group: the training process handles them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _checked(iterator: Iterator[Batch | InputError]) -> Iterator[Batch]:
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise LoaderError(f"a process that reads batches ended: {' '.join(str(error).split())}") from error
        if isinstance(batch, InputError):
            raise batch
        yield batch
