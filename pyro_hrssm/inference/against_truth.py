"""Boundaries and types against the true ones: those of a model, and of the methods beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_hrssm.data.batches import Batch
from pyro_hrssm.inference.best import most_f1
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
from pyro_hrssm.model.given import followed
from pyro_hrssm.model.masks import seen_entries
from pyro_hrssm.model.rssm import RSSM


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
        margin, methods, flat, most: as in :func:`pyro_hrssm.inference.evaluation.measure`.
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
