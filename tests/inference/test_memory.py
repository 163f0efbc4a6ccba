"""Memory of scoring: passes fit the sizes of the model and what the machine has free."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyro_hrssm import HRSSMConfig
from pyro_hrssm.inference import memory
from pyro_hrssm.inference.bounds import log_weights
from pyro_hrssm.inference.prediction import Settings, reconstruct, segment
from pyro_hrssm.model.base import StateSpaceModel

LONG = """
import resource, sys
import numpy as np, torch
from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.data.sequences import Sequences
from pyro_hrssm.inference.evaluation import measure
from pyro_hrssm.model.base import StateSpaceModel

torch.manual_seed(0)
config = HRSSMConfig(
    frame_shape=(3,), hidden=int(sys.argv[2]), abstract_size=2, observation_size=2, max_segments=20, max_length=30,
    likelihood="normal",
)
model = StateSpaceModel.build(config).eval()
random, size = np.random.default_rng(0), int(sys.argv[1])
frames, ends = random.random((size, 200, 3), np.float32), random.random((size, 200)) < 0.1
assert np.isfinite(measure(model, Sequences(frames, None, ends), particles=int(sys.argv[3])).iwae_nats_per_sequence)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_megabytes(*arguments: int) -> float:
    command = [sys.executable, "-c", LONG, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) / 1024  # KiB, as Linux counts


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count the peak in other units")
@pytest.mark.parametrize("hidden", [16, 128])
def test_many_long_sequences_with_large_grids_are_scored_within_4_gb(hidden: int) -> None:
    assert peak_megabytes(2000, hidden, 2) < 4000


def model_of(**fields: object) -> StateSpaceModel:
    settings = {"frame_shape": (2,), "hidden": 8, "abstract_size": 2, "observation_size": 2} | fields
    return StateSpaceModel.build(HRSSMConfig(**settings)).eval()  # type: ignore[arg-type]


def test_a_grid_a_belief_and_a_frame_all_make_passes_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda _: None)
    few = memory.rows_at_once(model_of(max_segments=None, max_length=None), 2000)
    grid = memory.rows_at_once(model_of(max_segments=20, max_length=30), 2000)
    assert grid == memory.NUMBERS_AT_ONCE // (2000 * (40 * 8 + 7 * 600 + 14 * 2))
    assert memory.rows_at_once(model_of(max_segments=20, max_length=30, boundary_posterior="factorised"), 2000) == few
    assert memory.rows_at_once(model_of(model="rssm"), 2000) == few
    assert grid < memory.rows_at_once(model_of(max_segments=None, max_length=None, hidden=64), 2000) < few
    assert memory.rows_at_once(model_of(frame_shape=(64, 64, 3)), 2000) < grid
    assert memory.rows_at_once(model_of(), 5, most=3) == 3
    assert memory.rows_at_once(model_of(), 5) == memory.ROWS_AT_ONCE
    assert memory.rows_at_once(model_of(hidden=512, max_segments=500, max_length=500), 10**6) == 1


def test_a_small_training_batch_makes_passes_smaller() -> None:
    assert memory.rows_for_batches_of(1) == 64
    assert memory.rows_for_batches_of(128) == memory.rows_for_batches_of(1000) == memory.ROWS_AT_ONCE


def test_little_free_memory_makes_passes_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    model, row = model_of(), 4 * memory.numbers_per_row(model_of().config, 6)
    for rows, expected in ((100, 64), (64, 64), (63, 32), (0.1, 1)):
        monkeypatch.setattr(memory, "available", lambda _, rows=rows: 2 * row * rows + 1)
        assert memory.rows_at_once(model, 6) == expected


def test_passes_of_any_size_give_one_result_per_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(max_segments=3, max_length=4)
    frames, mask = torch.rand(5, 6, 2), torch.ones(5, 6, dtype=torch.bool)
    mask[1, 4:] = mask[3, 2] = False
    whole = [segment(model, frames, mask), segment(model, frames)]
    monkeypatch.setattr(memory, "available", lambda _: 2 * 2 * 4 * memory.numbers_per_row(model.config, 6))
    assert memory.rows_at_once(model, 6) == 2
    for one, other in zip(whole, (segment(model, frames, mask), segment(model, frames)), strict=True):
        for found, expected in zip(other, one, strict=True):
            torch.testing.assert_close(found, expected)
    assert log_weights(model, frames, mask, 3).weights.shape == (3, 5)
    assert reconstruct(model, frames, mask, Settings(num_samples=3)).frames.shape == (3, 5, 6, 2)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_control_group_counts(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cgroup" / ("memory" if version == 1 else "")
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    )
    inner = root / "outer" / "inner"
    inner.mkdir(parents=True)
    unlimited = str(2**63 - 4096) if version == 1 else "max"
    for folder, most in ((root, unlimited), (root / "outer", "5000"), (inner, unlimited)):
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text("3000\n")
        (folder / "memory.stat").write_text("cache 900\ninactive_file 700\n")
    (tmp_path / "own").write_text(
        f"7:{'cpu' if version == 1 else 'x'}:/\n4:{'memory' if version == 1 else ''}:/outer/inner\n"
    )
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "own")
    assert memory.available(torch.device("cpu")) == 5000 - 3000 + 700


def test_the_machines_free_memory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    (tmp_path / "meminfo").write_text("MemTotal:       24 kB\nMemAvailable:       17 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    assert memory.available(torch.device("cpu")) == 17 * 1024
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}[name], raising=False)
    assert memory.available(torch.device("cpu")) == 40960

    def unknown(_: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    assert memory.available(torch.device("cpu")) is None
