"""A user's own arrays: a `.npz` archive, a `.npy` file, or a folder of `.npy` files.

Frames are [N, T, X] vectors, [N, T, height, width, channels] images, [N, T] numbers (frames of one entry) or
[N, T, height, width] images of one channel; :mod:`pyro_hrssm.data.axes` refuses shapes that may mean something else.
In an archive and in a folder alike, arrays count by their names: `frames` or, for a split of one's own, `train` and
`test`; beside them `lengths`, `mask`, `weights`, `boundaries` and `labels`, which take the prefix `train_` or `test_`
with such a split. All other files of a folder are shards of `frames`, whose sequences may be of different lengths. Long
recordings are cut as :mod:`pyro_hrssm.data.windows` says. Nothing is unpickled and nothing is extracted.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import splitting, windows
from pyro_hrssm.data import weights as weighting
from pyro_hrssm.data.axes import RAGGED, as_frames
from pyro_hrssm.data.memory import ARRAYS, BESIDE, KEYS, NAMES, PARTS, Held, as_array
from pyro_hrssm.data.records import RECORD
from pyro_hrssm.data.sequences import Mark, Scaling, Sequences, Splits, flags, whole_numbers
from pyro_hrssm.data.shards import Shards, alike
from pyro_hrssm.data.weights import Weights
from pyro_hrssm.data.windows import Spans, Windows
from pyro_hrssm.errors import InputError, one_line
from pyro_hrssm.files import writing

Result = TypeVar("Result")
SUFFIXES = (".npz", ".npy")
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
    weights: Weights | None = None
    """[N, T] or [N, T, X…], as in :mod:`pyro_hrssm.data.weights`."""
    generator: str | None = None
    """The record of an archive of synthetic sequences; see :mod:`pyro_hrssm.data.records`."""
    labels: NDArray[np.int64] | None = None
    """[N, T] the true type of the segment that a frame belongs to; -1 where it is unknown."""
    num_train: int | None = None
    """Number of sequences to train on, the first ones, where `train` and `test` are split already."""
    unread: tuple[str, ...] = ()
    """Names of further arrays."""


def load(
    path: Path | Held, config: DataConfig, scaling: Scaling | None = None, frame_shape: tuple[int, ...] | None = None
) -> Splits:
    """Read, split and scale the arrays at `path`, or in memory; malformed ones raise a one-line :class:`InputError`.

    :func:`pyro_hrssm.data.splitting.split` says how frames are scaled. An entry that is NaN is missing, and so is a
    frame that is NaN in every entry. `frame_shape` is that of a model that was trained on them, where there is one.
    """
    arrays = read(path, frame_shape, config.boundaries_mark)
    name = ARRAYS if isinstance(path, Held) else path.name

    def split() -> Splits:
        cut = windows.plan(arrays.frames, _seen(arrays), config, arrays.num_train)
        if cut is None:
            return _split(arrays, config, scaling, name)
        spans = Spans.joined(cut.train, cut.held_out)
        parts = _windows(arrays, spans)._replace(num_train=len(cut.train.rows))
        found = _split(parts, config, scaling, name)
        return found._replace(train=found.train.placed(spans), held_out=found.held_out.placed(spans), cut=cut)

    return _named(path, split)._replace(unread=arrays.unread)


def _split(arrays: Arrays, config: DataConfig, scaling: Scaling | None, name: str) -> Splits:
    frames, mask, boundaries, weights, generator, labels, num_train, _ = arrays
    return splitting.split(
        frames,
        mask,
        boundaries,
        config,
        scaling,
        name,
        generator,
        num_train=num_train,
        weights=weights,
        labels=labels,
    )


def whole(
    path: Path | Held, scaling: Scaling, frame_shape: tuple[int, ...] | None = None, mark: Mark = "ends"
) -> Sequences:
    """All sequences of the arrays at `path`, or in memory, in their order; errors as in :func:`load`.

    `frame_shape` is that of the model that is to read them, and `mark` what their boundaries mark.
    """
    arrays = read(path, frame_shape, mark)
    return _named(path, lambda: _checked(arrays, scaling))


def cut_whole(
    path: Path | Held,
    scaling: Scaling,
    frame_shape: tuple[int, ...] | None,
    mark: Mark,
    length: int | Literal["auto"] | None,
    most: int,
) -> Sequences | None:
    """Windows of the recordings that :func:`whole` reads, as :func:`pyro_hrssm.data.windows.whole` cuts them."""
    arrays = read(path, frame_shape, mark)
    spans = windows.whole(arrays.frames, _seen(arrays), length, most)
    if spans is None:
        return None
    return _named(path, lambda: _checked(_windows(arrays, spans), scaling)).placed(spans)


def _checked(arrays: Arrays, scaling: Scaling) -> Sequences:
    frames, mask, boundaries, weights, generator, labels, *_ = arrays
    every = np.arange(len(frames))
    return splitting.checked(frames, mask, boundaries, scaling, every, generator, weights=weights, labels=labels)


def _seen(arrays: Arrays) -> NDArray[np.bool_] | None:
    """[N, T], False where the mask or the weights say that a whole frame is missing; None if they say so of none."""
    if arrays.weights is None:
        return arrays.mask
    weighted = weighting.seen(arrays.weights)
    return weighted if arrays.mask is None else arrays.mask & weighted


def _windows(arrays: Arrays, spans: Spans) -> Arrays:
    """Windows of recordings, without the generator's record: its process opens a segment with the first frame, and a
    window need not.
    """
    frames = Windows(arrays.frames, spans)
    mask, boundaries, weights = (
        None if part is None else spans.gather(part) for part in (arrays.mask, arrays.boundaries, arrays.weights)
    )
    labels = None if arrays.labels is None else spans.gather(arrays.labels, -1)
    within = frames.within(None if mask is None or mask.all() else mask)
    return Arrays(frames, within, boundaries, weights, labels=labels)


def read(path: Path | Held, frame_shape: tuple[int, ...] | None = None, mark: Mark = "ends") -> Arrays:
    """The arrays of a `.npz` file, or of a `.npy` file or a folder of `.npy` files, which are memory-mapped.

    `frame_shape` and `mark` are those of :func:`whole`.
    """

    def read() -> Arrays:
        arrays = _of_held(path, frame_shape) if isinstance(path, Held) else _read(path, frame_shape)
        return arrays._replace(boundaries=_ends(arrays.boundaries)) if mark == "starts" else arrays

    return _named(path, read)


def save_npz(
    path: str | Path,
    frames: ArrayLike,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    boundaries: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    **further: ArrayLike,
) -> None:
    """Write arrays that :func:`load` reads: frames [N, T, X…], lengths [N], mask, boundaries and labels [N, T].

    The mask may also be [N, T, X…], of entries; `weights`, [N, T] or [N, T, X…], are those of
    :mod:`pyro_hrssm.data.weights`. `further` arrays are stored beside these, for other readers. The file appears whole
    or not at all; arrays that could not be read back, and a file that cannot be written, raise :class:`InputError`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"the file's name must end in .npz, found {one_line(path)}")
    known = {
        "frames": frames, "lengths": lengths, "mask": mask, "boundaries": boundaries, "weights": weights,
        "labels": labels,
    }  # fmt: skip
    content = {name: as_array(name, values) for name, values in (known | further).items() if values is not None}
    _check({name: values for name, values in content.items() if name in KEYS}, None)
    with writing(path) as file:
        np.savez_compressed(file, **content)  # type: ignore[arg-type] # mypy takes an array for allow_pickle


def _of_held(held: Held, known: tuple[int, ...] | None) -> Arrays:
    """The arrays in memory, by their names as those of an archive."""
    _check_there([*held.content, *held.unread])
    content: dict[str, NDArray[Any] | Shards] = {}
    for name, values in held.content.items():
        if isinstance(values, list):
            recordings = {f"{name}[{number}]": values[number][None] for number in range(len(values))}
            content[name] = _joined(recordings, True, known, alone=True)
        elif name in KEYS:
            content[name] = values
    return _check(content, known)._replace(generator=_text(held.content.get(RECORD)), unread=held.unread)


def _read(path: Path, known: tuple[int, ...] | None) -> Arrays:
    if os.path.isdir(path):
        content, unread = _read_folder(path, known)
        return _check(content, known)._replace(unread=unread)
    if not os.path.exists(path):  # unlike Path.exists, this accepts names that are too long
        raise InputError("no such file or folder")
    # A link may have any name.
    suffix = path.suffix if path.suffix in SUFFIXES else os.path.splitext(os.path.realpath(path))[1]
    if suffix not in SUFFIXES or not os.path.isfile(path):
        raise InputError("must be a .npz file, a .npy file or a folder of .npy files")
    if suffix == ".npz":
        return _read_npz(path, known)
    return _check({"frames": _read_npy(path)}, known)


def _read_npz(path: Path, known: tuple[int, ...] | None) -> Arrays:
    """The arrays of an archive by name, with its record and the names of further arrays."""
    wanted = "must be a whole .npz archive of plain arrays"
    with _parse(lambda: zipfile.ZipFile(path), wanted) as archive:
        _parse(partial(_check_names, archive), wanted)
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        _check_there(list(members))
        content = {
            key: _parse(partial(_read_member, archive, members[key]), f"{key} must be an array; {wanted}")
            for key in KEYS
            if key in members
        }
        unread = tuple(sorted(members.keys() - {*KEYS, RECORD, NAMES}))
        return _check(content, known)._replace(generator=_read_record(archive, members), unread=unread)


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


def _read_folder(path: Path, known: tuple[int, ...] | None) -> tuple[dict[str, NDArray[Any] | Shards], tuple[str, ...]]:
    """The arrays of a folder by name, shards joined, and the names of further arrays."""
    files = _parse(lambda: list(path.iterdir()), "must be a folder that can be listed")
    names = sorted(file.name for file in files if file.suffix == ".npy" and not file.name.startswith("."))
    if not names:
        there = ", ".join(sorted(file.name for file in files)) or "none"
        raise InputError(f"a folder must hold .npy files, found {one_line(there)}")
    stems = [name.removesuffix(".npy") for name in names]
    if len(stems) == 1 and stems[0] in PARTS:  # one file, whatever its name, holds the frames
        return {"frames": _read_shard(path, stems[0])}, ()
    content: dict[str, NDArray[Any] | Shards] = {key: _read_shard(path, key) for key in KEYS if key in stems}
    others = [name for name in stems if name not in (*KEYS, NAMES)]
    if not content.keys() & {"frames", *PARTS}:
        shards = {f"{name}.npy": _read_shard(path, name) for name in others}
        return content | {"frames": _joined(shards, bool(content), known)}, ()
    for name in others:
        _check_no_shard(path, name, {key: content[key] for key in ("frames", *PARTS) if key in content})
    return content, tuple(others)


def _read_shard(path: Path, name: str) -> NDArray[Any]:
    return _named(Path(f"{name}.npy"), lambda: _read_npy(path / f"{name}.npy"))


def _check_no_shard(path: Path, name: str, frames: Mapping[str, NDArray[Any] | Shards]) -> None:
    """Refuse a further array beside arrays that count by name, if it may hold sequences as they do."""
    try:
        array = _read_npy(path / f"{name}.npy")
    except InputError:  # further arrays may hold anything
        return
    for key, named in frames.items():
        if _alike(array, named):
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
        shard = _named(Path(name), partial(as_frames, array, settled, known, alone=alone))
        first = shards[0] if shards else shard
        if not alike(shard, first):
            called = "recordings" if alone else "shards"
            raise InputError(
                f"{called} must agree on X… and dtype, found {first.dtype} {list(first.shape[1:])} "
                f"in {one_line(next(iter(arrays)))} and {shard.dtype} {list(shard.shape[1:])} in {one_line(name)}"
            )
        shards.append(shard)
    return Shards(shards)


def _alike(one: NDArray[Any] | Shards, other: NDArray[Any] | Shards) -> bool:
    return one.shape[1:] == other.shape[1:] and one.dtype == other.dtype


def _check(content: Mapping[str, NDArray[Any] | Shards], known: tuple[int, ...] | None) -> Arrays:
    """The arrays of a file by their names, checked; `known` is the shape of a trained model's frames."""
    if not content.keys() & set(PARTS):
        return _part(content, "frames", "", known)
    if "frames" in content or not content.keys() >= set(PARTS):
        raise InputError(f"must hold frames, or both train and test, found {', '.join(content)}")
    train, test = (_part(content, name, f"{name}_", known) for name in PARTS)
    if not alike(train.frames, test.frames):
        found = " and ".join(f"{part.frames.dtype} {list(part.frames.shape[1:])}" for part in (train, test))
        raise InputError(f"train and test must agree on X… and dtype, found {found}")
    if (train.boundaries is None) != (test.boundaries is None):
        raise InputError("train and test must have boundaries both or neither, found those of one")
    frames = Shards.joined(train.frames, test.frames)
    return Arrays(
        frames,
        frames.within(_stacked(train, test, "mask", True)),
        _stacked(train, test, "boundaries", False),
        weighting.stacked([train.weights, test.weights], [train.frames.shape, test.frames.shape]),
        labels=_stacked(train, test, "labels", -1),
        num_train=len(train.frames),
    )


def _stacked(train: Arrays, test: Arrays, name: str, missing: bool | int) -> Any:
    """The arrays [N, T] of this name of both parts, filled with `missing` where one part has none; None without any."""
    found = [getattr(part, name) for part in (train, test)]
    if all(values is None for values in found):
        return None
    shapes = [part.frames.shape[:2] for part in (train, test)]
    filled = [
        np.full(shape, missing) if values is None else values for shape, values in zip(shapes, found, strict=True)
    ]
    longest = max(shape[1] for shape in shapes)
    past = False if name == "mask" else missing
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, longest - part.shape[1])), constant_values=past) for part in filled]
    )


def _part(
    content: Mapping[str, NDArray[Any] | Shards], name: str, prefix: str, known: tuple[int, ...] | None
) -> Arrays:
    """The frames of this name, with the arrays beside them whose names have this prefix."""
    beside = {key: np.asarray(content[prefix + key]) for key in BESIDE if prefix + key in content}
    frames = content[name]
    if not isinstance(frames, Shards):
        frames = Shards([as_frames(frames, _settles(beside, frames.ndim), known, name)])
    shape = frames.shape[:2]
    mask, entries = _flags_of(f"{prefix}mask", beside.get("mask"), frames.shape)
    mask = frames.within(mask)
    weights = beside.get("weights")
    if weights is not None:
        weights = weighting.checked(f"{prefix}weights", weights, frames.shape[2:], *shape)
    if "lengths" in beside:
        within = _within(f"{prefix}lengths", beside["lengths"], *shape)
        mask = within if mask is None else mask & within
    return Arrays(
        frames,
        mask,
        flags(f"{prefix}boundaries", beside.get("boundaries"), shape),
        weighting.joined(entries, weights),
        labels=whole_numbers(f"{prefix}labels", beside.get("labels"), shape),
    )


def _settles(beside: Mapping[str, NDArray[Any]], ndim: int) -> bool:
    """Whether arrays beside frames show that the frames' first two axes are [N, T].

    Weights of the frames' own shape do not, nor does a mask of entries: they would have the same axes in any order.
    """
    of_frames = {key for key, array in beside.items() if array.ndim <= 2} | beside.keys() & {"boundaries", "labels"}
    return bool(of_frames - ({"weights"} if ndim <= 2 else set()))


def _flags_of(
    name: str, mask: NDArray[Any] | None, shape: tuple[int, ...]
) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    """A mask of frames [N, T], and flags of entries [N, T, X…]: the one that an array of this name holds."""
    if mask is None or mask.ndim <= 2:
        return flags(name, mask, shape[:2]), None
    entries = mask[..., None] if mask.shape == shape[:-1] and shape[-1] == 1 else mask
    return None, flags(name, entries, shape)


def _ends(starts: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Ends of segments [N, T] from their starts: a segment ends with the frame before the next one's first."""
    if starts is None:
        return None
    ends = np.zeros_like(starts)
    ends[:, :-1] = starts[:, 1:]
    return ends


def _within(name: str, lengths: NDArray[Any], num: int, num_frames: int) -> NDArray[np.bool_]:
    """The mask [N, T] of sequences that end after `lengths` [N] frames."""
    if lengths.dtype.kind not in "iu" or lengths.shape != (num,):
        raise InputError(
            f"{name} must be whole numbers of shape [{num}], "
            f"found {one_line(lengths.dtype)} of shape {list(lengths.shape)}"
        )
    wrong = (lengths < 1) | (lengths > num_frames)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise InputError(f"{name} must lie between 1 and {num_frames}, found {lengths[place]} for sequence {place}")
    return np.arange(num_frames) < lengths[:, None]


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


def _named(path: Path | Held, function: Callable[[], Result]) -> Result:
    """Put the file's name before the message of an error; arrays in memory have none."""
    if isinstance(path, Held):
        return function()
    try:
        return function()
    except InputError as error:
        raise InputError(f"{one_line(path)}: {error}") from error
