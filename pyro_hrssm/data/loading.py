"""Training batches in their order, read by this process, ahead of time by worker processes, or gathered on a GPU."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_hrssm.data.batches import Batch, in_order
from pyro_hrssm.data.sequences import Sequences
from pyro_hrssm.errors import InputError

SHARE_OF_MEMORY = 0.25
"""The largest share of a GPU's free memory for the training sequences; the rest is for the steps."""


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


# Batches for steps that the host does not wait for


def send(values: Tensor, place: Tensor) -> None:
    """Copy a tensor of the host into one on a device, without waiting for a GPU."""
    place.copy_(values.pin_memory() if place.is_cuda else values, non_blocking=place.is_cuda)


def fits(data: Sequences, device: torch.device) -> bool:
    """Whether all sequences can lie on the device, scaled: always on a CPU, in whose memory most of them are anyway."""
    if device.type != "cuda":
        return True
    numbers = len(data) * data.num_frames * math.prod(data.frame_shape)
    return torch.float32.itemsize * numbers <= SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]


def resident(data: Sequences, device: torch.device) -> Batch:
    """All sequences on the device, as one batch without boundaries; its mask is None if no frame of any is missing."""
    first = data.batch([0]).frames
    frames = torch.empty(len(data), *first.shape[1:], dtype=first.dtype, device=device)
    mask: Tensor | None = None
    start = 0
    for batch in in_order(data, device):
        part = slice(start, start := start + len(batch.frames))
        frames[part] = batch.frames
        if batch.mask is not None:
            if mask is None:
                mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=device)
            mask[part] = batch.mask
    return Batch(frames, mask, None)


class Resident:
    """Batches gathered on the device.

    Arguments:
        whole: all sequences, as :func:`resident` gives them.
        indices: the batches' indices [B], all of one length; endless.
        window: number of batches whose indices are sent at once.
    """

    def __init__(self, whole: Batch, indices: Iterator[Tensor], window: int) -> None:
        self._frames, self._mask = whole.frames, whole.mask
        self._indices = indices
        self._queue = deque(next(indices) for _ in range(window))
        self._table = torch.zeros(window, len(self._queue[0]), dtype=torch.long, device=whole.frames.device)

    def open(self) -> None:
        """Send the indices of the next window of batches."""
        while len(self._queue) < len(self._table):
            self._queue.append(next(self._indices))
        send(torch.stack(list(self._queue)), self._table)

    def put(self) -> object:
        """Go on to the next batch; batches for which this is equal have one shape."""
        self._queue.popleft()
        return None

    def at(self, place: Tensor) -> tuple[Tensor, Tensor | None]:
        """Frames [B, T, X…] and mask [B, T] of a batch; `place`: [1], its row of the window."""
        index = self._table.index_select(0, place).squeeze(0)
        mask = None if self._mask is None else self._mask.index_select(0, index)
        return self._frames.index_select(0, index), mask


class Streamed:
    """Batches of the host, each copied into the same tensors of the device, behind the steps that still read them.

    Arguments:
        batches: the batches.
        device: the device.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._buffers: dict[object, tuple[Tensor, Tensor | None]] = {}
        self._now: object = None

    def open(self) -> None:
        """Nothing: batches are sent one by one."""

    def put(self) -> object:
        """Send the next batch; batches for which this is equal have one shape."""
        frames, mask, _ = next(self._batches)
        self._now = (frames.shape, mask is None)
        if self._now not in self._buffers:
            like = (None if part is None else torch.empty_like(part, device=self._device) for part in (frames, mask))
            self._buffers[self._now] = tuple(like)  # type: ignore[assignment]
        for part, place in zip((frames, mask), self._buffers[self._now], strict=True):
            if part is not None and place is not None:
                send(part, place)
        return self._now

    def at(self, place: Tensor) -> tuple[Tensor, Tensor | None]:
        """Frames [B, T, X…] and mask [B, T] of the batch put last."""
        return self._buffers[self._now]
