"""Train a tiny model for long and look for growth in resident memory, open files and processor seconds per step.

The benchmark prints one JSON object and ends with exit code 1 if one of these grew; it needs a system with `/proc`::

    python -m benchmarks.soak
    python -m benchmarks.soak --minutes 2

The trainer's own loop runs; it logs, evaluates, draws figures and saves far more often than usual.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_hrssm import HRSSM, HRSSMConfig, TrainingConfig, data
from pyro_hrssm.data import Scaling, Sequences
from pyro_hrssm.run.process import Interrupted
from pyro_hrssm.run.training import Trainer

SAMPLES = 60
"""Number of samples of memory and descriptors, evenly over the run."""

TENTHS = 10

TOLERATED = {"memory": 0.05, "descriptors": 0.1, "step": 0.2}
"""Growth from the second tenth to the last, as a share of the median.

A step's time is processor time, because wall time on a shared machine includes the other work.
"""

MODEL = HRSSMConfig(
    frame_shape=(3,), hidden=8, abstract_size=2, observation_size=2, max_segments=3, max_length=4, window=8
)
TRAINING = TrainingConfig(
    steps=10**9, batch_size=8, log_every=5, evaluate_every=200, checkpoint_every=50, keep_checkpoints=3
)

WARM_UP = TRAINING.evaluate_every + 1
"""Steps before the clock starts: the first evaluation loads the drawing libraries."""


class Sample(NamedTuple):
    """Memory and files that the process holds at one moment."""

    minute: float
    memory_mib: float
    """Resident memory."""
    descriptors: int
    """Number of open files, sockets and pipes."""


class Watched(Trainer):
    """A trainer that takes samples and step times once it is warm, and ends itself after its minutes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.minutes = 0.0
        self.samples: list[Sample] = []
        self.seconds = [array("d") for _ in range(TENTHS)]

    def soak(self, sequences: Sequences, minutes: float) -> None:
        """Train for `minutes`."""
        self.minutes = minutes
        with contextlib.suppress(Interrupted):
            self.fit(sequences, sequences)

    def update(self, frames: Tensor, mask: Tensor | None) -> float:
        if self.step <= WARM_UP:
            self.start = time.monotonic()
        start = time.process_time()
        loss = super().update(frames, mask)
        seconds = time.process_time() - start
        if self.step < WARM_UP:
            return loss
        share = (time.monotonic() - self.start) / (60 * self.minutes)
        self.seconds[min(int(share * TENTHS), TENTHS - 1)].append(seconds)
        if share * SAMPLES >= len(self.samples):
            self.samples.append(look(share * self.minutes))
        if share >= 1:
            signal.raise_signal(signal.SIGTERM)  # a job in the background may ignore Ctrl-C
        return loss


def look(minute: float) -> Sample:
    """A sample of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = len(os.listdir("/proc/self/fd")) - 1  # the descriptor of this listing does not count
    return Sample(minute, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, descriptors)


def slope(times: list[float], values: list[float]) -> float:
    """Slope of the least-squares line; 0 where there are too few points for a line."""
    return statistics.linear_regression(times, values).slope if len(set(times)) > 1 else 0.0


def slopes(samples: list[Sample], step_seconds: list[float]) -> dict[str, float]:
    """Growth from the second tenth of the run to its end, as a share of the median; the first tenth warms up."""
    warm = [sample for sample in samples if sample.minute >= samples[-1].minute / TENTHS]
    minutes = [sample.minute for sample in warm]
    courses = {
        "memory": (minutes, [sample.memory_mib for sample in warm]),
        "descriptors": (minutes, [float(sample.descriptors) for sample in warm]),
        "step": ([float(tenth) for tenth in range(1, len(step_seconds))], step_seconds[1:]),
    }
    return {
        name: slope(times, values) * (times[-1] - times[0]) / statistics.median(values)
        for name, (times, values) in courses.items()
    }


def verdict(samples: list[Sample], step_seconds: list[float]) -> list[str]:
    """One line for each quantity that grew more than is tolerated; no line is a pass.

    Arguments:
        step_seconds: median processor seconds of a step, by tenth of the run.
    """
    grown = slopes(samples, step_seconds).items()
    return [
        f"{name} grew by {100 * share:.0f} %, more than {100 * TOLERATED[name]:.0f} %"
        for name, share in grown
        if share > TOLERATED[name]
    ]


def soak(minutes: float, run: Path) -> dict[str, Any]:
    """Train a warm model for `minutes` in a folder and return the measurements."""
    sequences = Sequences(data.generate("colours", 64, 0, num_frames=8)["frames"], scaling=Scaling())
    torch.manual_seed(0)
    trainer = Watched(HRSSM(MODEL), TRAINING, run, {}, sequences.batch(range(8)))
    trainer.soak(sequences, minutes)
    step_seconds = [statistics.median(tenth) for tenth in trainer.seconds if tenth]
    grown = verdict(trainer.samples, step_seconds)
    return {
        "minutes": minutes,
        "steps": trainer.step,
        "samples": [sample._asdict() for sample in trainer.samples],
        "step_seconds": step_seconds,
        "growth": slopes(trainer.samples, step_seconds),
        "verdict": grown or ["nothing grew"],
        "passed": not grown,
    }


def main() -> None:
    """Soak in a temporary folder and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="how long to train (default 30)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(arguments.minutes, Path(folder))
    print(json.dumps(found, indent=2))
    sys.exit(0 if found["passed"] else 1)


if __name__ == "__main__":
    main()
