"""Change points of a sequence's mean (PELT) and of its distribution (rbf kernel), from the package ruptures.

The change points are those with the least sum of costs plus a penalty per change, found exactly by PELT (Killick,
Fearnhead and Eckley 2012) in each sequence separately. With the linear kernel, the cost of a kernel change point
detector (Celisse, Marot, Pierre-Jean and Rigaill 2018) is the squared distance from the segment's mean, so that kernel
change points with a linear kernel and PELT on the mean are one method, here `pelt`. Frames are flattened, not reduced.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.inference.scores.methods.simple import differences
from pyro_hrssm.inference.scores.methods.tuning import Candidate, Labelled, Method, Rule, Segmentation, choose

_PENALTIES = 24
"""Number of candidate penalties."""

_PAIRS = 20_000
"""Number of pairs of frames whose distances set the rbf kernel's width."""


def pelt(tuning: Labelled, margin: int = 0) -> Method:
    """Change points of the mean: the linear kernel, its penalty chosen on the first sequences."""
    return _chosen("pelt", tuning.few(), penalties(tuning.few()), {"kernel": "linear"}, margin)


def kernel_rbf(tuning: Labelled, margin: int = 0) -> Method:
    """Change points of the distribution: the kernel `exp(-gamma |x - y|²)`, its penalty chosen on the first sequences.

    `gamma` is one over the median squared distance of two frames of a sequence (median heuristic), the same for all
    sequences.
    """
    few = tuning.few()
    kernel = {"kernel": "rbf", "params": {"gamma": _gamma(few)}}
    return _chosen("kernel_rbf", few, np.geomspace(1e-2, 1e2, _PENALTIES), kernel, margin)


def _chosen(name: str, few: Labelled, tried: NDArray[np.float64], kernel: dict[str, Any], margin: int) -> Method:
    candidates = [Candidate({"penalty": float(penalty)}, change_points(penalty, **kernel)) for penalty in tried]
    return choose(name, few, candidates, margin)


def change_points(penalty: float, **kernel: Any) -> Rule:
    """The rule that finds change points with this penalty; `kernel` holds arguments of ruptures' `KernelCPD`."""
    from ruptures import KernelCPD

    def find(data: Labelled) -> Segmentation:
        found = np.zeros_like(data.truth)
        for row, frames, length in zip(found, data.frames, data.lengths(), strict=True):
            if length >= 2:
                fitted = KernelCPD(min_size=1, **kernel).fit(np.asarray(frames[:length], np.float64))
                row[np.asarray(fitted.predict(pen=penalty)[:-1], int) - 1] = True
        return Segmentation(found)

    return find


def penalties(data: Labelled) -> NDArray[np.float64]:
    """Candidate penalties of the linear kernel, from far below a squared step between frames to far above it."""
    typical = float(np.mean(differences(data)[data.acts] ** 2)) if data.acts.any() else 1.0
    return max(typical, math.ulp(1.0)) * np.geomspace(1e-3, 1e2, _PENALTIES)


def _gamma(data: Labelled) -> float:
    rng, lengths = np.random.default_rng(0), data.lengths()
    rows = rng.integers(len(lengths), size=_PAIRS)
    one, other = (data.frames[rows, rng.integers(lengths[rows])].astype(np.float64) for _ in range(2))
    squares = np.square(one - other).sum(-1)
    # Most frames may be equal, where there is no noise.
    width = np.median(squares) or squares.mean()
    return float(1 / width) if width > 0 else 1.0
