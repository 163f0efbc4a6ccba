"""Scores of boundaries: precision, recall and F1 against the truth, and baselines that need no model.

Boundaries are bool [N, T]: true where a segment ends with the frame. The positions where `counted` [N, T] is true are
scored: those that a frame follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]

_THRESHOLDS = 200
"""Number of candidate thresholds of a baseline, spread evenly over the quantiles."""

_PENALTIES = 24
_PELT_SEQUENCES = 200
"""Number of sequences on which PELT's penalty is chosen."""


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


@dataclass(frozen=True)
class BoundaryScores:
    """A model's score beside those of baselines at the same positions."""

    model: Score
    baselines: dict[str, Score]
    """`always`, `never`, `every_k`, `frame_difference`, `pelt` where ruptures is installed, and `best_possible` where
    the process that drew the sequences is known."""
    forced_share: float
    """Share of positions where the model's limits left no choice; they are scored as all others are."""
    tuned_on: str
    """Data that the baselines' parameters were chosen on: `training`, or `evaluation` if training has no truth."""

    def to_dict(self) -> dict[str, Any]:
        """The model's score and, under `baselines`, those of the baselines, ready for JSON."""
        baselines = {name: asdict(score) for name, score in self.baselines.items()}
        rest = {"forced_share": self.forced_share, "tuned_on": self.tuned_on}
        return asdict(self.model) | rest | {"baselines": baselines}

    def rows(self) -> list[tuple[str, str]]:
        """Names and values as text to read."""
        listed = [("boundaries: model", self.model), *((f"  {name}", score) for name, score in self.baselines.items())]
        return [(name, score.text()) for name, score in listed]


class Labelled(NamedTuple):
    """Sequences whose segments are known."""

    frames: NDArray[np.float32]
    """[N, T, D]; a missing frame or entry repeats the one before it."""
    truth: Flags
    """[N, T] true boundaries."""
    acts: Flags
    """[N, T] positions that a frame of the sequence follows."""

    def head(self, count: int) -> Labelled:
        """The first `count` sequences."""
        return Labelled(self.frames[:count], self.truth[:count], self.acts[:count])


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


Baseline = Callable[[Labelled], Flags]


def baselines(tuning: Labelled) -> Iterator[tuple[str, Baseline]]:
    """Name and rule of every baseline, with the parameter that has the best F1 on `tuning`."""
    yield "always", lambda data: np.ones_like(data.truth)
    yield "never", lambda data: np.zeros_like(data.truth)
    yield "every_k", _best(tuning, range(1, tuning.truth.shape[1]), _every)
    quantiles = np.linspace(0, 1, _THRESHOLDS)
    thresholds = np.unique(np.quantile(_differences(tuning)[tuning.acts], quantiles)) if tuning.acts.any() else [0.0]
    yield "frame_difference", _best(tuning, thresholds, lambda data, least: _differences(data) >= least)
    if _ruptures() is not None:
        few = tuning.head(_PELT_SEQUENCES)
        yield "pelt", _best(few, _penalties(few), _pelt)


def _best(tuning: Labelled, parameters: Any, rule: Callable[[Labelled, Any], Flags]) -> Baseline:
    best = max(parameters, key=lambda parameter: _f1(rule(tuning, parameter), tuning))
    return lambda data: rule(data, best)


def _f1(boundaries: Flags, data: Labelled) -> float:
    found, wanted = boundaries & data.acts, data.truth & data.acts
    return 2 * float((found & wanted).sum()) / max(1.0, float(found.sum() + wanted.sum()))


def _every(data: Labelled, k: int) -> Flags:
    """A boundary after every k-th frame."""
    return np.broadcast_to((np.arange(data.truth.shape[1]) + 1) % k == 0, data.truth.shape)


def _differences(data: Labelled) -> NDArray[np.float32]:
    """[N, T] Euclidean distance to the next frame; 0 at the last."""
    distances = np.zeros(data.truth.shape, np.float32)
    for t in range(data.truth.shape[1] - 1):  # one frame at a time bounds the memory
        distances[:, t] = np.linalg.norm(data.frames[:, t + 1] - data.frames[:, t], axis=-1)
    return distances


def _ruptures() -> Any:
    try:
        import ruptures
    except ImportError:  # ruptures is an optional extra: without it the baseline is left out
        return None
    return ruptures


def _pelt(data: Labelled, penalty: float) -> Flags:
    """Change points of the mean by PELT (Killick, Fearnhead and Eckley 2012), found in each sequence separately."""
    ruptures, found = _ruptures(), np.zeros_like(data.truth)
    for row, frames, acts in zip(found, data.frames, data.acts, strict=True):
        length = int(acts.sum()) + 1
        if length < 2:
            continue
        # The linear kernel's cost is the squared distance from the segment's mean; this class runs PELT on it.
        fitted = ruptures.KernelCPD(kernel="linear", min_size=1).fit(np.asarray(frames[:length], np.float64))
        row[np.asarray(fitted.predict(pen=penalty)[:-1], int) - 1] = True
    return found


def _penalties(data: Labelled) -> NDArray[np.float64]:
    """Candidate penalties, from far below a squared step between frames to far above it."""
    typical = float(np.mean(_differences(data)[data.acts] ** 2)) if data.acts.any() else 1.0
    return max(typical, math.ulp(1.0)) * np.geomspace(1e-3, 1e2, _PENALTIES)
