from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import levels
from pyro_hrssm.data.levels import generate
from pyro_hrssm.errors import InputError


def test_a_segment_holds_one_level_and_its_neighbours_another() -> None:
    data = generate(200, 0, noise=(0.0, 0.0))
    frames, boundaries, labels = (data[name] for name in ("frames", "boundaries", "labels"))
    assert (frames.shape, frames.dtype, boundaries.dtype) == ((200, 60, 2), np.float32, bool)
    assert not boundaries[:, -1].any()
    np.testing.assert_array_equal(boundaries[:, :-1], labels[:, 1:] != labels[:, :-1])
    np.testing.assert_array_equal(boundaries[:, :-1], (frames[:, 1:] != frames[:, :-1]).any(-1))
    means = np.stack([frames[labels == k][0] for k in range(6)])
    np.testing.assert_array_equal(frames, means[labels])
    for row in boundaries:
        lengths = np.diff(np.concatenate([[-1], np.flatnonzero(row), [59]]))
        assert (lengths[:-1] >= 4).all()
        assert (lengths <= 14).all()


def test_a_case_counted_by_hand() -> None:
    """Two levels take turns; segments of 3 frames end with frames 2 and 5, and the end cuts the third one."""
    data = generate(2, 0, num_frames=8, num_levels=2, min_length=3, max_length=3, noise=(0.0,))
    assert data["boundaries"].astype(int).tolist() == [[0, 0, 1, 0, 0, 1, 0, 0]] * 2
    for labels in data["labels"].tolist():
        first, other = labels[0], 1 - labels[0]
        assert labels == [first] * 3 + [other] * 3 + [first] * 2


def test_lengths_and_levels_are_uniform() -> None:
    data = generate(6000, 0, num_levels=4, min_length=2, max_length=6)
    first = np.bincount(data["boundaries"].argmax(axis=1) + 1, minlength=7)[2:] / 6000
    assert abs(first - 1 / 5).max() < 6 * np.sqrt(1 / 5 * 4 / 5 / 6000)  # 6 standard errors
    labels = data["labels"]
    rows, frames = np.nonzero(data["boundaries"])
    counts = np.zeros((4, 4))
    np.add.at(counts, (labels[rows, frames], labels[rows, frames + 1]), 1)
    assert (np.diag(counts) == 0).all()
    shares = (counts / counts.sum(1, keepdims=True))[~np.eye(4, dtype=bool)]
    assert abs(shares - 1 / 3).max() < 6 * np.sqrt(1 / 3 * 2 / 3 / counts.sum(1).min())
    share = np.bincount(labels[:, 0], minlength=4) / 6000
    assert abs(share - 1 / 4).max() < 6 * np.sqrt(1 / 4 * 3 / 4 / 6000)


def test_every_sensor_has_its_noise() -> None:
    clean, noisy = (generate(200, 0, noise=noise) for noise in ((0.0, 0.0, 0.0), (0.1, 0.5, 2.0)))
    np.testing.assert_array_equal(clean["labels"], noisy["labels"])
    residual = (noisy["frames"] - clean["frames"]).reshape(-1, 3)
    relative = residual.std(0) / [0.1, 0.5, 2.0]
    assert abs(relative - 1).max() < 6 / np.sqrt(2 * len(residual))  # 6 standard errors
    correlation = np.corrcoef(residual.T)
    assert abs(correlation[np.triu_indices(3, 1)]).max() < 6 / np.sqrt(len(residual))


def test_means_are_standard_normal() -> None:
    means = levels.process_of(100, 1, 1, (0.0,) * 200, 3).means
    assert abs(means.mean()) < 6 / np.sqrt(means.size)  # 6 standard errors
    assert abs(means.std() - 1) < 6 / np.sqrt(2 * means.size)


def levels_of(data: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The means [K, D] that noise-free data shows."""
    return np.stack([data["frames"][data["labels"] == k][0] for k in range(6)])


def test_seeds() -> None:
    clear: dict[str, Any] = {"noise": (0.0, 0.0)}
    one, same, other = (generate(50, seed, **clear) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert (one["labels"] != other["labels"]).any()
    np.testing.assert_array_equal(levels_of(one), levels_of(other))
    moved = generate(50, 1, level_seed=1, **clear)
    np.testing.assert_array_equal(one["labels"], moved["labels"])
    assert (levels_of(one) != levels_of(moved)).all()


def test_levels_never_change() -> None:
    """The first mean of seed 0, which every archive of these levels relies on."""
    assert levels.process_of(6, 4, 14, levels.NOISE, 0).means[0, 0] == pytest.approx(1.764052345967664, rel=1e-12)


def test_load() -> None:
    splits = levels.load(DataConfig())
    assert (len(splits.train), len(splits.held_out), splits.train.num_frames) == (1800, 200, 60)
    assert (splits.name, splits.likelihood, splits.train.has_boundaries) == ("levels", "normal", True)
    assert splits.held_out.labels is not None
    np.testing.assert_array_equal(
        splits.held_out.labels[:, 1:] != splits.held_out.labels[:, :-1],
        splits.held_out.batch(np.arange(200)).boundaries[:, :-1],  # type: ignore[index]
    )
    frames = splits.train.batch(np.arange(1800)).frames
    np.testing.assert_allclose(frames.mean((0, 1)), 0, atol=1e-5)  # float32
    np.testing.assert_allclose(frames.reshape(-1, 4).std(0), 1, rtol=1e-4)


@pytest.mark.parametrize(
    "parameters",
    [
        {"num": 0},
        {"seed": -1},
        {"num_frames": 1},
        {"num_levels": 1},
        {"num_levels": 101},
        {"min_length": 0},
        {"min_length": 15},
        {"max_length": 2**31},
        {"noise": ()},
        {"noise": (0.1, -0.1)},
        {"noise": (float("nan"),)},
        {"noise": (float("inf"), 0.1)},
        {"level_seed": -1},
        {"level_seed": 2**32},
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"must"):
        generate(**{"num": 2, "seed": 0, **parameters})
