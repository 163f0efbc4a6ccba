"""Seconds of one SVI training step over those of its networks alone: a ratio, taken in one process.

The two take turns, so that whatever else the machine does falls on both; medians over the steps::

    python -m benchmarks.train_step
    python -m benchmarks.train_step --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyro
import torch

from benchmarks.bare_networks import bare_networks
from pyro_hrssm import HRSSM, HRSSMConfig, TrainingConfig
from pyro_hrssm.training import Trainer

ROWS = HRSSMConfig(frame_shape=(28,), hidden=128, abstract_size=8, observation_size=8, window=28)


def svi_step(config: HRSSMConfig, batch_size: int, frames: int) -> Callable[[], float]:
    """One training step as the trainer takes it: clip, Adam and the check for NaN included."""
    torch.manual_seed(0)
    training = TrainingConfig(batch_size=batch_size)
    trainer = Trainer(HRSSM(config), training, Path(tempfile.gettempdir()), {})
    x = torch.rand(batch_size, frames, *config.frame_shape)
    return lambda: trainer.update(x, None)


def alternate(steps: int, *functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function, run in turn; the first three rounds warm up and do not count."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(steps + 3):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[3:]) for times in seconds]


def rows(batch_size: int, steps: int) -> dict[str, float]:
    """The rows setting: 28 frames of 28 pixels, H 128, z and s of 8."""
    svi, networks = alternate(steps, svi_step(ROWS, batch_size, 28), bare_networks(batch=batch_size))
    return {"ratio": svi / networks, "svi_seconds": svi, "networks_seconds": networks}


def main() -> None:
    """Print the ratios of the rows setting at batch 128 and 16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--steps", type=int, default=20, help="steps counted of each (default 20)")
    arguments = parser.parse_args()
    with pyro.validation_enabled(False):
        results = {f"rows_b{size}": rows(size, arguments.steps) for size in (128, 16)}
    if arguments.json:
        details = {"threads": torch.get_num_threads(), "torch": torch.__version__, "details": results}
        print(json.dumps({name: result["ratio"] for name, result in results.items()} | details))
        return
    for name, result in results.items():
        milliseconds = f"{1e3 * result['svi_seconds']:.0f} ms over {1e3 * result['networks_seconds']:.0f} ms"
        print(f"{name}: {result['ratio']:.2f} ({milliseconds}, {torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
