"""Functions of one frame, computed for many frames at once when the first of their results is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

Function: TypeAlias = Callable[..., Tensor | tuple[Tensor, ...]]
"""Maps tensors `[n, B, …]` of n frames to one such tensor or several. A recurrence takes its state `[B, …]` before the
n frames as an additional first argument, and its state at all n frames is its first output."""


class Later:
    """Lets a loop over frames compute nothing until a result is needed.

    `later(f, x)` stands for `f(x)` at one frame. In training every latent site is replayed, so the loop ends before
    any belief, prior or density is needed: the heads of all frames then take one product, and a recurrence takes one
    walk. A site that is drawn from its prior needs its parameters within the loop; they are then computed as in a
    loop without `Later`.
    """

    def __init__(self) -> None:
        self._surroundings = _surroundings()
        self._queues: dict[Function, Queue] = {}

    def __call__(self, function: Function, *inputs: Value) -> Result:
        """The result of `function` at one frame.

        Arguments:
            inputs: tensors `[B, …]` of this frame, or results.
        """
        return self._queue(function).add(inputs)

    def scan(self, function: Function, before: Value, *inputs: Value) -> Result:
        """The result of one step of a recurrence.

        Arguments:
            before: the state one frame earlier: the recurrence's own last result, or another value to start anew.
            inputs: tensors `[B, …]` of this frame, or results.
        """
        return self._queue(function).add(inputs, before)

    def _queue(self, function: Function) -> Queue:
        if function not in self._queues:
            self._queues[function] = Queue(function, self._surroundings)
        return self._queues[function]


class Queue:
    """Calls of one function that wait until one of their results is needed.

    Arguments:
        function: the function.
        surroundings: makes the context in which the function is called; None for the context that made the queue.
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
        """Let one more call wait; the call of a recurrence gives the state `before` the frame."""
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
        # All frames are returned without slicing: the gradient of a slice is a copy.
        return joined if (start, stop) == (0, len(joined)) else joined[start:stop]

    def _compute(self) -> None:
        if not self._waiting:
            return
        # The queue is emptied first, because the state may be a result of this same queue.
        waiting, self._waiting = self._waiting, []
        # A state that is kept here would be a circle, which holds its tensors until the garbage collector comes round.
        before, self._before = self._before, None
        inputs = [together(column) for column in zip(*waiting, strict=True)]
        if before is not None:
            inputs.insert(0, value_of(before))
        with self._surroundings():
            outputs = self._function(*inputs)
        self._batches.append((outputs,) if isinstance(outputs, Tensor) else outputs)

    @classmethod
    def of(cls, *outputs: Tensor) -> Queue:
        """A queue whose outputs `[frames, B, …]` are already computed."""
        queue = cls(lambda: outputs)
        queue._batches, queue._added = [outputs], len(outputs[0])
        return queue


class Result:
    """One output of a call that may still wait; the call's first output unless another is picked by index.

    Arguments:
        queue: the queue in which the call waits.
        place: the call's number in the queue.
        output: index of the output.
    """

    __slots__ = ("output", "place", "queue")

    def __init__(self, queue: Queue, place: int, output: int = 0) -> None:
        self.queue, self.place, self.output = queue, place, output

    def __getitem__(self, output: int) -> Result:
        """The call's output of this index."""
        return Result(self.queue, self.place, output)

    __iter__ = None  # the number of outputs is unknown before the call, so unpacking would never end

    @property
    def value(self) -> Tensor:
        """The output `[B, …]`."""
        return self.queue.frame(self.place)[self.output]

    def is_followed_by(self, value: Value, frames: int) -> bool:
        """Whether `value` is the same output of the same queue, `frames` calls later."""
        return (
            isinstance(value, Result)
            and value.queue is self.queue
            and value.place == self.place + frames
            and value.output == self.output
        )


Value: TypeAlias = Tensor | Result
"""A tensor `[B, …]`, or a result that stands for one."""


def value_of(value: Value) -> Tensor:
    """The tensor that a value is or stands for."""
    return value if isinstance(value, Tensor) else value.value


def known(*outputs: Tensor) -> list[Result]:
    """One result per frame of outputs `[frames, B, …]` already computed, so that they need not be stacked again."""
    queue = Queue.of(*outputs)
    return [Result(queue, place) for place in range(len(outputs[0]))]


def together(values: Sequence[Value]) -> Tensor:
    """One tensor `[n, …]` of n values `[…]`; successive results of one queue are taken as one piece."""
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
    """Capture the precision in force here and whether gradients are recorded, to make contexts with the same settings.

    A result may be computed after the caller has left that precision, or has turned gradients off.
    """
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            return partial(_within, torch.is_grad_enabled(), device, torch.get_autocast_dtype(device))
    return partial(_recording, torch.is_grad_enabled())


def _recording(gradients: bool) -> contextlib.AbstractContextManager[object]:
    """Record gradients or not; no context where nothing changes: `torch.export` cuts a program at every context."""
    return contextlib.nullcontext() if torch.is_grad_enabled() == gradients else torch.set_grad_enabled(gradients)


@contextlib.contextmanager
def _within(gradients: bool, device: str, precision: torch.dtype) -> Iterator[None]:
    with _recording(gradients), torch.autocast(device, precision):
        yield
