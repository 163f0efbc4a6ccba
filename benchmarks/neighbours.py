"""A training step beside other work: its time where busy processes want the same cores.

Every setting of the waiting threads is measured in processes of its own, since OpenMP reads it once; the settings take
turns, alone and beside 1 and 2 neighbours that count without end::

    python -m benchmarks.neighbours
    python -m benchmarks.neighbours --rounds 5 --json

Settings: `default`, OpenMP's own; `command`, as `pyro-hrssm` sets it; `asleep`, threads that never spin; `one`, one
thread. The step is that of `rows`, batch 64. Times are medians of all rounds' steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict

from pyro_hrssm.__main__ import SPIN_COUNT

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "command": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "asleep": {"GOMP_SPINCOUNT": "0"},
    "one": {"OMP_NUM_THREADS": "1"},
}
NEIGHBOURS = (0, 1, 2)
_STEPS = """
import json, time
from benchmarks.train_step import ROWS, svi_step
step, times = svi_step(ROWS, 64, 28), []
for _ in range(13):
    start = time.perf_counter()
    step()
    times.append(time.perf_counter() - start)
print(json.dumps(times[3:]))
"""


def steps(setting: dict[str, str]) -> list[float]:
    """Seconds of ten steps in a new process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", _STEPS], env=environment | setting, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of a step by setting and number of neighbours."""
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for count in NEIGHBOURS:
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
            try:
                for name, setting in SETTINGS.items():
                    seconds[name, count] += steps(setting)
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
    return {name: {str(n): statistics.median(seconds[name, n]) for n in NEIGHBOURS} for name in SETTINGS}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'milliseconds per step':24}" + "".join(f"{f'{count} neighbours':>15}" for count in NEIGHBOURS))
    for name, row in found.items():
        print(f"{name:24}" + "".join(f"{1000 * value:15.0f}" for value in row.values()))


if __name__ == "__main__":
    main()
