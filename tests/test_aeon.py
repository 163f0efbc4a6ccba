"""The segmenter in aeon's own checks and evaluation; they run where aeon is installed, which is no part of `test`."""

from typing import Any

import numpy as np
import pytest

from pyro_hrssm import data
from pyro_hrssm.aeon import AeonSegmenter
from pyro_hrssm.estimator import HRSSMSegmenter

pytest.importorskip("aeon")

from aeon.benchmarking.metrics.segmentation import count_error, hausdorff_error, prediction_ratio
from aeon.datasets import load_gun_point_segmentation
from aeon.segmentation import RandomSegmenter
from aeon.testing.estimator_checking import parametrize_with_checks

SMALL: dict[str, Any] = {
    "hidden": 16, "abstract_size": 4, "observation_size": 4, "batch_size": 16, "particles": 2, "evaluate_every": 0,
    "device": "cpu",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([AeonSegmenter])
def test_checks_of_aeon(check: Any) -> None:
    check()


def test_a_series_of_aeons_is_segmented_and_scored() -> None:
    series, _, true = load_gun_point_segmentation()
    made = AeonSegmenter(HRSSMSegmenter(**SMALL, steps=3, window_length=50, max_length=40))
    found = made.fit_predict(series)
    assert len(found) >= len(series) // 40 - 1, "a segment has at most 40 time points"
    assert np.all((found > 0) & (found < len(series)))
    assert np.all(np.diff(found) > 0)
    assert count_error(true, found) == len(found) - 1
    assert prediction_ratio(true, found) == len(found)
    furthest = max(np.abs(found - true).max(), np.abs(found - true).min())
    assert hausdorff_error(true, found) == furthest
    labels = made.to_clusters(found, len(series))
    np.testing.assert_array_equal(labels, made.estimator_.predict(series.to_numpy()[None, :, None])[0])


def test_both_axes_are_the_same_series_and_types_are_labels() -> None:
    X = data.generate("levels", 4, 0)["frames"].reshape(-1, 4)
    settings = SMALL | {"steps": 2, "window_length": 20, "max_length": 9}
    points = AeonSegmenter(HRSSMSegmenter(**settings)).fit_predict(X, axis=0)
    np.testing.assert_array_equal(AeonSegmenter(HRSSMSegmenter(**settings)).fit_predict(X.T, axis=1), points)
    typed = AeonSegmenter(HRSSMSegmenter(**settings, types=2, types_of="frames"))
    assert not typed.get_tag("returns_dense")
    labels = typed.fit_predict(X, axis=0)
    assert labels.shape == (len(X),)
    assert set(labels) == {0, 1}
    opened = np.flatnonzero(np.diff(labels)) + 1
    assert set(opened) <= set(points)


@pytest.mark.slow
def test_change_points_of_levels_are_found() -> None:
    """F1 within one time point was 0.76 when it was measured, where as many points at random reach 0.26."""
    arrays = data.generate("levels", 10, 0)
    ends = arrays["boundaries"].copy()
    ends[:, -1] = True
    X, true = arrays["frames"].reshape(-1, 4), np.flatnonzero(ends.reshape(-1)[:-1]) + 1

    def near(segmenter: Any) -> float:
        found = segmenter.fit_predict(X, axis=0)
        distance = np.abs(np.subtract.outer(true, found))
        recall, precision = (distance.min(axis=1) <= 1).mean(), (distance.min(axis=0) <= 1).mean()
        assert count_error(true, found) < 0.3 * len(true)
        return 2 * recall * precision / (recall + precision)

    settings = SMALL | {"steps": 300, "window_length": 20, "learning_rate": 1e-2, "warmup_steps": 10}
    own, random = near(AeonSegmenter(HRSSMSegmenter(**settings))), near(RandomSegmenter(0, len(true) + 1))
    assert own > 0.6
    assert random < 0.4
