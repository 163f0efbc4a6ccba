"""The benchmarks run and print the promised quantities; the figures mean nothing here."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from benchmarks import neighbours, predictions, profile_step, train_step
from pyro_hrssm import HRSSMConfig


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny: Any = {"hidden": 8, "abstract_size": 2, "observation_size": 2, "max_length": 3}
    monkeypatch.setattr(train_step, "ROWS", HRSSMConfig(frame_shape=(28,), **tiny))
    monkeypatch.setattr(predictions, "ROWS", HRSSMConfig(frame_shape=(28,), **tiny))
    monkeypatch.setattr(profile_step, "ROWS", HRSSMConfig(frame_shape=(28,), **tiny))
    video = HRSSMConfig(frame_shape=(8, 8, 3), networks="conv", channels=2, context=train_step.CONTEXT, **tiny)
    monkeypatch.setattr(train_step, "video_config", lambda channels: video)
    monkeypatch.setattr(profile_step, "video_config", lambda channels: video)
    monkeypatch.setattr(train_step, "LENGTHS", (3, 6))
    monkeypatch.setattr(train_step, "bare_networks", lambda batch: lambda: sum(range(batch)))


def test_the_training_steps_ratios(
    small: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = [name for name in train_step.measures(0) if not name.startswith("compiled")]
    monkeypatch.setattr(sys, "argv", ["train_step", "--json", "--steps", "1", "--only", *eager])
    train_step.main()
    found = json.loads(capsys.readouterr().out)
    assert all(found[name] > 0 for name in ("rows_b128", "rows_b16", "video_32", "video_128", "growth_280_28"))
    assert list(found["details"]["growth_280_28"]["memory_mib"]) == ["3", "6"]


def test_predictions_cost(small: None) -> None:
    found = predictions.ratios(1)
    assert found.keys() == {"iwae_100", "forecast_100", "jump_100", "svi_seconds"}
    assert all(value > 0 for value in found.values())


def test_the_profile_adds_up(small: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_step, "STEPS", 1)
    monkeypatch.setattr(sys, "argv", ["profile_step", "--json"])
    profile_step.main()
    for name, row in json.loads(capsys.readouterr().out).items():
        parts = [value for key, value in row.items() if key not in ("step", "kernels")]
        assert sum(parts) == pytest.approx(row["step"]), name
        assert row["kernels"] > 100


def test_steps_beside_neighbours_are_measured_under_each_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = neighbours.steps(neighbours.SETTINGS["one"])
    assert len(seconds) == 10
    assert min(seconds) > 0
    monkeypatch.setattr(neighbours, "steps", lambda setting: [float(len(setting))] * 3)
    found = neighbours.measure(rounds=2)
    assert set(found) == set(neighbours.SETTINGS)
    assert found["command"] == {"0": 1.0, "1": 1.0, "2": 1.0}
