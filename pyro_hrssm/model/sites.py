"""Sites of one variable along the frames: what is drawn and scored for all frames at once stands here.

The loops of `model` and `guide` have a site per frame, and Pyro asks each for its density alone. A distribution made
here is told which value its site took; when the first of them is asked for its density at that value, those of all
frames are computed in one set of kernels. Asked for anything else it is the plain distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.ops.provenance import ProvenanceTensor
from torch import Tensor
from torch.distributions import kl_divergence, register_kl
from torch.types import _size

from pyro_hrssm.batching.deferred import Deferred, Frame, value_of
from pyro_hrssm.model.distributions import (
    DeferredNormal,
    Forced,
    Temperature,
    boundary,
    boundary_log_prob,
    is_hard,
    normal_log_prob,
)


class Site(TorchDistribution):
    """A plain distribution, made when it is needed, that may know its density at one value and what it will draw.

    Arguments:
        unmasked: makes the distribution.
        masks: [B] factors in {0, 1} or bool each; where one is 0, so is the log density.
        shape: batch and event.
        event_dim: how many axes of it are of the event.
        has_rsample: whether draws carry gradients.
        drawn: what it gives when first asked for a draw.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        unmasked: Callable[[], TorchDistribution],
        masks: tuple[Tensor | Frame, ...],
        shape: torch.Size,
        event_dim: int,
        has_rsample: bool = True,
        drawn: Tensor | None = None,
    ) -> None:
        self._make = unmasked
        self._masks = masks
        self._unmasked: TorchDistribution | None = None
        self._drawn = drawn
        self._known: tuple[Tensor, Frame] | None = None
        self.has_rsample = has_rsample
        split = len(shape) - event_dim
        super().__init__(shape[:split], shape[split:], validate_args=False)

    @property
    def unmasked(self) -> TorchDistribution:
        """The distribution without its masks."""
        if self._unmasked is None:
            self._unmasked = self._make()
        return self._unmasked

    @property
    def plain(self) -> TorchDistribution:
        """The distribution, masks included."""
        return self.unmasked.mask(_all(*map(value_of, self._masks))) if self._masks else self.unmasked

    def remember(self, value: Tensor, log_prob: Frame) -> None:
        """Note the value that the site took, and its log density there."""
        self._known = value, log_prob

    def log_prob(self, value: Tensor) -> Tensor:
        # Who follows what depends on what must not be told of the other frames computed along with this one.
        if self._known is not None and value is self._known[0] and not isinstance(value, ProvenanceTensor):
            return value_of(self._known[1])
        return self.plain.log_prob(value)

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:
        drawn, self._drawn = self._drawn, None
        return self.unmasked.rsample(sample_shape) if drawn is None or sample_shape else drawn

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:
        drawn, self._drawn = self._drawn, None
        if drawn is None or sample_shape:
            return self.unmasked.sample(sample_shape)
        return drawn.detach() if drawn.requires_grad else drawn

    def expand(self, batch_shape: _size, _instance: object = None) -> TorchDistribution:
        # A plate expands every site; to the same shape that must not ask for the parameters.
        return self if torch.Size(batch_shape) == self.batch_shape else self.plain.expand(torch.Size(batch_shape))

    @property
    def support(self) -> Any:
        return self.unmasked.support

    @property
    def mean(self) -> Tensor:
        return self.unmasked.mean

    @property
    def variance(self) -> Tensor:
        return self.unmasked.variance


@register_kl(Site, Site)
def _kl_of_sites(p: Site, q: Site) -> Tensor:
    return kl_divergence(p.plain, q.plain)


class _Sites:
    """The sites of one variable, frame by frame; of each, first `at`, then `keep`."""

    def __init__(self, log_prob: Callable[..., Tensor]) -> None:
        self._log_probs = Deferred(lambda *inputs: (log_prob(*inputs),))
        self._latest: tuple[Site, tuple[Tensor | Frame, ...]] | None = None

    def _keep(self, value: Tensor) -> None:
        assert self._latest is not None
        site, inputs = self._latest
        site.remember(value, self._log_probs.add(value, *inputs))
        self._latest = None  # it knows these sites: a circle would keep a step's tensors from being freed


class NormalSites(_Sites):
    """Sites of a latent state: diagonal Normals of batch [B] and event [size].

    Arguments:
        shape: [B, size].
        parameters: means and scales [T, B, size] of all frames, of which all draws are made at once; None where they
            come frame by frame.
    """

    def __init__(self, shape: torch.Size, parameters: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__(_masked_normal_log_prob)
        self._shape = shape
        self._values: list[Tensor] = []
        if parameters is not None:
            means, scales = parameters
            self._known = Deferred.known(means, scales)
            self._drawn = torch.addcmul(means, scales, torch.empty_like(means).normal_())
            self._draws = self._drawn.unbind(0)

    def at(self, parameters: Frame, *masks: Tensor | Frame) -> Site:
        """The next frame's, of mean and scale, both outputs of `parameters`; its density is 0 where a mask [B] is."""
        return self._site(parameters, masks, None)

    def at_known(self, frame: int, *masks: Tensor | Frame) -> Site:
        """The next frame's, of the means and scales known from the start."""
        return self._site(Frame(self._known, frame), masks, self._draws[frame])

    def _site(self, parameters: Frame, masks: tuple[Tensor | Frame, ...], drawn: Tensor | None) -> Site:
        site = Site(partial(self._normal, parameters), masks, self._shape, 1, drawn=drawn)
        self._latest = site, (parameters, parameters.part(1), *masks)
        return site

    def _normal(self, parameters: Frame) -> TorchDistribution:
        return DeferredNormal(parameters.__call__, self._shape).to_event(1)

    def keep(self, value: Tensor) -> Tensor:
        """Note the value [B, size] that the frame's site took; returns it."""
        self._keep(value)
        self._values.append(value)
        return value

    def values(self) -> Tensor:
        """[T, B, size] of all frames."""
        own = all(value is draw for value, draw in zip(self._values, self._draws, strict=True))
        return self._drawn if own else torch.stack(self._values)


def _all(*masks: Tensor) -> Tensor:
    """Where all masks hold, factors in {0, 1} or bool."""
    result = masks[0] > 0.5
    for mask in masks[1:]:
        result = result & (mask > 0.5)
    return result


def _masked(log_prob: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
    return torch.where(_all(*masks), log_prob, 0.0) if masks else log_prob


def _masked_normal_log_prob(value: Tensor, mean: Tensor, scale: Tensor, *masks: Tensor) -> Tensor:
    return _masked(normal_log_prob(value, mean, scale).sum(-1), masks)


class BoundarySites(_Sites):
    """Sites of the boundaries, batch [B].

    Arguments:
        size: B.
        temperature: as :func:`boundary` reads it.
    """

    def __init__(self, size: int, temperature: Temperature) -> None:
        super().__init__(partial(_masked_boundary_log_prob, temperature))
        self._size = torch.Size([size])
        self._temperature = temperature

    def at(
        self,
        logits: Frame,
        forced: Forced | Frame | None,
        *masks: Tensor,
        drawn: Tensor | None = None,
    ) -> Site:
        """The next frame's.

        Arguments:
            logits: its log odds [B], limits applied.
            forced: what the limits say, or outputs of :meth:`SegmentLimits.along`; None for no limits.
            masks: [B] bool; where one is false, so is the density 0.
            drawn: [B] what it draws when first asked.
        """
        make = partial(self._boundary, logits, forced)
        site = Site(make, masks, self._size, 0, not is_hard(self._temperature), drawn)
        self._latest = site, (logits, *masks)
        return site

    def _boundary(self, logits: Frame, forced: Forced | Frame | None) -> TorchDistribution:
        if isinstance(forced, Frame):
            _, none, some = forced()
            forced = Forced(none, some)
        return boundary(partial(value_of, logits), self._size, self._temperature, forced)

    def keep(self, value: Tensor) -> Tensor:
        """Note the value [B] that the frame's site took; returns it."""
        self._keep(value)
        return value


def _masked_boundary_log_prob(temperature: Temperature, value: Tensor, logits: Tensor, *masks: Tensor) -> Tensor:
    return _masked(boundary_log_prob(value, logits, temperature), masks)
