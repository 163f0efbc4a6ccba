"""Train and score every experiment of docs/RESULTS.md, as a user would type it, and keep one record of each run.

::

    python -m benchmarks.results --runs runs/results --jobs 2
    python -m benchmarks.documents

What is there is kept: a run that was cut off goes on, and a record that exists is not measured again. Each run has one
thread, so that several can run at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import pictures, records
from benchmarks.experiments import EXPERIMENTS, SEEDS, Experiment
from pyro_hrssm import checkpoint, data, files


@dataclass(frozen=True)
class Study:
    """Where one experiment's runs and records lie."""

    name: str
    runs: Path
    out: Path
    device: str = "auto"

    @property
    def experiment(self) -> Experiment:
        """Data, models and scores."""
        return EXPERIMENTS[self.name]

    @property
    def source(self) -> str:
        """The value of `--data` in the folder of the runs."""
        source = self.experiment.source(self.name)
        return source if source in data.DATA_SETS else str(self.runs / source)

    @property
    def missing(self) -> str | None:
        """Why the experiment cannot run; None if it can."""
        source = Path(self.source)
        if self.experiment.data is not None or self.source in data.DATA_SETS or source.exists():
            return None
        return f"{self.name}: left out, since {source} does not exist"

    def folder(self, variant: str, seed: int) -> Path:
        """The run folder of one model and seed."""
        return self.runs / f"{self.name}_{variant}_{seed}"

    def path(self, record: str) -> Path:
        """The file of a record."""
        return self.out / self.name / f"{record}.json"

    def generate(self) -> None:
        """Generate the sequences, unless this is done."""
        if self.experiment.data is not None and not Path(self.source).exists():
            self._call(f"data {self.experiment.data} --seed 0 --out {shlex.quote(self.source)}", "data", [])

    def run(self, variant: str, seed: int) -> None:
        """Train and score one model from one seed, unless its record exists."""
        path, folder = self.path(f"{variant}_{seed}"), self.folder(variant, seed)
        if path.exists():
            return
        done: list[dict[str, Any]] = []
        quoted = shlex.quote(str(folder))
        self._train(variant, seed, folder, done)
        hierarchical = variant != "rssm"
        if hierarchical and self.experiment.types is not None:
            table = shlex.quote(str(folder / "segments.csv"))
            # A model with fewer segments than types has none, and goes without.
            with contextlib.suppress(subprocess.CalledProcessError):
                self._call(f"segment {quoted} {self.experiment.types} --out {table}", folder.name, done)
        scores = self._call(f"evaluate {quoted} --json {self.scoring()} --methods none", folder.name, done)
        loaded = checkpoint.load(folder)
        about = {"experiment": self.name, "variant": variant, "seed": seed, "steps": loaded.step}
        parameters = sum(value.numel() for name, value in loaded.tensors.items() if name.startswith("model."))
        self._keep(path, about | {"parameters": parameters}, folder, done, json.loads(scores))
        print(f"{folder.name}: {json.loads(scores)['nats_per_sequence']:.2f} nats", flush=True)

    def methods(self) -> None:
        """Score the methods beside the model, on the first seed's run, unless their record exists."""
        path, folder = self.path("methods"), self.folder("hrssm", SEEDS[0])
        if path.exists() or not folder.exists() or not self.has_truth:
            return
        done: list[dict[str, Any]] = []
        flat = f" --flat {shlex.quote(str(self.folder('rssm', SEEDS[0])))}"
        scores = self._call(
            f"evaluate {shlex.quote(str(folder))} --json {self.scoring()} --methods all{flat}",
            f"{self.name}_methods",
            done,
        )
        self._keep(path, {"experiment": self.name, "variant": "methods"}, folder, done, json.loads(scores))
        print(f"{self.name}: methods", flush=True)

    @property
    def has_truth(self) -> bool:
        """Whether the first run was scored against true boundaries."""
        found = self.path(f"hrssm_{SEEDS[0]}")
        return found.exists() and "boundaries" in files.read_json(found)["scores"]

    def scoring(self) -> str:
        """Arguments of `pyro-hrssm evaluate`."""
        source = self.experiment.source(self.name)
        return self.experiment.scoring(self.name).replace(f"--data {source}", f"--data {shlex.quote(self.source)}")

    def _train(self, variant: str, seed: int, folder: Path, done: list[dict[str, Any]]) -> None:
        quoted = shlex.quote(str(folder))
        if (folder / "evaluation.json").exists():  # trained to its end by an earlier call, whose seconds it left here
            done += files.read_json(folder / "seconds.json")
            return
        if (folder / "config.json").exists():
            self._call(f"train --resume {quoted} --device {self.device}", folder.name, done)
        else:
            flags = f"{self.experiment.train} {self.experiment.variants[variant].flags}"
            named = f"train --data {shlex.quote(self.source)} {flags} --seed {seed} --evaluate-every 0"
            self._call(f"{' '.join(named.split())} --device {self.device} --out {quoted}", folder.name, done)
        files.write_json(folder / "seconds.json", done)

    def _call(self, arguments: str, log: str, done: list[dict[str, Any]]) -> str:
        """Run the command line in one thread; note its seconds and what training prints, and return the output."""
        command = [sys.executable, "-m", "pyro_hrssm", *shlex.split(arguments)]
        found = records.call(command, self.runs / f"{log}.log", threads=1)
        shown = f"pyro-hrssm {arguments.replace(f'{self.runs}/', '')}"
        printed = {"printed": found.output.splitlines()} if arguments.startswith("train") else {}
        done.append({"command": shown, "seconds": round(found.seconds, 1)} | printed)
        return found.output

    def _keep(
        self, path: Path, about: dict[str, Any], folder: Path, done: list[dict[str, Any]], scores: dict[str, Any]
    ) -> None:
        """Write a record; commit and versions are those that the run itself has noted."""
        noted = checkpoint.load(folder).record
        record = {
            **about,
            "commands": done,
            "date": time.strftime("%Y-%m-%d"),
            "commit": noted["git"],
            "versions": noted["versions"],
            "machine": records.machine(),
            "scores": scores,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, record)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="folder of data and runs")
    parser.add_argument("--out", type=Path, default=records.FOLDER, help="folder of the records")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to train")
    parser.add_argument("--only", nargs="*", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="experiments to run")
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    studies = [Study(name, given.runs, given.out, given.device) for name in given.only]
    for study in studies:
        if study.missing:
            print(study.missing)
    studies = [study for study in studies if not study.missing]
    for study in studies:
        study.generate()
    failed = _each(given.jobs, [
        lambda study=study, variant=variant, seed=seed: study.run(variant, seed)
        for study in studies for seed in SEEDS for variant in study.experiment.variants
    ])  # fmt: skip
    failed += _each(given.jobs, [study.methods for study in studies])
    if "rows" in given.only:
        _imagination(given.runs, given.out)
    pictures.keep_all(given.runs, experiments=given.only)
    if failed:
        raise SystemExit("\n".join(map(str, failed)))


def _imagination(runs: Path, out: Path) -> None:
    """What jumps cost and forecasts are worth on digit rows, in one record."""
    run = runs / f"rows_hrssm_{SEEDS[0]}"
    if (run / "evaluation.json").exists() and records.read("rows/imagination", out) is None:
        records.measure("rows/imagination", ["python", "-m", "benchmarks.imagination", str(run)], out)


def _each(jobs: int, tasks: list[Callable[[], None]]) -> list[BaseException]:
    """Run tasks, so many at a time, and return the errors of those that failed."""
    with ThreadPoolExecutor(jobs) as pool:
        errors = [task.exception() for task in [pool.submit(task) for task in tasks]]
    return [error for error in errors if error is not None]


if __name__ == "__main__":
    main()
