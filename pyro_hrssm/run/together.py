"""Several trainers of one process: side by side on a GPU, where one alone leaves it idle, or one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import torch

from pyro_hrssm.config import TrainingConfig
from pyro_hrssm.data import Splits
from pyro_hrssm.data.batches import Batch
from pyro_hrssm.data.loading import fits, resident
from pyro_hrssm.run.ahead import refusal
from pyro_hrssm.run.diagnosis import TrainingError
from pyro_hrssm.run.parallel import Processes
from pyro_hrssm.run.process import between_steps
from pyro_hrssm.run.training import Trainer, pyro_for_training

MOST_LANES = 12
"""The most trainers side by side. Each needs two streams, and torch has 32, which it gives out in turn: two
trainers on one stream would share the working memory of cuBLAS."""


class Lane:
    """The random numbers of one trainer among several, and on a GPU the stream in which its work is queued."""

    def __init__(self, device: torch.device) -> None:
        self._host = torch.get_rng_state()
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            torch.cuda.init()  # makes the default generators
            number = torch.cuda.current_device() if device.index is None else device.index
            self._generator = torch.cuda.default_generators[number]
            self._noise = self._generator.clone_state()
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """A context in which torch's default generators and stream are this lane's."""
        outer = torch.get_rng_state()
        torch.set_rng_state(self._host)
        try:
            with self._on_gpu():
                yield
        finally:
            self._host = torch.get_rng_state()
            torch.set_rng_state(outer)

    @contextlib.contextmanager
    def _on_gpu(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        # The state is exchanged as an object, not by its numbers: the graphs of every lane have their own.
        outer = self._generator.graphsafe_get_state()
        self._generator.graphsafe_set_state(self._noise)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            self._generator.graphsafe_set_state(outer)


def side_by_side(config: TrainingConfig, device: torch.device, processes: Processes) -> bool:
    """Whether several trainers of this configuration can train at the same time."""
    return config.graph and device.type == "cuda" and refusal(config, processes) is None


def fit_each(
    makers: Sequence[Callable[[], Trainer]],
    splits: Splits,
    until: int | None = None,
    beside: torch.device | None = None,
) -> Iterator[Trainer]:
    """The trainers that are made, each after its last step or step `until`; each is as if it had been alone.

    A trainer may be used until the next one is asked for.

    Arguments:
        makers: each makes a trainer, and seeds its random numbers.
        beside: the device on which they train side by side; None to train one after the other.
    """
    if beside is None:
        for make in makers:
            trainer = make()
            with _named(trainer, len(makers)):
                trainer.fit(splits.train, splits.held_out, until)
            yield trainer
        return
    for start in range(0, len(makers), MOST_LANES):
        some = makers[start : start + MOST_LANES]
        lanes, trainers = [Lane(beside) for _ in some], []
        for make, lane in zip(some, lanes, strict=True):
            with lane.active():
                trainers.append(make())
        fit_together(trainers, lanes, splits, until)
        for trainer, lane in zip(trainers, lanes, strict=True):
            with lane.active():
                yield trainer


def fit_together(trainers: Sequence[Trainer], lanes: Sequence[Lane], splits: Splits, until: int | None = None) -> None:
    """Train all trainers, each in its lane: one step of each in turn, for which the host does not wait."""
    train, held_out, device = splits.train, splits.held_out, trainers[0].device
    whole: Batch | None = None
    if fits(train, device):
        whole = resident(train, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the lanes read what another stream has written
    with between_steps() as signals, pyro_for_training():
        courses = [
            _Course(trainer, lane, trainer.course(train, held_out, until, signals, whole, shown=number == 0))
            for number, (trainer, lane) in enumerate(zip(trainers, lanes, strict=True))
        ]
        try:
            while not signals and (under_way := [each for each in courses if not each.trainer.ends(until)]):
                for each in under_way:
                    with each.lane.active(), _named(each.trainer, len(trainers)):
                        next(each.steps, None)
            for each in reversed(courses):  # the last to begin is the first to end, as contexts within each other are
                with each.lane.active():
                    for _ in each.steps:
                        pass
        finally:
            for each in reversed(courses):
                each.steps.close()


class _Course(NamedTuple):
    trainer: Trainer
    lane: Lane
    steps: Generator[None, None, None]


@contextlib.contextmanager
def _named(trainer: Trainer, count: int) -> Iterator[None]:
    """Let the error of one of several trainers say whose it is."""
    try:
        yield
    except TrainingError as error:
        if count == 1:
            raise
        raise TrainingError(f"{trainer.run}: {error}") from error
