"""The benchmarks run and print the promised quantities; the figures mean nothing here."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import cuda_checks, cuda_step, mocap6, neighbours, predictions, profile_step, train_step
from pyro_hrssm import HRSSMConfig, data
from pyro_hrssm.config import DataConfig


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


@pytest.mark.parametrize("packed", [False, True])
def test_mocap6_becomes_an_archive(packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two recordings of 3 and 4 frames: the shorter one is padded, and a boundary stands where the action changes."""
    source = io.BytesIO()
    frames = np.arange(14.0).reshape(7, 2)
    names: dict[str, Any] = {"true_state_names": np.array([b"run", b"sit"]), "column_names": np.array([b"a", b"b"])}
    np.savez(source, X=frames, Xprev=frames, TrueZ=[1, 2, 2, 2, 2, 1, 1], doc_range=[0, 3, 7], **names)
    path = tmp_path / ("bnpy.tar.gz" if packed else "dataset.npz")
    if packed:
        with tarfile.open(path, "w:gz") as package:
            member = tarfile.TarInfo("bnpy-0.1.7/bnpy/datasets/mocap6/dataset.npz")
            member.size = len(source.getvalue())
            package.addfile(member, io.BytesIO(source.getvalue()))
    else:
        path.write_bytes(source.getvalue())
    out = tmp_path / "mocap6.npz"
    monkeypatch.setattr(sys, "argv", ["mocap6", str(path), str(out)])
    mocap6.main()
    with np.load(out) as made:
        assert made["labels"].tolist() == [[0, 1, 1, -1], [1, 1, 0, 0]]
        assert made["boundaries"].astype(int).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
        assert made["lengths"].tolist() == [3, 4]
        assert made["frames"][1].tolist() == frames[3:].tolist()
        assert made["label_names"].tolist() == ["run", "sit"]
    splits = data.load(DataConfig(data=str(out), held_out=0.5))
    assert (splits.train.num_frames, splits.train.frame_shape, splits.train.has_boundaries) == (4, (2,), True)
    assert splits.train.labels is not None


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "other.npz", X=np.zeros((2, 2)))
    monkeypatch.setattr(sys, "argv", ["mocap6", str(tmp_path / "other.npz")])
    with pytest.raises(SystemExit, match=r"must hold .*found no TrueZ"):
        mocap6.main()


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
