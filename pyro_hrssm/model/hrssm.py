"""HRSSM as a Pyro program: `model` and `guide`, their loops and their `pyro.sample` statements.

Every frame t has the sites `m_t`, the boundary after frame t (in logit space while relaxed), `z_t`, the abstract
state (masked where it is copied), and `s_t`, the observation state. All frames share the sites `x`, the given
frames, and `x_future`, the frames that were not given. Training, forecasting, sampling and jumpy imagination run
this one `model` under Pyro's handlers: a replayed trace of the guide fixes its sites, the prior draws all others.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor

from pyro_hrssm.batching.later import Later, Value, known
from pyro_hrssm.batching.walks import carried
from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.errors import InputError
from pyro_hrssm.model.base import Inference, Rollout, StateSpaceModel, Walk
from pyro_hrssm.model.decoding import FRAMES_AT_ONCE, Decoded, Decoder
from pyro_hrssm.model.distributions import decide, decide_and_switch, switch
from pyro_hrssm.model.given import Arguments, Array, Call, Given, check_rollout, encode, encode_stretch, summarise
from pyro_hrssm.model.levels import AbstractLevel, ObservationLevel, SegmentEmission
from pyro_hrssm.model.limits import SegmentLimits
from pyro_hrssm.model.paths import BoundaryChain, Grid, PathDraws, PathMessages
from pyro_hrssm.model.posterior import Posterior
from pyro_hrssm.model.sites import ScoredTogether, Site, boundary, latent, sample_latents, weighted

if TYPE_CHECKING:
    from typing_extensions import Unpack


class HRSSM(StateSpaceModel, kind="hrssm"):
    """Hierarchical Recurrent State Space Model (Kim, Ahn and Bengio 2019, *Variational Temporal Abstraction*).

    `model` and `guide` are Pyro programs over the same arguments, for `SVI`, `Predictive`, `poutine` and
    `pyro.render_model`:

    - `frames`: [B, T, X…] floats; the first `config.context` of them are given, not modelled. None to sample from the
      prior.
    - `mask`: [B, T] bool, true where a frame is observed. Frames after the last observed one lie past the sequence's
      end; other unobserved frames are missing, and their values are never read. Or [B, T, X…]: bool, true where an
      entry of a frame is observed; or floats, the weight w of each entry under a Normal emission, whose variance is
      then σ² / w, and 0 where it is missing. Frames and mask may be NumPy arrays.
    - `horizon`, `size`, `temperature`, `kl_weight`, `state_weight`, `switch_gradient`, `jumpy`: see :class:`Arguments`.
    """

    emission: SegmentEmission
    posterior: Posterior

    def __init__(self, config: HRSSMConfig) -> None:
        super().__init__()
        self.config = config
        self.abstract = AbstractLevel(config)
        self.observation = ObservationLevel(config)
        self.emission = SegmentEmission(config)
        self.posterior = Posterior(config)
        self.limits = SegmentLimits(config.max_segments, config.max_length, config.window, config.min_length)

    # The generative model

    def model(self, frames: Array | None = None, mask: Array | None = None, **arguments: Unpack[Arguments]) -> Rollout:
        """p(X, Z, S, M): the generative model (paper, section 2); the class lists the arguments."""
        call, given = self.called(frames, mask, arguments)
        check_rollout(given, call)
        with given.rows.plate():
            with weighted(call.kl_weight), ScoredTogether(self.like):
                walk = self._loop(given, call)
            return self.emit(given, walk)

    def _loop(self, given: Given, call: Call) -> Walk:
        """Run the loop over frames: states and boundaries come from the prior, or from a replayed trace."""
        abstract, observation, emission, limits = self.abstract, self.observation, self.emission, self.limits
        size, total = given.size, given.length + call.horizon
        # From this frame on, a jumpy roll-out opens a segment at every frame and draws no boundary.
        past = given.length if call.jumpy else total
        z_shape, s_shape = (torch.Size([size, n]) for n in (self.config.abstract_size, self.config.observation_size))
        decided = partial(decide_and_switch, temperature=call.temperature, share=call.switch_gradient)
        first = abstract.first_belief(size, summarise(self.posterior, given))
        everywhere = first.new_ones(size)
        c: Value = first
        z: Value = first.new_zeros(z_shape)
        m: tuple[Value, Value] = everywhere, everywhere  # m_{-1}, and its switch: the first frame opens a segment
        h: Value = first  # h_{-1} and s_{-1} are never read
        s = first.new_zeros(s_shape)
        counts: Value = torch.zeros(size, 3, dtype=torch.long, device=first.device)
        walk = Walk()
        later = Later()  # later(f, values of a frame): computed for many frames when the first result is needed
        for t in pyro.markov(range(total)):
            (opens, switched), valid = m if t < past else (everywhere, everywhere), given.valid_at(t)

            # Abstract level: UPDATE where a segment opens, else COPY
            if t > 0:
                c = later.scan(abstract.beliefs, c, z, opens)
            new = pyro.sample(f"z_{t}", latent(later(abstract.prior, c), z_shape, switched, *valid))
            z = later.scan(carried, z, new, opens)

            # Observation level: INIT where a segment opens, else UPDATE
            opened = later(observation.opened, c, z)
            h = opened if t == 0 or t >= past else later.scan(observation.beliefs, h, opened, s, z, opens)
            with weighted(call.state_weight):
                s = pyro.sample(f"s_{t}", latent(later(observation.prior, h), s_shape, *valid))
            feature = later(emission.features, h, s)
            walk.abstract.append((c, z))
            walk.observation.append((h, s))
            walk.features.append(feature)

            # m_t: does the segment end with frame t?
            if t + 1 < past:
                counts = later.scan(limits.count, counts, opens)
                odds = later(limits.impose, feature[1], counts)
                forced = odds[1] if limits.bind else None
                prior = boundary(odds, forced, call.temperature, size, *given.valid_at(t + 1))
                decision = later(decided, pyro.sample(f"m_{t}", prior))
                m = decision[0], decision[1]
                walk.boundaries.append(m[0])
                walk.boundary_priors.append(prior)
        return walk

    # The guide

    def guide(
        self, frames: Array | None = None, mask: Array | None = None, **arguments: Unpack[Arguments]
    ) -> Inference | None:
        """q(Z, S, M | X): boundaries first, then z, then s (paper, section 2); the class lists the arguments.

        The guide draws nothing for the horizon, which is left to the model's prior, and nothing without frames.
        """
        call, given = self.called(frames, mask, arguments)
        if given.frames is None or given.length == 0:
            return None
        encoded = encode(self.posterior, given)
        with given.rows.plate(), weighted(call.kl_weight), ScoredTogether(self.like):
            m, posteriors = self._draw_boundaries(given, encoded, call)
            ends = m if given.acts is None else torch.where(given.acts, m, 1.0)
            summaries = self.posterior.summaries(encoded, ends)
            opens = torch.cat([torch.ones_like(encoded[:1, :, 0]), m])
            z = self._draw_abstract(given, opens, call, self.posterior.abstract_parameters(summaries))
            with weighted(call.state_weight):
                sample_latents("s", self.posterior.observation_parameters(summaries, z), given.valid_at_each)
        return Inference(m, posteriors, given.acts).unfolded(given.rows)

    def _draw_boundaries(self, given: Given, encoded: Tensor, call: Call) -> tuple[Tensor, list[Site]]:
        """Sites m_t of q(M | X): [T-1, B] boundaries and their distributions."""
        temperature = call.temperature
        odds = None if call.boundary_odds is None else given.rows.fold(call.boundary_odds.to(encoded))
        path = PathDraws(self._chain(given, encoded, odds), temperature)
        values: list[Tensor] = []
        posteriors: list[Site] = []
        for t in pyro.markov(range(given.length - 1)):
            drawn, logits, forced = path[t]
            posterior = boundary(logits, forced, temperature, given.size, *given.valid_at(t + 1), drawn=drawn)
            values.append(pyro.sample(f"m_{t}", posterior))
            path.settle(t, values[-1])
            posteriors.append(posterior)
        stacked = torch.stack(values) if values else encoded.new_zeros(0, given.size)
        return decide(stacked, temperature), posteriors

    def _draw_abstract(self, given: Given, opens: Tensor, call: Call, parameters: tuple[Tensor, Tensor]) -> Tensor:
        """Sites z_t of q(z_t | M, X): the abstract states [T, B, Z], copied where no segment opens."""
        switches: list[Value] = [*known(switch(opens, call.switch_gradient))]
        masks = [(factor, *valid) for factor, valid in zip(switches, given.valid_at_each, strict=True)]
        drawn = sample_latents("z", parameters, masks)
        return carried(torch.zeros_like(drawn[0]), drawn, opens)

    def _chain(self, given: Given, encoded: Tensor, odds: Tensor | None = None) -> BoundaryChain:
        """q(M | X), in the form that `config.boundary_posterior` names; `odds` [B] replace the network's unless NaN."""
        form, limits = self._form_and_limits
        acts = None if given.acts is None else given.acts.T
        phi = self.posterior.boundary_logits(encoded, given.valid_with_context)[:-1]
        if odds is not None:
            phi = torch.where(odds.isnan(), phi, odds)
        if form == "conditioned":
            messages = PathMessages.run(phi.T, limits, acts)
            return BoundaryChain(messages.log_odds, messages.grid, limits, acts)
        grid = Grid.of(limits, len(phi), phi.device)
        return BoundaryChain(phi.unsqueeze(1).expand(-1, len(grid.opened), -1), grid, limits, acts)

    @property
    def _form_and_limits(self) -> tuple[str, SegmentLimits]:
        """The form of q(M | X), and the limits that it obeys; without limits every form is the factorised one."""
        form = self.config.boundary_posterior if self.limits.bind else "factorised"
        return form, SegmentLimits(None, None) if form == "factorised" else self.limits

    @torch.no_grad()
    def decode_boundaries(
        self, frames: Array, mask: Array | None = None, frames_at_once: int = FRAMES_AT_ONCE
    ) -> Decoded:
        """The most probable path of q(M | X) of frames [B, T, X…], and its exact marginals.

        Arguments:
            frames_at_once: the most frames of a sequence that the networks read at once. What they compute of a frame
                depends on few others, so that the result is that of one pass, for recordings of any length.
        """
        self.adopt()
        given = Given.of(self.config, frames, mask, Call(), self.like)
        self.warn_of_units(given)
        if given.frames is None or given.length < 2:
            raise InputError(f"segments need at least 2 modelled frames, found {given.length}")
        form, limits = self._form_and_limits
        return Decoder(self._logits(given, frames_at_once)[:-1], limits, given.acts, form == "conditioned").decode()

    def _logits(self, given: Given, frames_at_once: int) -> Tensor:
        """φ [T, B], computed from so many frames at a time and those around them that the logits depend on."""
        valid, reach, total = (
            given.valid_with_context,
            self.posterior.boundary_reach,
            self.config.context + given.length,
        )
        parts = []
        for start in range(0, total, frames_at_once):
            stop = min(start + frames_at_once, total)
            read = slice(max(0, start - reach), min(stop + reach, total))
            encoded = encode_stretch(self.posterior, given, read)
            logits = self.posterior.logits_along(encoded, None if valid is None else valid[read])
            parts.append(logits[start - read.start : stop - read.start])
        return torch.cat(parts)[self.config.context :]

    @torch.no_grad()
    def abstract_posterior(self, frames: Array, mask: Array | None, boundaries: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z_t | M, X) given boundaries M, [B, T, Z] each.

        Only frames that open a segment have a z of their own; the values elsewhere are those that z would have if the
        frame opened one.

        Arguments:
            frames: [B, K + T, X…] floats, K the context.
            mask: [B, K + T] bool, or [B, K + T, X…] of entries, or None.
            boundaries: [B, T] bool, such as `segment` gives them; the last frame's has no effect.
        """
        self.adopt()
        given = Given.of(self.config, frames, mask, Call(), self.like)
        encoded = encode(self.posterior, given)
        m = boundaries.T[:-1].to(encoded.dtype)
        ends = m if given.acts is None else torch.where(given.acts, m, 1.0)
        mean, deviation = self.posterior.abstract_parameters(self.posterior.summaries(encoded, ends))
        return mean.transpose(0, 1), deviation.transpose(0, 1)
