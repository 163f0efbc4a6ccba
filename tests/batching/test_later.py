"""`Later` against the same functions applied frame by frame, for results needed at any time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pyro_hrssm.batching.later import Later, Queue, Result, known, together, value_of
from pyro_hrssm.model.networks import GRU

CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # the same sums in another order, in double


def double(*shape: int, gradient: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(gradient)


def outputs(result: Result, count: int) -> tuple[Tensor, ...]:
    return tuple(result[output].value for output in range(count))


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
def test_later_gives_the_same_whoever_asks_when(events: list[int | None]) -> None:
    """None adds the next frame; a number reads the result of one of the frames added so far."""
    network, later = Counted(), Later()
    handed: list[tuple[Tensor, Tensor]] = []
    results: list[Result] = []
    asked: list[tuple[int, tuple[Tensor, ...]]] = []
    for event in [None, *events]:
        if event is None:
            handed.append((double(2, 1), double(2, 2)))
            results.append(later(network, *handed[-1]))
        else:
            index = event % len(handed)
            asked.append((index, outputs(results[index], 2)))
    everything = [together([result[output] for result in results]) for output in (0, 1)]
    assert sum(network.calls) == len(handed)  # no frame twice
    expected = [network(a[None], b[None]) for a, b in handed]
    for index, found in asked:
        torch.testing.assert_close(found, tuple(output[0] for output in expected[index]), **CLOSE)
    for index, result in enumerate(results):
        torch.testing.assert_close(outputs(result, 2), tuple(output[0] for output in expected[index]), **CLOSE)
    torch.testing.assert_close(everything, [torch.cat(parts) for parts in zip(*expected, strict=True)], **CLOSE)


def test_later_runs_once_for_all_frames_where_nobody_asks() -> None:
    network, later = Counted(), Later()
    results = [later(network, double(2, 1), double(2, 2)) for _ in range(5)]
    assert network.calls == []
    assert [together([result[output] for result in results]).shape for output in (0, 1)] == [(5, 2, 4), (5, 2, 1)]
    for result in results:
        assert result.value.shape == (2, 4)
    assert network.calls == [5]


def test_a_function_of_one_output_needs_no_tuple() -> None:
    later = Later()
    values = [double(2, 3) for _ in range(3)]
    results = [later(torch.tanh, value) for value in values]
    assert torch.equal(together(results), torch.stack(values).tanh())


def test_every_function_has_a_queue_of_its_own() -> None:
    first, second, later = Counted(), Counted(), Later()
    results = [later(network, double(2, 1), double(2, 2)) for network in (first, second, first)]
    assert results[1].value.shape == (2, 4)
    assert (first.calls, second.calls) == ([], [1])
    assert results[2].value.shape == (2, 4)
    assert (first.calls, second.calls) == ([2], [1])


def test_the_outputs_of_a_call_cannot_be_unpacked() -> None:
    result = Later()(Counted(), double(2, 1), double(2, 2))
    with pytest.raises(TypeError, match="iterable"):
        tuple(result)  # type: ignore[arg-type]


def test_later_has_the_gradients_of_the_network() -> None:
    network, later = Counted(), Later()
    inputs = [(double(2, 1, gradient=True), double(2, 2, gradient=True)) for _ in range(3)]
    leaves = [tensor for pair in inputs for tensor in pair] + list(network.parameters())
    results = [later(network, *pair) for pair in inputs[:2]]
    total = results[1].value.sum()
    results.append(later(network, *inputs[2]))
    total = total + sum((together([result[output] for result in results]) ** 3).sum() for output in (0, 1))
    found = network(*(torch.stack(parts) for parts in zip(*inputs, strict=True)))
    expected = found[0][1].sum() + sum((output**3).sum() for output in found)
    torch.testing.assert_close(torch.autograd.grad(total, leaves), torch.autograd.grad(expected, leaves), **CLOSE)


# Recurrences, and one application after another


@given(st.lists(st.none() | st.integers(0, 8), min_size=1, max_size=12))
def test_a_recurrence_is_the_same_walk_whoever_asks_when(events: list[int | None]) -> None:
    """None adds the next frame; a number reads a belief, or the output of a second network for this belief."""
    gru, head, later = GRU(3, 4).double(), nn.Linear(4, 2, dtype=torch.float64), Later()
    calls: list[int] = []

    def walk(before: Tensor, inputs: Tensor) -> Tensor:
        calls.append(len(inputs))
        return gru(inputs, before)

    first = double(5, 4)
    belief = later(torch.tanh, first)
    handed: list[Tensor] = []
    results: list[tuple[Result, Result]] = []
    for event in [None, *events]:
        if event is None:
            handed.append(double(5, 3))
            belief = later.scan(walk, belief, handed[-1])
            results.append((belief, later(head, belief)))
        else:
            index = event % len(results)
            assert value_of(results[index][event % 2]).shape[0] == 5
    found = [torch.stack([result[place].value for result in results]) for place in (0, 1)]
    assert sum(calls) == len(handed)  # no frame twice
    expected = gru(torch.stack(handed), first.tanh())
    torch.testing.assert_close(found, [expected, head(expected)], **CLOSE)
    parameters = [*gru.parameters(), *head.parameters()]
    gradients = [torch.autograd.grad(states.square().sum(), parameters) for states in (found[1], head(expected))]
    torch.testing.assert_close(gradients[0], gradients[1], **CLOSE)


@given(st.lists(st.sampled_from(["on", "anew", "ask"]), min_size=1, max_size=10))
def test_a_recurrence_starts_anew_from_any_state(events: list[str]) -> None:
    gru, later = GRU(3, 4).double(), Later()

    def walk(before: Tensor, inputs: Tensor) -> Tensor:
        return gru(inputs, before)

    belief, expected = later(torch.tanh, double(5, 4)), torch.empty(0)
    expected = belief.value
    for event in ["on", *events]:
        if event == "ask":
            torch.testing.assert_close(belief.value, expected, **CLOSE)
            continue
        start, inputs = double(5, 4), double(5, 3)
        belief = later.scan(walk, start if event == "anew" else belief, inputs)
        expected = gru(inputs[None], start if event == "anew" else expected)[0]
    torch.testing.assert_close(belief.value, expected, **CLOSE)


def test_values_and_results_of_several_queues_are_gathered_in_order() -> None:
    later = Later()
    values = [double(2, 1) for _ in range(5)]
    results = [later(torch.exp, value) for value in values[:3]]
    column = [values[4], *results, results[0], later(torch.tanh, values[3])]
    passed = [later(torch.neg, value) for value in column]
    expected = [values[4], *(value.exp() for value in values[:3]), values[0].exp(), values[3].tanh()]
    torch.testing.assert_close(together(column), torch.stack(expected), **CLOSE)
    torch.testing.assert_close(together(passed), -torch.stack(expected), **CLOSE)


def test_any_output_of_a_frame_is_an_input_of_another() -> None:
    outputs = double(3, 2, 4), double(3, 2, 1)
    frames, later = known(*outputs), Later()
    summed = [later(torch.add, frame[1], frame) for frame in frames]
    torch.testing.assert_close(together(summed), outputs[0] + outputs[1], **CLOSE)


def test_known_frames_are_not_stacked_again() -> None:
    values = double(3, 2, 4)
    assert together(known(values)).data_ptr() == values.data_ptr()
    assert together(known(values)[1:]).data_ptr() == values[1:].data_ptr()


def test_gradients_are_recorded_as_where_frames_were_handed_in() -> None:
    layer = nn.Linear(2, 2)
    recorded = Later()
    with torch.no_grad():
        silent = Later()
    results = [later(layer, torch.randn(3, 2)) for later in (recorded, silent)]
    queued = Queue(layer).add((torch.randn(3, 2),))
    with torch.no_grad():
        assert results[0].value.requires_grad
        assert queued.value.requires_grad
    assert not results[1].value.requires_grad
