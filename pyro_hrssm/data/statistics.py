"""One pass over frames of any size: finds the observed ones, checks that they are finite, computes their moments."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.data.sequences import Scaling
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.data.weights import Weights, spread
from pyro_hrssm.errors import InputError


class Summary(NamedTuple):
    """Statistics of frames [N, T, …, X], per entry of their last axis."""

    observed: NDArray[np.bool_]
    """[N, T], False where the mask is False or all entries of a frame are missing."""
    gaps: NDArray[np.int64] | None
    """[N, T], number of entries that are missing from each observed frame; None where none are."""
    lowest: NDArray[np.float64]
    """[X], smallest value over all observed frames; infinite for an entry that is missing from all of them."""
    highest: NDArray[np.float64]
    """[X], largest value over all observed frames; infinite for an entry that is missing from all of them."""
    ends: tuple[float, float]
    """Smallest and largest value over the observed frames of the training split."""
    mean: NDArray[np.float64]
    """[X], over the observed frames of the training split; NaN for an entry that is missing from all of them."""
    deviation: NDArray[np.float64]
    """[X], over the observed frames of the training split; 0 for an entry that never changes there."""
    dtype: np.dtype[Any]
    """Type of the frames."""


class Moments:
    """Mean and squared deviation of samples added in parts (Chan, Golub and LeVeque 1979); NaN is no sample."""

    def __init__(self, size: int) -> None:
        self._count = np.zeros(size, np.int64)
        self._mean = np.zeros(size)
        self._squares = np.zeros(size)
        self.lowest = np.full(size, np.inf)
        self.highest = np.full(size, -np.inf)

    def add(self, samples: NDArray[np.float64]) -> None:
        """Add samples [M, size]."""
        if len(samples) == 0:
            return
        samples = np.ascontiguousarray(samples.T)  # numpy reduces short rows eight times more slowly
        number: Any = samples.shape[1]
        mean = samples.mean(axis=1)
        lowest, highest = samples.min(axis=1), samples.max(axis=1)
        if np.isnan(mean).any():
            known = ~np.isnan(samples)
            number = known.sum(axis=1)
            mean = np.where(known, samples, 0).sum(axis=1) / np.maximum(number, 1)
            lowest, highest = (
                np.where(known, samples, np.inf).min(axis=1),
                np.where(known, samples, -np.inf).max(axis=1),
            )
            samples = np.where(known, samples, mean[:, None])
        total = np.maximum(self._count + number, 1)
        change = mean - self._mean
        self.lowest = np.minimum(self.lowest, lowest)
        self.highest = np.maximum(self.highest, highest)
        self._squares += change**2 * (self._count * number / total)
        self._squares += np.square(samples - mean[:, None]).sum(axis=1)
        self._mean += change * (number / total)
        self._count = self._count + number

    @property
    def mean(self) -> NDArray[np.float64]:
        """[size]; the exact value of entries that never change, and NaN of those without a sample."""
        mean = np.where(self.lowest == self.highest, self.lowest, self._mean)
        return np.where(self._count > 0, mean, np.nan)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """[size]; exactly 0 for entries that never change, whatever the rounding."""
        return np.where(self.lowest == self.highest, 0.0, np.sqrt(self._squares / np.maximum(1, self._count)))


def summarise(
    frames: Shards, mask: NDArray[np.bool_] | None, train: NDArray[np.int64], weights: Weights | None = None
) -> Summary:
    """Read frames [N, T, …, X] once, in chunks; `train` [M] are the rows of the training split.

    Entries that are NaN, or have the weight 0, are missing; the other weights change no statistic. Raises
    :class:`InputError` where an entry that is not missing is infinite.
    """
    observed, gaps = np.ones(frames.shape[:2], bool) if mask is None else mask.copy(), None
    training = np.zeros(len(frames), bool)
    training[train] = True
    size = frames.shape[-1]
    trained, held_out = Moments(size), Moments(size)
    with np.errstate(over="ignore", invalid="ignore"):  # `standardise` and `check_range` report an overflow
        for part, chunk in frames.chunks(np.arange(len(frames))):
            if weights is not None:
                chunk = np.where(spread(weights[part], chunk.ndim) > 0, chunk, np.nan)
            values = chunk.reshape(*chunk.shape[:2], -1).astype(np.float64, copy=False)
            missing, holes = _missing(values, observed[part], part.start)
            observed[part] &= ~missing
            gaps = _noted(gaps, holes, part, frames)
            for moments, rows in ((trained, training[part]), (held_out, ~training[part])):
                moments.add(values[observed[part] & rows[:, None]].reshape(-1, size))
    lowest = np.minimum(trained.lowest, held_out.lowest)
    highest = np.maximum(trained.highest, held_out.highest)
    ends = float(trained.lowest.min()), float(trained.highest.max())
    return Summary(observed, gaps, lowest, highest, ends, trained.mean, trained.deviation, frames.dtype)


def extremes(
    frames: Shards, mask: NDArray[np.bool_] | None, weights: Weights | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64] | None]:
    """The smallest and the largest [N] of each sequence's whole numbers [T, …] that are observed, and the gaps of
    :class:`Summary`.
    """
    kind = np.dtype(np.uint8) if frames.dtype.kind == "b" else frames.dtype
    lowest, highest = np.zeros((2, len(frames)), kind)
    limits, gaps = np.iinfo(kind), None
    for part, chunk in frames.chunks(np.arange(len(frames))):
        seen = np.ones(chunk.shape[:2], bool) if mask is None else mask[part]
        known: Any = spread(seen, chunk.ndim)
        if weights is not None:
            weighted = np.broadcast_to(spread(weights[part], chunk.ndim) > 0, chunk.shape)
            holes = (~weighted & known).reshape(*chunk.shape[:2], -1).sum(axis=2)
            gaps, known = _noted(gaps, holes, part, frames), weighted & known
        values, entries = chunk.astype(kind, copy=False), tuple(range(1, chunk.ndim))
        known = True if known.all() else known  # a plain minimum takes a tenth of the time
        lowest[part] = values.min(axis=entries, where=known, initial=limits.max)
        highest[part] = values.max(axis=entries, where=known, initial=limits.min)
    return lowest, highest, gaps


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
    unseen = np.flatnonzero(np.isnan(summary.mean))
    if len(unseen):
        raise InputError(
            f"every entry of the frames' last axis needs an observed value among the training sequences, to be scaled "
            f"by, found none of entry {unseen[0]}: leave it out, or name a --scaling"
        )
    if not (np.isfinite(summary.mean).all() and np.isfinite(summary.deviation).all()):
        largest = np.abs([summary.lowest, summary.highest]).max()
        raise InputError(f"frames must be small enough to standardise, found values up to {largest:.3g}")
    scale = np.where(summary.deviation > 0, summary.deviation, 1.0)
    return Scaling(tuple(summary.mean.tolist()), tuple(scale.tolist()))


def check_range(summary: Summary, scaling: Scaling) -> tuple[float, float]:
    """The smallest and largest scaled value; raises :class:`InputError` where scaled frames overflow a float32."""
    seen = summary.lowest <= summary.highest
    ends = np.where(seen, [summary.lowest, summary.highest], 0)
    return check_ends(ends.astype(summary.dtype) if summary.dtype.itemsize <= 2 else ends, scaling, seen)


def check_ends(ends: NDArray[Any], scaling: Scaling, seen: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """The same for frames between `ends` [2, X], in their own precision, of which the entries `seen` [X] count."""
    with np.errstate(all="ignore"):
        scaled = scaling.apply(ends)
    scaled = scaled if seen is None else scaled[:, seen]
    if not np.isfinite(scaled).all():
        raise InputError(f"frames must fit 32-bit floats once scaled, found values up to {np.abs(ends).max():.3g}")
    return float(scaled.min()), float(scaled.max())


def _missing(
    values: NDArray[Any], observed: NDArray[np.bool_], start: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64] | None]:
    """Frames [M, T] of values [M, T, entries] that are NaN throughout, and the numbers [M, T] of others that are NaN.

    Entries of observed frames that are not NaN must be finite.
    """
    odd = ~np.isfinite(values)
    if not odd.any():
        return np.zeros(observed.shape, bool), None
    holes = np.isnan(values)
    missing: NDArray[np.bool_] = holes.all(axis=-1)
    wrong = np.argwhere((odd & ~holes).any(axis=-1) & observed)
    if len(wrong):
        sequence, frame = (int(place) for place in wrong[0])
        raise InputError(
            "frames must be finite, or NaN where they or their entries are missing; "
            f"found an infinity in frame {frame} of sequence {start + sequence}"
        )
    return missing, (holes & (observed & ~missing)[..., None]).sum(axis=2)


def _noted(
    gaps: NDArray[np.int64] | None, holes: NDArray[np.int64] | None, part: slice, frames: Shards
) -> NDArray[np.int64] | None:
    """The numbers [N, T] of missing entries with those of a part; None as long as there are none."""
    if holes is None or not holes.any():
        return gaps
    gaps = np.zeros(frames.shape[:2], np.int64) if gaps is None else gaps
    gaps[part] = holes
    return gaps
