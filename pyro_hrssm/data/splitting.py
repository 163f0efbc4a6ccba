"""Checks, splits and scales the arrays of one data set."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data.sequences import Likelihood, Scaling, Sequences, Splits
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.data.statistics import check_ends, check_range, standardise, summarise
from pyro_hrssm.errors import InputError


def split_indices(num: int, config: DataConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the training split and of the held-out one: disjoint, complete, shuffled, neither empty."""
    if num < 2:
        raise InputError(f"a split needs at least 2 sequences, found {num}")
    if config.split_seed < 0:
        raise InputError(f"split_seed must be at least 0, found {config.split_seed}")
    # The raw stream: unlike a Generator's permutation, numpy promises never to change it.
    order = np.argsort(np.random.PCG64(config.split_seed).random_raw(num), kind="stable")
    held_out = min(max(1, round(num * config.held_out)), num - 1)
    return order[held_out:], order[:held_out]


def split(
    frames: Shards,
    mask: NDArray[np.bool_] | None,
    boundaries: NDArray[np.bool_] | None,
    config: DataConfig,
    scaling: Scaling | None,
    name: str,
    generator: str | None = None,
    labels: NDArray[np.int64] | None = None,
) -> Splits:
    """Split frames [N, T, X…] at random and scale them according to their dtype, or by a given `scaling`.

    Unsigned integers and booleans are scaled to [0, 1], for a Bernoulli emission. Floats and signed integers are
    standardised per entry of the last axis on the training split, for a Normal emission. A sequence without an
    observed frame raises :class:`InputError`.
    """
    train, held_out = split_indices(len(frames), config)
    sequences = checked(frames, mask, boundaries, scaling, train, generator, labels)
    likelihood: Likelihood = "bernoulli" if frames.dtype.kind in "bu" else "normal"
    return Splits(sequences.subset(train), sequences.subset(held_out), name, likelihood, sequences.scaling)


def checked(
    frames: Shards,
    mask: NDArray[np.bool_] | None,
    boundaries: NDArray[np.bool_] | None,
    scaling: Scaling | None,
    train: NDArray[np.int64],
    generator: str | None = None,
    labels: NDArray[np.int64] | None = None,
) -> Sequences:
    """All sequences, checked: every sequence has an observed frame, and these are finite before and after scaling.

    If no `scaling` is given, one is fitted on the rows `train` [M].
    """
    summary = None if frames.dtype.kind in "bu" else summarise(frames, mask, train)
    if summary is not None and not summary.observed.all():
        mask = summary.observed
    _check_observed(mask)
    if scaling is None:
        scaling = _unit_interval(frames.dtype) if summary is None else standardise(summary)
    sequences = Sequences(frames, mask, boundaries, scaling, generator=generator, labels=labels)
    if summary is None:
        ends = np.zeros((2, frames.shape[-1]), frames.dtype)
        ends[1] = _largest(frames.dtype)
        check_ends(ends, scaling)
    else:
        check_range(summary, scaling)
    return sequences


def _unit_interval(dtype: np.dtype[Any]) -> Scaling:
    return Scaling(0.0, float(_largest(dtype)))


def _largest(dtype: np.dtype[Any]) -> int:
    return 1 if dtype.kind == "b" else int(np.iinfo(dtype).max)


def _check_observed(mask: NDArray[np.bool_] | None) -> None:
    if mask is not None and not mask.any(axis=1).all():
        empty = int(np.argmin(mask.any(axis=1)))
        raise InputError(f"every sequence needs an observed frame, found none in sequence {empty}")
