"""Scores of forecasts against a maintained package, closed forms, and forecasters that are right by construction."""

import math
import re
from typing import Any

import numpy as np
import pytest
import scoringrules
import torch
from scipy.stats import norm
from test_prediction import counted, counter

from pyro_hrssm import HRSSM, RSSM, HRSSMConfig
from pyro_hrssm.data import Scaling, Sequences
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference import evaluation, forecasts, prediction
from pyro_hrssm.inference.evaluation import measure
from pyro_hrssm.inference.forecasts import (
    Persistence,
    _Tally,
    crps,
    draws_for,
    forecast_scores,
    least_draws,
    quantiles,
)

NOISE = 0.3
NORMAL_CRPS = 1 / math.sqrt(math.pi)
"""Expected CRPS of N(0, 1) of an observation from N(0, 1), by Gneiting and Raftery's equation 21: E|X - X'| / 2."""


# The scores


@pytest.mark.parametrize("count", [2, 3, 50])
def test_the_crps_is_that_of_a_maintained_package(count: int) -> None:
    random = np.random.default_rng(0)
    draws, observed = random.normal(size=(count, 4, 5, 3)), random.normal(size=(4, 5, 3))
    draws[1:, 0] = draws[:1, 0]  # all draws alike: the absolute error
    draws[:, 1] = draws[:, 1].round()  # ties
    observed[2] += 9  # outside all draws
    expected = scoringrules.crps_ensemble(observed, np.moveaxis(draws, 0, -1), estimator="fair")
    np.testing.assert_allclose(crps(draws, observed), expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(crps(torch.tensor(draws), torch.tensor(observed)), crps(draws, observed))
    np.testing.assert_allclose(crps(draws, observed)[0], np.abs(draws[0] - observed)[0], atol=1e-12)


@pytest.mark.parametrize("count", [2, 10])
def test_of_few_draws_the_crps_is_on_average_that_of_the_normal_they_come_from(count: int) -> None:
    mean, scale, value = 0.5, 2.0, 1.7
    z = (value - mean) / scale
    closed = scale * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))
    assert closed == pytest.approx(scoringrules.crps_normal(value, mean, scale))
    found = crps(np.random.default_rng(1).normal(mean, scale, (count, 40_000)), np.full(40_000, value))
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - closed) < 5 * error  # 5 standard errors
    assert error < 0.01 * closed, "the plain estimator is off by 1 / count of half the spread, which is far more"


def test_the_crps_needs_two_draws() -> None:
    with pytest.raises(InputError, match="at least 2 draws, found 1"):
        crps(np.zeros((1, 3)), np.zeros(3))


@pytest.mark.parametrize("count", [9, 19, 99])
def test_an_interval_of_few_draws_holds_its_share_of_new_ones(count: int) -> None:
    random = np.random.default_rng(2)
    draws, new = random.normal(size=(count, 100_000)), random.normal(size=100_000)
    low, high = quantiles(draws, (0.1, 0.9))
    inside = float(((low <= new) & (new <= high)).mean())
    assert abs(inside - 0.8) < 5 * math.sqrt(0.16 / 100_000)  # 5 standard errors
    ordered = np.sort(draws, 0)
    np.testing.assert_allclose(low, ordered[(count + 1) // 10 - 1])


def test_the_number_of_draws_suits_the_quantiles() -> None:
    assert [least_draws([level]) for level in (0.5, 0.1, 0.9, 0.01, 0.99, 0.999)] == [1, 9, 9, 99, 99, 999]
    assert draws_for((0.1, 0.5), None) == 100
    assert draws_for((0.001, 0.5), None) == 999
    assert draws_for((0.1, 0.9), 9) == 9


@pytest.mark.parametrize(
    ("levels", "named", "message"),
    [
        ((0.1, 0.9), 8, "quantiles 0.1 0.9 need num_samples of at least 9, found 8"),
        ((1e-5,), None, "at least 99999, found 10000"),
        ((0.0, 0.5), None, "must lie between 0 and 1, found 0 0.5"),
        ((0.5, 1.0), None, "must lie between 0 and 1"),
        ((float("nan"),), None, "must lie between 0 and 1, found nan"),
        ((0.5, 0.5), None, "must differ from each other, found 0.5 0.5"),
    ],
)
def test_quantiles_that_draws_cannot_give_are_refused(levels: Any, named: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draws_for(levels, named)


# Forecasters that are right by construction


def right(length: int = 4) -> HRSSM:
    """A model whose forecast of every frame is a Normal of the noise above, around the known frame of `counter`."""
    model = counter(length)
    model.emission.noise_scale = NOISE
    return model


def counted_data(size: int, frames: int, mask: Any = None, scaling: Scaling | None = None) -> Sequences:
    """Sequences of which :func:`right` knows all but the noise."""
    noise = NOISE * np.random.default_rng(3).normal(size=(size, frames, 1))
    values = (counted(4, frames).numpy() + noise).astype(np.float32)
    return Sequences(values if scaling is None else scaling.invert(values), mask, None, scaling)


def close(found: float, expected: float, error: float) -> None:
    assert abs(found - expected) < 5 * error, (found, expected, error)  # 5 standard errors


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_a_right_forecast_scores_as_a_normal_does_in_the_datas_own_units(scale: float) -> None:
    data = counted_data(400, 12, scaling=Scaling(5.0, (scale,)))
    found = forecast_scores(right(), data, data, given=6, horizons=(1, 4, 6))
    assert found.sequences == {1: 400, 4: 400, 6: 400}
    for by_name in found.scores.values():
        score = by_name["model"]
        close(score.crps, scale * NOISE * NORMAL_CRPS, score.crps_standard_error)
        assert score.crps_scaled == pytest.approx(score.crps / scale)
        close(score.coverage, 0.8, math.sqrt(0.16 / 400))
        assert score.crps_of_entries == pytest.approx([score.crps])
        assert score.crps_standard_error < 0.06 * score.crps
        # Half of the frames differ by 0.5 or more from those before: far more than the noise.
        assert by_name["persistence"].crps > 1.15 * score.crps


def test_missing_frames_move_no_forecast_and_are_not_scored() -> None:
    mask = np.ones((400, 12), bool)
    mask[:50, 4:6] = False  # the last given frames: the forecast starts from the frame before
    mask[50:100, 4:] = False  # sequences that end before
    mask[100:150, :6] = False  # nothing is given
    mask[150:200, 9] = False  # nothing to score at horizon 4
    mask[200:250, 7] = False  # missing between
    data = counted_data(400, 12, mask)
    found = forecast_scores(right(), data, data, given=6, horizons=(1, 4, 6))
    assert found.sequences == {1: 300, 4: 250, 6: 300}
    for horizon, by_name in found.scores.items():
        score = by_name["model"]
        close(score.crps, NOISE * NORMAL_CRPS, score.crps_standard_error)
        close(score.coverage, 0.8, math.sqrt(0.16 / found.sequences[horizon]))


@pytest.mark.parametrize("alone", [True, False])
def test_an_entry_that_was_never_given_moves_no_forecast_of_the_others(alone: bool) -> None:
    """The sequence goes on from its own last given frame, and not from the last given one: no frame of it is left 0."""
    model = small(HRSSM, entry_flags=True)
    frames = 50 + walks(2, 20)
    frames[1, :10, 0] = np.nan  # never among the 10 given
    frames[1, 7:10, 1] = np.nan  # last seen 3 frames before their end
    model.start_at(frames[:1])
    data = Sequences(frames).subset([1] if alone else [0, 1])
    (task,) = forecasts._tasks(data, torch.device("cpu"), 10, (1, 2, 4), 10)
    assert task.lags[-1].tolist() == [0, 3]
    assert task.unseen.tolist() == ([3] if alone else [0, 3])
    drawn = forecasts.draws_ahead(model, task, 10, (1, 2, 4), 20, 1000)
    assert (drawn.std(0) > 0).all(), "draws that are all alike are no forecast"
    found = forecast_scores(model, data, given=10, horizons=(1,), num_samples=20)
    assert found.sequences == {1: 1 if alone else 2}


def test_batches_that_cannot_be_scored_are_passed_over() -> None:
    mask = np.ones((6, 12), bool)
    mask[:, 6:] = False
    found = forecast_scores(right(), counted_data(6, 12, mask), given=6, horizons=(1, 4), num_samples=9)
    assert (found.sequences, found.scores) == ({1: 0, 4: 0}, {1: {}, 4: {}})


def test_the_standard_error_of_one_sequence_is_not_known() -> None:
    data = counted_data(5, 12)
    found = forecast_scores(right(), data.subset([0]), data, given=6, horizons=(1,), num_samples=9)
    score = found.scores[1]["model"]
    assert math.isnan(score.crps_standard_error)
    assert score.to_dict()["crps_standard_error"] is None
    assert "± unknown (scaled" in score.text()


def walks(size: int, frames: int, step: float = 0.5) -> np.ndarray[Any, Any]:
    return np.random.default_rng(4).normal(0, step, (size, frames, 2)).cumsum(1).astype(np.float32)


@pytest.mark.parametrize("known", [True, False])
def test_persistence_is_right_about_a_random_walk(known: bool) -> None:
    mask = np.ones((300, 20), bool)
    mask[::2, 10:12] = False  # the last given frames of every other sequence: two frames more to go
    data, train = Sequences(walks(300, 20), mask), Sequences(walks(400, 20)[300:])
    found = forecast_scores(small(HRSSM), data, train if known else None, given=12, horizons=(1, 4))
    assert found.changes == ("training" if known else "given")
    for horizon, by_name in found.scores.items():
        score = by_name["persistence"]
        deviation = 0.5 * (math.sqrt(horizon) + math.sqrt(horizon + 2)) / 2
        close(score.crps, deviation * NORMAL_CRPS, score.crps_standard_error)
        close(score.coverage, 0.8, math.sqrt(0.16 / 600))


def test_persistence_knows_single_entries() -> None:
    frames = np.arange(12, dtype=np.float32).reshape(1, 6, 2) * [1, 10]  # changes of 2 and 20 a frame
    seen = np.ones((1, 6, 2), bool)
    seen[0, ::2, 1] = False  # the second entry is seen at 1, 3, 5
    walk = Persistence(frames, seen, (-math.inf, math.inf), seed=1)
    last = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    found = walk.draws(last, np.array([[3, 4], [0, 2]]), 5)
    assert found is not None
    np.testing.assert_array_equal(found, np.broadcast_to([[7, 82], [0, 44]], (5, 2, 2)))
    assert walk.draws(last, np.array([[3, 3], [1, 2]]), 5) is None


def test_entries_that_are_not_observed_are_not_scored() -> None:
    tally = _Tally(np.array([1.0, 10.0, 1.0]))
    draws, frames = np.zeros((9, 2, 3)), np.array([[1.0, 2.0, 7.0], [3.0, 0.0, 7.0]])
    tally.add(draws, frames, np.array([[True, True, False], [True, False, False]]))
    score = tally.score()
    assert score is not None
    assert (score.crps, score.crps_scaled, score.coverage) == ((10.5 + 3) / 2, (1.5 + 3) / 2, 0)
    assert score.crps_of_entries == [2, 20, None]


def test_persistence_is_left_out_where_no_frames_are_as_far_apart() -> None:
    data = Sequences(walks(20, 8))
    found = forecast_scores(small(HRSSM), data, None, given=3, horizons=(1, 2, 3), num_samples=9)
    assert [set(by_name) for by_name in found.scores.values()] == [{"model", "persistence"}] * 2 + [{"model"}]


def test_persistence_stays_where_a_bernoullis_frames_are() -> None:
    values = (np.random.default_rng(5).random((2000, 5, 2)) < 0.5).astype(np.float32)
    model = small(HRSSM, likelihood="bernoulli")
    found = forecast_scores(model, Sequences(values), Sequences(values), given=3, horizons=(2,), num_samples=9)
    # At 0 a change of -1, 0 or 1 has the chances 1/4, 1/2 and 1/4: clipped, 1 is drawn with 1/4. The same at 1, so that
    # the Brier score of an even coin is the mean of 1/16 and 9/16.
    score = found.scores[2]["persistence"]
    close(score.crps, 5 / 16, score.crps_standard_error)
    assert score.crps_standard_error < 0.01, "without the limits it is 6 / 16"


def small(kind: type[HRSSM] | type[RSSM], **fields: Any) -> Any:
    torch.manual_seed(6)
    sizes = {"frame_shape": (2,), "hidden": 8, "abstract_size": 2, "observation_size": 2, "likelihood": "normal"}
    name = {HRSSM: "hrssm", RSSM: "rssm"}[kind]
    return kind(HRSSMConfig(**(sizes | {"model": name} | fields))).eval()  # type: ignore[arg-type]


# What an evaluation says


def test_an_evaluation_has_all_forecasters_and_repeats_itself() -> None:
    data = Sequences(walks(30, 12))
    model, flat = small(HRSSM, context=1), small(RSSM, context=1)
    once, again = (
        measure(model, data, data, particles=2, horizons=(1, 3, 3), flat=flat, num_samples=20) for _ in range(2)
    )
    assert once == again
    said = once.to_dict()["forecasts"]
    assert {name: said[name] for name in said if name != "horizons"} == {
        "given": 6, "num_samples": 20, "interval": 0.8, "persistence_changes": "training",
    }  # fmt: skip
    assert list(said["horizons"]) == ["1", "3"]
    at = said["horizons"]["3"]
    assert set(at) == {"sequences", "model", "persistence", "flat"}
    assert set(at["flat"]) == {"crps", "crps_standard_error", "crps_scaled", "coverage", "crps_of_entries"}
    assert np.mean(at["model"]["crps_of_entries"]) == pytest.approx(at["model"]["crps"])
    lines = [line for line in once.table().splitlines() if "CRPS" in line]
    assert [line.split("  ")[0] or line.split()[0] for line in lines] == [
        "forecast of frame +1", "persistence", "flat", "forecast of frame +3", "persistence", "flat",
    ]  # fmt: skip
    plain = measure(model, data, data, particles=2, horizons=(1, 3))
    assert plain.forecast_nats == once.forecast_nats, "a horizon that is named twice counts once"


def test_forecasts_that_no_frame_can_judge_say_so() -> None:
    mask = np.ones((10, 12), bool)
    mask[:, 8] = False
    scores = measure(small(HRSSM), Sequences(walks(10, 12), mask), particles=2, horizons=(1, 3), num_samples=9)
    assert scores.forecasts is not None
    assert scores.forecasts.to_dict()["horizons"]["3"] == {"sequences": 0}
    assert re.search(r"forecast of frame \+3 +never observed", scores.table())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizons": (0,)}, "horizons must lie between 1 and 6, found 0"),
        ({"horizons": (1, 7)}, "horizons must lie between 1 and 6, found 1, 7"),
        ({"num_samples": 8}, "num_samples of at least 9, found 8"),
        ({"given": 12}, "given must lie between 1 and 11, found 12"),
        ({"given": 0}, "given must lie between 1 and 11, found 0"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_computed(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"given": 6, "horizons": (1,)} | changes
    with pytest.raises(InputError, match=message):
        forecast_scores(small(HRSSM), Sequences(walks(5, 12)), **asked)
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("the bound was computed first"))
    with pytest.raises(InputError, match=message):
        measure(small(HRSSM), Sequences(walks(5, 12)), **asked)


@pytest.mark.parametrize("most", [1, 7, 40, None])
def test_no_pass_has_more_rows_than_it_may(most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = prediction.forecast

    def watched(model: Any, frames: Any, horizon: int, mask: Any, settings: prediction.Settings) -> Any:
        sizes.append(settings.num_samples * len(frames))
        return real(model, frames, horizon, mask, settings)

    monkeypatch.setattr(forecasts, "forecast", watched)
    data = counted_data(10, 12)
    found = forecast_scores(right(), data, data, given=6, horizons=(1, 4), num_samples=20, most=most)
    assert sum(sizes) == 10 * 20
    assert max(sizes) <= (200 if most is None else most)
    assert found.sequences == {1: 10, 4: 10}
    assert found.scores[4]["model"].crps < 2 * NOISE * NORMAL_CRPS, "draws of every pass belong to their own sequences"
