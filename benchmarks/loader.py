"""The ratio of sequences per second that the loader reads from a memory-mapped file to those that training uses.

Above 1, training does not wait for the loader. The file is written anew, so that the system still has it in memory:
the ratio measures picking rows, scaling and handing over, not a disk::

    python -m benchmarks.loader
    python -m benchmarks.loader --workers 2 --json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import torch

from pyro_hrssm import HRSSM, HRSSMConfig, TrainingConfig, data
from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import Sequences
from pyro_hrssm.data.batches import batch_indices
from pyro_hrssm.data.loading import reading
from pyro_hrssm.run.training import Trainer


class Setting(NamedTuple):
    """Sizes of a data set and of the model trained on it."""

    sequences: int
    frames: int
    batch_size: int
    model: HRSSMConfig


SETTINGS = {
    "rows": Setting(5000, 28, 128, HRSSMConfig(frame_shape=(28,), window=28)),
    "video": Setting(
        1000, 20, 16, HRSSMConfig(frame_shape=(32, 32, 3), context=5, max_segments=5, max_length=8, window=15)
    ),
}


def written(setting: Setting, folder: Path) -> Sequences:
    """A file of random bytes, mapped and split as `--data file.npy` is."""
    shape = (setting.sequences, setting.frames, *setting.model.frame_shape)
    path = folder / "frames.npy"
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    mapped[:] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    mapped.flush()
    return data.load(DataConfig(data=str(path))).train


def rate(work: Callable[[], object], sequences: int, seconds: float) -> float:
    """Sequences per second of `work`, which handles `sequences` per call; the first two calls do not count."""
    work()
    work()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or calls < 3:
        work()
        calls += 1
    return calls * sequences / (time.perf_counter() - start)


def measure(setting: Setting, workers: int, seconds: float) -> dict[str, float]:
    """The rates of the loader and of training, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        sequences = written(setting, Path(folder))
        indices = batch_indices(len(sequences), setting.batch_size, seed=0, start=0)
        with reading(sequences, indices, workers, torch.device("cpu")) as batches:
            loader = rate(lambda: next(batches), setting.batch_size, seconds)
        torch.manual_seed(0)
        config = TrainingConfig(batch_size=setting.batch_size)
        trainer = Trainer(HRSSM(setting.model), config, Path(folder), {})
        batch = sequences.batch(range(setting.batch_size))
        with pyro.validation_enabled(False):
            training = rate(lambda: trainer.update(batch.frames, batch.mask), setting.batch_size, seconds)
    return {
        "ratio": loader / training,
        "loader_sequences_per_second": loader,
        "training_sequences_per_second": training,
    }


def main() -> None:
    """Print the ratios for digit rows and for video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--workers", type=int, default=0, help="processes that read ahead (default 0)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each measurement (default 3)")
    arguments = parser.parse_args()
    results = {name: measure(setting, arguments.workers, arguments.seconds) for name, setting in SETTINGS.items()}
    if arguments.json:
        details = {"workers": arguments.workers, "threads": torch.get_num_threads(), "details": results}
        print(json.dumps({name: result["ratio"] for name, result in results.items()} | details))
        return
    for name, result in results.items():
        loader, training = result["loader_sequences_per_second"], result["training_sequences_per_second"]
        print(f"{name}: {result['ratio']:.1f} ({loader:.0f} over {training:.0f} sequences per second)")


if __name__ == "__main__":
    main()
