"""Agreement of types with the true ones: accuracy, NMI, ARI, and the scores of segments in a row.

Types are int [N, T], one per frame, -1 where a frame has none. The frames where `counted` [N, T] is true and whose true
type is known are scored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.errors import require
from pyro_hrssm.inference.scores.boundaries import Flags

Labels = NDArray[np.int64]

OVERLAPS = (10, 25, 50)
"""Percentages of the overlaps at which a segment counts as found."""


@dataclass(frozen=True)
class LabelScore:
    """Agreement of types with the true ones. Every score but `ari` lies in [0, 1]; `ari` is at most 1, 0 by chance."""

    accuracy: float
    """Share of frames whose type is right under the best matching of found types to true ones."""
    nmi: float
    """Normalised mutual information of the types of all frames, over the mean of their entropies."""
    ari: float
    """Adjusted Rand index of the types of all frames (Hubert and Arabie 1985)."""
    edit: float
    """:func:`edit_score`"""
    f1_overlap_10: float
    """:func:`overlap_f1` at 10 %"""
    f1_overlap_25: float
    f1_overlap_50: float

    def to_dict(self) -> dict[str, float]:
        """The scores, ready for JSON."""
        return asdict(self)


class Runs(NamedTuple):
    """The runs of one type in a sequence, in order; a run's frames are `starts` to `stops - 1`."""

    types: Labels
    starts: NDArray[np.intp]
    stops: NDArray[np.intp]

    @classmethod
    def of(cls, labels: Labels) -> Runs:
        """The runs of labels [T]."""
        starts = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]])[: len(labels)])
        return cls(labels[starts], starts, np.append(starts[1:], len(labels)))


def label_score(found: Labels, truth: Labels, counted: Flags) -> LabelScore:
    """Compare types with the true ones, [N, T] each, at the counted frames whose true type is known.

    Accuracy, NMI and ARI are those of all frames of all sequences together, as in RED-SDS (Ansari et al. 2021, *Deep
    Explicit Duration Switching Models for Time Series*, section 5.1). Frames without a type (-1) count as a further
    type in NMI and ARI, and as wrong elsewhere. `edit` and the overlaps compare names, so that types are renamed first
    by the matching of `accuracy`; a type that is matched to none is wrong.

    Raises:
        InputError: where the true type is known of no counted frame.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = counted & (truth >= 0)
    require(bool(known.any()), "labels must be known of at least one frame that is scored, found none")
    named = renamed(found, truth, known)
    rows = [(named[n, here], truth[n, here]) for n, here in enumerate(known) if here.any()]
    ours, true = found[known], truth[known]
    return LabelScore(
        accuracy=float((named == truth)[known].mean()),
        nmi=float(normalized_mutual_info_score(true, ours)),
        ari=float(adjusted_rand_score(true, ours)),
        edit=float(np.mean([edit_score(*row) for row in rows])),
        **{f"f1_overlap_{percent}": overlap_f1(rows, percent / 100) for percent in OVERLAPS},
    )


def accuracy(found: Labels, truth: Labels, counted: Flags) -> float:
    """Share of frames whose type is right under the best matching; arguments and frames as in :func:`label_score`."""
    known = counted & (truth >= 0)
    return float((renamed(found, truth, known)[known] == truth[known]).mean()) if known.any() else 0.0


def renamed(found: Labels, truth: Labels, counted: Flags) -> Labels:
    """Types [N, T] under the names of the true ones, by the one-to-one matching with the most right frames.

    The matching is the Hungarian method's (Kuhn 1955). A type that is matched to none gets a negative name of its own;
    -1 stays -1.
    """
    from scipy.optimize import linear_sum_assignment

    both = counted & (found >= 0)
    types, ours = np.unique(found[both], return_inverse=True)
    names, true = np.unique(truth[both], return_inverse=True)
    shared = np.zeros((len(types), len(names)), np.int64)
    np.add.at(shared, (ours, true), 1)
    matched = dict(zip(*linear_sum_assignment(shared, maximize=True), strict=True))
    result = np.where(found >= 0, -2 - found, -1)
    for place, value in enumerate(types):
        if place in matched:
            result[found == value] = names[matched[place]]
    return result


def edit_score(found: Labels, truth: Labels) -> float:
    """1 - Levenshtein distance of the runs' types in order, over the larger number of runs; labels [T] each.

    Source: segmental edit score of Lea et al. 2016 (*Segmental Spatiotemporal CNNs for Fine-grained Action
    Segmentation*), as MS-TCN (Abu Farha and Gall 2019) reports it, there times 100.
    """
    ours, true = Runs.of(found).types, Runs.of(truth).types
    places = np.arange(len(true) + 1)
    row = places.copy()
    for count, one in enumerate(ours, start=1):
        replaced = np.minimum(row[:-1] + (true != one), row[1:] + 1)
        # An entry is also at most its left neighbour and 1 more: the least of all entries to the left, plus the way.
        row = np.minimum.accumulate(np.concatenate([[count], replaced]) - places) + places
    return 1 - float(row[-1]) / max(1, len(ours), len(true))


def overlap_f1(rows: list[tuple[Labels, Labels]], overlap: float) -> float:
    """F1 of segments, where one is found if it overlaps one of the same type: `|A ∩ B| / |A ∪ B| >= overlap`.

    Every found segment is judged by the true one of its type that it overlaps most, and every true one is found at most
    once; counts are added over sequences. Source: F1@k of Lea et al. 2017 (*Temporal Convolutional Networks for Action
    Segmentation and Detection*), as MS-TCN (Abu Farha and Gall 2019) reports it, there times 100.

    Arguments:
        rows: found and true labels [T] of every sequence, the types under the true ones' names.
        overlap: least overlap, in (0, 1].
    """
    hits = total = 0
    for found, truth in rows:
        ours, true = Runs.of(found), Runs.of(truth)
        total += len(ours.types) + len(true.types)
        shares = _overlaps(ours, true)
        # A true segment that several found ones hit counts once.
        hits += len(set(shares.argmax(1)[shares.max(1) >= overlap].tolist()))
    return 2 * hits / max(1, total)


def _overlaps(ours: Runs, true: Runs) -> NDArray[np.float64]:
    """[n, m], |A ∩ B| / |A ∪ B| of runs of the same type, 0 of others."""
    shared = np.minimum(ours.stops[:, None], true.stops) - np.maximum(ours.starts[:, None], true.starts)
    shared = np.where(ours.types[:, None] == true.types, np.maximum(shared, 0), 0)
    sizes = (ours.stops - ours.starts)[:, None] + (true.stops - true.starts)
    overlaps: NDArray[np.float64] = shared / (sizes - shared)
    return overlaps
