"""Bounds with hard boundaries, split into their terms: what a run reports, never the relaxed objective."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.bounds import TERMS, terms
from pyro_hrssm.inference.prediction import segment
from pyro_hrssm.inference.scores import BoundaryScores, Flags, Labelled, Score, baselines, score
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.given import EncodedOnce, acting
from pyro_hrssm.model.hrssm import HRSSM

ROWS_AT_ONCE = 8192
"""Sequences times particles in one pass: bounds memory."""

ENTRIES_AT_ONCE = 2**26
"""Numbers in the frames or the beliefs of one pass: bounds it for images and long sequences too, of which networks hold
several times as many."""


SEQUENCES_AT_ONCE = 500
"""Held-out sequences in one batch."""

TUNING_SEQUENCES = 500
"""Training sequences on which the baselines of boundary scores are tuned."""


class Batch(Protocol):
    """Sequences, and their true boundaries where they are known; as data sets give them."""

    @property
    def frames(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor | None: ...
    @property
    def boundaries(self) -> Tensor | None: ...


class Data(Protocol):
    """What training and evaluation ask of a data set."""

    @property
    def has_boundaries(self) -> bool: ...
    @property
    def num_frames(self) -> int: ...
    def __len__(self) -> int: ...
    def batch(self, indices: Any) -> Batch: ...


class Moved(NamedTuple):
    """A :class:`Batch` on the model's device."""

    frames: Tensor
    mask: Tensor | None
    boundaries: Tensor | None


def move(batch: Batch, device: torch.device) -> Moved:
    """The batch on the device; from pinned memory, copied while the host goes on."""
    parts = (batch.frames, batch.mask, batch.boundaries)
    ahead = device.type == "cuda"
    return Moved(*(None if part is None else part.to(device, non_blocking=ahead) for part in parts))  # type: ignore[arg-type]


def in_order(data: Data, device: torch.device, most: int | None = None) -> Iterator[Moved]:
    """All of a data set, or the first sequences of it, batch after batch."""
    stop = len(data) if most is None else min(most, len(data))
    for start in range(0, stop, SEQUENCES_AT_ONCE):
        yield move(data.batch(torch.arange(start, min(start + SEQUENCES_AT_ONCE, stop))), device)


@contextlib.contextmanager
def random_seed(device: torch.device, seed: int) -> Iterator[None]:
    """Noise of this seed inside; outside, random numbers go on as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


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
    boundaries: BoundaryScores | None = None
    """Against the true boundaries, where the data knows them."""
    forecast_nats: dict[str, float] | None = None
    """Log likelihood of the next frames given those before, by their number: see :func:`forecast_log_likelihood`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; what was not measured is left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.boundaries is not None:
            values["boundaries"] = self.boundaries.to_dict()
        return {name: value for name, value in values.items() if value is not None}

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
            *((f"forecast, next {name}", f"{v:.2f} nats") for name, v in (self.forecast_nats or {}).items()),
            *(self.boundaries.rows() if self.boundaries is not None else ()),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


@torch.no_grad()
def log_weights(model: StateSpaceModel, frames: Tensor, mask: Tensor | None = None, particles: int = 1) -> LogWeights:
    """Draw hard boundaries and states from the guide and score them in model and guide.

    `mean(weights)` estimates the ELBO, `logmeanexp` over particles the IWAE bound: both true lower bounds of
    log p(x), since boundaries are drawn and scored as Bernoulli. Particles are folded into the batch.

    Arguments:
        frames: [B, T, X…].
        mask: [B, T] bool or None.
        particles: K.
    """
    size = frames.shape[0]
    entries = max(frames[0].numel(), frames.shape[1] * model.config.hidden)
    rows = min(ROWS_AT_ONCE, ENTRIES_AT_ONCE // entries)
    at_once = max(1, rows // size)
    parts = []
    for start in range(0, particles, at_once):
        count = min(at_once, particles - start)
        folded = frames.repeat(count, *[1] * (frames.dim() - 1))
        folded_mask = None if mask is None else mask.repeat(count, 1)
        with EncodedOnce(count):
            part = _one_draw_each(model, folded, folded_mask)
        parts.append([value.view(count, size) for value in part])
    emission, z, s, m, boundaries, forced = (torch.cat(values) for values in zip(*parts, strict=True))
    return LogWeights(-(emission + z + s + m), {"emission": emission, "z": z, "s": s, "m": m}, boundaries, forced)


def _one_draw_each(model: StateSpaceModel, frames: Tensor, mask: Tensor | None) -> list[Tensor]:
    guide_trace = poutine.trace(model.guide).get_trace(frames, mask, temperature=0.0)
    model_trace = poutine.trace(poutine.replay(model.model, trace=guide_trace)).get_trace(frames, mask, temperature=0.0)
    boundaries, forced = _count_boundaries(model, model_trace.nodes["_RETURN"]["value"], frames, mask)
    return [*terms(model_trace, guide_trace).values(), boundaries, forced]


def _count_boundaries(
    model: StateSpaceModel, rollout: Any, frames: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Per sequence: boundaries that act on a frame, and those of them that were forced, [B] each."""
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


def log_likelihood(model: StateSpaceModel, frames: Tensor, mask: Tensor | None = None, particles: int = 100) -> Tensor:
    """[B] importance-weighted estimate of log p(x) in nats: a lower bound on average, exact as `particles` grows.

    Source: Burda, Grosse and Salakhutdinov 2016. Arguments as :func:`log_weights` takes them.
    """
    weights = log_weights(model, frames, mask, particles).weights
    return torch.logsumexp(weights.double(), 0) - math.log(particles)


def forecast_log_likelihood(
    model: StateSpaceModel, frames: Tensor, given: int, mask: Tensor | None = None, particles: int = 100
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


def measure(
    model: StateSpaceModel,
    held_out: Data,
    train: Data | None = None,
    *,
    particles: int = 100,
    seed: int = 1,
    given: int | None = None,
    horizons: Sequence[int] = (),
) -> Evaluation:
    """All that is reported of a model on held-out sequences; the same for the same seed.

    Arguments:
        train: where the baselines of the boundary scores are tuned.
        particles: K of the importance-weighted bounds.
        given: frames that forecasts start from, context included; half of them if None.
        horizons: numbers of frames forecast.
    """
    device = next(model.parameters()).device
    with random_seed(device, seed):
        batches = ((frames, mask) for frames, mask, _ in in_order(held_out, device))
        scores = evaluate(model, batches, particles)
        if horizons:
            start = max(held_out.num_frames // 2, model.config.context + 1) if given is None else given
            forecasts = _forecasts(model, in_order(held_out, device), start, horizons, particles)
            scores = dataclasses.replace(scores, forecast_nats=forecasts)
    if held_out.has_boundaries:
        tuning = in_order(train, device, TUNING_SEQUENCES) if train is not None and train.has_boundaries else ()
        scores = dataclasses.replace(scores, boundaries=boundary_scores(model, in_order(held_out, device), tuning))
    return scores


def _forecasts(
    model: StateSpaceModel, batches: Iterable[Moved], given: int, horizons: Sequence[int], particles: int
) -> dict[str, float]:
    """Mean log likelihood of the next frames given the first `given`, by their number."""
    totals, count = dict.fromkeys(map(str, horizons), 0.0), 0
    for frames, mask, _ in batches:
        if not all(1 <= horizon <= frames.shape[1] - given for horizon in horizons):
            raise InputError(
                f"horizons must lie between 1 and {frames.shape[1] - given}, found {', '.join(map(str, horizons))}"
            )
        for horizon in horizons:
            stop = given + horizon
            cut = None if mask is None else mask[:, :stop]
            found = forecast_log_likelihood(model, frames[:, :stop], given, cut, particles)
            totals[str(horizon)] += found.sum().item()
        count += len(frames)
    return {name: total / count for name, total in totals.items()}


def evaluate(
    model: StateSpaceModel, batches: Iterable[tuple[Tensor, Tensor | None]], particles: int = 100
) -> Evaluation:
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
        acts = acting(model.config.context, frames, mask)
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


def boundary_scores(model: StateSpaceModel, batches: Iterable[Batch], tuning: Iterable[Batch] = ()) -> BoundaryScores:
    """The model's most probable boundaries and those of baselines against the true ones, frames after the context.

    Arguments:
        batches: sequences to score, with true boundaries.
        tuning: training sequences on which the baselines' parameters are chosen; where they have no true
            boundaries, the sequences scored serve, which flatters the baselines.
    """
    data, found, counted = _found(model, batches)
    with_truth = [batch for batch in tuning if batch.boundaries is not None]
    rules = baselines(labelled(with_truth, model.config.context) if with_truth else data)
    return BoundaryScores(
        model=score(found, data.truth, counted),
        baselines={name: score(rule(data), data.truth, counted) for name, rule in rules},
        forced_share=1 - float(counted.sum()) / max(1.0, float(data.acts.sum())),
        tuned_on="training" if with_truth else "evaluation",
    )


def boundary_score(model: StateSpaceModel, batches: Iterable[Batch]) -> Score:
    """The model's score alone; arguments as :func:`boundary_scores` takes them."""
    data, found, counted = _found(model, batches)
    return score(found, data.truth, counted)


def _found(model: StateSpaceModel, batches: Iterable[Batch]) -> tuple[Labelled, Flags, Flags]:
    """Sequences, the model's boundaries [N, T] and the positions [N, T] where its limits left it a choice."""
    parts = list(batches)
    data = labelled(parts, model.config.context)
    if not isinstance(model, HRSSM):
        # A flat model has no boundaries: it scores like `never`.
        return data, np.zeros_like(data.truth), data.acts
    found = [segment(model, batch.frames, batch.mask) for batch in parts]
    boundaries, forced = (
        np.concatenate([part.cpu().numpy() for part in values])
        for values in ([segments.boundaries for segments in found], [segments.forced for segments in found])
    )
    return data, boundaries, data.acts & ~forced


def labelled(batches: Iterable[Batch], context: int) -> Labelled:
    """Sequences with their true boundaries as flat arrays, the context's frames left out."""
    frames, truth, acts = [], [], []
    for batch in batches:
        assert batch.boundaries is not None
        values = batch.frames[:, context:].flatten(2).cpu().numpy()
        if batch.mask is not None:
            values = _hold(values, batch.mask[:, context:].cpu().numpy())
        frames.append(values)
        truth.append(batch.boundaries[:, context:].cpu().numpy())
        last = torch.zeros_like(batch.boundaries[:, :1])
        acts.append(torch.cat([acting(context, batch.frames, batch.mask), last], 1).cpu().numpy())
    return Labelled(np.concatenate(frames), np.concatenate(truth), np.concatenate(acts))


def _hold(values: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """[B, T, D] with every missing frame replaced by the last one seen."""
    latest = np.maximum.accumulate(np.where(seen, np.arange(seen.shape[1]), 0), axis=1)
    return np.take_along_axis(values, latest[..., None], axis=1)
