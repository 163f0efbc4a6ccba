from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data.content import Arrays
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
    ("num", "seed", "message"),
    [(1, 0, "at least 2 sequences, found 1: --window-length cuts"), (9, -1, "split_seed must be at least 0")],
)
def test_splits_that_cannot_be(num: int, seed: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_indices(num, DataConfig(split_seed=seed))


@pytest.mark.parametrize(
    ("dtype", "largest", "scale"),
    [
        ("?", 1, 1.0),
        ("u1", 1, 1.0),  # 0 and 1 in bytes are booleans
        ("i8", 1, 1.0),
        ("u1", 15, 15.0),
        ("u1", 200, 255.0),  # images of 8 bits, none of whose pixels is white
        ("u2", 255, 255.0),
        ("u2", 3000, 4095.0),  # images of 12 bits
        ("u2", 65535, 65535.0),
        (">u4", 2**32 - 1, 2.0**32 - 1),
        ("u8", 2**64 - 1, 2.0**64),
    ],
)
def test_whole_numbers_become_the_unit_interval_by_what_is_there(dtype: str, largest: int, scale: float) -> None:
    frames = np.zeros((10, 2, 3), dtype)
    frames[3, 1, 2] = largest  # wherever it lies: a held-out frame above 1 has no likelihood
    for seed in range(3):
        splits = split(Arrays(Shards([frames])), DataConfig(split_seed=seed, held_out=0.5), None, "name")
        assert (splits.likelihood, splits.name, splits.scaling) == ("bernoulli", "name", Scaling(0.0, scale))
        parts = [part.batch(range(5)).frames for part in (splits.train, splits.held_out)]
        assert max(float(part.max()) for part in parts) == pytest.approx(largest / scale, rel=1e-6)  # float32
        assert splits.train.extent == (0.0, pytest.approx(largest / scale, rel=1e-6))


def test_a_masked_frame_says_nothing_about_the_scale() -> None:
    frames, mask = np.ones((10, 2, 3), np.uint8), np.ones((10, 2), bool)
    frames[4, 1], mask[4, 1] = 255, False
    assert split(Arrays(Shards([frames]), mask), DataConfig(), None, "name").scaling == Scaling()


@pytest.mark.parametrize(
    ("dtype", "values", "name", "scaling", "likelihood"),
    [
        ("?", [0, 1], "none", Scaling(), "bernoulli"),
        ("u1", [0, 1], "none", Scaling(), "bernoulli"),
        ("u1", [0, 200], "none", Scaling(), "normal"),
        ("i2", [-5, 7], "none", Scaling(), "normal"),
        ("f4", [-1, 3], "none", Scaling(), "normal"),
        ("?", [0, 1], "unit", Scaling(), "bernoulli"),
        ("u2", [0, 1000], "unit", Scaling(0.0, 1023.0), "bernoulli"),
        ("i2", [-5, 7], "unit", Scaling(-5.0, 12.0), "normal"),
        ("i8", [3, 200], "unit", Scaling(0.0, 255.0), "normal"),
        ("f4", [0, 0.5], "unit", Scaling(), "normal"),
        ("f8", [-1, 3], "unit", Scaling(-1.0, 4.0), "normal"),
        ("f8", [3, 3], "unit", Scaling(3.0, 1.0), "normal"),
        ("u1", [1, 3], "standard", Scaling((2.0,), (1.0,)), "normal"),
        ("?", [0, 1], "standard", Scaling((0.5,), (0.5,)), "normal"),
        ("f2", [1, 3], "standard", Scaling((2.0,), (1.0,)), "normal"),
        ("f8", [0, 1], "auto", Scaling((0.5,), (0.5,)), "normal"),
        ("i8", [0, 2], "auto", Scaling((1.0,), (1.0,)), "normal"),
        ("i8", [-1, 1], "auto", Scaling((0.0,), (1.0,)), "normal"),
    ],
)
def test_scalings_by_name(dtype: str, values: list[float], name: Any, scaling: Scaling, likelihood: str) -> None:
    frames = np.tile(np.array(values, dtype)[:, None], (10, 1, 1))
    splits = split(Arrays(Shards([frames])), DataConfig(scaling=name), None, "name")
    assert (splits.scaling, splits.likelihood) == (scaling, likelihood)
    assert splits.held_out.extent == tuple(scaling.apply(np.array(values, dtype)[:, None]).flatten().tolist())


def test_one_scale_for_all_entries_maps_to_the_unit_interval() -> None:
    frames = np.random.default_rng(0).standard_normal((20, 5, 3)) * [1, 10, 100]
    splits = split(Arrays(Shards([frames])), DataConfig(scaling="unit"), None, "name", "bernoulli")
    both = [part.batch(range(len(part))).frames for part in (splits.train, splits.held_out)]
    assert min(float(part.min()) for part in both) == 0
    assert max(float(part.max()) for part in both) == 1
    with pytest.raises(InputError, match=r"small enough to scale, found values from -1e\+308 to 1e\+308"):
        split(Arrays(Shards([np.array([[[1e308], [-1e308]]] * 2)])), DataConfig(scaling="unit"), None, "name")


@pytest.mark.parametrize("likelihood", ["auto", "normal", "bernoulli"])
@pytest.mark.parametrize("dtype", ["u2", "i4", "f4"])
@pytest.mark.parametrize("weighted", [False, True])
def test_held_out_frames_scale_only_what_a_bernoulli_scores(likelihood: Any, dtype: str, weighted: bool) -> None:
    frames = np.random.default_rng(0).integers(0, 100, (10, 6, 2)).astype(dtype)
    frames[0, 0] = 0, 99
    frames[9] = 5000
    weights = np.full((10, 6), 2.0) if weighted else None
    arrays = Arrays(Shards([frames]), weights=weights, num_train=9)
    splits = split(arrays, DataConfig(scaling="unit"), None, "name", likelihood)
    of_train, of_all = (99.0, 5000.0) if dtype == "f4" else (127.0, 8191.0)
    bernoulli = likelihood == "bernoulli" or (likelihood == "auto" and dtype == "u2")
    assert splits.scaling == Scaling(0.0, of_all if bernoulli else of_train)
    largest = float(splits.train.batch(range(9)).frames.max())
    assert largest == pytest.approx(99 / (of_all if bernoulli else of_train), rel=1e-6)  # float32
    said = splits.description()
    assert ("(for held-out frames too; without them " in said) == bernoulli
    if bernoulli:
        assert splits.held_out.extent is not None
        assert splits.held_out.extent[1] <= 1


@pytest.mark.parametrize("dtype", ["f8", "u1", "i4"])
def test_frames_that_a_bernoulli_cannot_score(dtype: str) -> None:
    frames = np.tile(np.array([0, 1, 3], dtype)[:, None], (10, 1, 1))
    for name in ("standard", "none"):
        splits = split(Arrays(Shards([frames])), DataConfig(scaling=name), None, "name")
        splits.train.check_likelihood("normal", "")
        with pytest.raises(InputError, match=r"likelihood bernoulli needs frames in \[0, 1\], found .*; way out"):
            splits.train.check_likelihood("bernoulli", "way out")
    splits = split(Arrays(Shards([frames])), DataConfig(scaling="unit"), None, "name")
    splits.train.check_likelihood("bernoulli", "")


def test_a_split_of_its_own_keeps_its_order() -> None:
    frames = np.arange(10.0).reshape(5, 2, 1)
    splits = split(Arrays(Shards([frames]), num_train=3), DataConfig(held_out=0.9), Scaling(), "name")
    assert splits.train.batch(range(3)).frames[:, 0, 0].tolist() == [0, 2, 4]
    assert splits.held_out.batch(range(2)).frames[:, 0, 0].tolist() == [6, 8]


@pytest.mark.parametrize("dtype", ["i2", "f4", "f8", "f2"])
def test_other_numbers_are_standardised_on_the_training_split(dtype: str) -> None:
    frames = (np.random.default_rng(0).standard_normal((40, 5, 3)) * [10, 20, 0] + [5, 9, 7]).astype(dtype)
    splits = split(Arrays(Shards([frames])), DataConfig(held_out=0.5), None, "name")
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
        splits = split(Arrays(Shards([frames])), DataConfig(), Scaling((4.0,), (2.0,)), "name")
        assert splits.scaling == Scaling((4.0,), (2.0,))
        assert (splits.held_out.batch([0]).frames == 2).all()
    with pytest.raises(InputError, match="last axis is 2"):
        split(Arrays(Shards([np.ones((4, 2, 1))])), DataConfig(), Scaling((0.0, 0.0), 1.0), "name")


def test_gaps_are_known_to_both_splits() -> None:
    frames = np.ones((6, 3, 2))
    frames[1, 2] = np.nan
    splits = split(Arrays(Shards([frames])), DataConfig(held_out=0.5), None, "name")
    masks = [part.batch([0, 1, 2]).mask for part in (splits.train, splits.held_out)]
    assert all(mask is not None for mask in masks)
    assert sum(int((~mask).sum()) for mask in masks if mask is not None) == 1


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_a_sequence_without_observed_frames(dtype: str) -> None:
    mask = np.ones((5, 3), bool)
    mask[3] = False
    with pytest.raises(InputError, match="observed frame, found none in sequence 3"):
        split(Arrays(Shards([np.ones((5, 3, 1), dtype)]), mask), DataConfig(), None, "name")


def test_a_sequence_of_missing_frames() -> None:
    frames = np.ones((5, 3, 1))
    frames[4] = np.nan
    with pytest.raises(InputError, match="found none in sequence 4"):
        split(Arrays(Shards([frames])), DataConfig(), None, "name")
