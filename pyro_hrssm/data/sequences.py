"""The common form of all data sets: scaled batches of sequences, read row by row.

Shapes: N or B sequences, T frames, X… one frame. A boundary at frame t means that a segment ends with
frame t, so that frame t+1 opens a new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyro_hrssm.data.batches import Batch
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.errors import InputError, one_line
from pyro_hrssm.scaling import Scaling as Scaling  # data sets name it beside Splits

Likelihood = Literal["bernoulli", "normal"]


class Sequences:
    """Frames [N, T, X…] with their mask and boundaries, read, filled and scaled one batch at a time.

    `frames` is one array or several, joined along N, in memory or memory-mapped; `mask` [N, T] is True
    where a frame is observed, `boundaries` [N, T] where a segment ends. A frame that is NaN in every
    entry counts as missing. `generator` is the record of synthetic sequences (`records.write`), None for all others.
    Shapes that disagree raise :class:`InputError`.
    """

    def __init__(
        self,
        frames: NDArray[Any] | Sequence[NDArray[Any]] | Shards,
        mask: NDArray[Any] | None = None,
        boundaries: NDArray[Any] | None = None,
        scaling: Scaling | None = None,
        indices: ArrayLike | None = None,
        generator: str | None = None,
    ) -> None:
        if isinstance(frames, np.ndarray):
            frames = [frames]
        self._frames = frames if isinstance(frames, Shards) else Shards(frames)
        if len(self._frames.shape) < 3:
            raise InputError(f"frames must have shape [N, T, X…], found {list(self._frames.shape)}")
        self._mask = flags("mask", mask, self._frames.shape[:2])
        self._boundaries = flags("boundaries", boundaries, self._frames.shape[:2])
        self.scaling = Scaling() if scaling is None else scaling
        self.generator = generator
        self.scaling.check(self.frame_shape)
        self._indices = np.arange(len(self._frames)) if indices is None else _positions(indices, len(self._frames))

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def num_frames(self) -> int:
        """Number of frames T of every sequence, missing ones included."""
        return self._frames.shape[1]

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape X… of one frame."""
        return self._frames.shape[2:]

    @property
    def has_boundaries(self) -> bool:
        """Whether the true boundaries are known."""
        return self._boundaries is not None

    def batch(self, indices: ArrayLike) -> Batch:
        """The sequences at `indices` [B], which count within this subset; no other row is read."""
        rows = self._indices[_positions(indices, len(self))]
        frames = self._frames.rows(rows)
        mask = _observed(frames, None if self._mask is None else self._mask[rows])
        if mask is not None:
            frames[~mask] = 0  # before scaling, since the values of a missing frame may overflow
        scaled = self.scaling.apply(frames)
        if mask is not None:
            scaled[~mask] = 0
        return Batch(
            torch.from_numpy(scaled),
            None if mask is None else torch.from_numpy(mask),
            None if self._boundaries is None else torch.from_numpy(self._boundaries[rows]),
        )

    def subset(self, indices: ArrayLike) -> Sequences:
        """The sequences of the same arrays at `indices` [M], in this order; they count within this subset."""
        rows = self._indices[_positions(indices, len(self))]
        return Sequences(self._frames, self._mask, self._boundaries, self.scaling, rows, self.generator)

    def digest(self) -> str:
        """SHA-256 over shape, dtype, frames, mask and boundaries; it does not depend on how the arrays are stored."""
        shape = (len(self), *self._frames.shape[1:])
        digest = hashlib.sha256(repr((shape, self._frames.dtype.str)).encode())
        for _, chunk in self._frames.chunks(self._indices):
            digest.update(np.ascontiguousarray(chunk).data)
        for name, flags in (("mask", self._mask), ("boundaries", self._boundaries)):
            if flags is not None:
                digest.update(name.encode() + flags[self._indices].tobytes())
        return digest.hexdigest()


class Splits(NamedTuple):
    """A data set, ready to train on."""

    train: Sequences
    held_out: Sequences
    name: str
    likelihood: Likelihood
    """The emission that suits these frames."""
    scaling: Scaling


def _observed(frames: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """The mask [B, T], False also at frames that are NaN throughout; None without a mask and such frames."""
    if frames.dtype.kind != "f":
        return mask
    holes = np.isnan(frames).reshape(*frames.shape[:2], -1)
    partly, missing = holes.any(axis=-1), holes.all(axis=-1)
    if not partly.any():
        return mask
    observed = ~missing if mask is None else mask & ~missing
    if (partly & observed).any():
        raise InputError("a missing frame must be NaN in every entry, found one with some NaN entries")
    return observed


def flags(name: str, values: NDArray[Any] | None, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Values [N, T] that are 0 or 1, of any dtype, as bool; anything else raises :class:`InputError`."""
    if values is None:
        return None
    if values.shape != shape:
        raise InputError(f"{name} must have shape {list(shape)} like the frames, found {list(values.shape)}")
    if values.dtype.kind not in "buif" or not np.isin(values, (0, 1)).all():
        found = f"other {values.dtype} values" if values.dtype.kind in "buif" else str(values.dtype)
        raise InputError(f"{name} must hold 0 and 1, found {one_line(found)}")
    return values.astype(bool)


def _positions(indices: ArrayLike, num: int) -> NDArray[np.int64]:
    """Indices [M] as an array, checked, since a negative index would silently count from the end."""
    positions = np.asarray(indices)
    if positions.size == 0:
        positions = positions.astype(np.int64)
    if positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise IndexError(f"indices must be whole numbers [M], found {positions.dtype} {list(positions.shape)}")
    if positions.size and not 0 <= positions.min() <= positions.max() < num:
        raise IndexError(f"indices must lie in [0, {num}), found [{positions.min()}, {positions.max()}]")
    return positions.astype(np.int64, copy=False)
