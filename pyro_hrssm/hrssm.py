"""HRSSM as a Pyro program: `model` and `guide`, their loops and their `pyro.sample` statements.

Sites, per frame t: `m_t` the boundary after frame t (in logit space while relaxed), `z_t` the abstract
state (masked where it is copied), `s_t` the observation state; and once, `x`, the observed frames, or
`x_future`, frames that nobody gave. Training, forecasting, sampling and jumpy imagination are this one
`model`, driven by Pyro's handlers: replay the guide's trace and let the sites after it fall to the prior.
"""

from __future__ import annotations

import contextlib
import uuid
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_hrssm import checkpoint
from pyro_hrssm.config import HRSSMConfig, InputError, from_dict
from pyro_hrssm.distributions import (
    BoundaryChain,
    Counts,
    DeferredNormal,
    Grid,
    HardBoundary,
    PathMessages,
    RelaxedBoundary,
    SegmentLimits,
    boundary,
    decide,
)
from pyro_hrssm.levels import AbstractLevel, AbstractState, Emission, ObservationLevel, ObservationState, choose
from pyro_hrssm.networks import Deferred
from pyro_hrssm.posterior import Posterior

Boundary = RelaxedBoundary | HardBoundary


class Rollout(NamedTuple):
    """What one run of the model went through, frame by frame (the first axis of each list)."""

    boundaries: list[Tensor]
    """m_t in {0, 1}, [B] each; one fewer than frames."""
    boundary_priors: list[Boundary]
    """p(m_t | s_t, h_t, m_<t), limits applied, [B] each."""
    abstract: list[AbstractState]
    observation: list[ObservationState]
    observed: TorchDistribution | None
    """p(x | ·) of the frames given, batch [B], event [T, X…]."""
    future: TorchDistribution | None
    """p(x | ·) of the frames not given."""


class Inference(NamedTuple):
    """What one run of the guide drew."""

    boundaries: Tensor
    """[T-1, B] m_t in {0, 1}."""
    boundary_posteriors: list[Boundary]
    """q(m_t | m_<t, X), [B] each."""


class _Walk(NamedTuple):
    """What the loop over frames has been through so far; fields as in :class:`Rollout`."""

    boundaries: list[Tensor]
    priors: list[Boundary]
    abstract: list[AbstractState]
    observation: list[ObservationState]
    features: Deferred


class _Given(NamedTuple):
    """The frames a call was given, frames first."""

    context: Tensor | None
    """[K, B, X…]"""
    frames: Tensor | None
    """[T, B, X…] the modelled ones; missing frames are filled with zeros."""
    seen: Tensor | None
    """[K + T, B] bool: not missing; None if all are."""
    valid: Tensor | None
    """[T, B] bool: not past the sequence's end; None if no sequence ends early."""
    size: int
    length: int
    """T"""


_NAMES: weakref.WeakKeyDictionary[nn.Module, tuple[str, tuple[nn.Parameter, ...]]] = weakref.WeakKeyDictionary()
"""Each model's name in Pyro's parameter store, and the parameters registered under it."""


class HRSSM(nn.Module):
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

    def __init__(self, config: HRSSMConfig) -> None:
        super().__init__()
        self.config = config
        self.abstract = AbstractLevel(config)
        self.observation = ObservationLevel(config)
        self.emission = Emission(config)
        self.posterior = Posterior(config)
        self.limits = SegmentLimits(config.max_segments, config.max_length, config.window)

    @staticmethod
    def load(run: str | Path, device: str | torch.device = "cpu") -> HRSSM:
        """The model of a run folder's newest checkpoint, or of one checkpoint file, in evaluation mode."""
        return HRSSM.restore(checkpoint.load(Path(run)), device)

    @staticmethod
    def restore(loaded: checkpoint.Checkpoint, device: str | torch.device = "cpu") -> HRSSM:
        """The model of a checkpoint already read, in evaluation mode."""
        model = HRSSM(from_dict(HRSSMConfig, loaded.record.get("model")))
        model.load_weights(loaded)
        return model.to(device).eval()

    def load_weights(self, loaded: checkpoint.Checkpoint) -> None:
        """Take over a checkpoint's weights; raises :class:`InputError` where they are of another model."""
        try:
            self.load_state_dict(checkpoint.part(loaded.tensors, "model."))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the checkpoint of step {loaded.step} holds another model: {reason}") from error

    def _register(self) -> None:
        """Tell Pyro of the parameters: without a param site its ELBOs run no backward pass, silently.

        The store keeps what it first saw under a name. So a name belongs to this object, never to a copy of it, and to
        these very parameters: others put in their place get a new one.
        """
        parameters = tuple(self.parameters())
        name, known = _NAMES.get(self, ("", ()))
        if len(known) != len(parameters) or any(old is not new for old, new in zip(known, parameters, strict=True)):
            name = f"hrssm_{uuid.uuid4().hex}"
            _NAMES[self] = (name, parameters)
        pyro.module(name, self)

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
        self._register()
        given = self._given(frames, mask, size)
        _check_rollout(given, horizon, temperature)
        with pyro.plate("sequences", given.size, dim=-1):
            with _weighted(kl_weight):
                walk = self._walk(given, horizon, temperature, jumpy)
            if walk.boundaries:
                pyro.deterministic("boundaries", torch.stack(walk.boundaries, -1).detach(), event_dim=1)
            observed, future = self._emit(given, walk.features)
        return Rollout(walk.boundaries, walk.priors, walk.abstract, walk.observation, observed, future)

    def _walk(self, given: _Given, horizon: int, temperature: float, jumpy: bool) -> _Walk:
        """The loop over frames: states and boundaries from the prior, or from a replayed trace."""
        walk = _Walk([], [], [], [], Deferred(self.emission.features))
        abstract_prior, observation_prior = Deferred(self.abstract.prior), Deferred(self.observation.prior)
        shape_z = torch.Size([given.size, self.config.abstract_size])
        shape_s = torch.Size([given.size, self.config.observation_size])
        total = given.length + horizon
        # Past this frame a jumpy roll-out opens a segment at every frame, with no boundary to draw.
        past = given.length if jumpy else total
        counts = Counts.first(given.size, self._device)
        c = self.abstract.first_belief(given.size, self._summarise(given))
        for t in pyro.markov(range(total)):
            opens = walk.boundaries[-1] if 0 < t < past else None
            update = None if opens is None else opens.unsqueeze(-1)
            valid = _at(given.valid, t)

            c = self.abstract.belief(walk.abstract[-1], update) if t > 0 else c
            new = pyro.sample(f"z_{t}", _state(abstract_prior.add(c), shape_z, _both(valid, opens)))
            z = choose(new, walk.abstract[-1].latent, update) if t > 0 else new
            walk.abstract.append(AbstractState(c, z))

            h = self.observation.belief(walk.observation[-1] if t > 0 else None, walk.abstract[-1], update)
            s = pyro.sample(f"s_{t}", _state(observation_prior.add(h), shape_s, valid))
            walk.observation.append(ObservationState(h, s))

            feature = walk.features.add(h, s)
            if t + 1 < past:
                prior = boundary(
                    partial(_second, feature), counts.length.shape, temperature, self.limits.forced(counts, t)
                )
                value = pyro.sample(f"m_{t}", _masked(prior, _at(given.valid, t + 1)))
                walk.boundaries.append(decide(value, temperature))
                walk.priors.append(prior)
                counts = counts.after(walk.boundaries[-1] > 0.5)
        return walk

    def _emit(self, given: _Given, features: Deferred) -> tuple[TorchDistribution | None, TorchDistribution | None]:
        """Decode all frames at once, since none feeds back into a state: sites `x` and `x_future`."""
        decodable = features.all()[0].transpose(0, 1)
        split = given.length
        observed = future = None
        if given.frames is not None and split > 0:
            seen = None if given.seen is None else given.seen[-split:].transpose(0, 1)
            observed = _masked(self.emission.frames(decodable[:, :split]), seen).to_event(1)
            pyro.sample("x", observed, obs=given.frames.transpose(0, 1))
        if decodable.shape[1] > split:
            future = self.emission.frames(decodable[:, split:]).to_event(1)
            pyro.sample("x_future", future)
        return observed, future

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
        self._register()
        given = self._given(frames, mask, size)
        if given.frames is None or given.length == 0:
            return None
        encoded = self._encode(given.context, given.frames, given.seen)
        with pyro.plate("sequences", given.size, dim=-1), _weighted(kl_weight):
            boundaries, posteriors = self._draw_boundaries(given, encoded, temperature)
            opens = boundaries if given.valid is None else torch.where(given.valid[1:], boundaries, 1.0)
            summaries = self.posterior.summaries(encoded, opens)
            latents = self._draw_abstract(given, boundaries, *self.posterior.abstract_parameters(summaries))
            self._draw_observation(given, *self.posterior.observation_parameters(summaries, latents))
        return Inference(boundaries, posteriors)

    def _draw_boundaries(self, given: _Given, encoded: Tensor, temperature: float) -> tuple[Tensor, list[Boundary]]:
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
            value = pyro.sample(f"m_{t}", _masked(fn, _at(given.valid, t + 1)))
            boundaries.append(decide(value, temperature))
            posteriors.append(fn)
            counts = counts.after(boundaries[-1] > 0.5)
        return (torch.stack(boundaries) if boundaries else phi), posteriors

    def _boundary_logits(self, given: _Given, encoded: Tensor) -> tuple[str, Tensor | None, Tensor]:
        """The form of q(M | X), which boundaries act [B, T-1], and φ [T-1, B]."""
        posterior = self.config.boundary_posterior if self.limits.bind else "factorised"
        acts = None if given.valid is None else given.valid[1:].T
        return posterior, acts, self.posterior.boundary_logits(encoded, self._valid_with_context(given))[:-1]

    @torch.no_grad()
    def boundary_chain(self, frames: Tensor, mask: Tensor | None = None) -> BoundaryChain:
        """q(M | X) of these frames [B, T, X…] as a Markov chain, for exact marginals and the most probable path."""
        given = self._given(frames, mask, None)
        if given.frames is None or given.length < 2:
            raise InputError(f"segments need at least 2 modelled frames, found {given.length}")
        posterior, acts, phi = self._boundary_logits(given, self._encode(given.context, given.frames, given.seen))
        limits = SegmentLimits(None, None) if posterior == "factorised" else self.limits
        if posterior == "conditioned":
            messages = PathMessages.run(phi.T, limits, acts)
            return BoundaryChain(messages.log_odds, messages.grid, limits, acts)
        grid = Grid.of(limits, len(phi), phi.device)
        return BoundaryChain([odds.expand(len(grid.opened), -1) for odds in phi.unbind(0)], grid, limits, acts)

    def _draw_abstract(self, given: _Given, boundaries: Tensor, means: Tensor, scales: Tensor) -> Tensor:
        """Sites z_t of q(z_t | M, X): the abstract states [T, B, Z], copied where no segment opens."""
        latents: list[Tensor] = []
        opens = [None, *boundaries.unbind(0)]
        parameters = list(zip(means.unbind(0), scales.unbind(0), strict=True))
        for t in pyro.markov(range(given.length)):
            opened = opens[t]
            fn = _state(partial(parameters.__getitem__, t), means.shape[1:], _both(_at(given.valid, t), opened))
            new = pyro.sample(f"z_{t}", fn)
            latents.append(new if opened is None else choose(new, latents[-1], opened.unsqueeze(-1)))
        return torch.stack(latents)

    def _draw_observation(self, given: _Given, means: Tensor, scales: Tensor) -> None:
        """Sites s_t of q(s_t | z_t, M, X)."""
        parameters = list(zip(means.unbind(0), scales.unbind(0), strict=True))
        for t in pyro.markov(range(given.length)):
            pyro.sample(f"s_{t}", _state(partial(parameters.__getitem__, t), means.shape[1:], _at(given.valid, t)))

    # What the calls were given

    @property
    def _device(self) -> torch.device:
        return self.emission.combine.weight.device

    def _given(self, frames: Tensor | None, mask: Tensor | None, size: int | None) -> _Given:
        context = self.config.context
        if frames is None:
            if context > 0:
                raise InputError(
                    f"frames [B, {context}, …] must be given: this model starts from a context, found None"
                )
            return _Given(None, None, None, None, 1 if size is None else size, 0)
        self.check(frames, mask)
        seen = valid = None
        if mask is not None:
            seen = mask.to(torch.bool).transpose(0, 1)
            valid = seen.flip(0).cummax(0).values.flip(0)[context:]
            hidden = ~mask.reshape(*mask.shape, *[1] * len(self.config.frame_shape)).to(torch.bool)
            # Filled before anything reads them: a masked NaN would still spoil every gradient.
            frames = frames.masked_fill(hidden, 0.0)
        first = frames.transpose(0, 1)
        return _Given(
            first[:context] if context > 0 else None, first[context:], seen, valid, frames.shape[0],
            frames.shape[1] - context,
        )  # fmt: skip

    def check(self, frames: Tensor, mask: Tensor | None) -> None:
        """Raise :class:`InputError` unless frames are [B, T, X…] floats of this model and mask is [B, T]."""
        expected = "[B, T, " + ", ".join(map(str, self.config.frame_shape)) + "]"
        least = max(1, self.config.context)
        if frames.dim() != 2 + len(self.config.frame_shape) or frames.shape[2:] != self.config.frame_shape:
            raise InputError(f"frames must have shape {expected}, found {list(frames.shape)}")
        if not frames.is_floating_point():
            raise InputError(f"frames must be floats, found {frames.dtype}")
        if frames.shape[0] < 1 or frames.shape[1] < least:
            raise InputError(f"frames must have shape {expected} with T at least {least}, found {list(frames.shape)}")
        if mask is not None and mask.shape != frames.shape[:2]:
            raise InputError(f"mask must have shape {list(frames.shape[:2])}, found {list(mask.shape)}")

    def _encode(self, context: Tensor | None, frames: Tensor, seen: Tensor | None) -> Tensor:
        return self.posterior.encode(frames if context is None else torch.cat([context, frames]), seen)

    def _summarise(self, given: _Given) -> Tensor | None:
        """The forward summary [B, H] of the context, from which p starts; None without a context."""
        if given.context is None:
            return None
        seen = None if given.seen is None else given.seen[: len(given.context)]
        return self.posterior.context_summary(self.posterior.encode(given.context, seen))

    def _valid_with_context(self, given: _Given) -> Tensor | None:
        if given.valid is None or given.context is None:
            return given.valid
        return torch.cat([given.valid.new_ones(given.context.shape[:2]), given.valid])


def _check_rollout(given: _Given, horizon: int, temperature: float) -> None:
    if given.size < 1:
        raise InputError(f"size must be at least 1, found {given.size}")
    if horizon < 0 or given.length + horizon < 1:
        raise InputError(f"nothing to model: give frames past the context or a horizon of at least 1, found {horizon}")
    if not temperature >= 0:
        raise InputError(f"temperature must be at least 0, found {temperature}")


def _weighted(weight: float) -> Any:
    """A factor on log densities; no handler at all for the plain bound, where it would cost a kernel a site."""
    return contextlib.nullcontext() if weight == 1 else poutine.scale(scale=weight)


def _state(parameters: Callable[[], tuple[Tensor, ...]], shape: torch.Size, mask: Tensor | None) -> TorchDistribution:
    """Diagonal Normal of a latent state: batch [B], event [size]."""
    return _masked(DeferredNormal(parameters, shape).to_event(1), mask)


def _at(mask: Tensor | None, frame: int) -> Tensor | None:
    """A frame's part [B] of a mask [T, B]; None, nothing masked, past its end."""
    return mask[frame] if mask is not None and frame < len(mask) else None


def _masked(fn: TorchDistribution, mask: Tensor | None) -> TorchDistribution:
    return fn if mask is None else fn.mask(mask)


def _both(valid: Tensor | None, opens: Tensor | None) -> Tensor | None:
    """The mask of z_t: in the sequence, and opening a segment. Hard, so that no boundary learns to hide a term."""
    if opens is None:
        return valid
    opened = opens > 0.5
    return opened if valid is None else opened & valid


def _second(outputs: Callable[[], tuple[Tensor, ...]]) -> Tensor:
    return outputs()[1]
