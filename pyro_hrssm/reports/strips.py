"""Film strips of sequences, as figures, as animations and as plain colours: arrays in, pictures out.

No function here draws into its inputs, sees a model or touches pyplot's state: each returns a new
:class:`matplotlib.figure.Figure`, which a notebook shows and :func:`pyro_hrssm.reports.drawing.save` writes.

Axes of the arrays (NumPy's or torch's): `B` sequences, `T` frames, `X…` the shape of one frame, which decides how
frames are drawn:

- `(pixels,)`, 8 or more: a sequence is the image that its rows form, time downwards;
- `(features,)`, fewer than 8: a heat map, time to the right;
- `(height, width)` or `(height, width, channels)`: a film strip, time to the right; where channels are neither 1 nor 3,
  they stand side by side in grey.

Of long sequences and large frames, as much is drawn as a screen shows; the figure's title says how much.

Boundaries follow the package's convention: `m_t = 1` means that a segment ends with frame `t`, so frame `t + 1` opens a
new one; the first frame always opens a segment, and the last frame's boundary has no effect. Every segment is drawn as
a bracket beside the frames, with a tick at the segment's first frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path as PolyLine
from matplotlib.transforms import Affine2D, Affine2DBase, ScaledTranslation, Transform, blended_transform_factory
from numpy.typing import ArrayLike, NDArray

from pyro_hrssm.errors import require
from pyro_hrssm.host import on_host
from pyro_hrssm.reports import drawing

_GIVEN, _MISSING = drawing.GREEN, "#BBD3E8"

_Floats = NDArray[np.floating[Any]]
Kind = Literal["rows", "vectors", "images"]

_SHORT = 8
"""Frames with fewer entries are drawn as columns of a heat map; as rows of an image they would be a sliver."""
_ACROSS = 8
"""Number of sequences side by side before the next line."""
_STRIP = 24
"""Number of frames of a film strip before it continues below."""
_LINES = 32
"""The most lines of film strips in one figure, unless there are more sequences."""
_PAD = 9 / 72
"""Margin around a panel in inches, which holds its brackets."""


def reconstructions(
    frames: ArrayLike,
    means: ArrayLike,
    boundaries: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    limit: int = 8,
    value_range: tuple[float, float] | None = None,
    titles: Sequence[str] | None = None,
    title: str = "Reconstructions",
) -> Figure:
    """Draw sequences above their reconstructions, with the segments that the model found.

    Args:
        frames: `[B, T, X…]`, the originals.
        means: `[B, T, X…]`, the emission's means.
        boundaries: `[B, T]`, the model's; values above one half count as 1.
        mask: `[B, T]`, 0 where a frame is missing. Missing frames inside a sequence, and NaN, are coloured in the
            original and drawn in the reconstruction; nothing is drawn past a sequence's last frame.
        limit: largest number of sequences to draw, from the first on.
        value_range: values drawn as the darkest and the brightest; `None` for 0 and 1 (255 for bytes) if the originals
            lie between these, else for the originals' smallest and largest value. Values outside are clipped.
        titles: one title per sequence.
        title: title of the figure.
    """
    originals, rebuilt = on_host(frames), on_host(means)
    _check_frames(originals, "frames")
    drawing.check_limit(limit)
    require(
        rebuilt.shape == originals.shape, f"means must have the frames' shape {originals.shape}, found {rebuilt.shape}"
    )
    (originals, note), (rebuilt, _) = _visible(originals), _visible(rebuilt)
    observed = drawing.flags(mask, originals.shape[:2], "mask")
    opened = drawing.starts(boundaries, originals.shape[:2])
    count, part = _drawn(originals.shape, limit, layers=2)
    originals, rebuilt = (drawing.thinned(values[:limit, :count]) for values in (originals, rebuilt))
    observed, opened = observed[:limit, :count], opened[:limit, :count]
    lengths = [int(np.flatnonzero(row)[-1]) + 1 if row.any() else 0 for row in observed]
    scale = scale_of(originals[observed], value_range, originals.dtype)

    panels = _panels(originals.shape, ("original", "reconstruction"), titles, drawing.caption(title, part))
    for i, length in enumerate(lengths):
        for values, shown, layer in zip(
            (originals, rebuilt), (observed[i], np.ones_like(observed[i])), panels.sequences[i], strict=True
        ):
            for panel in layer:
                _draw(panel, values[i, :length], shown[:length], scale)
                _mark_segments(panel, opened[i, :length])
    missing = any(
        not observed[i, :length].all() or np.isnan(originals[i, :length]).any() for i, length in enumerate(lengths)
    )
    _finish(panels, scale, [_bracket_key(), *([_missing_key()] if missing else []), *_note_key(note)])
    return panels.figure


def film_strip(
    frames: ArrayLike,
    boundaries: ArrayLike | None = None,
    context: int | Sequence[int] | None = None,
    titles: Sequence[str] | None = None,
    *,
    limit: int = 8,
    value_range: tuple[float, float] | None = None,
    title: str = "Samples",
) -> Figure:
    """Draw sequences (samples, predictions), with their segments and a mark along the given frames.

    Args:
        frames: `[B, T, X…]`.
        boundaries: `[B, T]`, values above one half count as 1; `None` draws no segments.
        context: number of leading frames that were given, one number for all sequences or one per sequence.
        titles: one title per sequence.
        limit: largest number of sequences to draw, from the first on.
        value_range: as in :func:`reconstructions`.
        title: title of the figure.
    """
    values = on_host(frames)
    _check_frames(values, "frames")
    values, note = _visible(values)
    drawing.check_limit(limit)
    opened = None if boundaries is None else drawing.starts(boundaries, values.shape[:2])
    given = np.asarray(0 if context is None else context)
    require(given.shape in ((), values.shape[:1]), f"context must be one number or {len(values)}, found {context}")
    given = np.broadcast_to(given, values.shape[:1])
    require(bool(((given >= 0) & (given <= values.shape[1])).all()), f"context must lie in the frames, found {context}")
    count, part = _drawn(values.shape, limit, layers=1)
    values = drawing.thinned(values[:limit, :count])
    observed = np.ones(values.shape[:2], bool)
    scale = scale_of(values, value_range, values.dtype)

    panels = _panels(values.shape, ("",), titles, drawing.caption(title, part))
    for i, (layer,) in enumerate(panels.sequences):
        for panel in layer:
            _draw(panel, values[i], observed[i], scale)
            if opened is not None:
                _mark_segments(panel, opened[i, :count])
            _mark_given(panel, int(given[i]))
    keys = [] if opened is None else [_bracket_key()]
    if given[:limit].any():
        keys.append(Line2D([], [], color=_GIVEN, linewidth=3, label="frames given"))
    _finish(panels, scale, [*keys, *_note_key(note)])
    return panels.figure


class Pixels(NamedTuple):
    """Sequences and their reconstructions as colours, red, green and blue from 0 to 255.

    Images of several channels without colours are wider than theirs, since the channels stand side by side.
    """

    kind: Literal["rows", "vectors", "images"]
    """The way to draw the frames."""
    originals: NDArray[np.uint8]
    """`[B, T, X, 3]`, or `[B, T, height, width, 3]` for images; missing frames have their own colour."""
    rebuilt: NDArray[np.uint8]
    """The reconstructions, in the same shape and on the originals' scale."""


def pixels(frames: ArrayLike, means: ArrayLike, mask: ArrayLike | None = None) -> Pixels:
    """The colours of :func:`reconstructions`, for pictures drawn without Matplotlib; same arguments."""
    originals, rebuilt = on_host(frames), on_host(means)
    _check_frames(originals, "frames")
    require(
        rebuilt.shape == originals.shape, f"means must have the frames' shape {originals.shape}, found {rebuilt.shape}"
    )
    (originals, _), (rebuilt, _) = _visible(originals), _visible(rebuilt)
    observed = drawing.flags(mask, originals.shape[:2], "mask")
    kind = _kind(originals.shape[2:])
    scale = scale_of(originals[observed], None, originals.dtype)

    def coloured(values: NDArray[Any], shown: drawing.Flags) -> NDArray[np.uint8]:
        drawn = [colours_of(row, seen, scale, kind) for row, seen in zip(values, shown, strict=True)]
        return np.rint(np.stack(drawn) * 255).astype(np.uint8)

    return Pixels(kind, coloured(originals, observed), coloured(rebuilt, np.ones_like(observed)))


class Scale(NamedTuple):
    """Values drawn as the darkest and the brightest."""

    low: float
    high: float


class _Panel(NamedTuple):
    """Axes that show the frames `first … stop - 1` of one sequence, frame `t` centred at `t`."""

    axes: Axes
    kind: Kind
    first: int
    stop: int


class _Panels(NamedTuple):
    figure: Figure
    kind: Kind
    sequences: list[list[list[_Panel]]]
    """Per sequence, per layer (original, reconstruction): one panel, or several for a long film strip."""


def _check_frames(frames: NDArray[Any], name: str) -> None:
    require(
        3 <= frames.ndim <= 5 and frames.size > 0,
        f"{name} must have shape [B, T, X…], X… 1 to 3 sizes, found {frames.shape}",
    )


def _visible(frames: NDArray[Any]) -> tuple[NDArray[Any], str | None]:
    """Frames `[B, T, X…]`, images by :func:`drawing.visible`."""
    return drawing.visible(frames) if frames.ndim == 5 else (frames, None)


def _kind(frame_shape: tuple[int, ...]) -> Kind:
    if len(frame_shape) > 1:
        return "images"
    return "rows" if frame_shape[0] >= _SHORT else "vectors"


def _drawn(shape: tuple[int, ...], limit: int, layers: int) -> tuple[int, str]:
    """The number of frames of sequences [B, T, X…] that are drawn, and in words what is drawn of long or large ones."""
    most = drawing.FRAMES
    if _kind(shape[2:]) == "images":
        most = _STRIP * max(1, _LINES // (min(shape[0], limit) * layers))
    count = min(shape[1], most)
    return count, drawing.extent(count, shape[1], drawing.stride(shape[2:]))


def scale_of(values: NDArray[Any], value_range: tuple[float, float] | None, dtype: np.dtype[Any]) -> Scale:
    """The darkest and the brightest value for values of this dtype; `value_range` as in :func:`reconstructions`."""
    if value_range is not None:
        require(value_range[0] < value_range[1], f"value_range must rise, found {value_range}")
        return Scale(*value_range)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        return Scale(0.0, 1.0)
    if dtype == np.uint8:
        return Scale(0.0, 255.0)
    return Scale(low, high if high > low else low + 1.0)


def _colour_map(kind: Kind) -> Colormap:
    return matplotlib.colormaps["viridis" if kind == "vectors" else "gray"].with_extremes(bad=_MISSING)


def colours_of(values: NDArray[Any], shown: drawing.Flags, scale: Scale, kind: Kind) -> _Floats:
    """New RGB values `[T, X…, 3]` of a sequence `[T, X…]`; frames not shown, and NaN, get the missing colour."""
    unit = np.clip((values.astype(float) - scale.low) / (scale.high - scale.low), 0, 1)
    if unit.ndim == 4 and unit.shape[-1] == 3:
        colours = np.where(np.isnan(unit), np.array(to_rgb(_MISSING)), unit)
    else:
        grey = unit[..., 0] if unit.ndim == 4 else unit
        colours = np.asarray(_colour_map(kind)(np.ma.masked_invalid(grey)))[..., :3]
    colours[~shown] = to_rgb(_MISSING)
    return colours


def _panels(shape: tuple[int, ...], layers: Sequence[str], titles: Sequence[str] | None, title: str) -> _Panels:
    """Empty panels for sequences of `shape = (B, T, X…)`."""
    count, length, *frame_shape = shape
    kind = _kind(tuple(frame_shape))
    names = drawing.titles(titles, count)
    across = min(count, _ACROSS) if kind == "rows" else 1
    parts = -(-length // _STRIP) if kind == "images" else 1
    frames = -(-length // parts)
    if kind == "rows":
        width, height = 1.35, float(np.clip(1.35 * length / frame_shape[0], 0.7, 4.0))
    elif kind == "images":
        width = float(np.clip(0.6 * frames, 3.0, 14.0))
        height = width / frames * frame_shape[0] / frame_shape[1]
    else:
        width, height = 8.0, 0.35 + 0.16 * frame_shape[0]

    rows = -(-count // across) * parts * len(layers)
    # Every row of panels with titles, and every further row with ticks, needs additional height.
    labelled = rows if kind == "vectors" else rows // (parts * len(layers))
    labelled += rows // len(layers) if parts > 1 else 0
    figure = Figure(
        figsize=(max(5.0, 1.3 + across * (width + 2 * _PAD)), 1.3 + rows * (height + 2 * _PAD) + labelled * 0.25),
        layout=ConstrainedLayoutEngine(w_pad=_PAD, h_pad=_PAD, wspace=0, hspace=0),
    )
    figure.suptitle(title)
    grid = figure.subplots(rows, across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    sequences = []
    for i, name in enumerate(names[:count]):
        line, column = divmod(i, across)
        block = grid[line * parts * len(layers) : (line + 1) * parts * len(layers), column]
        own: list[list[_Panel]] = [[] for _ in layers]
        for k, axes in enumerate(block):
            part, layer = divmod(k, len(layers))
            panel = _Panel(axes, kind, part * frames, (part + 1) * frames)
            own[layer].append(panel)
            _label_layer(panel, layers[layer], frame_shape[0], first=column == 0)
            last = k == len(block) - 1 and i + across >= count
            ticked = last or (parts > 1 and layer == len(layers) - 1)
            _label_time(panel, length, ticked=column == 0 if kind == "rows" else ticked, last=last)
            if kind == "vectors":
                axes.set_title(f"{name}, {layers[layer]}".rstrip(", "), loc="left", fontsize="medium", pad=11)
        if kind == "rows":
            block[0].set_title(name, fontsize="medium", pad=4)
        elif kind == "images":
            block[0].set_title(name, loc="left", fontsize="medium", pad=11)
        sequences.append(own)
    return _Panels(figure, kind, sequences)


def _label_time(panel: _Panel, length: int, *, ticked: bool, last: bool) -> None:
    """Set limits and ticks along the frames; only the outer panels show numbers."""
    axes, limits = panel.axes, (panel.first - 0.5, panel.stop - 0.5)
    if panel.kind == "rows":
        axes.set_ylim(*limits[::-1])
        axes.yaxis.set_major_locator(drawing.integer_ticks(5))
        axes.tick_params(axis="y", length=0, pad=9, labelleft=ticked, labelsize="small")
        return
    axes.set_xlim(*limits)
    if panel.kind == "images":
        axes.set_xticks(range(panel.first, min(panel.stop, length)) if ticked else [])
    else:
        axes.xaxis.set_major_locator(drawing.integer_ticks(20))
    axes.tick_params(axis="x", length=0, pad=7, labelbottom=ticked, labelsize="small")
    if last:
        axes.set_xlabel("frame t")


def _label_layer(panel: _Panel, layer: str, size: int, *, first: bool) -> None:
    """Set limits and labels across the frames, which have `size` entries."""
    axes = panel.axes
    axes.set_axis_on()
    axes.spines[:].set_visible(False)
    if panel.kind == "rows":
        axes.set(xlim=(-0.5, size - 0.5), xticks=[])
        if first:
            axes.set_ylabel(f"{layer}\nframe t".strip())
    elif panel.kind == "vectors":
        axes.set(ylim=(size - 0.5, -0.5), yticks=range(size))
        axes.tick_params(axis="y", length=0, labelsize="small")
        axes.set_ylabel("feature")
    else:
        axes.set(yticks=[])
        axes.set_ylabel(layer, rotation=0, ha="right", va="center")


def _draw(panel: _Panel, values: NDArray[Any], shown: drawing.Flags, scale: Scale) -> None:
    """Draw the panel's part of one sequence `[T, X…]`, which may end earlier."""
    axes, first, stop = panel.axes, panel.first, min(panel.stop, len(values))
    if stop <= first:
        return
    colours = colours_of(values[first:stop], shown[first:stop], scale, panel.kind)
    if panel.kind == "rows":
        size = colours.shape[1]
        aspect: Literal["equal", "auto"] = "equal" if 1 / 3 <= panel.stop / size <= 3 else "auto"
        axes.imshow(colours, extent=(-0.5, size - 0.5, stop - 0.5, first - 0.5), aspect=aspect, interpolation="nearest")
    elif panel.kind == "vectors":
        extent = (first - 0.5, stop - 0.5, colours.shape[1] - 0.5, -0.5)
        axes.imshow(colours.transpose(1, 0, 2), extent=extent, aspect="auto", interpolation="nearest")
    else:
        _, height, width, _ = colours.shape
        pad = max(1, width // 24)
        film = np.pad(colours, ((0, 0), (0, 0), (pad, pad), (0, 0)), constant_values=1.0)
        strip = film.transpose(1, 0, 2, 3).reshape(height, -1, 3)
        top = height / (width + 2 * pad)
        axes.imshow(strip, extent=(first - 0.5, stop - 0.5, 0, top), aspect="equal", interpolation="nearest")


def _beside(axes: Axes, side: Literal["left", "right", "top", "bottom"]) -> Transform:
    """Coordinates of a margin: frames along the time axis, and points of distance from the panel's side across it."""
    corner = {"left": (0, 0), "right": (1, 0), "top": (0, 1), "bottom": (0, 0)}[side]
    sign = -1 if side in ("left", "bottom") else 1
    assert isinstance(axes.figure, Figure)
    points = Affine2D().scale(sign / 72) + axes.figure.dpi_scale_trans
    points = points + ScaledTranslation(*corner, cast(Affine2DBase, axes.transAxes))
    if side in ("left", "right"):
        return blended_transform_factory(points, axes.transData)
    return blended_transform_factory(axes.transData, points)


def _mark_segments(panel: _Panel, opened: drawing.Flags) -> None:
    """Draw one bracket per segment in the margin, with a tick at the frame that opens the segment."""
    starts: list[int] = np.flatnonzero(opened).tolist()
    brackets = []
    for start, stop in pairwise([*starts, len(opened)]):
        left, right = max(start, panel.first) - 0.4, min(stop, panel.stop) - 0.7
        if left < right:
            # A segment that continues from the strip above has no tick.
            tick = [(left, 2.0)] if start >= panel.first else []
            brackets.append([*tick, (left, 7.0), (right, 7.0)])
    side: Literal["left", "top"] = "left" if panel.kind == "rows" else "top"
    _margin_lines(panel.axes, brackets, side, drawing.START, 1.5, "segment-starts")


def _mark_given(panel: _Panel, context: int) -> None:
    """Draw a bar in the margin along the given frames."""
    side: Literal["right", "bottom"] = "right" if panel.kind == "rows" else "bottom"
    stop = min(context, panel.stop)
    if stop > panel.first:
        _margin_lines(panel.axes, [[(panel.first - 0.5, 4.0), (stop - 0.5, 4.0)]], side, _GIVEN, 3.0, "context")


def _margin_lines(
    axes: Axes,
    lines: list[list[tuple[float, float]]],
    side: Literal["left", "right", "top", "bottom"],
    colour: str,
    width: float,
    gid: str,
) -> None:
    """Draw polylines of (frame, points from the panel) in a margin."""
    if side in ("left", "right"):
        lines = [[(away, frame) for frame, away in line] for line in lines]
    marks = LineCollection(
        lines,
        colors=colour,
        linewidths=width,
        capstyle="butt",
        transform=_beside(axes, side),
        clip_on=False,
        gid=gid,
    )
    axes.add_collection(marks, autolim=False)


def _bracket_key() -> Line2D:
    bracket = PolyLine([(-1, -0.6), (-1, 0), (1, 0)])
    return Line2D(
        [],
        [],
        linestyle="",
        marker=bracket,
        markersize=20,
        markerfacecolor="none",
        markeredgecolor=drawing.START,
        markeredgewidth=1.5,
        label="segment, its tick at the first frame",
    )


def _note_key(note: str | None) -> list[Line2D]:
    return [] if note is None else [Line2D([], [], linestyle="", label=note)]


def _missing_key() -> Patch:
    return Patch(color=_MISSING, label="missing")


def _finish(panels: _Panels, scale: Scale, keys: Iterable[Line2D | Patch]) -> None:
    """Add the figure's legend and, where the colours need an explanation, its colour bar."""
    drawing.legend(panels.figure, list(keys))
    if panels.kind == "vectors" or scale != Scale(0.0, 1.0):
        mappable = ScalarMappable(Normalize(*scale), _colour_map(panels.kind))
        axes = [panel.axes for sequence in panels.sequences for layer in sequence for panel in layer]
        aspect = max(2.0, (panels.figure.get_figheight() - 1.3) / 0.2)  # makes the bar about 0.2 inches wide
        panels.figure.colorbar(mappable, ax=axes, label="value", fraction=0.05, pad=0.02, aspect=aspect)
