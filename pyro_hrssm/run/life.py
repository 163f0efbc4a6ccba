"""The life of a run: a run begins or resumes, tries several starts, is trained, and ends with its scores."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pyro_hrssm import checkpoint, data, files
from pyro_hrssm.checkpoint import METRICS, Checkpoint
from pyro_hrssm.data import Held, Scaling, Splits
from pyro_hrssm.data.memory import keep, located
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.doubts import doubts
from pyro_hrssm.inference.evaluation import Evaluation
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.reports.figures import SHOWN
from pyro_hrssm.run import best, lock, parallel
from pyro_hrssm.run.parallel import Processes
from pyro_hrssm.run.resuming import check_unchanged
from pyro_hrssm.run.settings import Settings
from pyro_hrssm.run.together import fit_each, side_by_side
from pyro_hrssm.run.training import Trainer
from pyro_hrssm.run.voice import PRINTED, Voice

STARTING_SEQUENCES = 500
"""Number of training sequences whose mean frame is the emission's initial mean, and whose bound chooses a restart."""


@dataclass(frozen=True)
class Life:
    """The state of a run in one of its processes."""

    settings: Settings
    splits: Splits
    folder: Path
    device: torch.device
    processes: Processes
    voice: Voice = PRINTED
    shows: bool = True
    """Whether there is a progress bar."""
    kept: bool = True
    """Whether the folder stays: of one that does not, nothing is said, and no figures are painted into it."""

    @property
    def beside(self) -> torch.device | None:
        """The device on which several seeds train side by side; None where one must follow the other."""
        together = side_by_side(self.settings.training, self.device, self.processes)
        return self.device if together else None

    def say(self, text: str) -> None:
        """Say a text once for all processes."""
        if self.processes.leads:
            self.voice.say(text)

    def doubts(self, scores: Evaluation) -> list[str]:
        """Lines about what is wrong with the trained model, by its scores."""
        training, total = self.settings.training, len(self.splits.train)
        passes = training.steps * min(training.batch_size, total) / total
        return doubts(scores, self.settings.model.has_segments, passes)

    def warn(self, text: str) -> None:
        """Warn once for all processes."""
        if self.processes.leads:
            self.voice.warn(text)


def train(
    settings: Settings,
    out: Path | None,
    resumed: Path | None,
    device: torch.device,
    command: list[str],
    held: Held | None = None,
    *,
    voice: Voice = PRINTED,
    shows: bool = True,
    kept: bool = True,
) -> None:
    """Begin or resume a run, train it to its last step, evaluate it, draw its figures.

    Every process that `torchrun` starts calls this function; only the first process writes and prints.

    Arguments:
        out: the run's folder; None for runs/ and the name of the data.
        resumed: the folder of the run to continue, whose settings are already among `settings`.
        command: the command as the user typed it, for the record.
        held: arrays in memory to train on, in place of the data that `settings` name.
        voice: where sentences go.
        shows: whether there is a progress bar.
        kept: whether the folder stays when the run has ended.
    """
    # Checked before the processes connect: a process that left during the connection would end the others with another
    # error.
    Processes(size=parallel.world_size()).check_divides(settings.training.batch_size)
    folder = folder_of(settings, out, resumed)
    with parallel.joined(device) as processes, contextlib.ExitStack() as locks:
        if resumed is not None and os.path.isdir(resumed):
            # Before the checkpoint is read: another command may be about to write the next one.
            processes.on_first(lambda: locks.enter_context(lock.held(resumed)))
        begun = Checkpoint(0, {}, {}) if resumed is None else checkpoint.resume(resumed)
        if resumed is not None:
            check_unchanged(settings, resumed, begun)
        scaling = Scaling.from_dict(begun.record.get("scaling")) if begun.record else None
        frame_shape = settings.model.frame_shape if begun.record else None
        dataset = settings.dataset if resumed is None else located(settings.dataset, resumed)
        splits = processes.after_first(
            lambda: data.load(dataset, scaling, frame_shape, held, settings.model.likelihood)
        )
        fitted = settings.fitted(splits, bool(begun.tensors))
        life = Life(fitted, splits, folder, device, processes, voice, shows, kept)
        introduce(life, f", {processes.size} processes" if processes.size > 1 else "")
        if not begun.tensors:
            processes.on_first(lambda: begin(life, locks, resumed is None, command, held))
        with _telling_how_to_go_on(folder):
            trainer = _trained(life, begun)
            scores = finish(trainer, splits)
            life.say("\n".join([scores.table(), *ending(trainer)]))
        for doubt in life.doubts(scores):
            life.warn(doubt)
        if kept:
            life.say(f"figures, metrics and checkpoints: {folder}")


def introduce(life: Life, how: str) -> None:
    """Say what the run is about to train on, and warn of what looks wrong in it.

    Arguments:
        how: how it is trained, beside the device.
    """
    settings, splits = life.settings, life.splits
    sizes = f"{len(splits.train)} sequences to train on, {len(splits.held_out)} held out"
    likelihood = settings.model.likelihood
    named = f"{life.folder}: " if life.kept else ""
    life.say(f"{named}{sizes}, on {life.device}{how}; {splits.description()}; likelihood {likelihood}")
    doubts = splits.train.doubts(settings.dataset.boundaries_mark)
    said = (settings.uncovered(splits), settings.unmodelled(splits), settings.unflagged(splits))
    for warning in (*doubts, *said, best.idle(settings.training)):
        if warning is not None:
            life.warn(warning)


def folder_of(settings: Settings, out: Path | None, resumed: Path | None) -> Path:
    """The run's folder; arguments as in :func:`train`."""
    if resumed is not None:
        if out is not None and os.path.realpath(out) != os.path.realpath(resumed):
            raise InputError(f"a resumed run stays in its folder {resumed}, found --out {out}")
        return resumed
    return Path("runs") / Path(settings.dataset.data).stem if out is None else out


def begin(life: Life, locks: contextlib.ExitStack, new: bool, command: list[str], held: Held | None = None) -> None:
    """Make and lock the run's folder, if it is new, and write the run's settings and command, and arrays in memory."""
    record = life.settings.record(life.splits)
    if new:
        checkpoint.new_run(life.folder)
        locks.enter_context(lock.held(life.folder))
        checkpoint.new_run(life.folder)  # again: another command may have begun and ended a run before the lock
    if held is not None and life.kept:
        keep(held, life.folder)
    files.write_json(life.folder / "config.json", record | {"command": command, "device": str(life.device)})


@contextlib.contextmanager
def _telling_how_to_go_on(folder: Path) -> Iterator[None]:
    """Give Ctrl-C a message with the command that resumes the run."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = (f"interrupted; go on with: pyro-hrssm train --resume {shlex.quote(str(folder))}",)
        raise


def _trained(life: Life, begun: Checkpoint) -> Trainer:
    """The trainer after its last step, trained from the run's checkpoint or from the best of several starts."""
    if not begun.tensors and life.settings.training.restarts > 1:
        life, begun = _best_start(life)
    trainer = trainer_of(life, paints=life.kept)
    if begun.tensors:
        if life.processes.leads and begun.record.get("data_sha256") != trainer.record["data_sha256"]:
            life.warn(f"{life.folder} began with other sequences than it goes on with now")
        trainer.restore(begun)
    trainer.fit(life.splits.train, life.splits.held_out)
    return trainer


def trainer_of(life: Life, paints: bool = True) -> Trainer:
    """A trainer at step 0, which paints figures or none."""
    settings, splits = life.settings, life.splits
    torch.manual_seed(settings.training.seed)
    model = StateSpaceModel.build(settings.model)
    first = splits.train.batch(range(min(STARTING_SEQUENCES, len(splits.train))))
    model.start_at(first.frames, first.mask)
    shown = splits.held_out.batch(range(min(SHOWN, len(splits.held_out)))).to(life.device) if paints else None
    # The record holds a digest of all data; only the first process needs to read all data for the digest.
    record = settings.record(splits) if life.processes.leads else {}
    return Trainer(model.to(life.device), settings.training, life.folder, record, shown, life.processes, life.shows)


def _best_start(life: Life) -> tuple[Life, Checkpoint]:
    """Train several seeds briefly, each in its own folder, and choose the one of the best bound of training sequences.

    Chosen by held-out ones, it would be favoured by the choice in the bound that the run reports of these.
    """
    training, splits, rows = life.settings.training, life.splits, []
    seeds = range(training.seed, training.seed + training.restarts)
    makers = [functools.partial(_restarted, life, seed) for seed in seeds]
    each = fit_each(makers, splits, training.restart_steps, life.beside)
    for seed, trainer in zip(seeds, each, strict=True):
        nats = life.processes.on_first(
            functools.partial(trainer.bound, splits.train, STARTING_SEQUENCES)
        ).nats_per_sequence
        rows.append({"seed": seed, "training_nats_per_sequence": nats})
        life.say(f"restart of seed {seed}: {nats:.2f} nats per training sequence")
    seed = int(min(rows, key=lambda row: row["training_nats_per_sequence"])["seed"])
    tried = _restart_folder(life, seed)
    if life.processes.leads:
        files.write_json(life.folder / "restarts.json", rows)
        files.write_bytes(life.folder / METRICS, (tried / METRICS).read_bytes())
    life.say(f"going on with seed {seed}")
    return replace(life, settings=life.settings.seeded(seed)), checkpoint.load(tried)


def _restarted(life: Life, seed: int) -> Trainer:
    """The trainer of a seed that is tried, at the step that an earlier command has left it."""
    folder, settings = _restart_folder(life, seed), life.settings.seeded(seed)
    # A trial neither stops early nor has a best checkpoint: the run's begin with the training that goes on.
    settings = replace(settings, training=replace(settings.training, keep_best=False, patience=None))
    trainer = trainer_of(replace(life, settings=settings, folder=folder), paints=False)
    begun = checkpoint.newest(folder)  # from an earlier command that was stopped during the restarts
    if begun is not None:
        check_unchanged(settings, folder, begun)
        trainer.restore(begun)
    return trainer


def _restart_folder(life: Life, seed: int) -> Path:
    """The folder in which a seed is tried."""
    return life.folder / "restarts" / f"seed_{seed}"


def ending(trainer: Trainer) -> list[str]:
    """Lines about how training ended, where there is something to say."""
    return best.told(trainer.best, trainer.config, trainer.step, trainer.stopped_early)


def finish(trainer: Trainer, splits: Splits) -> Evaluation:
    """Score the model on held-out sequences, and write the scores."""

    def score() -> Evaluation:
        scores = trainer.score(splits.train, splits.held_out)
        early = {"stopped_early": True} if trainer.stopped_early else {}
        files.write_json(trainer.run / "evaluation.json", {"step": trainer.step} | early | scores.to_dict())
        return scores

    return trainer.processes.on_first(score)
