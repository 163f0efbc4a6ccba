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
from pyro_hrssm.data.loading import LoaderError, Resident, Streamed, reading, resident, resident_bytes
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


def masked(kind: str) -> Sequences:
    """Sequences [24, 5, 3] of which frames or entries are missing."""
    values = np.random.default_rng(1).integers(0, 3, (24, 5, 3)).astype(np.float32)
    values[:, 0] = 1
    if kind == "uncounted":  # the first sequences lack whole frames alone
        own = frames()
        own[:3, 3] = own[20, 2, 1] = np.nan
        return Sequences(own)
    if kind == "frames":
        return Sequences(frames(), values[..., 0] > 0)
    return Sequences(frames(), weights=values > 0 if kind == "flags" else values)


@pytest.mark.parametrize("kind", ["frames", "flags", "weights", "uncounted"])
def test_batches_on_a_device_have_the_masks_of_the_data(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_hrssm.data.batches.SEQUENCES_AT_ONCE", 10)
    data, steps = masked(kind), [torch.arange(24)[start::3] for start in range(3)]
    whole = resident(data, CPU)
    assert whole.mask is not None
    held = whole.frames.nbytes + whole.mask.nbytes
    assert resident_bytes(data) == held or kind == "uncounted"
    gathered = Resident(whole, iter(steps), len(steps))
    streamed = Streamed(iter([data.batch(index) for index in steps]), CPU)
    gathered.open()
    for number, index in enumerate(steps):
        expected = data.batch(index)
        assert expected.mask is not None
        streamed.put()
        for found_frames, mask in (gathered.at(torch.tensor([number])), streamed.at(torch.tensor([number]))):
            assert mask is not None
            torch.testing.assert_close(found_frames, expected.frames, rtol=0, atol=0)
            wide = mask.dim() > expected.mask.dim()
            own = expected.mask.unsqueeze(-1).expand_as(mask) if wide else expected.mask
            torch.testing.assert_close(mask, own, rtol=0, atol=0)


def test_streamed_batches_whose_masks_differ_in_form_share_no_memory() -> None:
    own, flat = torch.rand(2, 5, 3), torch.rand(2, 5) > 0.5
    forms = [None, flat, flat.unsqueeze(-1).expand_as(own).clone(), torch.rand(2, 5, 3), flat.clone()]
    streamed = Streamed(iter([Batch(own + number, mask, None) for number, mask in enumerate(forms)]), CPU)
    shapes = []
    for number, mask in enumerate(forms):
        shapes.append(streamed.put())
        found, seen = streamed.at(torch.tensor([number]))
        assert torch.equal(found, own + number)
        assert seen is None if mask is None else seen is not None and seen.dtype == mask.dtype and seen.equal(mask)
    assert len(set(shapes)) == 4
    assert shapes[1] == shapes[4]
