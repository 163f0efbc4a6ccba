"""The figures of a run: a model's predictions and segments of given sequences, drawn by `strips` and `charts`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_hrssm.checkpoint import METRICS
from pyro_hrssm.data import Sequences
from pyro_hrssm.data.batches import Batch
from pyro_hrssm.files import read_lines, why, write_bytes
from pyro_hrssm.inference.evaluation import random_seed
from pyro_hrssm.inference.prediction import Prediction, reconstruct, sample, segment
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.given import followed
from pyro_hrssm.model.masks import seen_entries, seen_frames
from pyro_hrssm.reports import animation, charts, drawing, strips

SHOWN = 40
"""Number of sequences that figures summarise."""

STRIPS = 8
"""Number of sequences drawn frame by frame."""

STATES = 64
"""Number of entries of a state that a page shows."""


class Shown(NamedTuple):
    """One sequence and the model's reconstruction of it; T frames, from the context's end to the sequence's end.

    Of long sequences, T is as many as a screen shows, and of large frames the pictures leave out pixels.
    """

    number: int
    length: int
    """Number of frames of the sequence; fewer are shown of long ones."""
    kind: str
    originals: NDArray[np.uint8]
    """[T, X…, 3]"""
    rebuilt: NDArray[np.uint8]
    """[T, X…, 3]"""
    ends: NDArray[np.bool_] | None
    """[T] True where a segment of the draw ends with the frame; None for a flat model."""
    truth: NDArray[np.bool_] | None
    """[T] True where a true segment ends with the frame; None if these are unknown."""
    missing: bool
    """Whether a frame or an entry of these is missing."""
    numbers: dict[str, Any]
    """The numbers that a page's script shows, ready for JSON."""


Makers: TypeAlias = dict[str, Callable[[], Figure]]
"""Figures by name, each made when it is called."""


def run_figures(
    model: StateSpaceModel, frames: Tensor, mask: Tensor | None = None, truth: Tensor | None = None
) -> dict[str, Figure]:
    """Figures by name: reconstructions with segments, prior samples and, for a hierarchical model, its boundaries.

    Arguments:
        frames: [B, T, X…]; the first few sequences are shown.
        mask: [B, T] bool, or [B, T, X…] of entries, or None.
        truth: [B, T] bool true boundaries, or None.
    """
    return {name: make() for name, make in _run_makers(model, frames, mask, truth).items()}


def _run_makers(model: StateSpaceModel, frames: Tensor, mask: Tensor | None, truth: Tensor | None) -> Makers:
    seen = _reconstructed(model, frames, mask)
    segments = _segment_makers(model, frames, mask, truth, seen) if model.has_segments else {}
    frames, mask = frames[:STRIPS], None if mask is None else mask[:STRIPS]
    start, horizon = model.config.context, frames.shape[1] - model.config.context
    originals, shown = _observed(frames[:, start:], None if mask is None else mask[:, start:])
    context = (frames[:, :start], None if mask is None else mask[:, :start]) if start > 0 else (None, None)
    drawn = sample(model, len(frames), horizon, context[0], mask=context[1])
    return {
        "reconstructions": lambda: strips.reconstructions(
            originals, seen.frames[0].cpu(), seen.boundaries[0].cpu(), shown
        ),
        "samples": lambda: strips.film_strip(
            drawn.frames[0].cpu(), drawn.boundaries[0].cpu(), title="Samples from the prior"
        ),
        **segments,
    }


def _reconstructed(model: StateSpaceModel, frames: Tensor, mask: Tensor | None) -> Prediction:
    """The draw of the first sequences' states that every figure shows."""
    return reconstruct(model, frames[:STRIPS], None if mask is None else mask[:STRIPS])


def _observed(frames: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Frames [B, T, X…] for a picture, NaN where a mask of entries misses one, and the flags [B, T] of frames."""
    if mask is None:
        return frames.cpu(), None
    if mask.dim() > 2:
        frames = frames.masked_fill(~seen_entries(mask, frames.dim() - 2), torch.nan)
    return frames.cpu(), seen_frames(mask).cpu()


def segment_figures(
    model: StateSpaceModel, frames: Tensor, mask: Tensor | None = None, truth: Tensor | None = None
) -> dict[str, Figure]:
    """Boundary probabilities, a raster of segment starts and segment lengths; arguments as in :func:`run_figures`."""
    makers = _segment_makers(model, frames, mask, truth, _reconstructed(model, frames, mask))
    return {name: make() for name, make in makers.items()}


def _segment_makers(
    model: StateSpaceModel, frames: Tensor, mask: Tensor | None, truth: Tensor | None, seen: Prediction
) -> Makers:
    start = model.config.context
    known = None if truth is None else truth[:, start:].cpu()
    found = segment(model, frames, mask).boundaries.cpu()
    acts = followed(start, frames, mask).cpu()
    lengths_true = None if known is None else _lengths(known & acts, acts)
    return {
        "boundaries": lambda: charts.boundary_probabilities(
            seen.prior[0].cpu(),
            seen.posterior[0].cpu(),
            seen.boundaries[0].cpu(),
            None if known is None else known[:STRIPS],
        ),
        "segments": lambda: charts.boundary_raster(found, known),
        "segment_lengths": lambda: charts.segment_lengths(_lengths(found & acts, acts), lengths_true),
    }


def paint(model: StateSpaceModel, shown: Batch, run: Path, warn: Callable[[str], None]) -> dict[str, bytes]:
    """Paint the figures of a run under way, and its training curves, into its folder; returns the PNG files by name.

    Arguments:
        shown: the sequences of :func:`run_figures`.
        warn: called with one line for every figure that fails, which stops neither the others nor the run.
    """
    try:
        makers = _run_makers(model, *shown)
        rows = read_lines(run / METRICS)
    except Exception as error:
        warn(f"no figure was drawn: {why(error)}")
        return {}
    if rows:
        makers["training"] = lambda: charts.training_curves(rows)
    painted = {}
    for name, make in makers.items():
        try:
            picture = drawing.png(make())
            write_bytes(run / "figures" / f"{name}.png", picture)
        except Exception as error:
            warn(f"figure {name} was not drawn: {why(error)}")
        else:
            painted[name] = picture
    return painted


def _lengths(boundaries: Tensor, acts: Tensor) -> NDArray[np.int64]:
    """Lengths in frames of all segments of all sequences, the last ones included, from [B, T] flags."""
    lengths = []
    for row, last in zip(boundaries, acts.sum(1).tolist(), strict=True):
        ends = torch.cat([row.nonzero().squeeze(1), torch.tensor([last], device=row.device)])
        lengths.append(torch.diff(ends, prepend=ends.new_tensor([-1])))
    return torch.cat(lengths).numpy()


def prediction_figures(prediction: Prediction) -> dict[str, Figure]:
    """Film strips with segment starts and given frames: one sample per sequence, and samples of the first sequence."""
    frames, boundaries = prediction.frames.cpu(), prediction.boundaries.cpu()
    given = prediction.given.tolist()
    count = min(STRIPS, len(frames))
    samples = [f"sample {index}" for index in range(count)]
    return {
        "sequences": strips.film_strip(frames[0], boundaries[0], given, title="One sample per sequence"),
        "samples": strips.film_strip(
            frames[:count, 0], boundaries[:count, 0], given[:1] * count, samples, title="Samples of the first sequence"
        ),
    }


def animate(frames: Tensor, path: Path) -> str:
    """Write a GIF: image frames [B, T, H, W(, C)] one after the other, rows and vectors [B, T, X] line by line.

    Returns the part of the sequences that it shows, in words; empty where that is all of their frames.
    """
    images, length = frames.dim() >= 4, frames.shape[1]
    most = min(length, drawing.IMAGES if images else drawing.FRAMES)
    shown = drawing.thinned(frames[:STRIPS, :most].cpu().numpy())
    if images:
        animation.animate(list(drawing.visible(shown)[0] if shown.ndim == 5 else shown), path)
    else:
        animation.unroll(shown, path)
    return drawing.extent(most, length, drawing.stride(frames.shape[2:]))


def first_sequences(model: StateSpaceModel, sequences: Sequences, num: int, seed: int) -> list[Shown]:
    """The first `num` sequences, with one draw of each sequence's states; `seed` is the seed of the draws."""
    device, start = model.device, model.config.context
    frames, mask, truth = sequences.batch(range(min(num, len(sequences)))).to(device)
    with random_seed(device, seed):
        seen = reconstruct(model, frames, mask)
    most = drawing.IMAGES if len(sequences.frame_shape) > 1 else drawing.FRAMES
    part = slice(start, start + most)
    originals, flags = _observed(frames[:, part], None if mask is None else mask[:, part])
    modelled, rebuilt = originals.numpy(), seen.frames[0, :, :most].cpu().numpy()
    observed = torch.ones(modelled.shape[:2], dtype=torch.bool) if flags is None else flags
    drawn = strips.pixels(drawing.thinned(modelled), drawing.thinned(rebuilt), observed)
    units = [sequences.scaling.invert(values) for values in (modelled, rebuilt)]
    states = {
        name: values[0, ..., :STATES].cpu().numpy() for name, values in (("z", seen.abstract), ("s", seen.observation))
    }
    chances = {"posterior": seen.posterior[0].cpu().numpy(), "prior": seen.prior[0].cpu().numpy()}
    ends = seen.boundaries[0].cpu().numpy() if model.has_segments else None
    true_ends = None if truth is None else truth[:, start:].cpu().numpy()
    result = []
    for i, length in enumerate(seen.lengths.tolist()):
        until = min(max(1, length), most)
        shown = {name: values[i, :until] for name, values in (states | (chances if ends is not None else {})).items()}
        pair = [values[i, :until] for values in units]
        shown |= {"original": pair[0], "rebuilt": pair[1]} if drawn.kind == "vectors" else {}
        own, true = (None if marks is None else _cut(marks[i], until) for marks in (ends, true_ends))
        numbers = {name: _rounded(values) for name, values in shown.items()} | {
            "seen": observed[i, :until].int().tolist(),
            "error": _rounded(_mean_error(*pair)),
            "ends": None if own is None else own.astype(int).tolist(),
            "truth": None if true is None else true.astype(int).tolist(),
        }
        gaps = not bool(observed[i, :until].all()) or bool(np.isnan(pair[0]).any())
        pictures = drawn.originals[i, :until], drawn.rebuilt[i, :until]
        result.append(Shown(i, length, drawn.kind, *pictures, own, true, gaps, numbers))
    return result


def _mean_error(originals: NDArray[Any], rebuilt: NDArray[Any]) -> NDArray[Any]:
    """[T] mean distance of the entries of frames [T, X…]; originals that are NaN do not count."""
    errors = np.abs(originals - rebuilt).reshape(len(originals), -1)
    known = ~np.isnan(errors)
    mean: NDArray[Any] = np.where(known, errors, 0).sum(1) / np.maximum(known.sum(1), 1)
    return mean


def _cut(flags: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    """A sequence's boundaries [length] without the last frame's, which has no effect."""
    return np.append(flags[: length - 1], False)


def _rounded(values: NDArray[Any]) -> Any:
    """Nested lists of numbers with four significant digits; null in place of numbers that are not finite."""
    if values.ndim > 0:
        return [_rounded(value) for value in values]
    return float(f"{values:.4g}") if np.isfinite(values) else None
