"""The SVI loop of one run: `fit` trains from the step reached to the last, `update` takes one step."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from pyro_hrssm.checkpoint import METRICS, Checkpoint
from pyro_hrssm.config import LeaveOneOut, TrainingConfig
from pyro_hrssm.data.batches import Batch, batch_indices, in_order
from pyro_hrssm.data.loading import reading
from pyro_hrssm.data.sequences import Sequences
from pyro_hrssm.errors import InputError
from pyro_hrssm.files import rewind_lines
from pyro_hrssm.inference.compiled import CompiledObjective
from pyro_hrssm.inference.evaluation import Evaluation, boundary_score, evaluate, measure, random_seed
from pyro_hrssm.inference.memory import rows_for_batches_of
from pyro_hrssm.inference.objectives import LeaveOneOutELBO, MeanFieldObjective, Objective
from pyro_hrssm.inference.prices import Judged, RateControl
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.reports.figures import paint
from pyro_hrssm.run import state
from pyro_hrssm.run.diagnosis import AgreedError, TrainingError, agreed_error, first_bad_site, not_finite
from pyro_hrssm.run.log import Log, logging
from pyro_hrssm.run.optimiser import JointAdam
from pyro_hrssm.run.parallel import ALONE, Processes, digest
from pyro_hrssm.run.process import between_steps, random_states, reuse_freed_memory, set_random_states
from pyro_hrssm.run.schedules import (
    exploration,
    kl_weight,
    learned_prior,
    learning_rate,
    state_weight,
    switch_gradient,
    temperature,
)


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
    """

    model: StateSpaceModel
    config: TrainingConfig
    run: Path
    record: dict[str, Any]
    shown: Batch | None = None
    processes: Processes = ALONE

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
        self.step = 0
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
        """Train to the last step, or to step `until`; log, evaluate and save on the way.

        Ctrl-C or SIGTERM raises :class:`Interrupted` in every process, once the step under way is taken and saved.
        """
        config = self.config
        last = config.steps if until is None else min(until, config.steps)
        self.processes.check_divides(min(config.batch_size, len(train)))
        joined = batch_indices(len(train), config.batch_size, config.seed, self.step)
        indices = map(self.processes.share, itertools.islice(joined, max(0, last - self.step)))
        # A run that was killed may have logged steps past the checkpoint from which it resumes.
        self.processes.on_first(lambda: rewind_lines(self.run / METRICS, self.step))
        description = "compile" if config.compile else "train"
        with (
            between_steps() as signals,
            reading(train, indices, config.workers, self.device) as batches,
            logging(self.run, self.step, last, description, writes=self.processes.leads) as log,
            _pyro_for_training(),
        ):
            while not (signalled := self.processes.largest(signals[0] if signals else 0)) and self.step < last:
                batch = next(batches).to(self.device)
                loss = self.update(batch.frames, batch.mask)
                self.step += 1
                log.bar.set_description("train", refresh=False)
                if self.step % config.log_every == 0 or self.step == last:
                    log.training(self.step, self._measured(loss / len(batch.frames)))
                evaluates = self.step == last or (config.evaluate_every and self.step % config.evaluate_every == 0)
                if evaluates:
                    self.processes.on_first(lambda: self._evaluate(log, held_out))
                if self.step == last or self.step % config.checkpoint_every == 0:
                    self.save()
                if evaluates and self.shown is not None:  # after the checkpoint, which no figure must cost
                    self.processes.on_first(lambda: self._paint(log))
                log.bar.update()
            if signalled:
                signals[:] = signals or [signalled]  # also where another process had the signal
                self.save()

    def update(self, frames: Tensor, mask: Tensor | None) -> float:
        """One SVI step; a NaN or an infinity raises :class:`TrainingError` before any parameter moves.

        The loop reads the loss and the gradient's norm at every step, and so waits for a GPU at every step: the cost of
        stopping at the bad step with the site's name.
        """
        self.optimiser.batch_size = frames.shape[0] * self.processes.size
        self._steer_boundaries()
        schedule = {
            "temperature": temperature(self.config, self.step),
            "kl_weight": kl_weight(self.config, self.step),
            "state_weight": state_weight(self.config, self.step),
            "switch_gradient": switch_gradient(self.config, self.step),
        }
        random = random_states(self.device)
        try:
            loss = float(self.svi.step(frames, mask, **schedule))
        except (FloatingPointError, ValueError) as error:
            raise self._explained(error, random, frames, mask, schedule) from (
                error if isinstance(error, ValueError) else None
            )
        self._hold_boundary_rate()
        return loss

    def _steer_boundaries(self) -> None:
        """Set what the schedules and the held rate say for this step."""
        self.elbo.learns_boundaries = self.step >= self.config.leave_one_out.boundary_warmup_steps
        if isinstance(self.elbo, LeaveOneOutELBO):
            self.elbo.exploration = exploration(self.config, self.step)
            self.elbo.learned_prior = learned_prior(self.config, self.step)
            if self.rate is not None:
                self.elbo.boundary_cost = self.rate.cost

    def _explained(
        self,
        error: ArithmeticError | ValueError,
        random: dict[str, Tensor],
        frames: Tensor,
        mask: Tensor | None,
        schedule: dict[str, float],
    ) -> Exception:
        """The error that ends the run after a failed step, which is run again to find its first bad site."""
        site = None
        if not isinstance(error, InputError):
            # With Pyro's checks on, torch would refuse a NaN before it reaches the loss.
            with pyro.validation_enabled(False):
                set_random_states(random, self.device)
                self.model.zero_grad()
                traces = self.elbo._get_trace(*self.programs, (frames, mask), schedule)
                site = first_bad_site(traces, self.optimiser.parameters)
        if not isinstance(error, AgreedError):
            self.processes.largest(1)  # answers the optimiser's call in the other processes
        return agreed_error(self.step + 1, site, error, self.processes)

    def _hold_boundary_rate(self) -> None:
        """Adjust the cost of boundaries, equally in all processes, to the boundaries of the last step."""
        if self.rate is not None and isinstance(self.elbo, LeaveOneOutELBO) and self.elbo.learns_boundaries:
            self.rate.step(Judged(*self.processes.mean([*self.elbo.judged()])))

    def _measured(self, nats: float) -> dict[str, float]:
        """Measurements of the last step for the log, averaged over the processes, whose shares of a batch are equal."""
        terms, rate = self.elbo.measured()
        own = {"nats_per_sequence": nats, **{name: value.item() for name, value in terms.items()}}
        own["boundary_rate"] = rate.item()
        row = dict(zip(own, self.processes.mean(list(own.values())), strict=True))
        row["temperature"] = temperature(self.config, self.step - 1)
        row["learning_rate"] = learning_rate(self.config, self.step - 1)
        row["gradient_norm"] = self.optimiser.gradient_norm.item()
        return row if self.rate is None else row | {"boundary_cost_nats": self.rate.cost}

    @property
    def _most_rows(self) -> int:
        return rows_for_batches_of(self.config.batch_size)

    def bound(self, held_out: Sequences) -> Evaluation:
        """Held-out bound and its terms, from one particle to be quick."""
        # The evaluation has its own noise, so that it does not change the run.
        with random_seed(self.device, self.config.seed):
            return evaluate(self.model, in_order(held_out, self.device), particles=1, most=self._most_rows)

    def score(self, train: Sequences, held_out: Sequences) -> Evaluation:
        """All held-out scores, those of boundaries included if the true ones are known."""
        particles, seed = self.config.particles, self.config.seed
        return measure(self.model, held_out, train, particles=particles, seed=seed, most=self._most_rows)

    def _evaluate(self, log: Log, held_out: Sequences) -> None:
        # torch's own checks, which are off within the loop, would raise another error; the terms below name the site.
        scores = self.bound(held_out)
        for name, value in scores.terms.items():
            if not math.isfinite(value):
                raise not_finite(self.step, f"held-out site {'x' if name == 'emission' else name}")
        row = {"held_out_nats_per_sequence": scores.nats_per_sequence}
        row |= {f"held_out_{name}": value for name, value in scores.terms.items()}
        if held_out.has_boundaries:
            row["held_out_boundary_f1"] = boundary_score(self.model, in_order(held_out, self.device)).f1
        row |= {"held_out_boundary_rate": scores.boundary_rate, "held_out_forced_rate": scores.forced_rate}
        log.held_out(self.step, row)

    def _paint(self, log: Log) -> None:
        assert self.shown is not None
        with random_seed(self.device, self.config.seed):
            pictures = paint(self.model, self.shown, self.run, functools.partial(log.warn, self.step))
        log.pictures(self.step, pictures)

    def restore(self, loaded: Checkpoint) -> None:
        """Restore a checkpoint: weights, optimiser, random states, cost of a boundary, step."""
        self.step = loaded.step
        if not state.restore(self, loaded):
            self._draw_own_noise()

    def save(self) -> None:
        """Write a checkpoint of the step reached; all processes return once the checkpoint is written.

        A NaN or an infinity in the checkpoint, or different parameters in the processes, raise :class:`TrainingError`.
        """
        own = state.own_random(self)
        gathered = self.processes.gather((digest(self.model) if self.processes.size > 1 else "", own))
        self._check_equal([found for found, _ in gathered])
        self.processes.on_first(lambda: state.write(self, [states for _, states in gathered]))


@contextlib.contextmanager
def _pyro_for_training() -> Iterator[None]:
    """A context with the run's own parameter store, and without the warnings for which the loop has its own checks."""
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), warnings.catch_warnings():
        # The loop has its own, stricter check for a NaN. And q draws all boundaries first, in another order than p, but
        # this order leaves every parent of a site in p outside the site's descendants in q.
        warnings.filterwarnings("ignore", "Encountered |Failed to verify mean field", UserWarning)
        yield
