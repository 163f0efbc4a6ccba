"""Segments of uniform length whose states are a Markov chain: which `colours`, `levels` and `modes` share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.errors import one_line, require


class Process(NamedTuple):
    """Sequences of segments: `x_t = means[k] + noise · ε`, with one state k per segment.

    The first frame opens a segment, whose state is uniform; the sequence's end cuts the last segment.
    """

    means: NDArray[np.float64]
    """[K, X], every state's frame, or each of its pixels, in the data's own units."""
    noise: NDArray[np.float64]
    """[X], standard deviation of the independent noise on every entry; it may be 0."""
    chain: NDArray[np.float64]
    """[K, K], probability of the next segment's state (column) given this one's (row); every row is the row above it,
    moved on by one."""
    min_length: int
    """Shortest segment, in frames."""
    max_length: int
    """Longest segment, in frames; every length from the shortest on is equally likely."""


def check(num: int, seed: int, num_frames: int) -> None:
    """Raise :class:`InputError` where no sequences [num, num_frames] can be drawn, or none with this seed."""
    require(num >= 1 and seed >= 0, f"num must be at least 1 and seed at least 0, found {num} and {seed}")
    require(num_frames >= 2, f"num_frames must be at least 2, found {num_frames}")


def check_lengths(min_length: int, max_length: int) -> None:
    """Raise :class:`InputError` where no segment can have such a length."""
    rising = 1 <= min_length <= max_length
    require(rising, f"lengths must rise from at least 1, found {one_line(min_length)} to {one_line(max_length)}")
    require(max_length < 2**31, f"lengths must fit 31 bits, found {one_line(max_length)}")


def any_other(states: int) -> NDArray[np.float64]:
    """The chain [K, K] that moves to any state but its own, all equally likely."""
    return (1 - np.eye(states)) / (states - 1)


def draw_boundaries(
    rng: np.random.Generator, shape: tuple[int, int], min_length: int, max_length: int
) -> NDArray[np.bool_]:
    """[N, T], True at the last frame of every segment that ends before the sequence does; lengths are uniform."""
    num, num_frames = shape
    segments = -(-num_frames // min_length)
    lengths = rng.integers(min_length, max_length + 1, (num, segments))
    ends = np.cumsum(lengths, axis=1) - 1
    rows, columns = np.nonzero(ends < num_frames - 1)
    boundaries = np.zeros(shape, bool)
    boundaries[rows, ends[rows, columns]] = True
    return boundaries


def draw_states(
    rng: np.random.Generator, boundaries: NDArray[np.bool_], chain: NDArray[np.float64]
) -> NDArray[np.int64]:
    """State [N, T] of every frame. The chain [K, K] is circulant: its first row gives the steps from state to state."""
    num, num_frames = boundaries.shape
    states = len(chain)
    first = rng.integers(states, size=(num, 1))
    steps = rng.choice(states, p=chain[0], size=(num, num_frames))
    steps[:, 1:] *= boundaries[:, :-1]
    steps[:, 0] = 0
    return (first + np.cumsum(steps, axis=1)) % states


def changes(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Boundaries [N, T] of segments that are runs of one label [N, T]: True where the next frame has another one."""
    boundaries = np.zeros(labels.shape, bool)
    boundaries[:, :-1] = labels[:, 1:] != labels[:, :-1]
    return boundaries
