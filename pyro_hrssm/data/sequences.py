"""The common form of all data sets: scaled batches of sequences, read row by row.

Shapes: N or B sequences, T frames, X… one frame. A boundary at frame t means that a segment ends with
frame t, so that frame t+1 opens a new one.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyro_hrssm.data import axes
from pyro_hrssm.data import weights as weighting
from pyro_hrssm.data.batches import Batch
from pyro_hrssm.data.content import Arrays, lengths_of
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.data.spans import Cut, Spans
from pyro_hrssm.data.weights import Weights
from pyro_hrssm.errors import InputError, one_line
from pyro_hrssm.scaling import Scaling as Scaling  # data sets name it beside Splits

Likelihood = Literal["bernoulli", "normal"]
Emission = Literal["auto", "bernoulli", "normal"]
"""The likelihood that a user asks for; `auto` is the one that suits the frames."""
ScalingName = Literal["auto", "none", "unit", "standard"]
"""What is done to frames; see :class:`pyro_hrssm.config.DataConfig`."""
Mark = Literal["ends", "starts"]
"""What true boundaries mark of a segment in a file."""


class Sequences:
    """Frames [N, T, X…] with their mask and boundaries, read, filled and scaled one batch at a time.

    `frames` is one array or several, joined along N, in memory or memory-mapped; shorter sequences end early. `mask`
    [N, T] is True where a frame is observed, `boundaries` [N, T] where a segment ends. An entry that is NaN is missing,
    and so is a frame that is NaN in every entry. `weights` are those of :mod:`pyro_hrssm.data.weights`, and `gaps` [N]
    or [N, T] the number of missing entries in observed frames, where they were counted. `generator` is the record
    of synthetic sequences (`records.write`), None for all others. `extent` is the smallest and the largest value of
    scaled frames, where known. `labels` [N, T] are the true types of the frames' segments, -1 where unknown, None if no
    type is known. `names` [N] are those of the sequences. The arrays are not copied. Shapes that disagree raise
    :class:`InputError`.
    """

    def __init__(
        self,
        frames: NDArray[Any] | Sequence[NDArray[Any]] | Shards,
        mask: NDArray[Any] | None = None,
        boundaries: NDArray[Any] | None = None,
        scaling: Scaling | None = None,
        generator: str | None = None,
        extent: tuple[float, float] | None = None,
        *,
        labels: NDArray[Any] | None = None,
        weights: Weights | None = None,
        gaps: NDArray[np.integer] | None = None,
        names: NDArray[np.str_] | None = None,
    ) -> None:
        if isinstance(frames, np.ndarray):
            frames = [frames]
        joined = frames if isinstance(frames, Shards) else Shards(frames)
        shape = joined.shape
        if len(shape) < 3:
            raise InputError(f"frames must have shape [N, T, X…], found {list(shape)}")
        if len(shape) == 4 and min(shape[2:]) <= axes.FEW:
            raise InputError(
                f"frames [N, T, X…] must say which axes are N and T, found {list(shape)}: give images a last axis for "
                "channels, points one axis for all of their coordinates, and one video a first axis, frames[None]"
            )
        if weights is not None:
            weights = weighting.checked("weights", weights, shape[2:], *shape[:2])
        arrays = Arrays(
            joined,
            joined.within(flags("mask", mask, shape[:2])),
            flags("boundaries", boundaries, shape[:2]),
            None,
            weights,
            whole_numbers("labels", labels, shape[:2]),
            gaps,
            names,
            generator,
        )
        self._begin(arrays, scaling, extent)

    @classmethod
    def of(cls, arrays: Arrays, scaling: Scaling, extent: tuple[float, float] | None = None) -> Sequences:
        """All sequences of arrays that are checked already."""
        result = cls.__new__(cls)
        result._begin(arrays, scaling, extent)
        return result

    def _begin(self, arrays: Arrays, scaling: Scaling | None, extent: tuple[float, float] | None) -> None:
        self.arrays = arrays
        """All rows of the file or of its windows, in their order."""
        self.scaling = Scaling() if scaling is None else scaling
        self.scaling.check(self.frame_shape)
        self.extent = extent
        self.of_train: Scaling | None = None
        """The scaling that the sequences to train on alone would have given, where held-out ones gave another."""
        self._truth, self._known = _truth(arrays)
        self._take(np.arange(len(arrays.frames)))

    def _take(self, rows: NDArray[np.int64]) -> None:
        self._indices = rows
        self._sha256: str | None = None
        self._has_boundaries = len(rows) > 0 and bool(self._known[rows].all())

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def num_frames(self) -> int:
        """Number of frames T of every sequence, missing ones included."""
        return self.arrays.frames.shape[1]

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape X… of one frame."""
        return self.arrays.frames.shape[2:]

    @property
    def generator(self) -> str | None:
        """The record of synthetic sequences; None for all others."""
        return self.arrays.generator

    @property
    def bounded(self) -> NDArray[np.bool_]:
        """[N] whether the true boundaries of each sequence are known: given, or the places where known labels change.

        Those of a sequence with labels alone are unknown if the label of one frame before its end is.
        """
        return self._known[self._indices]

    @property
    def has_boundaries(self) -> bool:
        """Whether the true boundaries of all of these sequences are known."""
        return self._has_boundaries

    def with_boundaries(self) -> Sequences:
        """Those whose true boundaries are known; perhaps none."""
        return self.subset(np.flatnonzero(self.bounded))

    @property
    def has_entries(self) -> bool:
        """Whether entries are known to be missing from observed frames, or to have weights."""
        return self.arrays.weights is not None or (self.arrays.gaps is not None and bool(self.arrays.gaps.any()))

    @property
    def has_weights(self) -> bool:
        """Whether entries have weights that are more than flags."""
        return self.arrays.weights is not None and self.arrays.weights.dtype.kind != "b"

    @property
    def boundaries(self) -> NDArray[np.bool_] | None:
        """[N, T], True where a segment ends with the frame; None if those of one of these sequences are unknown."""
        return self._truth[self._indices] if self._truth is not None and self.has_boundaries else None

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The true type [N, T] of every frame's segment, -1 where it is unknown; None if no type is known."""
        return None if self.arrays.labels is None else self.arrays.labels[self._indices]

    @property
    def rows(self) -> NDArray[np.int64]:
        """[N] number of each sequence in its file, from 0; of windows, the number of the recording."""
        return self._indices if self.arrays.spans is None else self.arrays.spans.rows[self._indices]

    @property
    def spans(self) -> Spans | None:
        """Where each sequence lies in the recording that it was cut from; None for sequences that were not cut."""
        return None if self.arrays.spans is None else self.arrays.spans.where(self._indices)

    @property
    def names(self) -> NDArray[np.str_] | None:
        """[N] name of each sequence; None where the file has none."""
        return None if self.arrays.names is None else self.arrays.names[self.rows]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] number of frames of each sequence up to the last one that the mask calls observed."""
        if self.arrays.mask is None:
            return np.full(len(self), self.num_frames)
        return lengths_of(self.arrays.mask[self._indices])

    def batch(self, indices: ArrayLike) -> Batch:
        """The sequences at `indices` [B], which count within this subset; no other row is read."""
        rows = self._indices[_positions(indices, len(self))]
        arrays = self.arrays
        frames = arrays.frames.rows(rows)
        mask, weights = (None if values is None else values[rows] for values in (arrays.mask, arrays.weights))
        mask = _observed(frames, mask, weights, self.has_entries)
        hidden = None if mask is None else mask == 0
        if hidden is not None:
            frames[hidden] = 0  # before scaling, since a missing value may overflow
        scaled = self.scaling.apply(frames)
        if hidden is not None:
            scaled[hidden] = 0
        return Batch(
            torch.from_numpy(scaled),
            None if mask is None else torch.from_numpy(mask),
            torch.from_numpy(self._truth[rows]) if self._truth is not None and self.has_boundaries else None,
        )

    def subset(self, indices: ArrayLike) -> Sequences:
        """The sequences of the same arrays at `indices` [M], in this order; they count within this subset."""
        part = copy.copy(self)
        part._take(self._indices[_positions(indices, len(self))])
        return part

    def cut(self, spans: Spans) -> Sequences:
        """Windows of all recordings of the arrays, in the order of `spans`; what was checked of them is not read again.

        Where these sequences are a part of those of the arrays, the windows are of the others too.
        """
        return Sequences.of(self.arrays.cut(spans), self.scaling, self.extent)

    def stretches(self) -> Sequences:
        """The stretches of recordings that these windows cover, whole, so that no frame is there twice; the same
        sequences where nothing was cut.
        """
        if self.arrays.spans is None:
            return self
        return Sequences.of(self.arrays.stretches(self._indices), self.scaling, self.extent)

    def description(self) -> str:
        """What one sequence is, how its frames are scaled, and what is known of its segments, in one line."""
        return ", ".join([*self.content(), *self.knowledge()])

    def content(self) -> list[str]:
        """What one sequence is, how its frames are scaled, and what is missing, in a few words each."""
        *sides, last = self.frame_shape
        one = (
            f"{'×'.join(map(str, sides))} pixels in {_counted(last, 'channel')}" if sides else _counted(last, "number")
        )
        fitted = "" if self.of_train is None else f" (for held-out frames too; without them {_said(self.of_train)})"
        said = [f"{self.num_frames} frames of {one}", f"{self.arrays.frames.dtype} {_said(self.scaling)}{fitted}"]
        if self.arrays.mask is not None:
            missing = ~self.arrays.mask[self._indices]
            said.append(f"{missing.sum()} of {missing.size} frames missing")
        if self.arrays.gaps is not None and self.has_entries:
            gaps, entries = self.arrays.gaps[self._indices].sum(), self.num_frames * int(np.prod(self.frame_shape))
            said.append(f"{gaps} of {len(self) * entries} entries missing from the others")
        if self.has_weights:
            said.append("entries weighted")
        return said

    def knowledge(self) -> list[str]:
        """What is known of the segments, in a few words each; empty where nothing is."""
        said, bounded = [], int(self.bounded.sum())
        if bounded:
            part = "" if self.has_boundaries else f" of {bounded} of {_counted(len(self), 'sequence')}"
            said.append(f"true boundaries known{part}")
        if self.labels is not None:
            inside = np.arange(self.num_frames) < self.lengths[:, None]
            known, frames = int((inside & (self.labels >= 0)).sum()), int(inside.sum())
            if known:
                said.append(f"true types known{'' if known == frames else f' of {known} of {frames} frames'}")
        return said

    def doubts(self, mark: Mark = "ends") -> list[str]:
        """Sentences on what the arrays may mean otherwise; `mark`: what their boundaries marked in their file."""
        order = axes.doubt(self.num_frames, self.frame_shape)
        found = [] if order is None else [order]
        given, bounded = self.arrays.boundaries, self.arrays.bounded
        rows = self._indices if bounded is None else self._indices[bounded[self._indices]]
        if given is not None and mark == "ends" and len(rows) and given[rows, 0].all():
            found.append(
                "boundaries were read as ends of segments, and every sequence has one at its first frame, as if they "
                "were starts: --boundaries-mark starts reads them so"
            )
        return found

    def check_likelihood(self, likelihood: str, way_out: str) -> None:
        """Raise :class:`InputError`, which names the way out, where a Bernoulli emission would score frames that leave
        [0, 1] once they are scaled, or where entries have weights.
        """
        if likelihood != "bernoulli":
            return
        if self.has_weights:
            raise InputError(f"weights need likelihood normal, whose noise they divide, found bernoulli; {way_out}")
        if self.extent is None:
            return
        lowest, highest = self.extent
        if lowest < 0 or highest > 1:
            raise InputError(
                f"likelihood bernoulli needs frames in [0, 1], found values from {lowest:.4g} to {highest:.4g} "
                f"({self.arrays.frames.dtype}, {_said(self.scaling)}); {way_out}"
            )

    def digest(self) -> str:
        """SHA-256 over shape, dtype, frames, mask and boundaries; it does not depend on how the arrays are stored.

        Labels, which nothing learns from, are left out: a run may be resumed after its data was labelled. The digest is
        computed once: the arrays of a data set do not change while a process uses them.
        """
        if self._sha256 is None:
            self._sha256 = self._digest()
        return self._sha256

    def _digest(self) -> str:
        shape = (len(self), *self.arrays.frames.shape[1:])
        digest = hashlib.sha256(repr((shape, self.arrays.frames.dtype.str)).encode())
        for _, chunk in self.arrays.frames.chunks(self._indices):
            digest.update(np.ascontiguousarray(chunk).data)
        bounded = self.arrays.bounded is None or self.arrays.bounded[self._indices].any()
        for name, flags in (("mask", self.arrays.mask), ("boundaries", self.arrays.boundaries if bounded else None)):
            if flags is not None:
                digest.update(name.encode() + flags[self._indices].tobytes())
        if self.arrays.weights is not None:
            digest.update(f"weights {self.arrays.weights.dtype.str} {self.arrays.weights.shape[1:]}".encode())
            for _, chunk in Shards([self.arrays.weights]).chunks(self._indices):
                digest.update(np.ascontiguousarray(chunk).data)
        return digest.hexdigest()


class Splits(NamedTuple):
    """A data set, ready to train on."""

    train: Sequences
    held_out: Sequences
    name: str
    likelihood: Likelihood
    """The emission that suits these frames."""
    scaling: Scaling
    unread: tuple[str, ...] = ()
    """Names of further arrays in a user's file."""

    cut: Cut | None = None
    """How recordings were cut into windows; None where they were not."""

    @property
    def num_in_file(self) -> int:
        """Number of sequences in a user's file."""
        return len(self.train) + len(self.held_out) if self.cut is None else self.cut.num_recordings

    def description(self) -> str:
        """What was read, how frames are scaled, and what is known of the segments, in one line."""
        said = f"{self.cut.said}; " if self.cut is not None else ""
        left = f"; not read: {one_line(', '.join(self.unread))}" if self.unread else ""
        known = self.train.knowledge(), self.held_out.knowledge()
        if known[0] == known[1]:
            return said + self.train.description() + left
        own, other = (", ".join(part) or "no segments known" for part in known)
        return f"{said}{', '.join(self.train.content())}; to train on: {own}; held out: {other}{left}"


def _said(scaling: Scaling) -> str:
    """What a scaling does to frames, in a few words."""
    shift, scale = scaling.shift, scaling.scale
    if isinstance(shift, tuple) or isinstance(scale, tuple):
        return "each entry of the last axis standardised"
    if shift == 0:
        return "as they are" if scale == 1 else f"divided by {scale:.6g}"
    return f"mapped from [{shift:.6g}, {shift + scale:.6g}] to [0, 1]"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _observed(
    frames: NDArray[Any], mask: NDArray[np.bool_] | None, weights: Weights | None, entries: bool
) -> NDArray[Any] | None:
    """The mask of a batch: [B, T], None where nothing is missing, or [B, T, X…] where entries are known one by one.

    Arguments:
        frames: [B, T, X…], NaN where an entry is missing.
        mask: [B, T], False where a frame is missing.
        weights: [B, T] or [B, T, X…].
        entries: whether the mask has the axes X… although no entry of this batch may be missing.
    """
    holes = np.isnan(frames) if frames.dtype.kind == "f" else None
    if weights is None and not entries:
        if holes is None or not holes.any():
            return mask
        flat = holes.reshape(*frames.shape[:2], -1)
        missing = flat.all(axis=-1)
        observed: NDArray[np.bool_] = ~missing if mask is None else mask & ~missing
        if not (flat.any(axis=-1) & observed).any():
            return observed
    known = np.ones(frames.shape, bool) if weights is None else weighting.for_model(weights, frames.shape)
    if mask is not None:
        known[~mask] = 0
    if holes is not None:
        known[holes] = 0
    return known


def _truth(arrays: Arrays) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_]]:
    """The true boundaries [N, T], None where no sequence's are known, and of which sequences [N] they are."""
    if arrays.boundaries is not None and arrays.bounded is None:
        return arrays.boundaries, np.ones(len(arrays.frames), bool)
    truth, known = _changes(arrays)
    if arrays.boundaries is not None and arrays.bounded is not None:
        truth, known = np.where(arrays.bounded[:, None], arrays.boundaries, truth), known | arrays.bounded
    return truth if known.any() else None, known


def _changes(arrays: Arrays) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Boundaries [N, T] between frames of different labels, and the sequences [N] whose labels are known to the end."""
    labels, mask = arrays.labels, arrays.mask
    boundaries = np.zeros(arrays.frames.shape[:2], bool)
    if labels is None:
        return boundaries, np.zeros(len(boundaries), bool)
    inside = np.ones(labels.shape, bool) if mask is None else np.maximum.accumulate(mask[:, ::-1], axis=1)[:, ::-1]
    boundaries[:, :-1] = (labels[:, 1:] != labels[:, :-1]) & inside[:, 1:]
    known: NDArray[np.bool_] = ~np.any(inside & (labels < 0), axis=1)
    return boundaries, known


def flags(name: str, values: NDArray[Any] | None, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Values [N, T] that are 0 or 1, of any dtype, as bool; anything else raises :class:`InputError`."""
    if values is None:
        return None
    if values.shape != shape:
        raise InputError(f"{name} must have shape {list(shape)} like the frames, found {list(values.shape)}")
    if values.dtype.kind == "b":
        return values
    if values.dtype.kind not in "uif" or not np.isin(values, (0, 1)).all():
        found = f"other {values.dtype} values" if values.dtype.kind in "uif" else str(values.dtype)
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
    return values.astype(np.int64, copy=False)


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
