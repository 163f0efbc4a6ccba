"""Checks, splits and scales the arrays of one data set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data.content import Arrays
from pyro_hrssm.data.sequences import Emission, Likelihood, Scaling, ScalingName, Sequences, Splits
from pyro_hrssm.data.statistics import (
    Summary,
    check_ends,
    check_range,
    extremes,
    standardise,
    summarise,
    to_unit,
)
from pyro_hrssm.errors import InputError


def split_indices(num: int, config: DataConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the training split and of the held-out one: disjoint, complete, shuffled, neither empty."""
    if num < 2:
        raise InputError(
            f"a split needs at least 2 sequences, found {num}: --window-length cuts one recording into windows of that "
            "many frames; or store two as train and test"
        )
    if config.split_seed < 0:
        raise InputError(f"split_seed must be at least 0, found {config.split_seed}")
    # The raw stream: unlike a Generator's permutation, numpy promises never to change it.
    order = np.argsort(np.random.PCG64(config.split_seed).random_raw(num), kind="stable")
    held_out = min(max(1, round(num * config.held_out)), num - 1)
    return order[held_out:], order[:held_out]


def rows_of(arrays: Arrays, config: DataConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows to hold out: as they were given, else at random."""
    num = len(arrays.frames)
    if arrays.num_train is None:
        return split_indices(num, config)
    return np.arange(arrays.num_train), np.arange(arrays.num_train, num)


def split(
    arrays: Arrays, config: DataConfig, scaling: Scaling | None, name: str, likelihood: Emission = "auto"
) -> Splits:
    """Split sequences, at random unless they are split already, and scale them as `config` says, or by a given scaling.

    By default, unsigned integers and booleans, and integers of 0 and 1, are scaled to [0, 1], for a Bernoulli emission.
    Floats and other integers are standardised per entry of the last axis, for a Normal emission. The scaling is fitted
    on the training split, but that to [0, 1] for a Bernoulli emission on all sequences, since a held-out frame outside
    of [0, 1] would have no likelihood. A sequence without an observed frame raises :class:`InputError`.

    Arguments:
        likelihood: the emission that will score the frames; `auto` for the one that suits them.
    """
    rows = rows_of(arrays, config)
    sequences = checked(arrays, config.scaling if scaling is None else scaling, rows[0], likelihood)
    return parted(sequences, *rows, name)


def parted(sequences: Sequences, train: NDArray[np.int64], held_out: NDArray[np.int64], name: str) -> Splits:
    """Checked sequences as a data set: the rows to train on and those to hold out."""
    unread, likelihood = sequences.arrays.unread, _suitable(sequences)
    return Splits(
        sequences.subset(train), sequences.subset(held_out), name, likelihood, sequences.scaling, unread=unread
    )


def checked(
    arrays: Arrays,
    scaling: Scaling | ScalingName,
    train: NDArray[np.int64] | None = None,
    likelihood: Emission = "auto",
) -> Sequences:
    """All sequences, checked: every sequence has an observed frame, and these are finite before and after scaling.

    A `scaling` that is only named is fitted as :func:`split` says, with the rows `train` [M] as training split.
    """
    frames, mask, weights = arrays.frames, arrays.mask, arrays.weights
    rows = np.arange(len(frames)) if train is None else train
    _check_observed(mask)
    if isinstance(scaling, Scaling):
        scaling.check(frames.shape[2:])
    own = None
    if frames.dtype.kind in "bu" and scaling != "standard":
        known = frames.dtype.kind == "b" and weights is None
        every = np.zeros(len(frames), frames.dtype)
        lowest, highest, gaps = (every, ~every, None) if known else extremes(frames, mask, weights)
        if scaling == "none":
            scaling = Scaling()
        elif not isinstance(scaling, Scaling):
            of_all = to_unit(frames.dtype, int(lowest.min()), int(highest.max()))
            of_train = to_unit(frames.dtype, int(lowest[rows].min()), int(highest[rows].max()))
            scaling, own = (of_train, None) if likelihood == "normal" else (of_all, of_train)
        ends = np.array([lowest.min(), highest.max()], frames.dtype)
        extent = check_ends(ends[:, None].repeat(frames.shape[-1], axis=1), scaling)
    else:
        summary = summarise(frames, mask, rows, weights)
        gaps = summary.gaps
        if not summary.observed.all():
            mask = summary.observed
            _check_observed(mask)
        if not isinstance(scaling, Scaling):
            scaling, own = _fitted(summary, scaling, likelihood)
        extent = check_range(summary, scaling)
    sequences = Sequences.of(arrays._replace(mask=mask, gaps=gaps), scaling, extent)
    sequences.of_train = None if own == scaling else own
    return sequences


def _fitted(summary: Summary, name: ScalingName, likelihood: Emission) -> tuple[Scaling, Scaling | None]:
    """The scaling of this name for floats and signed integers, and of `standard` for all; and, where it is fitted on
    all sequences, what those to train on alone would have given.
    """
    every = float(summary.lowest.min()), float(summary.highest.max())
    binary = summary.dtype.kind == "i" and every[0] >= 0 and every[1] <= 1
    if name == "none" or (name == "auto" and binary):
        return Scaling(), None
    if name != "unit":
        return standardise(summary), None
    of_train = to_unit(summary.dtype, *summary.ends)
    return (to_unit(summary.dtype, *every), of_train) if likelihood == "bernoulli" or binary else (of_train, None)


def _suitable(sequences: Sequences) -> Likelihood:
    """Bernoulli for booleans and unsigned integers that are scaled to [0, 1], and for integers of 0 and 1."""
    assert sequences.extent is not None
    kind = sequences.arrays.frames.dtype.kind
    within = sequences.extent[0] >= 0 and sequences.extent[1] <= 1
    whole = kind in "bu" or (kind == "i" and sequences.scaling == Scaling())
    return "bernoulli" if whole and within else "normal"


def _check_observed(mask: NDArray[np.bool_] | None) -> None:
    if mask is not None and not mask.any(axis=1).all():
        empty = int(np.argmin(mask.any(axis=1)))
        raise InputError(f"every sequence needs an observed frame, found none in sequence {empty}")
