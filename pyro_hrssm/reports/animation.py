"""Sequences as endless GIF animations: image frames one after the other, rows and vectors line by line.

Axes of the arrays (NumPy's or torch's) and scales as in :mod:`pyro_hrssm.reports.strips`. One picture is made at a
time, so that memory does not grow with the number of frames but for what the file holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from pyro_hrssm.errors import require
from pyro_hrssm.files import writing
from pyro_hrssm.host import on_host
from pyro_hrssm.reports.strips import Scale, colours_of, scale_of

_STEPS = 120
"""The most pictures of an animation that draws sequences line by line: of more lines, it draws several at a time."""


def animate(
    frames: ArrayLike,
    path: str | os.PathLike[str],
    *,
    fps: float = 8,
    value_range: tuple[float, float] | None = None,
    min_height: int = 128,
) -> None:
    """Write image frames as an endless GIF, one sequence or several side by side.

    Args:
        frames: `[T, height, width]` or `[T, height, width, channels]` of 1 or 3 channels, or a list of such arrays of
            one height; a list of single `[height, width]` frames is one sequence. Shorter sequences keep showing their
            last frame.
        path: path of the GIF.
        fps: frames per second; GIF counts in hundredths of a second.
        value_range: as in :func:`pyro_hrssm.reports.strips.reconstructions`.
        min_height: least height in pixels, to which frames are enlarged by a whole factor.
    """
    parts = [on_host(part) for part in frames] if isinstance(frames, (list, tuple)) else [on_host(frames)]
    if parts and all(part.ndim == 2 for part in parts):
        parts = [np.stack(parts)]
    require(len(parts) > 0, "frames must hold at least one sequence, found none")
    for part in parts:
        known = part.size > 0 and (part.ndim == 3 or (part.ndim == 4 and part.shape[-1] in (1, 3)))
        require(known, f"frames must have shape [T, height, width] or [T, height, width, 1 or 3], found {part.shape}")
        require(part.shape[1] == parts[0].shape[1], f"sequences side by side must share one height, found {part.shape}")
    require(fps > 0, f"fps must be positive, found {fps}")
    scale = scale_of(np.concatenate([part.ravel() for part in parts]), value_range, parts[0].dtype)

    def shown(t: int) -> list[NDArray[Any]]:
        return [part[min(t, len(part) - 1)] for part in parts]

    _write(shown, max(map(len, parts)), scale, Path(path), fps, min_height)


def unroll(frames: ArrayLike, path: Path, *, fps: float = 8, min_height: int = 128) -> None:
    """Write rows or vectors as an endless GIF that draws the sequences line by line, side by side.

    Args:
        frames: `[B, T, X]`, a line of X entries per frame, time downwards.
        path: path of the GIF.
        fps: pictures per second.
        min_height: as in :func:`animate`.
    """
    values = on_host(frames)
    require(values.ndim == 3 and values.size > 0, f"frames must have shape [B, T, X], found {values.shape}")
    length = values.shape[1]
    step = -(-length // _STEPS)

    def shown(number: int) -> list[NDArray[Any]]:
        drawn = np.arange(length) < (number + 1) * step
        return [np.where(drawn[:, None], sequence, 0) for sequence in values]

    _write(shown, -(-length // step), scale_of(values, None, values.dtype), path, fps, min_height)


def _write(
    shown: Callable[[int], list[NDArray[Any]]], count: int, scale: Scale, path: Path, fps: float, min_height: int
) -> None:
    """Write `count` pictures, each of the frames `[height, width(, channels)]` that `shown` gives, side by side."""

    def picture(number: int) -> Image.Image:
        parts: list[NDArray[Any]] = []
        for frame in shown(number):
            height = len(frame)
            parts += [
                np.ones((height, max(1, height // 16), 3)),
                colours_of(frame[None], np.ones(1, bool), scale, "images")[0],
            ]
        colours = np.rint(np.concatenate(parts[1:], axis=1) * 255).astype(np.uint8)
        factor = -(-min_height // len(colours))
        return Image.fromarray(np.kron(colours, np.ones((factor, factor, 1), np.uint8)))

    duration = max(20, round(100 / fps) * 10)  # viewers slow frames shorter than 20 ms down to 100 ms
    with writing(path) as file:
        rest = map(picture, range(1, count))
        picture(0).save(file, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)
