"""The arrays of one data set: frames, and what lies beside them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.data.shards import Shards
from pyro_hrssm.data.spans import Spans, Windows
from pyro_hrssm.data.weights import Weights


class Arrays(NamedTuple):
    """Frames of N sequences, T each, and what is known of them; what is None was not given."""

    frames: Shards
    """[N, T, X…] as stored."""
    mask: NDArray[np.bool_] | None = None
    """[N, T], True where a frame is observed; False also where all entries of a frame have the weight 0."""
    boundaries: NDArray[np.bool_] | None = None
    """[N, T], True where a segment ends."""
    bounded: NDArray[np.bool_] | None = None
    """[N], False where a sequence has no `boundaries` of its own; None where all have them."""
    weights: Weights | None = None
    """[N, T] or [N, T, X…], as in :mod:`pyro_hrssm.data.weights`."""
    labels: NDArray[np.int64] | None = None
    """[N, T] the true type of the segment that a frame belongs to; -1 where it is unknown."""
    gaps: NDArray[np.integer] | None = None
    """[N] or [N, T], number of entries that are missing from observed frames, where they were counted."""
    names: NDArray[np.str_] | None = None
    """The name of each sequence; of windows, of each recording."""
    generator: str | None = None
    """The record of synthetic sequences; see :mod:`pyro_hrssm.data.records`."""
    spans: Spans | None = None
    """[N] where each sequence lies in the recording that it was cut from; None for sequences that were not cut."""
    num_train: int | None = None
    """Number of sequences to train on, the first ones, where these are split already."""
    unread: tuple[str, ...] = ()
    """Names of further arrays in a user's file."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] number of frames of each sequence up to the last one that the mask calls observed."""
        return self.frames.lengths if self.mask is None else lengths_of(self.mask)

    def cut(self, spans: Spans) -> Arrays:
        """Windows of these recordings, without the generator's record: its process opens a segment with the first
        frame, and a window need not.
        """
        frames = Windows(self.frames, spans)
        mask, boundaries, weights, gaps = (
            None if part is None else spans.gather(part)
            for part in (self.mask, self.boundaries, self.weights, self.gaps)
        )
        says_nothing = mask is not None and self.weights is None and bool(mask.all())
        return Arrays(
            frames,
            frames.within(None if says_nothing else mask),
            boundaries,
            None if self.bounded is None else self.bounded[spans.rows],
            weights,
            None if self.labels is None else spans.gather(self.labels, -1),
            gaps,
            self.names,
            spans=spans,
            unread=self.unread,
        )

    def stretches(self, indices: NDArray[np.int64]) -> Arrays:
        """The stretches of recordings that the windows at `indices` cover, whole, so that no frame is there twice."""
        assert isinstance(self.frames, Windows)
        assert self.spans is not None
        windows = self.spans.where(indices)
        whole, owner = windows.merged()

        def pasted(values: NDArray[Any] | None, fill: Any = False) -> Any:
            return None if values is None else windows.paste(values[indices], whole, owner, fill)

        bounded = None if self.bounded is None else np.zeros(len(whole.rows), bool)
        if bounded is not None and self.bounded is not None:
            bounded[owner] = self.bounded[indices]
        frames = Windows(self.frames.recordings, whole)
        return self._replace(
            frames=frames,
            mask=frames.within(pasted(self.mask)),
            boundaries=pasted(self.boundaries),
            bounded=bounded,
            weights=pasted(self.weights),
            labels=pasted(self.labels, -1),
            gaps=pasted(self.gaps),
            spans=whole,
        )


def lengths_of(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N] number of frames of each sequence up to the last one that a mask [N, T] calls observed."""
    return np.where(mask.any(axis=1), mask.shape[1] - np.argmax(mask[:, ::-1], axis=1), 0)
