"""Hidden Markov models with Gaussian frames, from the package hmmlearn: a plain one and a sticky one.

A boundary is where the most probable path (Viterbi) changes its state; the states are types. Both have full covariances
and are fitted by EM on training sequences, from states that mostly stay: several starts per number of states (k-means
with other seeds), of which the one with the largest training likelihood is kept. The number of states is then chosen as
every method's parameters are: for boundaries by F1, and for types by accuracy, where training types are known.

The sticky one (after Fox, Sudderth, Jordan and Willsky 2011, *A Sticky HDP-HMM with Application to Speaker
Diarization*, with a fixed number of states) goes on from each plain fit, with a Dirichlet prior on each row of the
transition matrix that adds κ counts to staying: κ is a share of the mean number of frames per state, chosen along with
the number of states.

Frames of more than 16 entries are flattened and reduced to their first 16 principal components on the tuning sequences:
an image's covariances could not be fitted.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.inference.scores.methods.tuning import (
    BAR_AFTER_SECONDS,
    Candidate,
    Labelled,
    Method,
    Rule,
    Segmentation,
    choose,
)
from pyro_hrssm.progress import bar

Floats = NDArray[np.float64]

STATES = (2, 3, 4, 6, 8, 12)
STARTS = 3
STICKINESS = (1.0, 10.0)
"""Counts that the prior adds to staying in a state, as shares of the mean number of frames per state."""

_STAYING = 0.95
"""Self-transition probability from which EM starts."""

_ITERATIONS = 20
_STICKY_ITERATIONS = 10
"""Most steps of EM; the sticky model starts where the plain one ended."""

_TOLERANCE = 1e-4
"""Gain of log likelihood per frame below which EM stops."""

_SEQUENCES = 60
_FRAMES = 5_000
"""Bounds on the frames that EM sees: so many sequences, of each one piece with an equal share of the frames."""

_ENTRIES = 16
"""Largest number of entries of a frame, or principal components."""

_LEAST = 1e-3
"""Added to every variance, where entries have 1 on average: entries without noise leave no state a density that grows
with the number of its frames, which would draw all frames into one state."""


def hidden_markov(tuning: Labelled, margin: int = 0) -> tuple[Method, Method]:
    """The plain and the sticky model, `gaussian_hmm` and `sticky_hmm`."""
    reduce = _reduction(tuning)
    frames, lengths = _shortened(tuning, reduce)
    plain, sticky = _fits(frames, lengths)
    few = tuning.few()
    return (
        choose("gaussian_hmm", few, [Candidate(chosen, _rule(fit, reduce)) for chosen, fit in plain], margin),
        choose("sticky_hmm", few, [Candidate(chosen, _rule(fit, reduce)) for chosen, fit in sticky], margin),
    )


Fit = tuple[dict[str, Any], Any]


def _fits(frames: Floats, lengths: list[int]) -> tuple[list[Fit], list[Fit]]:
    """The likeliest plain model of every number of states, and the likeliest sticky one of every κ beside it."""
    numbers = [states for states in STATES if states <= len(np.unique(frames, axis=0))] or [1]
    tried: dict[tuple[int, float], list[Any]] = {}
    with _quiet():
        pairs = list(itertools.product(numbers, range(STARTS)))
        for states, start in bar(pairs, desc="hidden Markov models", leave=False, delay=BAR_AFTER_SECONDS):
            plain = _plain(frames, lengths, states, start)
            tried.setdefault((states, 0.0), []).append(plain)
            for share in STICKINESS:
                tried.setdefault((states, share), []).append(_sticky(frames, lengths, plain, share))
    best = {key: max(fits, key=lambda fit: fit.monitor_.history[-1]) for key, fits in tried.items()}
    return (
        [({"states": states}, fit) for (states, share), fit in best.items() if share == 0],
        [({"states": states, "stickiness": share}, fit) for (states, share), fit in best.items() if share > 0],
    )


def _plain(frames: Floats, lengths: list[int], states: int, seed: int) -> Any:
    """A fit from the clusters of k-means: their means, and the covariance within them, the same for all states."""
    from sklearn.cluster import KMeans

    clusters = KMeans(states, n_init=1, random_state=seed).fit(frames)
    model = _model(frames, states)
    model.startprob_, model.transmat_ = np.full(states, 1 / states), _staying(states)
    model.means_ = clusters.cluster_centers_
    apart = frames - model.means_[clusters.labels_]
    model.covars_ = np.tile(apart.T @ apart / len(frames) + _LEAST * np.eye(frames.shape[-1]), (states, 1, 1))
    return model.fit(frames, lengths)


def _sticky(frames: Floats, lengths: list[int], plain: Any, share: float) -> Any:
    states = plain.n_components
    prior = 1.01 + share * len(frames) / states * np.eye(states)
    model = _model(frames, states, transmat_prior=prior, n_iter=_STICKY_ITERATIONS)
    model.startprob_, model.means_, model.covars_ = plain.startprob_, plain.means_, plain.covars_
    model.transmat_ = _staying(states)
    return model.fit(frames, lengths)


def _staying(states: int) -> Floats:
    """[K, K] transition probabilities from which EM starts: a state mostly stays, and moves to any other alike."""
    moves = np.full((states, states), (1 - _STAYING) / max(1, states - 1))
    np.fill_diagonal(moves, _STAYING if states > 1 else 1.0)
    return moves


def _model(frames: Floats, states: int, **settings: Any) -> Any:
    """A model before its fit; weak priors keep a state that no frame belongs to from dividing by 0."""
    from hmmlearn.hmm import GaussianHMM

    class Bounded(GaussianHMM):
        """The covariances of hmmlearn's own class are bounded at the start of EM alone."""

        def _do_mstep(self, stats: Any) -> None:
            super()._do_mstep(stats)
            self._covars_ += _LEAST * np.eye(size)

    size = frames.shape[-1]
    priors = {
        "startprob_prior": 1.01,
        "transmat_prior": 1.01,
        "means_prior": frames.mean(0),
        "means_weight": 1e-3,
        "covars_prior": np.zeros((states, size, size)),
        "covars_weight": size + 1,
    }
    stop = {"n_iter": _ITERATIONS, "tol": _TOLERANCE * len(frames)}
    return Bounded(states, "full", init_params="", **(priors | stop | settings))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without hmmlearn's remark that EM's last gain was rounding, and k-means's that frames repeat."""
    log = logging.getLogger("hmmlearn")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Number of distinct clusters")
            yield
    finally:
        log.setLevel(level)


def _reduction(tuning: Labelled) -> Any:
    """A function from frames [M, D] to [M, d] with d at most 16, their mean 0 and their mean variance 1."""
    from sklearn.decomposition import PCA

    frames, _ = _shortened(tuning, lambda values: values.astype(np.float64))
    size = frames.shape[-1]
    wide = PCA(min(_ENTRIES, *frames.shape), svd_solver="randomized", random_state=0) if size > _ENTRIES else None
    kept = frames if wide is None else wide.fit_transform(frames)
    centre, scale = kept.mean(0), np.sqrt(kept.var(0).mean()) or 1.0

    def reduce(values: NDArray[Any]) -> Floats:
        kept = values.astype(np.float64) if wide is None else wide.transform(values)
        return (kept - centre) / scale

    return reduce


def _shortened(tuning: Labelled, reduce: Any) -> tuple[Floats, list[int]]:
    """Frames [M, d] of pieces of the first sequences, one after the other, and the number of frames of each.

    A piece lies anywhere in its sequence: beginnings may be all alike.
    """
    used, rng = tuning.head(_SEQUENCES), np.random.default_rng(0)
    lengths = np.minimum(used.lengths(), max(2, _FRAMES // len(used.truth)))
    starts = rng.integers(used.lengths() - lengths + 1)
    pieces = [row[start : start + length] for row, start, length in zip(used.frames, starts, lengths, strict=True)]
    return reduce(np.concatenate(pieces)), lengths.tolist()


def _rule(model: Any, reduce: Any) -> Rule:
    def find(data: Labelled) -> Segmentation:
        labels, inside = np.full(data.truth.shape, -1), data.inside()
        labels[inside] = model.predict(reduce(data.frames[inside]), data.lengths().tolist())
        boundaries = np.zeros_like(data.truth)
        boundaries[:, :-1] = (np.diff(labels, axis=1) != 0) & inside[:, 1:]
        return Segmentation(boundaries, labels)

    return find
