"""Keep the pictures of docs/RESULTS.md: figures that the recorded runs have drawn, and predictions of these runs.

::

    python -m benchmarks.pictures --runs runs/results
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks import records
from benchmarks.experiments import EXPERIMENTS, SEEDS, Picture
from pyro_hrssm import Run, plotting

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"


def name(experiment: str, picture: Picture) -> str:
    """The file name of a picture in :data:`FOLDER`."""
    return f"{experiment}_{Path(picture.file).name}"


def keep(experiment: str, picture: Picture, runs: Path, out: Path) -> None:
    """Copy one picture of the first seed's run, which is drawn first where a prediction shows it."""
    folder = runs / f"{experiment}_{picture.variant}_{SEEDS[0]}"
    source = folder / picture.file
    if picture.predict is not None:
        arrays = folder / f"{source.stem.rpartition('_')[0]}.npz"
        words = ["predict", str(folder), *shlex.split(picture.predict), "--out", str(arrays)]
        records.call([sys.executable, "-m", "pyro_hrssm", *words], folder.with_suffix(".log"))
        if source.stem.endswith("_found"):
            _draw_found(folder, arrays, source)
    shutil.copyfile(source, out / name(experiment, picture))


def _draw_found(folder: Path, arrays: Path, path: Path) -> None:
    """Draw the sequences of a prediction with the most probable segments of each."""
    run = Run.load(folder)
    with np.load(arrays) as found:
        original = found["original"]
    strip = plotting.film_strip(original, run.segment(original).boundaries, title="Sequences and the segments found")
    plotting.save(strip, path)


def keep_all(runs: Path, out: Path = FOLDER, experiments: Iterable[str] = EXPERIMENTS) -> None:
    """Keep the pictures of all runs of these experiments that are there."""
    out.mkdir(parents=True, exist_ok=True)
    for experiment in experiments:
        for picture in EXPERIMENTS[experiment].pictures:
            if (runs / f"{experiment}_{picture.variant}_{SEEDS[0]}" / "evaluation.json").exists():
                keep(experiment, picture, runs, out)


def main() -> None:
    """Keep the pictures of all runs that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the pictures")
    given = parser.parse_args()
    keep_all(given.runs, given.out)


if __name__ == "__main__":
    main()
