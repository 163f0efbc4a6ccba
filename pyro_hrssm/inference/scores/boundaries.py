"""Agreement of boundaries with the true ones: precision, recall, F1 exactly and within a margin, and covering.

Boundaries are bool [N, T]: true where a segment ends with the frame. The positions where `counted` [N, T] is true are
scored: those that a frame follows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """Agreement of boundaries with the true ones; each score lies in [0, 1] and is 0 where its denominator is 0."""

    precision: float
    recall: float
    f1: float
    f1_tolerance_1: float
    """F1 where a boundary may be one frame off; each true one is matched at most once."""
    covering: float
    """:func:`covering`"""
    f1_margin: float | None = None
    """F1 within the margin that was asked for: :func:`f1`."""

    def to_dict(self) -> dict[str, float]:
        """The scores, without the one that was not asked for, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def text(self) -> str:
        """The scores on one line of text."""
        exact = f"F1 {self.f1:.3f} (precision {self.precision:.3f}, recall {self.recall:.3f})"
        return f"{exact}, ±1 frame {self.f1_tolerance_1:.3f}"


def score(boundaries: Flags, truth: Flags, counted: Flags, margin: int | None = None) -> Score:
    """Compare boundaries with the true ones, [N, T] each, at the counted positions.

    Arguments:
        margin: number of frames that a boundary may be off in `f1_margin`; None for no such score.
    """
    found, wanted = boundaries & counted, truth & counted
    hits = int((found & wanted).sum())
    return Score(
        precision=hits / max(1, int(found.sum())),
        recall=hits / max(1, int(wanted.sum())),
        f1=f1(boundaries, truth, counted),
        f1_tolerance_1=f1(boundaries, truth, counted, 1),
        covering=covering(boundaries, truth, counted),
        f1_margin=None if margin is None else f1(boundaries, truth, counted, margin),
    )


def f1(boundaries: Flags, truth: Flags, counted: Flags, margin: int = 0) -> float:
    """F1 over all counted positions, where a boundary matches a true one at most `margin` frames away.

    Pairs are one to one, and as many as possible: two boundaries at one true one are a hit and a false alarm. As in
    TCPDBench (van den Burg and Williams 2020, *An Evaluation of Change Point Detection Algorithms*), but that the first
    frame, where no method can be wrong, is no boundary, and that counts are added over sequences.
    """
    found, wanted = boundaries & counted, truth & counted
    both = int(found.sum()) + int(wanted.sum())
    return 2 * _matches(found, wanted, margin) / max(1, both)


def _matches(found: Flags, wanted: Flags, margin: int) -> int:
    """Largest number of pairs within a sequence, at most `margin` frames apart, each position used once."""
    if margin == 0:
        return int((found & wanted).sum())
    # On one line, with gaps between the sequences that no pair can span.
    margin = min(margin, found.shape[1])
    gap = ((0, 0), (0, margin))
    ours, true = (np.flatnonzero(np.pad(flags, gap)).tolist() for flags in (found, wanted))
    i = j = pairs = 0
    # To pair the earliest that fit is optimal: whatever else one of them could pair with, a later one can as well.
    while i < len(ours) and j < len(true):
        if abs(ours[i] - true[j]) <= margin:
            i, j, pairs = i + 1, j + 1, pairs + 1
        elif ours[i] < true[j]:
            i += 1
        else:
            j += 1
    return pairs


def covering(boundaries: Flags, truth: Flags, counted: Flags) -> float:
    """Mean over sequences of `1/T Σ_A |A| max_B |A ∩ B| / |A ∪ B|`, with true segments A and found ones B.

    Source: Arbelaez, Maire, Fowlkes and Malik 2010 (*Contour Detection and Hierarchical Image Segmentation*), as
    TCPDBench applies it to one series. A sequence's frames are those from its first counted position to the one after
    its last; a sequence without a counted position is left out.
    """
    scored = np.flatnonzero(counted.any(1))
    if len(scored) == 0:
        return 0.0
    inside = np.stack([_between(row) for row in counted[scored]])
    rows = np.nonzero(inside)[0]
    ours, true = (_numbered((flags & counted)[scored])[inside] for flags in (boundaries, truth))
    pairs, shared = np.unique(np.stack([true, ours]), axis=1, return_counts=True)
    sizes, our_sizes = np.bincount(true), np.bincount(ours)
    overlap = shared / (sizes[pairs[0]] + our_sizes[pairs[1]] - shared)
    best = np.zeros(len(sizes))
    np.maximum.at(best, pairs[0], overlap)
    share = np.bincount(rows, best[true], minlength=len(scored)) / inside.sum(1)
    return float(share.mean())


def _between(counted: Flags) -> Flags:
    """[T], the frames of a sequence with a counted position."""
    places = np.flatnonzero(counted)
    frames = np.arange(len(counted))
    return (frames >= places[0]) & (frames <= places[-1] + 1)


def _numbered(boundaries: Flags) -> NDArray[np.intp]:
    """[N, T], the number of the segment that every frame belongs to, counted over all sequences."""
    opens = np.ones_like(boundaries)
    opens[:, 1:] = boundaries[:, :-1]
    numbers: NDArray[np.intp] = np.cumsum(opens, dtype=np.intp).reshape(opens.shape)
    return numbers
