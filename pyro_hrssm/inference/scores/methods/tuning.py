"""What a method sees, what it finds, and the choice of its parameters on sequences whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.inference.scores.boundaries import Flags, f1
from pyro_hrssm.inference.scores.labels import Labels, accuracy
from pyro_hrssm.progress import bar

_AT_LEAST = 5
"""Number of sequences that a bound on their frames leaves."""

_THRESHOLDS = 200
"""Number of candidate thresholds."""

BAR_AFTER_SECONDS = 3


class Labelled(NamedTuple):
    """Sequences whose segments are known."""

    frames: NDArray[np.float32]
    """[N, T, D]; a missing frame or entry repeats the one before it."""
    truth: Flags
    """[N, T] true boundaries."""
    acts: Flags
    """[N, T] positions that a frame of the sequence follows."""
    surprise: NDArray[np.float32] | None = None
    """[N, T] negative log likelihood, under a flat model, of the frame that follows; None without such a model."""
    labels: Labels | None = None
    """[N, T] true types of the frames, -1 where unknown; None if no type is known."""
    bounded: Flags | None = None
    """[N] whether the true boundaries of each sequence are known; None if all are."""

    def counted(self) -> Flags:
        """[N, T] the positions where boundaries are scored: those that act, of sequences whose truth is known."""
        return self.acts if self.bounded is None else self.acts & self.bounded[:, None]

    def head(self, count: int) -> Labelled:
        """The first `count` sequences."""
        return Labelled(*(None if part is None else part[:count] for part in self))  # type: ignore[arg-type]

    def within(self, sequences: int, frames: int) -> Labelled:
        """At most so many sequences, the first, of so many frames altogether; but no fewer than 5."""
        return self.head(min(sequences, max(_AT_LEAST, frames // self.truth.shape[1])))

    def few(self) -> Labelled:
        """The first sequences, few enough for a method that takes a pass over all of them for each parameter."""
        return self.within(200, 30_000)

    def lengths(self) -> NDArray[np.intp]:
        """[N] number of frames of every sequence, at least 1."""
        return self.acts.sum(1) + 1

    def inside(self) -> Flags:
        """[N, T] the frames of a sequence."""
        return np.arange(self.truth.shape[1]) < self.lengths()[:, None]


class Segmentation(NamedTuple):
    """What a method finds."""

    boundaries: Flags
    """[N, T]"""
    labels: Labels | None = None
    """[N, T] type of every frame, -1 past the sequence's end; None of a method without types."""


Rule = Callable[[Labelled], Segmentation]


class Candidate(NamedTuple):
    """A method with its parameters fixed."""

    parameters: dict[str, Any]
    find: Rule


class Method(NamedTuple):
    """A method with the parameters that were chosen."""

    name: str
    parameters: dict[str, Any]
    find: Rule
    types: Candidate | None = None
    """The same method with the parameters that were chosen for its types; None of a method without types."""


def choose(name: str, tuning: Labelled, candidates: Sequence[Candidate], margin: int = 0) -> Method:
    """The candidate with the largest F1 on `tuning`, within `margin` frames; the first of equals.

    For the types of a method that has them, it is the candidate whose types are most accurate, if types are known.
    """
    scores, accuracies, inside = [], [], tuning.inside()
    for one in bar(candidates, desc=name, leave=False, delay=BAR_AFTER_SECONDS):
        found = one.find(tuning)
        scores.append(f1(found.boundaries, tuning.truth, tuning.counted(), margin))
        if found.labels is not None and tuning.labels is not None:
            accuracies.append(accuracy(found.labels, tuning.labels, inside))
    best = candidates[int(np.argmax(scores))]
    types = candidates[int(np.argmax(accuracies))] if accuracies else best
    return Method(name, best.parameters, best.find, types if found.labels is not None else None)


Strengths = Callable[[Labelled], NDArray[Any]]
"""[N, T] of sequences: how strongly a position looks like a boundary, -inf where it cannot be one."""


def choose_threshold(name: str, tuning: Labelled, measures: dict[str, Strengths], margin: int = 0) -> Method:
    """A boundary wherever the strength reaches a threshold: the strength and the threshold with the largest F1.

    Candidate thresholds are spread evenly over the quantiles of the strengths at the positions of `tuning`.
    """
    best, chosen, find = -1.0, {}, None
    for label, measure in measures.items():
        values = measure(tuning)
        finite = values[tuning.counted() & np.isfinite(values)]
        tried = np.unique(np.quantile(finite, np.linspace(0, 1, _THRESHOLDS))) if finite.size else np.zeros(1)
        for least in bar(tried.tolist(), desc=f"{name}, {label}", leave=False, delay=BAR_AFTER_SECONDS):
            reached = f1(values >= least, tuning.truth, tuning.counted(), margin)
            if reached > best:
                best, chosen, find = reached, {label: least}, _above(measure, least)
    assert find is not None
    return Method(name, chosen, find)


def _above(measure: Strengths, least: float) -> Rule:
    return lambda data: Segmentation(measure(data) >= least)
