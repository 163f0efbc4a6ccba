"""The SVI loop: schedules, the optimiser that steps all parameters together, logging, checkpoints."""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import functools
import itertools
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pyro_hrssm import checkpoint, files
from pyro_hrssm.config import LARGEST_COUNT, OF_BOUNDARIES, TrainingConfig
from pyro_hrssm.errors import InputError, one_line
from pyro_hrssm.inference.compiled import CompiledObjective
from pyro_hrssm.inference.evaluation import (
    Data,
    Evaluation,
    boundary_score,
    evaluate,
    in_order,
    measure,
    move,
    random_seed,
)
from pyro_hrssm.inference.objectives import LeaveOneOutELBO, MeanFieldObjective, Objective, RateControl
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.run.loading import reading
from pyro_hrssm.run.parallel import ALONE, Processes, digest


class TrainingError(RuntimeError):
    """Training met a NaN, an infinity or processes that drifted apart: one line with the step and what is wrong."""


class _AgreedError(FloatingPointError):
    """A gradient is not finite, and every process has been told."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended training; what was reached is saved, unless a second one came before.

    Arguments:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _stopped(step: int, what: str) -> TrainingError:
    return TrainingError(f"step {step}: {what} is not finite; the last checkpoint is whole")


# Schedules: functions of the step, so that a resumed run needs no state for them.


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Up a straight line over the warm-up, then down half a cosine to `final_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_learning_rate + share * (config.learning_rate - config.final_learning_rate)


def temperature(config: TrainingConfig, step: int) -> float:
    """Straight from `temperature_start` to `temperature_end`."""
    progress = min(1.0, step / max(1, config.steps - 1))
    return config.temperature_start + progress * (config.temperature_end - config.temperature_start)


def kl_weight(config: TrainingConfig, step: int) -> float:
    """Weight of the latent terms: up a straight line to 1 over `kl_warmup_steps`."""
    return min(1.0, (step + 1) / config.kl_warmup_steps) if config.kl_warmup_steps > 0 else 1.0


class JointAdam(PyroOptim):
    """Adam over all parameters of a module at once, one global-norm clip, one schedule, as `SVI`'s optimiser.

    Pyro's own wrappers hold one optimiser per parameter and clip each alone.

    Arguments:
        module: whose parameters are stepped.
        config: learning rates, clip, AMSGrad.
        processes: all of them step alike, on the gradient of their joined batch.
    """

    def __init__(self, module: nn.Module, config: TrainingConfig, processes: Processes = ALONE) -> None:
        self.names = [name for name, _ in module.named_parameters()]
        self.parameters = list(module.parameters())
        self.config = config
        self.processes = processes
        self.steps = 0
        self.batch_size = 1
        self.gradient_norm = torch.zeros(())
        self.adam = torch.optim.Adam(self.parameters, lr=config.learning_rate, amsgrad=config.amsgrad, fused=True)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """One step on the gradients of the summed loss; raises `FloatingPointError` if one is not finite."""
        # Nothing to learn from yet is a gradient of 0: every parameter has moments, in every checkpoint.
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.processes.size > 1:
            self._add_up_gradients()
        # The loss is a sum over sequences: the clip is meant per sequence. Adam itself is blind to the factor.
        limit = self.config.clip_norm * self.batch_size
        self.gradient_norm = nn.utils.clip_grad_norm_(self.parameters, limit) / self.batch_size
        if not torch.isfinite(self.gradient_norm):
            raise _AgreedError("gradient")
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(self.config, self.steps)
        self.adam.step()
        # Taken away, not zeroed as `SVI` would: the next backward pass then writes where it would add.
        self.adam.zero_grad(set_to_none=True)
        self.steps += 1

    def _add_up_gradients(self) -> None:
        """Make every process's gradient that of the joined batch: a sum, as the loss is one over sequences."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        # Asked before the sum, which would spread a NaN to processes whose own sites are all finite.
        if self.processes.largest(int(not torch.isfinite(joined).all())):
            raise _AgreedError("gradient")
        parts = self.processes.add_up(joined).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def tensors(self) -> dict[str, Tensor]:
        """Adam's moments by parameter name, for a checkpoint."""
        state = self.adam.state_dict()["state"]
        return {f"{self.names[i]}.{key}": value for i, values in state.items() for key, value in values.items()}

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Undo :meth:`tensors`."""
        places = {name: index for index, name in enumerate(self.names)}
        state: dict[int, dict[str, Tensor]] = {}
        for full, value in tensors.items():
            name, _, key = full.rpartition(".")
            if name not in places:
                raise InputError(f"checkpoint: the optimiser knows no parameter {name!r}")
            state.setdefault(places[name], {})[key] = value
        if steps > 0:
            checkpoint.check_tensors("checkpoint: the optimiser's moments are of another model", tensors, self._like())
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})
        self.steps = steps

    def _like(self) -> dict[str, Tensor]:
        """What :meth:`tensors` gives after a step: the names and shapes."""
        moments = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if self.config.amsgrad else []))
        like = {f"{name}.step": torch.zeros(()) for name in self.names}
        pairs = zip(self.names, self.parameters, strict=True)
        return like | {f"{name}.{key}": parameter for name, parameter in pairs for key in moments}


def keep_freed_memory() -> None:
    """Ask the C library to keep what is freed for what comes next, where it is glibc.

    A step frees and asks for the same large blocks again and again. Handed back to the system in between, they come
    page by page at the first touch, which took a fifteenth of a step.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, another system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, LARGEST_COUNT)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""Larger ones glibc refuses."""


def batch_indices(size: int, batch_size: int, seed: int, start: int) -> Iterator[Tensor]:
    """Endless batches from step `start` on: a new permutation each epoch, a function of seed and epoch alone."""
    per_epoch = max(1, size // batch_size)
    step = start
    while True:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for position in range(place, per_epoch):
            yield order[position * batch_size : (position + 1) * batch_size]
            step += 1


def objective(config: TrainingConfig) -> Objective:
    """The ELBO that a configuration names."""
    if config.elbo == "leave_one_out":
        return LeaveOneOutELBO(config.elbo_particles, config.boundary_cost)
    return Objective() if config.elbo == "trace" else MeanFieldObjective()


@dataclass
class Trainer:
    """One run: a model, its data, its folder. `fit` trains from the step reached to the last.

    Several processes of one run each make one, of equal parameters: each then draws noise of its own, takes its share
    of every batch, and steps by the joined gradient. The first one alone evaluates and writes.

    Arguments:
        model: on its device.
        config: the loop's settings.
        run: the run folder.
        record: what every checkpoint carries beside the weights (configurations, scaling, versions).
        pictures: called after each evaluation with (model, step, writer); for figures.
        processes: those that train this model; this one alone by default.
    """

    model: StateSpaceModel
    config: TrainingConfig
    run: Path
    record: dict[str, Any]
    pictures: Callable[[StateSpaceModel, int, SummaryWriter], None] | None = None
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        if self.model.config.model == "rssm":
            for name in OF_BOUNDARIES:
                if getattr(self.config, name):
                    raise InputError(f"{name} needs a model with segments, found rssm")
        self.device = next(self.model.parameters()).device
        self.optimiser = JointAdam(self.model, self.config, self.processes)
        self.elbo = objective(self.config)
        held = self.config.boundary_rate
        self.rate = None if held is None else RateControl(held, self.config.boundary_cost)
        self.program = self._in_precision(self.model.model)
        self.guide = self._in_precision(self.model.guide)
        if self.config.compile:
            self.elbo = CompiledObjective(self.elbo, self.model)
        keep_freed_memory()
        self.svi = SVI(self.program, self.guide, self.optimiser, self.elbo)
        self.step = 0
        self._check_equal(self.processes.gather(digest(self.model)) if self.processes.size > 1 else [])
        self._own_noise()

    def _in_precision(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """The program with its networks in the precision set; what is made of their outputs afterwards is not touched.

        Densities, their sums, the backward pass through them and the optimiser stand outside, in float32.
        """
        if self.config.precision == "float32":
            return program

        def run(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(self.device.type, torch.bfloat16):
                return program(*args, **kwargs)

        return run

    def _own_noise(self) -> None:
        """Noise that no other process draws; the first one's goes on as if it were alone."""
        if not self.processes.first:
            torch.manual_seed(self.processes.noise_seed(self.config.seed, self.step))

    def _check_equal(self, digests: list[str]) -> None:
        if len(set(digests)) > 1:
            raise TrainingError(f"step {self.step}: the processes' parameters differ; the last checkpoint is whole")

    def restore(self, loaded: checkpoint.Checkpoint) -> None:
        """Go on where a checkpoint was written: weights, optimiser, random states, step."""
        self.model.load_weights(loaded)
        self.optimiser.restore(checkpoint.part(loaded.tensors, "optimiser."), loaded.step)
        self.step = loaded.step
        self._restore_rate(loaded)
        random = checkpoint.part(loaded.tensors, "random.")
        own = {name: random[self._own(name)] for name in ("cpu", "cuda") if self._own(name) in random}
        if not self.processes.first and not own:
            self._own_noise()  # written by fewer processes
            return
        try:
            self._set_random(own)
        except (KeyError, RuntimeError, TypeError) as error:
            raise InputError(f"checkpoint: random.cpu must be a generator's state, found {one_line(error)}") from error

    def _restore_rate(self, loaded: checkpoint.Checkpoint) -> None:
        if self.rate is not None and isinstance(self.elbo, LeaveOneOutELBO):
            like = {"boundary_cost": torch.zeros(2, dtype=torch.float64)}
            checkpoint.check_tensors("checkpoint: the cost that boundaries had reached", loaded.tensors, like)
            self.rate.settled, self.rate.cost = loaded.tensors["boundary_cost"].tolist()
            self.elbo.boundary_cost = self.rate.cost

    def _own(self, name: str) -> str:
        """The name under which a checkpoint keeps this process's random state."""
        return name if self.processes.first else f"{name}.{self.processes.rank}"

    def _random(self) -> dict[str, Tensor]:
        """States of the generators that noise is drawn from."""
        states = {"cpu": torch.get_rng_state()}
        return states | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def _set_random(self, states: dict[str, Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if self.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def save(self) -> None:
        """Write a checkpoint of the step reached; a NaN or an infinity in it raises :class:`TrainingError`.

        So do processes whose parameters differ. All of them return when it is written.
        """
        own = {f"random.{self._own(name)}": state for name, state in self._random().items()}
        gathered = self.processes.gather((digest(self.model) if self.processes.size > 1 else "", own))
        self._check_equal([found for found, _ in gathered])
        self.processes.on_first(lambda: self._write([states for _, states in gathered]))

    def _write(self, random: list[dict[str, Tensor]]) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in self.optimiser.tensors().items()}
        if self.rate is not None:
            tensors["boundary_cost"] = torch.tensor([self.rate.settled, self.rate.cost], dtype=torch.float64)
        for states in random:
            tensors |= states
        for name, value in tensors.items():
            if not torch.isfinite(value).all():
                raise _stopped(self.step, f"tensor {name}")
        checkpoint.save(self.run, checkpoint.Checkpoint(self.step, tensors, self.record), self.config.keep_checkpoints)

    def fit(self, train: Data, held_out: Data, until: int | None = None) -> None:
        """Train to the last step, or to step `until`; logs, evaluates and saves on the way.

        Ctrl-C or SIGTERM ends it with :class:`Interrupted` once the step under way is taken and saved, in every
        process.
        """
        config = self.config
        last = config.steps if until is None else min(until, config.steps)
        self.processes.check_divides(min(config.batch_size, len(train)))
        joined = batch_indices(len(train), config.batch_size, config.seed, self.step)
        indices = map(self.processes.part, itertools.islice(joined, max(0, last - self.step)))
        # A run that was killed may have logged steps past the checkpoint from which it goes on.
        self.processes.on_first(lambda: files.rewind_lines(self.run / "metrics.jsonl", self.step))
        with (
            _between_steps() as stop,
            reading(train, indices, config.workers, self.device) as batches,
            self._event_writer() as writer,
            tqdm(
                total=last, initial=self.step, unit="step", dynamic_ncols=True,
                desc="compile" if config.compile else "train",
                # Not False for the first: that would overrule TQDM_DISABLE.
                **({} if self.processes.first else {"disable": True}),
            ) as bar,
            pyro.get_param_store().scope(),
            pyro.validation_enabled(config.validate),
            warnings.catch_warnings(),
        ):  # fmt: skip
            # The loop has its own, stricter answer to a NaN; and q draws all boundaries first, in another
            # order than p, which leaves every parent of a site in p outside its descendants in q.
            warnings.filterwarnings("ignore", "Encountered |Failed to verify mean field", UserWarning)
            while not (signalled := self.processes.largest(stop[0] if stop else 0)) and self.step < last:
                frames, mask, _ = move(next(batches), self.device)
                loss = self.update(frames, mask)
                bar.set_description("train", refresh=False)
                self.step += 1
                if self.step % config.log_every == 0 or self.step == last:
                    self._log(writer, bar, loss / frames.shape[0])
                if self.step == last or (config.evaluate_every and self.step % config.evaluate_every == 0):
                    self.processes.on_first(lambda: self._evaluate(writer, held_out))
                if self.step == last or self.step % config.checkpoint_every == 0:
                    self.save()
                bar.update()
            if signalled:
                stop[:] = stop or [signalled]  # also where another process was told
                self.save()

    @contextlib.contextmanager
    def _event_writer(self) -> Iterator[SummaryWriter | None]:
        """TensorBoard's writer from this step on; none but the first process has one."""
        if self.processes.first:
            with _event_writer(self.run / "tensorboard", self.step) as writer:
                yield writer
        else:
            yield None

    def update(self, frames: Tensor, mask: Tensor | None) -> float:
        """One SVI step; a NaN or an infinity raises :class:`TrainingError` before any parameter moves.

        The loss and the gradient's norm are read at every step, which on a GPU is what the loop waits for: the price of
        stopping at the bad step with its site's name.
        """
        self.optimiser.batch_size = frames.shape[0] * self.processes.size
        self.elbo.learns_boundaries = self.step >= self.config.boundary_warmup_steps
        schedule = {
            "temperature": temperature(self.config, self.step),
            "kl_weight": kl_weight(self.config, self.step),
            "state_weight": self.config.state_weight,
        }
        random = self._random()
        try:
            loss = float(self.svi.step(frames, mask, **schedule))
        except (FloatingPointError, ValueError) as error:
            # `validate` lets torch refuse a NaN before it reaches the loss.
            with pyro.validation_enabled(False):
                site = None if isinstance(error, InputError) else self._first_bad_site(random, frames, mask, schedule)
            if not isinstance(error, _AgreedError):
                self.processes.largest(1)  # the others ask for it in the optimiser, which this one did not reach
            raise self._failure(site, error) from (error if isinstance(error, ValueError) else None)
        self._hold_boundary_rate()
        return loss

    def _hold_boundary_rate(self) -> None:
        """Move the cost of boundaries by what the last step drew, the same in all processes."""
        if self.rate is not None and isinstance(self.elbo, LeaveOneOutELBO) and self.elbo.learns_boundaries:
            rate, spread = self.processes.mean([*self.elbo.rate_and_spread()])
            self.rate.step(rate, spread)
            self.elbo.boundary_cost = self.rate.cost

    def _failure(self, site: str | None, error: ArithmeticError | ValueError) -> Exception:
        """The error that ends the run, the same in all processes: the first one's that knows a site, or any other."""
        found = self.processes.gather((site, error if isinstance(error, ValueError) else None))
        sites = [named for named, _ in found if named is not None]
        if sites or all(other is None for _, other in found):
            return _stopped(self.step + 1, f"site {sites[0] if sites else 'x (the sum over sites)'}")
        return error if isinstance(error, ValueError) else next(other for _, other in found if other is not None)

    def _first_bad_site(
        self, random: dict[str, Tensor], frames: Tensor, mask: Tensor | None, schedule: dict[str, float]
    ) -> str | None:
        """Run the step again; the first site whose value, density or gradient is not finite, None if all are."""
        self._set_random(random)
        self.model.zero_grad()
        guide, model = self.elbo._get_trace(self.program, self.guide, (frames, mask), schedule)[::-1]
        sites = [
            (name, site)
            for trace in (guide, model)
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and "log_prob_sum" in site
        ]
        for name, site in sites:
            if not (torch.isfinite(site["value"]).all() and torch.isfinite(site["log_prob_sum"])):
                return name
        differentiable = [(name, site["log_prob_sum"]) for name, site in sites if site["log_prob_sum"].requires_grad]

        def spoilt(number: int) -> bool:
            """Whether the gradient of the first `number` sites together is not finite."""
            total = torch.stack([value for _, value in differentiable[:number]]).sum()
            gradients = torch.autograd.grad(total, self.optimiser.parameters, retain_graph=True, allow_unused=True)
            return not all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)

        # What one site spoils no further one mends: so a search by halves, as a long sequence has many sites.
        first = bisect.bisect_left(range(1, len(differentiable) + 1), True, key=spoilt)
        return f"{differentiable[first][0]} (its gradient)" if first < len(differentiable) else None

    def _log(self, writer: SummaryWriter | None, bar: Any, nats: float) -> None:
        config = self.config
        terms, rate = self.elbo.measured()
        measured = {
            "nats_per_sequence": nats,
            **{name: value.item() for name, value in terms.items()},
            "boundary_rate": rate.item(),
        }
        # Every process has as many sequences of the batch.
        measured = dict(zip(measured, self.processes.mean(list(measured.values())), strict=True))
        if writer is None:
            return
        row = {
            **measured,
            "temperature": temperature(config, self.step - 1),
            "learning_rate": learning_rate(config, self.step - 1),
            "gradient_norm": self.optimiser.gradient_norm.item(),
        }
        if self.rate is not None:
            row["boundary_cost_nats"] = self.rate.settled
        files.append_line(self.run / "metrics.jsonl", {"step": self.step, **row})
        for name, value in row.items():
            writer.add_scalar(f"train/{name}", value, self.step)
        if bar.format_dict["rate"]:
            writer.add_scalar("train/steps_per_second", bar.format_dict["rate"], self.step)
        bar.set_postfix(
            nats=f"{row['nats_per_sequence']:.1f}",
            boundary_rate=f"{row['boundary_rate']:.2f}",
            temperature=f"{row['temperature']:.2f}",
        )

    def bound(self, held_out: Data) -> Evaluation:
        """Held-out bound and its terms, quickly: one particle."""
        # Noise of its own, so that looking does not change the run.
        with random_seed(self.device, self.config.seed):
            batches = ((frames, mask) for frames, mask, _ in in_order(held_out, self.device))
            return evaluate(self.model, batches, particles=1)

    def _evaluate(self, writer: SummaryWriter | None, held_out: Data) -> None:
        assert writer is not None
        # torch's own checks would raise an error of their own; the terms say which site it is.
        with pyro.validation_enabled(False):
            scores = self.bound(held_out)
        for name, value in scores.terms.items():
            if not math.isfinite(value):
                raise _stopped(self.step, f"held-out site {'x' if name == 'emission' else name}")
        row = {"held_out_nats_per_sequence": scores.nats_per_sequence} | {
            f"held_out_{name}": value for name, value in scores.terms.items()
        }
        if held_out.has_boundaries:
            row["held_out_boundary_f1"] = boundary_score(self.model, in_order(held_out, self.device)).f1
        row |= {"held_out_boundary_rate": scores.boundary_rate, "held_out_forced_rate": scores.forced_rate}
        files.append_line(self.run / "metrics.jsonl", {"step": self.step, **row})
        for name, value in row.items():
            writer.add_scalar(f"held_out/{name.removeprefix('held_out_')}", value, self.step)
        if self.pictures is not None:
            with random_seed(self.device, self.config.seed):
                self.pictures(self.model, self.step, writer)

    def score(self, train: Data, held_out: Data) -> Evaluation:
        """All held-out scores, boundaries included where they are known."""
        return measure(self.model, held_out, train, particles=self.config.particles, seed=self.config.seed)


def best_restart(
    start: Callable[[int, Path], Trainer], config: TrainingConfig, run: Path, train: Data, held_out: Data
) -> int:
    """Train `config.restarts` seeds briefly, each in a folder of its own under `run`; the best held-out bound's seed.

    Arguments:
        start: makes the trainer of a seed in a folder.
    """
    rows = []
    for seed in range(config.seed, config.seed + config.restarts):
        trainer = start(seed, restart_folder(run, seed))
        trainer.fit(train, held_out, config.restart_steps)
        nats = trainer.processes.on_first(functools.partial(trainer.bound, held_out)).nats_per_sequence
        rows.append({"seed": seed, "held_out_nats_per_sequence": nats})
        if trainer.processes.first:
            print(f"restart of seed {seed}: {nats:.2f} nats per held-out sequence")
    if trainer.processes.first:
        files.write_json(run / "restarts.json", rows)
    return int(min(rows, key=lambda row: row["held_out_nats_per_sequence"])["seed"])


def restart_folder(run: Path, seed: int) -> Path:
    """Where a seed is tried."""
    return run / "restarts" / f"seed_{seed}"


@contextlib.contextmanager
def _between_steps() -> Iterator[list[int]]:
    """Note Ctrl-C and SIGTERM in the list, so that no step is left half taken, and raise them at the end.

    A second one is raised at once.
    """
    noted: list[int] = []

    def note(number: int, _: Any) -> None:
        noted.append(number)
        if len(noted) > 1:
            raise Interrupted(number)

    # Other threads may not ask for signals; and who starts a job deaf to Ctrl-C, as a shell does behind `&`, means it.
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    previous = {n: signal.signal(n, note) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if noted:
        raise Interrupted(noted[0])


@contextlib.contextmanager
def _event_writer(folder: Path, step: int) -> Iterator[SummaryWriter]:
    """TensorBoard's writer from a step on; raises :class:`CheckpointError` where it cannot write."""
    # Its thread leaves an error for the next call to raise; printing it too would bury the one line.
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        writer = SummaryWriter(str(folder), purge_step=step + 1)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                writer.close()
            raise
        writer.close()
    except OSError as error:
        raise checkpoint.CheckpointError(f"cannot write {folder} ({error.strerror or error})") from error
    finally:
        threading.excepthook = hook
