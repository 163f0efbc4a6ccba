"""RSSM, the flat recurrent state space model: a baseline for the hierarchical model, with the same interface.

    p(X, S) = Π_t p(x_t | s_t, h_t) p(s_t | h_t),   h_t = f_rnn(s_{t-1}, h_{t-1})

The model has no segments: every frame has a belief and a latent state, of the sizes of HRSSM's observation level.
Its sites are `s_t`, `x` and `x_future`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor, nn

from pyro_hrssm.batching.later import Later, Value
from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.errors import InputError
from pyro_hrssm.model.base import Inference, Rollout, StateSpaceModel, Walk
from pyro_hrssm.model.given import Arguments, Array, Call, Given, check_rollout, encode, summarise
from pyro_hrssm.model.levels import Emission
from pyro_hrssm.model.networks import GRU, GaussianHead, widened
from pyro_hrssm.model.posterior import FlatPosterior
from pyro_hrssm.model.sites import ScoredTogether, latent, sample_latents, weighted

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RSSM(StateSpaceModel, kind="rssm"):
    """Recurrent state space model (after Hafner et al. 2019, *Learning Latent Dynamics for Planning from Pixels*).

    Here q(s_t | X) sees all frames, as HRSSM's does, so that the bounds of both models can be compared; the original's
    sees the frames up to t. `model` and `guide` take HRSSM's arguments; `jumpy` is refused, and the others about
    boundaries have no effect.
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

    # The generative model

    def model(self, frames: Array | None = None, mask: Array | None = None, **arguments: Unpack[Arguments]) -> Rollout:
        """p(X, S): the generative model."""
        call, given = self.called(frames, mask, arguments)
        if call.jumpy:
            raise InputError("jumpy imagination needs segments, and an RSSM has none")
        check_rollout(given, call)
        with given.rows.plate():
            with weighted(call.kl_weight), weighted(call.state_weight), ScoredTogether(self.like):
                walk = self._loop(given, call)
            return self.emit(given, walk)

    def _loop(self, given: Given, call: Call) -> Walk:
        """Run the loop over frames: states come from the prior, or from a replayed trace."""
        s_shape = torch.Size([given.size, self.config.observation_size])
        nothing = torch.zeros(given.size, 0, device=self.device)
        first = self._first_belief(given)
        h: Value = first
        s = first.new_zeros(s_shape)  # s_{-1} is never read
        walk = Walk()
        later = Later()  # later(f, values of a frame): computed for many frames when the first result is needed
        for t in pyro.markov(range(given.length + call.horizon)):
            if t > 0:
                h = later.scan(self.beliefs, h, s)
            s = pyro.sample(f"s_{t}", latent(later(self.prior, h), s_shape, *given.valid_at(t)))
            walk.abstract.append((nothing, nothing))
            walk.observation.append((h, s))
            walk.features.append(later(self.emission.feature, h, s))
        return walk

    def beliefs(self, before: Tensor, latents: Tensor) -> Tensor:
        """Beliefs h of n frames [n, B, H], from the h before the first of them and every frame's s_{t-1}."""
        return self.recurrence(latents, before)

    def _first_belief(self, given: Given) -> Tensor:
        """h_0 [B, H]: learned, or computed from the context."""
        summary = summarise(self.posterior, given)
        return self.first.expand(given.size, -1) if summary is None else torch.tanh(widened(self.from_context(summary)))

    # The guide

    def guide(
        self, frames: Array | None = None, mask: Array | None = None, **arguments: Unpack[Arguments]
    ) -> Inference | None:
        """q(S | X) = Π_t q(s_t | X)."""
        call, given = self.called(frames, mask, arguments)
        if given.frames is None or given.length == 0:
            return None
        encoded = encode(self.posterior, given)
        parameters = self.posterior.observation_parameters(encoded, given.valid_with_context)
        with (
            given.rows.plate(),
            weighted(call.kl_weight),
            weighted(call.state_weight),
            ScoredTogether(self.like),
        ):
            sample_latents("s", parameters, given.valid_at_each)
        return Inference(encoded.new_zeros(0, given.size), []).unfolded(given.rows)
