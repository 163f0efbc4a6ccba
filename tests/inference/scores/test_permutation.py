"""The permutation test against every placement spelled out."""

import itertools

import numpy as np
import pytest

from pyro_hrssm.inference.scores.boundaries import f1
from pyro_hrssm.inference.scores.permutation import _placed, permutation_test


@pytest.mark.parametrize("margin", [0, 1])
def test_the_p_value_is_the_share_of_placements_that_score_as_well(margin: int) -> None:
    found = np.array([[0, 1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0]], bool)
    truth = np.array([[0, 1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]], bool)
    counted = np.arange(7) < np.array([[6], [4]])
    reached, as_well, total = f1(found, truth, counted, margin), 0, 0
    for first in itertools.combinations(range(6), 2):
        for second in range(4):
            placed = np.zeros((2, 7), bool)
            placed[0, list(first)] = placed[1, second] = True
            as_well += f1(placed, truth, counted, margin) >= reached
            total += 1
    share = as_well / total
    result = permutation_test(found, truth, counted, margin, seed=3, permutations=4000)
    assert abs(result.p_value - share) < 5 * np.sqrt(share * (1 - share) / 4000)  # 5 standard errors
    assert (result.permutations, result.margin) == (4000, margin)
    assert result == permutation_test(found, truth, counted, margin, seed=3, permutations=4000)


def test_the_true_boundaries_are_as_good_as_permutations_can_tell() -> None:
    truth = np.zeros((20, 30), bool)
    truth[:, ::5] = True
    counted = np.broadcast_to(np.arange(30) < 29, truth.shape)
    result = permutation_test(truth, truth, counted)
    assert result.p_value == 1 / (1 + result.permutations)
    assert result.permutations == 999
    assert permutation_test(~truth, truth, counted).p_value == 1.0, "worse than at random"
    assert permutation_test(np.zeros_like(truth), truth, counted).p_value == 1.0, "nothing found"
    assert permutation_test(truth, truth, np.zeros_like(truth)).p_value == 1.0, "no position"


def test_as_many_boundaries_are_placed_at_counted_positions_uniformly() -> None:
    counted = np.array([[1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    numbers, rng, total = np.array([2, 0, 0]), np.random.default_rng(1), np.zeros(counted.shape)
    for _ in range(2000):
        placed = _placed(numbers, counted, rng)
        assert placed.sum(1).tolist() == [2, 0, 0]
        total += placed
    share = total[0] / 2000
    assert share[[1, 4]].tolist() == [0, 0]
    assert np.abs(share[[0, 2, 3, 5]] - 0.5).max() < 5 * np.sqrt(0.25 / 2000)  # 5 standard errors
