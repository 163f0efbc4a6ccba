"""The segments of sequences as a table: where each one lies, how sure its end is, and its abstract state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_hrssm.inference.memory import blocks, frames_at_once, rows_at_once
from pyro_hrssm.inference.prediction import Segmentation, segment
from pyro_hrssm.model.given import Array, lengths
from pyro_hrssm.model.hrssm import HRSSM


class Segments(NamedTuple):
    """M segments of the most probable segmentation, in the order of sequences and frames; a row for each."""

    sequence: NDArray[np.int64]
    """[M] number of the sequence."""
    start: NDArray[np.int64]
    """[M] first frame, counted from the sequence's first, a model's context included."""
    end: NDArray[np.int64]
    """[M] last frame."""
    probability: NDArray[np.float64]
    """[M] q(m = 1 | X) at the last frame; NaN where the sequence itself ends."""
    states: NDArray[np.float64]
    """[M, Z] mean of q(z | M, X) at the first frame; NaN where it was not asked for."""
    deviations: NDArray[np.float64]
    """[M, Z] standard deviation of q(z | M, X) there."""

    def at(self, rows: NDArray[np.bool_]) -> Segments:
        """The segments for which `rows` [M] is true."""
        return Segments(*(part[rows] for part in self))  # type: ignore[arg-type] # mypy joins the fields' types

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[M] number of frames."""
        return self.end - self.start + 1

    @property
    def follows(self) -> NDArray[np.bool_]:
        """[M - 1] whether the next segment is of the same sequence."""
        return self.sequence[1:] == self.sequence[:-1]


class Found(NamedTuple):
    """The most probable segmentation of sequences, as a table and frame by frame."""

    segments: Segments
    probabilities: list[NDArray[np.float32]]
    """[B, T] q(m_t = 1 | X) of each batch, without a model's context."""


def find_segments(
    model: HRSSM, batches: Iterable[tuple[Array, Array | None] | NamedTuple], states: bool = True
) -> Segments:
    """The segments of :func:`find`."""
    return find(model, batches, states).segments


def find(model: HRSSM, batches: Iterable[tuple[Array, Array | None] | NamedTuple], states: bool = True) -> Found:
    """The most probable segments of new sequences; nothing is drawn.

    Arguments:
        batches: (frames [B, T, X…], mask or None) each, or batches of a data set. A sequence without a modelled
            frame has no segment.
        states: whether the abstract states are wanted, which q infers frame by frame; without, they are NaN.
    """
    parts: list[Segments] = []
    probabilities: list[NDArray[np.float32]] = []
    number = 0
    for frames, mask, *_ in batches:
        frames, mask = model.accept(frames, mask)
        for part in blocks(frames, mask, rows_at_once(model, frames.shape[1])):
            found = segment(model, *part)
            parts.append(_segments(model, *part, found, number, states))
            probabilities.append(found.probabilities.cpu().numpy())
            number += len(part[0])
    if not parts:
        nothing, none = np.zeros(0, np.int64), np.zeros((0, model.config.abstract_size))
        return Found(Segments(nothing, nothing, nothing, np.zeros(0), none, none), [])
    return Found(Segments(*(np.concatenate(values) for values in zip(*parts, strict=True))), probabilities)


def _segments(
    model: HRSSM, frames: Tensor, mask: Tensor | None, found: Segmentation, number: int, states: bool
) -> Segments:
    context = model.config.context
    total = lengths(context, frames, mask)
    within = torch.arange(found.boundaries.shape[1], device=total.device) < total.unsqueeze(1)
    last = torch.arange(found.boundaries.shape[1], device=total.device) == total.unsqueeze(1) - 1
    ends = (found.boundaries & within) | last
    opens = torch.cat([within[:, :1], ends[:, :-1] & within[:, 1:]], 1)
    rows, starts = opens.nonzero(as_tuple=True)
    stops = ends.nonzero(as_tuple=True)[1]
    chances = found.probabilities.double().masked_fill(last, torch.nan)
    places = (rows + number, starts + context, stops + context)
    if states:
        at_once = frames_at_once(model, len(frames))
        inferred = [part[opens] for part in model.abstract_posterior(frames, mask, found.boundaries, at_once)]
    else:
        inferred = [frames.new_full((len(rows), model.config.abstract_size), torch.nan)] * 2
    values = (chances[ends], *(part.double() for part in inferred))
    return Segments(*(value.cpu().numpy() for value in (*places, *values)))
