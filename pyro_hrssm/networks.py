"""Encoders, decoders, Gaussian heads and recurrences with resets; no Pyro.

Frames come first here: `[T, B, …]`, since recurrences walk along them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ENTRIES_IN_CACHE = 2**16
"""Numbers that a loop works on at once: half a MiB of float32, which a processor's own cache holds."""


def whole(values: Tensor) -> Tensor:
    """What a network gives, in float32 also where `torch.autocast` computed it in bfloat16."""
    return values.float() if values.dtype is torch.bfloat16 else values


class GaussianHead(nn.Module):
    """Mean and standard deviation of a diagonal Normal: `[…, inputs] -> ([…, size], […, size])`."""

    def __init__(self, inputs: int, hidden: int, size: int, min_scale: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, 2 * size))
        self.min_scale = min_scale

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = whole(self.layers(features)).chunk(2, -1)
        return mean, F.softplus(raw) + self.min_scale


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


class GRU(nn.Module):
    """Gated recurrent unit (Cho et al. 2014; PyTorch's convention) whose step can be mixed with something else.

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
        walked = _scan(projected.unsqueeze(1), start.unsqueeze(0), None, *mixed, weight, candidate_bias.view(1, 1, -1))
        return walked.squeeze(1)


def _split_bias(bias: Tensor) -> tuple[Tensor, Tensor]:
    """A recurrent bias [..., 3H]: what may as well be added to the input's projection, and the candidate's [..., H]."""
    width = bias.shape[-1] // 3
    return F.pad(bias[..., : 2 * width], (0, width)), bias[..., 2 * width :]


def carried(before: Tensor, new: Tensor, updates: Tensor) -> Tensor:
    """`z_t = u_t · new_t + (1 - u_t) · z_{t-1}`, exact at 0 and 1: what was, kept until it is replaced.

    Arguments:
        before: [B, …], z one frame before.
        new: [T, B, …].
        updates: [T, B] factors u; gradients reach them.
    Returns [T, B, …].
    """
    walked: Tensor = _Carry.apply(before, new, updates.view(*updates.shape, *[1] * (new.dim() - 2)))
    return walked


class _Carry(torch.autograd.Function):
    """The walk of :func:`carried`: a third of the kernels that autograd would take."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, new: Tensor, updates: Tensor) -> Tensor:
        values = torch.empty_like(new)
        value = before
        for fresh, update, place in zip(new.unbind(0), updates.unbind(0), values.unbind(0), strict=True):
            value = torch.lerp(value, fresh, update, out=place)
        ctx.save_for_backward(before, new, updates, values)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        before, new, updates, values = ctx.saved_tensors
        d_values, d_new = torch.empty_like(new), torch.empty_like(new)
        later = torch.zeros_like(before)
        each = list(zip(gradients[0], updates, d_values, d_new, strict=True))
        for given, update, d_value, d_fresh in reversed(each):
            torch.add(given, later, out=d_value)
            later = d_value - torch.mul(d_value, update, out=d_fresh)
        d_updates = None
        if ctx.needs_input_grad[2]:
            kept = torch.cat([before.unsqueeze(0), values[:-1]])
            d_updates = ((new - kept) * d_values).sum_to_size(updates.shape)
        return later, d_new, d_updates


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
        biases, candidate_bias = _split_bias(self.bias[members])
        walking = zip(self.projections[members], inputs, biases.squeeze(1), strict=True)
        projected = torch.stack([F.linear(x, layer.weight, layer.bias + bias) for layer, x, bias in walking], 1)
        factors = torch.stack(keep, 1).unsqueeze(-1)
        start = self.weight.new_zeros(*projected.shape[1:3], self.weight.shape[1])
        return _scan(projected, start, factors, None, None, self.weight[members], candidate_bias).unbind(1)


def _scan(projected: Tensor, *arguments: Tensor | None) -> Tensor:
    """The walk in float32, whatever the precision around it: errors would add up along the way."""
    with _full_precision(projected.device.type):
        walked: Tensor = _GRUScan.apply(whole(projected), *arguments)
    return walked


class _GRUScan(torch.autograd.Function):
    """The walk of :class:`StackedGRU` and :class:`GRU` with its backward written out.

        h_t = share_t · GRU(x_t, keep_t · h_{t-1}) + (1 - share_t) · other_t

    Autograd would add a product for the recurrent weights at every frame; here one at the end serves all. What each
    gradient is multiplied by does not depend on it, so that it is made for all frames at once, before the walk back.
    Shapes: projected [T, D, B, 3H], start [D, B, H], keep and share [T, D, B, 1] or None for 1, other [T, D, B, H] or
    None for h_{t-1}, weight [D, H, 3H], bias of the candidate [D, 1, H] -> [T, D, B, H].
    """

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        start: Tensor,
        keep: Tensor | None,
        share: Tensor | None,
        other: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        frames, count, size, width = *projected.shape[:3], weight.shape[1]
        beliefs, gates = (
            projected.new_empty(frames, count, size, width),
            projected.new_empty(frames, 4, count, size, width),
        )
        kept = beliefs if keep is None else torch.empty_like(beliefs)
        products = projected.new_empty(count, size, 3 * width)
        for_reset, for_update, for_candidate = products.split(width, -1)
        belief = start
        for t, (x, gate) in enumerate(zip(projected.unbind(0), gates.unbind(0), strict=True)):
            reset, update, candidate, h = gate.unbind(0)
            previous = belief if keep is None else torch.mul(belief, keep[t], out=kept[t])
            torch.bmm(previous, weight, out=products)
            products[..., : 2 * width].add_(x[..., : 2 * width])
            torch.sigmoid(for_reset, out=reset)
            torch.sigmoid(for_update, out=update)
            torch.add(for_candidate, bias, out=h)
            torch.addcmul(x[..., 2 * width :], reset, h, out=candidate).tanh_()
            if share is None:
                belief = torch.lerp(candidate, previous, update, out=beliefs[t])
            else:
                stepped = torch.lerp(candidate, previous, update)
                belief = torch.lerp(belief if other is None else other[t], stepped, share[t], out=beliefs[t])
        ctx.save_for_backward(start, keep, share, other, weight, beliefs, gates, kept)
        return beliefs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        start, keep, share, other, weight, beliefs, gates, kept = ctx.saved_tensors
        frames, count, size, width = beliefs.shape
        before = torch.cat([start.unsqueeze(0), beliefs[:-1]])
        kept = before if keep is None else kept
        transposed = weight.transpose(1, 2)
        d_beliefs, d_kept = torch.empty_like(beliefs), torch.empty_like(beliefs)
        for_candidate = torch.empty_like(beliefs)
        d_recurrent = beliefs.new_empty(count, frames, size, 3 * width)
        carried = torch.zeros_like(start)
        for part in _from_the_last(frames, count * size * width):
            mixed = None if share is None else share[part]
            through = _gate_factors(kept[part], gates[part], mixed, d_recurrent[:, part], for_candidate[part])
            if mixed is not None and other is None:
                through = through + (1 - mixed)
            by_gate = d_recurrent[:, part].unflatten(-1, (3, width))
            for t in reversed(range(part.start, part.stop)):
                here = t - part.start
                gradient = torch.add(gradients[0][t], carried, out=d_beliefs[t])
                by_gate[:, here].mul_(gradient.unsqueeze(-2))
                carried = torch.baddbmm(gradient * through[here], d_recurrent[:, t], transposed, out=d_kept[t])
                if keep is not None:
                    carried = carried * keep[t]
        d_keep = None if keep is None else (d_kept * before).sum(-1, keepdim=True)
        d_share = d_other = None
        if share is not None:
            if other is not None:
                d_other = torch.addcmul(d_beliefs, d_beliefs, share, value=-1)
            if ctx.needs_input_grad[3]:
                stepped = torch.lerp(gates[:, 2], kept, gates[:, 1])
                d_share = ((stepped - (before if other is None else other)) * d_beliefs).sum(-1, keepdim=True)
        over_frames = d_recurrent.flatten(1, 2)
        d_weight = kept.transpose(0, 1).reshape(count, frames * size, width).transpose(1, 2) @ over_frames
        d_bias = over_frames[..., 2 * width :].sum(1, keepdim=True)
        # The input's projection takes the same gradient but for the candidate, where the reset gate stands between.
        d_projected = d_recurrent.transpose(0, 1)
        torch.mul(d_beliefs, for_candidate, out=d_projected[..., 2 * width :])
        return d_projected, carried, d_keep, d_share, d_other, d_weight, d_bias


def _from_the_last(frames: int, entries: int) -> Iterator[slice]:
    """Frames in parts from the last one back, of `entries` numbers each frame, that stay in a processor's cache."""
    at_once = max(1, ENTRIES_IN_CACHE // entries)
    for stop in range(frames, 0, -at_once):
        yield slice(max(0, stop - at_once), stop)


def _gate_factors(kept: Tensor, gates: Tensor, share: Tensor | None, products: Tensor, for_candidate: Tensor) -> Tensor:
    """What the gradients of n beliefs h_t are multiplied by, to give those of what they were made of.

    Fills the factors for the products with the belief kept, `products` [D, n, B, 3H], and for the candidate's part of
    the input's projection, [n, D, B, H]. Returns that for the belief kept, apart from those products, [n, D, B, H].
    """
    reset, update, candidate, recurrent_candidate = gates.unbind(1)
    for_reset, for_update, after_reset = products.transpose(0, 1).split(kept.shape[-1], -1)
    through, fresh = update, 1 - update
    if share is not None:
        through, fresh = through * share, fresh * share
    # x - a·a·x by addcmul: one kernel and no temporary.
    torch.addcmul(fresh, candidate * fresh, candidate, value=-1, out=for_candidate)
    torch.mul(for_candidate, reset, out=after_reset)
    torch.mul((kept - candidate).mul_(update), fresh, out=for_update)
    torch.mul(torch.addcmul(recurrent_candidate, recurrent_candidate, reset, value=-1), after_reset, out=for_reset)
    return through
