"""The names that an archive gives its sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.data.memory import NAMES, Held
from pyro_hrssm.errors import InputError, one_line


def read(path: Path | Held, num: int) -> NDArray[np.str_] | None:
    """The names [N] of the sequences of an archive, of a folder of arrays, or of arrays in memory.

    None where it has none, or an array of this name about something else.

    Arguments:
        path: a file or folder that `arrays.read` has accepted, or arrays in memory.
        num: number of sequences N.
    """
    if isinstance(path, Held):
        return checked(path.content.get(NAMES), num)
    try:
        found = _array(path)
    except Exception as error:  # an array of objects, or a damaged one
        raise InputError(
            f"{one_line(path)}: {NAMES} must be an array of texts, found {type(error).__name__}: {one_line(error)}"
        ) from error
    return checked(found, num)


def checked(found: Any, num: int) -> NDArray[np.str_] | None:
    """The names [N] in an array, whatever it holds; None where it is about something else."""
    if not isinstance(found, np.ndarray) or found.shape != (num,) or found.dtype.kind not in "USiu":
        return None
    if found.dtype.kind != "S":
        found = np.array([name.encode("utf-8", "replace") for name in found.astype(np.str_).tolist()])
    return np.array([name.decode("utf-8", "replace") for name in found.tolist()])


def _array(path: Path) -> NDArray[Any] | None:
    """The array named `names`, whatever it holds; None where there is none."""
    if path.is_dir():
        file = path / f"{NAMES}.npy"
        return np.load(file, allow_pickle=False) if file.is_file() else None
    if path.suffix != ".npz":
        return None
    with np.load(path, allow_pickle=False) as archive:
        return archive[NAMES] if NAMES in archive.files else None
