"""HRSSM as a Pyro program: `model` and `guide`, their loops and their `pyro.sample` statements.

Sites, per frame t: `m_t` the boundary after frame t (in logit space while relaxed), `z_t` the abstract
state (masked where it is copied), `s_t` the observation state; and once, `x`, the observed frames, or
`x_future`, frames that nobody gave. Training, forecasting, sampling and jumpy imagination are this one
`model`, driven by Pyro's handlers: replay the guide's trace and let the sites after it fall to the prior.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_hrssm.base import (
    Boundary,
    Given,
    Inference,
    Rollout,
    StateSpaceModel,
    at,
    check_rollout,
    masked,
    state,
    weighted,
)
from pyro_hrssm.config import HRSSMConfig, InputError
from pyro_hrssm.distributions import BoundaryChain, Counts, Grid, PathMessages, SegmentLimits, boundary, decide
from pyro_hrssm.levels import AbstractLevel, AbstractState, ObservationLevel, ObservationState, SegmentEmission, choose
from pyro_hrssm.networks import Deferred, Frame, belief
from pyro_hrssm.posterior import Posterior


class _Walk(NamedTuple):
    """What the loop over frames has been through so far; fields as in :class:`Rollout`."""

    boundaries: list[Tensor]
    priors: list[Boundary]
    abstract: list[AbstractState]
    observation: list[ObservationState]
    features: Deferred


class _Networks(NamedTuple):
    """What p computes along one walk, for all frames at once where nobody asks before."""

    c: Deferred
    opened: Deferred
    """h of a frame that opens a segment."""
    h: Deferred
    z: Deferred
    s: Deferred
    features: Deferred

    @classmethod
    def of(cls, model: HRSSM, first: Tensor) -> _Networks:
        """Those of a walk from the belief c_0."""
        abstract, observation = model.abstract, model.observation
        opened = Deferred(observation.opened)
        return cls(
            Deferred(abstract.beliefs, first),
            opened,
            Deferred(observation.beliefs, Frame(opened, 0)),
            Deferred(abstract.prior),
            Deferred(observation.prior),
            Deferred(model.emission.features),
        )


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
        temperature: float = 1.0,
        kl_weight: float = 1.0,
        jumpy: bool = False,
    ) -> Rollout:
        """p(X, Z, S, M): the generative model (paper, section 2); arguments as the class says."""
        self.register()
        given = self.given(frames, mask, size)
        check_rollout(given, horizon, temperature)
        with pyro.plate("sequences", given.size, dim=-1):
            with weighted(kl_weight):
                walk = self._walk(given, horizon, temperature, jumpy)
            if walk.boundaries:
                pyro.deterministic("boundaries", torch.stack(walk.boundaries, -1).detach(), event_dim=1)
            observed, future = self.emit(given, walk.features)
        return Rollout(walk.boundaries, walk.priors, walk.abstract, walk.observation, observed, future)

    def _walk(self, given: Given, horizon: int, temperature: float, jumpy: bool) -> _Walk:
        """The loop over frames: states and boundaries from the prior, or from a replayed trace."""
        boundaries: list[Tensor] = []
        priors: list[Boundary] = []
        abstract: list[tuple[Frame | Tensor, Tensor]] = []
        observation: list[tuple[Frame, Tensor]] = []
        first = self.abstract.first_belief(given.size, self.summarise(given))
        p = _Networks.of(self, first)
        shape_z = torch.Size([given.size, self.config.abstract_size])
        shape_s = torch.Size([given.size, self.config.observation_size])
        total = given.length + horizon
        # Past this frame a jumpy roll-out opens a segment at every frame, with no boundary to draw.
        past = given.length if jumpy else total
        counts = Counts.first(given.size, self.device)
        everywhere = first.new_ones(given.size, 1)
        for t in pyro.markov(range(total)):
            opens = boundaries[-1] if 0 < t < past else None
            update = everywhere if opens is None else opens.unsqueeze(-1)
            valid = at(given.valid, t)

            c = first if t == 0 else p.c.add(abstract[-1][1], update)
            new = pyro.sample(f"z_{t}", state(p.z.add(c), shape_z, _both(valid, opens)))
            z = new if opens is None else choose(new, abstract[-1][1], update)
            abstract.append((c, z))

            h = p.opened.add(c, z)
            if opens is not None:
                h = p.h.add(h, observation[-1][1], z, update)
            s = pyro.sample(f"s_{t}", state(p.s.add(h), shape_s, valid))
            observation.append((h, s))

            feature = p.features.add(h, s)
            if t + 1 < past:
                prior = boundary(
                    partial(_second, feature), counts.length.shape, temperature, self.limits.forced(counts, t)
                )
                value = pyro.sample(f"m_{t}", masked(prior, at(given.valid, t + 1)))
                boundaries.append(decide(value, temperature))
                priors.append(prior)
                counts = counts.after(boundaries[-1] > 0.5)
        return _Walk(
            boundaries,
            priors,
            [AbstractState(belief(c), z) for c, z in abstract],
            [ObservationState(belief(h), s) for h, s in observation],
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
        temperature: float = 1.0,
        kl_weight: float = 1.0,
        jumpy: bool = False,
    ) -> Inference | None:
        """q(Z, S, M | X): boundaries first, then z, then s (paper, section 2); arguments as the class says.

        Frames of the horizon are left to the model's prior; without frames nothing is drawn.
        """
        self.register()
        given = self.given(frames, mask, size)
        if given.frames is None or given.length == 0:
            return None
        encoded = self.encode(given.context, given.frames, given.seen)
        with pyro.plate("sequences", given.size, dim=-1), weighted(kl_weight):
            boundaries, posteriors = self._draw_boundaries(given, encoded, temperature)
            opens = boundaries if given.valid is None else torch.where(given.valid[1:], boundaries, 1.0)
            summaries = self.posterior.summaries(encoded, opens)
            latents = self._draw_abstract(given, boundaries, *self.posterior.abstract_parameters(summaries))
            self._draw_observation(given, *self.posterior.observation_parameters(summaries, latents))
        return Inference(boundaries, posteriors)

    def _draw_boundaries(self, given: Given, encoded: Tensor, temperature: float) -> tuple[Tensor, list[Boundary]]:
        """Sites m_t of q(M | X): [T-1, B] boundaries and their distributions."""
        posterior, acts, phi = self._boundary_logits(given, encoded)
        if posterior == "conditioned":
            messages = PathMessages.run(phi.T, self.limits, acts)
        free = phi.unbind(0)
        counts = Counts.first(given.size, phi.device)
        boundaries: list[Tensor] = []
        posteriors: list[Boundary] = []
        for t in pyro.markov(range(given.length - 1)):
            forced = None if posterior == "factorised" else self.limits.forced(counts, t)
            logits = partial(messages.at, t, counts) if posterior == "conditioned" else partial(free.__getitem__, t)
            fn = boundary(logits, counts.length.shape, temperature, forced)
            value = pyro.sample(f"m_{t}", masked(fn, at(given.valid, t + 1)))
            boundaries.append(decide(value, temperature))
            posteriors.append(fn)
            counts = counts.after(boundaries[-1] > 0.5)
        return (torch.stack(boundaries) if boundaries else phi), posteriors

    def _boundary_logits(self, given: Given, encoded: Tensor) -> tuple[str, Tensor | None, Tensor]:
        """The form of q(M | X), which boundaries act [B, T-1], and φ [T-1, B]."""
        posterior = self.config.boundary_posterior if self.limits.bind else "factorised"
        acts = None if given.valid is None else given.valid[1:].T
        return posterior, acts, self.posterior.boundary_logits(encoded, self.valid_with_context(given))[:-1]

    @torch.no_grad()
    def boundary_chain(self, frames: Tensor, mask: Tensor | None = None) -> BoundaryChain:
        """q(M | X) of these frames [B, T, X…] as a Markov chain, for exact marginals and the most probable path."""
        given = self.given(frames, mask, None)
        if given.frames is None or given.length < 2:
            raise InputError(f"segments need at least 2 modelled frames, found {given.length}")
        posterior, acts, phi = self._boundary_logits(given, self.encode(given.context, given.frames, given.seen))
        limits = SegmentLimits(None, None) if posterior == "factorised" else self.limits
        if posterior == "conditioned":
            messages = PathMessages.run(phi.T, limits, acts)
            return BoundaryChain(messages.log_odds, messages.grid, limits, acts)
        grid = Grid.of(limits, len(phi), phi.device)
        return BoundaryChain([odds.expand(len(grid.opened), -1) for odds in phi.unbind(0)], grid, limits, acts)

    def _draw_abstract(self, given: Given, boundaries: Tensor, means: Tensor, scales: Tensor) -> Tensor:
        """Sites z_t of q(z_t | M, X): the abstract states [T, B, Z], copied where no segment opens."""
        latents: list[Tensor] = []
        opens = [None, *boundaries.unbind(0)]
        parameters = list(zip(means.unbind(0), scales.unbind(0), strict=True))
        for t in pyro.markov(range(given.length)):
            opened = opens[t]
            fn = state(partial(parameters.__getitem__, t), means.shape[1:], _both(at(given.valid, t), opened))
            new = pyro.sample(f"z_{t}", fn)
            latents.append(new if opened is None else choose(new, latents[-1], opened.unsqueeze(-1)))
        return torch.stack(latents)

    def _draw_observation(self, given: Given, means: Tensor, scales: Tensor) -> None:
        """Sites s_t of q(s_t | z_t, M, X)."""
        parameters = list(zip(means.unbind(0), scales.unbind(0), strict=True))
        for t in pyro.markov(range(given.length)):
            pyro.sample(f"s_{t}", state(partial(parameters.__getitem__, t), means.shape[1:], at(given.valid, t)))


def _both(valid: Tensor | None, opens: Tensor | None) -> Tensor | None:
    """The mask of z_t: in the sequence, and opening a segment. Hard, so that no boundary learns to hide a term."""
    if opens is None:
        return valid
    opened = opens > 0.5
    return opened if valid is None else opened & valid


def _second(outputs: Callable[[], tuple[Tensor, ...]]) -> Tensor:
    return outputs()[1]
