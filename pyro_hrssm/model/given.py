"""The arguments of `model` and `guide`, checked and laid out for the loops over frames: the frame axis comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor

from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.errors import InputError, require
from pyro_hrssm.model.distributions import Temperature
from pyro_hrssm.model.masks import check_values, has_weights, seen_entries, seen_frames
from pyro_hrssm.model.plates import Rows

if TYPE_CHECKING:
    from pyro_hrssm.model.posterior import FrameEncoding


class Arguments(TypedDict, total=False):
    """Keyword arguments of `model` and `guide`, beside `frames` and `mask`; :class:`Call` has their defaults."""

    horizon: int
    """Number of frames to generate after the given ones."""
    size: int | None
    """Number of sequences to draw where no frames are given; None for 1."""
    temperature: Temperature
    """Temperature of the relaxed boundaries; at 0 they are hard Bernoulli ones, which makes the ELBO a true bound."""
    kl_weight: float | Tensor
    """Factor on the log densities of all latent sites."""
    state_weight: float | Tensor
    """Further factor on the log densities of s."""
    switch_gradient: float | Tensor
    """Share, from 0 to 1, of a relaxed boundary's gradient that z's log densities carry, which the boundary switches on
    or off; their values do not depend on it."""
    boundary_odds: Tensor | None
    """[B] log odds at which the guide draws a sequence's boundaries; NaN, or None for all, for its network's own."""
    jumpy: bool
    """Whether every frame of the horizon opens a segment: one frame per future segment."""


class Call(NamedTuple):
    """One call's :class:`Arguments`, with defaults filled in."""

    horizon: int = 0
    size: int | None = None
    temperature: Temperature = 1.0
    kl_weight: float | Tensor = 1.0
    state_weight: float | Tensor = 1.0
    switch_gradient: float | Tensor = 0.0
    boundary_odds: Tensor | None = None
    jumpy: bool = False


Array = Tensor | NDArray[Any]
"""Frames or a mask: a tensor on the model's device, or a NumPy array."""


class Given(NamedTuple):
    """The frames given to a call, with the frame axis first. B counts rows: the sequences of every plate around it."""

    context: Tensor | None
    """[K, B, X…]"""
    frames: Tensor | None
    """[T, B, X…], the modelled frames; zeros where a frame or an entry is missing."""
    seen: Tensor | None
    """[K + T, B] bool, true where a frame is observed, if only in part; None if all frames are."""
    valid: Tensor | None
    """[T, B] bool, false past the sequence's end; None if no sequence ends early."""
    size: int
    length: int
    """T"""
    rows: Rows
    """The axes that the rows stand for."""
    source: tuple[Array | None, Array | None] = (None, None)
    """Frames and mask as they were passed to the call."""
    copies: int = 1
    """Number of times that the rows repeat the same frames; each is encoded once."""
    entries: Tensor | None = None
    """[K + T, B, X…] flags or weights of entries; None where the mask is of whole frames, or there is none."""

    @classmethod
    def of(
        cls,
        config: HRSSMConfig,
        frames: Array | None,
        mask: Array | None,
        call: Call,
        like: Tensor,
        plates: tuple[int, ...] = (),
    ) -> Given:
        """The frames of a call.

        Arguments:
            frames: [B, T, X…], or [P…, B, T, X…] within plates of sizes P…; None to draw from the prior.
            mask: the same without X…, or with X… flags or weights of entries; None where every frame is observed.
            like: one of the model's parameters.
            plates: sizes P… of the plates around the call, outermost first.

        Raises:
            InputError: where frames, mask or size do not fit the model.
        """
        if frames is None:
            require(mask is None, "mask must come with the frames that it is of, found frames None")
            return cls._without_frames(config, call.size, plates)
        return cls._of_frames(config, frames, mask, like, plates)

    @staticmethod
    def _without_frames(config: HRSSMConfig, size: int | None, plates: tuple[int, ...]) -> Given:
        if config.context > 0:
            raise InputError(
                f"frames [B, {config.context}, …] must be given: this model starts from a context, found None"
            )
        rows = Rows(plates, 1 if size is None else size)
        if rows.size < 1:
            raise InputError(f"size must be at least 1, found {size}")
        return Given(None, None, None, None, rows.copies * rows.size, 0, rows)

    @staticmethod
    def _of_frames(
        config: HRSSMConfig, frames: Array, mask: Array | None, like: Tensor, plates: tuple[int, ...]
    ) -> Given:
        context, source, copies, axes = config.context, (frames, mask), 1, len(config.frame_shape)
        frames, mask = accept(config, frames, mask, like, plates)
        rows = Rows(plates, frames.shape[-2 - axes])
        if plates:
            frames, mask, copies = _by_rows(rows, frames, mask, axes)
        seen = valid = entries = None
        if mask is not None:
            seen = seen_frames(mask).transpose(0, 1)
            valid = before_end(mask)[:, context:].transpose(0, 1)
            entries = mask.transpose(0, 1) if mask.dim() > 2 else None
            # Hidden values are filled before any network reads them: a masked NaN would still spoil every gradient.
            frames = frames.masked_fill(~seen_entries(mask, axes), 0.0)
        first = frames.transpose(0, 1)
        return Given(
            first[:context] if context > 0 else None, first[context:], seen, valid, frames.shape[0],
            frames.shape[1] - context, rows, source, copies, entries,
        )  # fmt: skip

    def valid_at(self, frame: int) -> tuple[Tensor, ...]:
        """The masks of a site at this frame: [B], true for sequences that have the frame, or none if all have it.

        Every sequence has the frames after the given ones.
        """
        if self.valid is None:
            return ()
        return (self.valid[frame] if frame < len(self.valid) else self.valid.new_ones(self.size),)

    @property
    def valid_at_each(self) -> list[tuple[Tensor, ...]]:
        """:meth:`valid_at` of every frame."""
        return [self.valid_at(t) for t in range(self.length)]

    @property
    def acts(self) -> Tensor | None:
        """[T-1, B] bool: whether a boundary acts, because a frame of the sequence follows; None if all do."""
        return None if self.valid is None else self.valid[1:]

    def observed_frames(self, entries: int) -> Tensor:
        """[N, X…] the observed frames of the first rows, context included, with about this many entries at most.

        Missing entries of these frames are NaN.
        """
        frames = _all_frames(self)
        if self.entries is not None:
            frames = frames.masked_fill(~(self.entries > 0), torch.nan)
        rows = max(1, min(self.size // self.copies, entries // max(1, frames[:, 0].numel())))
        return frames[:, :rows].flatten(0, 1) if self.seen is None else frames[:, :rows][self.seen[:, :rows]]

    @property
    def valid_with_context(self) -> Tensor | None:
        """[K + T, B] bool: `valid` with the context's frames included."""
        if self.valid is None or self.context is None:
            return self.valid
        return torch.cat([self.valid.new_ones(self.context.shape[:2]), self.valid])


def accept(
    config: HRSSMConfig, frames: Array, mask: Array | None, like: Tensor, plates: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor | None]:
    """Frames and mask as tensors of the model's precision and on its device; NumPy arrays are copied there.

    Arguments are those of :meth:`Given.of`. Raises :class:`InputError` unless frames are [B, T, X…] floats of this
    model and the mask is [B, T] or [B, T, X…], of values that :func:`check_values` takes.
    """
    frames = _tensor("frames", frames, like)
    mask = None if mask is None else _tensor("mask", mask, like)
    check_frames(config, frames, mask, plates)
    return frames.to(like.dtype), mask


def _tensor(name: str, values: Any, like: Tensor) -> Tensor:
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "fbui" or values.dtype.itemsize > 8:
            raise InputError(f"{name} must hold numbers of at most 64 bits, found {values.dtype}")
        # Torch shares the memory of no array that is read only, runs backwards or has another machine's byte order.
        return torch.as_tensor(np.require(values, values.dtype.newbyteorder("="), ("C", "W")), device=like.device)
    if not isinstance(values, Tensor):
        raise InputError(f"{name} must be a tensor or a NumPy array, found {type(values).__name__}")
    if values.device != like.device:
        raise InputError(f"{name} must be on the model's device, {like.device}, found {values.device}")
    return values


def check_frames(config: HRSSMConfig, frames: Tensor, mask: Tensor | None, plates: tuple[int, ...] = ()) -> None:
    """Raise :class:`InputError` unless frames are [B, T, X…] floats of this model and mask is [B, T] or [B, T, X…].

    Within plates of sizes P…, both may start with the axes P….
    """
    expected = "[B, T, " + ", ".join(map(str, config.frame_shape)) + "]"
    expected += f" or {str(list(plates))[:-1]}, {expected[1:]}" if plates else ""
    least = max(1, config.context)
    event = len(config.frame_shape)
    split = max(0, frames.dim() - event)
    shape, found = tuple(frames.shape[:split]), list(frames.shape)
    if frames.shape[split:] != config.frame_shape or len(shape) < 2 or shape[:-2] not in ((), plates):
        raise InputError(f"frames must have shape {expected}, found {found}")
    if not frames.is_floating_point():
        raise InputError(f"frames must be floats, found {frames.dtype}")
    if shape[-2] < 1 or shape[-1] < least:
        raise InputError(f"frames must have shape {expected} with T at least {least}, found {found}")
    if mask is None:
        return
    forms = (shape, shape[-2:], (*plates, *shape[-2:]))
    if tuple(mask.shape) not in (*forms, *(form + config.frame_shape for form in forms)):
        either = f"{list(shape)} or {list(shape + config.frame_shape)}"
        raise InputError(f"mask must have shape {either}, found {list(mask.shape)}")
    whole = tuple(mask.shape) in forms
    check_values(mask, whole)
    if config.likelihood != "normal" and not whole and has_weights(mask):
        raise InputError(
            f"a mask of floats {list(mask.shape)} holds weights, which need likelihood normal; "
            f"give flags (bool), found {mask.dtype}"
        )


def _by_rows(rows: Rows, frames: Tensor, mask: Tensor | None, event: int) -> tuple[Tensor, Tensor | None, int]:
    """Frames [R, T, X…] and mask [R, T] or [R, T, X…], and the number of times that they repeat the same sequences."""
    if mask is None:
        return rows.fold(frames, 1 + event), None, rows.copies if frames.dim() == 2 + event else 1
    shape = tuple(frames.shape[-2 - event : frames.dim() - event])
    of_frames = tuple(mask.shape) in (shape, (*rows.plates, *shape))
    inner = 0 if of_frames else event
    shared = frames.dim() == 2 + event and mask.dim() == 2 + inner
    return rows.fold(frames, 1 + event), rows.fold(mask, 1 + inner), rows.copies if shared else 1


def check_rollout(given: Given, call: Call) -> None:
    """Raise :class:`InputError` where a call of `model` has no frame to model, or a negative horizon or temperature."""
    if call.horizon < 0 or given.length + call.horizon < 1:
        raise InputError(
            f"nothing to model: give frames past the context or a horizon of at least 1, found {call.horizon}"
        )
    if not isinstance(call.temperature, Tensor) and not call.temperature >= 0:
        raise InputError(f"temperature must be at least 0, found {call.temperature}")


# Which frames belong to a sequence


def before_end(mask: Tensor) -> Tensor:
    """[B, T] bool: true up to a sequence's last observed frame; later frames lie past the sequence's end.

    Arguments:
        mask: [B, T], true where a frame is observed; or [B, T, X…], flags or weights of entries.
    """
    return seen_frames(mask).flip(1).cummax(1).values.flip(1)


def acting(context: int, frames: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T-1] bool: true for boundaries that a frame of the sequence follows; only modelled frames count.

    Arguments:
        context: K, the number of leading frames that are not modelled.
        frames: [B, K + T, X…].
        mask: [B, K + T], true where a frame is observed; or [B, K + T, X…] of entries; or None.
    """
    if mask is None:
        return frames.new_ones(frames.shape[0], frames.shape[1] - context - 1, dtype=torch.bool)
    return before_end(mask)[:, context + 1 :]


def followed(context: int, frames: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T] bool: true for modelled frames that a frame of the sequence follows; arguments as in :func:`acting`."""
    acts = acting(context, frames, mask)
    return torch.cat([acts, acts.new_zeros(len(acts), 1)], 1)


def lengths(context: int, frames: Tensor, mask: Tensor | None) -> Tensor:
    """[B] number of modelled frames of each sequence up to the last observed one; arguments as in :func:`acting`."""
    if mask is None:
        return torch.full((frames.shape[0],), frames.shape[1] - context, device=frames.device)
    return before_end(mask)[:, context:].sum(1)


# The frames' encoding, which guide and model share


class EncodedOnce(Messenger):
    """A context in which a model called with the guide's arguments reuses the frames that the guide encoded.

    Arguments:
        copies: number of times that the batch repeats its first `B / copies` sequences; each is encoded once.
    """

    def __init__(self, copies: int = 1) -> None:
        super().__init__()
        self._copies = copies
        self._known: tuple[FrameEncoding, Given, Tensor] | None = None

    def _pyro_encode(self, msg: Any) -> None:
        posterior, given = msg["args"]
        encoded = _encode_once(posterior, given, _all_frames(given), given.copies * self._copies)
        self._known = posterior, given, encoded
        msg["value"], msg["done"] = encoded, True

    def _pyro_known_encoding(self, msg: Any) -> None:
        if self._known is None:
            return
        posterior, given = msg["args"]
        same = all(one is other for one, other in zip(self._known[1].source, given.source, strict=True))
        if self._known[0] is posterior and same and self._known[1].rows == given.rows:
            msg["value"], msg["done"] = self._known[2], True


def encode(posterior: FrameEncoding, given: Given) -> Tensor:
    """Features [K + T, B, H] of context and frames."""
    # With a name, since a user's handler may look at the name of every message.
    return _encode(posterior, given, name="encode")


def encode_stretch(posterior: FrameEncoding, given: Given, part: slice) -> Tensor:
    """The part of the features of :func:`encode` that belongs to these frames, the context's counted too."""
    seen, entries = (None if flags is None else flags[part] for flags in (given.seen, given.entries))
    return _encode_once(posterior, given._replace(seen=seen, entries=entries), _all_frames(given)[part], given.copies)


@effectful(type="encode")
def _encode(posterior: FrameEncoding, given: Given) -> Tensor:
    return _encode_once(posterior, given, _all_frames(given), given.copies)


def _encode_once(posterior: FrameEncoding, given: Given, frames: Tensor, copies: int) -> Tensor:
    """Features of a call's first n frames [n, B, X…]; they repeat `B / copies` sequences, each of them encoded once."""
    count, once = len(frames), frames.shape[1] // copies
    seen, entries = (None if flags is None else flags[:count, :once] for flags in (given.seen, given.entries))
    encoded = posterior.encode(frames[:, :once], seen, entries)
    return encoded if copies == 1 else encoded.repeat(1, copies, 1)


@effectful(type="known_encoding")
def _known_encoding(posterior: FrameEncoding, given: Given) -> Tensor | None:
    """The result of :func:`encode` for the same frames within an :class:`EncodedOnce`; None elsewhere."""
    return None


def summarise(posterior: FrameEncoding, given: Given) -> Tensor | None:
    """ψ^fwd of the context [B, H], from which p starts; None without a context."""
    if given.context is None:
        return None
    encoded = _known_encoding(posterior, given, name="known_encoding")
    if encoded is None:
        encoded = _encode_once(posterior, given, given.context, given.copies)
    return posterior.context_summary(encoded[: len(given.context)])


def _all_frames(given: Given) -> Tensor:
    """Context and frames [K + T, B, X…]."""
    assert given.frames is not None
    return given.frames if given.context is None else torch.cat([given.context, given.frames])
