"""The documents' figures, made from the records below docs/results; no number of theirs is typed.

::

    python -m benchmarks.documents          # write docs/RESULTS.md, and blocks of others
    python -m benchmarks.documents --check  # say which of them are not what the records give

A template of benchmarks/templates makes a whole document. In other documents a block between `<!-- results: NAME -->`
and `<!-- /results -->` is replaced by the template of that name.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

from benchmarks import pictures, records
from benchmarks.experiments import EXPERIMENTS, SEEDS, Experiment

ROOT = Path(__file__).parents[1]
TEMPLATES = Path(__file__).parent / "templates"
WHOLE = ("docs/RESULTS.md",)
WITH_BLOCKS = ("README.md", "docs/start.md", "docs/RELIABILITY.md", "docs/guide/forecasts.md", "docs/guide/own_data.md")

BOUNDARIES = {
    "F1": "f1", "precision": "precision", "recall": "recall", "F1 ±1": "f1_tolerance_1", "covering": "covering",
}  # fmt: skip
TYPES = {"accuracy": "accuracy", "NMI": "nmi", "ARI": "ari", "edit": "edit", "F1@50": "f1_overlap_50"}
METHODS = {
    "always": "a boundary after every frame",
    "every_k": "after every k-th frame",
    "frame_difference": "frame difference",
    "pelt": "change points (PELT, linear kernel)",
    "kernel_rbf": "change points (rbf kernel)",
    "gaussian_hmm": "Gaussian HMM",
    "sticky_hmm": "sticky Gaussian HMM",
    "surprise_peaks": "peaks of the RSSM's surprise",
    "best_possible": "*best possible*",
}
"""Titles of the methods beside the model, in the order of the tables; `never` has F1 0 everywhere."""

NOT_RUN = "not run"


class Figures:
    """What templates may call; everything is read from one folder of records.

    Arguments:
        folder: the folder of the records.
    """

    def __init__(self, folder: Path = records.FOLDER) -> None:
        self.folder = folder

    def record(self, name: str) -> dict[str, Any]:
        """The record of this name; raises :class:`LookupError` where there is none."""
        found = records.read(name, self.folder)
        if found is None:
            raise LookupError(f"no record {name} in {self.folder}")
        return found

    def value(self, name: str, path: str, digits: int = 2) -> str:
        """One number of one record."""
        found = records.read(name, self.folder)
        return NOT_RUN if found is None else _number(records.value(found, path), digits)

    def ms(self, name: str, path: str) -> str:
        """Seconds of a record, in milliseconds."""
        seconds = records.value(records.read(name, self.folder) or {}, f"measured.{path}")
        return NOT_RUN if seconds is None else f"{1e3 * seconds:.0f} ms"

    def share(self, name: str, path: str, of: str) -> str:
        """One number of a record as a percentage of another; empty where it was not measured."""
        measured = (records.read(name, self.folder) or {}).get("measured", {})
        part, whole = records.value(measured, path), records.value(measured, of)
        return "" if part is None or not whole else f"{100 * part / whole:.0f} %"

    def percent(self, name: str, path: str) -> str:
        """A share of a record, as a percentage."""
        found = records.read(name, self.folder)
        share = None if found is None else records.value(found, path)
        return NOT_RUN if share is None else f"{100 * share:.1f} %"

    def mean(self, name: str, variant: str, path: str, digits: int = 3) -> str:
        """Mean ± standard deviation over the seeds of one model."""
        return _spread(records.spread(records.seeds(name, variant, self.folder), f"scores.{path}"), digits)

    def method(self, name: str, method: str, path: str = "f1", digits: int = 3) -> str:
        """A score of a method beside the model."""
        return self.value(f"{name}/methods", f"scores.boundaries.baselines.{method}.{path}", digits)

    def best_method(self, name: str, path: str = "f1", digits: int = 3) -> str:
        """The best score of the methods beside the model, and which one has it."""
        known = {key: one.get(path) for key, one in self._baselines(name).items() if key != "best_possible"}
        scored = {key: one for key, one in known.items() if one is not None}
        if not scored:
            return NOT_RUN
        best = max(scored, key=lambda key: scored[key])
        return f"{scored[best]:.{digits}f} ({METHODS[best]})"

    def boundaries(self, name: str) -> str:
        """The table of boundary scores: models with segments, then the methods beside them."""
        experiment = EXPERIMENTS[name]
        columns = dict(BOUNDARIES)
        if experiment.margin not in (None, 1):
            columns[f"F1 ±{experiment.margin}"] = "f1_margin"
        rows = [
            [f"**{variant.title}**", *(self.mean(name, key, f"boundaries.{path}") for path in columns.values())]
            for key, variant in experiment.variants.items()
            if key != "rssm"
        ]
        found = self._baselines(name)
        rows += [
            [title, *(_number(found[key].get(path), 3) for path in columns.values())]
            for key, title in METHODS.items()
            if key in found
        ]
        return _table(["boundaries", *columns], rows)

    def types(self, name: str) -> str:
        """The table of scores of types."""
        experiment = EXPERIMENTS[name]
        rows = [
            [
                f"**{variant.title}**",
                *(self.mean(name, key, f"boundaries.labels.model.{path}") for path in TYPES.values()),
            ]
            for key, variant in experiment.variants.items()
            if key != "rssm"
        ]
        methods = self._methods(name)
        labels = methods["scores"]["boundaries"].get("labels", {}) if methods else {}
        rows += [
            [title, *(_number(labels[key].get(path), 3) for path in TYPES.values())]
            for key, title in METHODS.items()
            if key in labels
        ]
        return _table(["types", *TYPES], rows)

    def bounds(self, name: str) -> str:
        """The table of bounds and forecasts of all models."""
        columns = {
            "bound": ("scores.nats_per_sequence", 2),
            "importance-weighted": ("scores.iwae_nats_per_sequence", 2),
            **{f"next {h}" if h > 1 else "next frame": (f"scores.forecast_nats.{h}", 2) for h in (1, 5, 10)},
            "boundaries per frame": ("scores.boundary_rate", 3),
        }
        rows = []
        for key, variant in EXPERIMENTS[name].variants.items():
            found = records.seeds(name, key, self.folder)
            cells = [_spread(records.spread(found, path), digits) for path, digits in columns.values()]
            rows.append([variant.title, *cells, str(found[0]["steps"]) if found else NOT_RUN, _minutes(found)])
        return _table(["nats per held-out sequence", *columns, "steps", "minutes"], rows)

    def commands(self, name: str) -> str:
        """What was typed, as a block of shell."""
        experiment = EXPERIMENTS[name]
        source = experiment.source(name)
        lines = [] if experiment.data is None else [f"pyro-hrssm data {experiment.data} --out {source}"]
        for variant in experiment.variants.values():
            words = f"pyro-hrssm train --data {source} {experiment.train} {variant.flags} --seed S --out RUN"
            lines.append(" ".join(words.split()))
        if experiment.types is not None:
            lines.append(f"pyro-hrssm segment RUN {experiment.types}")
        lines.append(f"pyro-hrssm evaluate RUN {experiment.scoring(name)} --flat RSSM_RUN")
        return "\n".join(["```sh", *lines, "```"])

    def section(self, name: str) -> str:
        """Heading, data, commands and tables of one experiment."""
        experiment = EXPERIMENTS[name]
        parts = [f"## {experiment.title}", experiment.about, self.commands(name)]
        parts += [self.boundaries(name)] if self._has_truth(name) else []
        parts += [self.types(name)] if experiment.types is not None else []
        return "\n\n".join([*parts, self.bounds(name)])

    def pictures(self, name: str) -> str:
        """The experiment's pictures above their captions."""
        shown = EXPERIMENTS[name].pictures
        return "\n\n".join(f"![{one.caption}](pictures/{pictures.name(name, one)})\n\n*{one.caption}*" for one in shown)

    def printed(self, name: str, folder: str) -> str:
        """What training printed at its end, as a block, with another name for the run's folder."""
        found = records.read(name, self.folder)
        if found is None:
            return f"```\n{NOT_RUN}\n```"
        lines = found["commands"][0]["printed"]
        start = next(number for number, line in enumerate(lines) if line.startswith("bound (negative ELBO)"))
        own = re.compile(rf"\S*{found['experiment']}_{found['variant']}_{found['seed']}")
        return "\n".join(["```", *(own.sub(folder, line) for line in lines[start:]), "```"])

    def summary(self) -> str:
        """One row per model shown of each data set that was run: HRSSM beside the best of the others."""
        rows = []
        for name, experiment in EXPERIMENTS.items():
            score, truth = _score(experiment), self._has_truth(name)
            for key in experiment.shown:
                if not self.measured(name, key, "rssm"):
                    continue
                model = "" if len(experiment.shown) == 1 else experiment.variants[key].title.removeprefix("HRSSM")
                rows.append([
                    experiment.title + model,
                    self.mean(name, key, f"boundaries.{score}") if truth else "",
                    self.best_method(name, score) if truth else "",
                    _number(self._baselines(name).get("best_possible", {}).get("f1"), 3, ""),
                    self.mean(name, key, "nats_per_sequence", 1),
                    self.mean(name, "rssm", "nats_per_sequence", 1),
                ])  # fmt: skip
        head = ["data", "F1, HRSSM", "F1, best other method", "F1, best possible", "nats, HRSSM", "nats, RSSM"]
        return _table(head, rows)

    def seeds(self) -> str:
        """The seeds, as words."""
        return f"{', '.join(map(str, SEEDS[:-1]))} and {SEEDS[-1]}"

    def machine(self) -> str:
        """Machines and versions of all records of runs."""
        found = [records.seeds(name, key, self.folder) for name, one in EXPERIMENTS.items() for key in one.variants]
        every = [record for group in found for record in group]
        about = {
            f"{record['machine']['gpu'] or record['machine']['processor']}, torch {record['versions']['torch']}"
            for record in every
        }
        return "; ".join(sorted(about)) or NOT_RUN

    def measured(self, name: str, *variants: str) -> bool:
        """Whether these models of an experiment, or all, have been run from every seed."""
        return all(
            len(records.seeds(name, variant, self.folder)) == len(SEEDS)
            for variant in variants or EXPERIMENTS[name].variants
        )

    def complete(self) -> bool:
        """Whether every experiment has been run."""
        return all(self.measured(name) for name in EXPERIMENTS)

    def _methods(self, name: str) -> dict[str, Any] | None:
        return records.read(f"{name}/methods", self.folder)

    def _baselines(self, name: str) -> dict[str, dict[str, float]]:
        methods = self._methods(name)
        found: dict[str, dict[str, float]] = methods["scores"]["boundaries"]["baselines"] if methods else {}
        return found

    def _has_truth(self, name: str) -> bool:
        found = records.seeds(name, "hrssm", self.folder)
        return bool(found) and "boundaries" in found[0]["scores"]


def _score(experiment: Experiment) -> str:
    """The F1 by which the source of the data compares."""
    return {None: "f1", 1: "f1_tolerance_1"}.get(experiment.margin, "f1_margin")


def _number(value: float | None, digits: int, missing: str = NOT_RUN) -> str:
    return missing if value is None else f"{value:.{digits}f}"


def _spread(found: records.Spread | None, digits: int) -> str:
    if found is None:
        return NOT_RUN
    return _number(found.mean, digits) + ("" if found.deviation is None else f" ± {found.deviation:.{digits}f}")


def _minutes(found: list[dict[str, Any]]) -> str:
    """Mean minutes of training on one core; a run that was cut off and went on has not noted all of its own."""
    times = [
        step["seconds"] / 60
        for record in found
        for step in record["commands"]
        if step["command"].startswith("pyro-hrssm train --data")
    ]
    return f"{sum(times) / len(times):.1f}" if times and len(times) == len(found) else NOT_RUN


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def made(root: Path = ROOT, folder: Path = records.FOLDER) -> Iterator[tuple[Path, str]]:
    """Every document and the text that the records give it."""
    figures = Figures(folder)
    render = functools.partial(_rendered, figures=figures)
    for name in WHOLE:
        yield root / name, render(f"{Path(name).name}.jinja")
    for name in WITH_BLOCKS:
        text = (root / name).read_text()
        yield root / name, _BLOCK.sub(lambda found: f"{found[1]}\n{render(f'{found[2]}.jinja')}{found[3]}", text)


_BLOCK = re.compile(r"(<!-- results: (\w+) -->)\n.*?\n?(<!-- /results -->)", re.DOTALL)


def _rendered(template: str, figures: Figures) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        autoescape=False,
    )  # fmt: skip
    return environment.get_template(template).render(f=figures, experiments=EXPERIMENTS)


def main() -> None:
    """Write the documents, or say which are not what the records give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a document differs")
    check = parser.parse_args().check
    stale = [(path, text) for path, text in made() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        if not check:
            path.write_text(text)
        print(f"{path.relative_to(ROOT)}: {'differs from its records' if check else 'written'}")
    if check and stale:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
