"""A user's own arrays: a `.npz` archive, a `.npy` file, or a folder of `.npy` files.

Frames are [N, T, X] vectors, [N, T, height, width, channels] images, [N, T] numbers (frames of one entry) or
[N, T, height, width] images of one channel; :mod:`pyro_hrssm.data.axes` refuses shapes that may mean something else.
In an archive and in a folder alike, arrays count by their names: `frames` or, for a split of one's own, `train` and
`test`; beside them `lengths`, `mask`, `weights`, `boundaries` and `labels`, which take the prefix `train_` or `test_`
with such a split. All other files of a folder are shards of `frames`, whose sequences may be of different lengths. Long
recordings are cut as :mod:`pyro_hrssm.data.windows` says. Nothing is unpickled and nothing is extracted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import names, reading, splitting, windows
from pyro_hrssm.data import weights as weighting
from pyro_hrssm.data.axes import as_frames
from pyro_hrssm.data.content import Arrays
from pyro_hrssm.data.memory import ARRAYS, BESIDE, KEYS, PARTS, Held, as_array
from pyro_hrssm.data.reading import named
from pyro_hrssm.data.sequences import Emission, Mark, Scaling, Sequences, Splits, flags, whole_numbers
from pyro_hrssm.data.shards import Shards, alike
from pyro_hrssm.data.spans import Spans
from pyro_hrssm.errors import InputError, one_line
from pyro_hrssm.files import writing


def load(
    path: Path | Held,
    config: DataConfig,
    scaling: Scaling | None = None,
    frame_shape: tuple[int, ...] | None = None,
    likelihood: Emission = "auto",
) -> Splits:
    """Read, split and scale the arrays at `path`, or in memory; malformed ones raise a one-line :class:`InputError`.

    :func:`pyro_hrssm.data.splitting.split` says how frames are scaled. An entry that is NaN is missing, and so is a
    frame that is NaN in every entry. `frame_shape` is that of a model that was trained on them, where there is one.
    """
    arrays = read(path, frame_shape, config.boundaries_mark)

    def split() -> Splits:
        cut = windows.plan(arrays, config)
        if cut is None:
            return splitting.split(arrays, config, scaling, _called(path), likelihood)
        parts = arrays.cut(Spans.joined(cut.train, cut.held_out))._replace(num_train=len(cut.train.rows))
        return splitting.split(parts, config, scaling, _called(path), likelihood)._replace(cut=cut)

    return named(path, split)


class Recordings:
    """All sequences of the arrays at a path, or in memory, for a trained model: read and checked once, and then cut.

    Arguments:
        frame_shape: the shape of the model's frames; it says which axes are which in arrays that may mean two things.
        mark: whether boundaries mark the ends of segments or their starts.
    """

    def __init__(
        self, path: Path | Held, scaling: Scaling, frame_shape: tuple[int, ...] | None = None, mark: Mark = "ends"
    ) -> None:
        self._path = path
        # As they were read: what is missing by its values does not shorten a recording, in training either.
        self._arrays = read(path, frame_shape, mark)
        self.sequences: Sequences = named(path, lambda: splitting.checked(self._arrays, scaling))
        """All of them, in the file's order."""

    def split(self, config: DataConfig) -> Splits:
        """The splits of :func:`load`, with the same digests."""
        return named(self._path, lambda: self._split(config))

    def _split(self, config: DataConfig) -> Splits:
        cut = windows.plan(self._arrays, config, self._observed())
        if cut is None:
            return splitting.parted(self.sequences, *splitting.rows_of(self._arrays, config), _called(self._path))
        sequences = self.sequences.cut(Spans.joined(cut.train, cut.held_out))
        rows = np.split(np.arange(len(sequences)), [len(cut.train.rows)])
        return splitting.parted(sequences, rows[0], rows[1], _called(self._path))._replace(cut=cut)

    def windows(self, config: DataConfig, most: int) -> Sequences | None:
        """Windows that do not overlap; None where no recording is long enough to be cut.

        Windows have `config.window_length` frames; where it is None or `auto`, only recordings are cut that are long,
        and longer than the `most` frames on which the model was trained.
        """
        spans = windows.apart(self._arrays, config.window_length, most, self._observed())
        return None if spans is None else self.sequences.cut(spans)

    def _observed(self) -> NDArray[np.bool_]:
        mask = self.sequences.arrays.mask
        return np.ones(self._arrays.frames.shape[:2], bool) if mask is None else mask


def read(path: Path | Held, frame_shape: tuple[int, ...] | None = None, mark: Mark = "ends") -> Arrays:
    """The arrays of a `.npz` file, or of a `.npy` file or a folder of `.npy` files, which are memory-mapped.

    `frame_shape` and `mark` are those of :class:`Recordings`.
    """

    def read() -> Arrays:
        content = reading.read(path, frame_shape)
        arrays = _check(content.arrays, frame_shape)
        return arrays._replace(
            boundaries=_ends(arrays.boundaries) if mark == "starts" else arrays.boundaries,
            names=names.checked(content.names, len(arrays.frames)),
            generator=content.generator,
            unread=content.unread,
        )

    return named(path, read)


def _called(path: Path | Held) -> str:
    return ARRAYS if isinstance(path, Held) else path.name


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
    frames = Shards.joined(train.frames, test.frames)
    given = [part.boundaries is not None for part in (train, test)]
    return Arrays(
        frames,
        frames.within(_stacked(train, test, "mask", True)),
        _stacked(train, test, "boundaries", False),
        None if all(given) else np.repeat(given, [len(train.frames), len(test.frames)]),
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
    weights = weighting.joined(entries, weights)
    if weights is not None:
        mask = weighting.seen(weights) if mask is None else mask & weighting.seen(weights)
    return Arrays(
        frames,
        mask,
        flags(f"{prefix}boundaries", beside.get("boundaries"), shape),
        weights=weights,
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
