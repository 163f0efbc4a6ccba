"""What is known of single entries of frames: which are missing, and how precise the others are.

Weights are an array `[N, T]` or `[N, T, X…]` beside the frames. A weight w says that the entry's noise has the
variance σ² / w, where σ² is what the model learns for the entry: 4 for the mean of four readings, 0 for an entry that
is missing. Booleans are flags, False for a missing entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.data.shards import Shards
from pyro_hrssm.errors import InputError, one_line

Weights = NDArray[Any]
"""[N, T] or [N, T, X…]; booleans, or numbers of at least 0."""


def checked(name: str, values: Weights, frame_shape: tuple[int, ...], num: int, num_frames: int) -> Weights:
    """Weights [N, T] or [N, T, X…], of frames that may be stored without a last axis of 1; else :class:`InputError`."""
    whole, shape = (num, num_frames), (num, num_frames, *frame_shape)
    if values.shape not in (whole, shape) and not (frame_shape[-1] == 1 and values.shape == shape[:-1]):
        raise InputError(f"{name} must have shape {list(whole)} or {list(shape)}, found {list(values.shape)}")
    if values.dtype.kind not in "buif":
        raise InputError(f"{name} must be numbers of at least 0, found {one_line(values.dtype)}")
    for _, chunk in Shards([values]).chunks(np.arange(num)):
        with np.errstate(all="ignore"):
            used = chunk.astype(np.float32)
        wrong = ~np.isfinite(used) | (used < 0) | ((used == 0) & (chunk != 0))
        if wrong.any():
            raise InputError(f"{name} must be numbers of at least 0 that fit 32-bit floats, found {chunk[wrong][0]}")
    return values if values.shape in (whole, shape) else values[..., None]


def joined(flags: NDArray[np.bool_] | None, weights: Weights | None) -> Weights | None:
    """Weights that are 0 too where flags [N, T, X…] are False."""
    if flags is None or weights is None:
        return weights if flags is None else flags
    return np.where(flags, weights if weights.ndim > 2 else spread(weights, flags.ndim), weights.dtype.type(0))


def stacked(parts: Sequence[Weights | None], shapes: Sequence[tuple[int, ...]]) -> Weights | None:
    """The weights of several parts, whose frames have these shapes, one after the other; None where no part has any.

    Entries of a part that has none are as precise as the model says. Frames after a shorter part's last have weight 0.
    """
    known = [part for part in parts if part is not None]
    if not known:
        return None
    kind = np.bool_ if all(part.dtype.kind == "b" for part in known) else np.float32
    if all(part.ndim == 2 for part in known):
        shapes = [shape[:2] for shape in shapes]
    starts = np.cumsum([shape[0] for shape in shapes])
    result: Weights = np.zeros((starts[-1], max(shape[1] for shape in shapes), *shapes[0][2:]), kind)
    for part, shape, rows in zip(parts, shapes, np.split(result, starts[:-1]), strict=True):
        rows[:, : shape[1]] = 1 if part is None else spread(part, len(shape))
    return result


def seen(weights: Weights) -> NDArray[np.bool_]:
    """[N, T], True where a frame has an entry of a weight above 0."""
    found = np.empty(weights.shape[:2], bool)
    for part, chunk in Shards([weights]).chunks(np.arange(len(weights))):
        found[part] = (chunk > 0).reshape(*chunk.shape[:2], -1).any(axis=-1)
    return found


def spread(values: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Values [M, T] with as many axes of 1 as frames of so many axes have; values [M, T, X…] as they are."""
    return values if values.ndim > 2 else values.reshape(*values.shape, *[1] * (ndim - 2))


def for_model(weights: Weights, shape: tuple[int, ...]) -> NDArray[Any]:
    """A copy [M, T, X…] in the types that a model's mask has: bool for flags, float32 for numbers."""
    kind = np.bool_ if weights.dtype.kind == "b" else np.float32
    return np.broadcast_to(spread(weights, len(shape)), shape).astype(kind)
