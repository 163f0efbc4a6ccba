"""Each level of p: the formulas of the generative model (Kim, Ahn and Bengio 2019, section 2), for one frame or many.

`updates` are `m_{t-1}` as factors [n, B] in {0, 1}.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.model.distributions import GreyBernoulli
from pyro_hrssm.model.networks import GRU, ConvDecoder, DenseDecoder, GaussianHead, he_normal, widened

SMALLEST_MEAN = 0.01
"""Least distance of a Bernoulli mean from 0 and 1 at the start of training: an always black pixel may yet be white."""


SMALLEST_NOISE = 0.02
"""Floor of a learned standard deviation of the emission, in the units of the scaled frames: noise-free entries would
drive it to 0, and their density to infinity."""

FIRST_NOISE = 0.3
"""A learned standard deviation at the start of training, as a share of the entry's own over all frames. From 1 on, no
state would have anything to explain; from far less, s would encode the noise."""


class AbstractState(NamedTuple):
    """The slow level: belief c [B, H] and latent z [B, Z], constant within a segment."""

    belief: Tensor
    latent: Tensor


class ObservationState(NamedTuple):
    """The fast level: belief h [B, H] and latent s [B, S], new at every frame."""

    belief: Tensor
    latent: Tensor


class AbstractLevel(nn.Module):
    """`c_t = f_z-rnn(z_{t-1}, c_{t-1})` and `z_t ~ N(μ_z(c_t), σ_z(c_t))` at UPDATE; both kept at COPY."""

    def __init__(self, config: HRSSMConfig) -> None:
        super().__init__()
        self.recurrence = GRU(config.abstract_size, config.hidden)
        self.prior = GaussianHead(config.hidden, config.hidden, config.abstract_size, config.min_scale)
        if config.context > 0:
            self.from_context = nn.Linear(config.hidden, config.hidden)
        else:
            self.first = nn.Parameter(torch.zeros(config.hidden))

    def first_belief(self, size: int, summary: Tensor | None) -> Tensor:
        """c_0 [B, H]: learned, or computed from the context's forward summary [B, H]."""
        if summary is None:
            return self.first.expand(size, -1)
        return torch.tanh(widened(self.from_context(summary)))

    def beliefs(self, before: Tensor, latents: Tensor, updates: Tensor) -> Tensor:
        """Beliefs c of n frames [n, B, H], from the c before the first of them and every frame's z_{t-1} and update."""
        return self.recurrence(latents, before, updates.unsqueeze(-1))


class ObservationLevel(nn.Module):
    """`h_t = f_s-mlp(c_t, z_t)` at INIT, `f_s-rnn(s_{t-1} ‖ z_t, h_{t-1})` at UPDATE; `s_t ~ N(μ_s(h_t), σ_s(h_t))`."""

    def __init__(self, config: HRSSMConfig) -> None:
        super().__init__()
        hidden, abstract, observation = config.hidden, config.abstract_size, config.observation_size
        # tanh keeps the belief in the range of a GRU's beliefs.
        self.first = nn.Sequential(nn.Linear(hidden + abstract, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.Tanh())
        if config.convolutional:
            he_normal(self.first)
        self.recurrence = GRU(observation + abstract, hidden)
        self.prior = GaussianHead(hidden, hidden, observation, config.min_scale)

    def opened(self, beliefs: Tensor, latents: Tensor) -> Tensor:
        """Beliefs h [n, B, H] of n frames that open a segment, from their c and z."""
        return widened(self.first(torch.cat([beliefs, latents], -1)))

    def beliefs(self, before: Tensor, opened: Tensor, observed: Tensor, latents: Tensor, updates: Tensor) -> Tensor:
        """Beliefs h of n frames [n, B, H].

        Arguments:
            before: the h before the first of them.
            opened: the h that every frame has if it opens a segment.
            observed: every frame's s_{t-1}.
            latents: every frame's z_t.
            updates: every frame's m_{t-1}.
        """
        return self.recurrence(torch.cat([observed, latents], -1), before, (1 - updates).unsqueeze(-1), opened)


class Emission(nn.Module):
    """The emission: a feature of `(h_t, s_t)`, and `p(x_t | ·)` computed from this feature."""

    def __init__(self, config: HRSSMConfig) -> None:
        super().__init__()
        self.likelihood = config.likelihood
        self.noise_scale = config.noise_scale
        if self.learns_noise:
            self.log_noise = nn.Parameter(torch.full(config.frame_shape, math.log(FIRST_NOISE)))
        self.axes = len(config.frame_shape)
        self.combine = nn.Linear(config.hidden + config.observation_size, config.hidden)
        self.decoder: ConvDecoder | DenseDecoder
        if config.convolutional:
            he_normal(self.combine)
            self.decoder = ConvDecoder(config.frame_shape, config.hidden, config.channels)
        else:
            self.decoder = DenseDecoder(config.frame_shape, config.hidden)

    def feature(self, beliefs: Tensor, latents: Tensor) -> Tensor:
        """The feature [..., H] of `(h, s)`."""
        return widened(F.elu(self.combine(torch.cat([beliefs, latents], -1))))

    def frames(self, features: Tensor, entries: Tensor | None = None) -> TorchDistribution:
        """p(x | ·) of many frames: features [..., H] -> batch shape […], event shape X….

        Arguments:
            entries: […, X…] flags or weights of a mask of entries; missing entries have no density.
        """
        each = self._each(self.decoder(features), entries)
        return (each if entries is None else each.mask(entries > 0)).to_event(self.axes)

    def _each(self, decoded: Tensor, entries: Tensor | None) -> TorchDistribution:
        """The distribution of every entry, without a mask."""
        if self.likelihood != "normal":
            return GreyBernoulli(logits=decoded)
        noise = self.noise(decoded)
        if entries is not None and entries.is_floating_point():
            # A missing entry that is drawn has the noise of any other.
            noise = noise * torch.where(entries > 0, entries, 1).to(noise.dtype).rsqrt()
        return dist.Normal(decoded, noise)

    @property
    def learns_noise(self) -> bool:
        """Whether the emission is a Normal whose standard deviations are parameters."""
        return self.likelihood == "normal" and self.noise_scale == "learned"

    def noise(self, like: Tensor) -> Tensor:
        """Standard deviation [X…] of every entry of a frame under the Normal emission; device and dtype of `like`."""
        if isinstance(self.noise_scale, str):
            return SMALLEST_NOISE + self.log_noise.exp()
        return like.new_full(like.shape[like.dim() - self.axes :], self.noise_scale)

    @torch.no_grad()
    def start_at(self, mean: Tensor, deviation: Tensor) -> None:
        """Start p(x_t | ·) at this mean for every state, as far as the decoder's biases can tell entries apart.

        A learned noise starts at a share of what then separates the entry from the frames, on average.

        Arguments:
            mean: [X…] mean of every entry over frames.
            deviation: [X…] standard deviation of every entry over frames.
        """
        start = self.decoder.start_at(mean if self.likelihood == "normal" else torch.logit(mean, eps=SMALLEST_MEAN))
        if self.learns_noise:
            error = torch.hypot(deviation, mean - start)
            self.log_noise.copy_((FIRST_NOISE * error).clamp(min=SMALLEST_NOISE).log())


class SegmentEmission(Emission):
    """An emission whose feature also gives, through f_m(s, h), the log odds that the segment ends."""

    def __init__(self, config: HRSSMConfig) -> None:
        super().__init__(config)
        self.boundary = nn.Linear(config.hidden, 1)

    def features(self, beliefs: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The feature [..., H] of `(h, s)`, and f_m(s, h): the boundary's log odds […], before the limits."""
        feature = self.feature(beliefs, latents)
        return feature, widened(self.boundary(feature)).squeeze(-1)
