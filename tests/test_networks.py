"""Networks against PyTorch's own layers, plain loops and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pyro_hrssm.networks import (
    ConvDecoder,
    ConvEncoder,
    Deferred,
    DenseDecoder,
    DenseEncoder,
    GaussianHead,
    GRUCell,
    StackedGRU,
    TemporalConvolution,
    _GRUGates,
    _GRUScan,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # the same sums in another order, in double


def double(*shape: int, gradient: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(gradient)


# Recurrences


def torch_cell(cell: GRUCell, inputs: int, hidden: int) -> nn.GRUCell:
    """PyTorch's cell with the same weights."""
    twin = nn.GRUCell(inputs, hidden, dtype=torch.float64)
    twin.load_state_dict(
        {
            "weight_ih": cell.input.weight,
            "bias_ih": cell.input.bias,
            "weight_hh": cell.recurrent.weight,
            "bias_hh": cell.recurrent.bias,
        }
    )
    return twin


def test_gru_cell_is_pytorchs() -> None:
    cell = GRUCell(3, 4).double()
    twin = torch_cell(cell, 3, 4)
    inputs, belief = double(5, 3, gradient=True), double(5, 4, gradient=True)
    found, expected = cell(inputs, belief), twin(inputs, belief)
    torch.testing.assert_close(found, expected, **CLOSE)
    weight = double(5, 4)
    of_cell = [inputs, belief, cell.input.weight, cell.input.bias, cell.recurrent.weight, cell.recurrent.bias]
    of_twin = [inputs, belief, twin.weight_ih, twin.bias_ih, twin.weight_hh, twin.bias_hh]
    torch.testing.assert_close(
        torch.autograd.grad((weight * found).sum(), of_cell),
        torch.autograd.grad((weight * expected).sum(), of_twin),
        **CLOSE,
    )


def test_gru_cell_takes_any_batch_dimensions() -> None:
    cell = GRUCell(3, 4).double()
    inputs, belief = double(2, 5, 3), double(2, 5, 4)
    together = cell(inputs, belief)
    torch.testing.assert_close(
        together, torch.stack([cell(*rows) for rows in zip(inputs, belief, strict=True)]), **CLOSE
    )
    assert cell(inputs[0, 0], belief[0, 0]).shape == (4,)


def test_gru_cell_starts_like_pytorchs() -> None:
    for parameter in GRUCell(3, 16).parameters():
        assert parameter.abs().max() <= 16**-0.5
        assert parameter.std() > 0


def test_gru_gates_have_the_gradient_of_their_value() -> None:
    inputs = (double(2, 3, 9, gradient=True), double(2, 3, 9, gradient=True), double(2, 3, 3, gradient=True))
    assert torch.autograd.gradcheck(_GRUGates.apply, inputs)


def plain_walk(stack: StackedGRU, member: int, inputs: Tensor, keep: Tensor) -> Tensor:
    """`h_t = GRU(x_t, k_t · h_{t-1})` by PyTorch's cell and autograd."""
    layer = stack.projections[member]
    belief = inputs.new_zeros(inputs.shape[1], stack.weight.shape[1])
    beliefs = []
    for x, k in zip(inputs, keep, strict=True):
        belief = torch.gru_cell(
            x, k[:, None] * belief, layer.weight, stack.weight[member].T, layer.bias, stack.bias[member, 0]
        )
        beliefs.append(belief)
    return torch.stack(beliefs)


def stacked_inputs(members: int, frames: int, kind: str) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs [T, 2, 3] and factors [T, 2] for each of the members."""
    inputs = [double(frames, 2, 3, gradient=True) for _ in range(members)]
    if kind == "resets":
        keep = [(torch.rand(frames, 2) < 0.6).double().requires_grad_() for _ in range(members)]
    else:
        keep = [torch.rand(frames, 2, dtype=torch.float64, requires_grad=True) for _ in range(members)]
    return inputs, keep


@pytest.mark.parametrize("kind", ["resets", "factors"])
@pytest.mark.parametrize("frames", [1, 2, 6])
@pytest.mark.parametrize("members", [slice(None), slice(0, 1), slice(1, 3), slice(2, 3)])
def test_stacked_gru_is_a_plain_loop(members: slice, frames: int, kind: str) -> None:
    stack = StackedGRU(3, 3, 4).double()
    walking = range(3)[members]
    inputs, keep = stacked_inputs(len(walking), frames, kind)
    found = stack(inputs, keep) if members == slice(None) else stack(inputs, keep, members)
    expected = tuple(plain_walk(stack, *walk) for walk in zip(walking, inputs, keep, strict=True))
    torch.testing.assert_close(found, expected, **CLOSE)

    weights = [double(frames, 2, 4) for _ in walking]
    leaves = [*inputs, *keep, *stack.parameters()]
    gradients = [
        torch.autograd.grad(
            sum((weight * belief).sum() for weight, belief in zip(weights, beliefs, strict=True)),
            leaves,
            allow_unused=True,  # projections of those that do not walk
            materialize_grads=True,
        )
        for beliefs in (found, expected)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], **CLOSE)


def test_stacked_gru_has_gradients_where_one_output_of_one_frame_is_used() -> None:
    stack = StackedGRU(3, 3, 4).double()
    inputs, keep = stacked_inputs(3, 5, "factors")
    leaves = [*inputs, *keep, *stack.parameters()]
    found = stack(inputs, keep)[1][2].sum()
    expected = plain_walk(stack, 1, inputs[1], keep[1])[2].sum()
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, materialize_grads=True),
        torch.autograd.grad(expected, leaves, materialize_grads=True, allow_unused=True),
        **CLOSE,
    )


def test_a_reset_forgets_what_was_before() -> None:
    stack = StackedGRU(1, 3, 4).double()
    inputs, keep = double(6, 2, 3), torch.ones(6, 2, dtype=torch.float64)
    keep[3] = 0
    whole = stack([inputs], [keep])[0]
    afresh = stack([inputs[3:]], [keep[3:]])[0]
    torch.testing.assert_close(whole[3:], afresh, **CLOSE)


@pytest.mark.parametrize("frames", [1, 3])
def test_gru_scan_has_the_gradient_of_its_value(frames: int) -> None:
    projected, factors = double(frames, 2, 2, 6, gradient=True), double(frames, 2, 2, 1, gradient=True)
    weight, bias = double(2, 2, 6, gradient=True), double(2, 1, 6, gradient=True)
    assert torch.autograd.gradcheck(_GRUScan.apply, (projected, factors, weight, bias))


@pytest.mark.parametrize("function", [_GRUGates, _GRUScan])
def test_second_derivatives_are_refused(function: Any) -> None:
    """A backward written by hand from saved gates is a constant to autograd, unless marked as once differentiable."""
    if function is _GRUGates:
        inputs = [double(2, 6, gradient=True), double(2, 6), double(2, 2)]
    else:
        inputs = [double(2, 1, 2, 6, gradient=True), double(2, 1, 2, 1), double(1, 2, 6), double(1, 1, 6)]
    with pytest.raises(RuntimeError):  # noqa: PT012 - which of the two steps refuses does not matter
        (first,) = torch.autograd.grad(function.apply(*inputs).square().sum(), inputs[0], create_graph=True)
        torch.autograd.grad(first.sum(), inputs[0])


# Encoders, decoders, heads


def test_temporal_convolution_is_pytorchs() -> None:
    layer = TemporalConvolution(3, 5).double()
    twin = nn.Conv1d(3, 5, 3, padding=1, dtype=torch.float64)
    # One matrix [outputs, 3 · inputs], the earliest frame first.
    twin.load_state_dict({"weight": layer.product.weight.unflatten(1, (3, 3)).mT, "bias": layer.product.bias})
    for frames in (1, 2, 7):
        features = double(frames, 2, 3)
        expected = twin(features.permute(1, 2, 0)).permute(2, 0, 1)
        torch.testing.assert_close(layer(features), expected, **CLOSE)


@pytest.mark.parametrize("lead", [(), (4,), (3, 4)])
@pytest.mark.parametrize("frame_shape", [(5,), (1,), (8, 6), (4, 4, 3)])
def test_dense_networks_keep_leading_shapes(frame_shape: tuple[int, ...], lead: tuple[int, ...]) -> None:
    encoder, decoder = DenseEncoder(frame_shape, 8), DenseDecoder(frame_shape, 8)
    features = encoder(torch.rand(*lead, *frame_shape))
    assert features.shape == (*lead, 8)
    assert decoder(features).shape == (*lead, *frame_shape)


@pytest.mark.parametrize("lead", [(4,), (3, 4), (2, 1, 3)])
@pytest.mark.parametrize("frame_shape", [(8, 8, 1), (16, 24, 3)])
def test_convolutions_keep_leading_shapes(frame_shape: tuple[int, ...], lead: tuple[int, ...]) -> None:
    encoder, decoder = ConvEncoder(frame_shape, 8, 4), ConvDecoder(frame_shape, 8, 4)
    frames = torch.rand(*lead, *frame_shape)
    features = encoder(frames)
    assert features.shape == (*lead, 8)
    decoded = decoder(features)
    assert decoded.shape == (*lead, *frame_shape)
    # No frame reads another's pixels; float32, one product of another shape.
    last = (-1,) * len(lead)
    torch.testing.assert_close(encoder(frames[last][None])[0], features[last], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(decoder(features[last][None])[0], decoded[last], rtol=1e-5, atol=1e-6)


def test_convolutions_read_channels_last() -> None:
    encoder = ConvEncoder((8, 16, 3), 8, 4).double()
    frames = double(2, 8, 16, 3)
    convolution = encoder.layers[0]
    torch.testing.assert_close(encoder(frames), encoder.layers(frames.permute(0, 3, 1, 2)), **CLOSE)
    assert convolution.weight.shape[1] == 3


def test_convolutions_pass_signals_on_undiminished() -> None:
    """A new encoder tells frames apart, a new decoder draws features apart: neither fades nor explodes."""
    torch.manual_seed(0)
    encoded = ConvEncoder((32, 32, 3), 64, 16)(torch.rand(200, 32, 32, 3).round())
    decoded = ConvDecoder((32, 32, 3), 64, 16)(torch.randn(200, 64).tanh())
    for outputs in (encoded, decoded):
        assert 0.2 < outputs.std(0).mean() < 2  # with PyTorch's own weights 0.03 and 0.02


def test_gaussian_head_is_a_normals_mean_and_scale() -> None:
    head = GaussianHead(6, 8, 3, 0.25).double()
    features = double(2, 5, 6)
    mean, scale = head(features)
    hidden = F.elu(F.linear(features, head.layers[0].weight, head.layers[0].bias))
    outputs = F.linear(hidden, head.layers[2].weight, head.layers[2].bias)
    torch.testing.assert_close(mean, outputs[..., :3], **CLOSE)
    torch.testing.assert_close(scale, outputs[..., 3:].exp().log1p() + 0.25, **CLOSE)


def test_gaussian_head_never_falls_below_its_floor() -> None:
    head = GaussianHead(6, 8, 3, 1e-2)
    with torch.no_grad():
        head.layers[2].bias.fill_(-1e4)
    mean, scale = head(torch.randn(100, 6, requires_grad=True))
    torch.testing.assert_close(scale, torch.full_like(scale, 1e-2), rtol=0, atol=0)
    # The log density of a Normal, where a scale of 0 would give a NaN.
    (scale.log() + mean / scale).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters() if parameter.grad is not None)


# Deferred application


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
