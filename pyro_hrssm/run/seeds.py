"""One model trained from several seeds, each in a folder of its own, and the spread of their scores."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyro_hrssm import checkpoint, data, files
from pyro_hrssm.checkpoint import Checkpoint
from pyro_hrssm.config import to_dict
from pyro_hrssm.errors import InputError, require
from pyro_hrssm.inference.evaluation import Evaluation
from pyro_hrssm.run import lock, parallel
from pyro_hrssm.run.life import Life, begin, ending, finish, folder_of, introduce, trainer_of
from pyro_hrssm.run.parallel import ALONE
from pyro_hrssm.run.settings import Settings
from pyro_hrssm.run.together import fit_each
from pyro_hrssm.run.training import Trainer

SPREAD = "seeds.json"
"""The file of the scores of all seeds, in the folder that holds theirs."""

HOW = frozenset({"step", "particles", "sequences", "margin", "permutations", "parameters", "bounded_sequences"})
"""Entries beside the scores that say how they were taken."""


def train_seeds(settings: Settings, count: int, out: Path | None, device: torch.device, command: list[str]) -> None:
    """Train `count` seeds, from the settings' own on, to the end; print and write the spread of their scores.

    What an earlier command of the same settings has trained is kept, and what it has begun goes on.

    Arguments:
        out: the folder in which every seed has its own; None for runs/ and the name of the data.
        command: the command as the user typed it, for the records.
    """
    restarts = settings.training.restarts
    require(restarts == 1, f"seeds needs restarts 1, found {restarts}: restarts try seeds too")
    require(parallel.world_size() == 1, f"seeds needs one process, found {parallel.world_size()}")
    folder = folder_of(settings, out, None)
    require(not (folder / "config.json").exists(), f"{folder} holds a run itself: name another folder for seeds")
    splits = data.load(settings.dataset, likelihood=settings.model.likelihood)
    first = Life(settings.fitted(splits), splits, folder, device, ALONE)
    seeds = range(settings.training.seed, settings.training.seed + count)
    lives = [replace(first, settings=first.settings.seeded(seed), folder=folder / f"seed_{seed}") for seed in seeds]
    introduce(first, f", {count} seeds")
    scores = {life.folder: _scores_of_whole(life) for life in lives}
    missing = [life for life in lives if scores[life.folder] is None]
    for life in lives:
        if life not in missing:
            life.say(f"{life.folder}: whole, and kept")
    with _telling_how_to_go_on(), contextlib.ExitStack() as locks:
        if missing:
            makers = [functools.partial(_made, life, locks, command) for life in missing]
            for life, trainer in zip(missing, fit_each(makers, splits, beside=first.beside), strict=True):
                scores[life.folder] = _told(life, finish(trainer, splits))
                for line in ending(trainer):
                    life.say(f"{life.folder}: {line}")
    spread = spread_of([scores[life.folder] or {} for life in lives])
    files.write_json(folder / SPREAD, {"seeds": list(seeds), "scores": spread})
    first.say(f"{table(spread, count)}\nscores of all seeds: {folder / SPREAD}")


def _told(life: Life, found: Evaluation) -> dict[str, Any]:
    """The scores of a seed, of which one line is printed."""
    life.say(f"{life.folder}: {found.nats_per_sequence:.2f} nats per held-out sequence")
    for doubt in life.doubts(found):
        life.warn(f"{life.folder}: {doubt}")
    return found.to_dict()


def _made(life: Life, locks: contextlib.ExitStack, command: list[str]) -> Trainer:
    """The trainer of a seed, at the step that an earlier command has left, or at its start; its folder is locked."""
    begun = Checkpoint(0, {}, {})
    if (life.folder / "config.json").exists():
        locks.enter_context(lock.held(life.folder))
        begun = checkpoint.resume(life.folder)
    if not begun.tensors:
        begin(life, locks, new=not begun.record, command=command)
    trainer = trainer_of(life)
    if begun.tensors:
        trainer.restore(begun)
    return trainer


def _scores_of_whole(life: Life) -> dict[str, Any] | None:
    """The scores of a seed that an earlier command has trained to its last step, or to an early stop; None if none has.

    Raises :class:`InputError` where the folder is of other settings.
    """
    config = life.folder / "config.json"
    if not config.exists():
        return None
    recorded, wanted = _record_of(config), json.loads(json.dumps(life.settings.record(life.splits)))
    wanted["training"].pop("keep_best")  # changes no score
    for part in ("model", "training", "data", "data_sha256"):
        if not isinstance(recorded, dict) or recorded.get(part) != wanted[part]:
            raise InputError(f"{life.folder} is of other settings ({_difference(recorded, wanted, part)}): name --out")
    evaluation = life.folder / "evaluation.json"
    found = files.read_json(evaluation) if evaluation.exists() else None
    if not isinstance(found, dict):
        return None
    return found if found.get("step") == life.settings.training.steps or found.get("stopped_early") is True else None


def _record_of(config: Path) -> Any:
    """A run's record, without what changes no score; one of an old run with the settings that it lacks."""
    recorded = files.read_json(config)
    if not isinstance(recorded, dict):
        return recorded
    own = Settings.of(recorded)
    filled = {"model": to_dict(own.model), "training": to_dict(own.training), "data": to_dict(own.dataset)}
    filled["training"].pop("keep_best")
    return recorded | json.loads(json.dumps(filled))


def _difference(recorded: Any, wanted: dict[str, Any], part: str) -> str:
    """The names of the settings in which two records differ."""
    before = recorded.get(part) if isinstance(recorded, dict) else None
    if not isinstance(before, dict):
        return part
    return ", ".join(name for name in wanted[part] if before.get(name) != wanted[part][name]) or part


@contextlib.contextmanager
def _telling_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = ("interrupted; the same command goes on",)
        raise


def spread_of(scores: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation over seeds and values of every score that all seeds have, by its full name."""
    flat = [dict(_leaves(one)) for one in scores]
    names = [name for name in flat[0] if all(name in one for one in flat)]
    return {name: _spread([one[name] for one in flat]) for name in names}


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return {"mean": statistics.fmean(values), "standard_deviation": deviation, "values": values}


def _leaves(scores: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in scores.items():
        if name in HOW:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{before}{name}", float(value)


def table(spread: Mapping[str, Mapping[str, Any]], count: int) -> str:
    """The spread as a table to read, without the scores of baselines, which no seed changes."""
    own = {name: each for name, each in spread.items() if ".baselines." not in name}
    width = max(map(len, own))
    lines = [f"{'score':<{width}}  mean ± standard deviation over {count} seeds"]
    for name, each in own.items():
        lines.append(f"{name:<{width}}  {each['mean']:10.3f} ± {each['standard_deviation']:.3f}")
    return "\n".join(lines)
