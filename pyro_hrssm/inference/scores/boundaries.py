"""Agreement of boundaries with the true ones: precision, recall and F1.

Boundaries are bool [N, T]: true where a segment ends with the frame. The positions where `counted` [N, T] is true are
scored: those that a frame follows.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def text(self) -> str:
        """The scores on one line of text."""
        exact = f"F1 {self.f1:.3f} (precision {self.precision:.3f}, recall {self.recall:.3f})"
        return f"{exact}, ±1 frame {self.f1_tolerance_1:.3f}"


def score(boundaries: Flags, truth: Flags, counted: Flags) -> Score:
    """Compare boundaries with the true ones, [N, T] each, at the counted positions."""
    found, wanted = boundaries & counted, truth & counted
    hits = int((found & wanted).sum())
    near = sum(_matches(np.flatnonzero(a), np.flatnonzero(b)) for a, b in zip(found, wanted, strict=True))
    both = int(found.sum()) + int(wanted.sum())
    return Score(
        precision=hits / max(1, int(found.sum())),
        recall=hits / max(1, int(wanted.sum())),
        f1=2 * hits / max(1, both),
        f1_tolerance_1=2 * near / max(1, both),
    )


def _matches(found: NDArray[np.intp], wanted: NDArray[np.intp]) -> int:
    """Largest number of pairs at most one frame apart, each position used once; earliest first is optimal here."""
    i = j = pairs = 0
    while i < len(found) and j < len(wanted):
        if abs(found[i] - wanted[j]) <= 1:
            i, j, pairs = i + 1, j + 1, pairs + 1
        elif found[i] < wanted[j]:
            i += 1
        else:
            j += 1
    return pairs
