"""The boundary: its relaxation, its straight-through step, and the limits on segments.

Shape legend of the package: `B` sequences, `T` frames, `X…` one frame, `Z` abstract state,
`S` observation state, `H` belief. `m_t = 1` means that a segment ends with frame `t`, so that frame
`t+1` opens a new one; the first frame always opens a segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.types import _size

FORCED_PROBABILITY = 1e-3
"""ε of the limits: a forced boundary is scored as ε or 1-ε, so that no bound is ever infinite."""

FORCED_LOGIT = math.log1p(-FORCED_PROBABILITY) - math.log(FORCED_PROBABILITY)

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class DeferredNormal(dist.Normal):
    """Normal whose mean and scale are computed when first asked for.

    Arguments:
        parameters: gives (mean, scale), both of shape `shape`.
    """

    def __init__(self, parameters: Callable[[], tuple[Tensor, ...]], shape: torch.Size) -> None:
        self._parameters = parameters
        TorchDistribution.__init__(self, shape, validate_args=False)

    @property
    def loc(self) -> Tensor:  # type: ignore[override]
        return self._parameters()[0]

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        return self._parameters()[1]

    def log_prob(self, value: Tensor) -> Tensor:
        mean, scale = self._parameters()
        distance = (value - mean) / scale
        return distance.square() * -0.5 - scale.log() - _HALF_LOG_TWO_PI

    def expand(self, batch_shape: _size, _instance: object = None) -> dist.Normal:
        # A plate expands every site; to the same shape that must not ask for the parameters.
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        return dist.Normal(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class RelaxedBoundary(TorchDistribution):
    """Relaxed Bernoulli (binary Concrete) in logit space: `y = (logits + L) / temperature`, `L` logistic.

    `sigmoid(y)` is the relaxed Bernoulli sample and `y > 0` an exact Bernoulli(`logits`) one, at every
    temperature. Working with `y` itself keeps the density finite where the sigmoid saturates.
    Source: Maddison, Mnih and Teh 2017, appendix C.3.2.

    Arguments:
        logits: gives [B] log odds, when first asked for.
        shape: [B]
        temperature: positive number.
        forced: [B] bool or None; where true, a draw has the sign of its logit: limits are obeyed
            exactly in generation although the density keeps ε of doubt.
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.real
    has_rsample = True

    def __init__(
        self, logits: Callable[[], Tensor], shape: torch.Size, temperature: float, forced: Tensor | None = None
    ) -> None:
        self._compute = logits
        self._logits: Tensor | None = None
        self.temperature = temperature
        self.forced = forced
        super().__init__(shape, validate_args=False)

    @property
    def logits(self) -> Tensor:
        if self._logits is None:
            self._logits = self._compute()
        return self._logits

    @property
    def mean(self) -> Tensor:
        """[B] probability of a boundary."""
        return torch.sigmoid(self.logits)

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:
        logits = self.logits
        noise = torch.empty(self.shape(sample_shape), dtype=logits.dtype, device=logits.device).uniform_()
        value = (logits + torch.logit(noise, eps=torch.finfo(noise.dtype).eps)) / self.temperature
        return value if self.forced is None else torch.where(self.forced, torch.copysign(value, logits), value)

    def log_prob(self, value: Tensor) -> Tensor:
        distance = value * self.temperature - self.logits
        return math.log(self.temperature) - distance + 2 * F.logsigmoid(distance)

    def expand(self, batch_shape: _size, _instance: object = None) -> RelaxedBoundary:
        shape = torch.Size(batch_shape)
        if shape == self.batch_shape:
            return self
        forced = None if self.forced is None else self.forced.expand(shape)
        return RelaxedBoundary(lambda: self.logits.expand(shape), shape, self.temperature, forced)


class HardBoundary(dist.Bernoulli):
    """Bernoulli boundary, the relaxed one's limit at temperature 0; forced draws obey the limits exactly."""

    def __init__(self, logits: Tensor, forced: Tensor | None = None) -> None:
        self.forced = forced
        super().__init__(logits=logits)

    @torch.no_grad()
    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:
        # A NaN is for the density to tell of: drawing from it would be an error that names no site.
        value = torch.bernoulli(self.probs.nan_to_num(0.5).expand(self._extended_shape(sample_shape)))
        return value if self.forced is None else torch.where(self.forced, (self.logits > 0).to(value.dtype), value)

    def expand(self, batch_shape: _size, _instance: object = None) -> HardBoundary:
        forced = None if self.forced is None else self.forced.expand(batch_shape)
        return HardBoundary(self.logits.expand(batch_shape), forced)


def boundary(
    logits: Callable[[], Tensor], shape: torch.Size, temperature: float, forced: Forced | None = None
) -> RelaxedBoundary | HardBoundary:
    """Distribution of a boundary site: relaxed at a positive temperature, Bernoulli at 0; limits applied."""
    either = None if forced is None else forced.either

    def limited() -> Tensor:
        return logits() if forced is None else forced.clamp(logits())

    return RelaxedBoundary(limited, shape, temperature, either) if temperature > 0 else HardBoundary(limited(), either)


def decide(value: Tensor, temperature: float) -> Tensor:
    """The boundary in {0, 1} that a site's value stands for: [B] floats.

    Forward the hard decision, backward the relaxed sample's gradient (straight-through), at a positive
    temperature; the value itself at 0.
    """
    if temperature == 0:
        return value
    soft = torch.sigmoid(value)
    return (value > 0).to(value.dtype) + (soft - soft.detach())


class Counts(NamedTuple):
    """Where a path stands: `segments` n_t opened so far and `length` l_t of the current one, frame t included; [B]."""

    segments: Tensor
    length: Tensor

    @staticmethod
    def first(size: int, device: torch.device) -> Counts:
        one = torch.ones(size, dtype=torch.long, device=device)
        return Counts(one, one)

    def after(self, opened: Tensor) -> Counts:
        """Counts at the next frame; `opened`: [B] bool, whether it opens a segment."""
        return Counts(self.segments + opened, self.length.masked_fill(opened, 0) + 1)


class Forced(NamedTuple):
    """[B] bool each: the boundary must be 0 (no segment left), must be 1 (the segment is as long as it may be)."""

    none: Tensor
    some: Tensor

    @property
    def either(self) -> Tensor:
        return self.none | self.some

    def clamp(self, logits: Tensor) -> Tensor:
        """Log odds `[B]` with the forced ones at ±logit(1-ε)."""
        return logits.masked_fill(self.none, -FORCED_LOGIT).masked_fill(self.some, FORCED_LOGIT)


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

    def forced(self, counts: Counts, frame: int) -> Forced | None:
        """What the limits say of the boundary after `frame`, or None where they cannot say anything."""
        if not self.bind:
            return None
        none = torch.zeros_like(counts.length, dtype=torch.bool)
        if self.max_segments is not None and (self.window is None or frame + 1 < self.window):
            none = counts.segments >= self.max_segments
        if self.max_length is None:
            return Forced(none, torch.zeros_like(none))
        return Forced(none, (counts.length >= self.max_length) & ~none)


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

    def position(self, counts: Counts) -> Tensor:
        """[B] index of the states where paths stand."""
        row = counts.segments.clamp(max=self.segments) - 1
        return row * self.lengths + counts.length.clamp(max=self.lengths) - 1


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

    log_odds: list[Tensor]
    """Per frame, [G, B] conditioned log odds at every state of the grid."""
    grid: Grid

    @staticmethod
    def run(logits: Tensor, limits: SegmentLimits, acts: Tensor | None) -> PathMessages:
        size, frames = logits.shape
        # The grid comes first: picking rows is a copy of whole rows, forwards and backwards.
        grid = Grid.of(limits, frames, logits.device)
        message = logits.new_zeros(len(grid.opened), size)
        nothing = logits.new_zeros(())
        log_yes, log_no = F.logsigmoid(logits).unbind(1), F.logsigmoid(-logits).unbind(1)
        log_odds: list[Tensor] = []
        for frame in reversed(range(frames)):
            yes = log_yes[frame] + message.index_select(0, grid.opened)
            no = log_no[frame] + message.index_select(0, grid.stayed)
            log_odds.append(yes - no)
            earlier = torch.logaddexp(yes, no)
            forced = limits.forced(grid.state, frame)
            if forced is not None:
                earlier = torch.where(forced.none, no, torch.where(forced.some, yes, earlier))
            message = earlier if acts is None else torch.where(acts[:, frame], earlier, nothing)
        return PathMessages(log_odds[::-1], grid)

    def at(self, frame: int, counts: Counts) -> Tensor:
        """Conditioned log odds [B] of the boundary after `frame`, for paths that stand at `counts`."""
        return self.log_odds[frame].gather(0, self.grid.position(counts).unsqueeze(0)).squeeze(0)


@dataclass(frozen=True)
class BoundaryChain:
    """q(M | X) as a Markov chain over the counts: exact marginals and the most probable path.

    Arguments:
        log_odds: per frame, [G, B] at every state of the grid; the limits are not yet applied.
        limits: those that draws obey; both None for the factorised posterior.
        acts: [B, T-1] bool or None, as in :class:`PathMessages`.
    """

    log_odds: list[Tensor]
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


class GreyBernoulli(dist.Bernoulli):
    """Bernoulli whose observations may be any grey value in [0, 1], scored as a cross-entropy; draws are 0 or 1."""

    support = constraints.unit_interval
