"""Seconds and peak memory of training on one long recording, and of segmenting it whole::

    python -m benchmarks.recording
    python -m benchmarks.recording --json --frames 100000 --flags --max-length 50 --min-length 5

The two commands run in processes of their own, on a file of 12 channels that hold a level for 10 to 59 frames, with
noise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CHANNELS = 12


def write(path: Path, num_frames: int) -> None:
    """A recording [1, T, 12] of float32."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.integers(10, 60, num_frames // 10 + 1))
    number = np.zeros(num_frames, int)
    number[ends[ends < num_frames]] = 1
    number = number.cumsum()
    levels = rng.standard_normal((number[-1] + 1, CHANNELS), np.float32)
    np.save(path, (levels[number] + np.float32(0.3) * rng.standard_normal((num_frames, CHANNELS), np.float32))[None])


def run(*arguments: str) -> tuple[float, float]:
    """Seconds and peak MiB of a command."""
    start = time.perf_counter()
    # Only this program's own figures go to the output, which --json makes one object.
    process = subprocess.Popen([sys.executable, "-m", "pyro_hrssm", *arguments], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{arguments[0]} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    """Write a recording, train briefly on it, segment it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of train")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, trained, table = (str(folder / part) for part in ("recording.npy", "run", "segments.csv"))
        write(Path(file), chosen.frames)
        short = ("--steps", str(chosen.steps), "--evaluate-every", "0", "--particles", "1", "--held-out", "0.001")
        training = run("train", "--data", file, "--out", trained, *short, *chosen.flags)
        segmenting = run("segment", trained, "--data", file, "--out", table)
    found = {"train": training, "segment": segmenting}
    if chosen.json:
        named = {what: {"seconds": seconds, "peak_mib": peak} for what, (seconds, peak) in found.items()}
        print(json.dumps(named | {"frames": chosen.frames}))
        return
    for what, (seconds, peak) in found.items():
        print(f"{what:<8} {seconds:6.1f} s, peak {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
