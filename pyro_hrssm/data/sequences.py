"""The common form of all data sets: scaled batches of sequences, read row by row.

Shapes: N or B sequences, T frames, X… one frame. A boundary at frame t means that a segment ends with
frame t, so that frame t+1 opens a new one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyro_hrssm.config import is_finite
from pyro_hrssm.data.batches import Batch
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.errors import InputError, one_line

Likelihood = Literal["bernoulli", "normal"]


@dataclass(frozen=True)
class Scaling:
    """The affine map `(frames - shift) / scale` from a file's units to a model's.

    It is fitted on the training split and stored in the checkpoint.
    """

    shift: float | tuple[float, ...] = 0.0
    """One number, or one per entry of the frames' last axis."""
    scale: float | tuple[float, ...] = 1.0
    """One positive number, or one per entry of the frames' last axis."""

    def __post_init__(self) -> None:
        for name, lowest in (("shift", -math.inf), ("scale", 0.0)):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not (numbers and all(is_finite(number) and number > lowest for number in numbers)):
                wanted = "positive finite numbers" if name == "scale" else "finite numbers"
                raise InputError(f"scaling's {name} must hold {wanted}, found {one_line(value)}")
        if len({size for size in self._sizes() if size > 1}) > 1:
            raise InputError(f"scaling's shift and scale must be equally long, found {self._sizes()}")

    def apply(self, array: ArrayLike) -> NDArray[np.float32]:
        """Map frames […, X] from a file's units to a model's, in float32."""
        values = np.asarray(array)
        # Small types fit float32 exactly; in wider ones the shift may cancel most of the digits.
        work = np.dtype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
        scaled: NDArray[np.floating[Any]] = values.astype(work)
        scaled -= np.asarray(self.shift, work)
        scaled /= np.asarray(self.scale, work)
        return scaled.astype(np.float32, copy=False)

    def invert(self, array: ArrayLike) -> NDArray[np.float64]:
        """Map frames […, X] from a model's units to the file's, in float64."""
        return np.asarray(array, np.float64) * np.asarray(self.scale) + np.asarray(self.shift)

    def check(self, frame_shape: tuple[int, ...]) -> None:
        """Raise :class:`InputError` where frames of this shape cannot be scaled."""
        for size in self._sizes():
            if size not in (1, frame_shape[-1]):
                raise InputError(f"scaling is for frames whose last axis is {size}, found {list(frame_shape)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = {"shift": self.shift, "scale": self.scale}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Any) -> Scaling:
        """Rebuild from :meth:`to_dict`'s values; anything else raises :class:`InputError`."""
        if not isinstance(values, dict) or set(values) != {"shift", "scale"}:
            raise InputError(f"scaling must be a table of shift and scale, found {one_line(values)}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def _sizes(self) -> tuple[int, int]:
        return int(np.size(self.shift)), int(np.size(self.scale))


class Sequences:
    """Frames [N, T, X…] with their mask and boundaries, read, filled and scaled one batch at a time.

    `frames` is one array or several, joined along N, in memory or memory-mapped; `mask` [N, T] is True
    where a frame is observed, `boundaries` [N, T] where a segment ends. A frame that is NaN in every
    entry counts as missing. `generator` is the record of synthetic sequences (`records.write`), None for all others;
    `labels` [N, T] are the true types of the frames' segments, -1 where unknown, None if no type is known.
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
        labels: NDArray[Any] | None = None,
    ) -> None:
        if isinstance(frames, np.ndarray):
            frames = [frames]
        self._frames = frames if isinstance(frames, Shards) else Shards(frames)
        if len(self._frames.shape) < 3:
            raise InputError(f"frames must have shape [N, T, X…], found {list(self._frames.shape)}")
        self._mask = flags("mask", mask, self._frames.shape[:2])
        self._boundaries = flags("boundaries", boundaries, self._frames.shape[:2])
        self._labels = whole_numbers("labels", labels, self._frames.shape[:2])
        self._truth = _changes(self._labels, self._mask) if self._boundaries is None else self._boundaries
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
        """Whether the true boundaries are known: given, or the places where known labels change."""
        return self._truth is not None

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The true type [N, T] of every frame's segment, -1 where it is unknown; None if no type is known."""
        return None if self._labels is None else self._labels[self._indices]

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
            None if self._truth is None else torch.from_numpy(self._truth[rows]),
        )

    def subset(self, indices: ArrayLike) -> Sequences:
        """The sequences of the same arrays at `indices` [M], in this order; they count within this subset."""
        rows = self._indices[_positions(indices, len(self))]
        return Sequences(self._frames, self._mask, self._boundaries, self.scaling, rows, self.generator, self._labels)

    def digest(self) -> str:
        """SHA-256 over shape, dtype, frames, mask and boundaries; it does not depend on how the arrays are stored.

        Labels, which nothing learns from, are left out: a run may be resumed after its data was labelled.
        """
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


def _changes(labels: NDArray[np.int64] | None, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Boundaries [N, T] between frames of different labels; None where a frame's label is unknown before the end."""
    if labels is None:
        return None
    inside = np.ones(labels.shape, bool) if mask is None else np.maximum.accumulate(mask[:, ::-1], axis=1)[:, ::-1]
    if (inside & (labels < 0)).any():
        return None
    boundaries = np.zeros(labels.shape, bool)
    boundaries[:, :-1] = (labels[:, 1:] != labels[:, :-1]) & inside[:, 1:]
    return boundaries


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


def whole_numbers(name: str, values: NDArray[Any] | None, shape: tuple[int, ...]) -> NDArray[np.int64] | None:
    """Whole numbers [N, T] from -1 on, of any dtype, as int64; anything else raises :class:`InputError`."""
    if values is None:
        return None
    wanted = f"{name} must be whole numbers of shape {list(shape)} like the frames, -1 where unknown"
    if values.shape != shape or values.dtype.kind not in "buif":
        raise InputError(f"{wanted}, found {one_line(values.dtype)} of shape {list(values.shape)}")
    wrong = ~((values >= -1) & (values < 2**31) & (np.floor(values) == values))
    if wrong.any():
        raise InputError(f"{wanted}, found {one_line(values[wrong][0])}")
    return values.astype(np.int64)


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
