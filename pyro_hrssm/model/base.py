"""What the hierarchical model and the flat one share: checked input, parameters known to Pyro, the emission sites."""

from __future__ import annotations

import contextlib
import contextvars
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_hrssm import checkpoint
from pyro_hrssm.batching.deferred import Deferred
from pyro_hrssm.config import HRSSMConfig, InputError, from_dict, one_line
from pyro_hrssm.model.distributions import Temperature
from pyro_hrssm.model.levels import AbstractState, Emission, ObservationState
from pyro_hrssm.model.posterior import FrameEncoding
from pyro_hrssm.model.sites import Site

if TYPE_CHECKING:
    from typing_extensions import Self

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Rollout(NamedTuple):
    """What one run of the model went through, frame by frame (the first axis of each list)."""

    boundaries: list[Tensor]
    """m_t in {0, 1}, [B] each; one fewer than frames."""
    boundary_priors: list[Site]
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
    boundary_posteriors: list[Site]
    """q(m_t | m_<t, X), [B] each."""
    acts: Tensor | None = None
    """[T-1, B] bool, whether a frame of the sequence follows; None if always."""


class Given(NamedTuple):
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
    source: tuple[Tensor | None, Tensor | None] = (None, None)
    """Frames and mask as the call was given them."""


class _Shared:
    """Encoded frames that guide and model read in turn.

    Arguments:
        copies: how many times over the batch holds the same sequences.
    """

    def __init__(self, copies: int) -> None:
        self._copies = copies
        self._known: tuple[FrameEncoding, tuple[Tensor | None, Tensor | None], Tensor] | None = None

    def features(
        self, posterior: FrameEncoding, source: tuple[Tensor | None, Tensor | None], frames: Tensor, seen: Tensor | None
    ) -> Tensor:
        """Encode each sequence once: frames [K + T, B, X…] -> [K + T, B, H]."""
        once = frames.shape[1] // self._copies
        encoded = posterior.encode(frames[:, :once], None if seen is None else seen[:, :once])
        encoded = encoded.repeat(1, self._copies, 1) if self._copies > 1 else encoded
        self._known = posterior, source, encoded
        return encoded

    def known(self, posterior: FrameEncoding, source: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
        """What is known of these very arguments of a call."""
        if self._known is None or self._known[0] is not posterior:
            return None
        same = all(one is other for one, other in zip(self._known[1], source, strict=True))
        return self._known[2] if same else None


_SHARED: contextvars.ContextVar[_Shared | None] = contextvars.ContextVar("_SHARED", default=None)


@contextlib.contextmanager
def encoded_once(copies: int = 1) -> Iterator[None]:
    """Within, frames that the guide has encoded are not encoded again by a model called with the same arguments.

    Arguments:
        copies: the batch holds its first `B / copies` sequences that many times over; each is encoded once.
    """
    token = _SHARED.set(_Shared(copies))
    try:
        yield
    finally:
        _SHARED.reset(token)


_NAMES: weakref.WeakKeyDictionary[nn.Module, tuple[str, tuple[nn.Parameter, ...]]] = weakref.WeakKeyDictionary()
"""Each model's name in Pyro's parameter store, and the parameters registered under it."""


class StateSpaceModel(nn.Module):
    """A pair of Pyro programs over sequences, `model` and `guide`, with their parameters.

    Every subclass names its kind, `config.model`, and is what :meth:`build` makes of such a configuration.
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
        """A new model of the configuration's kind; called on a subclass, it must be of that subclass."""
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
            # Sizes that the weights do not have must not take the memory they ask for.
            cls.build(config)._check_weights(loaded)
        model = cls.build(config)
        model.load_weights(loaded)
        return model.to(device).eval()

    def load_weights(self, loaded: checkpoint.Checkpoint) -> None:
        """Take over a checkpoint's weights; raises :class:`InputError` where they are none, or of another model."""
        self._check_weights(loaded)
        self.load_state_dict(checkpoint.part(loaded.tensors, "model."))

    def _check_weights(self, loaded: checkpoint.Checkpoint) -> None:
        found, expected = checkpoint.part(loaded.tensors, "model."), self.state_dict()
        origin = f"the checkpoint of step {loaded.step} holds another model, or a damaged one"
        check_tensors(origin, found, expected)
        for name in sorted(found.keys() - expected.keys()):
            raise InputError(f"{origin}: this one has no {one_line(name)}")

    def register(self) -> None:
        """Tell Pyro of the parameters: without a param site its ELBOs run no backward pass, silently.

        The store keeps what it first saw under a name. So a name belongs to this object, never to a copy of it, and to
        these very parameters: others put in their place get a new one.
        """
        parameters = tuple(self.parameters())
        name, known = _NAMES.get(self, ("", ()))
        if len(known) != len(parameters) or any(old is not new for old, new in zip(known, parameters, strict=True)):
            name = f"{self.config.model}_{uuid.uuid4().hex}"
            _NAMES[self] = (name, parameters)
        pyro.module(name, self)

    def emit(self, given: Given, features: Deferred) -> tuple[TorchDistribution | None, TorchDistribution | None]:
        """Decode all frames at once, since none feeds back into a state: sites `x` and `x_future`."""
        decodable = features.all()[0].transpose(0, 1)
        split = given.length
        observed = future = None
        if given.frames is not None and split > 0:
            seen = None if given.seen is None else given.seen[-split:].transpose(0, 1)
            observed = masked(self.emission.frames(decodable[:, :split]), seen).to_event(1)
            pyro.sample("x", observed, obs=given.frames.transpose(0, 1))
        if decodable.shape[1] > split:
            future = self.emission.frames(decodable[:, split:]).to_event(1)
            pyro.sample("x_future", future)
        return observed, future

    def start_at(self, frames: Tensor, mask: Tensor | None = None) -> None:
        """Let the emission start at the mean of these frames, which it would take the first steps to learn.

        Arguments:
            frames: [B, T, X…].
            mask: [B, T] bool, or None.
        """
        self.check(frames, mask)
        seen = frames.flatten(0, 1) if mask is None else frames[mask.to(torch.bool)]
        if len(seen) > 0:
            self.emission.start_at(seen.mean(0))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.emission.combine.weight.device

    def given(self, frames: Tensor | None, mask: Tensor | None, size: int | None) -> Given:
        """Arguments of a call, checked, frames first."""
        context = self.config.context
        if frames is None:
            if context > 0:
                raise InputError(
                    f"frames [B, {context}, …] must be given: this model starts from a context, found None"
                )
            return Given(None, None, None, None, 1 if size is None else size, 0)
        self.check(frames, mask)
        source = (frames, mask)
        seen = valid = None
        if mask is not None:
            seen = mask.to(torch.bool).transpose(0, 1)
            valid = seen.flip(0).cummax(0).values.flip(0)[context:]
            hidden = ~mask.reshape(*mask.shape, *[1] * len(self.config.frame_shape)).to(torch.bool)
            # Filled before anything reads them: a masked NaN would still spoil every gradient.
            frames = frames.masked_fill(hidden, 0.0)
        first = frames.transpose(0, 1)
        return Given(
            first[:context] if context > 0 else None, first[context:], seen, valid, frames.shape[0],
            frames.shape[1] - context, source,
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

    def encode(self, given: Given) -> Tensor:
        """Features [K + T, B, H] of context and frames."""
        assert given.frames is not None
        frames = given.frames if given.context is None else torch.cat([given.context, given.frames])
        shared = _SHARED.get()
        if shared is None:
            return self.posterior.encode(frames, given.seen)
        return shared.features(self.posterior, given.source, frames, given.seen)

    def summarise(self, given: Given) -> Tensor | None:
        """The forward summary [B, H] of the context, from which p starts; None without a context."""
        if given.context is None:
            return None
        frames = len(given.context)
        shared = _SHARED.get()
        features = None if shared is None else shared.known(self.posterior, given.source)
        if features is None:
            features = self.posterior.encode(given.context, None if given.seen is None else given.seen[:frames])
        return self.posterior.context_summary(features[:frames])

    def valid_with_context(self, given: Given) -> Tensor | None:
        """[K + T, B] bool as `given.valid`, the context's frames included."""
        if given.valid is None or given.context is None:
            return given.valid
        return torch.cat([given.valid.new_ones(given.context.shape[:2]), given.valid])


def check_tensors(origin: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise :class:`InputError` unless `found` has finite floats of the shape of each tensor `expected`.

    Arguments:
        origin: starts the message: what is wrong where they are not.
    """
    for name, like in expected.items():
        value = found.get(name)
        wanted = f"{origin}: {name} must be finite floats of shape {list(like.shape)}, found"
        if value is None:
            raise InputError(f"{wanted} nothing")
        if value.dtype not in _FLOATS or value.shape != like.shape:
            raise InputError(f"{wanted} {value.dtype} of shape {list(value.shape)}")
        if not torch.isfinite(value.to(like.dtype)).all():
            raise InputError(f"{wanted} a NaN or an infinity")


def check_rollout(given: Given, horizon: int, temperature: Temperature) -> None:
    """Raise :class:`InputError` where a call asks for nothing or for what cannot be."""
    if given.size < 1:
        raise InputError(f"size must be at least 1, found {given.size}")
    if horizon < 0 or given.length + horizon < 1:
        raise InputError(f"nothing to model: give frames past the context or a horizon of at least 1, found {horizon}")
    if not isinstance(temperature, Tensor) and not temperature >= 0:
        raise InputError(f"temperature must be at least 0, found {temperature}")


def weighted(weight: float | Tensor) -> Any:
    """A factor on log densities; no handler at all for the plain bound, where it would cost a kernel a site."""
    return contextlib.nullcontext() if not isinstance(weight, Tensor) and weight == 1 else poutine.scale(scale=weight)


def at(mask: Tensor | None, frame: int) -> tuple[Tensor, ...]:
    """A frame's part [B] of a mask [T, B], all true past its end; nothing where there is no mask."""
    if mask is None:
        return ()
    return (mask[frame] if frame < len(mask) else torch.ones_like(mask[0]),)


def masked(fn: TorchDistribution, mask: Tensor | None) -> TorchDistribution:
    """The distribution with a mask [B] or [B, T] on its density; itself where there is none."""
    return fn if mask is None else fn.mask(mask)


TERMS = ("emission", "z", "s", "m")
"""What a bound is made of: the frames, and the sites of the three latent variables."""


def terms(model_trace: Any, guide_trace: Any) -> dict[str, Tensor]:
    """Every sequence's negative ELBO by terms, [B] each, in nats: `emission`, and log q - log p of z, s and m."""
    parts: dict[str, list[Tensor]] = {name: [] for name in TERMS}
    for trace, sign in ((guide_trace, 1.0), (model_trace, -1.0)):
        trace.compute_log_prob()
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and (name == "x" or name[:2] in ("z_", "s_", "m_")):
                parts["emission" if name == "x" else name[0]].append(sign * site["log_prob"])
    nothing = torch.zeros_like(parts["s"][0])
    return {name: torch.stack(values).sum(0) if values else nothing for name, values in parts.items()}
