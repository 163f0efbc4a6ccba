"""The two forms of a mask, `[B, T]` and `[B, T, X…]`, and what is read from either.

A mask `[B, T]` has one flag per frame. A mask `[B, T, X…]` has one flag per entry or, if it holds floats, one weight
`w`: the entry's precision as a multiple of what the Normal emission says, `x ~ N(μ, σ² / w)`, as in weighted least
squares (Aitken 1936). A weight of 0 is a missing entry, and weights of 1 are flags.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def told(mask: Tensor, like: Tensor) -> Tensor:
    """What an encoder is told of each entry: 0 where it is missing, 1 at a weight of 1, and below 2 at any weight.

    That is twice the weight that an observation of precision w has beside a prior of precision 1.

    Arguments:
        mask: […, X…] flags or weights.
        like: a tensor of the result's precision.
    """
    return 2 - 2 / (1 + mask.to(like.dtype)) if mask.is_floating_point() else (mask > 0).to(like.dtype)
