"""Bounds with hard boundaries: importance weights of draws from q, and the terms of these weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_hrssm.batching.walks import ENTRIES_IN_CACHE
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.memory import rows_at_once
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.given import Array, EncodedOnce, acting

TERMS = ("emission", "z", "s", "m")
"""The terms of a bound: the frames, and the sites of the three latent variables."""


def terms(model_trace: Any, guide_trace: Any) -> dict[str, Tensor]:
    """Terms of every sequence's negative ELBO, [B] each, in nats: `emission`, and log q - log p of z, s and m."""
    parts: dict[str, list[Tensor]] = {name: [] for name in TERMS}
    for trace, sign in ((guide_trace, 1.0), (model_trace, -1.0)):
        trace.compute_log_prob()
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and (name == "x" or name[:2] in ("z_", "s_", "m_")):
                parts["emission" if name == "x" else name[0]].append(sign * site["log_prob"])
    nothing = torch.zeros_like(parts["s"][0])
    return {name: torch.stack(values).sum(0) if values else nothing for name, values in parts.items()}


class LogWeights(NamedTuple):
    """Importance weights of `particles` draws from q, and their terms; [K, B] each, in nats."""

    weights: Tensor
    """log p(X, Z, S, M) - log q(Z, S, M | X), with hard boundaries."""
    terms: dict[str, Tensor]
    """The terms of the negative weight: `emission` -log p(x | ·); `z`, `s`, `m` log q - log p of those sites."""
    boundaries: Tensor
    """Number of boundaries drawn per sequence that a frame follows."""
    forced: Tensor
    """Number of these boundaries that `max_length` forced."""


@torch.no_grad()
def log_weights(
    model: StateSpaceModel, frames: Array, mask: Array | None = None, particles: int = 1, most: int | None = None
) -> LogWeights:
    """Draw hard boundaries and states from the guide and score them in model and guide.

    `mean(weights)` estimates the ELBO, `logmeanexp` over particles the IWAE bound: both true lower bounds of
    log p(x), since boundaries are drawn and scored as Bernoulli. Particles are folded into the batch.

    Arguments:
        frames: [B, T, X…].
        mask: [B, T] bool, or [B, T, X…] of entries, or None.
        particles: number of particles K.
        most: the most sequences times particles in one pass; fewer where memory asks for it.
    """
    frames, mask = model.accept(frames, mask)
    rows = rows_at_once(model, frames.shape[1], most)
    if frames.device.type == "cpu":
        # Where the beliefs of a frame fit a processor's cache, a draw takes 1.15 ms and not 1.63 (digit rows, one
        # thread).
        rows = max(1, min(rows, ENTRIES_IN_CACHE // model.config.hidden))
    masks = [None] * len(frames) if mask is None else mask.split(rows)
    blocks = [_draws(model, *block, particles, rows) for block in zip(frames.split(rows), masks, strict=False)]
    emission, z, s, m, boundaries, forced = (torch.cat(values, 1) for values in zip(*blocks, strict=True))
    return LogWeights(-(emission + z + s + m), {"emission": emission, "z": z, "s": s, "m": m}, boundaries, forced)


def _draws(model: StateSpaceModel, frames: Tensor, mask: Tensor | None, particles: int, rows: int) -> list[Tensor]:
    """Terms and numbers of boundaries, [K, B] each, of sequences that fit one pass of so many rows."""
    parts = []
    for count, folded, folded_mask in passes(frames, mask, particles, rows):
        with EncodedOnce(count):
            part = _one_draw_each(model, folded, folded_mask)
        parts.append([value.view(count, len(frames)) for value in part])
    return [torch.cat(values) for values in zip(*parts, strict=True)]


def passes(
    frames: Tensor, mask: Tensor | None, particles: int, rows: int
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """How many draws k of each sequence a pass takes, and its frames [k · B, T, X…] and mask, at most so many rows."""
    at_once = max(1, rows // len(frames))
    for start in range(0, particles, at_once):
        count = min(at_once, particles - start)
        folded, folded_mask = (
            None if values is None else values.repeat(count, *[1] * (values.dim() - 1)) for values in (frames, mask)
        )
        assert folded is not None
        yield count, folded, folded_mask


def _one_draw_each(model: StateSpaceModel, frames: Tensor, mask: Tensor | None) -> list[Tensor]:
    guide_trace = poutine.trace(model.guide).get_trace(frames, mask, temperature=0.0)
    model_trace = poutine.trace(poutine.replay(model.model, trace=guide_trace)).get_trace(frames, mask, temperature=0.0)
    boundaries, forced = _count_boundaries(model, model_trace.nodes["_RETURN"]["value"], frames, mask)
    return [*terms(model_trace, guide_trace).values(), boundaries, forced]


def _count_boundaries(
    model: StateSpaceModel, rollout: Any, frames: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Numbers of boundaries per sequence that a frame follows, and of those among them that were forced, [B] each."""
    if not rollout.boundaries:
        return frames.new_zeros(frames.shape[0]), frames.new_zeros(frames.shape[0])
    drawn = torch.stack(rollout.boundaries) > 0.5
    acts = acting(model.config.context, frames, mask).transpose(0, 1)
    forced = torch.stack(
        [_forced_open(prior.unmasked, boundary) for prior, boundary in zip(rollout.boundary_priors, drawn, strict=True)]
    )
    return (drawn & acts).sum(0).to(frames.dtype), (drawn & acts & forced).sum(0).to(frames.dtype)


def _forced_open(prior: Any, drawn: Tensor) -> Tensor:
    return torch.zeros_like(drawn) if prior.forced is None else prior.forced & (prior.logits > 0)


def log_likelihood(
    model: StateSpaceModel, frames: Array, mask: Array | None = None, particles: int = 100, most: int | None = None
) -> Tensor:
    """[B] importance-weighted estimate of log p(x) in nats: a lower bound on average, exact as `particles` grows.

    Source: Burda, Grosse and Salakhutdinov 2016. Arguments as in :func:`log_weights`.
    """
    weights = log_weights(model, frames, mask, particles, most).weights
    return torch.logsumexp(weights.double(), 0) - math.log(particles)


def forecast_log_likelihood(
    model: StateSpaceModel,
    frames: Array,
    given: int,
    mask: Array | None = None,
    particles: int = 100,
    most: int | None = None,
) -> Tensor:
    """[B] estimate of log p(x_given … x_{T-1} | x_0 … x_{given-1}) in nats, the density of forecasts.

    The estimate is `log p(x_{<T}) - log p(x_{<given})`, both importance-weighted with q on their own frames. The plain
    average of p(future | states) over forecast states estimates the same, but needs hopelessly many samples to hit
    a future of many pixels.

    Arguments:
        frames: [B, T, X…].
        given: number of frames that the forecast starts from, more than the model's context.
        mask: [B, T] bool, or [B, T, X…] of entries, or None.
        particles: K of both estimates.
        most: as in :func:`log_weights`.

    Raises:
        InputError: where `given` leaves no frame to infer from or no frame to forecast.
    """
    if not model.config.context < given < frames.shape[1]:
        raise InputError(f"given must lie between {model.config.context + 1} and {frames.shape[1] - 1}, found {given}")
    before = log_likelihood(model, frames[:, :given], None if mask is None else mask[:, :given], particles, most)
    return log_likelihood(model, frames, mask, particles, most) - before
