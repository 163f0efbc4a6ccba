"""Peaks of a flat model's surprise: a boundary before a frame that the frames up to then did not lead one to expect.

Event segmentation theory (Zacks et al. 2007) puts boundaries where prediction fails. The surprise of a frame is its
negative log likelihood given all frames before it (:func:`pyro_hrssm.inference.surprise.surprise`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.inference.scores.methods.tuning import Labelled, Method, choose_threshold


def surprise_peaks(tuning: Labelled, margin: int = 0) -> Method:
    """A boundary at every local maximum of surprise that is high, or that stands out, enough.

    Both thresholds are tried, on the surprise at the peak and on its prominence, and the better one is chosen.
    """
    return choose_threshold("surprise_peaks", tuning, {"height": heights, "prominence": prominences}, margin)


def heights(data: Labelled) -> NDArray[np.float64]:
    """[N, T] surprise at local maxima, -inf elsewhere."""
    return _peaks(data)[0]


def prominences(data: Labelled) -> NDArray[np.float64]:
    """[N, T] height of local maxima above the higher of the lowest points that part them from higher ones, or -inf."""
    return _peaks(data)[1]


def _peaks(data: Labelled) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from scipy.signal import find_peaks

    assert data.surprise is not None
    high, prominent = np.full((2, *data.truth.shape), -np.inf)
    for n, (values, length) in enumerate(zip(data.surprise, data.lengths() - 1, strict=True)):
        if length < 1:
            continue
        # Both ends may be peaks, so that something lower must lie beyond them.
        within = values[:length]
        padded = np.concatenate([[within.min() - 1], within, [within.min() - 1]])
        places, found = find_peaks(padded, prominence=0)
        high[n, places - 1] = within[places - 1]
        prominent[n, places - 1] = found["prominences"]
    return high, prominent
