"""Held-out scores of a model: bounds and their terms, boundaries against the true ones, and forecasts."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_hrssm.data.batches import Batch, in_order
from pyro_hrssm.data.sequences import Sequences
from pyro_hrssm.errors import one_line, require
from pyro_hrssm.inference.against_truth import boundary_scores
from pyro_hrssm.inference.best import known_chances
from pyro_hrssm.inference.bounds import TERMS, forecast_log_likelihoods, log_weights
from pyro_hrssm.inference.forecasts import DRAWS, ForecastScores, can_be_judged, check, forecast_scores, plain, said
from pyro_hrssm.inference.prediction import segment
from pyro_hrssm.inference.scores import BoundaryScores
from pyro_hrssm.inference.scores.labels import Labels
from pyro_hrssm.inference.scores.methods import Which
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.given import acting, lengths
from pyro_hrssm.model.masks import observed_entries
from pyro_hrssm.model.rssm import RSSM

TUNING_SEQUENCES = 500
"""Number of training sequences on which the methods beside the model are tuned."""


@contextlib.contextmanager
def random_seed(device: torch.device, seed: int) -> Iterator[None]:
    """A context with noise of this seed; after the context, the random streams go on as if it had drawn nothing.

    Raises :class:`InputError` for a seed that torch's generators do not take.
    """
    require(-(2**63) <= seed < 2**64, f"seed must lie between -2**63 and 2**64 - 1, found {one_line(seed)}")
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Evaluation:
    """Held-out scores of a model; bounds are negative, so lower is better."""

    nats_per_sequence: float
    """Negative ELBO with hard boundaries: an upper bound on -log p(x)."""
    nats_standard_error: float
    """Standard error of `nats_per_sequence` over sequences; NaN of a single one."""
    iwae_nats_per_sequence: float
    """Negative importance-weighted bound (Burda et al. 2016) with `particles` particles."""
    particles: int
    nats_per_frame: float
    terms: dict[str, float]
    """Nats per sequence of the emission and of the sites z, s and m; they add up to the bound."""
    boundary_rate: float
    """Number of boundaries per frame that could have one."""
    forced_rate: float
    """Share of the boundaries that `max_length` forced."""
    mean_segment_length: float
    """Frames per segment."""
    sequences: int
    """Number of sequences scored: those that have a frame after the context."""
    nats_per_entry: float | None = None
    """By observed entries of modelled frames: what is missing does not count."""
    boundary_agreement: float | None = None
    """Share of the boundaries of a draw from q(M | X) that another draw has too; None where hardly any is drawn."""
    boundaries: BoundaryScores | None = None
    """Scores against the true boundaries, if the data has them."""
    training_nats_per_sequence: float | None = None
    """`nats_per_sequence` of as many training sequences, at the end of training."""
    forecast_nats: dict[str, float] | None = None
    """Mean log likelihood of the next frames given those before, by horizon, over the sequences that can be judged
    there: see :func:`forecast_log_likelihood`. NaN where none can."""
    forecast_nats_sequences: dict[str, int] | None = None
    """Number of these sequences, by horizon: those that are observed both among the given and among the next frames."""
    forecasts: ForecastScores | None = None
    """CRPS and coverage of forecasts, by horizon, beside persistence and perhaps a flat model."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, without the scores that were not measured."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("boundaries", "forecasts"):
            if values[name] is not None:
                values[name] = values[name].to_dict()
        if self.forecast_nats is not None:
            values["forecast_nats"] = {name: plain(value) for name, value in self.forecast_nats.items()}
        return {name: plain(value) for name, value in values.items() if value is not None}

    def table(self, sequences: str = "held-out sequences") -> str:
        """The scores as a table to read, which calls the sequences by this name."""
        rows = [
            (
                "bound (negative ELBO)",
                f"{self.nats_per_sequence:.2f} ± {said(self.nats_standard_error, '.2f')} nats per sequence",
            ),
            *(
                [("bound, training sequences", f"{self.training_nats_per_sequence:.2f} nats per sequence")]
                if self.training_nats_per_sequence is not None
                else []
            ),
            (f"bound (IWAE-{self.particles})", f"{self.iwae_nats_per_sequence:.2f} nats per sequence"),
            ("bound per frame", f"{self.nats_per_frame:.3f} nats per frame"),
            *(
                [("bound per entry", f"{self.nats_per_entry:.4f} nats per observed entry")]
                if self.nats_per_entry is not None
                else []
            ),
            *((f"  term {name}", f"{value:.2f} nats per sequence") for name, value in self.terms.items()),
            ("boundary rate", f"{self.boundary_rate:.3f} per frame"),
            ("forced boundaries", f"{100 * self.forced_rate:.1f} %"),
            *(
                [("boundaries drawn again", f"{100 * self.boundary_agreement:.1f} %")]
                if self.boundary_agreement is not None
                else []
            ),
            ("mean segment length", f"{self.mean_segment_length:.2f} frames"),
            (sequences, f"{self.sequences}"),
            *self._forecast_rows(),
            *(self.forecasts.rows() if self.forecasts is not None else ()),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        return "\n".join([*lines, *([] if self.boundaries is None else [self.boundaries.text()])])

    def _forecast_rows(self) -> Iterator[tuple[str, str]]:
        for name, nats in (self.forecast_nats or {}).items():
            count = (self.forecast_nats_sequences or {}).get(name, self.sequences)
            part = "" if count == self.sequences else f", of {count} sequences"
            yield f"forecast, next {name}", f"{nats:.2f} nats{part}" if count else "never observed"


def measure(
    model: StateSpaceModel,
    held_out: Sequences,
    train: Sequences | None = None,
    *,
    particles: int = 100,
    seed: int = 1,
    given: int | None = None,
    horizons: Sequence[int] = (),
    margin: int | None = None,
    methods: Which = "quick",
    flat: RSSM | None = None,
    num_samples: int = DRAWS,
    types: Labels | None = None,
    most: int | None = None,
) -> Evaluation:
    """All scores that are reported of a model on held-out sequences; the same seed gives the same scores.

    Arguments:
        train: the sequences on which the methods beside the model are tuned.
        particles: K of the importance-weighted bounds.
        given: number of frames that forecasts start from, context included; half of the frames if None.
        horizons: numbers of frames to forecast; one given twice counts once.
        margin: number of frames that a boundary may be off in a further F1, which the methods beside the model are then
            tuned for; None for exact F1 alone.
        methods: the methods beside the model: `quick` takes seconds, `all` about a minute on one core.
        flat: an RSSM, whose forecasts are scored too, and the peaks of whose surprise are a further method of `all`.
        num_samples: draws of each forecast, for its CRPS and coverage.
        types: [N, T], the type that the model gives every held-out frame, -1 for none; None without types.
        most: the most sequences times particles in one pass; fewer where memory asks for it.
    """
    device, horizons = model.device, tuple(dict.fromkeys(horizons))
    start = max(held_out.num_frames // 2, model.config.context + 1) if given is None else given
    if horizons:
        check(model, held_out.num_frames, start, horizons, num_samples)  # before scores that take minutes
    with random_seed(device, seed):
        scores = evaluate(model, in_order(held_out, device), particles, most)
        if model.has_segments:
            shared = agreement(model, in_order(held_out, device))
            scores = dataclasses.replace(scores, boundary_agreement=shared)
        if horizons:
            nats, counts = _forecasts(model, in_order(held_out, device), start, horizons, particles, most)
            scores = dataclasses.replace(scores, forecast_nats=nats, forecast_nats_sequences=counts)
    if horizons:
        with random_seed(device, seed):
            forecasts = forecast_scores(
                model, held_out, train, given=start, horizons=horizons,
                flat=flat, num_samples=num_samples, seed=seed, most=most,
            )  # fmt: skip
        scores = dataclasses.replace(scores, forecasts=forecasts)
    if held_out.bounded.any() or _has_types(held_out):
        order = np.argsort(~held_out.bounded, kind="stable")  # one batch holds those of known boundaries, or others
        scored = held_out.subset(order)
        own = None if train is None else train.with_boundaries()
        with random_seed(device, seed):
            found = boundary_scores(
                model, _by_knowledge(scored, device), () if own is None else in_order(own, device, TUNING_SEQUENCES),
                known_chances(scored), margin=margin, methods=methods, flat=flat, seed=seed, most=most,
                labels=scored.labels, types=None if types is None else types[order],
                tuning_labels=None if own is None else own.labels,
            )  # fmt: skip
        scores = dataclasses.replace(scores, boundaries=found)
    return scores


def _has_types(sequences: Sequences) -> bool:
    """Whether the true type of any frame is known."""
    return sequences.labels is not None and bool((sequences.labels >= 0).any())


def _by_knowledge(sequences: Sequences, device: torch.device) -> Iterator[Batch]:
    """Sequences whose true boundaries are known, and then those whose are not."""
    for rows in (np.flatnonzero(sequences.bounded), np.flatnonzero(~sequences.bounded)):
        if len(rows):
            yield from in_order(sequences.subset(rows), device)


def _forecasts(
    model: StateSpaceModel,
    batches: Iterable[Batch],
    given: int,
    horizons: Sequence[int],
    particles: int,
    most: int | None,
) -> tuple[dict[str, float], dict[str, int]]:
    """Mean log likelihood of the next frames given the first `given`, by horizon, and the number of its sequences."""
    totals, counts = np.zeros(len(horizons)), np.zeros(len(horizons), np.int64)
    for frames, mask, _ in batches:
        seen = observed_entries(frames, mask)
        judged = torch.stack([can_be_judged(seen, given, slice(given, given + horizon)) for horizon in horizons])
        frames, mask = _rows(judged.any(0), frames, mask)
        if len(frames) == 0:
            continue
        judged = judged[:, judged.any(0)]
        found = forecast_log_likelihoods(model, frames, given, horizons, mask, particles, most)
        totals += torch.where(judged, found, 0.0).sum(1).cpu().numpy()
        counts += judged.sum(1).cpu().numpy()
    names = list(map(str, horizons))
    means = np.divide(totals, counts, out=np.full(len(totals), math.nan), where=counts > 0)
    return dict(zip(names, means.tolist(), strict=True)), dict(zip(names, counts.tolist(), strict=True))


def _rows(kept: Tensor, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The sequences for which a flag [B] is set."""
    if bool(kept.all()):
        return frames, mask
    return frames[kept], None if mask is None else mask[kept]


def agreement(model: StateSpaceModel, batches: Iterable[Batch]) -> float | None:
    """Share of the boundaries of a draw from q(M | X) that another draw has too: Σ p² / Σ p over all positions.

    It is 1 where q knows where segments end, and as small as the boundary rate where q knows nothing.

    Returns None where less than one boundary is expected among all sequences.
    """
    once = twice = 0.0
    for frames, mask, _ in batches:
        chances = segment(model, frames, mask).probabilities.double()
        once += chances.sum().item()
        twice += chances.square().sum().item()
    return twice / once if once >= 1 else None


def evaluate(
    model: StateSpaceModel,
    batches: Iterable[tuple[Tensor, Tensor | None] | Batch],
    particles: int = 100,
    most: int | None = None,
) -> Evaluation:
    """Held-out bounds, their terms and boundary statistics, of the sequences that have a frame after the context.

    Arguments:
        batches: (frames [B, T, X…], mask [B, T] or [B, T, X…] or None) each, or batches of a data set.
        particles: K of the importance-weighted bound; the ELBO averages over the particles too.
        most: as in :func:`measure`.

    Raises:
        InputError: where no sequence has a frame after the context.
    """
    totals: dict[str, float] = dict.fromkeys(
        (*TERMS, "bound", "square", "iwae", "boundaries", "forced", "sequences", "frames", "entries", "chances"), 0.0
    )
    context = model.config.context
    for frames, mask, *_ in batches:
        frames, mask = _rows(lengths(context, frames, mask) > 0, frames, mask)
        if len(frames) == 0:
            continue
        drawn = log_weights(model, frames, mask, particles, most)
        bound = -drawn.weights.mean(0).double()
        acts = acting(context, frames, mask)
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
        totals["entries"] += observed_entries(frames, mask)[:, context:].sum().item()
    some = totals["sequences"] > 0
    require(some, f"an evaluation needs a sequence with frames after the context of {context}, found none")
    return _summarise(totals, particles)


def _summarise(totals: dict[str, float], particles: int) -> Evaluation:
    count = totals["sequences"]
    mean = totals["bound"] / count
    variance = max(0.0, totals["square"] / count - mean**2)
    return Evaluation(
        nats_per_sequence=mean,
        nats_standard_error=math.sqrt(variance / (count - 1)) if count > 1 else math.nan,
        iwae_nats_per_sequence=totals["iwae"] / count,
        particles=particles,
        nats_per_frame=totals["bound"] / totals["frames"],
        terms={name: totals[name] / count for name in TERMS},
        boundary_rate=totals["boundaries"] / max(1.0, totals["chances"]),
        forced_rate=totals["forced"] / max(1.0, totals["boundaries"]),
        mean_segment_length=totals["frames"] / (totals["boundaries"] + count),
        sequences=int(count),
        nats_per_entry=totals["bound"] / max(1.0, totals["entries"]),
    )
