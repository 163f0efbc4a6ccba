"""The benchmarks run and print the promised quantities; the figures mean nothing here."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import mocap6, predictions, profile_step, train_step
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
