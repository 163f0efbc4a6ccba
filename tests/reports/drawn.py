"""Frames and flags to draw, and the marks that a figure shows."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def frames(count: int, length: int, shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).random((count, length, *shape))


def flags(count: int, length: int, rate: float = 0.3, seed: int = 1) -> Any:
    return (np.random.default_rng(seed).random((count, length)) < rate).astype(float)


def draw(figure: Figure) -> None:
    """Render at a low resolution: layout warnings, which are errors here, come only then."""
    figure.set_dpi(30)
    FigureCanvasAgg(figure).print_raw(io.BytesIO())


def marked(figure: Figure, gid: str) -> list[Any]:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def starts(boundaries: Any) -> Any:
    """Segment starts by the convention, written out: the first frame, and each frame after one with m = 1."""
    return [[t for t in range(len(row)) if t == 0 or row[t - 1] > 0.5] for row in boundaries]
