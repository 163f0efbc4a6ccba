"""Paths of boundaries: the limits on segments, and distributions over the paths that they allow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_hrssm.batching.deferred import Deferred, Frame
from pyro_hrssm.batching.walks import follow, path_messages
from pyro_hrssm.model.distributions import Forced, Temperature, draw, is_hard, logistic


class Counts(NamedTuple):
    """Where paths stand, […, B]: `segments` n_t opened so far and `length` l_t of the current one, frame t included."""

    segments: Tensor
    length: Tensor

    @staticmethod
    def first(size: int, device: torch.device) -> Counts:
        one = torch.ones(size, dtype=torch.long, device=device)
        return Counts(one, one)

    def after(self, opened: Tensor) -> Counts:
        """Counts at the next frame; `opened`: [B] bool, whether it opens a segment."""
        return Counts(self.segments + opened, self.length.masked_fill(opened, 0) + 1)

    def along(self, opened: Tensor) -> Counts:
        """Counts [n, B] at each of the next n frames; `opened`: [n, B] bool, whether it opens a segment."""
        number = torch.arange(1, len(opened) + 1, device=opened.device).unsqueeze(1)
        latest = (number * opened).cummax(0).values  # 0 where none has opened one yet
        length = number - latest + torch.where(latest > 0, 1, self.length)
        return Counts(self.segments + opened.cumsum(0), length)


@dataclass(frozen=True)
class SegmentLimits:
    """The prior's limits: at most `max_segments` (N_max) in a window, at most `max_length` (l_max) frames each.

    The first comes first: once `n_t` reaches N_max, the last segment lasts to the window's end however
    long. Boundaries whose next frame lies at or past `window` ignore N_max. Either limit may be None.
    """

    max_segments: int | None
    max_length: int | None
    window: int | None = None

    @property
    def bind(self) -> bool:
        """Whether any limit is on."""
        return self.max_segments is not None or self.max_length is not None

    def forced(self, counts: Counts, frame: int | Tensor) -> Forced | None:
        """What the limits say of the boundary after `frame`, or None where they cannot say anything.

        Arguments:
            counts: at that frame, [..., B].
            frame: its number; or those of several frames, as a tensor [..., 1].
        """
        if not self.bind:
            return None
        none = torch.zeros_like(counts.length, dtype=torch.bool)
        if self.max_segments is not None:
            none = counts.segments >= self.max_segments
            if self.window is not None:
                none = none & (frame + 1 < self.window)
        if self.max_length is None:
            return Forced(none, torch.zeros_like(none))
        return Forced(none, (counts.length >= self.max_length) & ~none)

    def along(self, before: Tensor, updates: Tensor) -> tuple[Tensor, ...]:
        """Follow paths over n frames, and say what the limits force after each.

        Arguments:
            before: [B, 3] segments, frames in the segment and frames so far, one frame earlier; zeros before the first.
            updates: [n, B] whether a frame opens a segment, as factors.
        Returns the same counts [n, B, 3] at every frame, and [n, B] bool each: must be 0, must be 1.
        """
        counts = Counts(before[:, 0], before[:, 1]).along(updates > 0.5)
        number = before[:, 2] + torch.arange(1, len(updates) + 1, device=updates.device).unsqueeze(1)
        forced = self.forced(counts, number - 1)
        assert forced is not None
        return torch.stack([*counts, number], -1), *forced


class Grid(NamedTuple):
    """The states (n, l) that a path can stand at, as one axis of G = N · L; larger counts share the last ones.

    Counts beyond a limit behave alike, and without a limit its count decides nothing: one value is enough.
    """

    state: Counts
    """[G, 1] counts of each state."""
    opened: Tensor
    """[G] index of the state after a boundary."""
    stayed: Tensor
    """[G] index of the state after none."""
    segments: int
    lengths: int

    @staticmethod
    def of(limits: SegmentLimits, frames: int, device: torch.device) -> Grid:
        segments = 1 if limits.max_segments is None else min(limits.max_segments, frames + 1)
        lengths = 1 if limits.max_length is None else min(limits.max_length, frames + 1)
        index = torch.arange(segments * lengths, device=device)
        n, l = index // lengths + 1, index % lengths + 1
        opened = n.clamp(max=segments - 1) * lengths
        stayed = (n - 1) * lengths + l.clamp(max=lengths - 1)
        return Grid(Counts(n.unsqueeze(1), l.unsqueeze(1)), opened, stayed, segments, lengths)

    def forced(self, limits: SegmentLimits, frames: int) -> Forced | None:
        """What the limits say at every state, [frames, G, 1] bool each."""
        number = torch.arange(frames, device=self.opened.device).view(-1, 1, 1)
        forced = limits.forced(self.state, number)
        return None if forced is None else Forced(*(flag.expand(frames, -1, -1) for flag in forced))


@dataclass(frozen=True)
class PathMessages:
    """Independent Bernoulli boundaries conditioned exactly on the paths that the limits allow.

    `q(M) ∝ Π_t Bern(m_t; σ(φ_t)) · 1[M obeys the limits]`, drawn frame by frame. Messages `β_t(n, l)`, the
    log probability that the rest of the path is allowed, run backwards once in log space:

        β_t(n, l) = logaddexp(log σ(φ_t) + β_{t+1}(n+1, 1), log σ(-φ_t) + β_{t+1}(n, l+1)),

    or the one term allowed where the limits force it. The conditioned log odds of a free boundary are
    `φ_t + β_{t+1}(n+1, 1) - β_{t+1}(n, l+1)`. Cost `O(T · N_max · l_max)`, differentiable.

    Arguments of :meth:`run`:
        logits: [B, T-1] φ, one per boundary that can act.
        acts: [B, T-1] bool or None; false where the boundary lies at or past the sequence's last frame.
    """

    log_odds: Tensor
    """[T-1, G, B] conditioned log odds, per frame at every state of the grid."""
    grid: Grid

    @staticmethod
    def run(logits: Tensor, limits: SegmentLimits, acts: Tensor | None) -> PathMessages:
        # The grid comes first: picking rows is a copy of whole rows.
        grid = Grid.of(limits, logits.shape[1], logits.device)
        forced = grid.forced(limits, logits.shape[1])
        none, some = (None, None) if forced is None else forced
        log_odds = path_messages(logits.T, grid.opened, grid.stayed, none, some, None if acts is None else acts.T)
        return PathMessages(log_odds, grid)


@dataclass(frozen=True)
class BoundaryChain:
    """q(M | X) as a Markov chain over the counts: exact marginals and the most probable path.

    Arguments:
        log_odds: [T-1, G, B] at every state of the grid; the limits are not yet applied.
        limits: those that draws obey; both None for the factorised posterior.
        acts: [B, T-1] bool or None, as in :class:`PathMessages`.
    """

    log_odds: Tensor
    grid: Grid
    limits: SegmentLimits
    acts: Tensor | None

    def _log_probabilities(self, frame: int) -> tuple[Tensor, Tensor]:
        """Log P(m = 1 | state) and log P(m = 0 | state), [G, B] each; exactly 0 and -∞ where forced."""
        odds = self.log_odds[frame]
        forced = self.limits.forced(self.grid.state, frame)
        if forced is not None:
            odds = odds.masked_fill(forced.none, -math.inf).masked_fill(forced.some, math.inf)
        return F.logsigmoid(odds), F.logsigmoid(-odds)

    def marginals(self) -> Tensor:
        """[B, T-1] P(m_t = 1 | X)."""
        mass = torch.zeros_like(self.log_odds[0])
        mass[0] = 1  # the first state: one segment, one frame
        marginals = []
        for frame in range(len(self.log_odds)):
            log_yes, log_no = self._log_probabilities(frame)
            yes, no = mass * log_yes.exp(), mass * log_no.exp()
            marginals.append(yes.sum(0))
            mass = torch.zeros_like(mass).index_add(0, self.grid.opened, yes).index_add(0, self.grid.stayed, no)
        result = torch.stack(marginals, 1)
        return result if self.acts is None else result.masked_fill(~self.acts, 0.0)

    def most_probable(self) -> Tensor:
        """[B, T-1] bool, the path of highest probability; false where a boundary cannot act."""
        best = torch.zeros_like(self.log_odds[0])
        choices = []
        for frame in reversed(range(len(self.log_odds))):
            log_yes, log_no = self._log_probabilities(frame)
            yes, no = log_yes + best[self.grid.opened], log_no + best[self.grid.stayed]
            choice, value = yes > no, torch.maximum(yes, no)
            if self.acts is not None:
                choice, value = choice & self.acts[:, frame], torch.where(self.acts[:, frame], value, 0.0)
            choices.append(choice)
            best = value
        state = torch.zeros(best.shape[1], dtype=torch.long, device=best.device)
        path = []
        for choice in reversed(choices):
            opens = choice.gather(0, state.unsqueeze(0)).squeeze(0)
            path.append(opens)
            state = torch.where(opens, self.grid.opened[state], self.grid.stayed[state])
        return torch.stack(path, 1)

    def forced(self, path: Tensor) -> Tensor:
        """[B, T-1] bool: which boundaries of a path [B, T-1] the limits left no choice about."""
        counts = Counts.first(len(path), path.device)
        result = torch.zeros_like(path)
        for frame, opened in enumerate(path.unbind(1)):
            forced = self.limits.forced(counts, frame)
            if forced is not None:
                result[:, frame] = forced.either
            counts = counts.after(opened)
        return result


class PathDraws:
    """One path per sequence drawn from a chain, for all frames at once, and the log odds along it.

    A boundary may take another value than the one drawn for it, where a handler says so: then the rest of the path
    is drawn again from there.

    Arguments:
        chain: what is drawn from.
        temperature: of the values; 0 for hard ones.
    """

    def __init__(self, chain: BoundaryChain, temperature: Temperature) -> None:
        frames, _, size = chain.log_odds.shape
        self._grid = chain.grid
        self._temperature = temperature
        self._forced = chain.grid.forced(chain.limits, frames)
        self._log_odds = chain.log_odds if self._forced is None else self._forced.clamp(chain.log_odds)
        self._noise = logistic(torch.Size([frames, size]), chain.log_odds)
        self._positions: list[Tensor] = []
        self._frames: list[tuple[Tensor, Frame, Forced | None]] = []
        self._draw(torch.zeros(size, dtype=torch.long, device=self._noise.device))

    def at(self, frame: int) -> tuple[Tensor, Frame, Forced | None]:
        """The value drawn for the boundary after `frame`, its log odds and what the limits say of it, [B] each."""
        return self._frames[frame]

    def keep(self, frame: int, value: Tensor) -> None:
        """Note the value that the boundary after `frame` took."""
        if value is not self._frames[frame][0]:
            opens = value.detach() > (0.5 if is_hard(self._temperature) else 0)
            position = self._positions[frame]
            del self._positions[frame + 1 :], self._frames[frame + 1 :]
            self._draw(torch.where(opens, self._grid.opened[position], self._grid.stayed[position]))

    def _draw(self, position: Tensor) -> None:
        """The rest of the path, from the grid's states [B] at which it stands before the first frame not yet drawn."""
        start = len(self._frames)
        if start == len(self._noise):
            return
        positions = self._walk(start, position)
        logits = self._log_odds[start:].gather(1, positions.unsqueeze(1)).squeeze(1)
        forced: list[Forced | None] = [None] * len(positions)
        either = None
        if self._forced is not None:
            here = Forced(*(flag[start:].squeeze(-1).gather(1, positions) for flag in self._forced))
            forced, either = [Forced(*flags) for flags in zip(*here, strict=True)], here.either
        values = draw(logits, self._noise[start:], self._temperature, either)
        source = Deferred.known(logits)
        frames = [Frame(source, place) for place in range(len(logits))]
        self._frames += zip(values.unbind(0), frames, forced, strict=True)

    @torch.no_grad()
    def _walk(self, start: int, position: Tensor) -> Tensor:
        """Where the path stands at every frame from `start` on, [n, B]."""
        either = None if self._forced is None else self._forced.either[start:]
        opens = draw(self._log_odds[start:], self._noise[start:].unsqueeze(1), 0, either) > 0.5
        positions: Tensor = follow(opens, self._grid.opened, self._grid.stayed, position)
        self._positions += positions.unbind(0)
        return positions
