"""Functions of one frame, computed for many frames at once when the first of their results is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

Function: TypeAlias = Callable[..., Tensor | tuple[Tensor, ...]]
"""Maps tensors `[n, B, …]`, n frames, to one such tensor or several. A recurrence takes, before them, its state
`[B, …]` one frame earlier, and gives its state at all n frames first."""


class Later:
    """Makes a loop over frames that computes nothing until a result is asked for.

    `later(f, x)` stands for `f(x)` at one frame. In training every latent site is replayed, so the loop ends before
    any belief, prior or density is asked for: the heads of all frames then take one product, a recurrence takes one
    walk. A site that is drawn from its prior asks within the loop, and gets the result that a loop without `Later`
    would have computed there.
    """

    def __init__(self) -> None:
        self._surroundings = _surroundings()
        self._queues: dict[Function, Queue] = {}

    def __call__(self, function: Function, *inputs: Value) -> Result:
        """`function` at one frame.

        Arguments:
            inputs: tensors `[B, …]` of this frame, or results.
        """
        return self._queue(function).add(inputs)

    def scan(self, function: Function, before: Value, *inputs: Value) -> Result:
        """One step of a recurrence.

        Arguments:
            before: the state one frame earlier: the recurrence's own last result, or any other to start anew.
            inputs: as of a call.
        """
        return self._queue(function).add(inputs, before)

    def _queue(self, function: Function) -> Queue:
        if function not in self._queues:
            self._queues[function] = Queue(function, self._surroundings)
        return self._queues[function]


class Queue:
    """Calls of one function that wait until one of their results is asked for.

    Arguments:
        function: what is called.
        surroundings: makes the context in which it is called; None for that in which the queue was made.
    """

    def __init__(
        self, function: Function, surroundings: Callable[[], contextlib.AbstractContextManager[object]] | None = None
    ) -> None:
        self._function = function
        self._surroundings = _surroundings() if surroundings is None else surroundings
        self._waiting: list[tuple[Value, ...]] = []
        self._before: Value | None = None
        self._batches: list[tuple[Tensor, ...]] = []
        self._frames: list[tuple[Tensor, ...]] = []
        self._batches_in_frames = 0
        self._added = 0

    def add(self, inputs: tuple[Value, ...], before: Value | None = None) -> Result:
        """Let one more call wait, of a recurrence one with its state `before`."""
        if self._waiting and before is not None and not self._is_last(before):
            self._compute()
        if not self._waiting:
            self._before = before
        self._waiting.append(inputs)
        self._added += 1
        return Result(self, self._added - 1)

    def _is_last(self, value: Value) -> bool:
        return isinstance(value, Result) and value.queue is self and value.place == self._added - 1

    def frame(self, place: int) -> tuple[Tensor, ...]:
        """The outputs `[B, …]` of one call."""
        self._compute()
        for batch in self._batches[self._batches_in_frames :]:
            self._frames.extend(zip(*(output.unbind(0) for output in batch), strict=True))
        self._batches_in_frames = len(self._batches)
        return self._frames[place]

    def frames(self, output: int, start: int, stop: int) -> Tensor:
        """One output `[stop - start, B, …]` of successive calls."""
        self._compute()
        batches = [batch[output] for batch in self._batches]
        joined = batches[0] if len(batches) == 1 else torch.cat(batches)
        # The gradient of a slice is a copy, of all frames too.
        return joined if (start, stop) == (0, len(joined)) else joined[start:stop]

    def _compute(self) -> None:
        if not self._waiting:
            return
        # Emptied first: the state may be a result of this very queue.
        waiting, self._waiting = self._waiting, []
        inputs = [together(column) for column in zip(*waiting, strict=True)]
        if self._before is not None:
            inputs.insert(0, value_of(self._before))
        with self._surroundings():
            outputs = self._function(*inputs)
        self._batches.append((outputs,) if isinstance(outputs, Tensor) else outputs)

    @classmethod
    def of(cls, *outputs: Tensor) -> Queue:
        """One that was computed already: outputs `[frames, B, …]`."""
        queue = cls(lambda: outputs)
        queue._batches, queue._added = [outputs], len(outputs[0])
        return queue


class Result:
    """The outputs of one call that may still wait. As an input of another it is the first of them.

    Arguments:
        queue: where the call waits.
        place: its number there.
        output: which of the outputs it is.
    """

    __slots__ = ("output", "place", "queue")

    def __init__(self, queue: Queue, place: int, output: int = 0) -> None:
        self.queue, self.place, self.output = queue, place, output

    def __getitem__(self, output: int) -> Result:
        """One of the outputs."""
        return Result(self.queue, self.place, output)

    __iter__ = None  # how many outputs there are is not known before the call: unpacking would never end

    @property
    def value(self) -> Tensor:
        """The output `[B, …]`."""
        return self.queue.frame(self.place)[self.output]

    def is_followed_by(self, value: Value, frames: int) -> bool:
        """Whether the other is the same output of the same queue, so many calls later."""
        return (
            isinstance(value, Result)
            and value.queue is self.queue
            and value.place == self.place + frames
            and value.output == self.output
        )


Value: TypeAlias = Tensor | Result
"""A tensor `[B, …]`, or a result that stands for one."""


def value_of(value: Value) -> Tensor:
    """The tensor itself."""
    return value if isinstance(value, Tensor) else value.value


def known(*outputs: Tensor) -> list[Result]:
    """Results of all frames `[frames, B, …]` that are there already, one a frame, so that nobody stacks them again."""
    queue = Queue.of(*outputs)
    return [Result(queue, place) for place in range(len(outputs[0]))]


def together(values: Sequence[Value]) -> Tensor:
    """One tensor `[n, …]` of n values `[…]`; successive results of one queue are not taken apart."""
    runs = list(_runs(values))
    return runs[0] if len(runs) == 1 else torch.cat(runs)


def _runs(values: Sequence[Value]) -> Iterator[Tensor]:
    place = 0
    while place < len(values):
        first, stop = values[place], place + 1
        if isinstance(first, Result):
            while stop < len(values) and first.is_followed_by(values[stop], stop - place):
                stop += 1
            if stop - place == 1:
                yield first.value.unsqueeze(0)
            else:
                yield first.queue.frames(first.output, first.place, first.place + stop - place)
        else:
            while stop < len(values) and isinstance(values[stop], Tensor):
                stop += 1
            yield torch.stack(values[place:stop])  # type: ignore[arg-type]
        place = stop


def _surroundings() -> Callable[[], contextlib.AbstractContextManager[object]]:
    """Makes contexts of the precision in force here, and of whether gradients are recorded.

    Whoever asks for a result may have left that precision, or have turned gradients off.
    """
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            return partial(_within, torch.is_grad_enabled(), device, torch.get_autocast_dtype(device))
    return partial(torch.set_grad_enabled, torch.is_grad_enabled())


@contextlib.contextmanager
def _within(gradients: bool, device: str, precision: torch.dtype) -> Iterator[None]:
    with torch.set_grad_enabled(gradients), torch.autocast(device, precision):
        yield
