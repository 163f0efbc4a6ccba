"""A permutation test: how likely as many boundaries at random positions score as well."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyro_hrssm.inference.scores.boundaries import Flags, f1

MOST = 999
FEWEST = 99
POSITIONS = 30_000_000
"""Positions times permutations, a bound on time: 500 permutations of 1,000 sequences of 60 frames."""


class Permutation(NamedTuple):
    """The result of a permutation test."""

    p_value: float
    """Probability that boundaries at random reach the score; at least 1 / (permutations + 1)."""
    permutations: int
    margin: int
    """Number of frames that a boundary may be off in the F1 that is compared."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return self._asdict()


def permutation_test(
    boundaries: Flags, truth: Flags, counted: Flags, margin: int = 0, seed: int = 1, permutations: int | None = None
) -> Permutation:
    """Compare the F1 of boundaries with that of as many in every sequence, uniformly among its counted positions.

    `p = (1 + #{F1 at random >= F1}) / (1 + permutations)`, which is never 0 (Phipson and Smyth 2010, *Permutation
    P-values Should Never Be Zero*).

    Arguments:
        boundaries, truth, counted: [N, T] each.
        margin: number of frames that a boundary may be off.
        permutations: None for as many as take a few seconds, from 99 to 999.
    """
    if permutations is None:
        permutations = int(np.clip(POSITIONS // max(1, counted.sum()), FEWEST, MOST))
    reached, rng = f1(boundaries, truth, counted, margin), np.random.default_rng(seed)
    numbers = (boundaries & counted).sum(1)
    as_well = sum(f1(_placed(numbers, counted, rng), truth, counted, margin) >= reached for _ in range(permutations))
    return Permutation((1 + as_well) / (1 + permutations), permutations, margin)


def _placed(numbers: np.ndarray, counted: Flags, rng: np.random.Generator) -> Flags:
    """[N, T] flags, `numbers` [N] of them in every row, at random among the counted positions."""
    keys = np.where(counted, rng.random(counted.shape), np.inf)
    least = np.sort(keys, axis=1)
    limits = np.where(numbers > 0, np.take_along_axis(least, np.maximum(numbers - 1, 0)[:, None], 1)[:, 0], -1)
    return keys <= limits[:, None]
