from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import colours
from pyro_hrssm.data.colours import PALETTE, generate, transitions
from pyro_hrssm.errors import InputError


def names(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Nearest colour [N, T] of frames [N, T, 3]."""
    return ((frames[:, :, None] - PALETTE) ** 2).sum(-1).argmin(-1)


@given(
    num_frames=st.integers(2, 30),
    shortest=st.integers(1, 6),
    more=st.integers(0, 4),
    num_colours=st.integers(2, 8),
    image_size=st.none() | st.integers(1, 3),
    seed=st.integers(0, 100),
)
@settings(max_examples=50)
def test_boundaries_are_changes_of_colour(
    num_frames: int, shortest: int, more: int, num_colours: int, image_size: int | None, seed: int
) -> None:
    data = generate(
        20,
        seed,
        num_frames=num_frames,
        num_colours=num_colours,
        min_length=shortest,
        max_length=shortest + more,
        noise=0.0,
        image_size=image_size,
    )
    frames, boundaries = data["frames"], data["boundaries"]
    assert frames.dtype == np.float32
    assert boundaries.dtype == bool
    assert frames.shape == (20, num_frames, *((3,) if image_size is None else (image_size, image_size, 3)))
    flat = frames.reshape(20, num_frames, -1)
    np.testing.assert_array_equal(boundaries[:, :-1], (flat[:, 1:] != flat[:, :-1]).any(-1))
    assert not boundaries[:, -1].any()
    for row in boundaries:
        lengths = np.diff(np.concatenate([[-1], np.flatnonzero(row), [num_frames - 1]]))
        assert (lengths[:-1] >= shortest).all()
        assert (lengths <= shortest + more).all()


def test_equal_lengths() -> None:
    boundaries = generate(3, 0, num_frames=12, min_length=4, max_length=4)["boundaries"]
    assert (np.flatnonzero(boundaries[0]) == [3, 7]).all()
    assert (boundaries == boundaries[0]).all()


def test_lengths_are_uniform() -> None:
    boundaries = generate(6000, 0)["boundaries"]
    first = np.bincount(boundaries.argmax(axis=1) + 1, minlength=7)[2:] / 6000
    assert abs(first - 0.2).max() < 6 * np.sqrt(0.2 * 0.8 / 6000)  # 6 standard errors


@pytest.mark.parametrize(("num_colours", "repeat"), [(8, 0.0), (5, 0.3), (2, 0.0), (2, 1.0)])
def test_colours_follow_the_chain(num_colours: int, repeat: float) -> None:
    chain = transitions(num_colours, repeat)
    np.testing.assert_allclose(chain.sum(0), 1, rtol=1e-12)
    np.testing.assert_allclose(chain.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(np.diag(chain), repeat)
    data = generate(3000, 0, num_colours=num_colours, repeat=repeat, noise=0.0)
    colour = names(data["frames"])
    np.testing.assert_array_equal(data["labels"], colour)
    rows, frames = np.nonzero(data["boundaries"])
    counts = np.zeros((num_colours, num_colours))
    np.add.at(counts, (colour[rows, frames], colour[rows, frames + 1]), 1)
    totals = counts.sum(1, keepdims=True)
    error = np.sqrt(chain * (1 - chain) / totals)
    assert (abs(counts / totals - chain) <= 6 * error).all()  # 6 standard errors
    inside = ~data["boundaries"][:, :-1]
    assert (colour[:, 1:] == colour[:, :-1])[inside].all()
    share = np.bincount(colour[:, 0], minlength=num_colours) / 3000
    assert abs(share - 1 / num_colours).max() < 6 * np.sqrt(1 / num_colours / 3000)


@pytest.mark.parametrize("image_size", [None, 4])
def test_noise(image_size: int | None) -> None:
    clean, noisy = (generate(200, 0, noise=noise, image_size=image_size) for noise in (0.0, 0.25))
    residual = noisy["frames"] - clean["frames"]
    np.testing.assert_array_equal(clean["boundaries"], noisy["boundaries"])
    assert abs(residual.std() - 0.25) < 6 * 0.25 / np.sqrt(2 * residual.size)  # 6 standard errors
    correlation = np.corrcoef(residual.reshape(-1, 3).T)
    assert abs(correlation[np.triu_indices(3, 1)]).max() < 6 / np.sqrt(residual.size / 3)


def test_seeds() -> None:
    one, same, other = (generate(5, seed)["frames"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_load() -> None:
    splits = colours.load(DataConfig())
    assert (len(splits.train), len(splits.held_out), splits.train.num_frames) == (3600, 400, 20)
    assert (splits.name, splits.likelihood, splits.train.has_boundaries) == ("colours", "normal", True)
    frames = splits.train.batch(np.arange(3600)).frames
    assert splits.train.labels is not None
    np.testing.assert_array_equal(splits.train.labels, names(splits.scaling.invert(frames) + 1e-3))
    np.testing.assert_allclose(frames.mean((0, 1)), 0, atol=1e-5)  # float32
    np.testing.assert_allclose(frames.reshape(-1, 3).std(0), 1, rtol=1e-4)


@pytest.mark.parametrize(
    "parameters",
    [
        {"num": 0},
        {"seed": -1},
        {"num_frames": 1},
        {"num_colours": 1},
        {"num_colours": 9},
        {"min_length": 0},
        {"min_length": 7},
        {"repeat": -0.1},
        {"repeat": 1.1},
        {"repeat": float("nan")},
        {"noise": -1.0},
        {"noise": float("inf")},
        {"image_size": 0},
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"must|rise"):
        generate(**{"num": 2, "seed": 0, **parameters})
