"""Which axis of an array is which: shapes that may mean two things are refused, and the refusal names the ways out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.errors import InputError, one_line

FEW = 4
"""Most entries of an axis that rather holds channels or coordinates than the pixels of a side or the frames."""

RAGGED = "pad sequences of several lengths to one length T, [N, T, X…], and store their lengths [N] beside them"
"""What to do with an array of Python objects, which is what numpy makes of sequences of several lengths."""


def as_frames(
    array: NDArray[Any],
    settled: bool = False,
    known: tuple[int, ...] | None = None,
    name: str = "frames",
    alone: bool = False,
) -> NDArray[Any]:
    """Frames [N, T, X…], X… of rank 1 or 3, as a view of an array; anything else raises :class:`InputError`.

    Arguments:
        settled: whether lengths, a mask, boundaries or labels beside the array show that its first two axes are [N, T].
        known: the shape of a trained model's frames. An array that has such frames in one of its meanings has that one.
        name: the array's name in messages.
        alone: whether the array is a user's one recording [T, X…], to which an axis N of 1 was added.
    """
    if array.dtype.kind not in "buif":
        hint = f"; {RAGGED}" if array.dtype.hasobject else ""
        raise InputError(f"{name} must be booleans, integers or floats, found {one_line(array.dtype)}{hint}")
    stored = list(array.shape[1:] if alone else array.shape)
    if array.ndim not in (2, 3, 4, 5):
        raise InputError(f"{name} must have shape {_SHAPES.replace('N, ', '') if alone else _SHAPES}, found {stored}")
    if array.size == 0:
        raise InputError(f"{name} must not be empty, found shape {stored}")
    frames = array[..., None] if array.ndim in (2, 4) else array
    ways = [] if frames.shape[2:] == known else _ways(array.shape, settled, name, alone)
    if ways:
        raise InputError(f"{name} may mean two things, found shape {stored}: store {', or '.join(ways)}")
    if frames.shape[1] < 2:
        raise InputError(f"a sequence must have at least 2 frames, found {frames.shape[1]} in {name} [N, T, X…]")
    return frames


def doubt(num_frames: int, frame_shape: tuple[int, ...]) -> str | None:
    """A sentence on a shape that is read, although its axes may be in another order; None without a doubt."""
    if len(frame_shape) == 1 and num_frames <= FEW < frame_shape[0]:
        return (
            f"sequences were read as {num_frames} frames of {frame_shape[0]} entries; if they are "
            f"{num_frames} entries at {frame_shape[0]} times, store np.swapaxes(frames, 1, 2)"
        )
    return None


_SHAPES = "[N, T], [N, T, X], [N, T, height, width] or [N, T, height, width, channels]"


def _ways(shape: tuple[int, ...], settled: bool, name: str, alone: bool) -> list[str]:
    """The ways to store an array of this shape, one for each of its meanings; none where it has one meaning."""
    if len(shape) == 2 and not settled:
        return [
            f"{name}[..., None] for {shape[0]} sequences of {shape[1]} numbers",
            f"{name}[None] for one sequence of {shape[0]} frames with {shape[1]} entries",
        ]
    if len(shape) == 4:
        return _ways_of_planes(*shape, settled=settled, name=name, alone=alone)
    if len(shape) == 5 and shape[2] <= FEW < shape[4]:
        channels = 1 if alone else 2
        return [
            f"np.moveaxis({name}, {channels}, -1) for images of {shape[3]}×{shape[4]} pixels in {_channels(shape[2])}",
            f"{name}.{_flat(shape, alone)} for frames that are no images",
        ]
    return []


def _flat(shape: tuple[int, ...], alone: bool) -> str:
    """The call that makes vectors of an array's frames [N, T, X…]."""
    sizes = (*shape[alone:2], int(np.prod(shape[2:])))
    return f"reshape({', '.join(map(str, sizes))})"


def _ways_of_planes(
    num: int, num_frames: int, height: int, width: int, settled: bool, name: str, alone: bool
) -> list[str]:
    """The same for [N, T, height, width]; one meaning where no axis is so short that it may be something else."""
    points = height <= FEW or width <= FEW
    images = not settled and num_frames <= FEW
    of = "" if alone else f"{num} sequences of {num_frames} "
    ways = [f"{name}[..., None] for {of}images of {height}×{width} pixels"]
    if points:
        flat = _flat((num, num_frames, height, width), alone)
        ways.append(f"{name}.{flat} for frames of {height}×{width} coordinates")
    if width <= FEW and not settled:
        ways.append(f"{name}[None] for one sequence of {num} images of {num_frames}×{height} in {_channels(width)}")
    if images:
        ways.append(
            f"np.moveaxis({name}, 1, -1)[None] for one of {num} images of {height}×{width} in {_channels(num_frames)}"
        )
    return ways if points or images else []


def _channels(number: int) -> str:
    return "1 channel" if number == 1 else f"{number} channels"
