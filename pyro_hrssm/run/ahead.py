"""Training steps for which the host does not wait: the device takes them, the host reads their results now and then.

Between two readings lies a window of steps. The host sends what they need in advance, the schedules' values and the
places of the batches' sequences, and every step leaves its measurements in a ring. A counter on the device says which
row of either is a step's own.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro.optim import PyroOptim
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from pyro_hrssm.config import TrainingConfig
from pyro_hrssm.data.batches import Batch, batch_indices
from pyro_hrssm.data.loading import Resident, Streamed, fits, reading, resident, send
from pyro_hrssm.data.sequences import Sequences
from pyro_hrssm.inference.bounds import TERMS
from pyro_hrssm.inference.graphed import DeviceSVI, Recorder, Step
from pyro_hrssm.inference.objectives import LeaveOneOutELBO
from pyro_hrssm.run.parallel import Processes
from pyro_hrssm.run.process import random_states, set_random_states
from pyro_hrssm.run.schedules import Scheduled, scheduled

if TYPE_CHECKING:
    from pyro_hrssm.run.training import Trainer

MOST_AHEAD = 1000
"""The most steps of a window, where the log has lines at longer intervals."""

COLUMNS = ("nats_per_sequence", *TERMS, "boundary_rate", "gradient_norm")
"""A step's measurements in the ring."""

DECIDED = {
    "kl_weight": (1.0,),
    "state_weight": (1.0,),
    "switch_gradient": (0.0, 1.0),
    "exploration": (0.0,),
    "learned_prior": (1.0,),
}
"""Values of the schedules at which the program leaves operations out, and draws other random numbers."""


class Phase(NamedTuple):
    """What Python decides in a step by the step's number; steps of one phase differ in the values of tensors alone."""

    learns_boundaries: bool
    decided: tuple[float | None, ...]
    """For each schedule the value that decides, None where the value is a tensor's."""

    @classmethod
    def at(cls, config: TrainingConfig, step: int) -> Phase:
        """The phase of a step."""
        values = scheduled(config, step)._asdict().items()
        decided = (value if value in DECIDED.get(name, ()) else None for name, value in values)
        return cls(step >= config.leave_one_out.boundary_warmup_steps, tuple(decided))

    def values(self, row: Tensor) -> Scheduled:
        """The schedules' values: numbers where they decide, else entries of their row of the table."""
        pairs = zip(self.decided, row.unbind(), strict=True)
        return Scheduled(*(entry if number is None else number for number, entry in pairs))


class Ahead:
    """Takes a trainer's steps ahead of the host.

    A step whose loss or gradient is not finite moves no parameter, nor does any step after it. The next reading finds
    it, runs it again to name its first bad site, and raises :class:`TrainingError`.

    Arguments:
        trainer: the trainer; its own count of steps is moved on by its loop.
        train: the training sequences.
        batches: where the steps find their batches.
        record: makes a step's function one to call again and again.
    """

    def __init__(self, trainer: Trainer, train: Sequences, batches: Resident | Streamed, record: Recorder) -> None:
        self._trainer, self._train, self._batches, self._record = trainer, train, batches, record
        self._config = trainer.config
        self._window = window(trainer.config)
        device = trainer.device
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._table = torch.zeros(self._window, len(Scheduled._fields), dtype=torch.float64, device=device)
        self._ring = torch.zeros(self._window, len(COLUMNS), dtype=torch.float64, device=device)
        self._first_bad = torch.full((1,), -1, dtype=torch.long, device=device)
        self._halted = torch.zeros((), device=device)
        self._learning_rate = torch.zeros((), device=device)
        costs = [0.0, 0.0] if trainer.rate is None else trainer.rate.state
        self._costs = torch.tensor(costs, dtype=torch.float64, device=device)
        self._recorded: dict[Any, Step] = {}
        self._random: list[dict[str, Tensor]] = []
        self._last: list[float] = []
        self._loss = self._halted
        self._svi = DeviceSVI(*trainer.programs, _Halting(self), trainer.elbo.loss, self._loss_and_grads)

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        """The context in which steps are taken."""
        try:
            with self._trainer.optimiser.on_device(self._learning_rate, self._halted):
                yield
        finally:
            self._recorded.clear()  # frees the device's memory now, and not when Python finds the circle
            self._trainer.elbo.forget()

    def take(self) -> None:
        """Let the device take the next step."""
        if len(self._random) == self._window:
            self.settle()
        if not self._random:
            self._open()
        phase, shapes = Phase.at(self._config, self._trainer.step), self._batches.put()
        if (phase, shapes) not in self._recorded:
            self._trainer.elbo.forget()
            self._recorded[phase, shapes] = self._record(partial(self._step, phase), self._rehearsing)
            # No phase comes twice.
            self._recorded = {key: step for key, step in self._recorded.items() if key[0] == phase}
        self._random.append(random_states(self._trainer.device))
        self._recorded[phase, shapes]()
        self._trainer.optimiser.steps += 1

    def settle(self) -> None:
        """Wait for the steps taken, and read what they left; raises as :class:`Ahead` says."""
        if not self._random:
            return
        random, self._random = self._random, []
        sent = torch.cat([self._first_bad.double(), self._costs, self._ring.flatten()]).tolist()
        first_bad, costs, ring = int(sent[0]), sent[1:3], sent[3:]
        if self._trainer.rate is not None:
            self._trainer.rate.state = costs
        if first_bad >= 0:
            self._explain(self._trainer.step - len(random) + first_bad, random[first_bad])
        start = (len(random) - 1) * len(COLUMNS)
        self._last = ring[start : start + len(COLUMNS)]

    def row(self) -> dict[str, float]:
        """The last step's measurements, for the log."""
        self.settle()
        return self._trainer.logged(dict(zip(COLUMNS, self._last, strict=True)))

    def _open(self) -> None:
        """Send what the steps of a new window need."""
        step = self._trainer.step
        rows = [scheduled(self._config, number) for number in range(step, step + self._window)]
        send(torch.tensor(rows, dtype=torch.float64, device="cpu"), self._table)
        self._batches.open()
        self._place.zero_()

    def _step(self, phase: Phase) -> None:
        """One step, as the device takes it."""
        trainer = self._trainer
        values = phase.values(self._table.index_select(0, self._place).squeeze(0))
        frames, mask = self._batches.at(self._place)
        trainer.optimiser.batch_size = len(frames)
        trainer.steer(values, phase.learns_boundaries, self._costs[1])
        self._learning_rate.copy_(values.learning_rate)  # type: ignore[arg-type]
        loss = self._svi.step(frames, mask, **values.arguments)
        terms, rate = trainer.elbo.measured()
        measured = [loss / len(frames), *(terms[name] for name in TERMS), rate, trainer.optimiser.gradient_norm]
        self._ring.index_copy_(0, self._place, torch.stack([value.double() for value in measured]).unsqueeze(0))
        self._hold_boundary_rate(phase)
        self._place.add_(1).remainder_(self._window)

    def _loss_and_grads(self, *args: Any, **kwargs: Any) -> Tensor:
        self._loss = self._trainer.elbo.loss_on_device(*args, **kwargs)
        return self._loss

    def halt(self, gradient_norm: Tensor) -> None:
        """Let no parameter move in this step if its loss or gradient is not finite, nor after any such step."""
        bad = ~(torch.isfinite(self._loss) & torch.isfinite(gradient_norm))
        self._first_bad.copy_(torch.where((self._first_bad < 0) & bad, self._place, self._first_bad))
        self._halted.copy_((self._first_bad >= 0).squeeze(0))

    def _hold_boundary_rate(self, phase: Phase) -> None:
        trainer = self._trainer
        if trainer.rate is not None and isinstance(trainer.elbo, LeaveOneOutELBO) and phase.learns_boundaries:
            judged = torch.stack([torch.as_tensor(value).double() for value in trainer.elbo.judged()])
            moved = trainer.rate.moved(self._costs, judged)
            self._costs.copy_(torch.where(self._halted > 0, self._costs, moved))

    @contextlib.contextmanager
    def _rehearsing(self) -> Iterator[None]:
        """A context in which steps move neither parameters nor moments, and after which all else is as before."""
        kept = [self._place, self._ring, self._first_bad, self._halted, self._learning_rate]
        before, random = [value.clone() for value in kept], random_states(self._trainer.device)
        self._first_bad.zero_()
        yield
        for value, old in zip(kept, before, strict=True):
            value.copy_(old)
        set_random_states(random, self._trainer.device)

    def _explain(self, step: int, random: dict[str, Tensor]) -> None:
        """Raise the error that names a bad step and its site."""
        trainer, config = self._trainer, self._config
        trainer.step = trainer.optimiser.steps = step
        index = next(batch_indices(len(self._train), config.batch_size, config.seed, step))
        frames, mask, _ = self._train.batch(index).to(trainer.device)
        trainer.steer()
        trainer.elbo.forget()
        raise trainer.explained(FloatingPointError("loss"), random, frames, mask)


class _Halting(PyroOptim):
    """The trainer's optimiser, which a step that is not finite does not move."""

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        optimiser = self._ahead._trainer.optimiser
        optimiser.clip()
        self._ahead.halt(optimiser.gradient_norm)
        optimiser.move()


@contextlib.contextmanager
def ahead(trainer: Trainer, train: Sequences, record: Recorder, last: int, whole: Batch | None) -> Iterator[Ahead]:
    """A context with the steps of a trainer from the one it has reached; arguments as in :class:`Ahead`.

    Arguments:
        last: the last step.
        whole: all training sequences on the device, where another trainer shares them.
    """
    config, device = trainer.config, trainer.device
    indices = batch_indices(len(train), config.batch_size, config.seed, trainer.step)
    with contextlib.ExitStack() as stack:
        batches: Resident | Streamed
        if whole is not None or fits(train, device):
            whole = resident(train, device) if whole is None else whole
            batches = Resident(whole, indices, window(config))
        else:
            rest = itertools.islice(indices, max(0, last - trainer.step))
            batches = Streamed(stack.enter_context(reading(train, rest, config.workers, device)), device)
        steps = Ahead(trainer, train, batches, record)
        stack.enter_context(steps.on_device())
        yield steps


def window(config: TrainingConfig) -> int:
    """Number of steps between two readings."""
    return min(config.log_every, MOST_AHEAD)


def refusal(config: TrainingConfig, processes: Processes) -> str | None:
    """Why the steps of a run cannot be recorded: half a sentence; None if they can."""
    if processes.size > 1:
        return "several processes train together"
    if config.compile:
        return "it is compiled"
    if config.elbo == "mean_field":
        return "elbo mean_field waits for the device at every site"
    if am_i_wrapped():
        return "a handler of Pyro's is around it, which must see every step"
    return None
