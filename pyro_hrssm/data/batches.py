"""Batches of sequences: their type, their order in training, and a pass over a whole data set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyro_hrssm.data.sequences import Sequences

SEQUENCES_AT_ONCE = 500
"""The most sequences in one batch of :func:`in_order`."""

ENTRIES_AT_ONCE = 2**27
"""The most entries of frames in such a batch, half a GiB of float32, unless one sequence has more."""


class Batch(NamedTuple):
    """Sequences ready for a model."""

    frames: Tensor
    """[B, T, X…] float32, scaled; 0 where a frame is missing."""
    mask: Tensor | None
    """[B, T] bool, True where a frame is observed; None if all frames are."""
    boundaries: Tensor | None
    """[B, T] bool, True where a segment ends with the frame; None if the boundaries are unknown."""

    def to(self, device: torch.device) -> Batch:
        """The batch on the device; a copy from pinned memory does not make the host wait."""
        ahead = device.type == "cuda"
        return Batch(*(None if part is None else part.to(device, non_blocking=ahead) for part in self))  # type: ignore[arg-type]


def in_order(data: Sequences, device: torch.device, most: int | None = None) -> Iterator[Batch]:
    """All sequences of a data set, or its first `most`, in batches on the device."""
    stop = len(data) if most is None else min(most, len(data))
    fitting = ENTRIES_AT_ONCE // (data.num_frames * math.prod(data.frame_shape))
    at_once = max(1, min(SEQUENCES_AT_ONCE, fitting))
    for start in range(0, stop, at_once):
        yield data.batch(range(start, min(start + at_once, stop))).to(device)


def batch_indices(size: int, batch_size: int, seed: int, start: int) -> Iterator[Tensor]:
    """Endless batches from step `start` on; each epoch's new permutation depends on seed and epoch alone."""
    per_epoch = max(1, size // batch_size)
    step = start
    while True:
        epoch, place = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(size, generator=generator, device="cpu")  # whatever the user's default device
        for position in range(place, per_epoch):
            yield order[position * batch_size : (position + 1) * batch_size]
            step += 1
