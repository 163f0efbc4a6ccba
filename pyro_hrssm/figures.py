"""The figures of a run: what a model makes of given sequences, drawn by `plotting`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_hrssm import plotting
from pyro_hrssm.checkpoint import read_lines
from pyro_hrssm.hrssm import HRSSM
from pyro_hrssm.prediction import Prediction, reconstruct, sample

SHOWN = 8
"""Sequences per figure."""


def run_figures(model: HRSSM, frames: Tensor, mask: Tensor | None = None) -> dict[str, Figure]:
    """Reconstructions with segments, boundary probabilities and samples from the prior, by name.

    Arguments:
        frames: [B, T, X…]; the first few sequences are shown.
        mask: [B, T] bool or None.
    """
    frames, mask = frames[:SHOWN], None if mask is None else mask[:SHOWN]
    start, horizon = model.config.context, frames.shape[1] - model.config.context
    seen = reconstruct(model, frames, mask)
    shown = None if mask is None else mask[:, start:].cpu()
    context = frames[:, :start] if start > 0 else None
    drawn = sample(model, len(frames), horizon, context)
    return {
        "reconstructions": plotting.reconstructions(
            frames[:, start:].cpu(), seen.frames[0].cpu(), seen.boundaries[0].cpu(), shown
        ),
        "boundaries": plotting.boundary_probabilities(
            seen.prior[0].cpu(), seen.posterior[0].cpu(), seen.boundaries[0].cpu()
        ),
        "samples": plotting.film_strip(
            drawn.frames[0].cpu(), drawn.boundaries[0].cpu(), title="Samples from the prior"
        ),
    }


def prediction_figures(prediction: Prediction) -> dict[str, Figure]:
    """Film strips with segment starts and the end of what was given: one sample per sequence, and one sequence's."""
    frames, boundaries = prediction.frames.cpu(), prediction.boundaries.cpu()
    given = prediction.given.tolist()
    count = min(SHOWN, len(frames))
    samples = [f"sample {index}" for index in range(count)]
    return {
        "sequences": plotting.film_strip(frames[0], boundaries[0], given, title="One sample per sequence"),
        "samples": plotting.film_strip(
            frames[:count, 0], boundaries[:count, 0], given[:1] * count, samples, title="Samples of the first sequence"
        ),
    }


def animation(frames: Tensor) -> list[NDArray[Any]]:
    """Image frames [B, T, H, W(, C)] side by side; rows and vectors [B, T, X] drawn line by line."""
    if frames.dim() >= 4:
        return [sequence.cpu().numpy() for sequence in frames[:SHOWN]]
    drawn = torch.tril(frames.new_ones(frames.shape[1], frames.shape[1]))
    return [(drawn.unsqueeze(-1) * sequence).cpu().numpy() for sequence in frames[:SHOWN]]


def save_figures(figures: dict[str, Figure], run: Path) -> None:
    """Write the figures, and the training curves, into a run's folder."""
    rows = read_lines(run / "metrics.jsonl")
    if rows:
        figures = figures | {"training": plotting.training_curves(rows)}
    for name, figure in figures.items():
        plotting.save(figure, run / "figures" / f"{name}.png")
