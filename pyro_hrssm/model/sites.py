"""The distributions of the sites of `model` and `guide`, made when they are needed and scored for all frames at once.

Pyro calls `log_prob` of each site separately. Within :class:`ScoredTogether` the first such call computes the
densities of all sites of that variable (`z_0`, `z_1`, …), with one set of kernels for all frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.ops.provenance import ProvenanceTensor
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence, register_kl
from torch.types import _size

from pyro_hrssm.batching.later import Queue, Result, Value, known, value_of
from pyro_hrssm.errors import InputError, one_line
from pyro_hrssm.model.distributions import (
    HardBoundary,
    RelaxedBoundary,
    StateNormal,
    Temperature,
    boundary_log_prob,
    is_hard,
    normal_log_prob,
)


class Site(TorchDistribution):
    """A distribution that is made when it is needed, and that may hold its density at the site's value.

    Arguments:
        make: makes the distribution from the parameters.
        density: computes the log density `[n, B]` of n frames from values and parameters with a leading axis n.
        parameters: `[B, …]` each.
        masks: `[B]` each, as in :func:`masked`.
        shape: the batch shape and then the event shape.
        event_dim: number of axes in the event shape.
        has_rsample: whether draws carry gradients.
        accepts: raises :class:`InputError` where a user's value for the site means nothing; None if any number does.
        drawn: the first draw, if it was made along with those of the other frames.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        make: Callable[..., TorchDistribution],
        density: Callable[..., Tensor],
        parameters: tuple[Value, ...],
        masks: tuple[Value, ...],
        shape: torch.Size,
        event_dim: int,
        has_rsample: bool = True,
        drawn: Tensor | None = None,
        accepts: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        self.density, self.parameters, self.masks = density, parameters, masks
        self._make = make
        self._unmasked: TorchDistribution | None = None
        self._drawn = drawn
        self._accepts = accepts
        self._scored: tuple[Tensor, Result] | None = None
        self.has_rsample = has_rsample
        split = len(shape) - event_dim
        super().__init__(shape[:split], shape[split:], validate_args=False)

    @property
    def unmasked(self) -> TorchDistribution:
        """The distribution without its masks."""
        if self._unmasked is None:
            self._unmasked = self._make(*map(value_of, self.parameters))
        return self._unmasked

    @property
    def plain(self) -> TorchDistribution:
        """The distribution, masks included; no gradient reaches a mask."""
        return self.unmasked.mask(_all(*map(value_of, self.masks))) if self.masks else self.unmasked

    def settled(self, name: str, value: Any, like: Tensor) -> Tensor:
        """A value that the user gives for the site of this name, as one of the model's tensors.

        Arguments:
            value: a tensor or a number that broadcasts to the site's shape.
            like: a tensor of the model's precision, on its device.

        Raises:
            InputError: where the value does not fit the site.
        """
        given = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
        if self._accepts is not None:
            self._accepts(name, given)
        shape = self.batch_shape + self.event_shape
        if given.shape != shape:
            try:
                given = given.expand(shape)
            except RuntimeError as error:
                raise InputError(f"{name} must have shape {list(shape)}, found {list(given.shape)}") from error
        return given.to(like)

    def score_later(self, value: Tensor, log_prob: Result) -> None:
        """Set the site's value and the log density there, which may be computed later."""
        self._scored = value, log_prob

    def log_prob(self, value: Tensor) -> Tensor:
        # Provenance records the sites that a value depends on; densities computed together would depend on all frames.
        if self._scored is not None and value is self._scored[0] and not isinstance(value, ProvenanceTensor):
            return self._scored[1].value
        return masked(self.unmasked.log_prob(value), *map(value_of, self.masks))

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:
        drawn, self._drawn = self._drawn, None
        return self.unmasked.rsample(sample_shape) if drawn is None or sample_shape else drawn

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:
        drawn, self._drawn = self._drawn, None
        if drawn is None or sample_shape:
            return self.unmasked.sample(sample_shape)
        return drawn.detach() if drawn.requires_grad else drawn

    def expand(self, batch_shape: _size, _instance: object = None) -> TorchDistribution:
        # A plate expands every site; an expansion to the same shape must not compute the parameters.
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


class ScoredTogether(Messenger):
    """A context that computes the log densities of a variable's sites (`z_0`, `z_1`, …) together, at the first call.

    Arguments:
        like: one of the model's parameters, to whose precision values are brought on which a user conditions a site.
    """

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self._like = like
        # The queues hold values and parameters but no site: a site refers to its queue, and a reference cycle would
        # keep a step's tensors from being freed.
        self._queues: dict[str, Queue] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        site = msg["fn"]
        if isinstance(site, Site):
            variable, given = msg["name"].rpartition("_")[0], msg["value"]
            if variable not in self._queues:
                self._queues[variable] = Queue(partial(_masked_density, site.density, len(site.masks)))
            if msg["is_observed"]:
                msg["value"] = site.settled(msg["name"], given, self._like)
            site.score_later(given, self._queues[variable].add((msg["value"], *site.parameters, *site.masks)))


def latent(parameters: Result, shape: torch.Size, *masks: Value, drawn: Tensor | None = None) -> Site:
    """A latent state's diagonal Normal.

    Arguments:
        parameters: a result whose first two outputs are the mean and the scale, `[B, size]` each.
        shape: `[B, size]`.
        masks: `[B]` each, as in :func:`masked`; where one is 0, the state is absent or copied.
        drawn: `[B, size]`, the first draw.
    """
    return Site(_normal, _normal_density, (parameters[0], parameters[1]), masks, shape, 1, drawn=drawn)


def boundary(
    logits: Value, forced: Value | None, temperature: Temperature, size: int, *masks: Value, drawn: Tensor | None = None
) -> Site:
    """A boundary's distribution: relaxed at a positive temperature, Bernoulli at 0.

    Arguments:
        logits: `[B]` log odds, limits imposed.
        forced: `[B]` bool, true where the limits leave no choice, so that a draw takes the side of its log odds; or
            None.
        temperature: at least 0.
        size: number of sequences B.
        masks: `[B]` each, as in :func:`masked`.
        drawn: `[B]`, the first draw.
    """
    make = partial(_boundary, temperature, forced)
    density = partial(_boundary_density, temperature)
    hard = is_hard(temperature)
    accepts = _accepts_decision if hard else _accepts_logit
    return Site(make, density, (logits,), masks, torch.Size([size]), 0, not hard, drawn, accepts)


def sample_latents(variable: str, parameters: tuple[Tensor, Tensor], masks: Sequence[tuple[Value, ...]]) -> Tensor:
    """Sites `{variable}_0`, `{variable}_1`, …, whose Normals are known for all frames before the first is drawn.

    Arguments:
        parameters: means and scales [T, B, size].
        masks: the masks of every frame, as in :func:`latent`.

    Returns the values [T, B, size]: the draws, made for all frames at once, or the values a handler replaced them by.
    """
    means, scales = parameters
    drawn = torch.addcmul(means, scales, torch.empty_like(means).normal_())
    draws, each = drawn.unbind(0), known(means, scales)
    values = []
    for t in pyro.markov(range(len(means))):
        fn = latent(each[t], means.shape[1:], *masks[t], drawn=draws[t])
        values.append(pyro.sample(f"{variable}_{t}", fn))
    untouched = all(value is draw for value, draw in zip(values, draws, strict=True))
    return drawn if untouched else torch.stack(values)


def weighted(weight: float | Tensor) -> Any:
    """A context that scales log densities by `weight`; at weight 1 no handler is used, to save one kernel per site."""
    return contextlib.nullcontext() if not isinstance(weight, Tensor) and weight == 1 else poutine.scale(scale=weight)


def masked(log_prob: Tensor, *masks: Tensor) -> Tensor:
    """A log density, 0 where a mask is 0; a factor's gradient is the density that the factor switches on or off.

    The value is selected, never multiplied, so that a density that is switched off may be infinite.

    Arguments:
        log_prob: `[…, B]`.
        masks: `[…, B]` each, bool or factors in {0, 1}.
    """
    for mask in masks:
        kept = torch.where(mask > 0.5, log_prob, 0.0)
        if mask.requires_grad:
            # Nor may an infinite density spoil the gradient of the boundary that switches it off.
            switched = log_prob.detach().nan_to_num(0.0, 0.0, 0.0)
            kept = kept + (mask - mask.detach()) * switched
        log_prob = kept
    return log_prob


def _accepts_decision(name: str, value: Tensor) -> None:
    # On the meta device, which stands in for others where programs are tried, there is no value to look at.
    if value.dtype is not torch.bool and not value.is_meta and not ((value == 0) | (value == 1)).all():
        raise InputError(f"{name} must be 0 or 1 at temperature 0, found {one_line(value.flatten()[:4].tolist())}")


def _accepts_logit(name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise InputError(
            f"{name} is a number whose sign decides, in logit space, at a positive temperature: give floats, or "
            f"temperature=0 along with 0 or 1, found {value.dtype}"
        )


def _normal(mean: Tensor, scale: Tensor) -> TorchDistribution:
    return StateNormal(mean, scale, validate_args=False).to_event(1)


def _normal_density(value: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return normal_log_prob(value, mean, scale).sum(-1)


def _boundary(temperature: Temperature, forced: Value | None, logits: Tensor) -> TorchDistribution:
    flags = None if forced is None else value_of(forced)
    return HardBoundary(logits, flags) if is_hard(temperature) else RelaxedBoundary(logits, temperature, flags)


def _boundary_density(temperature: Temperature, value: Tensor, logits: Tensor) -> Tensor:
    return boundary_log_prob(value, logits, temperature)


def _masked_density(density: Callable[..., Tensor], num_masks: int, *inputs: Tensor) -> Tensor:
    """The density under masks, which are the last `num_masks` inputs."""
    split = len(inputs) - num_masks
    return masked(density(*inputs[:split]), *inputs[split:])


def _all(*masks: Tensor) -> Tensor:
    """True where all masks, bool or factors in {0, 1}, hold."""
    result = masks[0] > 0.5
    for mask in masks[1:]:
        result = result & (mask > 0.5)
    return result
