"""The SVI loop of one run: `fit` trains from the step reached to the last, `update` takes one step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from pyro_hrssm.checkpoint import METRICS, Checkpoint, remove_old
from pyro_hrssm.config import LeaveOneOut, TrainingConfig
from pyro_hrssm.data.batches import Batch, batch_indices, in_order
from pyro_hrssm.data.loading import reading
from pyro_hrssm.data.sequences import Sequences
from pyro_hrssm.errors import InputError
from pyro_hrssm.files import rewind_lines
from pyro_hrssm.inference.against_truth import boundary_score
from pyro_hrssm.inference.compiled import CompiledObjective
from pyro_hrssm.inference.evaluation import Evaluation, evaluate, measure, random_seed
from pyro_hrssm.inference.graphed import CudaGraphs, Recorder
from pyro_hrssm.inference.memory import rows_for_batches_of
from pyro_hrssm.inference.objectives import LeaveOneOutELBO, MeanFieldObjective, Objective
from pyro_hrssm.inference.prices import Judged, RateControl
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.reports.figures import paint
from pyro_hrssm.run import state
from pyro_hrssm.run.ahead import ahead, refusal
from pyro_hrssm.run.best import Best, counts
from pyro_hrssm.run.diagnosis import AgreedError, TrainingError, agreed_error, first_bad_site, not_finite
from pyro_hrssm.run.log import Log, logging
from pyro_hrssm.run.optimiser import JointAdam
from pyro_hrssm.run.parallel import ALONE, Processes, digest
from pyro_hrssm.run.process import (
    between_steps,
    random_states,
    reproducible_convolutions,
    reuse_freed_memory,
    set_random_states,
)
from pyro_hrssm.run.schedules import Scheduled, learning_rate, scheduled, temperature


def objective(config: TrainingConfig, model: StateSpaceModel) -> Objective:
    """The ELBO that a configuration names, compiled if `config.compile` is set."""
    if isinstance(config.elbo, LeaveOneOut):
        named = config.elbo
        price = named.boundary_price or 0.0
        elbo: Objective = LeaveOneOutELBO(named.particles, named.boundary_cost, named.credit, price)
    else:
        elbo = Objective() if config.elbo == "trace" else MeanFieldObjective()
    return CompiledObjective(elbo, model) if config.compile else elbo


@dataclass
class Trainer:
    """One run: a model, its objective and its optimiser, its folder, and the step reached.

    Each process of a run makes a trainer, and all trainers start with equal parameters. Each process then draws its own
    noise, takes its share of every batch, and steps by the joined gradient. Only the first process evaluates and
    writes.

    Arguments:
        model: the model, on its device.
        config: the loop's settings.
        run: the run folder.
        record: the record that every checkpoint carries beside the weights (configurations, scaling, versions).
        shown: held-out sequences of which figures are drawn after every evaluation; None for no figures.
        processes: the processes that train this model; only this one by default.
        shows: whether there is a progress bar.
    """

    model: StateSpaceModel
    config: TrainingConfig
    run: Path
    record: dict[str, Any]
    shown: Batch | None = None
    processes: Processes = ALONE
    shows: bool = True

    def __post_init__(self) -> None:
        steered = self.config.leave_one_out
        if steered.steering and not self.model.has_segments:
            raise InputError(f"{steered.steering[0]} needs a model with segments, found {self.model.config.model}")
        self.device = self.model.device
        self.optimiser = JointAdam(self.model, self.config, self.processes)
        self.elbo = objective(self.config, self.model)
        rate = steered.boundary_rate
        self.rate = None if rate is None else RateControl(rate, steered.boundary_cost)
        self.programs = (self._in_precision(self.model.model), self._in_precision(self.model.guide))
        self.svi = SVI(*self.programs, self.optimiser, self.elbo)
        self.recorder: Recorder | None = CudaGraphs() if self.config.graph and self.device.type == "cuda" else None
        self.step = 0
        self.best = Best()
        reuse_freed_memory()
        if self.processes.size > 1:
            self._check_equal(self.processes.gather(digest(self.model)))
        self._draw_own_noise()

    def _in_precision(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """The program with its networks in the configured precision.

        Densities, their sums, the backward pass through them and the optimiser stay in float32.
        """
        if self.config.precision == "float32":
            return program

        def run(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(self.device.type, torch.bfloat16):
                return program(*args, **kwargs)

        return run

    def _draw_own_noise(self) -> None:
        """Give each process its own noise; the first process keeps the noise that it would draw alone."""
        if not self.processes.leads:
            torch.manual_seed(self.processes.noise_seed(self.config.seed, self.step))

    def _check_equal(self, digests: list[str]) -> None:
        if len(set(digests)) > 1:
            raise TrainingError(f"step {self.step}: the processes' parameters differ; the last checkpoint is whole")

    def fit(self, train: Sequences, held_out: Sequences, until: int | None = None) -> None:
        """Train to the last step, to step `until` or until patience ends; log, evaluate and save on the way.

        Ctrl-C or SIGTERM raises :class:`Interrupted` in every process, once the step under way is taken and saved.
        """
        with between_steps() as signals, pyro_for_training():
            for _ in self.course(train, held_out, until, signals):
                pass

    def course(
        self,
        train: Sequences,
        held_out: Sequences,
        until: int | None,
        signals: list[int],
        whole: Batch | None = None,
        shown: bool = True,
    ) -> Generator[None, None, None]:
        """What :meth:`fit` does, one step at a time.

        Arguments:
            signals: signals that ask this process to stop after the step under way.
            whole: all training sequences on the device, where another trainer shares them.
            shown: whether this trainer has the progress bar.
        """
        config, last = self.config, self._last(until)
        self.processes.check_divides(min(config.batch_size, len(train)))
        # A run that was killed may have logged steps past the checkpoint from which it resumes.
        self.processes.on_first(lambda: rewind_lines(self.run / METRICS, self.step))
        description, leads = "compile" if config.compile else "train", self.processes.leads
        with (
            self._taking(train, last, whole) as steps,
            logging(self.run, self.step, last, description, leads, leads and shown and self.shows) as log,
        ):
            while not (signalled := self.processes.largest(signals[0] if signals else 0)) and not self.ends(until):
                steps.take()
                self.step += 1
                log.bar.set_description("train", refresh=False)
                if self.step % config.log_every == 0 or self.step == last:
                    log.training(self.step, steps.row())
                evaluates = self.step == last or (config.evaluate_every and self.step % config.evaluate_every == 0)
                better = False
                if evaluates:
                    steps.settle()
                    better = self._compare(self.processes.on_first(lambda: self._evaluate(log, held_out)))
                if better or self.ends(until) or self.step % config.checkpoint_every == 0:
                    steps.settle()
                    self.save()
                if evaluates and self.shown is not None:  # after the checkpoint, which no figure must cost
                    self.processes.on_first(lambda: self._paint(log))
                log.bar.update()
                yield
            if signalled:
                signals[:] = signals or [signalled]  # also where another process had the signal
                steps.settle()
                self.save()

    def _last(self, until: int | None) -> int:
        return self.config.steps if until is None else min(until, self.config.steps)

    def ends(self, until: int | None) -> bool:
        """Whether the last step, or step `until`, is taken, or training has stopped early."""
        return self.stopped_early or self.step >= self._last(until)

    @property
    def stopped_early(self) -> bool:
        """Whether so many evaluations in a row were no better that `config.patience` has ended."""
        patience = self.config.patience
        return patience is not None and self.best.waited >= patience and self.step < self.config.steps

    @property
    def kept_best(self) -> int | None:
        """The step of the best checkpoint, if it is kept."""
        return self.best.step if self.config.keep_best and self.best.step > 0 else None

    def _compare(self, nats: float) -> bool:
        """Compare the evaluation of the step reached with the best; whether its checkpoint is to be kept as such."""
        if counts(self.config, self.step):
            self.best = self.best.after(self.step, nats)
        return self.kept_best == self.step

    def _taking(self, train: Sequences, last: int, whole: Batch | None) -> contextlib.AbstractContextManager[_Steps]:
        """The context in which the next steps are taken: recorded ahead of the host where that can be, else eagerly."""
        if self.recorder is not None:
            reason = refusal(self.config, self.processes)
            if getattr(self.update, "__func__", None) is not Trainer.update:
                reason = "update is another function than Trainer's"
            if reason is None:
                return ahead(self, train, self.recorder, last, whole)
            if self.processes.leads:
                warnings.warn(f"graph: the training step runs without, because {reason}", UserWarning, stacklevel=2)
        return _one_by_one(self, train, last)

    def update(self, frames: Tensor, mask: Tensor | None) -> float:
        """One SVI step; a NaN or an infinity raises :class:`TrainingError` before any parameter moves.

        The step reads the loss and the gradient's norm, and so waits for a GPU. :class:`Ahead` takes steps that do not.
        """
        self.optimiser.batch_size = frames.shape[0] * self.processes.size
        schedule = self.steer()
        random = random_states(self.device)
        try:
            loss = float(self.svi.step(frames, mask, **schedule.arguments))
        except (FloatingPointError, ValueError) as error:
            raise self.explained(error, random, frames, mask) from (error if isinstance(error, ValueError) else None)
        self._hold_boundary_rate()
        return loss

    def steer(
        self, schedule: Scheduled | None = None, learns: bool | None = None, cost: Tensor | None = None
    ) -> Scheduled:
        """Set in the objective what the schedules and the held rate say for the step to come; return the schedules.

        Arguments:
            schedule, learns, cost: values for a step that is recorded; those of the step reached where None.
        """
        values = scheduled(self.config, self.step) if schedule is None else schedule
        warmed = self.step >= self.config.leave_one_out.boundary_warmup_steps
        self.elbo.learns_boundaries = warmed if learns is None else learns
        if isinstance(self.elbo, LeaveOneOutELBO):
            self.elbo.exploration = values.exploration
            self.elbo.learned_prior = values.learned_prior
            if self.rate is not None:
                self.elbo.boundary_cost = self.rate.cost if cost is None else cost
        return values

    def explained(
        self, error: ArithmeticError | ValueError, random: dict[str, Tensor], frames: Tensor, mask: Tensor | None
    ) -> Exception:
        """The error that ends the run after a failed step, which is run again to find its first bad site."""
        site = None
        if not isinstance(error, InputError):
            # With Pyro's checks on, torch would refuse a NaN before it reaches the loss.
            with pyro.validation_enabled(False):
                set_random_states(random, self.device)
                self.model.zero_grad()
                schedule = scheduled(self.config, self.step).arguments
                traces = self.elbo._get_trace(*self.programs, (frames, mask), schedule)
                site = first_bad_site(traces, self.optimiser.parameters)
        if not isinstance(error, AgreedError):
            self.processes.largest(1)  # answers the optimiser's call in the other processes
        return agreed_error(self.step + 1, site, error, self.processes)

    def _hold_boundary_rate(self) -> None:
        """Adjust the cost of boundaries, equally in all processes, to the boundaries of the last step."""
        if self.rate is not None and isinstance(self.elbo, LeaveOneOutELBO) and self.elbo.learns_boundaries:
            self.rate.step(Judged(*self.processes.mean([float(value) for value in self.elbo.judged()])))

    def measured(self, nats: float) -> dict[str, float]:
        """Measurements of the last step, averaged over the processes, whose shares of a batch are equal."""
        terms, rate = self.elbo.measured()
        own = {"nats_per_sequence": nats, **{name: value.item() for name, value in terms.items()}}
        own["boundary_rate"] = rate.item()
        row = dict(zip(own, self.processes.mean(list(own.values())), strict=True))
        return row | {"gradient_norm": self.optimiser.gradient_norm.item()}

    def logged(self, measured: dict[str, float]) -> dict[str, float]:
        """The log's row of the last step: its measurements and what the schedules said."""
        norm, row = measured["gradient_norm"], {name: measured[name] for name in measured if name != "gradient_norm"}
        row["temperature"] = temperature(self.config, self.step - 1)
        row["learning_rate"] = learning_rate(self.config, self.step - 1)
        row["gradient_norm"] = norm
        return row if self.rate is None else row | {"boundary_cost_nats": self.rate.cost}

    @property
    def _most_rows(self) -> int:
        return rows_for_batches_of(self.config.batch_size)

    def bound(self, sequences: Sequences, most: int | None = None) -> Evaluation:
        """Bound and its terms of all sequences, or of the first `most`, from one particle to be quick."""
        # The evaluation has its own noise, so that it does not change the run.
        with random_seed(self.device, self.config.seed):
            batches = in_order(sequences, self.device, most)
            return evaluate(self.model, batches, particles=1, most=self._most_rows)

    def score(self, train: Sequences, held_out: Sequences) -> Evaluation:
        """All held-out scores, those of boundaries included if the true ones are known, and the bound in training."""
        particles, seed = self.config.particles, self.config.seed
        scores = measure(self.model, held_out, train, particles=particles, seed=seed, most=self._most_rows)
        seen = self.bound(train, len(held_out)).nats_per_sequence
        return dataclasses.replace(scores, training_nats_per_sequence=seen)

    def _evaluate(self, log: Log, held_out: Sequences) -> float:
        """Log the held-out scores; return the bound in nats per sequence."""
        # torch's own checks, which are off within the loop, would raise another error; the terms below name the site.
        scores = self.bound(held_out)
        for name, value in scores.terms.items():
            if not math.isfinite(value):
                raise not_finite(self.step, f"held-out site {'x' if name == 'emission' else name}")
        row = {"held_out_nats_per_sequence": scores.nats_per_sequence}
        row |= {f"held_out_{name}": value for name, value in scores.terms.items()}
        known = held_out.with_boundaries()
        if len(known):
            row["held_out_boundary_f1"] = boundary_score(self.model, in_order(known, self.device)).f1
        row |= {"held_out_boundary_rate": scores.boundary_rate, "held_out_forced_rate": scores.forced_rate}
        log.held_out(self.step, row)
        return scores.nats_per_sequence

    def _paint(self, log: Log) -> None:
        assert self.shown is not None
        with random_seed(self.device, self.config.seed):
            pictures = paint(self.model, self.shown, self.run, functools.partial(log.warn, self.step))
        log.pictures(self.step, pictures)

    def restore(self, loaded: Checkpoint) -> None:
        """Restore a checkpoint: weights, optimiser, random states, cost of a boundary, best evaluation, step."""
        self.step = loaded.step
        if not state.restore(self, loaded):
            self._draw_own_noise()
        keep = self.config.keep_checkpoints
        self.processes.on_first(lambda: remove_old(self.run, self.step, keep, self.kept_best))

    def save(self) -> None:
        """Write a checkpoint of the step reached; all processes return once the checkpoint is written.

        A NaN or an infinity in the checkpoint, or different parameters in the processes, raise :class:`TrainingError`.
        """
        own = state.own_random(self)
        gathered = self.processes.gather((digest(self.model) if self.processes.size > 1 else "", own))
        self._check_equal([found for found, _ in gathered])
        self.processes.on_first(lambda: state.write(self, [states for _, states in gathered]))


class _Steps(Protocol):
    """Steps of a trainer, whose own count its loop moves on."""

    def take(self) -> None:
        """Take the next step, or let the device take it."""
        ...

    def settle(self) -> None:
        """Wait for the steps taken."""
        ...

    def row(self) -> dict[str, float]:
        """The log's row of the last step."""
        ...


@dataclass
class _OneByOne:
    """Steps that the host waits for."""

    trainer: Trainer
    batches: Iterator[Batch]
    nats: float = math.nan

    def take(self) -> None:
        batch = next(self.batches).to(self.trainer.device)
        self.nats = self.trainer.update(batch.frames, batch.mask) / len(batch.frames)

    def settle(self) -> None:
        pass

    def row(self) -> dict[str, float]:
        return self.trainer.logged(self.trainer.measured(self.nats))


@contextlib.contextmanager
def _one_by_one(trainer: Trainer, train: Sequences, last: int) -> Iterator[_OneByOne]:
    config = trainer.config
    joined = batch_indices(len(train), config.batch_size, config.seed, trainer.step)
    indices = map(trainer.processes.share, itertools.islice(joined, max(0, last - trainer.step)))
    with reading(train, indices, config.workers, trainer.device) as batches:
        yield _OneByOne(trainer, batches)


@contextlib.contextmanager
def pyro_for_training() -> Iterator[None]:
    """A context with the run's own parameter store, and without the warnings for which the loop has its own checks."""
    with (
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
        reproducible_convolutions(),
        warnings.catch_warnings(),
    ):
        # The loop has its own, stricter check for a NaN. And q draws all boundaries first, in another order than p, but
        # this order leaves every parent of a site in p outside the site's descendants in q.
        warnings.filterwarnings("ignore", "Encountered |Failed to verify mean field", UserWarning)
        yield
