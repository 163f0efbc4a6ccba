"""The base of the hierarchical and the flat model: parameters registered with Pyro, and the emission sites."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_hrssm import checkpoint
from pyro_hrssm.batching.later import Value, together, value_of
from pyro_hrssm.config import HRSSMConfig, from_dict
from pyro_hrssm.errors import InputError, one_line
from pyro_hrssm.model.given import Arguments, Call, Given, check_frames
from pyro_hrssm.model.levels import AbstractState, Emission, ObservationState
from pyro_hrssm.model.paths import BoundaryChain
from pyro_hrssm.model.posterior import FrameEncoding
from pyro_hrssm.model.sites import Site

if TYPE_CHECKING:
    from typing_extensions import Self


class Rollout(NamedTuple):
    """The boundaries, states and frame distributions of one run of the model; each list goes along the frames."""

    boundaries: list[Tensor]
    """m_t in {0, 1}, [B] each; one fewer than frames."""
    boundary_priors: list[Site]
    """p(m_t | s_t, h_t, m_<t), limits applied, [B] each."""
    abstract: list[AbstractState]
    observation: list[ObservationState]
    observed: TorchDistribution | None
    """p(x | ·) of the given frames, batch [B], event [T, X…]."""
    future: TorchDistribution | None
    """p(x | ·) of the frames that were not given."""


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
    boundary_posteriors: list[Site]
    """q(m_t | m_<t, X), [B] each."""
    acts: Tensor | None = None
    """[T-1, B] bool, whether a frame of the sequence follows; None if always."""


_NAMES: weakref.WeakKeyDictionary[nn.Module, tuple[str, tuple[nn.Parameter, ...]]] = weakref.WeakKeyDictionary()
"""Each model's name in Pyro's parameter store, and the parameters registered under it."""


class StateSpaceModel(nn.Module):
    """A pair of Pyro programs over sequences, `model` and `guide`, with their parameters.

    Every subclass names its kind; :meth:`build` makes the subclass whose kind is `config.model`.
    """

    kinds: ClassVar[dict[str, type[StateSpaceModel]]] = {}
    config: HRSSMConfig
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
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> Self:
        """The model of a run folder's newest checkpoint, or of one checkpoint file, in evaluation mode."""
        return cls.restore(checkpoint.load(Path(run)), device)

    @classmethod
    def restore(cls, loaded: checkpoint.Checkpoint, device: str | torch.device = "cpu") -> Self:
        """The model of a checkpoint already read, in evaluation mode."""
        config = from_dict(HRSSMConfig, loaded.record.get("model"))
        with torch.device("meta"):
            # The meta device allocates no memory for sizes that the weights turn out not to have.
            cls.build(config)._check_weights(loaded)
        model = cls.build(config)
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

    def register(self) -> None:
        """Register the parameters with Pyro, whose ELBOs silently run no backward pass without a param site.

        Pyro's store keeps the first parameters registered under a name. A name therefore belongs to this object, never
        to a copy of it, and to its present parameters: parameters that replace them get a new name.
        """
        parameters = tuple(self.parameters())
        name, known = _NAMES.get(self, ("", ()))
        if len(known) != len(parameters) or any(old is not new for old, new in zip(known, parameters, strict=True)):
            name = f"{self.config.model}_{uuid.uuid4().hex}"
            _NAMES[self] = (name, parameters)
        pyro.module(name, self)

    def called(self, frames: Tensor | None, mask: Tensor | None, arguments: Arguments) -> tuple[Call, Given]:
        """Register the parameters with Pyro; return the arguments of a call of `model` or `guide`, checked."""
        self.register()
        call = Call(**arguments)
        return call, Given.of(self.config, frames, mask, call)

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
        return Rollout(boundaries, walk.boundary_priors, abstract, observation, observed, future)

    def start_at(self, frames: Tensor, mask: Tensor | None = None) -> None:
        """Start the emission at the mean of these frames, so that training need not spend its first steps on the mean.

        Arguments:
            frames: [B, T, X…].
            mask: [B, T] bool, or None.
        """
        check_frames(self.config, frames, mask)
        seen = frames.flatten(0, 1) if mask is None else frames[mask.to(torch.bool)]
        if len(seen) > 0:
            self.emission.start_at(seen.mean(0), seen.std(0, correction=0))

    def boundary_chain(self, frames: Tensor, mask: Tensor | None = None) -> BoundaryChain:
        """q(M | X) of these frames; raises :class:`InputError` where the model has no segments."""
        raise InputError(f"segments need a hierarchical model, found an {self.config.model.upper()}")

    @property
    def has_segments(self) -> bool:
        """Whether the model has boundaries and an abstract state."""
        return self.config.has_segments

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.emission.combine.weight.device
