"""Long recordings, cut into windows to train on and to score."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import splitting
from pyro_hrssm.data.content import Arrays
from pyro_hrssm.data.spans import Cut, Spans
from pyro_hrssm.errors import InputError, require

LONG = 1000
"""The most frames of a recording that is trained on whole, unless the user says otherwise."""

USUAL = 200
"""Frames in a window where the user names no number; a tenth of the longest recording where that is less."""

SHORTEST = 10
"""The fewest frames in a window where the user names no number: a shorter recording is not cut by itself."""

ENOUGH = 5
"""Recordings from which on some are held out whole; of fewer, a stretch of each is held out."""


def plan(arrays: Arrays, config: DataConfig, observed: NDArray[np.bool_] | None = None) -> Cut | None:
    """How recordings are cut and split; None where they are taken whole.

    Held-out windows share no frame with those to train on, nor with each other: where there are :data:`ENOUGH`
    recordings, some are held out whole, else a stretch of each. Windows without an observed frame are left out.

    Arguments:
        observed: [N, T] the frames that are observed, where that is known already: it spares a pass over all frames.
    """
    lengths = arrays.lengths
    size = _length(config.window_length, lengths, alone=len(lengths) == 1 and arrays.num_train is None)
    if size is None:
        return None
    overlap = round(size * config.window_overlap)
    step = max(1, size - overlap)
    train, held_out, said = _stretches(lengths, size, config, arrays.num_train)
    seen = _observed(arrays) if observed is None else observed
    cut = (_windows(train, size, step, to_the_end=True), _windows(held_out, size, size, to_the_end=False))
    if seen is not None:
        cut = (cut[0].where(cut[0].any_of(seen)), cut[1].where(cut[1].any_of(seen)))
    if not all(len(part.rows) for part in cut):
        raise InputError(
            f"no window of {size} frames is left to {'hold out' if len(cut[0].rows) else 'train on'}: give a smaller "
            "--window-length, or another --split-seed"
        )
    apart = f"overlapping by {size - step}" if step < size else "apart"
    what = (
        f"{len(lengths)} recordings of up to {lengths.max()} frames"
        if len(lengths) > 1
        else f"one recording of {lengths[0]} frames"
    )
    told = f"{what} cut into windows of {size} frames, {apart} (--window-length, --window-overlap); {said}"
    return Cut(*cut, len(lengths), size, told)


def apart(
    arrays: Arrays, length: int | Literal["auto"] | None, most: int = LONG, observed: NDArray[np.bool_] | None = None
) -> Spans | None:
    """Windows of all recordings, none of which overlap, to use a model on; None where recordings are not that long.

    A recording's last frames that fill no window are left out, unless there are no others.

    Arguments:
        length: the frames of a window; where it is no number, recordings of more than `most` frames are cut as usual.
        observed: as in :func:`plan`.
    """
    lengths = arrays.lengths
    cuts = isinstance(length, int) or lengths.max() > max(LONG, most)
    size = _length("auto" if length is None else length, lengths, alone=False)
    if size is None or not cuts:
        return None
    spans = _windows([(row, 0, int(n)) for row, n in enumerate(lengths)], size, size, to_the_end=False)
    seen = _observed(arrays) if observed is None else observed
    return spans if seen is None else spans.where(spans.any_of(seen))


def _length(named: int | Literal["auto"] | None, lengths: NDArray[np.int64], alone: bool) -> int | None:
    """Frames in a window; None to cut nothing. `alone`: whether one recording must be split."""
    longest = int(lengths.max())
    if named is None:
        return None
    if named == "auto":
        size = min(USUAL, longest // 10)
        return size if longest > LONG or (alone and size >= SHORTEST) else None
    return named if named < longest else None


def _stretches(
    lengths: NDArray[np.int64], size: int, config: DataConfig, num_train: int | None
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]], str]:
    """The stretches (row, start, stop) to train on and to hold out, and what they are in a few words."""
    every = [(row, 0, int(length)) for row, length in enumerate(lengths)]
    if num_train is not None:
        return every[:num_train], every[num_train:], "held out as they were given"
    if len(every) >= ENOUGH or (len(every) > 1 and (lengths < 2 * size).all()):
        rows = splitting.split_indices(len(every), config)
        kept, held_out = ([every[row] for row in part] for part in rows)
        return kept, held_out, f"{len(held_out)} of them held out"
    require(config.split_seed >= 0, f"split_seed must be at least 0, found {config.split_seed}")
    draws = np.random.PCG64(config.split_seed).random_raw(len(every))
    train: list[tuple[int, int, int]] = []
    held: list[tuple[int, int, int]] = []
    for (row, _, length), draw in zip(every, draws.tolist(), strict=True):
        start, stop = _held_out(length, size, config.held_out, draw)
        held += [(row, start, stop)] if stop > start else []
        train += [(row, 0, start), (row, stop, length)] if stop > start else [(row, 0, length)]
    if not held:
        raise InputError(
            f"window_length must be at most half of a recording's {lengths.max()} frames, of which some are held out, "
            f"found {size}"
        )
    if len(every) > 1:
        return train, held, f"a stretch of {'each' if len(held) == len(every) else f'{len(held)} of them'} held out"
    return train, held, f"frames {held[0][1]} to {held[0][2] - 1} held out"


def _held_out(length: int, size: int, share: float, draw: int) -> tuple[int, int]:
    """First and last frame (exclusive) of the stretch to hold out; an empty one where a recording is too short.

    It holds whole windows, and leaves at least one to train on.
    """
    number = min(max(1, round(length * share / size)), length // size - 1)
    if number < 1:
        return 0, 0
    free = length - number * size
    start = draw % (free // size + 1) * size
    if free - start < size:  # the frames after it would fill no window
        start = free
    return start, start + number * size


def _windows(stretches: list[tuple[int, int, int]], size: int, step: int, to_the_end: bool) -> Spans:
    """Windows every `step` frames of stretches; `to_the_end`: a last one that ends with the stretch, whatever its step.

    A recording shorter than a window is one by itself; the rest of a cut one is left out.
    """
    spans: list[tuple[int, int, int]] = []
    number = Counter(row for row, _, _ in stretches)
    for row, start, stop in stretches:
        if stop - start < size:
            is_whole = start == 0 and stop > 0 and number[row] == 1
            spans += [(row, start, stop - start)] if is_whole else []
            continue
        starts = list(range(start, stop - size + 1, step))
        if to_the_end and starts[-1] < stop - size:
            starts.append(stop - size)
        spans += [(row, first, size) for first in starts]
    return Spans.of(spans)


def _observed(arrays: Arrays) -> NDArray[np.bool_] | None:
    """[N, T] the frames that are observed: by the mask, and not NaN throughout; None if all are."""
    frames, mask = arrays.frames, arrays.mask
    if frames.dtype.kind != "f":
        return mask
    seen = np.ones(frames.shape[:2], bool) if mask is None else mask.copy()
    for part, chunk in frames.chunks(np.arange(len(frames))):
        seen[part] &= ~np.isnan(chunk).reshape(*chunk.shape[:2], -1).all(axis=-1)
    return None if seen.all() else seen
