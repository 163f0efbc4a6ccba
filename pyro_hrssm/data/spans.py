"""Stretches of recordings, and the windows that they cut out of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.data.shards import Shards


class Spans(NamedTuple):
    """Stretches of recordings, [M] each."""

    rows: NDArray[np.int64]
    """Number of the recording."""
    starts: NDArray[np.int64]
    """First frame."""
    lengths: NDArray[np.int64]
    """Number of frames."""

    @classmethod
    def of(cls, spans: list[tuple[int, int, int]]) -> Spans:
        return cls(*np.array(spans, np.int64).reshape(-1, 3).T)

    @classmethod
    def joined(cls, one: Spans, other: Spans) -> Spans:
        return cls(*(np.concatenate(pair) for pair in zip(one, other, strict=True)))

    def where(self, kept: NDArray[Any]) -> Spans:
        """The stretches that an index or a mask [M] picks."""
        return Spans(*(part[kept] for part in self))

    def any_of(self, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[M] whether a stretch has a frame for which a flag [N, T] of the recordings is set."""
        found: NDArray[np.bool_] = np.any(self.gather(flags), axis=1)
        return found

    def gather(self, flags: NDArray[Any], fill: Any = False) -> NDArray[Any]:
        """Flags [N, T] of recordings as flags [M, W] of these stretches, W the longest; `fill` past their ends.

        Weights [N, T, X…] of their entries become [M, W, X…].
        """
        if len(self.rows) == 0:
            return np.empty((0, 0, *flags.shape[2:]), flags.dtype)
        place = np.arange(self.lengths.max())
        frames = np.minimum(self.starts[:, None] + place, flags.shape[1] - 1)
        gathered = np.asarray(flags[self.rows[:, None], frames])
        gathered[place >= self.lengths[:, None]] = fill
        return gathered

    def merged(self) -> tuple[Spans, NDArray[np.int64]]:
        """The stretches that these cover together, each of frames that follow each other, and the number [M] of the one
        that holds each of these.
        """
        stops = self.starts + self.lengths
        apart = self.rows * (stops.max() + 1)  # so that no stretch reaches into the next recording
        order = np.lexsort((self.starts, self.rows))
        reach = np.maximum.accumulate((apart + stops)[order])
        first = np.flatnonzero(np.append(True, (apart + self.starts)[order][1:] > reach[:-1]))
        owner = np.empty(len(order), np.int64)
        owner[order] = np.repeat(np.arange(len(first)), np.diff(first, append=len(order)))
        begins = self.where(order[first])
        ends = np.maximum.reduceat(stops[order], first)
        return begins._replace(lengths=ends - begins.starts), owner

    def paste(self, values: NDArray[Any], into: Spans, owner: NDArray[np.int64], fill: Any = False) -> NDArray[Any]:
        """Values [M, W, …] of these stretches as [S, L, …] of longer ones, `fill` past their ends.

        Arguments:
            into: the S longer stretches.
            owner: [M] number of the one that holds each of these.
        """
        pasted = np.full((len(into.rows), into.lengths.max(), *values.shape[2:]), fill, values.dtype)
        places = (owner, self.starts - into.starts[owner], self.lengths)
        for value, row, start, length in zip(values, *(place.tolist() for place in places), strict=True):
            pasted[row, start : start + length] = value[:length]
        return pasted

    def touch(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """[N, T] of this shape, True for the frames of recordings that lie in any of these stretches."""
        change = np.zeros((shape[0], shape[1] + 1), np.int64)
        np.add.at(change, (self.rows, self.starts), 1)
        np.add.at(change, (self.rows, self.starts + self.lengths), -1)
        return change[:, :-1].cumsum(axis=1) > 0


class Windows(Shards):
    """Stretches of recordings as rows [M, W, X…], read on demand; stretches that overlap share their frames."""

    def __init__(self, recordings: Shards, spans: Spans) -> None:
        self.recordings, self._spans = recordings, spans
        self._length = int(spans.lengths.max())

    def __len__(self) -> int:
        return len(self._spans.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), self._length, *self.recordings.shape[2:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.recordings.dtype

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self._spans.lengths

    def rows(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        joined = np.zeros((len(indices), *self.shape[1:]), self.dtype)
        for target, row, start, length in zip(joined, *(part[indices].tolist() for part in self._spans), strict=True):
            target[:length] = self.recordings.stretch(row, start, start + length)
        return joined


class Cut(NamedTuple):
    """How recordings are cut."""

    train: Spans
    held_out: Spans
    num_recordings: int
    length: int
    """Frames in a window."""
    said: str
    """What was done, in a few words."""
