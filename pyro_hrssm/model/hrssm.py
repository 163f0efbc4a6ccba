"""HRSSM as a Pyro program: `model` and `guide`, their loops and their `pyro.sample` statements.

Sites, per frame t: `m_t` the boundary after frame t (in logit space while relaxed), `z_t` the abstract
state (masked where it is copied), `s_t` the observation state; and once, `x`, the observed frames, or
`x_future`, frames that nobody gave. Training, forecasting, sampling and jumpy imagination are this one
`model`, driven by Pyro's handlers: replay the guide's trace and let the sites after it fall to the prior.
"""

from __future__ import annotations

from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_hrssm.batching.deferred import Deferred, Frame, value_of
from pyro_hrssm.batching.walks import carried
from pyro_hrssm.config import HRSSMConfig, InputError
from pyro_hrssm.model.base import Given, Inference, Rollout, StateSpaceModel, at, check_rollout, weighted
from pyro_hrssm.model.distributions import Forced, Temperature, decide
from pyro_hrssm.model.levels import AbstractLevel, AbstractState, ObservationLevel, ObservationState, SegmentEmission
from pyro_hrssm.model.paths import BoundaryChain, Grid, PathDraws, PathMessages, SegmentLimits
from pyro_hrssm.model.posterior import Posterior
from pyro_hrssm.model.sites import BoundarySites, NormalSites, Site


class _Walk(NamedTuple):
    """What the loop over frames has been through so far; fields as in :class:`Rollout`."""

    boundaries: list[Tensor]
    priors: list[Site]
    abstract: list[AbstractState]
    observation: list[ObservationState]
    features: Deferred


class _Program(NamedTuple):
    """What p computes along one walk, for all frames at once where nobody asks before."""

    z: Deferred
    """z, kept until a segment opens."""
    c: Deferred
    opened: Deferred
    """h of a frame that opens a segment."""
    h: Deferred
    z_prior: Deferred
    s_prior: Deferred
    features: Deferred
    m: Deferred
    """The boundary that a site's value stands for."""
    limits: Deferred
    """Counts of segments and frames, and what the limits force after each frame."""
    m_logits: Deferred
    """Log odds of a boundary, limits applied."""

    @classmethod
    def of(cls, model: HRSSM, first: Tensor, temperature: Temperature) -> _Program:
        """That of a walk from the belief c_0."""
        abstract, observation = model.abstract, model.observation
        opened = Deferred(observation.opened)
        return cls(
            z=Deferred(_carried, first.new_zeros(first.shape[0], model.config.abstract_size)),
            c=Deferred(abstract.beliefs, first),
            opened=opened,
            h=Deferred(observation.beliefs, Frame(opened, 0)),
            z_prior=Deferred(abstract.prior),
            s_prior=Deferred(observation.prior),
            features=Deferred(model.emission.features),
            m=Deferred(lambda values: (decide(values, temperature),)),
            limits=Deferred(model.limits.along, torch.zeros(first.shape[0], 3, dtype=torch.long, device=first.device)),
            m_logits=Deferred(_clamped),
        )

    def boundary(self, feature: Frame, update: Tensor | Frame, limits: SegmentLimits) -> tuple[Frame, Frame | None]:
        """Log odds of the boundary after a frame with this feature and update, and what the limits say of it."""
        logits = feature.part(1)
        if not limits.bind:
            return logits, None
        path = self.limits.add(update)
        return self.m_logits.add(logits, path.part(1), path.part(2)), path


class HRSSM(StateSpaceModel, kind="hrssm"):
    """Hierarchical Recurrent State Space Model (Kim, Ahn and Bengio 2019, *Variational Temporal Abstraction*).

    `model` and `guide` are Pyro programs over the same arguments, for `SVI`, `Predictive`, `poutine` and
    `pyro.render_model`:

        frames: [B, T, X…] floats; the first `config.context` of them are given, not modelled. None to sample
            from the prior.
        mask: [B, T] bool, true where a frame is observed. Frames past the last observed one lie beyond the
            sequence's end; others are missing, and nothing sees their values.
        horizon: frames to roll on after those given.
        size: sequences to draw where no frames are given.
        temperature: of the relaxed boundaries; 0 draws and scores hard Bernoulli ones, which makes the
            ELBO a true bound.
        kl_weight: factor on the log densities of all latent sites.
        state_weight: further factor on those of s.
        jumpy: every frame of the horizon opens a segment: one frame per future segment.
    """

    posterior: Posterior

    def __init__(self, config: HRSSMConfig) -> None:
        super().__init__()
        self.config = config
        self.abstract = AbstractLevel(config)
        self.observation = ObservationLevel(config)
        self.emission = SegmentEmission(config)
        self.posterior = Posterior(config)
        self.limits = SegmentLimits(config.max_segments, config.max_length, config.window)

    # The generative model

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
        """p(X, Z, S, M): the generative model (paper, section 2); arguments as the class says."""
        self.register()
        given = self.given(frames, mask, size)
        check_rollout(given, horizon, temperature)
        with pyro.plate("sequences", given.size, dim=-1):
            with weighted(kl_weight):
                walk = self._walk(given, horizon, temperature, jumpy, state_weight)
            if walk.boundaries:
                pyro.deterministic("boundaries", torch.stack(walk.boundaries, -1).detach(), event_dim=1)
            observed, future = self.emit(given, walk.features)
        return Rollout(walk.boundaries, walk.priors, walk.abstract, walk.observation, observed, future)

    def _walk(
        self, given: Given, horizon: int, temperature: Temperature, jumpy: bool, state_weight: float | Tensor
    ) -> _Walk:
        """The loop over frames: states and boundaries from the prior, or from a replayed trace."""
        boundaries: list[Frame] = []
        priors: list[Site] = []
        abstract: list[tuple[Frame | Tensor, Frame]] = []
        observation: list[tuple[Frame, Tensor]] = []
        first = self.abstract.first_belief(given.size, self.summarise(given))
        p = _Program.of(self, first, temperature)
        z_sites = NormalSites(torch.Size([given.size, self.config.abstract_size]))
        s_sites = NormalSites(torch.Size([given.size, self.config.observation_size]))
        m_sites = BoundarySites(given.size, temperature)
        total = given.length + horizon
        # Past this frame a jumpy roll-out opens a segment at every frame, with no boundary to draw.
        past = given.length if jumpy else total
        everywhere = first.new_ones(given.size)
        for t in pyro.markov(range(total)):
            update = boundaries[-1] if 0 < t < past else everywhere
            valid = at(given.valid, t)

            c = first if t == 0 else p.c.add(abstract[-1][1], update)
            new = z_sites.keep(pyro.sample(f"z_{t}", z_sites.at(p.z_prior.add(c), update, *valid)))
            z = p.z.add(new, update)
            abstract.append((c, z))

            h = p.opened.add(c, z)
            if 0 < t < past:
                h = p.h.add(h, observation[-1][1], z, update)
            with weighted(state_weight):
                s = s_sites.keep(pyro.sample(f"s_{t}", s_sites.at(p.s_prior.add(h), *valid)))
            observation.append((h, s))

            feature = p.features.add(h, s)
            if t + 1 < past:
                prior = m_sites.at(*p.boundary(feature, update, self.limits), *at(given.valid, t + 1))
                boundaries.append(p.m.add(m_sites.keep(pyro.sample(f"m_{t}", prior))))
                priors.append(prior)
        return _Walk(
            [value_of(m) for m in boundaries],
            priors,
            [AbstractState(value_of(c), value_of(z)) for c, z in abstract],
            [ObservationState(value_of(h), s) for h, s in observation],
            p.features,
        )

    # The guide

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
        """q(Z, S, M | X): boundaries first, then z, then s (paper, section 2); arguments as the class says.

        Frames of the horizon are left to the model's prior; without frames nothing is drawn.
        """
        self.register()
        given = self.given(frames, mask, size)
        if given.frames is None or given.length == 0:
            return None
        encoded = self.encode(given)
        with pyro.plate("sequences", given.size, dim=-1), weighted(kl_weight):
            boundaries, posteriors = self._draw_boundaries(given, encoded, temperature)
            opens = boundaries if given.valid is None else torch.where(given.valid[1:], boundaries, 1.0)
            summaries = self.posterior.summaries(encoded, opens)
            latents = self._draw_abstract(given, boundaries, *self.posterior.abstract_parameters(summaries))
            with weighted(state_weight):
                self._draw_observation(given, *self.posterior.observation_parameters(summaries, latents))
        return Inference(boundaries, posteriors, None if given.valid is None else given.valid[1:])

    def _draw_boundaries(self, given: Given, encoded: Tensor, temperature: Temperature) -> tuple[Tensor, list[Site]]:
        """Sites m_t of q(M | X): [T-1, B] boundaries and their distributions."""
        path = PathDraws(self._chain(given, encoded), temperature)
        sites = BoundarySites(given.size, temperature)
        values: list[Tensor] = []
        posteriors: list[Site] = []
        for t in pyro.markov(range(given.length - 1)):
            drawn, logits, forced = path.at(t)
            fn = sites.at(logits, forced, *at(given.valid, t + 1), drawn=drawn)
            values.append(sites.keep(pyro.sample(f"m_{t}", fn)))
            path.keep(t, values[-1])
            posteriors.append(fn)
        stacked = torch.stack(values) if values else encoded.new_zeros(0, given.size)
        return decide(stacked, temperature), posteriors

    def _chain(self, given: Given, encoded: Tensor) -> BoundaryChain:
        """q(M | X), in the form configured."""
        posterior = self.config.boundary_posterior if self.limits.bind else "factorised"
        acts = None if given.valid is None else given.valid[1:].T
        phi = self.posterior.boundary_logits(encoded, self.valid_with_context(given))[:-1]
        if posterior == "conditioned":
            messages = PathMessages.run(phi.T, self.limits, acts)
            return BoundaryChain(messages.log_odds, messages.grid, self.limits, acts)
        limits = SegmentLimits(None, None) if posterior == "factorised" else self.limits
        grid = Grid.of(limits, len(phi), phi.device)
        return BoundaryChain(phi.unsqueeze(1).expand(-1, len(grid.opened), -1), grid, limits, acts)

    @torch.no_grad()
    def boundary_chain(self, frames: Tensor, mask: Tensor | None = None) -> BoundaryChain:
        """q(M | X) of these frames [B, T, X…] as a Markov chain, for exact marginals and the most probable path."""
        given = self.given(frames, mask, None)
        if given.frames is None or given.length < 2:
            raise InputError(f"segments need at least 2 modelled frames, found {given.length}")
        return self._chain(given, self.encode(given))

    def _draw_abstract(self, given: Given, boundaries: Tensor, means: Tensor, scales: Tensor) -> Tensor:
        """Sites z_t of q(z_t | M, X): the abstract states [T, B, Z], copied where no segment opens."""
        updates = torch.cat([torch.ones_like(means[:1, :, 0]), boundaries])
        sites = NormalSites(means.shape[1:], (means, scales))
        for t, update in zip(pyro.markov(range(given.length)), updates.unbind(0), strict=True):
            sites.keep(pyro.sample(f"z_{t}", sites.at_known(t, update, *at(given.valid, t))))
        return carried(torch.zeros_like(means[0]), sites.values(), updates)

    def _draw_observation(self, given: Given, means: Tensor, scales: Tensor) -> None:
        """Sites s_t of q(s_t | z_t, M, X)."""
        sites = NormalSites(means.shape[1:], (means, scales))
        for t in pyro.markov(range(given.length)):
            sites.keep(pyro.sample(f"s_{t}", sites.at_known(t, *at(given.valid, t))))


def _carried(before: Tensor, new: Tensor, updates: Tensor) -> tuple[Tensor]:
    return (carried(before, new, updates),)


def _clamped(logits: Tensor, none: Tensor, some: Tensor) -> tuple[Tensor]:
    return (Forced(none, some).clamp(logits),)
