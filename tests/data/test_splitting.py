from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data.sequences import Scaling
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.data.splitting import split, split_indices
from pyro_hrssm.errors import InputError


@given(num=st.integers(2, 300), held_out=st.floats(0.001, 0.999), seed=st.integers(0, 2**40))
@settings(max_examples=50)
def test_splits_are_disjoint_and_complete(num: int, held_out: float, seed: int) -> None:
    config = DataConfig(held_out=held_out, split_seed=seed)
    train, held = split_indices(num, config)
    assert sorted([*train, *held]) == list(range(num))
    assert len(train) >= 1
    assert len(held) >= 1
    assert abs(len(held) - num * held_out) <= 1  # rounding, or neither may be empty
    again, _ = split_indices(num, config)
    np.testing.assert_array_equal(train, again)


def test_the_split_never_changes() -> None:
    train, held = split_indices(10, DataConfig(held_out=0.3))
    assert (held.tolist(), train.tolist()) == ([3, 2, 1], [8, 6, 0, 7, 4, 5, 9])
    assert split_indices(10, DataConfig(held_out=0.3, split_seed=1))[1].tolist() != held.tolist()


@pytest.mark.parametrize(
    ("num", "seed", "message"), [(1, 0, "at least 2 sequences, found 1"), (9, -1, "split_seed must be at least 0")]
)
def test_splits_that_cannot_be(num: int, seed: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_indices(num, DataConfig(split_seed=seed))


@pytest.mark.parametrize(
    ("dtype", "likelihood", "scale"),
    [("?", "bernoulli", 1.0), ("u1", "bernoulli", 255.0), ("u2", "bernoulli", 65535.0), (">u4", "bernoulli", 2.0**32)],
)
def test_unsigned_numbers_become_the_unit_interval(dtype: str, likelihood: str, scale: float) -> None:
    frames = np.ones((10, 2, 3), dtype)
    splits = split(Shards([frames]), None, None, DataConfig(), None, "name")
    assert (splits.likelihood, splits.name) == (likelihood, "name")
    np.testing.assert_allclose(splits.train.batch([0]).frames, 1 / scale, rtol=1e-6)  # float32


@pytest.mark.parametrize("dtype", ["i2", "f4", "f8", "f2"])
def test_other_numbers_are_standardised_on_the_training_split(dtype: str) -> None:
    frames = (np.random.default_rng(0).standard_normal((40, 5, 3)) * [10, 20, 0] + [5, 9, 7]).astype(dtype)
    splits = split(Shards([frames]), None, None, DataConfig(held_out=0.5), None, "name")
    train = splits.train.batch(np.arange(20)).frames.numpy()
    held_out = splits.held_out.batch(np.arange(20)).frames.numpy()
    assert splits.likelihood == "normal"
    np.testing.assert_allclose(train.mean((0, 1)), 0, atol=1e-5)  # float32
    np.testing.assert_allclose(train.std((0, 1)), [1, 1, 0], rtol=1e-5)
    assert (abs(held_out.mean((0, 1)))[:2] > 1e-3).all()  # nothing was fitted on it
    _, held = split_indices(40, DataConfig(held_out=0.5))
    # A float16 is scaled in float32.
    np.testing.assert_allclose(splits.scaling.invert(held_out), frames[held], rtol=1e-5, atol=1e-5)


def test_a_scaling_given_replaces_the_fitted_one() -> None:
    for frames in (np.full((4, 2, 1), 8.0), np.full((4, 2, 1), 8, np.uint8)):
        splits = split(Shards([frames]), None, None, DataConfig(), Scaling((4.0,), (2.0,)), "name")
        assert splits.scaling == Scaling((4.0,), (2.0,))
        assert (splits.held_out.batch([0]).frames == 2).all()
    with pytest.raises(InputError, match="last axis is 2"):
        split(Shards([np.ones((4, 2, 1))]), None, None, DataConfig(), Scaling((0.0, 0.0), 1.0), "name")


def test_gaps_are_known_to_both_splits() -> None:
    frames = np.ones((6, 3, 2))
    frames[1, 2] = np.nan
    splits = split(Shards([frames]), None, None, DataConfig(held_out=0.5), None, "name")
    masks = [part.batch([0, 1, 2]).mask for part in (splits.train, splits.held_out)]
    assert all(mask is not None for mask in masks)
    assert sum(int((~mask).sum()) for mask in masks if mask is not None) == 1


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_a_sequence_without_observed_frames(dtype: str) -> None:
    mask = np.ones((5, 3), bool)
    mask[3] = False
    with pytest.raises(InputError, match="observed frame, found none in sequence 3"):
        split(Shards([np.ones((5, 3, 1), dtype)]), mask, None, DataConfig(), None, "name")


def test_a_sequence_of_missing_frames() -> None:
    frames = np.ones((5, 3, 1))
    frames[4] = np.nan
    with pytest.raises(InputError, match="found none in sequence 4"):
        split(Shards([frames]), None, None, DataConfig(), None, "name")
