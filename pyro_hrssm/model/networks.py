"""Encoders, decoders, Gaussian heads and recurrences with resets; no Pyro.

The frame axis comes first here, `[T, B, …]`, since recurrences walk along it.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_hrssm.batching.walks import gru_walk


def widened(values: Tensor) -> Tensor:
    """A network's outputs, in float32 where `torch.autocast` computed them in bfloat16."""
    return values.float() if values.dtype is torch.bfloat16 else values


SHARP = 0.1
"""Standard deviation of q's states at the start of training, where p's is about 0.7."""


class GaussianHead(nn.Module):
    """Mean and standard deviation of a diagonal Normal: `[…, inputs] -> ([…, size], […, size])`."""

    def __init__(self, inputs: int, hidden: int, size: int, min_scale: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, 2 * size))
        self.min_scale = min_scale

    @torch.no_grad()
    def start_sharp(self) -> None:
        """Start with means that differ and with small scales, so that a draw depends clearly on the inputs.

        With PyTorch's initial weights a draw is nearly all noise, and image models took thousands of steps to put
        colours into a state. Models of vectors do not need this start: their bound came down a little more slowly.
        """
        he_normal(self.layers)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        size = last.out_features // 2
        last.weight[size:] *= 0.1
        last.bias[size:] = math.log(math.expm1(SHARP))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = widened(self.layers(features)).chunk(2, -1)
        return mean, F.softplus(raw) + self.min_scale


def _full_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """A context that turns `torch.autocast` off where it is on."""
    lowered = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if lowered else contextlib.nullcontext()


def he_normal(layers: nn.Module) -> None:
    """Draw weights that keep a signal's size from layer to layer (He et al. 2015).

    PyTorch's initial weights shrink the signal at every layer. After three convolutions and a product, the differences
    between frames were a seventieth of those in the pixels, and training rested at the mean image for hundreds of
    steps.
    """
    for layer in layers.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / _terms(layer)))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def _terms(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> float:
    """Number of products that are summed into one output."""
    if isinstance(layer, nn.ConvTranspose2d):  # the stride spreads a kernel's entries over that many outputs
        return layer.weight.shape[0] * layer.weight[0, 0].numel() / math.prod(layer.stride)
    return float(layer.weight[0].numel())


def _bias(layer: nn.Module) -> Tensor:
    bias = layer.bias
    assert isinstance(bias, Tensor)
    return bias


class DenseEncoder(nn.Module):
    """Frames of any shape to features: `[…, X…] -> […, H]`."""

    def __init__(self, frame_shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.axes = len(frame_shape)
        pixels = torch.Size(frame_shape).numel()
        self.layers = nn.Sequential(nn.Linear(pixels, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU())

    def forward(self, frames: Tensor) -> Tensor:
        return widened(self.layers(frames.flatten(-self.axes)))


class DenseDecoder(nn.Module):
    """Features to frames of any shape: `[…, H] -> […, X…]`, unbounded."""

    def __init__(self, frame_shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.frame_shape = frame_shape
        pixels = torch.Size(frame_shape).numel()
        self.layers = nn.Sequential(nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, pixels))

    def forward(self, features: Tensor) -> Tensor:
        return widened(self.layers(features)).unflatten(-1, self.frame_shape)

    def start_at(self, frame: Tensor) -> Tensor:
        """Set the initial outputs to this frame [X…], and return it."""
        _bias(self.layers[-1]).copy_(frame.flatten())
        return frame


class ConvEncoder(nn.Module):
    """Images to features by three strided convolutions: `[…, height, width, channels] -> […, H]`."""

    def __init__(self, frame_shape: tuple[int, ...], hidden: int, channels: int) -> None:
        super().__init__()
        height, width, colours = frame_shape
        self.layers = nn.Sequential(
            nn.Conv2d(colours, channels, 4, stride=2, padding=1), nn.ELU(),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), nn.ELU(),
            nn.Conv2d(2 * channels, 2 * channels, 4, stride=2, padding=1), nn.ELU(),
            nn.Flatten(), nn.Linear(2 * channels * (height // 8) * (width // 8), hidden), nn.ELU(),
        )  # fmt: skip
        he_normal(self.layers)

    def forward(self, frames: Tensor) -> Tensor:
        images = frames.flatten(0, -4).movedim(-1, 1)
        return widened(self.layers(images)).unflatten(0, frames.shape[:-3])


class ConvDecoder(nn.Module):
    """Features to images by three transposed convolutions: `[…, H] -> […, height, width, channels]`, unbounded."""

    def __init__(self, frame_shape: tuple[int, ...], hidden: int, channels: int) -> None:
        super().__init__()
        height, width, colours = frame_shape
        coarse = (height // 8, width // 8, 2 * channels)
        self.layers = nn.Sequential(
            nn.Linear(hidden, torch.Size(coarse).numel()), nn.ELU(), _Images(coarse),
            nn.ConvTranspose2d(2 * channels, 2 * channels, 4, stride=2, padding=1), nn.ELU(),
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1), nn.ELU(),
            nn.ConvTranspose2d(channels, colours, 4, stride=2, padding=1),
        )  # fmt: skip
        he_normal(self.layers)

    @property
    def last(self) -> nn.ConvTranspose2d:
        """The layer whose outputs are the pixels."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.ConvTranspose2d)
        return layer

    def forward(self, features: Tensor) -> Tensor:
        images = widened(self.layers(features.flatten(0, -2)))
        return images.movedim(1, -1).unflatten(0, features.shape[:-1])

    def start_at(self, frame: Tensor) -> Tensor:
        """Set the initial outputs to the mean colour of this frame [height, width, channels]; return those outputs."""
        colour = frame.mean((0, 1))
        _bias(self.last).copy_(colour)
        return colour.expand_as(frame)


class _Images(nn.Module):
    """`[N, height · width · channels] -> [N, channels, height, width]`, channels last in memory.

    Convolutions are faster in this memory order, and their output then has the order of the frames.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, values: Tensor) -> Tensor:
        return values.unflatten(1, self.shape).movedim(-1, 1)


class TemporalConvolution(nn.Module):
    """Convolution over time, 3 frames wide, zero beyond the ends: `[T, B, inputs] -> [T, B, outputs]`.

    The convolution is one matrix product over shifted copies, which takes half the time of a convolution kernel on a
    CPU.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.product = nn.Linear(3 * inputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        padded = F.pad(features, (0, 0, 0, 0, 1, 1))
        return self.product(torch.cat([padded[:-2], padded[1:-1], padded[2:]], -1))


class GRU(nn.Module):
    """Gated recurrent unit (Cho et al. 2014; PyTorch's convention) whose step can be mixed with another value.

    `h_t = share_t · GRU(x_t, h_{t-1}) + (1 - share_t) · other_t`, exact at 0 and 1.

    Arguments of the call:
        inputs: [T, B, inputs].
        start: [B, H], h_{-1}.
        share: [T, B, 1]; gradients reach it.
        other: [T, B, H]; None for h_{t-1}, which a share of 0 then keeps.
    Returns [T, B, H].
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(
        self, inputs: Tensor, start: Tensor, share: Tensor | None = None, other: Tensor | None = None
    ) -> Tensor:
        bias, candidate_bias = _split_bias(self.recurrent.bias)
        projected = F.linear(inputs, self.input.weight, self.input.bias + bias)
        mixed = [None if value is None else value.unsqueeze(1) for value in (share, other)]
        weight = self.recurrent.weight.T.unsqueeze(0)
        walked = _walk(projected.unsqueeze(1), start.unsqueeze(0), None, *mixed, weight, candidate_bias.view(1, 1, -1))
        return walked.squeeze(1)


def _split_bias(bias: Tensor) -> tuple[Tensor, Tensor]:
    """Split a recurrent bias [..., 3H]: a part to add to the input's projection, and the candidate's [..., H]."""
    width = bias.shape[-1] // 3
    return F.pad(bias[..., : 2 * width], (0, width)), bias[..., 2 * width :]


class StackedGRU(nn.Module):
    """Several independent GRUs walked side by side, each with resets: one product per frame for all of them.

    `h_t = GRU(x_t, k_t · h_{t-1})` with `h_{-1} = 0`; `k_t` is 1 to go on and 0 to start afresh.

    Arguments of the call:
        inputs: one [T, B, inputs] per GRU.
        keep: one [T, B] of factors k per GRU; gradients reach them.
        members: which of the GRUs walk; all by default.
        start: [members, B, H] h_{-1}; zeros by default.
    Returns one [T, B, H] per GRU.
    """

    def __init__(self, count: int, inputs: int, hidden: int) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.projections = nn.ModuleList(nn.Linear(inputs, 3 * hidden) for _ in range(count))
        for parameter in self.projections.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        self.weight = nn.Parameter(torch.empty(count, hidden, 3 * hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, 3 * hidden).uniform_(-bound, bound))

    def forward(
        self, inputs: list[Tensor], keep: list[Tensor], members: slice = slice(None), start: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        biases, candidate_bias = _split_bias(self.bias[members])
        layers = cast("list[nn.Linear]", list(self.projections[members]))
        walking = zip(layers, inputs, biases.squeeze(1), strict=True)
        projected = torch.stack([F.linear(x, layer.weight, layer.bias + bias) for layer, x, bias in walking], 1)
        factors = torch.stack(keep, 1).unsqueeze(-1)
        if start is None:
            start = self.weight.new_zeros(*projected.shape[1:3], self.weight.shape[1])
        return _walk(projected, start, factors, None, None, self.weight[members], candidate_bias).unbind(1)


def _walk(projected: Tensor, *arguments: Any) -> Tensor:
    """Walk in float32 whatever the surrounding precision, since errors would add up along the frames."""
    with _full_precision(projected.device.type):
        return gru_walk(widened(projected), *arguments)
