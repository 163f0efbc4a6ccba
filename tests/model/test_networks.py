"""Networks against PyTorch's own layers, plain loops and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.model.levels import FIRST_NOISE, SMALLEST_MEAN, SMALLEST_NOISE, Emission
from pyro_hrssm.model.networks import (
    GRU,
    SHARP,
    ConvDecoder,
    ConvEncoder,
    DenseDecoder,
    DenseEncoder,
    GaussianHead,
    StackedGRU,
    TemporalConvolution,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # the same sums in another order, in double


def double(*shape: int, gradient: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(gradient)


# Recurrences


def mixed_walk(gru: GRU, inputs: Tensor, start: Tensor, share: Tensor | None, other: Tensor | None) -> Tensor:
    """`h_t = share_t · GRU(x_t, h_{t-1}) + (1 - share_t) · other_t` by PyTorch's cell and autograd."""
    belief, beliefs = start, []
    for t, x in enumerate(inputs):
        stepped = torch.gru_cell(x, belief, gru.input.weight, gru.recurrent.weight, gru.input.bias, gru.recurrent.bias)
        if share is not None:
            stepped = share[t] * stepped + (1 - share[t]) * (belief if other is None else other[t])
        belief = stepped
        beliefs.append(belief)
    return torch.stack(beliefs)


@pytest.mark.parametrize("mixed", ["", "share", "share other"])
@pytest.mark.parametrize("frames", [1, 2, 6])
def test_gru_is_a_plain_loop(frames: int, mixed: str) -> None:
    gru = GRU(3, 4).double()
    inputs, start = double(frames, 2, 3, gradient=True), double(2, 4, gradient=True)
    share = torch.rand(frames, 2, 1, dtype=torch.float64, requires_grad=True) if "share" in mixed else None
    other = double(frames, 2, 4, gradient=True) if "other" in mixed else None
    found, expected = gru(inputs, start, share, other), mixed_walk(gru, inputs, start, share, other)
    torch.testing.assert_close(found, expected, **CLOSE)
    weight = double(frames, 2, 4)
    leaves = [value for value in (inputs, start, share, other) if value is not None] + list(gru.parameters())
    gradients = [torch.autograd.grad((weight * walked).sum(), leaves) for walked in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], **CLOSE)


def test_shares_of_0_and_1_are_exact() -> None:
    gru = GRU(3, 4)
    inputs, start, other = torch.randn(2, 5, 3), torch.randn(5, 4), torch.randn(2, 5, 4)
    share = torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 5, 1)
    kept = gru(inputs, start, share)
    assert torch.equal(kept[0], start)
    torch.testing.assert_close(kept[1], gru(inputs[1:], start)[0], rtol=0, atol=0)
    assert torch.equal(gru(inputs, start, share, other)[0], other[0])


def test_gru_starts_like_pytorchs() -> None:
    for parameter in GRU(3, 16).parameters():
        assert parameter.abs().max() <= 16**-0.5
        assert parameter.std() > 0


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
    """A new encoder separates frames and a new decoder separates features: the signal neither fades nor explodes."""
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


def test_a_sharp_start_tells_inputs_apart() -> None:
    """A new head's draws differ between inputs by several times their own noise; PyTorch's own hardly differ."""
    spreads = []
    for sharp in (False, True):
        torch.manual_seed(1)
        head = GaussianHead(64, 64, 8, 1e-2)
        if sharp:
            head.start_sharp()
        mean, scale = head(torch.randn(500, 64))
        spreads.append((mean.std(0) / scale.mean(0)).mean().item())
        if sharp:
            # softplus of the bias is SHARP; a tenth of a He weight moves it little.
            assert scale.median().item() == pytest.approx(SHARP + 1e-2, rel=0.2)
    assert spreads[0] < 0.5
    assert spreads[1] > 5


@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
@pytest.mark.parametrize("frame_shape", [(5,), (4, 3), (8, 16, 3)])
def test_an_emission_starts_at_the_mean_frame(frame_shape: tuple[int, ...], likelihood: str) -> None:
    images = len(frame_shape) == 3
    config = HRSSMConfig(
        frame_shape=frame_shape, networks="conv" if images else "mlp", hidden=8, channels=2, likelihood=likelihood
    )
    emission = Emission(config)
    frame = torch.rand(frame_shape)
    frame.flatten()[0] = 0.0 if likelihood == "bernoulli" else -3.0
    emission.start_at(frame, torch.ones(frame_shape))
    with torch.no_grad():
        for weight in (list(emission.decoder.parameters())[-2],):
            weight.zero_()  # nothing but the last bias is left
        mean = emission.frames(torch.randn(6, 8)).mean
    expected = frame.clamp(SMALLEST_MEAN, 1 - SMALLEST_MEAN) if likelihood == "bernoulli" else frame
    if images:  # one bias per colour: the mean of the frame's logits, or of its values
        scale = torch.logit(expected) if likelihood == "bernoulli" else expected
        expected = scale.mean((0, 1)).expand(frame_shape)
        expected = torch.sigmoid(expected) if likelihood == "bernoulli" else expected
    torch.testing.assert_close(mean, expected.expand(6, *frame_shape), rtol=1e-4, atol=1e-5)


def test_learned_noise_starts_at_a_share_of_each_entry_s_spread() -> None:
    emission = Emission(HRSSMConfig(frame_shape=(3,), networks="mlp", hidden=8, likelihood="normal"))
    emission.start_at(torch.zeros(3), torch.tensor([1.0, 2.0, 0.0]))
    noise = emission.frames(torch.randn(5, 8)).base_dist.scale
    expected = SMALLEST_NOISE + torch.tensor([FIRST_NOISE, 2 * FIRST_NOISE, SMALLEST_NOISE])
    torch.testing.assert_close(noise, expected.expand(5, 3))


def test_learned_noise_of_images_starts_at_what_one_colour_leaves() -> None:
    """A convolutional decoder starts at the mean colour, so that pixels which never move are far from it too."""
    sizes = {"frame_shape": (8, 8, 1), "networks": "conv", "hidden": 8, "channels": 2, "likelihood": "normal"}
    emission = Emission(HRSSMConfig(**sizes))  # type: ignore[arg-type]
    background = torch.zeros(8, 8, 1)
    background[:4] = 2.0
    emission.start_at(background, torch.zeros(8, 8, 1))
    noise = emission.noise(torch.zeros(8, 8, 1))
    torch.testing.assert_close(noise, torch.full((8, 8, 1), SMALLEST_NOISE + FIRST_NOISE))


@pytest.mark.parametrize("fixed", [0.3, 2.0])
def test_a_fixed_noise_has_no_parameter(fixed: float) -> None:
    config = HRSSMConfig(frame_shape=(3,), networks="mlp", hidden=8, likelihood="normal", noise_scale=fixed)
    emission = Emission(config)
    emission.start_at(torch.zeros(3), torch.full((3,), 5.0))
    assert "log_noise" not in dict(emission.named_parameters())
    torch.testing.assert_close(emission.frames(torch.randn(5, 8)).base_dist.scale, torch.full((5, 3), fixed))
