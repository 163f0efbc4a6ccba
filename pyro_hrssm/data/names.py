"""The names that an archive gives its sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def checked(found: Any, num: int) -> NDArray[np.str_] | None:
    """The names [N] in an array named `names`, whatever it holds; None where it is about something else."""
    if not isinstance(found, np.ndarray) or found.shape != (num,) or found.dtype.kind not in "USiu":
        return None
    if found.dtype.kind != "S":
        found = np.array([name.encode("utf-8", "replace") for name in found.astype(np.str_).tolist()])
    return np.array([name.decode("utf-8", "replace") for name in found.tolist()])
