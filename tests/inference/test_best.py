"""The exact posterior of boundaries against every segmentation of tiny sequences, and the choice that it allows."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_hrssm import HRSSM, HRSSMConfig, data
from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import Scaling, Sequences
from pyro_hrssm.data.segments import Process
from pyro_hrssm.inference import best
from pyro_hrssm.inference.best import boundary_chances, known_chances, most_f1
from pyro_hrssm.inference.evaluation import measure
from pyro_hrssm.inference.scores import score


def process_of(made: dict[str, Any]) -> Process:
    process = data.process(str(made["generator"]))
    assert process is not None
    return process


def enumerated(process: Process, frames: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Chances [T] of one sequence [T, D], from all boundaries, all states and the generator's description alone."""
    num_frames, states = len(frames), len(process.means)
    possible = range(process.min_length, process.max_length + 1)
    chances, total = np.zeros(num_frames), 0.0
    for path in itertools.product((False, True), repeat=num_frames - 1):
        ends = [*np.flatnonzero(path), num_frames - 1]
        lengths = np.diff([-1, *ends])
        *whole, cut = lengths
        weight = math.prod(float(length in possible) / len(possible) for length in whole)
        weight *= sum(length >= cut for length in possible) / len(possible)
        if weight == 0:
            continue
        for chosen in itertools.product(range(states), repeat=len(lengths)):
            joint = weight / states * math.prod(process.chain[a, b] for a, b in itertools.pairwise(chosen))
            means = process.means[np.repeat(chosen, lengths)]
            joint *= math.prod(fit(frames[t], means[t], process.noise) for t in np.flatnonzero(observed))
            chances[:-1] += joint * np.array(path)
            total += joint
    return chances / total


def fit(frame: np.ndarray, mean: np.ndarray, noise: np.ndarray) -> float:
    """Density of a frame; without noise, whether it is the mean."""
    if (noise == 0).all():
        return float(np.allclose(frame, mean, atol=1e-5))
    return math.exp(-0.5 * float((((frame - mean) / noise) ** 2).sum()))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("levels", {"num_levels": 3, "min_length": 1, "max_length": 3, "noise": (0.7, 2.0)}),
    ("levels", {"num_levels": 2, "min_length": 2, "max_length": 9, "noise": (1.0,)}),
    ("levels", {"num_levels": 3, "min_length": 1, "max_length": 2, "noise": (0.0,)}),
    ("levels", {"num_levels": 3, "min_length": 7, "max_length": 9, "noise": (0.5,)}),
    ("colours", {"num_colours": 3, "min_length": 1, "max_length": 3, "noise": 0.6}),
    ("colours", {"num_colours": 3, "min_length": 2, "max_length": 2, "noise": 0.6, "repeat": 0.4}),
    ("colours", {"num_colours": 3, "min_length": 1, "max_length": 4, "noise": 0.6, "repeat": 0.4}),
    ("colours", {"num_colours": 2, "min_length": 1, "max_length": 3, "noise": 0.0}),
    ("colours", {"num_colours": 3, "min_length": 1, "max_length": 3, "noise": 0.0, "repeat": 0.5}),
    ("colours", {"num_colours": 2, "min_length": 1, "max_length": 3, "noise": 0.0, "repeat": 1.0}),
]


@pytest.mark.parametrize(("name", "parameters"), CASES)
@pytest.mark.parametrize("num_frames", [2, 6])
def test_chances_equal_those_of_all_segmentations(
    name: str, parameters: dict[str, Any], num_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best, "CELLS", 30)  # several parts
    made = data.generate(name, 5, 3, num_frames=num_frames, **parameters)
    process = process_of(made)
    observed = np.ones((5, num_frames), bool)
    observed[1, 1] = observed[2, -1] = False
    frames = np.where(observed[..., None], made["frames"], 0.0)
    found = boundary_chances(process, frames, observed)
    expected = np.stack([enumerated(process, frames[n].astype(float), observed[n]) for n in range(5)])
    # Double sums; without noise a frame's own likelihood is within 1e-3 of 1, the same for all paths that it allows.
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found[:1], boundary_chances(process, frames[:1]))


def test_images_show_the_colour_in_every_pixel() -> None:
    made = data.generate(
        "colours", 4, 0, num_frames=5, num_colours=3, min_length=1, noise=0.8, image_size=2, repeat=0.2
    )
    process = process_of(made)
    wide = process._replace(means=np.tile(process.means, 4), noise=np.tile(process.noise, 4))
    flat = made["frames"].reshape(4, 5, 12).astype(float)
    expected = np.stack([enumerated(wide, row, np.ones(5, bool)) for row in flat])
    np.testing.assert_allclose(boundary_chances(process, made["frames"]), expected, rtol=1e-9, atol=1e-12)


def test_what_cannot_be_seen_has_the_chance_of_a_case_counted_by_hand() -> None:
    """Lengths 1 or 2 and always the same colour: a segment ends with frame 0 in 1/2, with frame 1 in 1/2 + 1/4."""
    made = data.generate("colours", 3, 0, num_frames=3, min_length=1, max_length=2, repeat=1.0, noise=0.0)
    found = boundary_chances(process_of(made), made["frames"])
    np.testing.assert_allclose(found, [[0.5, 0.75, 0.0]] * 3, rtol=1e-9)


def test_known_lengths_and_clear_changes_are_certain() -> None:
    fixed = data.generate("colours", 9, 0, num_frames=11, min_length=3, max_length=3, repeat=0.3, noise=2.0)
    np.testing.assert_allclose(boundary_chances(process_of(fixed), fixed["frames"]), fixed["boundaries"], atol=1e-9)
    clear = data.generate("levels", 9, 0, num_frames=200, noise=(0.0, 0.0))
    np.testing.assert_allclose(boundary_chances(process_of(clear), clear["frames"]), clear["boundaries"], atol=1e-9)


@pytest.mark.parametrize(("name", "noise"), [("levels", (0.5, 1.0)), ("colours", 0.5)])
def test_chances_are_shares_of_the_truth_and_no_threshold_beats_the_chosen_one(name: str, noise: Any) -> None:
    made = data.generate(name, 2000, 7, num_frames=20, noise=noise)
    chances, truth = boundary_chances(process_of(made), made["frames"]), made["boundaries"]
    counted = np.broadcast_to(np.arange(20) < 19, truth.shape)
    for low in np.arange(0, 1, 0.1):
        inside = counted & (chances >= low) & (chances < low + 0.1)
        error = math.sqrt((chances[inside] * (1 - chances[inside])).sum())
        # Boundaries of a sequence depend on each other, mostly by excluding each other.
        assert abs(truth[inside].sum() - chances[inside].sum()) < 6 * error
    found = score(most_f1(chances, counted), truth, counted).f1
    others = [score(chances >= least, truth, counted).f1 for least in np.linspace(0.02, 0.98, 49)]
    # The best of 49 thresholds on some 4,000 boundaries is favoured by chance, near the optimum by less than this.
    assert max(others) - 0.005 < found <= 1
    assert min(others) < found - 0.1


def test_the_choice_of_a_case_counted_by_hand() -> None:
    """Chances that sum to 1.8: the best one has F1 1.8/2.8, two 2.8/3.8, three 3.4/4.8, all four 3.6/5.8."""
    chances = np.array([[0.5, 0.1, 0.9], [0.3, 0.99, 0.0]])
    counted = np.array([[True, True, True], [True, False, True]])
    assert most_f1(chances, counted).tolist() == [[True, False, True], [False, False, False]]
    assert not most_f1(np.zeros((2, 3)), counted).any()
    assert not most_f1(chances, np.zeros((2, 3), bool)).any()


def test_entries_that_are_missing_say_nothing() -> None:
    made = data.generate("levels", 6, 0, num_frames=30)
    process, observed = process_of(made), np.random.default_rng(0).random(made["frames"].shape) < 0.7
    observed[2, 7] = False
    found = boundary_chances(process, np.where(observed, made["frames"], 1e3), observed)
    np.testing.assert_array_equal(found, boundary_chances(process, made["frames"], observed))
    whole = np.repeat(observed.any(-1, keepdims=True), 4, axis=-1)
    frames = boundary_chances(process, made["frames"], whole)
    np.testing.assert_allclose(frames, boundary_chances(process, made["frames"], whole[..., 0]), atol=1e-12)
    # An entry that is missing is one whose noise is so large that it says nothing.
    deaf = process._replace(noise=np.where(np.arange(4) == 1, 1e9, process.noise))
    one = np.broadcast_to(np.arange(4) != 1, observed.shape)
    expected = boundary_chances(deaf, made["frames"])
    np.testing.assert_allclose(boundary_chances(process, made["frames"], one), expected, atol=1e-9)


def test_scaled_sequences_are_scored_in_their_own_units(tmp_path: Path) -> None:
    made = data.generate("levels", 40, 0, num_frames=30)
    made["frames"][3, 20:] = made["frames"][4, 5] = made["frames"][7, 3, 1] = np.nan
    data.save_npz(tmp_path / "made.npz", **made)
    splits = data.load(DataConfig(data=str(tmp_path / "made.npz"), held_out=0.5))
    whole = data.whole(str(tmp_path / "made.npz"), Scaling((1.0, -2.0, 3.0, 0.5), (4.0, 0.1, 2.0, 9.0)))
    assert splits.scaling.scale != 1.0
    observed = ~np.isnan(made["frames"])
    expected = boundary_chances(process_of(made), np.nan_to_num(made["frames"]), observed)
    found = known_chances(whole)
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-4)  # float32
    half = known_chances(splits.held_out)
    assert half is not None
    rows = [abs(expected - row).max(1).argmin() for row in half]
    assert len(set(rows)) == 20
    np.testing.assert_allclose(half, expected[rows], atol=1e-4)


def test_chances_are_known_only_with_a_record_that_fits() -> None:
    made = data.generate("levels", 4, 0, num_frames=8)
    record = str(made["generator"])
    assert known_chances(Sequences(made["frames"], generator=record)) is not None
    assert known_chances(Sequences(made["frames"])) is None
    assert known_chances(Sequences(made["frames"][..., :3], generator=record)) is None
    balls = data.generate("balls", 2, 0, num_frames=3, image_size=4)
    assert known_chances(Sequences(balls["frames"], generator=str(balls["generator"]))) is None


def test_evaluation_has_a_row_for_the_best_after_the_context() -> None:
    made = data.generate("colours", 60, 2, num_frames=10, noise=0.4)
    known = Sequences(made["frames"], None, made["boundaries"], generator=str(made["generator"]))
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden": 4, "abstract_size": 2, "observation_size": 2, "max_segments": None}
    config = HRSSMConfig(frame_shape=(3,), likelihood="normal", context=2, max_length=None, **sizes)
    scores = measure(HRSSM(config).eval(), known, particles=1).boundaries
    assert scores is not None
    counted = np.broadcast_to(np.arange(10) >= 2, (60, 10)) & (np.arange(10) < 9)
    expected = score(most_f1(boundary_chances(process_of(made), made["frames"]), counted), made["boundaries"], counted)
    assert scores.baselines["best_possible"] == expected
    assert expected.f1 > scores.baselines["pelt"].f1 > 0.3
    assert scores.to_dict()["baselines"]["best_possible"]["f1"] == expected.f1
    (row,) = (line.split() for line in scores.text().splitlines() if "best_possible" in line)
    shown = [expected.f1, expected.precision, expected.recall, expected.f1_tolerance_1, expected.covering]
    assert row == ["best_possible", *(f"{value:.3f}" for value in shown)]
