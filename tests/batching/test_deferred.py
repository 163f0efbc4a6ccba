"""Deferred application against the same functions applied frame by frame, whoever asks when."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pyro_hrssm.batching.deferred import Deferred, Frame
from pyro_hrssm.model.networks import GRU

CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # the same sums in another order, in double


def double(*shape: int, gradient: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(gradient)


class Counted(nn.Module):
    """A network of two inputs and two outputs that counts its calls and the frames of each."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4, dtype=torch.float64)
        self.calls: list[int] = []

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append(len(first))
        return self.layer(torch.cat([first, second], -1)).tanh(), first.square()


@given(st.lists(st.none() | st.integers(0, 8), min_size=1, max_size=12))
def test_deferred_gives_the_same_whoever_asks_when(events: list[int | None]) -> None:
    """None hands in the next frame; a number asks for one of the frames handed in so far."""
    network = Counted()
    deferred = Deferred(network)
    handed: list[tuple[Tensor, Tensor]] = []
    results: list[Any] = []
    asked: list[tuple[int, tuple[Tensor, ...]]] = []
    for event in [None, *events]:
        if event is None:
            handed.append((double(2, 1), double(2, 2)))
            results.append(deferred.add(*handed[-1]))
        else:
            index = event % len(handed)
            asked.append((index, results[index]()))
    everything = deferred.all()
    assert sum(network.calls) == len(handed)  # no frame twice
    expected = [network(a[None], b[None]) for a, b in handed]
    for index, found in asked:
        torch.testing.assert_close(found, tuple(output[0] for output in expected[index]), **CLOSE)
    for index, result in enumerate(results):
        torch.testing.assert_close(result(), tuple(output[0] for output in expected[index]), **CLOSE)
    torch.testing.assert_close(everything, tuple(torch.cat(parts) for parts in zip(*expected, strict=True)), **CLOSE)


def test_deferred_runs_once_for_all_frames_where_nobody_asks() -> None:
    network = Counted()
    deferred = Deferred(network)
    results = [deferred.add(double(2, 1), double(2, 2)) for _ in range(5)]
    assert network.calls == []
    assert [output.shape for output in deferred.all()] == [(5, 2, 4), (5, 2, 1)]
    for result in results:
        result()
    deferred.all()
    assert network.calls == [5]


def test_deferred_has_the_gradients_of_the_network() -> None:
    network = Counted()
    inputs = [(double(2, 1, gradient=True), double(2, 2, gradient=True)) for _ in range(3)]
    leaves = [tensor for pair in inputs for tensor in pair] + list(network.parameters())
    deferred = Deferred(network)
    results = [deferred.add(*pair) for pair in inputs[:2]]
    total = results[1]()[0].sum()
    deferred.add(*inputs[2])
    total = total + sum((output**3).sum() for output in deferred.all())
    outputs = network(*(torch.stack(parts) for parts in zip(*inputs, strict=True)))
    expected = outputs[0][1].sum() + sum((output**3).sum() for output in outputs)
    torch.testing.assert_close(torch.autograd.grad(total, leaves), torch.autograd.grad(expected, leaves), **CLOSE)


# One deferred application after another


@given(st.lists(st.none() | st.integers(0, 8), min_size=1, max_size=12))
def test_a_deferred_recurrence_is_the_same_walk_whoever_asks_when(events: list[int | None]) -> None:
    """None hands in the next frame; a number asks for a belief, or for what a second network makes of it."""
    gru, head = GRU(3, 4).double(), nn.Linear(4, 2, dtype=torch.float64)
    calls: list[int] = []

    def walk(before: Tensor, inputs: Tensor) -> tuple[Tensor]:
        calls.append(len(inputs))
        return (gru(inputs, before),)

    started = Deferred(lambda first: (first.tanh(),))
    first = double(5, 4)
    beliefs = Deferred(walk, started.add(first))
    heads = Deferred(lambda belief: (head(belief),))
    handed: list[Tensor] = []
    results: list[tuple[Any, Any]] = []
    for event in [None, *events]:
        if event is None:
            handed.append(double(5, 3))
            belief = beliefs.add(handed[-1])
            results.append((belief, heads.add(belief)))
        else:
            index = event % len(results)
            results[index][event % 2]()
    found = [torch.stack([result[place]()[0] for result in results]) for place in (0, 1)]
    assert sum(calls) == len(handed)  # no frame twice
    expected = gru(torch.stack(handed), first.tanh())
    torch.testing.assert_close(found, [expected, head(expected)], **CLOSE)
    parameters = [*gru.parameters(), *head.parameters()]
    gradients = [torch.autograd.grad(outputs.square().sum(), parameters) for outputs in (found[1], head(expected))]
    torch.testing.assert_close(gradients[0], gradients[1], **CLOSE)


def test_values_and_results_of_several_sources_are_gathered_in_order() -> None:
    network = Deferred(lambda x: (x + 1,))
    other = Deferred(lambda x: (x * 10,))
    values = [double(2, 1) for _ in range(5)]
    frames = [network.add(value) for value in values[:3]]
    column = (values[4], *frames, frames[0], other.add(values[3]))
    summed = Deferred(lambda x: (x,))
    for value in column:
        summed.add(value)
    expected = [values[4], *(value + 1 for value in values[:3]), values[0] + 1, values[3] * 10]
    torch.testing.assert_close(summed.all()[0], torch.stack(expected), **CLOSE)


def test_any_output_of_a_frame_is_an_input_of_another() -> None:
    known = Deferred.known(double(3, 2, 4), double(3, 2, 1))
    frames = [Frame(known, place) for place in range(3)]
    second = Deferred(lambda x, y: (x + y,))
    for frame in frames:
        second.add(frame.part(1), frame)
    torch.testing.assert_close(second.all()[0], known.all()[0] + known.all()[1], **CLOSE)


def test_gradients_are_recorded_as_where_frames_were_handed_in() -> None:
    layer = nn.Linear(2, 2)
    recorded = Deferred(lambda x: (layer(x),))
    with torch.no_grad():
        silent = Deferred(lambda x: (layer(x),))
    frames = [source.add(torch.randn(3, 2)) for source in (recorded, silent)]
    with torch.no_grad():
        assert frames[0]()[0].requires_grad
    assert not frames[1]()[0].requires_grad
