"""Bounds with hard boundaries, split into their terms: what a run reports, never the relaxed objective."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_hrssm.config import InputError
from pyro_hrssm.distributions import HardBoundary
from pyro_hrssm.hrssm import HRSSM

TERMS = ("emission", "z", "s", "m")

ROWS_AT_ONCE = 8192
"""Sequences times particles in one pass: bounds memory."""


class LogWeights(NamedTuple):
    """Importance weights of `particles` draws from q, and what they are made of; [K, B] each, in nats."""

    weights: Tensor
    """log p(X, Z, S, M) - log q(Z, S, M | X), boundaries hard."""
    terms: dict[str, Tensor]
    """Its negative parts: `emission` -log p(x | ·); `z`, `s`, `m` log q - log p of those sites."""
    boundaries: Tensor
    """Boundaries drawn per sequence that act on a frame."""
    forced: Tensor
    """Those of them that `max_length` forced."""


@dataclass(frozen=True)
class Evaluation:
    """Held-out scores of a model; bounds are negative, so lower is better."""

    nats_per_sequence: float
    """Negative ELBO with hard boundaries: an upper bound on -log p(x)."""
    nats_standard_error: float
    """Its standard error over sequences."""
    iwae_nats_per_sequence: float
    """Negative importance-weighted bound (Burda et al. 2016) with `particles` particles."""
    particles: int
    nats_per_frame: float
    terms: dict[str, float]
    """Nats per sequence of the emission and of the sites z, s and m; they add up to the bound."""
    boundary_rate: float
    """Boundaries per frame that could have one."""
    forced_rate: float
    """Share of the boundaries that `max_length` forced."""
    mean_segment_length: float
    """Frames per segment."""
    sequences: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """The scores as text for people."""
        rows = [
            (
                "bound (negative ELBO)",
                f"{self.nats_per_sequence:.2f} ± {self.nats_standard_error:.2f} nats per sequence",
            ),
            (f"bound (IWAE-{self.particles})", f"{self.iwae_nats_per_sequence:.2f} nats per sequence"),
            ("bound per frame", f"{self.nats_per_frame:.3f} nats per frame"),
            *((f"  term {name}", f"{value:.2f} nats per sequence") for name, value in self.terms.items()),
            ("boundary rate", f"{self.boundary_rate:.3f} per frame"),
            ("forced boundaries", f"{100 * self.forced_rate:.1f} %"),
            ("mean segment length", f"{self.mean_segment_length:.2f} frames"),
            ("held-out sequences", f"{self.sequences}"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


@torch.no_grad()
def log_weights(model: HRSSM, frames: Tensor, mask: Tensor | None = None, particles: int = 1) -> LogWeights:
    """Draw hard boundaries and states from the guide and score them in model and guide.

    `mean(weights)` estimates the ELBO, `logmeanexp` over particles the IWAE bound: both true lower bounds of
    log p(x), since boundaries are drawn and scored as Bernoulli. Particles are folded into the batch.

    Arguments:
        frames: [B, T, X…].
        mask: [B, T] bool or None.
        particles: K.
    """
    size = frames.shape[0]
    at_once = max(1, ROWS_AT_ONCE // size)
    parts = []
    for start in range(0, particles, at_once):
        count = min(at_once, particles - start)
        folded = frames.repeat(count, *[1] * (frames.dim() - 1))
        folded_mask = None if mask is None else mask.repeat(count, 1)
        part = _one_draw_each(model, folded, folded_mask)
        parts.append([value.view(count, size) for value in part])
    emission, z, s, m, boundaries, forced = (torch.cat(values) for values in zip(*parts, strict=True))
    terms = {"emission": emission, "z": z, "s": s, "m": m}
    return LogWeights(-(emission + z + s + m), terms, boundaries, forced)


def _one_draw_each(model: HRSSM, frames: Tensor, mask: Tensor | None) -> list[Tensor]:
    guide_trace = poutine.trace(model.guide).get_trace(frames, mask, temperature=0.0)
    model_trace = poutine.trace(poutine.replay(model.model, trace=guide_trace)).get_trace(frames, mask, temperature=0.0)
    terms = {name: frames.new_zeros(frames.shape[0]) for name in TERMS}
    for trace, sign in ((guide_trace, 1.0), (model_trace, -1.0)):
        trace.compute_log_prob()
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and name[:2] in ("z_", "s_", "m_"):
                terms[name[0]] = terms[name[0]] + sign * site["log_prob"]
    if "x" in model_trace.nodes:
        terms["emission"] = -model_trace.nodes["x"]["log_prob"]
    boundaries, forced = _count_boundaries(model, model_trace.nodes["_RETURN"]["value"], frames, mask)
    return [*terms.values(), boundaries, forced]


def _count_boundaries(model: HRSSM, rollout: Any, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Per sequence: boundaries that act on a frame, and those of them that were forced, [B] each."""
    if not rollout.boundaries:
        return frames.new_zeros(frames.shape[0]), frames.new_zeros(frames.shape[0])
    drawn = torch.stack(rollout.boundaries) > 0.5
    acts = acting(model, frames, mask).transpose(0, 1)
    forced = torch.stack(
        [_forced_open(prior, boundary) for prior, boundary in zip(rollout.boundary_priors, drawn, strict=True)]
    )
    return (drawn & acts).sum(0).to(frames.dtype), (drawn & acts & forced).sum(0).to(frames.dtype)


def _forced_open(prior: HardBoundary, drawn: Tensor) -> Tensor:
    return torch.zeros_like(drawn) if prior.forced is None else prior.forced & (prior.logits > 0)


def acting(model: HRSSM, frames: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T-1] bool: boundaries with a frame of the sequence after them (modelled frames alone)."""
    context = model.config.context
    if mask is None:
        return frames.new_ones(frames.shape[0], frames.shape[1] - context - 1, dtype=torch.bool)
    return mask.bool().flip(1).cummax(1).values.flip(1)[:, context + 1 :]


def log_likelihood(model: HRSSM, frames: Tensor, mask: Tensor | None = None, particles: int = 100) -> Tensor:
    """[B] importance-weighted estimate of log p(x) in nats: a lower bound on average, exact as `particles` grows.

    Source: Burda, Grosse and Salakhutdinov 2016. Arguments as :func:`log_weights` takes them.
    """
    weights = log_weights(model, frames, mask, particles).weights
    return torch.logsumexp(weights.double(), 0) - math.log(particles)


def forecast_log_likelihood(
    model: HRSSM, frames: Tensor, given: int, mask: Tensor | None = None, particles: int = 100
) -> Tensor:
    """[B] estimate of log p(x_given … x_{T-1} | x_0 … x_{given-1}) in nats, the density of forecasts.

    It is `log p(x_{<T}) - log p(x_{<given})`, both importance-weighted with q on the frames they speak of. The plain
    average of p(future | states) over forecast states estimates the same, but needs hopelessly many samples to hit
    a future of many pixels.

    Arguments:
        frames: [B, T, X…].
        given: frames the forecast starts from, more than the model's context.
        mask: [B, T] bool or None.
        particles: K of both estimates.

    Raises:
        InputError: where `given` leaves nothing to infer from or nothing to forecast.
    """
    if not model.config.context < given < frames.shape[1]:
        raise InputError(f"given must lie between {model.config.context + 1} and {frames.shape[1] - 1}, found {given}")
    before = log_likelihood(model, frames[:, :given], None if mask is None else mask[:, :given], particles)
    return log_likelihood(model, frames, mask, particles) - before


def evaluate(model: HRSSM, batches: Iterable[tuple[Tensor, Tensor | None]], particles: int = 100) -> Evaluation:
    """Held-out bounds, their terms and boundary statistics.

    Arguments:
        batches: (frames [B, T, X…], mask [B, T] or None) each.
        particles: K of the importance-weighted bound; the ELBO averages over them too.
    """
    totals: dict[str, float] = dict.fromkeys(
        (*TERMS, "bound", "square", "iwae", "boundaries", "forced", "sequences", "frames", "chances"), 0.0
    )
    for frames, mask in batches:
        drawn = log_weights(model, frames, mask, particles)
        bound = -drawn.weights.mean(0).double()
        acts = acting(model, frames, mask)
        totals["bound"] += bound.sum().item()
        totals["square"] += bound.square().sum().item()
        totals["iwae"] += -(torch.logsumexp(drawn.weights.double(), 0) - math.log(particles)).sum().item()
        for name in TERMS:
            totals[name] += drawn.terms[name].mean(0).sum().item()
        totals["boundaries"] += drawn.boundaries.mean(0).sum().item()
        totals["forced"] += drawn.forced.mean(0).sum().item()
        totals["chances"] += acts.sum().item()
        totals["sequences"] += frames.shape[0]
        totals["frames"] += acts.sum().item() + frames.shape[0]
    return _summarise(totals, particles)


def _summarise(totals: dict[str, float], particles: int) -> Evaluation:
    count = totals["sequences"]
    mean = totals["bound"] / count
    variance = max(0.0, totals["square"] / count - mean**2)
    return Evaluation(
        nats_per_sequence=mean,
        nats_standard_error=math.sqrt(variance / max(1.0, count - 1)),
        iwae_nats_per_sequence=totals["iwae"] / count,
        particles=particles,
        nats_per_frame=totals["bound"] / totals["frames"],
        terms={name: totals[name] / count for name in TERMS},
        boundary_rate=totals["boundaries"] / max(1.0, totals["chances"]),
        forced_rate=totals["forced"] / max(1.0, totals["boundaries"]),
        mean_segment_length=totals["frames"] / (totals["boundaries"] + count),
        sequences=int(count),
    )
