from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyro_hrssm.data.modes import generate
from pyro_hrssm.errors import InputError


def test_segments_have_their_lengths_and_neighbours_other_modes() -> None:
    data = generate(200, 0)
    frames, boundaries, labels = (data[name] for name in ("frames", "boundaries", "labels"))
    assert (frames.shape, frames.dtype, boundaries.dtype, labels.dtype) == ((200, 200, 2), np.float32, bool, np.int64)
    np.testing.assert_array_equal(boundaries[:, :-1], labels[:, 1:] != labels[:, :-1])
    assert not boundaries[:, -1].any()
    assert set(np.unique(labels)) == {0, 1, 2}
    lengths = np.concatenate([np.diff(np.concatenate([[-1], np.flatnonzero(row)])) for row in boundaries])
    assert (lengths.min(), lengths.max()) == (5, 20)
    share = np.bincount(lengths, minlength=21)[5:] / len(lengths)
    # Sequences end too early for some of their long segments: shares are near 1 / 16, not at it.
    assert abs(share - 1 / 16).max() < 0.02


def test_one_state_rotates_through_all_modes() -> None:
    """Without noise and drift, the state that a frame's mode saw turns by the angle, across boundaries too."""
    data = generate(50, 0, noise=0.0, drift=0.0, angle=0.4)
    frames, labels = data["frames"].astype(np.float64), data["labels"]
    matrices = np.random.RandomState(0).standard_normal((3, 2, 2))
    states = np.einsum("ntij,ntj->nti", np.linalg.inv(matrices)[labels], frames)
    np.testing.assert_allclose((states**2).sum(-1), 2, rtol=1e-4)  # float32 frames, inverted
    turned = np.angle((states[:, 1:] @ [1, 1j]) / (states[:, :-1] @ [1, 1j]))
    np.testing.assert_allclose(turned, 0.4, atol=1e-4)


def test_the_state_keeps_its_variance() -> None:
    """Whatever the drift: the entries' variance is 1 at every frame."""
    data = generate(4000, 0, noise=0.0, drift=0.5, num_frames=30)
    matrices = np.random.RandomState(0).standard_normal((3, 2, 2))
    states = np.einsum("ntij,ntj->nti", np.linalg.inv(matrices)[data["labels"]], data["frames"])
    squares = (states**2).mean((0, 2))
    assert abs(squares - 1).max() < 6 * np.sqrt(2 / 8000)  # 6 standard errors of a mean of 8,000 squares


def test_sensors_have_their_noise() -> None:
    clean, noisy = generate(100, 0, noise=0.0), generate(100, 0)
    np.testing.assert_array_equal(clean["labels"], noisy["labels"])
    # Noise is drawn after states, so that both have the same states.
    residual = noisy["frames"] - clean["frames"]
    assert abs(residual.std() / 0.2 - 1) < 6 / np.sqrt(2 * residual.size)  # 6 standard errors


def test_seeds() -> None:
    one, same, other = (generate(20, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert (one["labels"] != other["labels"]).any()
    moved = generate(20, 1, mode_seed=1)
    np.testing.assert_array_equal(one["labels"], moved["labels"])
    assert (one["frames"] != moved["frames"]).all()


@pytest.mark.parametrize(
    "parameters",
    [
        {"num": 0},
        {"seed": -1},
        {"num_frames": 1},
        {"num_modes": 1},
        {"num_modes": 101},
        {"min_length": 0},
        {"min_length": 21},
        {"noise": -0.1},
        {"angle": float("inf")},
        {"drift": -0.1},
        {"drift": 1.1},
        {"mode_seed": -1},
        {"mode_seed": 2**32},
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"must"):
        generate(**{"num": 2, "seed": 0, **parameters})
