"""The surprise of every frame under a flat model: its negative log likelihood given the frames before it."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_hrssm.inference.bounds import passes
from pyro_hrssm.inference.memory import blocks, rows_at_once
from pyro_hrssm.model.given import Array, EncodedOnce
from pyro_hrssm.model.rssm import RSSM

PARTICLES = 16


@torch.no_grad()
def surprise(
    model: RSSM, frames: Array, mask: Array | None = None, particles: int = PARTICLES, most: int | None = None
) -> Tensor:
    """[B, T] estimate of `-log p(x_t | x_<t)` in nats, after the context.

    Each prefix is scored by sequential importance sampling (Doucet, de Freitas and Gordon 2001) with the same draws:

        p(x_<=t) ≈ mean_k Π_{u<=t} p(x_u | s_u, h_u) p(s_u | h_u) / q(s_u | X)

    is unbiased for every t, since q(S | X) has one factor per frame, and the surprise of a frame is the difference of
    two logs. That q sees later frames makes the estimate noisier, and spoils nothing else. A missing frame has the
    surprise of its state alone.

    Arguments:
        frames: [B, K + T, X…].
        mask: [B, K + T] bool, or [B, K + T, X…] of entries, or None.
        particles: number of draws k of each sequence.
        most: the most sequences times particles in one pass; fewer where memory asks for it.
    """
    frames, mask = model.accept(frames, mask)
    rows = rows_at_once(model, frames.shape[1], most)
    return torch.cat([_of_block(model, *block, particles, rows) for block in blocks(frames, mask, rows)])


def _of_block(model: RSSM, frames: Tensor, mask: Tensor | None, particles: int, rows: int) -> Tensor:
    """[B, T] surprise of sequences that fit one pass of so many rows."""
    size, parts = len(frames), []
    for count, folded, folded_mask in passes(frames, mask, particles, rows):
        with EncodedOnce(count):
            weights = _log_weights(model, folded, folded_mask)
        parts.append(weights.view(count, size, -1))
    prefixes = torch.logsumexp(torch.cat(parts).double().cumsum(-1), 0) - math.log(particles)
    return -torch.diff(prefixes, prepend=prefixes.new_zeros(size, 1)).to(frames.dtype)


def _log_weights(model: RSSM, frames: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T] log p(x_t | s_t, h_t) + log p(s_t | h_t) - log q(s_t | X), of one draw per sequence."""
    guide_trace = poutine.trace(model.guide).get_trace(frames, mask, temperature=0.0)
    model_trace = poutine.trace(poutine.replay(model.model, trace=guide_trace)).get_trace(frames, mask, temperature=0.0)
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    total = frames.shape[1] - model.config.context
    states = torch.stack(
        [model_trace.nodes[f"s_{t}"]["log_prob"] - guide_trace.nodes[f"s_{t}"]["log_prob"] for t in range(total)], 1
    )
    # The site x scores all frames together; within it, each frame has a density of its own, or each entry.
    rollout: Any = model_trace.nodes["_RETURN"]["value"]
    each = rollout.observed.base_dist.log_prob(model_trace.nodes["x"]["value"])
    return states + each.flatten(2).sum(2) if each.dim() > 2 else states + each
