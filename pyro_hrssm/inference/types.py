"""Types of segments: a Gaussian mixture over the abstract states that q infers where segments open.

z is one state per segment, and segments in which the same goes on get about the same z: types are clusters of these
states. The unit of each entry of z is q's own standard deviation. Distances below it mean nothing, because q
itself does not know z any better, and training never asks z for more; so a part of q's own variance is added to every
cluster's. Without it a mixture splits the clusters of noise-free data, and BIC then asks for ever more types; with all
of it, clusters that lie apart by a few of q's standard deviations are one.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributions import MultivariateNormal

from pyro_hrssm.errors import InputError, require
from pyro_hrssm.inference.segments import Segments

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_TYPES = 20
"""The most types that `auto` tries."""

STARTS = 5
"""Number of starts of each fit, of which the most likely one counts."""

WIDENED = 0.5
"""Share of q's own variance that is added to every cluster's. The means of q vary less than its draws do: with all of
it, two of the six levels of the data set `levels` became one type; with a tenth, noise-free colours had too many."""

TELLING = 0.3
"""An entry of z whose means vary by less than this share of q's own standard deviation says next to nothing (it carries
at most ½ log(1 + 0.3²) = 0.04 nats) and is left out: each would cost BIC a row of every covariance."""


class SegmentTypes(NamedTuple):
    """A mixture of K Normals over the abstract state, the most frequent type first."""

    weights: Floats
    """[K] share of the segments."""
    means: Floats
    """[K, Z]"""
    covariances: Floats
    """[K, Z, Z]"""
    entries: Integers
    """[E] the entries of z that tell types apart; the mixture is over these, and others are 0 in `means`."""
    bic: Floats
    """[tried] Bayesian information criterion of 1, 2, … types, lower is better; empty where their number was given."""

    @property
    def number(self) -> int:
        """K."""
        return len(self.weights)


def fit(segments: Segments, number: int | Literal["auto"] = "auto", seed: int = 0) -> SegmentTypes:
    """The types of these segments, by scikit-learn's `GaussianMixture` with full covariances.

    Arguments:
        segments: segments of training sequences (`find_segments`).
        number: number of types K; `auto` takes the number from 1 to 20 whose Bayesian information criterion is lowest.
        seed: seed of the starts.

    Raises:
        InputError: where scikit-learn is missing, `number` is below 1, or segments are fewer than types or than 2.
    """
    found = len(segments.states)
    require(number == "auto" or number >= 1, f"types must be at least 1 or auto, found {number}")
    require(found >= 2, f"types need at least 2 training segments, found {found}")
    require(number == "auto" or number <= found, f"types must be at most the {found} training segments, found {number}")
    unit = np.sqrt(np.mean(segments.deviations**2, axis=0))
    telling = np.flatnonzero(segments.states.std(0) >= TELLING * unit)
    entries = telling if len(telling) > 0 else np.arange(len(unit))
    scaled = (segments.states / unit)[:, entries]
    if number == "auto":
        tried = [_mixture(scaled, k, seed) for k in range(1, min(MOST_TYPES, found) + 1)]
        bic = np.array([mixture.bic(scaled) for mixture in tried])
        mixture = tried[int(bic.argmin())]
    else:
        mixture, bic = _mixture(scaled, number, seed), np.zeros(0)
    order = np.argsort(-mixture.weights_, kind="stable")
    unit = unit[entries]
    return SegmentTypes(
        weights=mixture.weights_[order],
        means=mixture.means_[order] * unit,
        covariances=mixture.covariances_[order] * np.outer(unit, unit),
        entries=entries,
        bic=bic,
    )


def _mixture(scaled: Floats, number: int, seed: int) -> Any:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise InputError("types need scikit-learn: pip install 'pyro-hrssm[types]'") from error
    mixture = GaussianMixture(number, reg_covar=WIDENED, n_init=STARTS, random_state=seed)
    with warnings.catch_warnings():
        # Fewer distinct states than types, or slow convergence of a start that does not count.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(scaled)


def assign(types: SegmentTypes, states: Floats) -> tuple[Integers, Floats]:
    """The most probable type [M], from 0, of abstract states [M, Z], and its probability [M] under the mixture."""
    normals = MultivariateNormal(torch.from_numpy(types.means), torch.from_numpy(types.covariances))
    values = torch.from_numpy(np.asarray(states, np.float64)[:, types.entries])
    log_odds = normals.log_prob(values.unsqueeze(1)) + torch.from_numpy(types.weights).log()
    probability, chosen = log_odds.softmax(-1).max(-1)
    return chosen.numpy(), probability.numpy()


def per_frame(segments: Segments, chosen: Integers, shape: tuple[int, int]) -> Integers:
    """The type of every frame's segment, [N, T] = `shape`; -1 in a model's context and past a sequence's end.

    Arguments:
        chosen: [M] type of every segment, as :func:`assign` gives them.
    """
    result = np.full(shape, -1)
    for row, start, end, kind in zip(segments.sequence, segments.start, segments.end, chosen, strict=True):
        result[row, start : end + 1] = kind
    return result


class Summary(NamedTuple):
    """How often each of K types occurs, how long it lasts and which follows which."""

    segments: Integers
    """[K] number of segments."""
    frames: Integers
    """[K] number of frames."""
    lengths: list[Integers]
    """[K] lists of the lengths of a type's segments in frames; the ends of sequences cut their last segments short."""
    transitions: Integers
    """[K, K] number of times that a segment of one type (row) is followed by one of another (column)."""


def summarise(segments: Segments, chosen: Integers, number: int) -> Summary:
    """Count types [M], each from 0 to `number` - 1."""
    lengths = [segments.lengths[chosen == kind] for kind in range(number)]
    transitions = np.zeros((number, number), np.int64)
    follows = segments.follows
    np.add.at(transitions, (chosen[:-1][follows], chosen[1:][follows]), 1)
    frames = np.array([part.sum() for part in lengths], np.int64)
    return Summary(np.bincount(chosen, minlength=number), frames, lengths, transitions)
