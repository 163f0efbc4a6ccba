"""A user's own arrays: a `.npz` archive, a `.npy` file, or a folder of `.npy` shards.

Frames are [N, T, X] vectors, [N, T, height, width, channels] images, [N, T] numbers (frames of one
entry) or [N, T, height, width] images of one channel. Nothing is unpickled and nothing is extracted.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import splitting
from pyro_hrssm.data.sequences import Scaling, Sequences, Splits, flags, whole_numbers
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.errors import InputError, one_line
from pyro_hrssm.files import writing

Result = TypeVar("Result")
KEYS = ("frames", "lengths", "mask", "boundaries", "labels")
RECORD = "generator"
RECORD_BYTES = 2**16
"""Largest record that is read; those of the generators take less than 2 KiB."""


class Arrays(NamedTuple):
    """The checked content of a file."""

    frames: Shards
    """[N, T, X…] with X… of rank 1 or 3, as stored."""
    mask: NDArray[np.bool_] | None
    """[N, T], True where a frame is observed."""
    boundaries: NDArray[np.bool_] | None
    """[N, T], True where a segment ends."""
    generator: str | None = None
    """The record of an archive of synthetic sequences; see :mod:`pyro_hrssm.data.records`."""
    labels: NDArray[np.int64] | None = None
    """[N, T] the true type of the segment that a frame belongs to; -1 where it is unknown."""


def load(path: Path, config: DataConfig, scaling: Scaling | None = None) -> Splits:
    """Read, split and scale the arrays at `path`; a malformed file raises a one-line :class:`InputError`.

    Booleans and unsigned integers are scaled to [0, 1]; floats and signed integers are standardised per entry of
    their last axis on the training split. A frame that is NaN in every entry is a missing one.
    """
    frames, mask, boundaries, generator, labels = read(path)
    return _named(
        path, lambda: splitting.split(frames, mask, boundaries, config, scaling, path.name, generator, labels)
    )


def whole(path: Path, scaling: Scaling) -> Sequences:
    """All sequences of the arrays at `path`, in their order; a malformed file raises a one-line :class:`InputError`."""
    frames, mask, boundaries, generator, labels = read(path)
    every = np.arange(len(frames))
    return _named(path, lambda: splitting.checked(frames, mask, boundaries, scaling, every, generator, labels))


def read(path: Path) -> Arrays:
    """The arrays of a `.npz` file, or of a `.npy` file or a folder of `.npy` shards, which are memory-mapped."""
    return _named(path, lambda: _read(path))


def save_npz(
    path: str | Path,
    frames: ArrayLike,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    boundaries: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    **further: ArrayLike,
) -> None:
    """Write arrays that :func:`load` reads: frames [N, T, X…], lengths [N], mask, boundaries and labels [N, T].

    `further` arrays are stored beside these, for other readers. The file appears whole or not at all; arrays that could
    not be read back, and a file that cannot be written, raise :class:`InputError`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"the file's name must end in .npz, found {one_line(path)}")
    known = {"frames": frames, "lengths": lengths, "mask": mask, "boundaries": boundaries, "labels": labels}
    content = {name: np.asarray(values) for name, values in (known | further).items() if values is not None}
    _check(content)
    with writing(path) as file:
        np.savez_compressed(file, **content)  # type: ignore[arg-type] # mypy takes an array for allow_pickle


def _read(path: Path) -> Arrays:
    if os.path.isdir(path):
        return _read_folder(path)
    if not os.path.exists(path):  # unlike Path.exists, this accepts names that are too long
        raise InputError("no such file or folder")
    if path.suffix not in (".npz", ".npy") or not os.path.isfile(path):
        raise InputError("must be a .npz file, a .npy file or a folder of .npy files")
    if path.suffix == ".npz":
        content, generator = _read_npz(path)
        return _check(content)._replace(generator=generator)
    return _check({"frames": _read_npy(path)})


def _read_npz(path: Path) -> tuple[dict[str, NDArray[Any]], str | None]:
    """The arrays of an archive by name, and its record."""
    wanted = "must be a whole .npz archive of plain arrays"
    with _parse(lambda: zipfile.ZipFile(path), wanted) as archive:
        _parse(partial(_check_names, archive), wanted)
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        if "frames" not in members:
            raise InputError("must hold an array named frames, found none")
        content = {
            key: _parse(partial(_read_member, archive, members[key]), f"{key} must be an array; {wanted}")
            for key in KEYS
            if key in members
        }
        return content, _read_record(archive, members)


def _read_record(archive: zipfile.ZipFile, members: dict[str, str]) -> str | None:
    """The text named generator; None without one, and where an array of the user's own has this name."""
    name = members.get(RECORD)
    if name is None or archive.getinfo(name).file_size > RECORD_BYTES:
        return None
    try:
        array = _read_member(archive, name)
    except Exception:  # an array under a name that the user may give to anything, as in `_parse`
        return None
    return str(array) if array.dtype.kind == "U" and array.ndim == 0 else None


def _check_names(archive: zipfile.ZipFile) -> None:
    """Compare the two names of every member: a single damaged name would leave an array out."""
    for name in archive.namelist():
        archive.open(name).close()


def _read_member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        # The checksum is compared only at a member's end, and a damaged shape would leave bytes unread.
        if file.read(1):
            raise ValueError(f"bytes after an array of shape {list(array.shape)}")
    return array


def _read_npy(path: Path) -> NDArray[Any]:
    def mapped() -> NDArray[Any]:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.size > 0 and array.offset + array.nbytes != path.stat().st_size:
            raise ValueError(f"bytes after an array of shape {list(array.shape)}")
        return array

    return _parse(mapped, "must be a whole .npy file of plain numbers")


def _read_folder(path: Path) -> Arrays:
    files = _parse(lambda: list(path.iterdir()), "must be a folder that can be listed")
    names = sorted(file.name for file in files if file.suffix == ".npy" and not file.name.startswith("."))
    if not names:
        raise InputError("a folder must hold .npy files, found none")
    shards: list[NDArray[Any]] = []
    for name in names:
        shard = _named(Path(name), partial(_read_shard, path / name))
        first = shards[0] if shards else shard
        if shard.shape[1:] != first.shape[1:] or shard.dtype != first.dtype:
            raise InputError(
                f"shards must agree on T, X… and dtype, found {first.dtype} {list(first.shape[1:])} "
                f"in {one_line(names[0])} and {shard.dtype} {list(shard.shape[1:])} in {one_line(name)}"
            )
        shards.append(shard)
    return Arrays(Shards(shards), None, None)


def _read_shard(path: Path) -> NDArray[Any]:
    return _check_frames(_read_npy(path))


def _check(content: dict[str, NDArray[Any]]) -> Arrays:
    frames = _check_frames(content["frames"])
    shape = frames.shape[:2]
    mask = flags("mask", content["mask"], shape) if "mask" in content else None
    if "lengths" in content:
        within = _within(content["lengths"], *shape)
        mask = within if mask is None else mask & within
    boundaries = flags("boundaries", content["boundaries"], shape) if "boundaries" in content else None
    labels = whole_numbers("labels", content["labels"], shape) if "labels" in content else None
    return Arrays(Shards([frames]), mask, boundaries, labels=labels)


def _check_frames(frames: NDArray[Any]) -> NDArray[Any]:
    """Frames [N, T, X…], X… of rank 1 or 3, as a view."""
    if frames.dtype.kind not in "buif":
        raise InputError(f"frames must be booleans, integers or floats, found {one_line(frames.dtype)}")
    if frames.ndim not in (2, 3, 4, 5):
        raise InputError(
            "frames must have shape [N, T], [N, T, X], [N, T, height, width] or [N, T, height, width, channels], "
            f"found {list(frames.shape)}"
        )
    if frames.size == 0:
        raise InputError(f"frames must not be empty, found shape {list(frames.shape)}")
    if frames.shape[1] < 2:
        raise InputError(f"a sequence must have at least 2 frames, found {frames.shape[1]}")
    return frames[..., None] if frames.ndim in (2, 4) else frames


def _within(lengths: NDArray[Any], num: int, num_frames: int) -> NDArray[np.bool_]:
    """The mask [N, T] of sequences that end after `lengths` [N] frames."""
    if lengths.dtype.kind not in "iu" or lengths.shape != (num,):
        raise InputError(
            f"lengths must be whole numbers of shape [{num}], "
            f"found {one_line(lengths.dtype)} of shape {list(lengths.shape)}"
        )
    wrong = (lengths < 1) | (lengths > num_frames)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise InputError(f"lengths must lie between 1 and {num_frames}, found {lengths[place]} for sequence {place}")
    return np.arange(num_frames) < lengths[:, None]


def _parse(function: Callable[[], Result], wanted: str) -> Result:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy and Python's parser warn of a header that is checked here
            return function()
    # A damaged file makes zipfile, zlib and numpy's parser raise almost any exception.
    except Exception as error:
        raise InputError(f"{wanted}, found {type(error).__name__}: {one_line(error)}") from error


def _named(path: Path, function: Callable[[], Result]) -> Result:
    """Put the file's name before the message of an error."""
    try:
        return function()
    except InputError as error:
        raise InputError(f"{one_line(path)}: {error}") from error
