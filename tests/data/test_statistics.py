from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_hrssm.data import shards as shards_module
from pyro_hrssm.data.sequences import Scaling
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.data.statistics import Moments, check_range, extremes, standardise, summarise
from pyro_hrssm.errors import InputError


@given(cuts=st.lists(st.integers(0, 40), max_size=6), offset=st.sampled_from([0.0, 1e8]))
@settings(max_examples=50)
def test_moments_do_not_depend_on_the_parts(cuts: list[int], offset: float) -> None:
    samples = offset + np.random.default_rng(0).standard_normal((40, 3))
    moments = Moments(3)
    for part in np.split(samples, sorted(cuts)):
        moments.add(part)
    # Rounding at the offset: 1e8 · 2^-52 is 2e-8.
    np.testing.assert_allclose(moments.mean, samples.mean(0), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(moments.deviation, samples.std(0), rtol=1e-7)
    np.testing.assert_array_equal(moments.lowest, samples.min(0))
    np.testing.assert_array_equal(moments.highest, samples.max(0))


def test_summary_of_chunks_against_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "CHUNK_BYTES", 700)  # several rows of 5 · 2 · 2 · 3 floats
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((30, 5, 2, 2, 3)).astype(np.float32) * [1, 10, 100] + [0, 5, -1]
    frames = frames.astype(np.float32)
    mask = rng.random((30, 5)) < 0.8
    missing = rng.random((30, 5)) < 0.1
    frames[missing] = np.nan
    frames[~mask, 0] = np.inf  # not observed: may hold anything
    train = rng.permutation(30)[:20]
    summary = summarise(Shards([frames[:11], frames[11:]]), mask, train)
    observed = mask & ~missing
    np.testing.assert_array_equal(summary.observed, observed)
    seen = frames[train][observed[train]].reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(summary.mean, seen.mean(0), rtol=1e-12)
    np.testing.assert_allclose(summary.deviation, seen.std(0), rtol=1e-12)
    np.testing.assert_array_equal(summary.highest, frames[observed].reshape(-1, 3).max(0))
    scaled = standardise(summary).apply(seen)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-6)  # float32
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_entries_that_are_missing_change_no_statistic(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "CHUNK_BYTES", 700)
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((30, 5, 3)) * [1, 10, 100] + [0, 5, -1]
    mask, known = rng.random((30, 5)) < 0.8, rng.random((30, 5, 3)) < 0.7
    known[4:7, :, 1] = False  # chunks without a sample of an entry
    known[20, 3] = False
    weights = np.where(known, rng.integers(1, 9, known.shape), 0) if weighted else None
    frames[~known] = 1e300 if weighted else np.nan  # what has the weight 0 may hold anything
    train = rng.permutation(30)[:20]
    summary = summarise(Shards([frames[:11], frames[11:]]), mask, train, weights)
    np.testing.assert_array_equal(summary.observed, mask & known.any(-1))
    np.testing.assert_array_equal(summary.gaps, (~known).sum(-1) * summary.observed)
    trained = mask & np.isin(np.arange(30), train)[:, None]
    for entry in range(3):
        seen = frames[..., entry][trained & known[..., entry]]
        assert summary.mean[entry] == pytest.approx(seen.mean(), rel=1e-12)
        assert summary.deviation[entry] == pytest.approx(seen.std(), rel=1e-12)
        every = frames[..., entry][mask & known[..., entry]]
        assert (summary.lowest[entry], summary.highest[entry]) == (every.min(), every.max())


def test_an_entry_that_is_never_seen() -> None:
    frames = np.random.default_rng(0).standard_normal((6, 3, 3))
    frames[:4, :, 1] = np.nan
    summary = summarise(Shards([frames]), None, np.arange(4))
    with pytest.raises(
        InputError, match=r"needs an observed value among the training sequences.*found none of entry 1"
    ):
        standardise(summary)
    frames[:, :, 1] = np.nan  # of a file that a trained model reads
    summary = summarise(Shards([frames]), None, np.arange(4))
    ends = check_range(summary, Scaling(0.0, 2.0))
    assert ends == pytest.approx((np.nanmin(frames) / 2, np.nanmax(frames) / 2))


def test_whole_numbers_that_have_weights() -> None:
    frames = np.array([[[9, 200], [3, 4]], [[5, 6], [7, 8]]], np.uint8)
    weights = np.array([[[1, 0], [1, 1]], [[2, 2], [0, 1]]])
    mask = np.array([[1, 1], [1, 0]], bool)
    lowest, highest, gaps = extremes(Shards([frames]), mask, weights)
    assert (lowest.tolist(), highest.tolist(), gaps.tolist()) == ([3, 5], [9, 6], [[1, 0], [0, 0]])


@pytest.mark.parametrize("constant", [0.1, 1e10, -3.3e-7, 0.0])
def test_constant_entries_keep_their_scale(constant: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "CHUNK_BYTES", 200)
    frames = np.random.default_rng(0).standard_normal((17, 3, 2))
    frames[..., 1] = constant
    scaling = standardise(summarise(Shards([frames]), None, np.arange(17)))
    assert isinstance(scaling.scale, tuple)
    assert scaling.scale[1] == 1
    assert (scaling.apply(frames)[..., 1] == 0).all()


def test_subnormal_deviation_is_constant() -> None:
    frames = np.array([0.0, 1e-200]).reshape(2, 1, 1).repeat(2, axis=1)
    assert standardise(summarise(Shards([frames]), None, np.arange(2))).scale == (1.0,)


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        ([np.inf, 0.0], "an infinity in frame 1 of sequence 2"),
        ([np.nan, -np.inf], "an infinity in frame 1 of sequence 2"),
    ],
)
def test_frames_that_are_not_finite(frame: list[float], found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "CHUNK_BYTES", 1)
    frames = np.zeros((4, 3, 2))
    frames[2, 1] = frame
    with pytest.raises(InputError, match=found):
        summarise(Shards([frames]), None, np.arange(2))


def test_frames_too_large_to_standardise() -> None:
    frames = np.array([[[1e308], [-1e308]], [[1e308], [1e308]]])
    with pytest.raises(InputError, match=r"up to 1e\+308"):
        standardise(summarise(Shards([frames]), None, np.arange(2)))


@pytest.mark.parametrize(("largest", "fits"), [(1e38, True), (1e39, False)])
def test_held_out_frames_that_overflow(largest: float, fits: bool) -> None:
    frames: np.ndarray[Any, Any] = np.zeros((3, 2, 1))
    frames[2] = largest
    summary = summarise(Shards([frames]), None, np.arange(2))
    if fits:
        check_range(summary, standardise(summary))
        return
    with pytest.raises(InputError, match=r"32-bit floats once scaled, found values up to 1e\+39"):
        check_range(summary, standardise(summary))
    check_range(summary, Scaling(0.0, 1e5))
