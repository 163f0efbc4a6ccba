"""The best boundaries that any method can find: the exact posterior under the process that drew the sequences.

A semi-Markov process (:class:`pyro_hrssm.data.segments.Process`) has a state and a length per segment. Forward and
backward messages run over both at once (Yu 2010, "Hidden semi-Markov models"), in log space: `O(T · L · K)` for each
of N sequences of T frames, with K states and segments of at most L frames.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_hrssm import data
from pyro_hrssm.data.batches import in_order
from pyro_hrssm.data.segments import Process
from pyro_hrssm.data.sequences import Sequences

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

ROUNDING = 1e-5
"""Least standard deviation of the noise: far above what float32 and scaling change in a frame without noise, some 1e-7,
and far below the distance between two states."""

CELLS = 2**21
"""Entries of the messages of one frame that are computed at once, a bound on memory."""


class _Lengths(NamedTuple):
    """Log probabilities [L] of a segment's length d, from 1 frame to the longest that fits a sequence."""

    ends: Floats
    """log P(length = d)"""
    lasts: Floats
    """log P(length ≥ d)"""


def known_chances(sequences: Sequences) -> Floats | None:
    """:func:`boundary_chances` [N, T] of sequences whose record names their process; None for all others."""
    process = data.process(sequences.generator)
    if process is None or process.means.shape[1] != sequences.frame_shape[-1]:
        return None
    parts = []
    for frames, mask, _ in in_order(sequences, torch.device("cpu")):
        own_units = sequences.scaling.invert(frames.numpy())
        parts.append(boundary_chances(process, own_units, None if mask is None else (mask > 0).numpy()))
    return np.concatenate(parts)


def boundary_chances(process: Process, frames: Floats, observed: Flags | None = None) -> Floats:
    """Probability [N, T] that a segment ends with the frame, given all frames; 0 at the last frame.

    Arguments:
        frames: [N, T, …, X] in the data's own units.
        observed: [N, T], False where a frame is missing, or [N, T, …, X] where an entry is; None if nothing is missing.
    """
    fit = _log_likelihoods(process, frames, observed if observed is not None and observed.ndim > 2 else None)
    if observed is not None and observed.ndim == 2:
        fit[~observed] = 0.0
    lengths, states = _lengths(process, frames.shape[1]), len(process.chain)
    with np.errstate(divide="ignore"):  # a step that the chain forbids
        chain = np.log(process.chain)
    chances = np.empty(fit.shape[:2])
    step = max(1, CELLS // (states * max(states, len(lengths.ends))))
    for start in range(0, len(fit), step):
        part = slice(start, start + step)
        before = _forward(fit[part], chain, lengths)
        after, total = _backward(fit[part], chain, lengths)
        chances[part] = np.exp(_sum(before + after, 2) - total[:, None])
    chances[:, -1] = 0.0  # the sequence's end cuts its last segment
    return np.minimum(chances, 1.0)  # rounding


def most_f1(chances: Floats, counted: Flags) -> Flags:
    """Boundaries [N, T] with the largest expected F1 over the counted positions, given their chances [N, T].

    Of all sets of n boundaries the n most probable have the most expected hits, so the answer is a threshold (Lipton,
    Elkan and Naryanaswamy 2014): the one with the largest `2 Σ_chosen p / (n + Σ p)`, which is the expected F1 but for
    terms that vanish as positions increase. It follows from the chances themselves, so that no truth tunes it. A
    boundary one frame off is worth nothing here: of the F1 within one frame this is no upper limit.
    """
    ordered = np.sort(chances[counted])[::-1]
    if not ordered.any():
        return np.zeros_like(counted)
    expected = 2 * np.cumsum(ordered) / (np.arange(1, len(ordered) + 1) + ordered.sum())
    chosen: Flags = counted & (chances >= ordered[np.argmax(expected)])
    return chosen


def _log_likelihoods(process: Process, frames: Floats, observed: Flags | None) -> Floats:
    """[N, T, K], log N(x_t; means[k], noise) of the observed entries, but for a term that all states share."""
    noise = np.maximum(process.noise, ROUNDING)
    counted: Any = {} if observed is None else {"where": observed}
    entries = tuple(range(2, frames.ndim))
    # One state at a time bounds the memory.
    return np.stack(
        [-0.5 * np.square((frames - mean) / noise).sum(entries, **counted) for mean in process.means], axis=-1
    )


def _lengths(process: Process, num_frames: int) -> _Lengths:
    shortest, longest = process.min_length, process.max_length
    lengths, number = np.arange(1, min(longest, num_frames) + 1), longest - shortest + 1
    with np.errstate(divide="ignore"):  # lengths below the shortest
        ends = np.log((lengths >= shortest) / number)
    return _Lengths(ends, np.log(np.minimum(1.0, (longest + 1 - lengths) / number)))


def _forward(fit: Floats, chain: Floats, lengths: _Lengths) -> Floats:
    """[N, T, K], log p(x_0 … x_t, and a segment of state k ends with frame t)."""
    num, num_frames, states = fit.shape
    ended = np.empty_like(fit)
    opened = np.full((num, states), -np.log(states))
    # Frames up to t with a segment that has lasted 1, …, L frames, whatever its length will be: [N, L, K].
    lasting = np.full((num, len(lengths.ends), states), -np.inf)
    for t in range(num_frames):
        lasting = _longer(lasting, opened, fit[:, t])
        ended[:, t] = _sum(lasting + lengths.ends[:, None], 1)
        opened = _sum(ended[:, t, :, None] + chain, 1)
    return ended


def _backward(fit: Floats, chain: Floats, lengths: _Lengths) -> tuple[Floats, Floats]:
    """[N, T, K], log p(x_{t+1} … | a segment of state k ended with frame t), and [N], log p(x)."""
    num, num_frames, states = fit.shape
    after = np.zeros_like(fit)
    # Frames from t on, where a segment opens that lasts 1, …, L frames, whatever the probability of that: [N, L, K].
    coming = np.full((num, len(lengths.ends), states), -np.inf)
    for t in reversed(range(num_frames)):
        coming = _longer(coming, after[:, t], fit[:, t])
        weights = lengths.ends.copy()
        # The sequence's end cuts a segment that reaches it: its length is at least the number of frames left.
        weights[num_frames - t - 1 : num_frames - t] = lengths.lasts[num_frames - t - 1 : num_frames - t]
        opened = _sum(coming + weights[:, None], 1)
        if t > 0:
            after[:, t - 1] = _sum(chain + opened[:, None], 2)
    return after, _sum(opened - np.log(states), 1)


def _longer(lasting: Floats, first: Floats, fit: Floats) -> Floats:
    """Segments [N, L, K] with one frame more, after those [N, K] of which the frame is the first."""
    return np.concatenate([first[:, None], lasting[:, :-1]], axis=1) + fit[:, None]


def _sum(values: Floats, axis: int) -> Floats:
    """Log of a sum of exponentials, -inf where all terms are."""
    total: Floats = np.logaddexp.reduce(values, axis=axis)
    return total
