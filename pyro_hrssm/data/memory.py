"""A user's own arrays in memory: they count by the names that they would have in an archive, and mean the same."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data.axes import RAGGED
from pyro_hrssm.data.records import RECORD
from pyro_hrssm.errors import InputError, one_line, require
from pyro_hrssm.files import writing
from pyro_hrssm.host import on_host

ARRAYS = "<arrays>"
"""What stands for a name or a path in the record of a run that was trained on arrays in memory."""

KEPT = "data.npz"
"""The file in a run's folder that keeps them."""

BESIDE = ("lengths", "mask", "boundaries", "weights", "labels")
"""Arrays beside frames, by name."""
PARTS = ("train", "test")
"""Arrays of frames that are split already, by name."""
NAMES = "names"
"""The names of sequences: texts or whole numbers [N]."""
KEYS = ("frames", *BESIDE, *PARTS, *(f"{part}_{key}" for part in PARTS for key in BESIDE))

FILLED_WITH = {"mask": False, "boundaries": False, "labels": -1, "weights": 0}
"""Arrays beside frames that may be given recording by recording, and what they are past a shorter recording's end."""


@dataclass(frozen=True, eq=False)
class Held:
    """Arrays by name, as :func:`hold` takes them; frames may be a list of recordings [T, X…], which say their shape."""

    content: dict[str, NDArray[Any] | list[NDArray[Any]]]
    unread: tuple[str, ...] = ()
    """Names of further arrays, which are not held."""

    def __len__(self) -> int:
        """Number of sequences, or of those to train on where a split was given."""
        return len(self.content.get("frames", self.content.get("train", ())))


def hold(frames: Any, **beside: Any) -> Held:
    """Arrays or tensors in memory, which are not copied.

    Arguments:
        frames: [N, T, X…] in any form that an archive may hold, a list of recordings [T, X…] or [T] of any lengths, or
            a table of an archive's arrays by name, such as what `numpy.load` opens.
        beside: what may lie beside `frames` in an archive, by name; for a list of recordings also as a list.
    """
    given = {name: values for name, values in beside.items() if values is not None}
    for name in given:
        if name not in (*BESIDE, NAMES):
            raise InputError(f"arrays beside frames are {', '.join((*BESIDE, NAMES))}, found {one_line(name)}")
    if isinstance(frames, Mapping):
        if given:
            raise InputError(f"a table of arrays holds all of them, found {', '.join(given)} beside it")
        given = {str(name): frames[name] for name in frames}
    else:
        given = {"frames": frames} | given
    known = {name: _held(name, values, given) for name, values in given.items() if name in (*KEYS, RECORD, NAMES)}
    held = Held(known, tuple(sorted(given.keys() - known.keys())))
    if NAMES in beside and NAMES in held.content and np.shape(held.content[NAMES]) != (len(held),):
        shape = list(np.shape(held.content[NAMES]))
        raise InputError(f"{NAMES} must have shape [{len(held)}], one for each sequence, found {shape}")
    return held


def _held(name: str, values: Any, given: Mapping[str, Any]) -> NDArray[Any] | list[NDArray[Any]]:
    part, _, kind = name.rpartition("_") if name.startswith(("train_", "test_")) else ("frames", "", name)
    if name == NAMES:
        array = as_array(name, values)
        return array.astype(np.str_) if array.dtype.hasobject else array  # a column of a pandas table
    if name in ("frames", *PARTS):
        return _recordings(name, values) if isinstance(values, (list, tuple)) else as_array(name, values)
    recordings = given.get(part)
    if not isinstance(recordings, (list, tuple)):
        return as_array(name, values)
    if kind == "lengths":
        raise InputError(f"{name} is for padded {part}; each recording of a list has its own number of frames")
    if kind in FILLED_WITH and isinstance(values, (list, tuple)):
        return _padded(name, values, [len(recording) for recording in recordings], FILLED_WITH[kind])
    return as_array(name, values)


def _recordings(name: str, values: list[Any] | tuple[Any, ...]) -> list[NDArray[Any]]:
    if not values:
        raise InputError(f"{name} must hold at least one recording [T, X…], found none")
    arrays = [as_array(f"{name}[{number}]", value) for number, value in enumerate(values)]
    for number, array in enumerate(arrays):
        if array.ndim == 0:
            raise InputError(f"{name}[{number}] must be a recording [T, X…], found one {type(values[number]).__name__}")
    return [array[:, None] if array.ndim == 1 else array for array in arrays]


def _padded(name: str, values: list[Any] | tuple[Any, ...], lengths: list[int], fill: float) -> NDArray[Any]:
    """Arrays [T] or [T, X…], one for each recording, as one [N, T, …] of the longest."""
    if len(values) != len(lengths):
        raise InputError(f"{name} must have one array for each of {len(lengths)} recordings, found {len(values)}")
    arrays = [as_array(f"{name}[{number}]", value) for number, value in enumerate(values)]
    for number, (array, length) in enumerate(zip(arrays, lengths, strict=True)):
        if array.shape[:1] != (length,) or array.shape[1:] != arrays[0].shape[1:]:
            wanted = [length, *arrays[0].shape[1:]]
            raise InputError(f"{name}[{number}] must have shape {wanted}, found {list(array.shape)}")
    result = np.full((len(arrays), max(lengths), *arrays[0].shape[1:]), fill, np.result_type(*arrays))
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return result


def as_array(name: str, values: Any) -> NDArray[Any]:
    """NumPy's or torch's values, or nested lists, as one array, which shares their memory where it can."""
    if isinstance(values, torch.Tensor) and values.dtype == torch.bfloat16:  # NumPy has no such type
        values = values.float()
    try:
        return on_host(values)
    except ValueError as error:  # nested lists of several lengths
        raise InputError(f"{name} must be one array, found {one_line(error)}; {RAGGED}") from error


def keep(held: Held, run: Path) -> None:
    """Write the arrays into a run's folder, from which they are read as they were in memory.

    Raises:
        InputError: where the file cannot be written, or is there already: it may be the user's own.
    """
    content: dict[str, NDArray[Any]] = {}
    for name, values in held.content.items():
        if not isinstance(values, list):
            content[name] = values
            continue
        lengths = np.array([len(recording) for recording in values])
        padded = np.zeros((len(values), lengths.max(), *values[0].shape[1:]), values[0].dtype)
        for row, recording in zip(padded, values, strict=True):
            row[: len(recording)] = recording
        content[name] = padded[..., None] if padded.ndim == 4 else padded  # the first axes of a list are known
        if lengths.min() < lengths.max():
            content["lengths" if name == "frames" else f"{name}_lengths"] = lengths
    with _new(run) as file:
        np.savez(file, **content)  # type: ignore[arg-type] # mypy takes an array for allow_pickle


def copy(run: Path, other: Path) -> None:
    """Copy the arrays that a run's folder keeps, if it keeps any, into another run's; errors as of :func:`keep`."""
    if kept_by(run).is_file():
        with kept_by(run).open("rb") as source, _new(other) as file:
            shutil.copyfileobj(source, file)


@contextlib.contextmanager
def _new(run: Path) -> Iterator[BinaryIO]:
    path = run / KEPT
    require(not os.path.lexists(path), f"{path} is there already: remove it, or name another folder for the run")
    with writing(path) as file:
        yield file


def located(config: DataConfig, run: Path) -> DataConfig:
    """The configuration with the file in place of :data:`ARRAYS` that a run, or a checkpoint's run, keeps."""
    if config.data != ARRAYS:
        return config
    file = kept_by(run)
    if not file.is_file():
        raise InputError(f"the run's own arrays are not there ({one_line(file)}): --data names others")
    return dataclasses.replace(config, data=str(file))


def kept_by(run: Path) -> Path:
    """The file in which a run's folder, or that of a checkpoint file, keeps its arrays; others have none."""
    folder = run if os.path.isdir(run) else Path(os.path.realpath(run)).parent.parent
    return folder / KEPT
