"""RSSM: the flat recurrent state space model, the hierarchical one's baseline, with the same interface.

    p(X, S) = Π_t p(x_t | s_t, h_t) p(s_t | h_t),   h_t = f_rnn(s_{t-1}, h_{t-1})

No segments: a belief and a latent state per frame, of the sizes of HRSSM's observation level. Sites: `s_t`, `x` and
`x_future`.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn

from pyro_hrssm.batching.deferred import Deferred, Frame, value_of
from pyro_hrssm.config import HRSSMConfig, InputError
from pyro_hrssm.model.base import Given, Inference, Rollout, StateSpaceModel, at, check_rollout, weighted
from pyro_hrssm.model.distributions import Temperature
from pyro_hrssm.model.levels import AbstractState, Emission, ObservationState
from pyro_hrssm.model.networks import GRU, GaussianHead, whole
from pyro_hrssm.model.posterior import FlatPosterior
from pyro_hrssm.model.sites import NormalSites


class RSSM(StateSpaceModel, kind="rssm"):
    """Recurrent state space model (after Hafner et al. 2019, *Learning Latent Dynamics for Planning from Pixels*).

    Its q(s_t | X) sees all frames, as HRSSM's does, where the original's sees those up to t; so their bounds compare.
    `model` and `guide` take HRSSM's arguments; those about boundaries change nothing, but `jumpy` is refused.
    """

    posterior: FlatPosterior

    def __init__(self, config: HRSSMConfig) -> None:
        super().__init__()
        self.config = config
        hidden, observation = config.hidden, config.observation_size
        self.recurrence = GRU(observation, hidden)
        self.prior = GaussianHead(hidden, hidden, observation, config.min_scale)
        if config.context > 0:
            self.from_context = nn.Linear(hidden, hidden)
        else:
            self.first = nn.Parameter(torch.zeros(hidden))
        self.emission = Emission(config)
        self.posterior = FlatPosterior(config)

    def model(
        self,
        frames: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        horizon: int = 0,
        size: int | None = None,
        temperature: Temperature = 1.0,
        kl_weight: float | Tensor = 1.0,
        state_weight: float | Tensor = 1.0,
        jumpy: bool = False,
    ) -> Rollout:
        """p(X, S): the generative model."""
        if jumpy:
            raise InputError("jumpy imagination needs segments, and an RSSM has none")
        self.register()
        given = self.given(frames, mask, size)
        check_rollout(given, horizon, temperature)
        with pyro.plate("sequences", given.size, dim=-1):
            with weighted(kl_weight), weighted(state_weight):
                states, features = self._walk(given, horizon)
            observed, future = self.emit(given, features)
        nothing = torch.zeros(given.size, 0, device=self.device)
        return Rollout([], [], [AbstractState(nothing, nothing)] * len(states), states, observed, future)

    def _walk(self, given: Given, horizon: int) -> tuple[list[ObservationState], Deferred]:
        """The loop over frames: states from the prior, or from a replayed trace."""
        drawn: list[tuple[Tensor | Frame, Tensor]] = []
        features, prior = Deferred(self.emission.features), Deferred(self.prior)
        sites = NormalSites(torch.Size([given.size, self.config.observation_size]))
        first = self._first_belief(given)
        beliefs = Deferred(self._beliefs, first)
        for t in pyro.markov(range(given.length + horizon)):
            h = first if t == 0 else beliefs.add(drawn[-1][1])
            s = sites.keep(pyro.sample(f"s_{t}", sites.at(prior.add(h), *at(given.valid, t))))
            drawn.append((h, s))
            features.add(h, s)
        return [ObservationState(value_of(h), s) for h, s in drawn], features

    def _beliefs(self, before: Tensor, latents: Tensor) -> tuple[Tensor]:
        """Beliefs h of n frames [n, B, H], from h one frame before them and every s one frame before."""
        return (self.recurrence(latents, before),)

    def _first_belief(self, given: Given) -> Tensor:
        """h_0 [B, H]: learned, or computed from the context."""
        summary = self.summarise(given)
        return self.first.expand(given.size, -1) if summary is None else torch.tanh(whole(self.from_context(summary)))

    def guide(
        self,
        frames: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        horizon: int = 0,
        size: int | None = None,
        temperature: Temperature = 1.0,
        kl_weight: float | Tensor = 1.0,
        state_weight: float | Tensor = 1.0,
        jumpy: bool = False,
    ) -> Inference | None:
        """q(S | X) = Π_t q(s_t | X)."""
        self.register()
        given = self.given(frames, mask, size)
        if given.frames is None or given.length == 0:
            return None
        encoded = self.encode(given)
        means, scales = self.posterior.observation_parameters(encoded, self.valid_with_context(given))
        sites = NormalSites(means.shape[1:], (means, scales))
        with pyro.plate("sequences", given.size, dim=-1), weighted(kl_weight), weighted(state_weight):
            for t in pyro.markov(range(given.length)):
                sites.keep(pyro.sample(f"s_{t}", sites.at_known(t, *at(given.valid, t))))
        return Inference(means.new_zeros(0, given.size), [])
