"""Batches that worker processes read ahead give the same run, and no process is left behind."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import loader
from pyro_hrssm import HRSSM, HRSSMConfig, TrainingConfig, checkpoint
from pyro_hrssm.data import Batch, Sequences
from pyro_hrssm.data.loading import LoaderError, reading
from pyro_hrssm.errors import InputError
from pyro_hrssm.run.diagnosis import TrainingError
from pyro_hrssm.run.process import Interrupted
from pyro_hrssm.run.training import Trainer

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "hidden": 4, "abstract_size": 2, "observation_size": 2, "max_segments": 3, "max_length": 3, "window": 5
}  # fmt: skip


def frames() -> np.ndarray:
    return np.random.default_rng(0).random((24, 5, 3), dtype=np.float32)


def fit(run: Path, data: Sequences, **settings: Any) -> Trainer:
    torch.manual_seed(1)
    defaults: dict[str, Any] = {"steps": 5, "batch_size": 8, "log_every": 1, "evaluate_every": 0, "checkpoint_every": 2}
    trainer = Trainer(HRSSM(HRSSMConfig(frame_shape=(3,), **SIZES)), TrainingConfig(**(defaults | settings)), run, {})
    trainer.fit(data, Sequences(frames()))
    return trainer


class Slow(Sequences):
    """Sequences whose first batches take longest, so that workers finish batches in another order."""

    def batch(self, indices: Any) -> Batch:
        time.sleep(0.2 / (1 + float(np.asarray(indices)[0])))
        return super().batch(indices)


class Signalling(Sequences):
    """Reading the second batch sends a signal to the training process and to every worker."""

    def __init__(self, frames: np.ndarray, number: signal.Signals) -> None:
        super().__init__(frames)
        self.number, self.group = number, os.getpid()

    def batch(self, indices: Any) -> Batch:
        if os.getpid() != self.group:
            os.kill(os.getpid(), self.number)
            os.kill(self.group, self.number)
        return super().batch(indices)


class Dying(Sequences):
    """Ends the process that reads it."""

    def batch(self, indices: Any) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(indices)


class Refusing(Sequences):
    def batch(self, indices: Any) -> Batch:
        raise InputError("shard 3 is gone")


class Spoilt(Sequences):
    def batch(self, indices: Any) -> Batch:
        return super().batch(indices)._replace(frames=torch.full((len(indices), 5, 3), float("nan")))


def test_the_benchmark_measures_both_rates() -> None:
    sizes = loader.Setting(20, 5, 4, HRSSMConfig(frame_shape=(3,), **SIZES))
    found = loader.measure(sizes, workers=0, seconds=0.01)
    assert found["ratio"] == found["loader_sequences_per_second"] / found["training_sequences_per_second"] > 0


@pytest.fixture(autouse=True)
def _no_worker_stays() -> Any:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [1, 3])
def test_the_order_is_that_of_one_process(workers: int) -> None:
    data = Slow(np.arange(24 * 2, dtype=np.float32).reshape(24, 2, 1))
    indices = [torch.tensor([i, 23 - i]) for i in range(12)]
    with reading(data, iter(indices), workers, CPU) as batches:
        found = [batch.frames for batch in batches]
    assert all(torch.equal(one, data.batch(two).frames) for one, two in zip(found, indices, strict=True))


def test_training_is_the_same_bit_for_bit_with_and_without_workers(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", frames())
    gaps = np.random.default_rng(1).random((24, 5)) > 0.2
    gaps[:, 0] = True
    weights = np.random.default_rng(2).random((24, 5, 3)) < 0.8
    for name, workers in (("none", 0), ("two", 2)):
        mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
        fit(tmp_path / name, Sequences(mapped, gaps, weights=weights), workers=workers)
    one, two = checkpoint.load(tmp_path / "none"), checkpoint.load(tmp_path / "two")
    assert one.step == two.step == 5
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors | two.tensors)
    assert (tmp_path / "none/metrics.jsonl").read_bytes() == (tmp_path / "two/metrics.jsonl").read_bytes()


def test_what_a_worker_refuses_is_told_as_without_workers(tmp_path: Path) -> None:
    said = []
    for workers in (0, 2):
        with pytest.raises(InputError, match="shard 3 is gone") as error:
            fit(tmp_path / str(workers), Refusing(frames()), workers=workers)
        assert multiprocessing.active_children() == []
        said.append(str(error.value))
    assert said[0] == said[1]


def test_workers_end_with_a_run_that_fails(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="step 1: site m_0"):
        fit(tmp_path, Spoilt(frames()), workers=2)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_stops_between_steps(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.signal(number, signal.default_int_handler)  # the tests' parent may ignore this signal
    try:
        with pytest.raises(Interrupted):
            # One worker and one batch: a second signal would stop at once.
            fit(tmp_path, Signalling(frames(), number), workers=1, steps=1)
        assert multiprocessing.active_children() == []
    finally:
        signal.signal(number, before)


def test_a_worker_that_dies_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(LoaderError, match="reads batches ended") as error:
        fit(tmp_path, Dying(frames()), workers=1)
    assert "\n" not in str(error.value)
