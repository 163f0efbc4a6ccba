"""The limits on the number and the length of segments, and the boundaries that these limits force."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FORCED_PROBABILITY = 1e-3
"""ε of the limits: a forced boundary is scored as ε or 1-ε, so that no bound is ever infinite."""

FORCED_LOGIT = math.log1p(-FORCED_PROBABILITY) - math.log(FORCED_PROBABILITY)


class Forced(NamedTuple):
    """[B] bool each: the boundary must be 0 (no other segment may follow, or none yet); it must be 1 (segment full)."""

    none: Tensor
    some: Tensor

    @property
    def either(self) -> Tensor:
        return self.none | self.some

    def clamp(self, logits: Tensor) -> Tensor:
        """Log odds `[B]` with the forced ones at ±logit(1-ε)."""
        return logits.masked_fill(self.none, -FORCED_LOGIT).masked_fill(self.some, FORCED_LOGIT)


class Counts(NamedTuple):
    """Counts of paths at frame t, […, B]: `segments` n_t opened so far, `length` l_t of the current one, t included."""

    segments: Tensor
    length: Tensor

    @staticmethod
    def start(size: int, device: torch.device) -> Counts:
        """Counts at frame 0."""
        one = torch.ones(size, dtype=torch.long, device=device)
        return Counts(one, one)

    def along(self, opened: Tensor) -> Counts:
        """Counts [n, B] at each of the next n frames; `opened`: [n, B] bool, whether it opens a segment."""
        number = torch.arange(1, len(opened) + 1, device=opened.device).unsqueeze(1)
        latest = (number * opened).cummax(0).values  # 0 where no frame has opened a segment yet
        length = number - latest + torch.where(latest > 0, 1, self.length)
        return Counts(self.segments + opened.cumsum(0), length)


@dataclass(frozen=True)
class SegmentLimits:
    """The prior's limits: at most `max_segments` (N_max) in a window, of `min_length` to `max_length` (l_max) frames.

        m_t = 0 if n_t ≥ N_max or l_t < min_length, else 1 if l_t ≥ l_max, else free

    N_max takes precedence: once `n_t` reaches N_max, the last segment lasts to the window's end, whatever its length.
    Boundaries whose next frame lies at or past `window` ignore N_max. N_max and l_max may be None, for no limit; a
    `min_length` of 1 is none. A sequence's last segment may be shorter than `min_length`: the sequence ends it.
    """

    max_segments: int | None
    max_length: int | None
    window: int | None = None
    min_length: int = 1

    @property
    def bind(self) -> bool:
        """Whether any limit is on."""
        return self.max_segments is not None or self.max_length is not None or self.min_length > 1

    def forced(self, counts: Counts, frame: int | Tensor) -> Forced | None:
        """The boundaries after `frame` that the limits force; None where no limit is on.

        Arguments:
            counts: counts at that frame, [..., B].
            frame: the frame's number, or the numbers of several frames as a tensor [..., 1].
        """
        if not self.bind:
            return None
        none = counts.length < self.min_length
        if self.max_segments is not None:
            last = counts.segments >= self.max_segments
            if self.window is not None:
                last = last & (frame + 1 < self.window)
            none = none | last
        if self.max_length is None:
            return Forced(none, torch.zeros_like(none))
        return Forced(none, (counts.length >= self.max_length) & ~none)

    def count(self, before: Tensor, opens: Tensor) -> Tensor:
        """n_t, l_t and the number of frames so far, [n, B, 3], at each of n frames; not counted without a limit.

        Arguments:
            before: [B, 3] these three one frame earlier; zeros before the first frame.
            opens: [n, B] factors, 1 where a frame opens a segment.
        """
        if not self.bind:
            return before.expand(len(opens), -1, -1)
        counts = Counts(before[:, 0], before[:, 1]).along(opens > 0.5)
        frames = before[:, 2] + torch.arange(1, len(opens) + 1, device=opens.device).unsqueeze(1)
        return torch.stack([*counts, frames], -1)

    def impose(self, logits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Log odds [n, B] of the boundary after each of n frames, and bool [n, B]: whether the limits forced it.

        Arguments:
            logits: [n, B] log odds without limits.
            counts: [n, B, 3] of :meth:`count`.
        """
        segments, length, frames = counts.unbind(-1)
        forced = self.forced(Counts(segments, length), frames - 1)
        if forced is None:
            return logits, torch.zeros_like(logits, dtype=torch.bool)
        return forced.clamp(logits), forced.either
