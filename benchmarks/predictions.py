"""The cost of evaluation and prediction relative to training, and the time of the program to its first step.

Costs are ratios to one SVI training step of 128 digits: medians, measured in turn in one process, with an untrained
model of digit rows::

    python -m benchmarks.predictions
    python -m benchmarks.predictions --json

- `iwae_100`: the importance-weighted bound of 16 digits with 100 particles;
- `forecast_100`: 100 continuations each of 16 upper halves;
- `jump_100`: 100 jumps over 4 segments each from 16 upper halves;
- `first_step_seconds`: from starting `pyro-hrssm train` on the default data to the log of its first step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyro
import torch

from benchmarks.train_step import ROWS, alternate, svi_step
from pyro_hrssm import HRSSM
from pyro_hrssm.inference.bounds import log_likelihood
from pyro_hrssm.inference.prediction import Settings, forecast, jump

DIGITS, SAMPLES, GIVEN = 16, 100, 14


def ratios(steps: int) -> dict[str, float]:
    """Time of each prediction over one training step, and the seconds of that step."""
    torch.manual_seed(0)
    model = HRSSM(ROWS)
    digits = torch.rand(DIGITS, 28, 28)
    settings = Settings(num_samples=SAMPLES)
    step, iwae, forecasts, jumps = alternate(
        steps,
        svi_step(ROWS, 128, 28),
        lambda: log_likelihood(model, digits, particles=SAMPLES),
        lambda: forecast(model, digits[:, :GIVEN], 28 - GIVEN, settings=settings),
        lambda: jump(model, digits[:, :GIVEN], 4, settings=settings),
    )
    return {
        "iwae_100": iwae / step,
        "forecast_100": forecasts / step,
        "jump_100": jumps / step,
        "svi_seconds": step,
    }


def first_step_seconds() -> float:
    """Seconds from the start of the program until its first step is logged."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = ["--log-every", "1", "--evaluate-every", "0", "--out", str(run)]
        start = time.perf_counter()
        command = [sys.executable, "-m", "pyro_hrssm", "train", *flags]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not (run / "metrics.jsonl").exists():
                if process.poll() is not None:
                    raise RuntimeError(f"training ended with {process.returncode} before its first step")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--steps", type=int, default=20, help="rounds counted (default 20)")
    arguments = parser.parse_args()
    with pyro.validation_enabled(False):
        results = ratios(arguments.steps)
    results |= {"first_step_seconds": first_step_seconds(), "threads": torch.get_num_threads()}
    if arguments.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
