"""Shared parts of all pictures: palette, arrays from NumPy or torch, checks, legends, ticks, files and SVG."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from pyro_hrssm.errors import require
from pyro_hrssm.files import write_bytes
from pyro_hrssm.host import on_host

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION = "#0072B2", "#D55E00"
START = VERMILION
"""Colour of segment starts, the same in every picture."""

FRAMES = 600
"""The most frames along a time axis of a picture: a screen has about two pixels for each."""
IMAGES = 240
"""The most image frames of a sequence that an animation or a page shows."""
PIXELS = 256
"""The most pixels across a frame: of larger frames every second pixel is drawn, or every third, and so on."""

Flags = NDArray[np.bool_]


def visible(images: NDArray[Any]) -> tuple[NDArray[Any], str | None]:
    """Images `[…, height, width, channels]` in a form that has colours, and in words what was done; None if nothing.

    Images of 1 or 3 channels are as they were. Other channels up to 8 stand side by side in grey,
    `[…, height, channels * width]`; of more than 8 the mean is left, `[…, height, width]`.
    """
    channels = images.shape[-1]
    if channels in (1, 3):
        return images, None
    if channels > _BESIDE:
        return images.mean(-1), f"mean of {channels} channels"
    beside = np.moveaxis(images, -1, -2)
    return beside.reshape(*beside.shape[:-2], -1), f"{channels} channels side by side"


_BESIDE = 8
"""Most channels of an image that are drawn side by side."""


def flags(values: ArrayLike | None, shape: tuple[int, ...], name: str) -> Flags:
    """Where values are above one half, bool `[B, T]`; True everywhere if `values` is None."""
    if values is None:
        return np.ones(shape, bool)
    found = on_host(values)
    require(found.shape == shape, f"{name} must have shape [B, T] = {shape}, found {found.shape}")
    return found > 0.5


def starts(boundaries: ArrayLike, shape: tuple[int, ...], name: str = "boundaries") -> Flags:
    """The frames that open a segment, bool `[B, T]`: the first frame, and every frame after the end of a segment."""
    ends = flags(boundaries, shape, name)
    return np.concatenate([np.ones_like(ends[:, :1]), ends[:, :-1]], axis=1)


def stride(frame_shape: Sequence[int]) -> int:
    """The step from one drawn pixel of a frame to the next: 1 for frames that fit a screen."""
    return max(1, -(-max(frame_shape[:2]) // PIXELS))


def thinned(frames: NDArray[Any]) -> NDArray[Any]:
    """Frames [B, T, X…] with every `stride`-th pixel in height and width, or every `stride`-th entry."""
    step = stride(frames.shape[2:])
    return frames[:, :, ::step, ::step] if frames.ndim > 3 else frames[:, :, ::step]


def extent(shown: int, total: int, step: int = 1) -> str:
    """The part of long sequences and large frames that is drawn, in words; empty where that is all."""
    said = [f"first {shown} of {total} frames"] if shown < total else []
    said += [f"one pixel in {step}, down and across"] if step > 1 else []
    return ", ".join(said)


def caption(title: str, part: str) -> str:
    """A figure's title, and below it the part that is drawn."""
    return f"{title}\n{part}" if part else title


def check_limit(limit: int) -> None:
    """Raise an error for a limit that draws no sequence."""
    require(limit >= 1, f"limit must be at least 1, found {limit}")


def titles(given: Sequence[str] | None, count: int) -> Sequence[str]:
    """The given titles of `count` sequences, or their numbers where none are given."""
    if given is None:
        return [f"sequence {i}" for i in range(count)]
    require(len(given) >= count, f"titles must hold one per sequence, {count} of them, found {len(given)}")
    return given


def legend(figure: Figure, keys: Sequence[Any]) -> None:
    """Add a legend of these keys below the figure, if there are any."""
    if keys:
        figure.legend(handles=list(keys), loc="outside lower center", ncols=len(keys), frameon=False)


def integer_ticks(most: int) -> MaxNLocator:
    """Ticks at whole numbers only, even where only one tick fits."""
    return MaxNLocator(most, integer=True, min_n_ticks=1)


def bare(axes: Axes) -> None:
    """Keep only the left and the lower spine."""
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure, dpi: int = 150) -> bytes:
    """A figure painted as the bytes of a PNG file."""
    painted = io.BytesIO()
    figure.savefig(painted, format="png", dpi=dpi)
    return painted.getvalue()


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write a figure as PNG, whole or not at all; raises :class:`InputError` where that fails."""
    write_bytes(Path(path), png(figure, dpi))


def svg(figure: Figure, name: str, label: str, colours: Mapping[str, str]) -> str:
    """Draw a figure as an SVG element for an HTML page, without references to anything outside the element.

    Args:
        figure: the figure; its artists should not be clipped, because a clipped artist refers to its clip by a URL.
        name: the start of every id, so that two figures of one page share no id.
        label: a description of the figure in words.
        colours: the page's colours, as CSS writes them, by the figure's own colours (`#rrggbb`, small letters).
    """
    written = io.BytesIO()
    # Without a salt, ids would be random.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(written.getvalue())
    for parent in root.iter():
        # HTML infers the namespaces from the element `svg`, and a style sheet would apply to the whole page.
        parent.tag = parent.tag.rpartition("}")[2]
        for sheet in parent.findall("{*}style"):
            parent.remove(sheet)
        if "id" in parent.attrib:
            parent.set("id", f"{name}-{parent.attrib['id']}")
        target = parent.attrib.pop("{http://www.w3.org/1999/xlink}href", None)
        if target is not None:
            parent.set("xlink:href", f"#{name}-{target.removeprefix('#')}")
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    text = ElementTree.tostring(root, encoding="unicode")
    for own, colour in colours.items():
        text = text.replace(own, colour)
    return text
