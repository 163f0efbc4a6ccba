"""Methods that look at no frame, or at the step between two: always, never, every k-th, frame difference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.inference.scores.methods.tuning import (
    Candidate,
    Labelled,
    Method,
    Rule,
    Segmentation,
    choose,
    choose_threshold,
)

_PERIODS = 300
"""Number of periods that are tried."""


def always(tuning: Labelled, margin: int = 0) -> Method:
    """A boundary after every frame."""
    return Method("always", {}, lambda data: Segmentation(np.ones_like(data.truth)))


def never(tuning: Labelled, margin: int = 0) -> Method:
    """No boundary."""
    return Method("never", {}, lambda data: Segmentation(np.zeros_like(data.truth)))


def every_k(tuning: Labelled, margin: int = 0) -> Method:
    """A boundary after every k-th frame; of long sequences, not every k is tried."""
    longest = max(1, tuning.truth.shape[1] - 1)
    tried = np.unique(np.geomspace(1, longest, _PERIODS).round().astype(int)) if longest > _PERIODS else None
    candidates = [Candidate({"k": int(k)}, _every(int(k))) for k in (range(1, longest + 1) if tried is None else tried)]
    return choose("every_k", tuning, candidates, margin)


def _every(k: int) -> Rule:
    def find(data: Labelled) -> Segmentation:
        return Segmentation(np.broadcast_to((np.arange(data.truth.shape[1]) + 1) % k == 0, data.truth.shape))

    return find


def frame_difference(tuning: Labelled, margin: int = 0) -> Method:
    """A boundary where the Euclidean distance to the next frame reaches a threshold."""
    return choose_threshold("frame_difference", tuning, {"distance": differences}, margin)


def differences(data: Labelled) -> NDArray[np.float32]:
    """[N, T] Euclidean distance to the next frame; 0 at the last."""
    distances = np.zeros(data.truth.shape, np.float32)
    for t in range(data.truth.shape[1] - 1):  # one frame at a time bounds the memory
        distances[:, t] = np.linalg.norm(data.frames[:, t + 1] - data.frames[:, t], axis=-1)
    return distances
