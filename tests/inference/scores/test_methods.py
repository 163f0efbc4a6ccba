"""Boundary scores against hand counts, and baselines on data whose answer is known."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_hrssm import HRSSM, HRSSMConfig, data
from pyro_hrssm.data import Sequences
from pyro_hrssm.data.batches import in_order
from pyro_hrssm.inference.evaluation import boundary_scores, labelled, measure
from pyro_hrssm.inference.prediction import segment
from pyro_hrssm.inference.scores import Labelled, Score, baselines, score
from pyro_hrssm.model.given import acting


def flags(*rows: str) -> np.ndarray:
    return np.array([[letter == "1" for letter in row] for row in rows])


def test_scores_equal_hand_counts() -> None:
    found, truth = flags("0100100", "1000010"), flags("0100010", "0100010")
    counted = flags("1111110", "1111110")
    result = score(found, truth, counted)
    # Exact: frames 1 and 5. Within one: 1-1, 4-5, 0-1 and 5-5.
    assert result == Score(precision=2 / 4, recall=2 / 4, f1=2 / 4, f1_tolerance_1=1.0)


def test_positions_not_counted_do_not_count() -> None:
    found, truth = flags("11111"), flags("00101")
    assert score(found, truth, flags("00110")) == Score(1 / 2, 1.0, 2 / 3, 2 / 3)
    assert score(found, truth, flags("00000")) == Score(0.0, 0.0, 0.0, 0.0)


row = st.lists(st.booleans(), min_size=6, max_size=6)


@given(row, row)
def test_tolerant_matches_are_the_most_possible(found: list[bool], truth: list[bool]) -> None:
    a, b = np.flatnonzero(found), np.flatnonzero(truth)
    few, many = sorted((a, b), key=len)
    best = max(
        sum(abs(int(x) - int(y)) <= 1 for x, y in zip(few, chosen, strict=True))
        for chosen in itertools.permutations(many, len(few))
    )
    result = score(np.array([found]), np.array([truth]), np.ones((1, 6), bool))
    assert result.f1_tolerance_1 == 2 * best / max(1, len(a) + len(b))


def test_baselines_find_what_they_can() -> None:
    """Fixed lengths are every third frame; without noise or repeats every change can be seen."""
    made = data.generate("colours", 60, 1, num_frames=13, min_length=3, max_length=3, noise=0.0)
    both = Labelled(made["frames"], made["boundaries"], np.broadcast_to(np.arange(13) < 12, (60, 13)))
    results = {name: score(rule(both), both.truth, both.acts).f1 for name, rule in baselines(both)}
    rate = both.truth.sum() / both.acts.sum()
    assert results == {
        "always": pytest.approx(2 * rate / (1 + rate)),
        "never": 0.0,
        "every_k": 1.0,
        "frame_difference": 1.0,
        "pelt": 1.0,
    }


def test_parameters_are_chosen_on_the_tuning_data_alone() -> None:
    def of(length: int) -> Labelled:
        made = data.generate("colours", 20, 1, num_frames=13, min_length=length, max_length=length, noise=0.0)
        return Labelled(made["frames"], made["boundaries"], np.broadcast_to(np.arange(13) < 12, (20, 13)))

    every_k = dict(baselines(of(3)))["every_k"]
    assert every_k(of(4))[0].nonzero()[0].tolist() == [2, 5, 8, 11]


def test_pelt_is_the_least_cost_segmentation() -> None:
    """Against every segmentation of a short sequence."""
    rng = np.random.default_rng(0)
    frames = np.cumsum(rng.normal(size=(6, 7, 2)) * (rng.random((6, 7, 1)) < 0.5), 1).astype(np.float32)
    acts = np.broadcast_to(np.arange(7) < 6, (6, 7))
    from pyro_hrssm.inference.scores.methods import _pelt

    found = _pelt(Labelled(frames, np.zeros((6, 7), bool), acts), 0.7)
    for sequence, boundaries in zip(frames.astype(np.float64), found, strict=True):
        costs = {}
        for path in itertools.product((False, True), repeat=6):
            parts = np.split(sequence, np.flatnonzero(path) + 1)
            costs[path] = sum(((part - part.mean(0)) ** 2).sum() + 0.7 for part in parts)
        assert costs[tuple(boundaries[:6])] == pytest.approx(min(costs.values()), abs=1e-9)


def model_of(**fields: object) -> HRSSM:
    torch.manual_seed(2)
    sizes = {"frame_shape": (3,), "hidden": 8, "abstract_size": 2, "observation_size": 2, "likelihood": "normal"}
    return HRSSM(HRSSMConfig(**(sizes | fields))).eval()  # type: ignore[arg-type]


def test_a_model_is_scored_also_where_its_limits_left_no_choice() -> None:
    made = data.generate("colours", 30, 3, num_frames=9)
    lengths = np.resize([9, 7, 2, 1], 30)
    mask = np.arange(9) < lengths[:, None]
    sequences = Sequences(made["frames"], mask, made["boundaries"])
    model = model_of(max_segments=3, max_length=3)
    scores = boundary_scores(model, in_order(sequences, torch.device("cpu")))
    batch = sequences.batch(range(30))
    found = segment(model, batch.frames, batch.mask)
    hits = wrong = missed = forced = positions = 0
    for i in range(30):
        opened, since = 1, 1
        for t in range(lengths[i] - 1):
            positions += 1
            m = bool(found.boundaries[i, t])
            forced += opened >= 3 or since >= 3
            truth = bool(made["boundaries"][i, t])
            hits, wrong, missed = hits + (m and truth), wrong + (m and not truth), missed + (truth and not m)
            opened, since = (opened + 1, 1) if m else (opened, since + 1)
    assert scores.model.f1 == pytest.approx(2 * hits / (2 * hits + wrong + missed))
    assert scores.forced_share == pytest.approx(forced / positions)
    assert scores.tuned_on == "evaluation"
    values = scores.to_dict()
    assert set(values) >= {"precision", "recall", "f1", "f1_tolerance_1", "baselines"}
    assert set(values["baselines"]) == {"always", "never", "every_k", "frame_difference", "pelt"}
    assert set(values["baselines"]["pelt"]) == {"precision", "recall", "f1", "f1_tolerance_1"}


def test_missing_frames_repeat_the_one_before() -> None:
    frames = np.arange(10, dtype=np.float32).reshape(2, 5, 1)
    mask = np.array([[1, 0, 0, 1, 1], [1, 1, 0, 1, 0]], bool)
    sequences = Sequences(frames, mask, np.zeros((2, 5), bool))
    result = labelled(in_order(sequences, torch.device("cpu")), 0)
    assert result.frames[..., 0].tolist() == [[0, 0, 0, 3, 4], [5, 6, 6, 8, 8]]
    assert result.acts.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]


def test_everything_at_once_repeats_itself_and_leaves_out_what_is_unknown() -> None:
    made = data.generate("colours", 12, 3, num_frames=9)
    known, unknown = Sequences(made["frames"], None, made["boundaries"]), Sequences(made["frames"])
    model = model_of(context=2)
    one, two = (measure(model, known, known, particles=3, horizons=(1, 3), given=5).to_dict() for _ in range(2))
    assert one == two
    assert one["boundaries"]["tuned_on"] == "training"
    assert set(one["forecast_nats"]) == {"1", "3"}
    assert one["forecast_nats"]["3"] < one["forecast_nats"]["1"] + 5
    assert not {"boundaries", "forecast_nats"} & set(measure(model, unknown, unknown, particles=2).to_dict())
    assert acting(2, torch.zeros(1, 9, 3), None).shape == (1, 6)
