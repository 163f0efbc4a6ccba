"""Predictions of a trained model: reconstruct, forecast, jump, sample, fill in, segment.

All predictions but segments run the one `model` with hard boundaries: the guide's trace is replayed on the given
frames, and the prior draws the sites after them. Samples and sequences are folded into one batch. Frames are scaled as
in training, and so are the frames that are predicted: a loaded model's `scaling` maps from and to the data's units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.memory import blocks, frames_at_once, rows_at_once
from pyro_hrssm.model import given
from pyro_hrssm.model.base import Inference, Rollout, StateSpaceModel
from pyro_hrssm.model.given import Array
from pyro_hrssm.model.masks import seen_entries
from pyro_hrssm.progress import bar


class Prediction(NamedTuple):
    """Frames and the states behind them, `[samples, B, T, …]` each; T counts given frames, then predicted ones.

    The frames of a model with a context start after the context.
    """

    frames: Tensor
    """[samples, B, T, X…] means of p(x_t | ·), or draws from it."""
    boundaries: Tensor
    """[samples, B, T] bool, m_t; false at the last frame, where none is drawn."""
    prior: Tensor
    """[samples, B, T] p(m_t = 1 | s_t, h_t, m_<t), limits applied; 0 where no boundary is drawn."""
    posterior: Tensor
    """[samples, B, T] q(m_t = 1 | m_<t, X) on the given frames; 0 elsewhere."""
    abstract: Tensor
    """[samples, B, T, Z] z."""
    observation: Tensor
    """[samples, B, T, S] s."""
    lengths: Tensor
    """[B] number of frames of each sequence; the values after them are zeros."""
    given: Tensor
    """[B] number of these frames that were given."""


@dataclass(frozen=True)
class Settings:
    """How predictions are computed."""

    num_samples: int = 1
    """Number of draws of the latent states per sequence."""
    draw: bool = False
    """Draw frames from p(x | ·) instead of taking its mean."""
    chunk_size: int = 8192
    """The most samples times sequences in one pass; fewer where memory asks for it."""
    progress: bool = False
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "chunk_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, found {getattr(self, name)}")


def reconstruct(
    model: StateSpaceModel, frames: Array, mask: Array | None = None, settings: Settings = Settings()
) -> Prediction:
    """Infer states from all frames, and decode them into frames.

    Arguments:
        frames: [B, T, X…] floats.
        mask: [B, T] bool, or [B, T, X…] of entries, as :class:`HRSSM` reads it.
    """
    return forecast(model, frames, 0, mask, settings)


def forecast(
    model: StateSpaceModel, frames: Array, horizon: int, mask: Array | None = None, settings: Settings = Settings()
) -> Prediction:
    """Infer states on the given frames and continue from the prior, without encoding the generated frames.

    Arguments:
        frames: [B, T, X…] floats.
        horizon: number of frames to predict after each sequence's last one.
        mask: [B, T] bool, or [B, T, X…] of entries; sequences may end at different frames.
    """
    return _by_length(model, frames, mask, horizon, settings, jumpy=False)


def jump(
    model: StateSpaceModel,
    frames: Array,
    num_segments: int,
    mask: Array | None = None,
    settings: Settings = Settings(),
) -> Prediction:
    """Jumpy imagination: after the given frames, predict the first frame of each of the next segments.

    Every predicted frame opens a segment; the frames between are not generated.

    Arguments:
        frames: [B, T, X…] floats.
        num_segments: number of frames to predict, one per segment.
        mask: [B, T] bool, or [B, T, X…] of entries; sequences may end at different frames.
    """
    return _by_length(model, frames, mask, num_segments, settings, jumpy=True)


def sample(
    model: StateSpaceModel,
    num_sequences: int,
    horizon: int,
    context: Array | None = None,
    settings: Settings = Settings(),
    mask: Array | None = None,
) -> Prediction:
    """Draw sequences from the prior; the segment limits hold exactly.

    Arguments:
        num_sequences: number of sequences B.
        horizon: number of frames T.
        context: [B, K, X…] for a model with a context of K frames.
        mask: [B, K] bool of the context's frames, or [B, K, X…] of their entries; None where all are observed.
    """
    if num_sequences < 1 or horizon < 1:
        raise InputError(f"num_sequences and horizon must be at least 1, found {num_sequences} and {horizon}")
    if context is not None:
        if context.shape[:2] != (num_sequences, model.config.context):
            expected = f"[{num_sequences}, {model.config.context}, …]"
            raise InputError(f"context must have shape {expected}, found {list(context.shape)}")
        context, mask = model.accept(context, mask)
    elif mask is not None:
        raise InputError("mask must come with the context that it is of, found context None")
    return _run(model, context, mask, num_sequences, horizon, settings, jumpy=False)


def infill(model: StateSpaceModel, frames: Array, mask: Array, settings: Settings = Settings()) -> Prediction:
    """Fill in the missing frames, and missing entries of frames, inside each sequence; all others are kept as they are.

    Arguments:
        frames: [B, T, X…] floats; values that are missing are never read.
        mask: [B, T] bool, true where a frame is observed; or [B, T, X…], as :class:`HRSSM` reads it.
    """
    frames, observed = model.accept(frames, mask)
    if observed is None:
        raise InputError("infill needs a mask, found None")
    filled = reconstruct(model, frames, observed, settings)
    start = model.config.context
    seen = seen_entries(observed[:, start:], len(model.config.frame_shape))
    return filled._replace(frames=torch.where(seen, frames[:, start:], filled.frames))


class Segmentation(NamedTuple):
    """The boundaries of sequences, without a model's context."""

    boundaries: Tensor
    """[B, T] bool: the most probable path of q(M | X); false at the last frame."""
    probabilities: Tensor
    """[B, T] q(m_t = 1 | X), exact marginals."""
    forced: Tensor
    """[B, T] bool: true where the segment limits forced m_t on that path."""


def segment(model: StateSpaceModel, frames: Array, mask: Array | None = None) -> Segmentation:
    """The most probable boundaries of new sequences, and the probability of each; nothing is drawn.

    A recording of a million frames is read in pieces that overlap by as many frames as the result depends on: it is
    that of one pass, without seams.

    Arguments:
        frames: [B, T, X…] floats.
        mask: [B, T] bool, or [B, T, X…] of entries, as :class:`HRSSM` reads it.

    Raises:
        InputError: where the model is a flat one, without segments.
    """
    frames, mask = model.accept(frames, mask)
    rows = rows_at_once(model, frames.shape[1])
    parts = [_segment(model, *block) for block in blocks(frames, mask, rows)]
    return Segmentation(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _segment(model: StateSpaceModel, frames: Tensor, mask: Tensor | None) -> Segmentation:
    found = model.decode_boundaries(frames, mask, frames_at_once(model, len(frames)))
    last = found.boundaries.new_zeros(len(frames), 1)
    return Segmentation(*(torch.cat([value, last.to(value.dtype)], 1) for value in found))


def _by_length(
    model: StateSpaceModel, frames: Array, mask: Array | None, horizon: int, settings: Settings, jumpy: bool
) -> Prediction:
    """Run the sequences of each length together, so that the future of every sequence starts at its own end."""
    if horizon < 0:
        raise InputError(f"the number of frames to predict must be at least 0, found {horizon}")
    frames, mask = model.accept(frames, mask)
    if mask is None:
        return _run(model, frames, mask, frames.shape[0], horizon, settings, jumpy)
    if horizon == 0:
        return _ended(_run(model, frames, mask, frames.shape[0], horizon, settings, jumpy))
    # A sequence that ends within the context is one whose context has missing frames.
    lengths = given.before_end(mask).sum(1).clamp(min=model.config.context)
    result: Prediction | None = None
    for length in torch.unique(lengths).tolist():
        rows = (lengths == length).nonzero().squeeze(1)
        # A sequence of which nothing is observed is drawn from the prior.
        known = (frames[rows, :length], mask[rows, :length]) if length > 0 else (None, None)
        part = _run(model, known[0], known[1], len(rows), horizon, settings, jumpy)
        if result is None:
            result = _empty_like(part, frames.shape[0], int(lengths.max()) - model.config.context + horizon)
        _fill_rows(result, part, rows)
    assert result is not None
    return result


def _ended(result: Prediction) -> Prediction:
    """The prediction with zeros after each sequence's last frame, where the loop went on for the longest one."""
    total = result.frames.shape[2]
    within = torch.arange(total, device=result.lengths.device) < result.lengths.unsqueeze(1)

    def cut(value: Tensor) -> Tensor:
        return (
            value
            if value.dim() == 1
            else value.masked_fill(~within.reshape(*within.shape, *[1] * (value.dim() - 3)), 0)
        )

    return Prediction(*(cut(value) for value in result))


def _empty_like(part: Prediction, size: int, frames: int) -> Prediction:
    def empty(value: Tensor) -> Tensor:
        shape = (size,) if value.dim() == 1 else (value.shape[0], size, frames, *value.shape[3:])
        return value.new_zeros(shape)

    return Prediction(*(empty(value) for value in part))


def _fill_rows(result: Prediction, part: Prediction, rows: Tensor) -> None:
    for target, value in zip(result, part, strict=True):
        if value.dim() == 1:
            target[rows] = value
        else:
            target[:, rows, : value.shape[2]] = value


@torch.no_grad()
def _run(
    model: StateSpaceModel,
    frames: Tensor | None,
    mask: Tensor | None,
    size: int,
    horizon: int,
    settings: Settings,
    jumpy: bool,
) -> Prediction:
    """Run samples folded into the batch, in chunks: row r is sample r // B of sequence r % B."""
    device = model.device
    rows = torch.arange(settings.num_samples * size, device=device)
    parts = []
    length = horizon + (0 if frames is None else frames.shape[1])
    at_once = rows_at_once(model, length, settings.chunk_size)
    for chunk in bar(rows.split(at_once), settings.progress, unit="pass", desc="predict"):
        index = chunk % size
        arguments = (None if frames is None else frames[index], None if mask is None else mask[index])
        keywords: dict[str, Any] = {"horizon": horizon, "size": len(chunk), "temperature": 0.0, "jumpy": jumpy}
        with given.EncodedOnce():
            trace = poutine.trace(model.guide).get_trace(*arguments, **keywords)
            rollout = poutine.replay(model.model, trace=trace)(*arguments, **keywords)
        parts.append(_rows(rollout, trace.nodes["_RETURN"]["value"], horizon, settings.draw, jumpy))
    folded = [torch.cat(values) for values in zip(*parts, strict=True)]
    unfolded = [value.unflatten(0, (settings.num_samples, size)) for value in folded]
    if frames is None:
        lengths = torch.zeros(size, dtype=torch.long, device=device)
    else:
        lengths = given.lengths(model.config.context, frames, mask)
    return Prediction(*unfolded, lengths + horizon, lengths)  # type: ignore[call-arg]


def _rows(rollout: Rollout, inferred: Inference | None, horizon: int, draw: bool, jumpy: bool) -> list[Tensor]:
    """Frames, boundaries, their probabilities and the latents of one pass, [rows, T, …] each."""
    fns = [fn for fn in (rollout.observed, rollout.future) if fn is not None]
    frames = torch.cat([fn.sample() if draw else fn.mean for fn in fns], 1)
    total = frames.shape[1]
    drawn = [boundary > 0.5 for boundary in rollout.boundaries]
    prior = [fn.mean for fn in rollout.boundary_priors]
    if jumpy and total > 1 and horizon > 0:
        # From the last given frame on, boundaries are held at 1 and not drawn.
        held = torch.ones_like(frames.flatten(1)[:, 0], dtype=torch.bool)
        drawn += [held] * (total - 1 - len(drawn))
        prior += [held.to(frames.dtype)] * (total - 1 - len(prior))
    posterior = [] if inferred is None else [fn.mean for fn in inferred.boundary_posteriors]
    return [
        frames,
        _stack(drawn, frames, total).bool(),
        _stack(prior, frames, total),
        _stack(posterior, frames, total),
        torch.stack([state.latent for state in rollout.abstract], 1),
        torch.stack([state.latent for state in rollout.observation], 1),
    ]


def _stack(values: list[Tensor], frames: Tensor, total: int) -> Tensor:
    """Stack per-frame values [rows] into [rows, total], with zeros after the last value."""
    result = frames.new_zeros(frames.shape[0], total)
    for t, value in enumerate(values):
        result[:, t] = value
    return result
