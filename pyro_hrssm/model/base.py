"""The base of the hierarchical and the flat model: parameters registered with Pyro, and the emission sites."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_hrssm import checkpoint
from pyro_hrssm.batching.later import Value, together, value_of
from pyro_hrssm.config import HRSSMConfig, from_dict
from pyro_hrssm.errors import InputError, found, one_line, require
from pyro_hrssm.model import store
from pyro_hrssm.model.decoding import FRAMES_AT_ONCE, Decoded
from pyro_hrssm.model.given import Arguments, Array, Call, Given, accept
from pyro_hrssm.model.levels import AbstractState, Emission, ObservationState
from pyro_hrssm.model.plates import Rows, surrounding_plates
from pyro_hrssm.model.posterior import FrameEncoding
from pyro_hrssm.model.sites import Site
from pyro_hrssm.scaling import Scaling

if TYPE_CHECKING:
    from typing_extensions import Self


class Rollout(NamedTuple):
    """The boundaries, states and frame distributions of one run of the model; each list goes along the frames."""

    boundaries: list[Tensor]
    """m_t in {0, 1}, [B] each; one fewer than frames."""
    boundary_priors: Sequence[TorchDistribution]
    """p(m_t | s_t, h_t, m_<t), limits applied, [B] each."""
    abstract: list[AbstractState]
    observation: list[ObservationState]
    observed: TorchDistribution | None
    """p(x | ·) of the given frames, batch [B], event [T, X…]."""
    future: TorchDistribution | None
    """p(x | ·) of the frames that were not given."""

    def unfolded(self, rows: Rows) -> Rollout:
        """The same with the axes [P…, B] of the plates around the call in place of rows."""
        if not rows.plates:
            return self
        return Rollout(
            [rows.unfold(boundary) for boundary in self.boundaries],
            [rows.seen_from_outside(prior) for prior in self.boundary_priors],
            [AbstractState(*map(rows.unfold, state)) for state in self.abstract],
            [ObservationState(*map(rows.unfold, state)) for state in self.observation],
            None if self.observed is None else rows.seen_from_outside(self.observed),
            None if self.future is None else rows.seen_from_outside(self.future),
        )


@dataclass(frozen=True)
class Walk:
    """What a model's loop hands over frame by frame: values of the sites and beliefs, perhaps not computed yet."""

    boundaries: list[Value] = field(default_factory=list)
    boundary_priors: list[Site] = field(default_factory=list)
    abstract: list[tuple[Value, Value]] = field(default_factory=list)
    """Belief c and latent z."""
    observation: list[tuple[Value, Value]] = field(default_factory=list)
    """Belief h and latent s."""
    features: list[Value] = field(default_factory=list)
    """The feature of (h, s), from which the frame is decoded."""


class Inference(NamedTuple):
    """The boundaries that one run of the guide drew, and their distributions."""

    boundaries: Tensor
    """[T-1, B] m_t in {0, 1}."""
    boundary_posteriors: Sequence[TorchDistribution]
    """q(m_t | m_<t, X), [B] each."""
    acts: Tensor | None = None
    """[T-1, B] bool, whether a frame of the sequence follows; None if always."""

    def unfolded(self, rows: Rows) -> Inference:
        """The same with the axes [P…, B] of the plates around the call in place of rows."""
        if not rows.plates:
            return self
        acts = None if self.acts is None else rows.unfold_each(self.acts)
        posteriors = [rows.seen_from_outside(posterior) for posterior in self.boundary_posteriors]
        return Inference(rows.unfold_each(self.boundaries), posteriors, acts)


LOOKED_AT = 2**18
"""Entries of frames that are looked at to see whether the frames were scaled, at most."""

MARGIN = 0.1
"""Distance from [0, 1] at which frames are far from those of a model with a Bernoulli emission."""

RAW_NATS = 0.5
"""Nats per entry by which frames fit the data's own units better, at which they seem not to be scaled. Of scaled frames
the expected number is negative; of raw ones it is smaller only if the two units nearly agree."""


class StateSpaceModel(nn.Module):
    """A pair of Pyro programs over sequences, `model` and `guide`, with their parameters.

    Every subclass names its kind; :meth:`build` makes the subclass whose kind is `config.model`.
    """

    kinds: ClassVar[dict[str, type[StateSpaceModel]]] = {}
    config: HRSSMConfig
    scaling: Scaling | None = None
    """The scaling of the frames that a loaded model was trained on; None for a new model. The model takes
    `scaling.apply(frames)` of frames in the data's units, and `scaling.invert` brings its frames back to these."""
    _store_name: str | None = None
    _warned: bool = False
    emission: Emission
    posterior: FrameEncoding
    model: Callable[..., Rollout]
    guide: Callable[..., Inference | None]

    def __init_subclass__(cls, kind: str, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        StateSpaceModel.kinds[kind] = cls

    @classmethod
    def build(cls, config: HRSSMConfig) -> Self:
        """A new model of the configuration's kind, which must be this class or one of its subclasses."""
        kind = StateSpaceModel.kinds[config.model]
        if not issubclass(kind, cls):
            raise InputError(f"a model of kind {cls.__name__} is needed, found {config.model}")
        return kind(config)

    @classmethod
    def load(cls, run: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """The model of a run folder's newest checkpoint, or of one checkpoint file, in evaluation mode.

        It takes and gives frames as they were in training: scaled. See :attr:`scaling`.
        """
        return cls.restore(checkpoint.load(run), device)

    @classmethod
    def restore(cls, loaded: checkpoint.Checkpoint, device: str | torch.device = "cpu") -> Self:
        """The model of a checkpoint already read, in evaluation mode."""
        config = from_dict(HRSSMConfig, loaded.record.get("model"))
        with torch.device("meta"):
            # The meta device allocates no memory for sizes that the weights turn out not to have.
            cls.build(config)._check_weights(loaded)
        with torch.device("cpu"):  # where the weights are, whatever the user's default device
            model = cls.build(config)
        if "scaling" in loaded.record:
            model.scaling = Scaling.from_dict(loaded.record["scaling"])
            model.scaling.check(config.frame_shape)
        model.load_weights(loaded)
        return model.to(device).eval()

    def load_weights(self, loaded: checkpoint.Checkpoint) -> None:
        """Load a checkpoint's weights; raises :class:`InputError` where they are missing or belong to another model."""
        self._check_weights(loaded)
        self.load_state_dict(checkpoint.with_prefix(loaded.tensors, "model."))

    def _check_weights(self, loaded: checkpoint.Checkpoint) -> None:
        found, expected = checkpoint.with_prefix(loaded.tensors, "model."), self.state_dict()
        origin = f"the checkpoint of step {loaded.step} holds another model, or a damaged one"
        checkpoint.check_tensors(origin, found, expected)
        for name in sorted(found.keys() - expected.keys()):
            raise InputError(f"{origin}: this one has no {one_line(name)}")

    @property
    def store_name(self) -> str:
        """The name under which Pyro's parameter store keeps the parameters: the kind, unless it is set.

        It gets a number where another living model has it already: `hrssm_2`. It can be set until the first call of a
        program.
        """
        return self._store_name or self.config.model

    @store_name.setter
    def store_name(self, name: str) -> None:
        require(not store.is_registered(self), "store_name must be set before the first use of the model")
        require(bool(name) and "$$$" not in name, f"store_name must be a name without $$$, found {found(name)}")
        self._store_name = name

    def register(self) -> None:
        """Register the parameters with Pyro, whose ELBOs silently run no backward pass without a param site."""
        pyro.module(self.adopt(), self)

    def adopt(self) -> str:
        """Take over the values that Pyro's parameter store was given for this model; returns the model's name there."""
        return store.adopt(self, self.store_name)

    def __getstate__(self) -> dict[str, Any]:
        for parameter in self.parameters():
            # Pyro's store leaves a weak reference in every parameter, which cannot be pickled; it makes a new one.
            parameter.__dict__.pop("unconstrained", None)
        return self.__dict__

    def accept(self, frames: Array, mask: Array | None = None) -> tuple[Tensor, Tensor | None]:
        """Frames [B, T, X…] and mask [B, T] as tensors of the model's precision, NumPy arrays on the model's device.

        Raises :class:`InputError` where they do not fit the model.
        """
        return accept(self.config, frames, mask, self.like)

    def called(self, frames: Array | None, mask: Array | None, arguments: Arguments) -> tuple[Call, Given]:
        """Register the parameters with Pyro; return the arguments of a call of `model` or `guide`, checked."""
        call = Call(**arguments)
        given = Given.of(self.config, frames, mask, call, self.like, surrounding_plates())
        self.register()
        self.warn_of_units(given)
        return call, given

    @torch.no_grad()
    def warn_of_units(self, given: Given) -> None:
        """Warn, once, if a loaded model in evaluation mode is given frames that seem to be in the data's own units."""
        # A look at the frames is a wait for the device, which training has no time for and a compiled program no place.
        if self.scaling is None or self.training or self._warned or torch.compiler.is_compiling():
            return
        if given.frames is None:
            return
        frames = given.observed_frames(LOOKED_AT)
        if len(frames) == 0:
            return
        lowest, highest = frames.min(), frames.max()
        outside = self.config.likelihood == "bernoulli" and bool((lowest < -MARGIN) | (highest > 1 + MARGIN))
        if outside or self.scaling.nats_if_raw(frames) > RAW_NATS:
            self._warned = True
            warnings.warn(
                f"frames from {lowest:.4g} to {highest:.4g} are far from those that this model was trained on: "
                "it takes model.scaling.apply(frames), and model.scaling.invert gives frames in the data's units",
                UserWarning,
                stacklevel=2,
            )

    def forward(self, *args: Any, **kwargs: Any) -> Rollout:
        """The generative program :meth:`model`, as a call of a `PyroModule` is."""
        return self.model(*args, **kwargs)

    def emit(self, given: Given, walk: Walk) -> Rollout:
        """Sample the sites `x` and `x_future`, and note the hard boundaries in the site `boundaries`.

        The frames are decoded all at once, since no frame feeds back into a state.
        """
        boundaries = [value_of(m) for m in walk.boundaries]
        abstract = [AbstractState(value_of(c), value_of(z)) for c, z in walk.abstract]
        observation = [ObservationState(value_of(h), value_of(s)) for h, s in walk.observation]
        if boundaries:
            pyro.deterministic("boundaries", torch.stack(boundaries, -1).detach(), event_dim=1)
        decodable = together(walk.features).transpose(0, 1)
        split = given.length
        observed = future = None
        if given.frames is not None and split > 0:
            observed = self.emission.frames(decodable[:, :split])
            if given.seen is not None:
                observed = observed.mask(given.seen[-split:].transpose(0, 1))
            observed = observed.to_event(1)
            pyro.sample("x", observed, obs=given.frames.transpose(0, 1))
        if decodable.shape[1] > split:
            future = self.emission.frames(decodable[:, split:]).to_event(1)
            pyro.sample("x_future", future)
        return Rollout(boundaries, walk.boundary_priors, abstract, observation, observed, future).unfolded(given.rows)

    def start_at(self, frames: Array, mask: Array | None = None) -> None:
        """Start the emission at the mean of these frames, so that training need not spend its first steps on the mean.

        Arguments:
            frames: [B, T, X…].
            mask: [B, T] bool, or None.
        """
        frames, mask = self.accept(frames, mask)
        seen = frames.flatten(0, 1) if mask is None else frames[mask.to(torch.bool)]
        if len(seen) > 0:
            self.emission.start_at(seen.mean(0), seen.std(0, correction=0))

    def decode_boundaries(
        self, frames: Array, mask: Array | None = None, frames_at_once: int = FRAMES_AT_ONCE
    ) -> Decoded:
        """The best path of q(M | X) and its marginals; raises :class:`InputError` where the model has no segments."""
        raise InputError(f"segments need a hierarchical model, found an {self.config.model.upper()}")

    @property
    def has_segments(self) -> bool:
        """Whether the model has boundaries and an abstract state."""
        return self.config.has_segments

    @property
    def like(self) -> Tensor:
        """One of the parameters, which has their device and precision."""
        return self.emission.combine.weight

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.like.device
