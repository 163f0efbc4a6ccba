"""Distributions over paths of boundaries that obey the limits on segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_hrssm.batching.later import Result, known
from pyro_hrssm.batching.walks import follow, path_messages
from pyro_hrssm.model.distributions import Temperature, draw, is_hard, logistic
from pyro_hrssm.model.limits import Counts, Forced, SegmentLimits


class Grid(NamedTuple):
    """The states (n, l) of a path as one axis of size G = N · L; larger counts share the last values of n and l.

    Counts beyond a limit behave alike, and a count without a limit decides nothing, so that one value is enough.
    """

    state: Counts
    """[G, 1] counts of each state."""
    opened: Tensor
    """[G] index of the state after a boundary."""
    stayed: Tensor
    """[G] index of the state after no boundary."""
    segments: int
    lengths: int

    @staticmethod
    def of(limits: SegmentLimits, frames: int, device: torch.device) -> Grid:
        segments = 1 if limits.max_segments is None else min(limits.max_segments, frames + 1)
        # Without l_max, all lengths from `min_length` on behave alike.
        longest = max(limits.min_length, limits.max_length or 1)
        lengths = min(longest, frames + 1)
        index = torch.arange(segments * lengths, device=device)
        n, l = index // lengths + 1, index % lengths + 1
        opened = n.clamp(max=segments - 1) * lengths
        stayed = (n - 1) * lengths + l.clamp(max=lengths - 1)
        return Grid(Counts(n.unsqueeze(1), l.unsqueeze(1)), opened, stayed, segments, lengths)

    def forced(self, limits: SegmentLimits, frames: int) -> Forced | None:
        """The boundaries that the limits force at every frame and state, [frames, G, 1] bool each."""
        number = torch.arange(frames, device=self.opened.device).view(-1, 1, 1)
        forced = limits.forced(self.state, number)
        return None if forced is None else Forced(*(flag.expand(frames, -1, -1) for flag in forced))


@dataclass(frozen=True)
class BoundaryChain:
    """q(M | X) as a Markov chain over the counts, from which paths are drawn."""

    log_odds: Tensor
    """[T-1, G, B] at every frame and every state of the grid; the limits are not yet applied."""
    grid: Grid
    limits: SegmentLimits
    """The limits that draws obey; all are off for the factorised posterior."""

    @classmethod
    def independent(cls, logits: Tensor, limits: SegmentLimits) -> BoundaryChain:
        """Bernoulli boundaries of log odds φ = `logits` [T-1, B], one per boundary that can act, at every state."""
        grid = Grid.of(limits, len(logits), logits.device)
        return cls(logits.unsqueeze(1).expand(-1, len(grid.opened), -1), grid, limits)

    @classmethod
    def conditioned(cls, logits: Tensor, limits: SegmentLimits, acts: Tensor | None) -> BoundaryChain:
        """Independent Bernoulli boundaries conditioned exactly on the paths that the limits allow.

        `q(M) ∝ Π_t Bern(m_t; σ(φ_t)) · 1[M obeys the limits]`, drawn frame by frame. Messages `β_t(n, l)`, the
        log probability that the rest of the path is allowed, run backwards once in log space:

            β_t(n, l) = logaddexp(log σ(φ_t) + β_{t+1}(n+1, 1), log σ(-φ_t) + β_{t+1}(n, l+1)),

        or only the allowed term where the limits force the boundary. The conditioned log odds of a free boundary are
        `φ_t + β_{t+1}(n+1, 1) - β_{t+1}(n, l+1)`. Cost `O(T · N_max · max(l_max, min_length))`, differentiable.

        Arguments:
            logits: [T-1, B] φ, one per boundary that can act.
            acts: [T-1, B] bool or None; false where the boundary lies at or past the sequence's last frame.
        """
        # The grid's axis comes before the sequences', so that selecting states copies whole rows.
        grid = Grid.of(limits, len(logits), logits.device)
        none, some = grid.forced(limits, len(logits)) or (None, None)
        return cls(path_messages(logits, grid.opened, grid.stayed, none, some, acts), grid, limits)


class PathDraw(NamedTuple):
    """The draw of one boundary."""

    value: Tensor
    """[B], in logit space while relaxed, else 0 or 1."""
    logits: Result
    """[B] log odds of the draw, limits imposed."""
    forced: Result | None
    """[B] bool, true where the limits left no choice; None where no limit is on."""


class PathDraws:
    """One path per sequence drawn from a chain, for all frames at once, and the log odds along it.

    A handler may replace the value drawn for a boundary; the rest of the path is then drawn again from there.

    Arguments:
        chain: the chain to draw from.
        temperature: temperature of the values; 0 for hard ones.
    """

    def __init__(self, chain: BoundaryChain, temperature: Temperature) -> None:
        frames, _, size = chain.log_odds.shape
        self._grid = chain.grid
        self._temperature = temperature
        self._forced = chain.grid.forced(chain.limits, frames)
        self._log_odds = chain.log_odds if self._forced is None else self._forced.clamp(chain.log_odds)
        self._noise = logistic(torch.Size([frames, size]), chain.log_odds)
        self._positions: list[Tensor] = []
        self._draws: list[PathDraw] = []
        self._draw(torch.zeros(size, dtype=torch.long, device=self._noise.device))

    def __getitem__(self, frame: int) -> PathDraw:
        """The draw of the boundary after `frame`."""
        return self._draws[frame]

    def settle(self, frame: int, value: Tensor) -> None:
        """Accept the site's value for the boundary after `frame`, which a handler may have changed."""
        if value is not self._draws[frame].value:
            opens = value.detach() > (0.5 if is_hard(self._temperature) else 0)
            position = self._positions[frame]
            del self._positions[frame + 1 :], self._draws[frame + 1 :]
            self._draw(torch.where(opens, self._grid.opened[position], self._grid.stayed[position]))

    def _draw(self, position: Tensor) -> None:
        """Draw the rest of the path, from its states [B] on the grid before the first frame not yet drawn."""
        start = len(self._draws)
        if start == len(self._noise):
            return
        positions = self._walk(start, position)
        logits = self._log_odds[start:].gather(1, positions.unsqueeze(1)).squeeze(1)
        forced: list[Result] | list[None] = [None] * len(positions)
        either = None
        if self._forced is not None:
            either = self._forced.either[start:].squeeze(-1).gather(1, positions)
            forced = known(either)
        values = draw(logits, self._noise[start:], self._temperature, either)
        self._draws += map(PathDraw, values.unbind(0), known(logits), forced)

    @torch.no_grad()
    def _walk(self, start: int, position: Tensor) -> Tensor:
        """The path's states on the grid at every frame from `start` on, [n, B]."""
        either = None if self._forced is None else self._forced.either[start:]
        opens = draw(self._log_odds[start:], self._noise[start:].unsqueeze(1), 0, either) > 0.5
        positions: Tensor = follow(opens, self._grid.opened, self._grid.stayed, position)
        self._positions += positions.unbind(0)
        return positions
