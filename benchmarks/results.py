"""The table of docs/RESULTS.md: every experiment's data, training and evaluation, as a user would type them.

::

    python -m benchmarks.results --runs runs/results --jobs 2

Finished runs are not repeated. Each run has one thread, so that several can run at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_hrssm import checkpoint, files


@dataclass(frozen=True)
class Experiment:
    """One data set, and the settings with which both models are trained on it."""

    title: str
    about: str
    data: str
    """Arguments of `pyro-hrssm data`; the file is named after the experiment."""
    train: str
    """Arguments of `pyro-hrssm train` for both models."""
    hrssm: str
    """Further arguments for the hierarchical model."""
    given: int
    """Number of frames that forecasts start from."""
    variants: tuple[str, ...] = ("hrssm", "rssm")
    """The models to train; `straight_through` is the hierarchical one with the paper's estimator."""
    seeds: tuple[int, ...] = (1, 2, 3)
    particles: int = 100
    """Number of particles of the importance-weighted bounds."""


TITLES = {
    "hrssm": "HRSSM",
    "straight_through": "HRSSM, straight-through",
    "rssm": "RSSM",
}
BARE = "--evaluate-every 0"
IMAGES = (
    "--preset video --channels 16 --hidden 64 --batch-size 16 --learning-rate 2e-3 --evaluate-every 0 "
    "--particles 2 --elbo leave_one_out"
)
EXPERIMENTS = {
    "levels": Experiment(
        "Levels",
        "Four sensors, one of them mostly noise, hold one of six levels for 4 to 14 frames; 60 frames.",
        "levels --num 1000",
        f"{BARE} --steps 2000",
        "",
        30,
    ),
    "levels_long": Experiment(
        "Levels, 200 frames",
        "The same in longer sequences.",
        "levels --num 1000 --num-frames 200",
        f"{BARE} --steps 600",
        "",
        100,
        particles=10,
    ),
    "colours_clear": Experiment(
        "Colours, no noise",
        "Segments of 2 to 6 frames, the next colour always another one: every boundary can be seen.",
        "colours --num 4000 --noise 0",
        f"{BARE} --steps 800",
        "",
        10,
        ("hrssm", "rssm", "straight_through"),
    ),
    "colours_noisy": Experiment(
        "Colours, noise 0.5",
        "The same in noise of half the distance between two values of a channel.",
        "colours --num 4000 --noise 0.5",
        f"{BARE} --steps 1500",
        "",
        10,
    ),
    "colours_repeat": Experiment(
        "Colours that may repeat, segments of 3 frames",
        "Three in ten boundaries change no pixel.",
        "colours --num 4000 --noise 0 --min-length 3 --max-length 3 --repeat 0.3",
        f"{BARE} --steps 800",
        "",
        10,
    ),
    "balls": Experiment(
        "Bouncing balls",
        "Two balls in a box, 32 by 32 pixels; one changes its colour where it hits a wall. 5 frames of context, 20 "
        "modelled.",
        "balls --num 8000",
        f"{IMAGES} --steps 5000",
        "--max-segments 8 --max-length None --boundary-warmup-steps 500 --boundary-rate 0.18 --state-weight 4",
        15,
        particles=10,
    ),
    "maze": Experiment(
        "3D maze",
        "Walks through corridors, 32 by 32 pixels; a segment ends where the walker starts or stops to turn, or passes "
        "a junction. 5 frames of context, 20 modelled.",
        "maze --num 1500",
        f"{IMAGES} --steps 1000",
        "--max-segments 5 --max-length 8",
        15,
        ("hrssm",),
        (1,),
        particles=10,
    ),
}


def flags(experiment: Experiment, variant: str) -> str:
    """Arguments of `pyro-hrssm train` for a variant, a key of `TITLES`."""
    if variant == "rssm":
        return f"{experiment.train} --model rssm"
    both = f"{experiment.train} {experiment.hrssm}".strip()
    # The paper's estimator has no use for a weight of s that falls.
    return f"{both} --elbo trace --state-weight 1" if variant == "straight_through" else both


def scoring(experiment: Experiment) -> str:
    """Arguments of `pyro-hrssm evaluate`."""
    return f"--particles {experiment.particles} --given {experiment.given} --horizons 1 5 10"


def run(name: str, model: str, seed: int, runs: Path) -> None:
    """Train and evaluate one variant, unless this is already done."""
    experiment = EXPERIMENTS[name]
    folder, file = runs / f"{name}_{model}_{seed}", runs / f"{name}.npz"
    if (folder / "result.json").exists():
        return
    log = runs / f"{folder.name}.log"
    start = time.perf_counter()
    _call(f"train --data {file} {flags(experiment, model)} --seed {seed} --out {folder}", log)
    seconds = time.perf_counter() - start
    printed = _call(f"evaluate {folder} --json {scoring(experiment)}", log)
    steps = checkpoint.load(folder).step
    result = json.loads(printed) | {"train_seconds": seconds, "steps": steps}
    files.write_json(folder / "result.json", result)
    print(f"{folder.name}: {result['nats_per_sequence']:.2f} nats, F1 {result['boundaries']['f1']:.3f}", flush=True)


def make_data(name: str, runs: Path) -> None:
    """Generate an experiment's sequences, unless this is already done."""
    file = runs / f"{name}.npz"
    if not file.exists():
        _call(f"data {EXPERIMENTS[name].data} --seed 0 --out {file}", runs / f"{name}.log")


def _call(arguments: str, log: Path) -> str:
    """Run the command line in one thread and return its output."""
    command = [sys.executable, "-m", "pyro_hrssm", *shlex.split(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("a") as errors:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=True)
    return done.stdout


def results(runs: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The measurements by experiment and model, in the order of seeds."""
    return {
        name: {
            model: [
                json.loads((runs / f"{name}_{model}_{seed}" / "result.json").read_text())
                for seed in EXPERIMENTS[name].seeds
                if (runs / f"{name}_{model}_{seed}" / "result.json").exists()
            ]
            for model in EXPERIMENTS[name].variants
        }
        for name in EXPERIMENTS
    }


def section(name: str, found: dict[str, list[dict[str, Any]]]) -> str:
    """One experiment as Markdown."""
    experiment = EXPERIMENTS[name]
    lines = [f"## {experiment.title}", "", experiment.about, ""]
    lines += ["```sh", f"pyro-hrssm data {experiment.data} --seed 0 --out {name}.npz"]
    lines += [f"pyro-hrssm train --data {name}.npz {flags(experiment, variant)} --seed S" for variant in found]
    lines += [f"pyro-hrssm evaluate RUN {scoring(experiment)}", "```", ""]
    lines += ["| boundaries | F1 | precision | recall | F1 within ±1 frame |", "|---|---|---|---|---|"]
    scores = [row["boundaries"] for row in found["hrssm"]]
    lines.append(_score_row("**HRSSM**, each seed", scores))
    lines += [
        _score_row(TITLES[variant], [row["boundaries"] for row in found[variant]])
        for variant in found
        if variant not in ("hrssm", "rssm")
    ]
    for baseline in scores[0]["baselines"] if scores else ():
        lines.append(_score_row(baseline, [row["baselines"][baseline] for row in scores]))
    lines += [
        "",
        "| held-out nats | " + " | ".join(TITLES[variant] for variant in found) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    for label, read in MEASURES.items():
        lines.append(f"| {label} | " + " | ".join(_each(rows, read) for rows in found.values()) + " |")
    return "\n".join([*lines, ""])


MEASURES = {
    "bound (negative ELBO) per sequence, lower is better": lambda row: f"{row['nats_per_sequence']:.2f}",
    "importance-weighted bound per sequence, lower is better": lambda row: f"{row['iwae_nats_per_sequence']:.2f}",
    **{
        f"forecast of the next {h} frames, higher is better": lambda row, h=h: f"{row['forecast_nats'][str(h)]:.2f}"
        for h in (1, 5, 10)
    },
    "steps": lambda row: str(row["steps"]),
    "seconds of training, one thread": lambda row: f"{row['train_seconds']:.0f}",
    "seconds per step": lambda row: f"{row['train_seconds'] / row['steps']:.3f}",
}


def _each(rows: list[dict[str, Any]], read: Any) -> str:
    return ", ".join(read(row) for row in rows) or "not run"


def _score_row(name: str, scores: list[dict[str, float]]) -> str:
    cells = [", ".join(f"{s[key]:.3f}" for s in scores) for key in ("f1", "precision", "recall", "f1_tolerance_1")]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Run the missing experiments and write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(EXPERIMENTS), help="experiments to run")
    parser.add_argument("--out", type=Path, default=Path("docs/RESULTS.md"))
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        make_data(name, arguments.runs)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        tasks = [
            pool.submit(run, name, model, seed, arguments.runs)
            for name in arguments.only
            for seed in EXPERIMENTS[name].seeds
            for model in EXPERIMENTS[name].variants
        ]
        for task in tasks:
            task.result()
    found = results(arguments.runs)
    text = Path(__file__).with_name("results_head.md").read_text()
    arguments.out.write_text(text + "\n" + "\n".join(section(name, found[name]) for name in EXPERIMENTS))
    for name, models in found.items():
        values = [row["boundaries"]["f1"] for row in models["hrssm"]]
        if values:
            print(f"{name}: F1 {statistics.mean(values):.3f}, least {min(values):.3f}")


if __name__ == "__main__":
    main()
