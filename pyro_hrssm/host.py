"""Values of any kind in the host's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def on_host(array: ArrayLike | Tensor) -> NDArray[Any]:
    """NumPy's or torch's values, on any device, as a NumPy array."""
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
