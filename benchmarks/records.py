"""Records of measurements: one JSON file each below docs/results, from which the documents' figures are made.

A record names the commands, the commit, the versions, the machine, the processor's seconds and what was measured.
`python -m benchmarks.records NAME COMMAND...` runs a command that prints one JSON object, and keeps its record::

    python -m benchmarks.records speed/train_step python -m benchmarks.train_step --json
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyro_hrssm import files
from pyro_hrssm.run.settings import git_state, versions

FOLDER = Path(__file__).parents[1] / "docs" / "results"


class Done(NamedTuple):
    """A command that has ended well."""

    output: str
    seconds: float
    """Processor time of the command and of all that it started; beside other work it changes less than the clock's."""


def call(command: list[str], log: Path | None = None, threads: int | None = None) -> Done:
    """Run a command to its end; its errors go into `log`, or to this program's own.

    Raises:
        CalledProcessError: where the command fails.
    """
    environment = os.environ | ({} if log is None else {"TQDM_DISABLE": "1"})
    environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    with open(log, "a") if log is not None else os.fdopen(os.dup(2), "w") as errors:
        started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert started.stdout is not None
        with started.stdout:
            output = started.stdout.read()
        _, status, usage = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode != 0:
        raise subprocess.CalledProcessError(started.returncode, command, output)
    return Done(output, usage.ru_utime + usage.ru_stime)


def machine() -> dict[str, Any]:
    """The processor, the number of its cores, and the GPU if there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": names[0] if names else platform.machine(), "cores": os.cpu_count(), "gpu": gpu}


def read(name: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """The record of this name, such as `levels/hrssm_1`; None where there is none."""
    path = folder / f"{name}.json"
    found: dict[str, Any] | None = files.read_json(path) if path.exists() else None
    return found


def seeds(name: str, variant: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The records of one model on one data set, in the order of their seeds."""
    found = [files.read_json(path) for path in (folder / name).glob(f"{variant}_*.json")]
    return sorted((one for one in found if one.get("variant") == variant), key=lambda one: one["seed"])


def value(record: dict[str, Any], path: str) -> float | None:
    """The number at a dotted path of a record; None where it was not measured."""
    found: Any = record
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return None if found is None else float(found)


class Spread(NamedTuple):
    """Mean and standard deviation over seeds; the deviation of one seed is None."""

    mean: float
    deviation: float | None


def spread(records: list[dict[str, Any]], path: str) -> Spread | None:
    """The spread of a number over records; None where one of them, or all, lack it."""
    values = [value(record, path) for record in records]
    known = [one for one in values if one is not None]
    if not known or len(known) < len(values):
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def measure(name: str, command: list[str], folder: Path = FOLDER) -> None:
    """Run a command that prints one JSON object, and keep its record; the word `python` stands for this interpreter."""
    done = call([sys.executable if part == "python" else part for part in command])
    path = folder / f"{name}.json"
    record = {
        "command": shlex.join(command),
        "date": time.strftime("%Y-%m-%d"),
        "commit": git_state(),
        "versions": versions(),
        "machine": machine(),
        "seconds": done.seconds,
        "measured": json.loads(done.output),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, record)
    print(f"{path}: {done.seconds:.0f} s of processor time")


def main() -> None:
    """Run a command, keep its record."""
    if len(sys.argv) < 3:
        raise SystemExit("usage: python -m benchmarks.records NAME COMMAND...")
    measure(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    main()
