"""The distributions of the sites: the boundary, its relaxation and straight-through step; the latent states; frames.

Shape legend of the package: `B` sequences, `T` frames, `X…` one frame, `Z` abstract state,
`S` observation state, `H` belief. `m_t = 1` means that a segment ends with frame `t`, so that frame
`t+1` opens a new one; the first frame always opens a segment.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.types import _size

Temperature = float | Tensor
"""Temperature of boundaries: 0 for hard ones. A tensor, which a compiled program takes as an argument, is positive."""


def is_hard(temperature: Temperature) -> bool:
    """Whether boundaries of this temperature are 0 or 1."""
    return not isinstance(temperature, Tensor) and temperature == 0


_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class StateNormal(dist.Normal):
    """Normal of a latent state, whose density is computed as those of all frames together are."""

    def log_prob(self, value: Tensor) -> Tensor:
        return normal_log_prob(value, self.loc, self.scale)


def normal_log_prob(value: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Log density of a Normal, entry by entry."""
    distance = (value - mean) / scale
    return distance.square() * -0.5 - scale.log() - _HALF_LOG_TWO_PI


class RelaxedBoundary(TorchDistribution):
    """Relaxed Bernoulli (binary Concrete) in logit space: `y = (logits + L) / temperature`, `L` logistic.

    `sigmoid(y)` is the relaxed Bernoulli sample and `y > 0` an exact Bernoulli(`logits`) one, at every
    temperature. Working with `y` itself keeps the density finite where the sigmoid saturates.
    Source: Maddison, Mnih and Teh 2017, appendix C.3.2.

    Arguments:
        logits: [B] log odds.
        temperature: positive number.
        forced: [B] bool or None; where true, a draw has the sign of its logit, so that generation obeys the
            limits exactly although the density keeps ε of doubt.
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.real
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: Temperature, forced: Tensor | None = None) -> None:
        self.logits, self.temperature, self.forced = logits, temperature, forced
        super().__init__(logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """[B] probability of a boundary."""
        return torch.sigmoid(self.logits)

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:
        noise = logistic(self.shape(sample_shape), self.logits)
        return draw(self.logits, noise, self.temperature, self.forced)

    def log_prob(self, value: Tensor) -> Tensor:
        return boundary_log_prob(value, self.logits, self.temperature)

    def expand(self, batch_shape: _size, _instance: object = None) -> RelaxedBoundary:
        forced = None if self.forced is None else self.forced.expand(batch_shape)
        return RelaxedBoundary(self.logits.expand(batch_shape), self.temperature, forced)


class HardBoundary(dist.Bernoulli):
    """Bernoulli boundary, the relaxed one's limit at temperature 0; forced draws obey the limits exactly."""

    def __init__(self, logits: Tensor, forced: Tensor | None = None) -> None:
        self.forced = forced
        super().__init__(logits=logits)

    @torch.no_grad()
    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:
        # `torch.bernoulli` would refuse a NaN without naming a site; the density reports the NaN instead.
        return draw(self.logits, logistic(self._extended_shape(sample_shape), self.logits), 0, self.forced)

    def expand(self, batch_shape: _size, _instance: object = None) -> HardBoundary:
        forced = None if self.forced is None else self.forced.expand(batch_shape)
        return HardBoundary(self.logits.expand(batch_shape), forced)


def logistic(shape: torch.Size, like: Tensor) -> Tensor:
    """Standard logistic noise with the dtype and device of `like`."""
    noise = torch.empty(shape, dtype=like.dtype, device=like.device).uniform_()
    return torch.logit(noise, eps=torch.finfo(noise.dtype).eps)


def draw(logits: Tensor, noise: Tensor, temperature: Temperature, forced: Tensor | None = None) -> Tensor:
    """The values of boundary sites that belong to logistic noise: in logit space while relaxed, else 0 or 1.

    Arguments:
        logits: log odds.
        noise: noise of :func:`logistic`, which broadcasts with the log odds.
        temperature: at least 0.
        forced: bool, true where the value takes the side of its log odds whatever the noise; None for nowhere.
    """
    value = logits + noise
    if forced is not None:
        value = torch.where(forced, torch.copysign(value, logits), value)
    return (value > 0).to(value.dtype) if is_hard(temperature) else value / temperature


def boundary_log_prob(value: Tensor, logits: Tensor, temperature: Temperature) -> Tensor:
    """Log density of a relaxed boundary's value in logit space; at temperature 0, log probability of a 0 or 1."""
    if is_hard(temperature):
        return -F.binary_cross_entropy_with_logits(logits, value, reduction="none")
    distance = value * temperature - logits
    log_temperature = temperature.log() if isinstance(temperature, Tensor) else math.log(temperature)
    return log_temperature - distance + 2 * F.logsigmoid(distance)


def decide(value: Tensor, temperature: Temperature) -> Tensor:
    """The boundary in {0, 1} that belongs to a site's value: [B] floats.

    At a positive temperature, the forward pass gives the hard decision and the backward pass the relaxed sample's
    gradient (straight-through). At 0 the result is the value itself.
    """
    if is_hard(temperature):
        return value
    soft = torch.sigmoid(value)
    return (value > 0).to(value.dtype) + (soft - soft.detach())


def switch(boundary: Tensor, share: float | Tensor) -> Tensor:
    """The boundary as the factor that switches densities on or off: its value, and a share of its gradient.

    Arguments:
        boundary: [B] in {0, 1}.
        share: from 0 to 1; a tensor, which a compiled program takes as an argument, is positive.
    """
    fixed = boundary.detach()
    if not isinstance(share, Tensor) and share in (0, 1):
        return boundary if share == 1 else fixed
    return fixed + share * (boundary - fixed)


def decide_and_switch(value: Tensor, temperature: Temperature, share: float | Tensor) -> tuple[Tensor, Tensor]:
    """The boundary in {0, 1} of :func:`decide`, and the factor of :func:`switch`."""
    boundary = decide(value, temperature)
    return boundary, switch(boundary, share)


class GreyBernoulli(dist.Bernoulli):
    """Bernoulli whose observations may be any grey value in [0, 1], scored as a cross-entropy; draws are 0 or 1."""

    support = constraints.unit_interval

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # x·l - log(1 + exp(l)) takes half the kernels of torch's cross-entropy. Above the threshold, softplus(l) is l.
        return value * self.logits - F.softplus(self.logits, threshold=40)
