"""Types of segments by their frames: the frames of all segments of a type are draws from one Normal.

For segments in which one thing goes on from many starting points, as an oscillation does from any phase. z must tell
the starting point too, so that its values lie on a curve for each type, and are no clusters. A frame counts together
with its change from the frame before, by which motions differ that visit the same places. The boundaries are the
model's; given these, the types are a mixture whose components every frame of a segment shares, fitted by EM (Dempster,
Laird and Rubin 1977) over the moments of each segment.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_hrssm.data.batches import in_order
from pyro_hrssm.data.sequences import Sequences
from pyro_hrssm.errors import InputError, require
from pyro_hrssm.inference.holding import held, latest
from pyro_hrssm.inference.segments import Segments
from pyro_hrssm.inference.types import STARTS, Integers, per_frame
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.masks import observed_entries

Floats = NDArray[np.float64]

MOST_AXES = 8
"""Frames with more entries are seen along so many principal axes, or as many as there are frames to find axes from."""

NOISE = 0.1
"""Least standard deviation of a type's frames where the emission has none of its own, values being in [0, 1]."""

STEPS = 100
"""Number of EM steps; it stops early where one gains less than a millionth of a nat per frame."""


class FrameTypes(NamedTuple):
    """A mixture of K Normals over frames along D axes and their changes, the most frequent type first."""

    weights: Floats
    """[K] share of the segments."""
    means: Floats
    """[K, 2 D] of the frames, then of their changes."""
    covariances: Floats
    """[K, 2 D, 2 D]"""
    centre: Floats
    """[X] in the units of scaled frames, all entries in one axis."""
    axes: Floats
    """[X, D] orthonormal."""

    @property
    def number(self) -> int:
        """K."""
        return len(self.weights)


class Moments(NamedTuple):
    """Sums over the observed frames of each of M segments."""

    frames: Floats
    """[M] number of frames."""
    sums: Floats
    """[M, 2 D]"""
    products: Floats
    """[M, 2 D, 2 D]"""


def fit(model: StateSpaceModel, segments: Segments, sequences: Sequences, number: int, seed: int = 0) -> FrameTypes:
    """So many types of these segments.

    Arguments:
        model: its noise is the least spread of a type.
        segments: segments of the first sequences (`find_segments`).
        sequences: training sequences.
        seed: seed of the starts.

    Raises:
        InputError: where `number` is below 1, or there are fewer segments.
    """
    found = len(segments.states)
    require(1 <= number <= found, f"types must be from 1 to the {found} training segments, found {number}")
    centre, axes, noise = _axes(model, sequences)
    moments = _moments(segments, sequences, centre, axes)
    least = np.kron(np.eye(2), axes.T @ (noise[:, None] ** 2 * axes))
    random = np.random.default_rng(seed)
    starts = [_by_means(moments, number, seed)]
    starts += [random.dirichlet(np.full(number, 0.2), found) for _ in range(STARTS - 1)]
    fits = [_expectation_maximisation(moments, start, least.astype(np.float64)) for start in starts]
    _, weights, means, covariances = max(fits, key=lambda one: one[0])
    order = np.argsort(-weights, kind="stable")
    return FrameTypes(weights[order], means[order], covariances[order], centre, axes)


def assign(types: FrameTypes, segments: Segments, sequences: Sequences) -> tuple[Integers, Floats]:
    """The most probable type [M], from 0, of segments of the first sequences, and its probability [M].

    The probability takes the frames of a segment for independent, and is then close to 1 in long ones.
    """
    moments = _moments(segments, sequences, types.centre, types.axes)
    odds = _log_joint(moments, types.weights, types.means, types.covariances)
    chances = np.exp(odds - np.logaddexp.reduce(odds, axis=1, keepdims=True))
    return chances.argmax(1), chances.max(1)


def _axes(model: StateSpaceModel, sequences: Sequences) -> tuple[Floats, Floats, Floats]:
    """Centre [X], axes [X, D] and noise [X] of frames, from the first batch of sequences that is observed."""
    every = in_order(sequences, torch.device("cpu"))
    batch = next(batch for batch in every if observed_entries(batch.frames, batch.mask).any())
    frames, known = batch.frames.flatten(2).double(), observed_entries(batch.frames, batch.mask).flatten(2)
    centre, size = _means(frames, known), frames.shape[2]
    seen = torch.where(known, frames, centre)[known.any(2)]
    if size <= MOST_AXES:
        axes = torch.eye(size, dtype=torch.float64)
    else:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # the method draws a random start
            axes = torch.pca_lowrank(seen - centre, min(MOST_AXES, len(seen)), center=False)[2]
    emission, noise = model.emission, torch.full((size,), NOISE, dtype=torch.float64)
    if emission.likelihood == "normal":
        noise = emission.noise(emission.combine.weight.new_zeros(model.config.frame_shape)).detach().cpu().double()
    return centre.numpy(), axes.numpy(), noise.flatten().numpy()


def _moments(segments: Segments, sequences: Sequences, centre: Floats, axes: Floats) -> Moments:
    parts, first = [], 0
    stop = int(segments.sequence.max()) + 1 if len(segments.sequence) else 0
    for batch in in_order(sequences, torch.device("cpu"), stop):
        size, length = batch.frames.shape[:2]
        rows = (segments.sequence >= first) & (segments.sequence < first + size)
        own = segments.at(rows)
        own = own._replace(sequence=own.sequence - first)
        owner = per_frame(own, np.arange(len(own.sequence)), (size, length))
        known = observed_entries(batch.frames, batch.mask).flatten(2)
        frames = _held_within(batch.frames.flatten(2).double().numpy() - centre, known.numpy(), owner) @ axes
        parts.append(_sums(frames, known.any(2).numpy(), owner))
        first += size
    if not parts:
        width = 2 * axes.shape[1]
        return Moments(np.zeros(0), np.zeros((0, width)), np.zeros((0, width, width)))
    return Moments(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _means(frames: Tensor, known: Tensor) -> Tensor:
    """Mean [X] of every entry's observed values; 0 of an entry without any."""
    return torch.where(known, frames, 0.0).sum((0, 1)) / known.sum((0, 1)).clamp(min=1)


def _held_within(frames: Floats, known: NDArray[np.bool_], owner: Integers) -> Floats:
    """Centred frames [N, T, X] whose missing entries have the value last observed in the same segment, else 0."""
    if known.all():
        return frames
    opens = np.diff(owner, axis=1, prepend=owner[:, :1] - 1) != 0
    first = latest(opens[..., None])
    return np.where(latest(known) >= first, held(frames, known), 0.0)


def _sums(frames: Floats, seen: NDArray[np.bool_], owner: Integers) -> Moments:
    """Moments of frames [N, T, D] by the segment [N, T] that owns each; those of one segment follow each other."""
    frames = held(frames, seen[..., None])
    change, goes_on = np.zeros_like(frames), owner[:, 1:] == owner[:, :-1]
    steps = np.diff(frames, axis=1) * goes_on[..., None]
    change[:, 1:] = steps
    opens = np.concatenate([np.ones_like(goes_on[:, :1]), ~goes_on], 1)
    # A segment's first frame has no frame before it there: it takes the change to the frame after it, if there is one.
    change[:, :-1] = np.where(opens[:, :-1, None], steps, change[:, :-1])
    within = owner >= 0
    values = np.concatenate([frames, change], -1)[within]
    counted = seen[within].astype(np.float64)[:, None]
    starts = np.flatnonzero(np.diff(owner[within], prepend=-1))
    weighted = values * counted
    products = [np.add.reduceat(weighted[:, i : i + 1] * values, starts) for i in range(values.shape[1])]
    return Moments(
        np.add.reduceat(counted[:, 0], starts), np.add.reduceat(weighted, starts), np.stack(products, axis=1)
    )


def _by_means(moments: Moments, number: int, seed: int) -> Floats:
    """Responsibilities [M, K] of a start by k-means over each segment's mean."""
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise InputError("types need scikit-learn: pip install 'pyro-hrssm[types]'") from error
    means = moments.sums / np.maximum(1, moments.frames)[:, None]
    distinct = min(number, len(np.unique(means, axis=0)))
    return np.eye(number)[KMeans(distinct, n_init=STARTS, random_state=seed).fit_predict(means)]


def _expectation_maximisation(moments: Moments, shares: Floats, least: Floats) -> tuple[float, Floats, Floats, Floats]:
    """Log likelihood, weights, means and covariances, from responsibilities [M, K]; `least` adds to covariances."""
    before, tolerance = -np.inf, 1e-6 * moments.frames.sum()
    for _ in range(STEPS):
        weights = (shares.sum(0) + 1e-9) / (len(shares) + 1e-9 * shares.shape[1])
        frames = shares.T @ moments.frames + 1e-9
        means = shares.T @ moments.sums / frames[:, None]
        squares = np.tensordot(shares.T, moments.products, 1) / frames[:, None, None]
        covariances = squares - means[:, :, None] * means[:, None, :] + least
        odds = _log_joint(moments, weights, means, covariances)
        likely = np.logaddexp.reduce(odds, axis=1)
        shares, found = np.exp(odds - likely[:, None]), float(likely.sum())
        if found - before < tolerance:
            break
        before = found
    return found, weights, means, covariances


def _log_joint(moments: Moments, weights: Floats, means: Floats, covariances: Floats) -> Floats:
    """[M, K], log of a type's weight times the density of all frames of a segment under it."""
    precisions, size = np.linalg.inv(covariances), means.shape[1]
    pulled = np.einsum("kij,kj->ki", precisions, means)
    distances = np.tensordot(moments.products, precisions, ((1, 2), (1, 2))) - 2 * moments.sums @ pulled.T
    distances += moments.frames[:, None] * (means * pulled).sum(1)
    norms = np.linalg.slogdet(covariances)[1] + size * np.log(2 * np.pi)
    joint: Floats = np.log(weights) - 0.5 * (distances + moments.frames[:, None] * norms)
    return joint
