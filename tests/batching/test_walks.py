"""Walks along frames against plain loops under autograd, and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_hrssm.batching.walks import (
    _adding_to,
    _carry,
    _gru,
    _product_adding_to,
    carried,
    follow,
    gru_walk,
    path_messages,
)
from pyro_hrssm.model.limits import SegmentLimits
from pyro_hrssm.model.paths import Grid

CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # the same sums in another order, in double


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def plainly_carried(before: Tensor, new: Tensor, updates: Tensor) -> Tensor:
    values = []
    for fresh, update in zip(new, updates, strict=True):
        before = update.unsqueeze(-1) * fresh + (1 - update.unsqueeze(-1)) * before
        values.append(before)
    return torch.stack(values)


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_carried_values_are_a_plain_loop(frames: int) -> None:
    before, new = double(4, 3), double(frames, 4, 3)
    updates = torch.rand(frames, 4, dtype=torch.float64, requires_grad=True)
    found, expected = carried(before, new, updates), plainly_carried(before, new, updates)
    torch.testing.assert_close(found, expected, **CLOSE)
    weights = torch.randn_like(new)
    gradients = [torch.autograd.grad((weights * each).sum(), [before, new, updates]) for each in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], **CLOSE)


def test_carrying_is_exact_at_0_and_1() -> None:
    before, new = torch.randn(4, 3), torch.randn(3, 4, 3)
    updates = torch.tensor([[0.0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
    found = carried(before, new, updates)
    assert torch.equal(found[2], torch.stack([before[0], new[0, 1], new[1, 2], new[2, 3]]))


def test_gradients_pass_where_updates_have_none() -> None:
    before, new = double(4, 3), double(3, 4, 3)
    updates = (torch.rand(3, 4) < 0.5).double()
    assert torch.autograd.gradcheck(lambda *inputs: carried(*inputs, updates), (before, new))


def test_paths_are_followed_from_state_to_state() -> None:
    opened, stayed = torch.tensor([2, 2, 2]), torch.tensor([1, 1, 0])
    opens = torch.rand(5, 3, 7) < 0.5
    position = torch.randint(3, (7,))
    found = follow(opens, opened, stayed, position)
    for row in range(7):
        state = position[row].item()
        for t in range(5):
            assert found[t, row] == state
            state = (opened if opens[t, state, row] else stayed)[state].item()


def inputs(kind: str) -> tuple[object, tuple[object, ...]]:
    if kind == "carry":
        return _carry, (double(4, 3), double(3, 4, 3), torch.rand(3, 4, 1, dtype=torch.float64, requires_grad=True))
    if kind == "messages":
        opened, stayed = torch.tensor([2, 3, 2, 3]), torch.tensor([1, 1, 3, 3])
        none, some = torch.rand(3, 4, 1) < 0.2, torch.rand(3, 4, 1) < 0.2
        return path_messages, (double(3, 2), opened, stayed, none & ~some, some, torch.rand(3, 2) < 0.7)
    weight, bias = double(2, 3, 9), double(2, 1, 3)
    share = torch.rand(4, 2, 5, 1, dtype=torch.float64, requires_grad=True)
    mixed = {"keep": (share, None, None), "share": (None, share, None), "other": (None, share, double(4, 2, 5, 3))}
    return _gru, (double(4, 2, 5, 9), double(2, 5, 3), *mixed[kind], weight, bias)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck looks at gradients of what is no leaf
@pytest.mark.parametrize("kind", ["carry", "messages", "keep", "share", "other"])
def test_operators_say_their_shapes_and_strides_without_computing(kind: str) -> None:
    """PyTorch's compiler relies on schema, stand-ins without data, and autograd."""
    operator, arguments = inputs(kind)
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("given", ["keep", "share", "share other", "keep share", "keep share other"])
@pytest.mark.parametrize("frames", [1, 3])
def test_gru_scan_has_the_gradient_of_its_value(frames: int, given: str) -> None:
    sizes = {"keep": (frames, 2, 2, 1), "share": (frames, 2, 2, 1), "other": (frames, 2, 2, 2)}
    mixed = [double(*size) if name in given.split() else None for name, size in sizes.items()]
    projected, start = double(frames, 2, 2, 6), double(2, 2, 2)
    weight, bias = double(2, 2, 6), double(2, 1, 2)
    assert torch.autograd.gradcheck(gru_walk, (projected, start, *mixed, weight, bias))


def test_second_derivatives_are_refused() -> None:
    """A backward written by hand from saved gates is a constant to autograd, unless marked as once differentiable."""
    projected = double(2, 1, 2, 6)
    walked = gru_walk(projected, double(1, 2, 2), None, None, None, double(1, 2, 6), double(1, 1, 2))
    with pytest.raises(RuntimeError):  # noqa: PT012 - which of the two steps refuses does not matter
        (first,) = torch.autograd.grad(walked.square().sum(), projected, create_graph=True)
        torch.autograd.grad(first.sum(), projected)


@pytest.mark.parametrize(("segments", "length"), [(3, 4), (1, 5), (None, 3)])
def test_a_gpus_sum_over_paths_is_that_of_a_cpu(segments: int | None, length: int) -> None:
    """The product with zeros and ones, which adds in one order, against adding by index."""
    grid = Grid.of(SegmentLimits(segments, length), 6, torch.device("cpu"))
    total, yes, no = (torch.randn(len(grid.opened), 5, dtype=torch.float64) for _ in range(3))
    totals = [total.clone(), total.clone()]
    for adding, result in zip((_adding_to, _product_adding_to), totals, strict=True):
        adding(grid.opened, grid.stayed, yes)(result, yes, no)
    torch.testing.assert_close(*totals, **CLOSE)
    assert not torch.allclose(totals[0], total)
