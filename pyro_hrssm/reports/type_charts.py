"""Pictures and tables of segment types: how often each occurs, how long it lasts, which follows which, and examples.

Arrays in, pictures out. `K` counts types; type k has the number k everywhere.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_hrssm.errors import require
from pyro_hrssm.reports import drawing, strips

EXAMPLES = 6
"""Number of segments that are shown of every type."""

FRAMES = 4
"""Number of images that are shown of a segment, from its first to its last."""

_WRITTEN = 12
"""The most types whose transition matrix has its numbers written into it."""


class Counts(NamedTuple):
    """How often K types occur; :class:`pyro_hrssm.inference.types.Summary` describes the entries."""

    segments: NDArray[np.int64]
    frames: NDArray[np.int64]
    lengths: list[NDArray[np.int64]]
    transitions: NDArray[np.int64]


class Section(NamedTuple):
    """The types' part of a report."""

    note: str
    rows: list[tuple[str, ...]]
    """Per type: its number, segments, share of frames, mean length, and what follows it."""
    pictures: list[tuple[str, str]]
    """A description of each picture, and the picture as a data URI."""


def type_summary(counts: Counts, *, title: str = "Segment types") -> Figure:
    """Draw each type's share of segments and frames, the lengths of its segments, and which type follows which."""
    number = len(counts.segments)
    require(number >= 1, f"counts must be of at least one type, found {number}")
    side = float(np.clip(0.4 * number, 2.4, 9))
    figure = Figure(figsize=(7.5 + side, side + 1.9), layout="constrained")
    figure.suptitle(title)
    shares, lengths, transitions = figure.subplots(1, 3, width_ratios=[3, 3, side])
    places = np.arange(number)
    for values, name, colour, offset in (
        (counts.segments, "segments", drawing.SKY, -0.2),
        (counts.frames, "frames", drawing.BLUE, 0.2),
    ):
        share = 100 * values / max(1, int(values.sum()))
        shares.barh(places + offset, share, height=0.4, color=colour, label=name)
    shares.set_xlabel("share (%)")
    shares.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    lengths.boxplot(
        [part if part.size else [np.nan] for part in counts.lengths],
        orientation="horizontal", positions=places, widths=0.6, showfliers=False,
        medianprops={"color": drawing.VERMILION},
    )  # fmt: skip
    lengths.set_xlabel("length (frames)\nmedian, quartiles, whiskers of 1.5 spreads")
    lengths.set_xlim(left=0)
    lengths.xaxis.set_major_locator(drawing.integer_ticks(6))
    _draw_transitions(transitions, _chances(counts.transitions))
    for axes in (shares, lengths):
        axes.set_ylim(number - 0.5, -0.5)
        axes.set_yticks(places)
        axes.set_yticklabels([str(place) for place in places])
        drawing.bare(axes)
    shares.set_ylabel("type")
    return figure


def _chances(transitions: NDArray[np.int64]) -> NDArray[np.float64]:
    """[K, K] probability that a type (row) is followed by another (column); 0 where no segment follows it."""
    return transitions / np.maximum(1, transitions.sum(1, keepdims=True))


def _draw_transitions(axes: Axes, chances: NDArray[np.float64]) -> None:
    number = len(chances)
    axes.imshow(chances, cmap="Blues", vmin=0, vmax=1, interpolation="nearest").set_gid("transitions")
    if number <= _WRITTEN:
        for row, column in zip(*np.nonzero(chances >= 0.005), strict=True):
            chance = chances[row, column]
            colour = "white" if chance > 0.6 else "black"
            axes.text(column, row, f"{100 * chance:.0f}", ha="center", va="center", color=colour, fontsize="small")
    axes.set_xlabel("next type")
    axes.set_ylabel("type")
    axes.set_title("probability of the next type (%)", fontsize="medium")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(drawing.integer_ticks(20))


def type_examples(examples: Sequence[Sequence[NDArray[Any]]], *, title: str = "Examples of each type") -> Figure:
    """Draw segments of every type, one line per type.

    Args:
        examples: per type, the frames [L, X…] of some of its segments, NaN where a frame is missing. X… is the same for
            all, and decides how they are drawn: images as a few frames side by side, rows of pixels as an image, time
            downwards, fewer than 8 entries as one line per entry over the frames. Of long segments and large frames, as
            much is drawn as a screen shows, and the title says how much.
        title: title of the figure.
    """
    every = [frames for kind in examples for frames in kind]
    require(len(every) > 0, "examples must hold at least one segment, found none")
    across = max(len(kind) for kind in examples)
    images = every[0].ndim > 2
    shown = [drawing.thinned((_few(frames) if images else frames[: drawing.FRAMES])[None])[0] for frames in every]
    total = drawing.FRAMES if images else max(len(frames) for frames in every)
    part = drawing.extent(min(total, drawing.FRAMES), total, drawing.stride(every[0].shape[1:]))
    longest = max(len(frames) for frames in shown)
    padded = np.zeros((len(shown), longest, *shown[0].shape[1:]), np.float64)
    within = np.zeros((len(shown), longest), bool)
    for i, frames in enumerate(shown):
        padded[i, : len(frames)], within[i, : len(frames)] = frames, True
    drawn = strips.pixels(padded, padded, within)
    wide = {"images": FRAMES * 0.55, "vectors": 1.5, "rows": 1.1}[drawn.kind]
    high = {"images": 0.75, "vectors": 0.9, "rows": 1.1}[drawn.kind]
    figure = Figure(figsize=(0.8 + across * wide, 0.9 + len(examples) * high), layout="constrained")
    figure.suptitle(drawing.caption(title, part))
    grid = figure.subplots(len(examples), across, squeeze=False)
    place = 0
    for number, (row, kind) in enumerate(zip(grid, examples, strict=True)):
        for column, axes in enumerate(row):
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(str(number), rotation=0, ha="right", va="center")
            if column >= len(kind):
                axes.spines[:].set_visible(False)
                continue
            length = int(within[place].sum())
            _draw_example(axes, drawn.kind, padded[place, :length], drawn.originals[place, :length], longest)
            place += 1
    if drawn.kind == "vectors":
        _share_range(grid, padded[within], longest)
        keys = [axes.get_legend_handles_labels()[0] for axes in grid.flat]
        drawing.legend(figure, next(key for key in keys if key))
    return figure


def _few(frames: NDArray[Any]) -> NDArray[Any]:
    """At most `FRAMES` frames of a segment, its first and its last among them."""
    return frames[np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))]


def _draw_example(axes: Axes, kind: str, values: NDArray[Any], colours: NDArray[np.uint8], longest: int) -> None:
    if kind == "vectors":
        for entry, line in enumerate(values.T):
            # Later lines are thinner, so that equal ones show below each other.
            width = 2.6 - 1.6 * entry / max(1, values.shape[1] - 1)
            mark = "o" if len(line) == 1 else ""
            axes.plot(line, linewidth=width, marker=mark, markersize=1.5 * width, label=f"entry {entry}")
    elif kind == "rows":
        axes.imshow(colours, aspect="auto", interpolation="nearest")
        axes.set_ylim(longest - 0.5, -0.5)
    else:
        film = colours.transpose(1, 0, 2, 3).reshape(colours.shape[1], -1, 3)
        blank = np.full((film.shape[0], (FRAMES - len(colours)) * colours.shape[2], 3), 255, np.uint8)
        axes.imshow(np.concatenate([film, blank], 1), interpolation="nearest")
        axes.spines[:].set_visible(False)


def _share_range(grid: NDArray[Any], values: NDArray[Any], longest: int) -> None:
    """One range of frames and values for all panels, told at the last one's edges."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = 0.05 * (high - low) or 1.0
    for axes in grid.flat:
        axes.set_xlim(-0.5, max(longest, 2) - 0.5)
        axes.set_ylim(low - margin, high + margin)
    first = grid[-1, 0]
    first.set_xticks([0, longest - 1] if longest > 1 else [0])
    first.set_xlabel("frame of the segment", fontsize="small", loc="left")


def section(counts: Counts, examples: Sequence[Sequence[NDArray[Any]]], note: str) -> Section:
    """The types' part of a report, with both figures.

    Args:
        counts: how often each type occurs.
        examples: as in :func:`type_examples`.
        note: how the types were found.
    """
    total, chances = max(1, int(counts.frames.sum())), _chances(counts.transitions)
    rows: list[tuple[str, ...]] = []
    for kind, lengths in enumerate(counts.lengths):
        after = [f"{k} ({100 * chances[kind, k]:.0f} %)" for k in np.argsort(-chances[kind], kind="stable")[:3]]
        followed = ", ".join(after[: int((chances[kind] > 0).sum())])
        mean = f"{lengths.mean():.1f}" if lengths.size else "–"
        share = f"{100 * counts.frames[kind] / total:.1f} %"
        rows.append((str(kind), str(counts.segments[kind]), share, mean, followed or "–"))
    pictures = [
        ("Shares, lengths and transitions of the types, as in the table", _data_uri(type_summary(counts))),
        ("Examples of segments of each type, one line per type", _data_uri(type_examples(examples))),
    ]
    return Section(note, rows, pictures)


def _data_uri(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(drawing.png(figure, dpi=120)).decode()
