"""Charts of boundaries, segment lengths, abstract states and training: arrays in, figures out.

Arrays are NumPy's or torch's; `B` counts sequences, `T` frames. Boundaries follow the package's convention: `m_t = 1`
means that a segment ends with frame `t`; the last frame's boundary has no effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from pyro_hrssm.errors import require
from pyro_hrssm.host import on_host
from pyro_hrssm.reports import drawing

_TRUE = drawing.BLUE

_CELLS = 100
"""The most cells along a side of a raster that have lines between them: more would be hidden by their lines."""


def boundary_probabilities(
    prior: ArrayLike,
    posterior: ArrayLike,
    boundaries: ArrayLike,
    true_boundaries: ArrayLike | None = None,
    *,
    limit: int = 6,
    titles: Sequence[str] | None = None,
    title: str = "Boundary probabilities",
) -> Figure:
    """Draw p(m_t = 1) and q(m_t = 1) over the frames, with the sampled boundaries.

    Args:
        prior: `[B, T]`, probabilities under the model; NaN where there is none.
        posterior: `[B, T]`, probabilities under the guide; NaN where there is none.
        boundaries: `[B, T]`, sampled; the last frame's boundary, which has no effect, is left out.
        true_boundaries: `[B, T]`, marked below the sampled ones.
        limit: largest number of sequences to draw, from the first on.
        titles: one title per sequence.
        title: title of the figure.
    """
    p, q = on_host(prior), on_host(posterior)
    require(p.ndim == 2 and p.size > 0, f"prior must have shape [B, T], found {p.shape}")
    drawing.check_limit(limit)
    require(q.shape == p.shape, f"posterior must have the prior's shape {p.shape}, found {q.shape}")
    drawn = drawing.flags(boundaries, p.shape, "boundaries")
    truth = None if true_boundaries is None else drawing.flags(true_boundaries, p.shape, "true_boundaries")
    count, length = min(limit, p.shape[0]), min(p.shape[1], drawing.FRAMES)
    names = drawing.titles(titles, count)
    title = drawing.caption(title, drawing.extent(length, p.shape[1]))
    p, q, drawn = p[:, :length], q[:, :length], drawn[:, :length]
    truth = None if truth is None else truth[:, :length]

    figure = Figure(figsize=(8, 1.6 + 1.25 * count), layout="constrained")
    figure.suptitle(title)
    edges = np.arange(length + 1) - 0.5
    all_axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for i, axes in enumerate(all_axes):
        axes.stairs(p[i], edges, baseline=None, color=drawing.BLUE, linestyle="--", linewidth=1.4)
        axes.stairs(q[i], edges, baseline=None, color=drawing.ORANGE, linewidth=1.8)
        ends = np.flatnonzero(drawn[i, :-1])
        axes.vlines(ends, -0.03, 1.03, color=drawing.START, linewidth=0.8, alpha=0.5, zorder=0)
        _points(axes, drawn[i, :-1], 1.03, "v", drawing.START, "boundaries")
        if truth is not None:
            _points(axes, truth[i, :-1], -0.03, "^", drawing.BLACK, "true-boundaries")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(-0.5, length - 0.5)
        axes.set_yticks([0, 0.5, 1])
        axes.set_ylabel("probability")
        axes.set_title(names[i], loc="left", fontsize="medium")
        drawing.bare(axes)
    all_axes[-1].set_xlabel("frame t (a boundary at t ends a segment with frame t)")
    all_axes[-1].xaxis.set_major_locator(drawing.integer_ticks(15))
    keys = [
        Line2D([], [], color=drawing.BLUE, linestyle="--", linewidth=1.4, label="prior"),
        Line2D([], [], color=drawing.ORANGE, linewidth=1.8, label="posterior"),
        Line2D([], [], color=drawing.START, linestyle="", marker="v", label="boundary drawn"),
    ]
    if truth is not None:
        keys.append(Line2D([], [], color=drawing.BLACK, linestyle="", marker="^", label="true boundary"))
    drawing.legend(figure, keys)
    return figure


def boundary_raster(
    boundaries: ArrayLike, true_boundaries: ArrayLike | None = None, *, title: str = "Segment starts"
) -> Figure:
    """Draw the frames that open a segment, sequences down and frames across, beside the true ones where known.

    Args:
        boundaries: `[B, T]`, the model's; values above one half count as 1.
        true_boundaries: `[B, T]`.
        title: title of the figure.
    """
    drawn = on_host(boundaries)
    require(drawn.ndim == 2 and drawn.size > 0, f"boundaries must have shape [B, T], found {drawn.shape}")
    model = drawing.starts(drawn, drawn.shape)
    truth = None if true_boundaries is None else drawing.starts(true_boundaries, drawn.shape, "true_boundaries")
    count, length = (min(size, drawing.FRAMES) for size in drawn.shape)
    part = drawing.extent(length, drawn.shape[1])
    if count < len(drawn):
        part = ", ".join(filter(None, [f"first {count} of {len(drawn)} sequences", part]))
    model, truth = model[:count, :length], None if truth is None else truth[:count, :length]
    cells = np.ones((count, length, 3))
    if truth is None:
        cells[model] = to_rgb(drawing.START)
        keys = [Patch(color=drawing.START, label="model")]
    else:
        cells[model & truth] = to_rgb(drawing.BLACK)
        cells[model & ~truth] = to_rgb(drawing.ORANGE)
        cells[~model & truth] = to_rgb(drawing.SKY)
        keys = [
            Patch(color=drawing.BLACK, label="model and truth"),
            Patch(color=drawing.ORANGE, label="model alone"),
            Patch(color=drawing.SKY, label="truth alone"),
        ]

    figure = Figure(figsize=(float(np.clip(0.22 * length, 6, 14)), float(np.clip(0.16 * count, 0.8, 8)) + 1.6))
    figure.set_layout_engine("constrained")
    figure.suptitle(drawing.caption(title, part))
    axes = figure.subplots()
    image = axes.imshow(cells, aspect="auto", interpolation="nearest")
    image.set_gid("segment-starts")
    if length <= _CELLS:
        axes.vlines(np.arange(1, length) - 0.5, -0.5, count - 0.5, color="0.93", linewidth=0.5)
    if count <= _CELLS:
        axes.hlines(np.arange(1, count) - 0.5, -0.5, length - 0.5, color="0.93", linewidth=0.5)
    axes.set(xlim=(-0.5, length - 0.5), ylim=(count - 0.5, -0.5), xlabel="frame t", ylabel="sequence")
    axes.xaxis.set_major_locator(drawing.integer_ticks(15))
    axes.yaxis.set_major_locator(drawing.integer_ticks(10))
    drawing.legend(figure, keys)
    return figure


def segment_lengths(
    lengths_model: ArrayLike, lengths_true: ArrayLike | None = None, *, title: str = "Segment lengths"
) -> Figure:
    """Draw the histogram of segment lengths, the model's over the true ones.

    Args:
        lengths_model: `[segments]`, in frames.
        lengths_true: `[segments]`, in frames; their number may differ.
        title: title of the figure.
    """
    groups = [("model", np.ravel(on_host(lengths_model)), drawing.START)]
    if lengths_true is not None:
        groups.append(("truth", np.ravel(on_host(lengths_true)), _TRUE))
    longest = max((int(values.max()) for _, values, _ in groups if values.size), default=1)
    width = -(-longest // 60)
    edges = np.arange(1, longest + width + 1, width) - 0.5

    figure = Figure(figsize=(7, 4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    for name, values, colour in groups:
        label = f"{name}: {values.size} segments"
        if values.size:
            label += f", mean {values.mean():.1f} frames"
        share = 100 * np.histogram(values, edges)[0] / max(values.size, 1)
        axes.stairs(share, edges, color=colour, fill=True, alpha=0.25)
        axes.stairs(share, edges, color=colour, linewidth=1.8, linestyle="-" if name == "model" else "--", label=label)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(drawing.integer_ticks(15))
    axes.set_xlabel("length (frames)" if width == 1 else f"length (frames, {width} a bar)")
    axes.set_ylabel("share of segments (%)")
    drawing.bare(axes)
    drawing.legend(figure, axes.get_legend_handles_labels()[0])
    return figure


def abstract_states(
    states: ArrayLike, groups: ArrayLike | None = None, *, title: str = "Abstract states, one point per segment"
) -> Figure:
    """Draw states in the plane of their two principal components.

    Args:
        states: `[points, Z]`, at least two points.
        groups: `[points]` labels, one colour each, or `[points, 3]` colours in [0, 1].
        title: title of the figure.
    """
    values = on_host(states)
    expected = "states must have shape [points, Z], 2 points or more"
    require(values.ndim == 2 and len(values) >= 2, f"{expected}, found {values.shape}")
    centred = values - values.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(values), 2))
    plane[:, : min(2, values.shape[1])] = (centred @ directions.T)[:, :2]
    shares = 100 * sizes**2 / max((sizes**2).sum(), np.finfo(float).tiny)

    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    marks = None if groups is None else on_host(groups)
    if marks is not None:
        expected = "groups must have shape [points] or [points, 3]"
        require(marks.shape in ((len(values),), (len(values), 3)), f"{expected}, found {marks.shape}")
    if marks is None or marks.ndim == 2:
        # An edge makes pale colours visible.
        colours = drawing.BLUE if marks is None else marks
        axes.scatter(plane[:, 0], plane[:, 1], c=colours, s=14, edgecolors="0.5", linewidths=0.3)
    else:
        for index, name in enumerate(np.unique(marks)):
            chosen = plane[marks == name]
            axes.scatter(chosen[:, 0], chosen[:, 1], color=f"C{index % 10}", s=14, label=str(name))
        drawing.legend(figure, axes.get_legend_handles_labels()[0])
    axes.set_xlabel(f"first component ({shares[0]:.0f} % of the variance)")
    if len(shares) > 1:
        axes.set_ylabel(f"second component ({shares[1]:.0f} %)")
    drawing.bare(axes)
    return figure


class Group(NamedTuple):
    """Quantities of `metrics.jsonl` that share a panel."""

    title: str
    unit: str
    least: tuple[float, ...]
    """Values that the axis must show."""
    names: dict[str, str]
    """The name of each quantity's curve, by its key in the log."""


TRAINING = (
    Group(
        "Loss and held-out bound",
        "nats per sequence",
        (),
        {
            "nats_per_sequence": "training loss",
            "emission": "its emission term",
            "held_out_nats_per_sequence": "held-out bound",
        },
    ),
    Group("Latent terms", "nats per sequence", (0.0,), {"z": "z, abstract", "s": "s, observation", "m": "m, boundary"}),
    Group(
        "Boundary rate",
        "boundaries per frame",
        (0.0,),
        {"boundary_rate": "training", "held_out_boundary_rate": "held-out"},
    ),
    Group("Boundary score", "F1", (0.0, 1.0), {"held_out_boundary_f1": "held-out"}),
    Group("Temperature of the relaxation", "temperature", (0.0,), {"temperature": "training"}),
)
"""The training curves of the figure and of the report."""

_CURVES = ((drawing.BLUE, "-"), (drawing.ORANGE, "--"), (drawing.VERMILION, "-"))
"""Colour and line of a group's first, second and third curve."""

_FEW = 50
"""Curves of at most so many points have a mark at every point: a line through one point would be invisible."""


def curves(
    records: Iterable[Mapping[str, Any]], group: Group, most: int | None = None
) -> dict[str, NDArray[np.float64]]:
    """The logged quantities of a group, by key, each over the steps: `[points, 2]`.

    Args:
        records: rows with `step` and any of the quantities.
        group: the group of quantities.
        most: largest number of points in a curve; more points are thinned out evenly, and the last one is kept. None
            keeps all points.
    """
    records, found = list(records), {}
    for key in group.names:
        pairs = [(row.get("step"), row.get(key)) for row in records]
        points = [pair for pair in pairs if all(isinstance(value, (int, float)) for value in pair)]
        stride = 1 if most is None else max(1, -(-len(points) // most))
        if points:
            found[key] = np.array(points[::-1][::stride][::-1], float)
    return found


def training_curves(records: Sequence[Mapping[str, Any]], *, title: str = "Training") -> Figure:
    """Draw the quantities in `metrics.jsonl` over the steps: one panel for each group of `TRAINING` that was logged.

    Args:
        records: rows with `step` and any of the groups' quantities; a row may lack any of them.
        title: title of the figure.
    """
    panels = [(group, found) for group in TRAINING if (found := curves(records, group))] or [(TRAINING[0], {})]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.4 * lines), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (group, found) in zip(grid.flat, panels, strict=False):
        _draw_curves(axes, group, found)
        axes.set_title(group.title, pad=24 if len(found) > 1 else 6)
        axes.set_xlabel("step")
        axes.set_ylabel(group.unit)
        drawing.bare(axes)
        if not found:
            axes.text(0.5, 0.5, "nothing logged yet", transform=axes.transAxes, ha="center", color="0.4")
        elif len(found) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(found), columnspacing=1.2, frameon=False)
    return figure


def training_chart(group: Group, found: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Draw a group's curves, `found` by :func:`curves`, for a page that shows title, unit and names beside them."""
    # The curves are already thinned out, and a page names its own fonts.
    with matplotlib.rc_context({"path.simplify": False, "font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(4.7, 2.6), layout="constrained")
        axes = figure.subplots()
        _draw_curves(axes, group, found)
        axes.grid(axis="y", clip_on=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return figure


def _draw_curves(axes: Axes, group: Group, found: Mapping[str, NDArray[np.float64]]) -> None:
    """Draw the curves, each with its key as gid."""
    for key, (colour, line) in zip(group.names, _CURVES, strict=False):
        if key in found:
            axes.plot(
                *found[key].T,
                line,
                color=colour,
                label=group.names[key],
                linewidth=1.6,
                marker="o" if len(found[key]) <= _FEW else "",
                markersize=4,
                clip_on=False,
                gid=key,
            )
    axes.update_datalim([(0, value) for value in group.least], updatex=False)
    axes.autoscale_view()
    axes.xaxis.set_major_locator(drawing.integer_ticks(6))


def _points(axes: Axes, flags: drawing.Flags, height: float, marker: str, colour: str, gid: str) -> None:
    frames = np.flatnonzero(flags)
    axes.plot(
        frames,
        np.full(len(frames), height),
        linestyle="",
        marker=marker,
        color=colour,
        markersize=6,
        clip_on=False,
        gid=gid,
    )
