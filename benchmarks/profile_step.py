"""The time of one SVI training step by part: products, convolutions, other kernels, and Python between them.

::

    python -m benchmarks.profile_step
    python -m benchmarks.profile_step --json

All settings of `benchmarks.train_step` are profiled. The kernels' seconds are from torch's own profiler, on one thread;
the rest of the step is Python: Pyro's handlers, autograd's bookkeeping, the loop itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import pyro
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.train_step import CONTEXT, ROWS, VIDEO_BATCH, VIDEO_FRAMES, svi_step, video_config

GROUPS = {
    "products": ("mm", "addmm", "bmm", "baddbmm"),
    "convolutions": ("mkldnn_convolution", "convolution_backward", "slow_conv_transpose2d"),
}
STEPS = 5


def settings() -> dict[str, Callable[[], float]]:
    """One training step of each setting."""
    return {
        "rows_b128": svi_step(ROWS, 128, 28),
        "rows_b16": svi_step(ROWS, 16, 28),
        "video_32": svi_step(video_config(32), VIDEO_BATCH, CONTEXT + VIDEO_FRAMES),
    }


def shares(step: Callable[[], float]) -> dict[str, float]:
    """Seconds of a step by kind of kernel, `python` for the rest, and the number of kernels."""
    for _ in range(3):
        step()
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    found: dict[str, float] = defaultdict(float)
    kernels = 0
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            name = event.key.removeprefix("aten::")
            group = next((group for group, names in GROUPS.items() if name in names), "other kernels")
            found[group] += event.self_cpu_time_total / 1e6
            kernels += event.count
    whole = statistics.median(seconds)
    return {"step": whole, **found, "python": whole - sum(found.values()), "kernels": kernels}


def main() -> None:
    """Print the shares of every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with pyro.validation_enabled(False):
        results = {name: shares(step) for name, step in settings().items()}
    if arguments.json:
        print(json.dumps(results))
        return
    for name, row in results.items():
        whole = row["step"]
        parts = ", ".join(
            f"{key} {100 * value / whole:.0f} %" for key, value in row.items() if key not in ("step", "kernels")
        )
        print(f"{name}: {1e3 * whole:.0f} ms, {row['kernels']:.0f} kernels: {parts}")


if __name__ == "__main__":
    main()
