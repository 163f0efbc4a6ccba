"""The most probable path of q(M | X) and its marginals, exact for sequences of any length.

Both are found from the logits alone, in pieces of frames, so that memory does not grow with the states of a path times
the frames of a sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_hrssm.batching.walks import follow, walk_messages
from pyro_hrssm.model.limits import Counts, Forced, SegmentLimits
from pyro_hrssm.model.paths import Grid

FRAMES_AT_ONCE = 2**14
"""The most frames in a piece."""

NUMBERS_AT_ONCE = 2**22
"""The most states of paths times frames in a piece, which is at least 16 frames long."""


def pieces(total: int, at_once: int) -> list[slice]:
    """Consecutive pieces of `total` frames, of so many frames each but the last."""
    return [slice(start, min(start + at_once, total)) for start in range(0, total, at_once)]


class Decoded(NamedTuple):
    """The boundaries of sequences, [B, T-1] each: those that a frame may follow."""

    boundaries: Tensor
    """Bool: the path of highest probability; false where a boundary cannot act."""
    probabilities: Tensor
    """P(m_t = 1 | X); 0 where a boundary cannot act."""
    forced: Tensor
    """Bool: where the limits force m_t on that path."""


class _Border(NamedTuple):
    """What the frames after a piece say about each state that a path may be in there, [G, B] each, up to a constant."""

    message: Tensor
    """Log probability that the rest of the path is allowed; see :meth:`.BoundaryChain.conditioned`."""
    best: Tensor
    """Log probability of the best rest of the path."""

    def shifted(self) -> _Border:
        """The same with a largest entry of 0: over a million frames the sums would lose their digits."""
        return _Border(*(value - value.amax(0) for value in self))


@dataclass(frozen=True)
class Decoder:
    """q(M | X) of logits, decoded exactly.

    Arguments:
        logits: [T-1, B] φ, one per boundary that can act.
        limits: the limits that paths obey; all off for the factorised posterior.
        acts: [T-1, B] bool or None; false where the boundary lies at or past the sequence's last frame.
        conditioned: whether the Bernoullis are conditioned on the paths that the limits allow, rather than limited
            greedily.
        frames_at_once: the most frames in a piece. The result does not depend on it.
    """

    logits: Tensor
    limits: SegmentLimits
    acts: Tensor | None
    conditioned: bool = True
    frames_at_once: int = FRAMES_AT_ONCE

    def decode(self) -> Decoded:
        """The most probable path, the marginals, and where the limits force the path."""
        if self.limits.bind:
            path, chances = self._walk()
        else:
            path, chances = self.logits > 0, self.logits.sigmoid()
        if self.acts is not None:
            path, chances = path & self.acts, chances.masked_fill(~self.acts, 0.0)
        return Decoded(path.T, chances.T, self._forced_on(path).T)

    def _walk(self) -> tuple[Tensor, Tensor]:
        """The path and the marginals, [T-1, B] each: from the last piece back to the first one, and then forwards.

        Only what passes from piece to piece is kept; the way forwards walks back through each piece once more.
        """
        total, size = self.logits.shape
        grid = Grid.of(self.limits, total, self.logits.device)
        states = len(grid.opened)
        at_once = min(self.frames_at_once, max(16, NUMBERS_AT_ONCE // (states * size)))
        parts = pieces(total, at_once)
        nothing = torch.zeros(states, size, dtype=torch.float64, device=self.logits.device)
        borders = [_Border(nothing, nothing)]
        for part in reversed(parts[1:]):
            borders.append(_Piece.of(self, grid, part, borders[-1]).before.shifted())
        position = torch.zeros(size, dtype=torch.long, device=self.logits.device)
        mass = nothing.clone()
        mass[0] = 1  # the first state: one segment, one frame
        paths, marginals = [], []
        for part in parts:
            piece = _Piece.of(self, grid, part, borders.pop())
            path, position = piece.follow(grid, position)
            chances, mass = piece.spread(grid, mass)
            paths.append(path)
            marginals.append(chances)
        return torch.cat(paths), torch.cat(marginals).to(self.logits.dtype)

    def _forced_on(self, path: Tensor) -> Tensor:
        """[T-1, B] bool: the boundaries of a path [T-1, B] that the limits force."""
        start = Counts.start(path.shape[1], path.device)
        after = start.along(path[:-1])
        counts = Counts(*(torch.cat([first.unsqueeze(0), rest]) for first, rest in zip(start, after, strict=True)))
        forced = self.limits.forced(counts, torch.arange(len(path), device=path.device).unsqueeze(1))
        return torch.zeros_like(path) if forced is None else forced.either


class _Piece(NamedTuple):
    """Consecutive frames of sequences, n of them."""

    log_yes: Tensor
    log_no: Tensor
    """[n, G, B] log P(m = 1 | state) and log P(m = 0 | state), exactly 0 and -∞ where the limits force it."""
    opens: Tensor
    """[n, G, B] bool: whether the best path opens a segment, at every state that it may be in."""
    before: _Border
    """What the piece, and all after it, say about the states at its first frame."""

    @staticmethod
    def of(decoder: Decoder, grid: Grid, part: slice, after: _Border) -> _Piece:
        logits = decoder.logits[part].double()
        acts = None if decoder.acts is None else decoder.acts[part]
        number = torch.arange(part.start, part.stop, device=logits.device).view(-1, 1, 1)
        found = decoder.limits.forced(grid.state, number)
        assert found is not None  # the limits bind
        forced = Forced(*(flag.expand(len(logits), -1, -1) for flag in found))
        if decoder.conditioned:
            odds, message = walk_messages(logits, after.message, grid.opened, grid.stayed, *forced, acts)
        else:
            odds, message = logits.unsqueeze(1).expand(-1, len(grid.opened), -1), after.message
        odds = odds.masked_fill(forced.none, -math.inf).masked_fill(forced.some, math.inf)
        log_yes, log_no = F.logsigmoid(odds), F.logsigmoid(-odds)
        opens = torch.empty(odds.shape, dtype=torch.bool, device=odds.device)
        best = after.best
        for t in reversed(range(len(logits))):
            yes = log_yes[t] + best.index_select(0, grid.opened)
            no = log_no[t] + best.index_select(0, grid.stayed)
            torch.gt(yes, no, out=opens[t])
            best = torch.maximum(yes, no)
            if acts is not None:
                best = torch.where(acts[t], best, 0.0)
        if acts is not None:
            opens &= acts.unsqueeze(1)
        return _Piece(log_yes, log_no, opens, _Border(message, best))

    def follow(self, grid: Grid, position: Tensor) -> tuple[Tensor, Tensor]:
        """The best path [n, B] from its states [B] at the first frame, and its states after the last one."""
        positions: Tensor = follow(self.opens, grid.opened, grid.stayed, position)
        path = self.opens.gather(1, positions.unsqueeze(1)).squeeze(1)
        last = positions[-1]
        return path, torch.where(path[-1], grid.opened[last], grid.stayed[last])

    def spread(self, grid: Grid, mass: Tensor) -> tuple[Tensor, Tensor]:
        """The marginals [n, B], and the probability [G, B] of each state after the last frame, from that at the first.

        Past a sequence's end the masses go on, and decide nothing.
        """
        all_yes, all_no = self.log_yes.exp(), self.log_no.exp()
        marginals = mass.new_empty(len(all_yes), mass.shape[1])
        for t, (yes, no) in enumerate(zip(all_yes, all_no, strict=True)):
            opening = mass * yes
            torch.sum(opening, 0, out=marginals[t])
            staying = mass * no
            mass = torch.zeros_like(mass).index_add_(0, grid.opened, opening).index_add_(0, grid.stayed, staying)
        return marginals, mass
