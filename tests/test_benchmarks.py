"""The benchmarks run and print the promised quantities; the figures mean nothing here."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cuda_checks, cuda_step, neighbours, predictions, profile_step, train_step
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


# What needs a GPU, with a CPU in its place


@pytest.fixture
def place() -> cuda_step.Place:
    return cuda_step.Place("cpu", lambda: lambda function, rehearsing: function)


def test_a_graphs_ratios(small: None, monkeypatch: pytest.MonkeyPatch, place: cuda_step.Place) -> None:
    monkeypatch.setattr(train_step, "bare_networks", lambda batch, device: lambda: sum(range(batch)))
    monkeypatch.setattr(cuda_step, "SEEDS", 2)
    for name, measure in cuda_step.measures(1, place).items():
        if name in ("rows_b128", "leave_one_out_b128", "video_32", "growth_280_28", "seeds_8"):
            found = cuda_step.unvalidated(measure)
            assert found["ratio"] > 0
            json.dumps(found)
            assert "ms" in cuda_step.details(found) or name == "growth_280_28"
    monkeypatch.setattr("pyro_hrssm.inference.compiled.OLDEST", (99, 0))
    found = cuda_step.unvalidated(cuda_step.measures(1, place)["compiled_b128"])
    assert found["ratio"] is None
    assert "compile needs torch 99.0 or newer" in cuda_step.details(found)


def test_without_a_gpu_nothing_is_measured_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module, arguments in ((train_step, ["--device", "cuda"]), (cuda_checks, [])):
        monkeypatch.setattr(sys, "argv", ["name", *arguments])
        with pytest.raises(SystemExit) as stop:
            module.main()
        assert stop.value.code == 2
        assert "finds no GPU here" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["name", "--only", "seeds_8"])
    with pytest.raises(SystemExit):
        train_step.main()
    assert "not measured on cpu: seeds_8" in capsys.readouterr().err


def test_a_check_is_a_row_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    soon, figures = time.monotonic() + 60, {}
    good = {
        "ratio": 0.9,
        "eager_over_graph": 8.0,
        "graph": {"waits": 0.0, "kernels": 1.0},
        "eager": {"waits": 1, "kernels": 2},
    }
    rows = list(cuda_checks.measured("rows_b128", lambda: good, soon, figures))
    assert [row.passed for row in rows] == [None, True, False, True]
    assert figures == {"rows_b128": good}

    def broken() -> dict[str, Any]:
        raise RuntimeError("no\nluck")

    rows = list(cuda_checks.measured("rows_b16", broken, soon, figures))
    assert [(row.found, row.passed) for row in rows] == [("RuntimeError: no luck", False), ("not measured", False)]
    late = list(cuda_checks.measured("seeds_8", broken, time.monotonic() - 1, figures))
    assert [(row.found, row.passed) for row in late] == [("no time left", False)]
    assert all(str(row) for row in [*rows, *late])


def test_failed_tests_are_rows(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\npytestmark = pytest.mark.cuda\ndef test_one(): pass\ndef test_two(): assert 1 == 2\n"
    )
    rows = list(cuda_checks.suite(time.monotonic() + 120, files=(str(tmp_path),)))
    assert [(row.what, row.found, row.passed) for row in rows] == [
        ("tests marked cuda", "1 of 2 pass", False),
        ("  test_two", "assert 1 == 2", False),
    ]
    rows = list(cuda_checks.suite(time.monotonic() + 120, "slow", (str(tmp_path),)))
    assert [row.passed for row in rows] == [False], "no test, no pass"
    (tmp_path / "test_it.py").write_text("import time\ntime.sleep(60)\n")
    rows = list(cuda_checks.suite(time.monotonic() + 0.1, files=(str(tmp_path),)))
    assert [(row.found, row.passed) for row in rows] == [("no time left", False)]
