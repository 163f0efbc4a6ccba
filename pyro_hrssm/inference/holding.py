"""What is missing of frames, held at the value that was observed last."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def latest(seen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N, T, D] number of the last frame at which a flag [N, T, D] is set, up to and with each frame; -1 before any."""
    return np.maximum.accumulate(np.where(seen, np.arange(seen.shape[1])[:, None], -1), axis=1)


def held(values: NDArray[Any], seen: NDArray[np.bool_]) -> NDArray[Any]:
    """[N, T, D] with what is missing replaced by what was observed last; before any, by the first frame's own values.

    Arguments:
        seen: [N, T, D], or [N, T, 1] where frames are observed or missing whole.
    """
    return np.take_along_axis(values, np.maximum(latest(seen), 0), axis=1)
