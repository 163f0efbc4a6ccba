"""Methods that find boundaries without a model, each with its parameter chosen on sequences whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.inference.scores.boundaries import Flags

_THRESHOLDS = 200
"""Number of candidate thresholds of a baseline, spread evenly over the quantiles."""

_PENALTIES = 24
_PELT_SEQUENCES = 200
"""Number of sequences on which PELT's penalty is chosen."""


class Labelled(NamedTuple):
    """Sequences whose segments are known."""

    frames: NDArray[np.float32]
    """[N, T, D]; a missing frame repeats the one before it."""
    truth: Flags
    """[N, T] true boundaries."""
    acts: Flags
    """[N, T] positions that a frame of the sequence follows."""

    def head(self, count: int) -> Labelled:
        """The first `count` sequences."""
        return Labelled(self.frames[:count], self.truth[:count], self.acts[:count])


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
