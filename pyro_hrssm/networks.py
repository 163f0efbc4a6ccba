"""Encoders, decoders, Gaussian heads and recurrences with resets; no Pyro.

Frames come first here: `[T, B, …]`, since recurrences walk along them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def whole(values: Tensor) -> Tensor:
    """What a network gives, in float32 also where `torch.autocast` computed it in bfloat16."""
    lowered = values.dtype is torch.bfloat16 and torch.is_autocast_enabled(values.device.type)
    return values.float() if lowered else values


class GaussianHead(nn.Module):
    """Mean and standard deviation of a diagonal Normal: `[…, inputs] -> ([…, size], […, size])`."""

    def __init__(self, inputs: int, hidden: int, size: int, min_scale: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, 2 * size))
        self.min_scale = min_scale

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = whole(self.layers(features)).chunk(2, -1)
        return mean, F.softplus(raw) + self.min_scale


class Deferred:
    """A network applied to many frames at once, when the first of their outputs is asked for.

    In training every latent site is replayed, so that nobody asks for a prior's parameters inside the
    loop over frames: the heads of all frames then take one product. Where a site is drawn from its prior
    it asks at once, and gets what it would have got frame by frame.

    Arguments:
        network: maps tensors [n, B, …], n frames, to a tuple of tensors [n, B, …].
    """

    def __init__(self, network: Callable[..., tuple[Tensor, ...]]) -> None:
        self._network = network
        self._precision = _autocast_now()
        self._waiting: list[tuple[Tensor, ...]] = []
        self._done: list[tuple[Tensor, ...]] = []
        self._frames: list[tuple[Tensor, ...]] = []

    def add(self, *inputs: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        """Hand in the next frame's inputs, [B, …] each; the result gives its outputs, [B, …] each."""
        self._waiting.append(inputs)
        return partial(self._frame, len(self._frames) + len(self._waiting) - 1)

    def all(self) -> tuple[Tensor, ...]:
        """The outputs of every frame handed in, [frames, B, …] each."""
        self._run()
        parts = tuple(zip(*self._done, strict=True))
        return tuple(part[0] if len(part) == 1 else torch.cat(part) for part in parts)

    def _frame(self, index: int) -> tuple[Tensor, ...]:
        self._run()
        return self._frames[index]

    def _run(self) -> None:
        if not self._waiting:
            return
        # Whoever asks may have left the precision in which the frames were handed in.
        with self._precision():
            outputs = self._network(*(torch.stack(inputs) for inputs in zip(*self._waiting, strict=True)))
        self._done.append(outputs)
        self._frames.extend(zip(*(output.unbind(0) for output in outputs), strict=True))
        self._waiting.clear()


def _autocast_now() -> Callable[[], contextlib.AbstractContextManager[object]]:
    """Makes contexts of the precision in force here."""
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            return partial(torch.autocast, device, torch.get_autocast_dtype(device))
    return contextlib.nullcontext


def _full_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """Where `torch.autocast` is on, it is off within."""
    lowered = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if lowered else contextlib.nullcontext()


def he_normal(layers: nn.Module) -> None:
    """Draw weights that keep a signal's size from layer to layer (He et al. 2015).

    PyTorch's own shrink it at every layer. After three convolutions and a product, what tells one frame from
    another was a seventieth of what it is in the pixels, and training rested at the mean image for hundreds of steps.
    """
    for layer in layers.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / _terms(layer)))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def _terms(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> float:
    """Products that one output adds up."""
    if isinstance(layer, nn.ConvTranspose2d):  # the stride spreads a kernel's entries over as many outputs
        return layer.weight.shape[0] * layer.weight[0, 0].numel() / math.prod(layer.stride)
    return float(layer.weight[0].numel())


class DenseEncoder(nn.Module):
    """Frames of any shape to features: `[…, X…] -> […, H]`."""

    def __init__(self, frame_shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.axes = len(frame_shape)
        pixels = torch.Size(frame_shape).numel()
        self.layers = nn.Sequential(nn.Linear(pixels, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU())

    def forward(self, frames: Tensor) -> Tensor:
        return whole(self.layers(frames.flatten(-self.axes)))


class DenseDecoder(nn.Module):
    """Features to frames of any shape: `[…, H] -> […, X…]`, unbounded."""

    def __init__(self, frame_shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.frame_shape = frame_shape
        pixels = torch.Size(frame_shape).numel()
        self.layers = nn.Sequential(nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, pixels))

    def forward(self, features: Tensor) -> Tensor:
        return whole(self.layers(features)).unflatten(-1, self.frame_shape)


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
        return whole(self.layers(images)).unflatten(0, frames.shape[:-3])


class ConvDecoder(nn.Module):
    """Features to images by three transposed convolutions: `[…, H] -> […, height, width, channels]`, unbounded."""

    def __init__(self, frame_shape: tuple[int, ...], hidden: int, channels: int) -> None:
        super().__init__()
        height, width, colours = frame_shape
        coarse = (2 * channels, height // 8, width // 8)
        self.layers = nn.Sequential(
            nn.Linear(hidden, torch.Size(coarse).numel()), nn.ELU(), nn.Unflatten(1, coarse),
            nn.ConvTranspose2d(2 * channels, 2 * channels, 4, stride=2, padding=1), nn.ELU(),
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1), nn.ELU(),
            nn.ConvTranspose2d(channels, colours, 4, stride=2, padding=1),
        )  # fmt: skip
        he_normal(self.layers)

    def forward(self, features: Tensor) -> Tensor:
        images = whole(self.layers(features.flatten(0, -2)))
        return images.movedim(1, -1).unflatten(0, features.shape[:-1])


class TemporalConvolution(nn.Module):
    """Convolution over time, 3 frames wide, zero beyond the ends: `[T, B, inputs] -> [T, B, outputs]`.

    One matrix product over shifted copies, which on a CPU takes half the time of a convolution kernel.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.product = nn.Linear(3 * inputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        padded = F.pad(features, (0, 0, 0, 0, 1, 1))
        return self.product(torch.cat([padded[:-2], padded[1:-1], padded[2:]], -1))


class GRUCell(nn.Module):
    """One step of a gated recurrent unit (Cho et al. 2014; PyTorch's convention): `[…, inputs], […, H] -> […, H]`."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, inputs: Tensor, belief: Tensor) -> Tensor:
        projected, recurrent = (whole(part) for part in (self.input(inputs), self.recurrent(belief)))
        return _GRUGates.apply(projected, recurrent, belief)


def _gates(projected: Tensor, recurrent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reset gate, update gate and candidate from the projections of input and belief, [..., 3H] each."""
    width = projected.shape[-1] // 3
    both = (projected[..., : 2 * width] + recurrent[..., : 2 * width]).sigmoid_()
    reset, update = both[..., :width], both[..., width:]
    candidate = torch.addcmul(projected[..., 2 * width :], reset, recurrent[..., 2 * width :]).tanh_()
    return reset, update, candidate


def _gates_backward(
    gradient: Tensor,
    belief: Tensor,
    gates: tuple[Tensor, Tensor, Tensor],
    recurrent_candidate: Tensor,
    d_projected: Tensor,
    d_recurrent: Tensor,
) -> Tensor:
    """Fill the gradients of both projections, [..., 3H] each; return that of the belief kept, [..., H]."""
    reset, update, candidate = gates
    width = belief.shape[-1]
    through = gradient * update
    fresh = gradient - through
    d_candidate = d_projected[..., 2 * width :]
    # 1 - a² by addcmul: one kernel and no temporary.
    torch.mul(fresh, torch.addcmul(_one_like(candidate), candidate, candidate, value=-1), out=d_candidate)
    torch.mul((belief - candidate).mul_(fresh), update, out=d_projected[..., width : 2 * width])
    torch.mul(d_candidate, reset, out=d_recurrent[..., 2 * width :])
    kept = torch.addcmul(recurrent_candidate, recurrent_candidate, reset, value=-1)
    torch.mul(d_recurrent[..., 2 * width :], kept, out=d_projected[..., :width])
    d_recurrent[..., : 2 * width] = d_projected[..., : 2 * width]
    return through


def _one_like(value: Tensor) -> Tensor:
    return value.new_ones(()).expand_as(value)


class _GRUGates(torch.autograd.Function):
    """The pointwise part of a GRU step with its backward written out: a third of autograd's kernels."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, recurrent: Tensor, belief: Tensor) -> Tensor:
        reset, update, candidate = _gates(projected, recurrent)
        ctx.save_for_backward(belief, reset, update, candidate, recurrent)
        return torch.lerp(candidate, belief, update)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        belief, reset, update, candidate, recurrent = ctx.saved_tensors
        width = belief.shape[-1]
        d_projected, d_recurrent = torch.empty_like(recurrent), torch.empty_like(recurrent)
        through = _gates_backward(
            gradients[0], belief, (reset, update, candidate), recurrent[..., 2 * width :], d_projected, d_recurrent
        )
        return d_projected, d_recurrent, through


class StackedGRU(nn.Module):
    """Several independent GRUs walked side by side, each with resets: one product per frame for all of them.

    `h_t = GRU(x_t, k_t · h_{t-1})` with `h_{-1} = 0`; `k_t` is 1 to go on and 0 to start afresh.

    Arguments of the call:
        inputs: one [T, B, inputs] per GRU.
        keep: one [T, B] of factors k per GRU; gradients reach them.
        members: which of the GRUs walk; all by default.
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

    def forward(self, inputs: list[Tensor], keep: list[Tensor], members: slice = slice(None)) -> tuple[Tensor, ...]:
        projections = zip(self.projections[members], inputs, strict=True)
        projected = whole(torch.stack([layer(x) for layer, x in projections], 1))
        factors = torch.stack(keep, 1).unsqueeze(-1)
        with _full_precision(projected.device.type):  # errors would add up along the walk
            return _GRUScan.apply(projected, factors, self.weight[members], self.bias[members]).unbind(1)


class _GRUScan(torch.autograd.Function):
    """The walk of :class:`StackedGRU` with its backward written out.

    Autograd would add a product for the recurrent weights at every frame; here one at the end serves all.
    Shapes: projected [T, D, B, 3H], keep [T, D, B, 1], weight [D, H, 3H], bias [D, 1, 3H] -> [T, D, B, H].
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, keep: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        frames, count, size, width = *projected.shape[:3], weight.shape[1]
        beliefs = projected.new_empty(frames, count, size, width)
        saved = projected.new_empty(frames, 5, count, size, width)
        belief = projected.new_zeros(count, size, width)
        for t in range(frames):
            kept, reset, update, candidate, recurrent_candidate = saved[t]
            torch.mul(belief, keep[t], out=kept)
            recurrent = torch.baddbmm(bias, kept, weight)
            gates = _gates(projected[t], recurrent)
            for slot, gate in zip((reset, update, candidate), gates, strict=True):
                slot.copy_(gate)
            recurrent_candidate.copy_(recurrent[..., 2 * width :])
            belief = beliefs[t]
            torch.lerp(candidate, kept, update, out=belief)
        ctx.save_for_backward(keep, weight, beliefs, saved)
        return beliefs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        keep, weight, beliefs, saved = ctx.saved_tensors
        frames, count, size, width = beliefs.shape
        transposed = weight.transpose(1, 2)
        d_projected = beliefs.new_empty(frames, count, size, 3 * width)
        d_recurrent = beliefs.new_empty(count, frames, size, 3 * width)
        d_kept = torch.empty_like(beliefs)
        carried = torch.zeros_like(beliefs[0])
        for t in reversed(range(frames)):
            kept, reset, update, candidate, recurrent_candidate = saved[t]
            through = _gates_backward(
                gradients[0][t] + carried, kept, (reset, update, candidate), recurrent_candidate,
                d_projected[t], d_recurrent[:, t],
            )  # fmt: skip
            torch.baddbmm(through, d_recurrent[:, t], transposed, out=d_kept[t])
            carried = d_kept[t] * keep[t]
        before = torch.cat([torch.zeros_like(beliefs[:1]), beliefs[:-1]])
        d_keep = (d_kept * before).sum(-1, keepdim=True)
        kept_all = saved[:, 0].transpose(0, 1).reshape(count, frames * size, width)
        d_recurrent = d_recurrent.reshape(count, frames * size, 3 * width)
        d_weight = torch.bmm(kept_all.transpose(1, 2), d_recurrent)
        return d_projected, d_keep, d_weight, d_recurrent.sum(1, keepdim=True)
