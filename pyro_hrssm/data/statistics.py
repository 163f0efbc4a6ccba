"""One pass over frames of any size: finds the observed ones, checks that they are finite, computes their moments."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.data.sequences import Scaling
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.errors import InputError


class Summary(NamedTuple):
    """Statistics of frames [N, T, …, X], per entry of their last axis."""

    observed: NDArray[np.bool_]
    """[N, T], False where the mask is False or a frame is NaN throughout."""
    lowest: NDArray[np.float64]
    """[X], smallest value over all observed frames."""
    highest: NDArray[np.float64]
    """[X], largest value over all observed frames."""
    mean: NDArray[np.float64]
    """[X], over the observed frames of the training split."""
    deviation: NDArray[np.float64]
    """[X], over the observed frames of the training split; 0 for an entry that never changes there."""
    dtype: np.dtype[Any]
    """Type of the frames."""


class Moments:
    """Mean and squared deviation of samples added in parts (Chan, Golub and LeVeque 1979)."""

    def __init__(self, size: int) -> None:
        self._count = 0
        self._mean = np.zeros(size)
        self._squares = np.zeros(size)
        self.lowest = np.full(size, np.inf)
        self.highest = np.full(size, -np.inf)

    def add(self, samples: NDArray[np.float64]) -> None:
        """Add samples [M, size]."""
        if len(samples) == 0:
            return
        samples = np.ascontiguousarray(samples.T)  # numpy reduces short rows eight times more slowly
        number = samples.shape[1]
        total = self._count + number
        mean = samples.mean(axis=1)
        change = mean - self._mean
        self.lowest = np.minimum(self.lowest, samples.min(axis=1))
        self.highest = np.maximum(self.highest, samples.max(axis=1))
        self._squares += change**2 * (self._count * number / total)
        self._squares += np.square(samples - mean[:, None]).sum(axis=1)
        self._mean += change * (number / total)
        self._count = total

    @property
    def mean(self) -> NDArray[np.float64]:
        """[size]; the exact value of entries that never change."""
        return np.where(self.lowest == self.highest, self.lowest, self._mean)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """[size]; exactly 0 for entries that never change, whatever the rounding."""
        return np.where(self.lowest == self.highest, 0.0, np.sqrt(self._squares / max(1, self._count)))


def summarise(frames: Shards, mask: NDArray[np.bool_] | None, train: NDArray[np.int64]) -> Summary:
    """Read frames [N, T, …, X] once, in chunks; `train` [M] are the rows of the training split.

    Raises :class:`InputError` where an observed frame holds an infinity, or NaN in part of its entries.
    """
    observed = np.ones(frames.shape[:2], bool) if mask is None else mask.copy()
    training = np.zeros(len(frames), bool)
    training[train] = True
    size = frames.shape[-1]
    trained, held_out = Moments(size), Moments(size)
    with np.errstate(over="ignore", invalid="ignore"):  # `standardise` and `check_range` report an overflow
        for part, chunk in frames.chunks(np.arange(len(frames))):
            values = chunk.reshape(*chunk.shape[:2], -1).astype(np.float64, copy=False)
            observed[part] &= ~_missing(values, observed[part], part.start)
            for moments, rows in ((trained, training[part]), (held_out, ~training[part])):
                moments.add(values[observed[part] & rows[:, None]].reshape(-1, size))
    lowest = np.minimum(trained.lowest, held_out.lowest)
    highest = np.maximum(trained.highest, held_out.highest)
    return Summary(observed, lowest, highest, trained.mean, trained.deviation, frames.dtype)


def extremes(frames: Shards, mask: NDArray[np.bool_] | None) -> tuple[int, int]:
    """The smallest and the largest of whole numbers [N, T, …] where the mask [N, T] is True."""
    found: list[NDArray[Any]] = []
    for part, chunk in frames.chunks(np.arange(len(frames))):
        values = chunk if mask is None else chunk[mask[part]]
        if values.size:
            found += [values.min(), values.max()]
    return int(min(found)), int(max(found))


def to_unit(dtype: np.dtype[Any], lowest: float, highest: float) -> Scaling:
    """The scaling of values between `lowest` and `highest` to [0, 1], the same for all entries.

    Booleans, and numbers that lie there, stay as they are. Integers of which none is negative are divided by the
    largest number of as many bits as the largest of them has: 255 for images of 8 bits, 4095 for images of 12 bits in
    16. All others are mapped from their own interval.
    """
    if dtype.kind == "b" or (lowest >= 0 and highest <= 1):
        return Scaling()
    if dtype.kind in "ui" and lowest >= 0:
        return Scaling(0.0, float(2 ** int(highest).bit_length() - 1))
    if not math.isfinite(highest - lowest):
        raise InputError(f"frames must be small enough to scale, found values from {lowest:.3g} to {highest:.3g}")
    return Scaling(lowest, highest - lowest if highest > lowest else 1.0)


def standardise(summary: Summary) -> Scaling:
    """The scaling to mean 0 and deviation 1 on the training split; constant entries keep their scale."""
    if not (np.isfinite(summary.mean).all() and np.isfinite(summary.deviation).all()):
        largest = np.abs([summary.lowest, summary.highest]).max()
        raise InputError(f"frames must be small enough to standardise, found values up to {largest:.3g}")
    scale = np.where(summary.deviation > 0, summary.deviation, 1.0)
    return Scaling(tuple(summary.mean.tolist()), tuple(scale.tolist()))


def check_range(summary: Summary, scaling: Scaling) -> tuple[float, float]:
    """The smallest and largest scaled value; raises :class:`InputError` where scaled frames overflow a float32."""
    ends = np.stack([summary.lowest, summary.highest])
    return check_ends(ends.astype(summary.dtype) if summary.dtype.itemsize <= 2 else ends, scaling)


def check_ends(ends: NDArray[Any], scaling: Scaling) -> tuple[float, float]:
    """The same for frames between `ends` [2, X], in their own precision."""
    with np.errstate(all="ignore"):
        scaled = scaling.apply(ends)
    if not np.isfinite(scaled).all():
        raise InputError(f"frames must fit 32-bit floats once scaled, found values up to {np.abs(ends).max():.3g}")
    return float(scaled.min()), float(scaled.max())


def _missing(values: NDArray[Any], observed: NDArray[np.bool_], start: int) -> NDArray[np.bool_]:
    """Frames [M, T] of values [M, T, entries] that are NaN throughout; other observed frames must be finite."""
    odd = ~np.isfinite(values)
    if not odd.any():
        return np.zeros(observed.shape, bool)
    missing: NDArray[np.bool_] = np.isnan(values).all(axis=-1)
    wrong = np.argwhere(odd.any(axis=-1) & observed & ~missing)
    if len(wrong):
        sequence, frame = (int(place) for place in wrong[0])
        infinite = np.isinf(values[sequence, frame]).any()
        found = "an infinity" if infinite else f"{odd[sequence, frame].sum()} NaN of {odd.shape[-1]} entries"
        raise InputError(
            f"frames must be finite, or NaN in every entry where missing; "
            f"found {found} in frame {frame} of sequence {start + sequence}"
        )
    return missing
