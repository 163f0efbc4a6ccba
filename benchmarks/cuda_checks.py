"""Every check that needs a GPU, in one table, within five minutes on a card::

    python -m benchmarks.cuda_checks
    python -m benchmarks.cuda_checks --json --out runs/cuda_checks.json

It measures the training step (`benchmarks.cuda_step`) against the reach, trains the default run from the command line,
figures and evaluation included, and runs the tests marked `cuda`. A row is printed as soon as it is known; what the
time no longer allows is a row too. Exit code 0 if all rows pass, 1 if one does not, 2 where torch finds no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import cuda_step

SECONDS = 290
"""Time for all checks."""

STEPS = 15
"""Steps counted of each measurement."""

LEFT_OUT = frozenset({"compiled_b128"})
"""Measurements without a reach, which take minutes."""

TRAIN_SECONDS = 60
"""Reach of the default run."""

ROOT = Path(__file__).parent.parent


class Reach(NamedTuple):
    """A number of a measurement and its bound."""

    what: str
    measure: str
    of: Callable[[dict[str, Any]], float]
    bound: float
    at_least: bool = False


REACHES = (
    Reach("graph over bare networks, batch 128", "rows_b128", lambda found: found["ratio"], 0.95),
    Reach("graph over bare networks, batch 16", "rows_b16", lambda found: found["ratio"], 1.3),
    Reach("graph over bare networks, batch 1,024", "rows_b1024", lambda found: found["ratio"], 1.3),
    Reach("eager over graph, batch 128", "rows_b128", lambda found: found["eager_over_graph"], 9, at_least=True),
    Reach("waits of a graph's step between readings", "rows_b128", lambda found: found["graph"]["waits"], 0),
    Reach("T 280 over T 28, batch 16", "growth_280_28", lambda found: found["ratio"], 11),
    Reach("8 seeds, ms per model and step", "seeds_8", lambda found: found["ratio"], 4),
)


class Row(NamedTuple):
    """One line of the table."""

    what: str
    found: str
    bound: str
    passed: bool | None
    """None for a figure without a bound."""

    def __str__(self) -> str:
        mark = {True: "pass", False: "FAIL", None: ""}[self.passed]
        return f"{self.what:<44} {self.found:>22}  {self.bound:<10} {mark}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object after the table")
    parser.add_argument("--out", type=Path, help="also write that object into this file")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time for all checks (default {SECONDS})")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"cuda_checks: torch {torch.__version__} finds no GPU here: nothing was checked", file=sys.stderr)
        sys.exit(2)
    deadline = time.monotonic() + arguments.seconds
    card = torch.cuda.get_device_name()
    print(f"{card}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    rows, figures = [], {}
    for row in checks(deadline, figures):
        rows.append(row)
        print(row, flush=True)
    failed = [row for row in rows if row.passed is False]
    print(f"{len(rows) - len(failed)} of {len(rows)} rows pass")
    found = {"device": card, "torch": torch.__version__, "rows": [row._asdict() for row in rows], "figures": figures}
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1))
    if arguments.json:
        print(json.dumps(found))
    sys.exit(1 if failed else 0)


def checks(deadline: float, figures: dict[str, Any], place: cuda_step.Place | None = None) -> Iterator[Row]:
    """All rows.

    Arguments:
        deadline: the time, of the monotonic clock, at which the checks end.
        figures: receives the measurements by name.
    """
    for name, measure in cuda_step.measures(STEPS, place).items():
        if name not in LEFT_OUT:
            yield from measured(name, measure, deadline, figures)
    yield from suite(deadline)
    yield default_run(deadline)


def measured(
    name: str, measure: Callable[[], dict[str, Any]], deadline: float, figures: dict[str, Any]
) -> Iterator[Row]:
    """The rows of one measurement; an error is a row, and not the end."""
    reaches = [reach for reach in REACHES if reach.measure == name]
    if time.monotonic() > deadline:
        yield from (Row(reach.what, "no time left", _bound(reach), False) for reach in reaches)
        return
    try:
        figures[name] = found = cuda_step.unvalidated(measure)
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        yield Row(name, said, "runs", False)
        yield from (Row(reach.what, "not measured", _bound(reach), False) for reach in reaches)
        return
    yield Row(name, f"{found['ratio']:.2f}", "", None)
    print(f"  {cuda_step.details(found)}", flush=True)
    for reach in reaches:
        value = reach.of(found)
        passed = value >= reach.bound if reach.at_least else value <= reach.bound
        yield Row(reach.what, f"{value:.2f}", _bound(reach), passed)


def _bound(reach: Reach) -> str:
    return f"{'>=' if reach.at_least else '<='} {reach.bound:g}"


def default_run(deadline: float, flags: tuple[str, ...] = ("--device", "cuda")) -> Row:
    """The seconds of `pyro-hrssm train` as it is, evaluation and figures included."""
    what, bound = "pyro-hrssm train, seconds", f"<= {TRAIN_SECONDS}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pyro_hrssm", "train", *flags, "--out", str(Path(folder) / "run")]
        start = time.monotonic()
        try:
            ended = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, deadline - start)
            )
        except subprocess.TimeoutExpired:
            return Row(what, "no time left", bound, False)
        seconds = time.monotonic() - start
    if ended.returncode != 0:
        return Row(what, f"ended with {ended.returncode}: {' '.join(ended.stderr.split())[-160:]}", bound, False)
    return Row(what, f"{seconds:.1f}", bound, seconds <= TRAIN_SECONDS)


def suite(deadline: float, marker: str = "cuda", files: tuple[str, ...] = ()) -> Iterator[Row]:
    """The number of tests that pass, and one row for each that does not."""
    chosen = list(files) or sorted({str(path) for path in (ROOT / "tests").rglob("test_*.py") if _has_mark(path)})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", marker, "-p", "no:xdist", "-p", "no:benchmark"]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}", *chosen]
        try:
            timeout = max(1.0, deadline - time.monotonic())
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            done = (error.stdout or b"").decode(errors="replace").split("\n")[0]
            yield Row(f"tests marked {marker}", "no time left", "all pass", False)
            print(f"  {done}", flush=True)
            return
        if not report.exists():
            yield Row(f"tests marked {marker}", " ".join(ended.stdout.split())[-160:], "all pass", False)
            return
        cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(bad) - len(skipped)
    yield Row(f"tests marked {marker}", f"{passed} of {len(cases)} pass", "all pass", passed == len(cases) > 0)
    for case in bad:
        fault = case.find("failure")
        fault = case.find("error") if fault is None else fault
        said = " ".join((fault.get("message") or "" if fault is not None else "").split())[:160]
        yield Row(f"  {case.get('name')}", said, "", False)


def _has_mark(path: Path) -> bool:
    return "mark.cuda" in path.read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
