"""The two forms of a mask, `[B, T]` and `[B, T, X…]`, and what is read from either.

A mask `[B, T]` has one flag per frame. A mask `[B, T, X…]` has one flag per entry or, if it holds floats, one weight
`w`: the entry's precision as a multiple of what the Normal emission says, `x ~ N(μ, σ² / w)`, as in weighted least
squares (Aitken 1936). A weight of 0 is a missing entry, and weights of 1 are flags. Flags are bool, or the numbers 0
and 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_hrssm.errors import InputError


def seen_frames(mask: Tensor) -> Tensor:
    """[B, T] bool, true where a frame is observed, if only in part."""
    return mask.to(torch.bool) if mask.dim() == 2 else (mask > 0).flatten(2).any(2)


def seen_entries(mask: Tensor, axes: int) -> Tensor:
    """Bool, true where an entry is observed: [B, T, X…], or with ones in place of X… for a mask of whole frames.

    Arguments:
        axes: number of axes of a frame.
    """
    return mask > 0 if mask.dim() > 2 else mask.reshape(*mask.shape, *[1] * axes).to(torch.bool)


def observed_entries(frames: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T, X…] bool, true where an entry of frames [B, T, X…] is observed; a view that holds no memory of its own."""
    seen = frames.new_ones((), dtype=torch.bool) if mask is None else seen_entries(mask, frames.dim() - 2)
    return seen.expand_as(frames)


def has_weights(mask: Tensor) -> bool:
    """Whether a mask [B, T, X…] holds weights."""
    return mask.dim() > 2 and mask.is_floating_point()


def check_values(mask: Tensor, whole: bool) -> None:
    """Raise :class:`InputError` unless a mask holds flags, 0 and 1 alone, or finite weights of at least 0.

    Neither a program under compilation nor a training step on a GPU, which would have to wait, looks at the values.

    Arguments:
        whole: whether the mask is one of whole frames, [B, T]; only floats [B, T, X…] are weights.
    """
    if mask.dtype == torch.bool or torch.compiler.is_compiling() or (mask.is_cuda and torch.is_grad_enabled()):
        return
    weights = mask.is_floating_point() and not whole
    sound = (mask >= 0) & (mask < math.inf) if weights else (mask == 0) | (mask == 1)
    if sound.all():
        return
    wrong, shape = mask[~sound][0].item(), list(mask.shape)
    if weights:
        raise InputError(f"weights must be finite and at least 0, found {wrong:g}")
    way = "a weight for each entry, as the frames have entries" if whole else "floats"
    raise InputError(f"mask {shape} of {mask.dtype} must hold 0 and 1 alone, found {wrong:g}: weights need {way}")


def told(mask: Tensor, like: Tensor) -> Tensor:
    """What an encoder is told of each entry: 0 where it is missing, 1 at a weight of 1, and below 2 at any weight.

    That is twice the weight that an observation of precision w has beside a prior of precision 1.

    Arguments:
        mask: […, X…] flags or weights.
        like: a tensor of the result's precision.
    """
    return 2 - 2 / (1 + mask.to(like.dtype)) if mask.is_floating_point() else (mask > 0).to(like.dtype)
