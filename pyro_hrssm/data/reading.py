"""Reads the arrays of a `.npz` archive, of a `.npy` file or of a folder by their names; nothing is unpickled."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.data.axes import RAGGED, as_frames
from pyro_hrssm.data.memory import KEYS, NAMES, PARTS, Held
from pyro_hrssm.data.records import RECORD
from pyro_hrssm.data.shards import Shards, alike
from pyro_hrssm.errors import InputError, one_line

Result = TypeVar("Result")
SUFFIXES = (".npz", ".npy")
_NAMES = f"{NAMES} must be an array of texts"
RECORD_BYTES = 2**16
"""Largest record that is read; those of the generators take less than 2 KiB."""


class Content(NamedTuple):
    """Arrays by name, unchecked but for their being arrays."""

    arrays: dict[str, NDArray[Any] | Shards]
    """Those of :data:`pyro_hrssm.data.memory.KEYS`."""
    names: NDArray[Any] | None = None
    """The array named `names`, whatever it holds."""
    generator: str | None = None
    """The text named `generator`."""
    unread: tuple[str, ...] = ()
    """Names of further arrays."""


def read(path: Path | Held, known: tuple[int, ...] | None) -> Content:
    """The arrays at a path, or in memory; `known` is the shape of a trained model's frames.

    Those of a `.npy` file and of a folder are memory-mapped.
    """
    if isinstance(path, Held):
        return _of_held(path, known)
    if os.path.isdir(path):
        return _read_folder(path, known)
    if not os.path.exists(path):  # unlike Path.exists, this accepts names that are too long
        raise InputError("no such file or folder")
    # A link may have any name.
    suffix = path.suffix if path.suffix in SUFFIXES else os.path.splitext(os.path.realpath(path))[1]
    if suffix not in SUFFIXES or not os.path.isfile(path):
        raise InputError("must be a .npz file, a .npy file or a folder of .npy files")
    return _read_npz(path) if suffix == ".npz" else Content({"frames": _read_npy(path)})


def _of_held(held: Held, known: tuple[int, ...] | None) -> Content:
    """The arrays in memory, by their names as those of an archive."""
    _check_there([*held.content, *held.unread])
    content: dict[str, NDArray[Any] | Shards] = {}
    for name, values in held.content.items():
        if isinstance(values, list):
            recordings = {f"{name}[{number}]": values[number][None] for number in range(len(values))}
            content[name] = _joined(recordings, True, known, alone=True)
        elif name in KEYS:
            content[name] = values
    names = held.content.get(NAMES)
    assert not isinstance(names, list)
    return Content(content, names, _text(held.content.get(RECORD)), held.unread)


def _read_npz(path: Path) -> Content:
    """The arrays of an archive."""
    wanted = "must be a whole .npz archive of plain arrays"
    with _parse(lambda: zipfile.ZipFile(path), wanted) as archive:
        _parse(partial(_check_names, archive), wanted)
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        _check_there(list(members))
        content: dict[str, NDArray[Any] | Shards] = {
            key: _parse(partial(_read_member, archive, members[key]), f"{key} must be an array; {wanted}")
            for key in KEYS
            if key in members
        }
        unread = tuple(sorted(members.keys() - {*KEYS, RECORD, NAMES}))
        names = _parse(partial(_read_array, archive, members[NAMES]), _NAMES) if NAMES in members else None
        return Content(content, names, _read_record(archive, members), unread)


def _check_there(names: Sequence[str]) -> None:
    if not {"frames", *PARTS} & set(names):
        found = ", ".join(names) or "none"
        raise InputError(f"must hold an array named frames, or train and test, found {one_line(found)}")


def _read_record(archive: zipfile.ZipFile, members: dict[str, str]) -> str | None:
    """The text named generator; None without one, and where an array of the user's own has this name."""
    name = members.get(RECORD)
    if name is None or archive.getinfo(name).file_size > RECORD_BYTES:
        return None
    try:
        array = _read_member(archive, name)
    except Exception:  # an array under a name that the user may give to anything, as in `_parse`
        return None
    return _text(array)


def _text(array: Any) -> str | None:
    """The text that an array of no axes holds; None for anything else."""
    return str(array) if isinstance(array, np.ndarray) and array.dtype.kind == "U" and array.ndim == 0 else None


def _check_names(archive: zipfile.ZipFile) -> None:
    """Compare the two names of every member: a single damaged name would leave an array out."""
    for name in archive.namelist():
        archive.open(name).close()


def _read_member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as file:
        _check_plain(file)
    return _read_array(archive, name)


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        # The checksum is compared only at a member's end, and a damaged shape would leave bytes unread.
        if file.read(1):
            raise ValueError(f"bytes after an array of shape {list(array.shape)}")
    return array


def _read_npy(path: Path) -> NDArray[Any]:
    def mapped() -> NDArray[Any]:
        with path.open("rb") as file:
            _check_plain(file)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.size > 0 and array.offset + array.nbytes != path.stat().st_size:
            raise ValueError(f"bytes after an array of shape {list(array.shape)}")
        return array

    return _parse(mapped, "must be a whole .npy file of plain numbers")


def _check_plain(file: Any) -> None:
    """Raise :class:`InputError` where an array holds Python objects; its header is read, and no object."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    read = headers.get(np.lib.format.read_magic(file))
    if read is not None and read(file)[2].hasobject:
        raise InputError(f"Python objects; {RAGGED}")


def _read_folder(path: Path, known: tuple[int, ...] | None) -> Content:
    """The arrays of a folder, shards joined."""
    files = _parse(lambda: list(path.iterdir()), "must be a folder that can be listed")
    listed = sorted(file.name for file in files if file.suffix == ".npy" and not file.name.startswith("."))
    if not listed:
        there = ", ".join(sorted(file.name for file in files)) or "none"
        raise InputError(f"a folder must hold .npy files, found {one_line(there)}")
    stems = [name.removesuffix(".npy") for name in listed]
    if len(stems) == 1 and stems[0] in PARTS:  # one file, whatever its name, holds the frames
        return Content({"frames": _read_shard(path, stems[0])})
    content: dict[str, NDArray[Any] | Shards] = {key: _read_shard(path, key) for key in KEYS if key in stems}
    load_names = partial(np.load, path / f"{NAMES}.npy", allow_pickle=False)
    names = _parse(load_names, _NAMES) if NAMES in stems else None
    others = [name for name in stems if name not in (*KEYS, NAMES)]
    if not content.keys() & {"frames", *PARTS}:
        shards = {f"{name}.npy": _read_shard(path, name) for name in others}
        return Content(content | {"frames": _joined(shards, bool(content), known)}, names)
    for name in others:
        _check_no_shard(path, name, {key: content[key] for key in ("frames", *PARTS) if key in content})
    return Content(content, names, unread=tuple(others))


def _read_shard(path: Path, name: str) -> NDArray[Any]:
    return named(Path(f"{name}.npy"), lambda: _read_npy(path / f"{name}.npy"))


def _check_no_shard(path: Path, name: str, there: Mapping[str, NDArray[Any] | Shards]) -> None:
    """Refuse a further array beside arrays that count by name, if it may hold sequences as they do."""
    try:
        array = _read_npy(path / f"{name}.npy")
    except InputError:  # further arrays may hold anything
        return
    for key, frames in there.items():
        if array.shape[1:] == frames.shape[1:] and array.dtype == frames.dtype:
            raise InputError(
                f"a folder with {key}.npy is read by names, found {one_line(name)}.npy, which may be sequences "
                "too: move it elsewhere, or give the files of frames other names, such as 0.npy and 1.npy"
            )


def _joined(
    arrays: dict[str, NDArray[Any]], settled: bool, known: tuple[int, ...] | None, alone: bool = False
) -> Shards:
    """Arrays [N_i, T, X…] by the names that messages give them as one; arguments as of :func:`as_frames`."""
    if not arrays:
        raise InputError("a folder must hold .npy files of frames, found none")
    shards: list[NDArray[Any]] = []
    for name, array in arrays.items():
        shard = named(Path(name), partial(as_frames, array, settled, known, alone=alone))
        first = shards[0] if shards else shard
        if not alike(shard, first):
            called = "recordings" if alone else "shards"
            raise InputError(
                f"{called} must agree on X… and dtype, found {first.dtype} {list(first.shape[1:])} "
                f"in {one_line(next(iter(arrays)))} and {shard.dtype} {list(shard.shape[1:])} in {one_line(name)}"
            )
        shards.append(shard)
    return Shards(shards)


def _parse(function: Callable[[], Result], wanted: str) -> Result:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy and Python's parser warn of a header that is checked here
            return function()
    except InputError as error:
        raise InputError(f"{wanted}, found {error}") from error
    # A damaged file makes zipfile, zlib and numpy's parser raise almost any exception.
    except Exception as error:
        raise InputError(f"{wanted}, found {type(error).__name__}: {one_line(error)}") from error


def named(path: Path | Held, function: Callable[[], Result]) -> Result:
    """Put the file's name before the message of an error; arrays in memory have none."""
    if isinstance(path, Held):
        return function()
    try:
        return function()
    except InputError as error:
        raise InputError(f"{one_line(path)}: {error}") from error
