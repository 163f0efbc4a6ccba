"""Fan charts of forecasts: quantiles of every entry of a vector over the frames. Arrays in, figures out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from pyro_hrssm.errors import require
from pyro_hrssm.host import on_host
from pyro_hrssm.reports import drawing

ENTRIES = 6
"""The most entries of a vector that are drawn."""

BEFORE = 2
"""Number of given frames that are drawn, by forecast ones, where there are more."""

_MEDIAN, _BAND = drawing.BLUE, drawing.SKY
_GIVEN = drawing.GREEN
_TIGHT = 1e-9
"""Distance within which two levels are as far from the median."""


def fan_chart(
    quantiles: ArrayLike,
    levels: Sequence[float],
    observed: ArrayLike,
    given: ArrayLike,
    lengths: ArrayLike,
    *,
    limit: int = 3,
    title: str = "Quantiles over samples",
) -> Figure:
    """Draw a fan for each sequence and entry: a band between any two levels as far from the median, and what happened.

    Levels without a counterpart are lines. Of many entries some are drawn, evenly spaced; of many frames those around
    the last given one.

    Args:
        quantiles: `[Q, B, T, X]`, in the units that the axes show.
        levels: `[Q]`, growing, between 0 and 1.
        observed: `[B, T, X]`, NaN where unknown.
        given: `[B]`, number of frames of each sequence that were given.
        lengths: `[B]`, number of frames of each sequence.
        limit: largest number of sequences to draw, from the first on.
        title: title of the figure.
    """
    fan, truth = on_host(quantiles), on_host(observed)
    drawing.check_limit(limit)
    require(fan.ndim == 4 and fan.size > 0, f"quantiles must have shape [Q, B, T, X], found {fan.shape}")
    require(len(levels) == len(fan), f"levels must hold one per quantile, {len(fan)} of them, found {len(levels)}")
    require(truth.shape == fan.shape[1:], f"observed must have shape [B, T, X] {fan.shape[1:]}, found {truth.shape}")
    known, ends = on_host(given), on_host(lengths)
    count, total, size = min(limit, fan.shape[1]), fan.shape[2], fan.shape[3]
    first, stop = _window(known[:count], ends[:count], total)
    entries = np.unique(np.linspace(0, size - 1, min(size, ENTRIES)).round().astype(int))

    figure = Figure(figsize=(1 + 4.2 * count, 1.6 + 1.5 * len(entries)), layout="constrained")
    figure.suptitle(drawing.caption(title, _extent(first, stop, total, len(entries), size)))
    grid = figure.subplots(len(entries), count, sharex=True, sharey="row", squeeze=False)
    for i, j in np.ndindex(count, len(entries)):
        axes = cast(Axes, grid[j, i])
        _draw_fan(axes, fan[:, i, first : min(int(ends[i]), stop), entries[j]], levels, first)
        _draw_data(axes, truth[i, first:stop, entries[j]], first)
        if known[i] > first:
            axes.axvline(float(known[i]) - 0.5, color=_GIVEN, linewidth=1.5, gid="given")
    _label(grid, entries, first, stop)
    keys = _keys(levels)
    if np.isfinite(truth[:count, first:stop]).any():
        keys.append(Line2D([], [], color=drawing.BLACK, marker=".", linewidth=0.7, label="data"))
    if (known[:count] > first).any():
        keys.append(Line2D([], [], color=_GIVEN, linewidth=1.5, label="end of the given frames"))
    drawing.legend(figure, keys)
    return figure


def _window(given: NDArray[np.int64], lengths: NDArray[np.int64], total: int) -> tuple[int, int]:
    """The first frame to draw, and the one after the last: the forecast, and a part of what was given."""
    ahead = int((lengths - given).max())
    first = max(0, int(given.min()) - BEFORE * ahead) if ahead > 0 else 0
    return first, min(total, first + drawing.FRAMES)


def _extent(first: int, stop: int, total: int, entries: int, size: int) -> str:
    said = [f"frames {first} to {stop - 1} of {total}"] if stop - first < total else []
    said += [f"{entries} of {size} entries"] if entries < size else []
    return ", ".join(said)


def _pairs(levels: Sequence[float]) -> tuple[list[tuple[int, int]], list[int]]:
    """Places of levels as far from the median, the outermost pair first; and the places of all other levels."""
    bands, alone = [], []
    for low, level in enumerate(levels):
        partners = [high for high, other in enumerate(levels) if abs(level + other - 1) < _TIGHT]
        if not partners or partners[0] == low:
            alone.append(low)
        elif low < partners[0]:
            bands.append((low, partners[0]))
    return bands, alone


def _draw_fan(axes: Axes, fan: NDArray[np.floating], levels: Sequence[float], first: int) -> None:
    """Draw quantiles [Q, frames] as steps, each as wide as its frame, so that a single frame is visible too."""
    if fan.shape[1] == 0:
        return
    bands, lines = _pairs(levels)
    edges = np.arange(first, first + fan.shape[1] + 1) - 0.5
    for k, (low, high) in enumerate(bands):
        band = axes.stairs(fan[high], edges, baseline=fan[low], fill=True, color=_shade(k, len(bands)))
        band.set(gid="band", linewidth=0)
    for k in lines:
        line = axes.stairs(fan[k], edges, baseline=None, color=_MEDIAN, linewidth=1.4)
        line.set(gid="line", linestyle=_style(levels[k]))


def _draw_data(axes: Axes, values: NDArray[np.floating], first: int) -> None:
    """Draw values [frames], NaN where unknown."""
    frames = np.arange(first, first + len(values))
    axes.plot(frames, values, ".-", color=drawing.BLACK, linewidth=0.7, markersize=3, gid="data")


def _label(grid: NDArray[Any], entries: NDArray[np.int64], first: int, stop: int) -> None:
    """Set limits, ticks and labels of all panels."""
    for axes in grid.flat:
        axes.set_xlim(first - 0.5, stop - 0.5)
        axes.xaxis.set_major_locator(drawing.integer_ticks(8))
        drawing.bare(axes)
    for i, axes in enumerate(grid[0]):
        axes.set_title(f"sequence {i}", loc="left", fontsize="medium")
    for entry, axes in zip(entries, grid[:, 0], strict=True):
        axes.set_ylabel(f"entry {entry}")
    for axes in grid[-1]:
        axes.set_xlabel("frame t")


def _keys(levels: Sequence[float]) -> list[Patch | Line2D]:
    bands, lines = _pairs(levels)
    keys: list[Patch | Line2D] = []
    for k, (low, high) in enumerate(bands):
        said = f"{_percent(levels[low])} to {_percent(levels[high])}"
        keys.append(Patch(color=_shade(k, len(bands)), label=said))
    keys += [Line2D([], [], color=_MEDIAN, linestyle=_style(levels[k]), label=_percent(levels[k])) for k in lines]
    return keys


def _shade(k: int, count: int) -> str:
    """Colour of the k-th of so many bands, the inner ones darker."""
    share = 0.35 if count == 1 else 0.25 + 0.45 * k / (count - 1)
    red, green, blue = (1 - share + share * part for part in to_rgb(_BAND))
    return to_hex((red, green, blue))


def _percent(level: float) -> str:
    return "median" if abs(level - 0.5) < _TIGHT else f"{100 * level:g} %"


def _style(level: float) -> Literal["-", "--"]:
    return "-" if abs(level - 0.5) < _TIGHT else "--"
