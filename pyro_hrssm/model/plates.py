"""Pyro's plates around a program: their axes and the sequences' axis are folded into one axis of rows.

The loops over frames and the networks know one batch axis. Within `Trace_ELBO(vectorize_particles=True)`,
`Predictive(parallel=True)` or a plate of the user's, a program therefore runs on `R = P… · B` rows, and
:class:`Folding` shows every site to the outside with the axes `[P…, B]`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor
from torch.distributions import kl_divergence, register_kl
from torch.types import _size

from pyro_hrssm.errors import InputError


@dataclass(frozen=True)
class Rows:
    """The axes of a call: those of the plates around it, and the sequences'."""

    plates: tuple[int, ...]
    """P…, outermost first; empty where no plate surrounds the call."""
    size: int
    """B"""

    @property
    def shape(self) -> torch.Size:
        """[P…, B]"""
        return torch.Size([*self.plates, self.size])

    @property
    def copies(self) -> int:
        """Number of rows per sequence."""
        return math.prod(self.plates)

    def fold(self, value: Tensor, event_dim: int = 0) -> Tensor:
        """Rows [R, E…] of a value [P…, B, E…], or of one that broadcasts to it; axes to the left of P… stay."""
        if not self.plates:
            return value
        return _fold(value, self.shape, event_dim)

    def unfold(self, value: Tensor) -> Tensor:
        """Value [P…, B, E…] of rows [R, E…]."""
        return value.unflatten(0, self.shape) if self.plates else value

    def unfold_each(self, values: Tensor) -> Tensor:
        """Values [T, P…, B] of rows at each frame [T, R]."""
        return values.unflatten(1, self.shape) if self.plates else values

    def seen_from_outside(self, rows: TorchDistribution) -> TorchDistribution:
        """The distribution of batch shape [P…, B] that a distribution over rows stands for."""
        return Unfolded(rows, self.shape) if self.plates else rows

    @contextlib.contextmanager
    def plate(self) -> Iterator[None]:
        """Pyro's plate over sequences, within which sites are sampled by rows."""
        with (
            pyro.plate("sequences", self.size, dim=-1),
            Folding(self.shape) if self.plates else contextlib.nullcontext(),
        ):
            yield


def surrounding_plates() -> tuple[int, ...]:
    """Sizes P… of the vectorised plates around this call, outermost first; 1 at an axis between them without a plate.

    Raises :class:`InputError` where one of them has the axis of the sequences.
    """
    with _Plates() as found:
        _ask(name="plates")
    sizes = {}
    for frame in found.frames:
        if frame.dim is None or frame.size == -1:  # a plate in a loop, or one that only declares independence
            continue
        if frame.dim == -1:
            raise InputError(f"the sequences are a plate at dim=-1: move the plate {frame.name!r} to dim=-2")
        sizes[-frame.dim] = int(frame.size)
    return tuple(sizes.get(place, 1) for place in range(max(sizes, default=1), 1, -1))


@effectful(type="plates")
def _ask() -> None:
    """Pass through all handlers, of which plates leave their mark on the message."""


class _Plates(Messenger):
    """Keeps the plates of the message of :func:`_ask`."""

    frames: tuple[Any, ...] = ()

    def _pyro_post_plates(self, msg: Any) -> None:
        self.frames = msg["cond_indep_stack"]


class Unfolded(TorchDistribution):
    """A distribution over rows, with the batch shape [P…, B].

    Arguments:
        rows: the distribution, of batch shape [R].
        shape: [P…, B].
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, rows: TorchDistribution, shape: torch.Size) -> None:
        self.rows = rows
        self.has_rsample = rows.has_rsample
        # Rows are recognised by their identity, so that a value keeps its rows on its way through Pyro's handlers.
        self._known: tuple[Any, Tensor] | None = None
        super().__init__(shape, rows.event_shape, validate_args=False)

    def unfold(self, rows: Tensor) -> Tensor:
        """Value [P…, B, E…] of rows [R, E…]."""
        value = rows.unflatten(0, self.batch_shape)
        self._known = value, rows
        return value

    def fold(self, value: Any) -> Tensor:
        """Rows [R, E…] of a value [P…, B, E…], or of one that broadcasts to it."""
        if self._known is None or value is not self._known[0]:
            tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
            self._known = value, _fold(tensor, self.batch_shape, self.event_dim, self.event_shape)
        return self._known[1]

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:
        return self._drawn(self.rows.rsample(sample_shape), sample_shape)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:
        return self._drawn(self.rows.sample(sample_shape), sample_shape)

    def _drawn(self, rows: Tensor, sample_shape: _size) -> Tensor:
        return rows.unflatten(len(sample_shape), self.batch_shape) if sample_shape else self.unfold(rows)

    def log_prob(self, value: Any) -> Tensor:
        return self.rows.log_prob(self.fold(value)).unflatten(-1, self.batch_shape)

    def expand(self, batch_shape: _size, _instance: object = None) -> TorchDistribution:
        # A plate expands every site.
        return self if torch.Size(batch_shape) == self.batch_shape else super().expand(torch.Size(batch_shape))

    @property
    def support(self) -> Any:
        return self.rows.support

    @property
    def mean(self) -> Tensor:
        return self.rows.mean.unflatten(0, self.batch_shape)

    @property
    def variance(self) -> Tensor:
        return self.rows.variance.unflatten(0, self.batch_shape)


@register_kl(Unfolded, Unfolded)
def _kl_of_unfolded(p: Unfolded, q: Unfolded) -> Tensor:
    return kl_divergence(p.rows, q.rows).unflatten(0, p.batch_shape)


class Folding(Messenger):
    """A context within which sites are sampled by rows [R], while handlers outside see them with the axes [P…, B]."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self._shape = shape

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], TorchDistributionMixin):
            msg["fn"] = Unfolded(msg["fn"], self._shape)
            if msg["value"] is not None:
                msg["value"] = msg["fn"].unfold(msg["value"])

    def _pyro_post_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, Unfolded):
            msg["value"], msg["fn"] = fn.fold(msg["value"]), fn.rows
        elif isinstance(fn, TorchDistributionMixin):  # a handler outside has put another distribution in its place
            msg["value"] = _fold(msg["value"], self._shape, fn.event_dim)


def _fold(value: Tensor, shape: torch.Size, event_dim: int, event: torch.Size | None = None) -> Tensor:
    """Rows […, R, E…] of a value that broadcasts to […, *shape, E…]."""
    split = max(0, value.dim() - event_dim)
    outside = value.shape[: max(0, split - len(shape))]
    tail = value.shape[split:] if event is None else event
    try:
        whole = value.expand(*outside, *shape, *tail)
    except RuntimeError as error:
        raise InputError(f"a site's value must have shape {[*shape, *tail]}, found {list(value.shape)}") from error
    return whole.flatten(len(outside), len(outside) + len(shape) - 1)
