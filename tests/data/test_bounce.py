from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyro_hrssm.data.bounce import generate
from pyro_hrssm.errors import InputError


def test_a_ball_flies_straight_and_turns_at_the_walls() -> None:
    data = generate(300, 0, noise=0.0)
    position, boundaries, labels = data["frames"][..., 0].astype(np.float64), data["boundaries"], data["labels"]
    assert (data["frames"].shape, data["frames"].dtype, boundaries.dtype) == ((300, 100, 1), np.float32, bool)
    assert labels.dtype == np.int64
    assert position.min() >= 0
    assert position.max() <= 10
    steps = np.diff(position, axis=1)
    size = abs(steps).max(1, keepdims=True)
    assert (size < 0.5 + 1e-5).all()  # float32
    # A step between two frames that are on one flight has the ball's speed, in the direction of both.
    within = ~boundaries[:, :-1]
    np.testing.assert_allclose(steps[within], (np.where(labels == 1, size, -size)[:, :-1])[within], atol=1e-5)
    np.testing.assert_array_equal(boundaries[:, :-1], labels[:, 1:] != labels[:, :-1])
    assert not boundaries[:, -1].any()


def test_a_bounce_is_at_a_wall_and_loses_nothing() -> None:
    data = generate(300, 1, noise=0.0)
    position = data["frames"][..., 0].astype(np.float64)
    speed = abs(np.diff(position, axis=1)).max(1)
    rows, frames = np.nonzero(data["boundaries"])
    assert len(rows) > 300
    near = np.minimum(position, 10 - position)
    # What is left to the wall before the bounce and after it is one frame's way.
    np.testing.assert_allclose(near[rows, frames] + near[rows, frames + 1], speed[rows], atol=1e-5)  # float32


def test_start_velocity_and_noise() -> None:
    clean, noisy = generate(4000, 0, noise=0.0), generate(4000, 0)
    np.testing.assert_array_equal(clean["labels"], noisy["labels"])
    residual = noisy["frames"] - clean["frames"]
    assert abs(residual.std() / 0.1 - 1) < 6 / np.sqrt(2 * residual.size)  # 6 standard errors
    start = clean["frames"][:, 0, 0]
    assert abs(start.mean() - 5) < 6 * 10 / np.sqrt(12 * 4000)
    speed = abs(np.diff(clean["frames"][..., 0], axis=1)).max(1)
    assert abs(speed.mean() - 0.25) < 6 * 0.5 / np.sqrt(12 * 4000)
    assert abs(clean["labels"][:, 0].mean() - 0.5) < 6 * 0.5 / np.sqrt(4000)


def test_seeds() -> None:
    one, same, other = (generate(20, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert (one["frames"] != other["frames"]).all()


@pytest.mark.parametrize(
    "parameters",
    [
        {"num": 0},
        {"seed": -1},
        {"num_frames": 1},
        {"width": 0.0},
        {"width": float("inf")},
        {"speed": 0.0},
        {"speed": 10.0},
        {"noise": -0.1},
        {"noise": float("nan")},
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"must"):
        generate(**{"num": 2, "seed": 0, **parameters})
