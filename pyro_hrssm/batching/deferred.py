"""Functions of one frame, applied to many frames at once where nobody asks for a result before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor


class Deferred:
    """A function applied to many frames at once, when the first of their outputs is asked for.

    In training every latent site is replayed, so that nobody asks for a belief, a prior's parameters or a density
    inside the loop over frames: the heads of all frames then take one product, a recurrence one walk, the densities of
    a variable one set of kernels. Where a site is drawn from its prior it asks at once, and gets what it would have
    got frame by frame.

    Arguments:
        function: maps tensors [n, B, …], n frames, to a tuple of tensors [n, B, …]. A recurrence takes before them
            its state [B, …] one frame earlier.
        start: what a recurrence starts from; its first output for the frame before those handed in.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], start: Tensor | Frame | None = None) -> None:
        self._function = function
        self._start = start
        self._surroundings = _surroundings()
        self._waiting: list[tuple[Tensor | Frame, ...]] = []
        self._handed_in = 0
        self._parts: list[tuple[Tensor, ...]] = []
        self._frames: list[tuple[Tensor, ...]] = []
        self._parts_in_frames = 0

    @classmethod
    def known(cls, *outputs: Tensor) -> Deferred:
        """One whose outputs are there already: [frames, B, …] each."""
        source = cls(lambda: outputs)
        source._parts, source._handed_in = [outputs], len(outputs[0])
        return source

    def add(self, *inputs: Tensor | Frame) -> Frame:
        """Hand in the next frame's inputs: tensors [B, …], or outputs of others."""
        self._waiting.append(inputs)
        self._handed_in += 1
        return Frame(self, self._handed_in - 1)

    def all(self) -> tuple[Tensor, ...]:
        """The outputs of every frame handed in, [frames, B, …] each."""
        self._run()
        if len(self._parts) == 1:
            return self._parts[0]
        return tuple(torch.cat(parts) for parts in zip(*self._parts, strict=True))

    def frame(self, index: int) -> tuple[Tensor, ...]:
        """The outputs of one frame, [B, …] each."""
        self._run()
        for part in self._parts[self._parts_in_frames :]:
            self._frames.extend(zip(*(output.unbind(0) for output in part), strict=True))
        self._parts_in_frames = len(self._parts)
        return self._frames[index]

    def _run(self) -> None:
        if not self._waiting:
            return
        inputs = [_gather(column) for column in zip(*self._waiting, strict=True)]
        if self._start is not None:
            inputs.insert(0, self._parts[-1][0][-1] if self._parts else value_of(self._start))
        # Whoever asks may have left the precision in which the frames were handed in, or have turned gradients off.
        with self._surroundings():
            self._parts.append(self._function(*inputs))
        self._waiting.clear()


class Frame(NamedTuple):
    """One frame's outputs of a :class:`Deferred`; calling it gives them. As an input of another it is one of them."""

    source: Deferred
    place: int
    output: int = 0

    def __call__(self) -> tuple[Tensor, ...]:
        return self.source.frame(self.place)

    def part(self, output: int) -> Frame:
        """Another of the frame's outputs."""
        return Frame(self.source, self.place, output)

    def precedes(self, value: Tensor | Frame, frames: int) -> bool:
        """Whether the other is the same output of the same source, so many frames later."""
        return (
            isinstance(value, Frame)
            and value.source is self.source
            and value.place == self.place + frames
            and value.output == self.output
        )

    def and_after(self, count: int) -> Tensor:
        """The output [count, B, …] from this frame on."""
        return self.source.all()[self.output][self.place : self.place + count]


def value_of(value: Tensor | Frame) -> Tensor:
    """A tensor as it is; of a deferred result, the output that it stands for."""
    return value if isinstance(value, Tensor) else value()[value.output]


def _gather(values: tuple[Tensor | Frame, ...]) -> Tensor:
    """One tensor [n, …] of n values […]; what is contiguous in one source is not taken apart."""
    parts = list(_contiguous(values))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _contiguous(values: tuple[Tensor | Frame, ...]) -> Iterator[Tensor]:
    place = 0
    while place < len(values):
        first, stop = values[place], place + 1
        if isinstance(first, Frame):
            while stop < len(values) and first.precedes(values[stop], stop - place):
                stop += 1
            yield value_of(first).unsqueeze(0) if stop - place == 1 else first.and_after(stop - place)
        else:
            while stop < len(values) and isinstance(values[stop], Tensor):
                stop += 1
            yield torch.stack(values[place:stop])  # type: ignore[arg-type]
        place = stop


def _surroundings() -> Callable[[], contextlib.AbstractContextManager[object]]:
    """Makes contexts of the precision in force here, and of whether gradients are recorded."""
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            return partial(_within, torch.is_grad_enabled(), device, torch.get_autocast_dtype(device))
    return partial(torch.set_grad_enabled, torch.is_grad_enabled())


@contextlib.contextmanager
def _within(gradients: bool, device: str, precision: torch.dtype) -> Iterator[None]:
    with torch.set_grad_enabled(gradients), torch.autocast(device, precision):
        yield
