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
from numpy.typing import NDArray
from torch import Tensor

from pyro_hrssm.data.batches import Batch, in_order
from pyro_hrssm.data.sequences import Sequences
from pyro_hrssm.errors import one_line, require
from pyro_hrssm.inference.best import known_chances, most_f1
from pyro_hrssm.inference.bounds import TERMS, forecast_log_likelihoods, log_weights
from pyro_hrssm.inference.forecasts import DRAWS, ForecastScores, can_be_judged, check, forecast_scores, plain, said
from pyro_hrssm.inference.holding import held
from pyro_hrssm.inference.prediction import segment
from pyro_hrssm.inference.scores import (
    BoundaryScores,
    Flags,
    Labelled,
    LabelScore,
    Score,
    label_score,
    permutation_test,
    score,
    tuned,
)
from pyro_hrssm.inference.scores.labels import Labels
from pyro_hrssm.inference.scores.methods import Which, left_out
from pyro_hrssm.inference.surprise import surprise
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.given import acting, followed, lengths
from pyro_hrssm.model.masks import observed_entries, seen_entries
from pyro_hrssm.model.rssm import RSSM

TUNING_SEQUENCES = 500
"""Number of training sequences on which the methods beside the model are tuned."""


ALWAYS = 0.8
"""A boundary rate above which segments say no more than frames."""

NEVER = 0.001
"""A boundary rate below which segments say no more than sequences, unless these have thousands of frames."""

OVERFIT = 1.0
"""Nats that a held-out frame may cost more than one trained on before it is said."""

MANY_PASSES = 10
"""Passes over the training sequences before which no model knows them by heart."""


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


def collapse(scores: Evaluation) -> str | None:
    """One line about segments that cannot mean anything, because nearly all frames end one or none does; or None."""
    if scores.boundary_rate > ALWAYS:
        return (
            f"a segment ends with {100 * scores.boundary_rate:.0f} % of the frames: segments say nothing here; with "
            "--elbo leave_one_out, give boundaries a larger --boundary-price, or name their --boundary-rate"
        )
    if scores.boundary_rate < NEVER:
        return (
            "hardly any sequence has a second segment: segments say nothing here; with --elbo leave_one_out, give "
            "boundaries a smaller --boundary-price, or name their --boundary-rate; --prior-from 1, if they closed late"
        )
    return None


def overfit(scores: Evaluation, passes: float) -> str | None:
    """One line about a bound that is far better on training sequences than on held-out ones; or None.

    Arguments:
        passes: how often training has taken each sequence.
    """
    seen, unseen = scores.training_nats_per_sequence, scores.nats_per_sequence
    if seen is None or unseen == 0 or passes < MANY_PASSES:
        return None
    gap, error = unseen - seen, scores.nats_standard_error
    # By frames, since nats per sequence grow with them; a nat per frame is a factor of e in a frame's density.
    per_frame = gap * scores.nats_per_frame / unseen
    if per_frame <= OVERFIT or (math.isfinite(error) and gap <= 2 * error):
        return None
    return (
        f"a held-out frame costs {per_frame:.1f} nats more than one trained on: the model knows the training sequences "
        "by heart, or the held-out ones are of another kind; more data, fewer --steps or a smaller --hidden may help"
    )


def doubts(scores: Evaluation, has_segments: bool, passes: float) -> list[str]:
    """Lines about what is wrong with a trained model, by its scores; `passes` as of :func:`overfit`."""
    found = [collapse(scores) if has_segments else None, overfit(scores, passes)]
    return [text for text in found if text is not None]


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


def boundary_scores(
    model: StateSpaceModel,
    batches: Iterable[Batch],
    tuning: Iterable[Batch] = (),
    chances: NDArray[np.float64] | None = None,
    *,
    margin: int | None = None,
    methods: Which = "quick",
    flat: RSSM | None = None,
    labels: Labels | None = None,
    types: Labels | None = None,
    tuning_labels: Labels | None = None,
    seed: int = 1,
    most: int | None = None,
) -> BoundaryScores:
    """Score the model's most probable boundaries, and those of other methods, against the true ones after the context.

    Every position counts that a frame follows, also where the model's limits left it no choice: a model that spends its
    segments early misses the boundaries that come afterwards.

    Arguments:
        batches: sequences to score; boundaries are scored in batches that have the true ones.
        tuning: training sequences on which the methods are fitted and their parameters chosen; if they have no true
            boundaries, that is done on the scored sequences, which flatters the methods.
        chances: [N, T], the exact probabilities of boundaries where they are known (`known_chances`); they add
            `best_possible` to the methods.
        margin, methods, flat, most: as in :func:`measure`.
        labels: [N, K + T], the true type of every frame, -1 where unknown, or None.
        types: [N, K + T], the type that the model gives every frame, -1 for none, or None.
        tuning_labels: [≥ N, K + T], as `labels`, of the training sequences and perhaps further ones.
        seed: seed of the permutation test.
    """
    context = model.config.context
    data, found, forced = _found(model, batches, flat, most)
    counted, finds = data.counted(), data.bounded is None or bool(data.bounded.any())
    with_truth = [batch for batch in tuning if batch.boundaries is not None]
    truth = None if labels is None else labels[:, context:]
    known = data._replace(labels=truth)
    if with_truth:
        known = labelled(with_truth, context, flat, most)
        own = None if tuning_labels is None else tuning_labels[: len(known.truth), context:]
        known = known._replace(labels=own)
    baselines: dict[str, Score] = {}
    parameters: dict[str, dict[str, Any]] = {}
    typed: dict[str, Labels] = {}
    if types is not None:
        typed["model"] = types[:, context:]
    for method in tuned(known, methods, margin or 0):
        segmentation = method.find(data)
        if finds:
            baselines[method.name] = score(segmentation.boundaries, data.truth, counted, margin)
        chosen = method.parameters
        if method.types is not None and truth is not None:
            given = (segmentation if method.types.find is method.find else method.types.find(data)).labels
            assert given is not None
            typed[method.name] = given
            chosen = chosen | {f"types_{name}": value for name, value in method.types.parameters.items()}
        parameters |= {method.name: chosen} if chosen else {}
    if chances is not None and methods != "none" and finds:
        best = most_f1(chances[:, context:], counted)
        baselines["best_possible"] = score(best, data.truth, counted, margin)
    tested = model.has_segments and finds
    return BoundaryScores(
        model=score(found, data.truth, counted, margin) if finds else None,
        baselines=baselines,
        forced_share=float((forced & counted).sum()) / max(1.0, float(counted.sum())),
        tuned_on="training" if with_truth else "evaluation",
        margin=margin,
        permutation=permutation_test(found, data.truth, counted, margin or 0, seed) if tested else None,
        parameters=parameters,
        left_out=left_out(methods, flat is not None) | _untyped(model, truth, types),
        labels={} if truth is None else _label_scores(typed, truth, data),
        bounded_sequences=None if data.bounded is None else int(data.bounded.sum()),
    )


def _untyped(model: StateSpaceModel, truth: Labels | None, types: Labels | None) -> dict[str, str]:
    """What the model's own types need, where the true ones are known and the model could have some."""
    lacks = truth is not None and types is None and model.has_segments
    return {"types of the model": "pyro-hrssm segment RUN --types K gives a run types"} if lacks else {}


def _label_scores(typed: dict[str, Labels], truth: Labels, data: Labelled) -> dict[str, LabelScore]:
    """The scores of types [N, T] by the method that gave them; none where no type is known of a frame to score."""
    frames = data.inside()
    if not (frames & (truth >= 0)).any():
        return {}
    return {name: label_score(found, truth, frames) for name, found in typed.items()}


def boundary_score(model: StateSpaceModel, batches: Iterable[Batch]) -> Score:
    """The model's score alone; arguments as in :func:`boundary_scores`."""
    data, found, _ = _found(model, batches)
    return score(found, data.truth, data.acts)


def _found(
    model: StateSpaceModel, batches: Iterable[Batch], flat: RSSM | None = None, most: int | None = None
) -> tuple[Labelled, Flags, Flags]:
    """Sequences, the model's boundaries [N, T], and the positions [N, T] where the model's limits left no choice."""
    found: list[tuple[Tensor, Tensor]] = []

    def segmented() -> Iterator[Batch]:
        for batch in batches:
            if model.has_segments:
                segments = segment(model, batch.frames, batch.mask)
                found.append((segments.boundaries.cpu(), segments.forced.cpu()))
            yield batch

    # One batch after the other, each dropped from the device.
    data = labelled(segmented(), model.config.context, flat, most)
    if not model.has_segments:
        # A flat model has no boundaries, so its score is that of the baseline `never`.
        return data, np.zeros_like(data.truth), np.zeros_like(data.truth)
    boundaries, forced = (torch.cat(values).numpy() for values in zip(*found, strict=True))
    return data, boundaries, forced


def labelled(batches: Iterable[Batch], context: int, flat: RSSM | None = None, most: int | None = None) -> Labelled:
    """Sequences with their true boundaries, where known, as flat arrays, the context's frames left out.

    Arguments:
        flat: the model whose surprise is noted, with the same context; or None.
        most: the most sequences times particles in one pass of that model; fewer where memory asks for it.
    """
    frames, truth, acts, surprises, bounded = [], [], [], [], []
    for batch in batches:
        ends = torch.zeros(batch.frames.shape[:2], dtype=torch.bool) if batch.boundaries is None else batch.boundaries
        bounded += [batch.boundaries is not None] * len(ends)
        values = batch.frames[:, context:].flatten(2).cpu().numpy()
        if batch.mask is not None:
            seen = seen_entries(batch.mask[:, context:], len(batch.frames.shape) - 2).flatten(2)
            values = held(values, seen.cpu().numpy())
        frames.append(values)
        truth.append(ends[:, context:].cpu().numpy())
        acts.append(followed(context, batch.frames, batch.mask).cpu().numpy())
        if flat is not None:
            # A boundary lies before the frame that surprises.
            surprises.append(surprise(flat, batch.frames, batch.mask, most=most).roll(-1, 1).cpu().numpy())
    noted = np.concatenate(surprises) if surprises else None
    known = None if all(bounded) else np.array(bounded)
    return Labelled(np.concatenate(frames), np.concatenate(truth), np.concatenate(acts), noted, bounded=known)
