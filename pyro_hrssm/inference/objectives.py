"""Training objectives for `SVI`: Pyro's own, which also measure their terms, and a score-function estimator."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_hrssm.inference.bounds import terms
from pyro_hrssm.model.given import EncodedOnce


class Measured(NamedTuple):
    """The numbers that a step's log needs, besides the loss."""

    terms: dict[str, Tensor]
    """Terms of the objective in nats per sequence; they form no bound where boundaries are relaxed."""
    boundary_rate: Tensor
    """Number of boundaries drawn per frame that could have one."""


class Objective(Trace_ELBO):
    """`Trace_ELBO` that also measures the terms of its last loss."""

    learns_boundaries = True
    _traces: tuple[Any, Any]

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        with EncodedOnce():
            self._traces = super()._get_trace(model, guide, args, kwargs)
        return self._traces

    @torch.no_grad()
    def measured(self) -> Measured:
        """The measurements of the last loss."""
        parts = {name: values.mean() for name, values in terms(*self._traces).items()}
        return Measured(parts, drawn_rate(self._traces[1]))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of one particle, boundaries relaxed, as a tensor that needs no Python number: it can be compiled."""
        return torch.stack([*terms(*self._get_trace(model, guide, args, kwargs)).values()]).sum()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss, its gradient added to the parameters' `grad`; raises `FloatingPointError` if it is not finite."""
        # Gradients can be finite where the loss is not, and the optimiser, which sees gradients alone, would step.
        return finite(super().loss_and_grads(model, guide, *args, **kwargs))


def drawn_rate(guide_trace: Any) -> Tensor:
    """Number of boundaries drawn per frame that could have one."""
    drawn = guide_trace.nodes["_RETURN"]["value"]
    chances = torch.ones_like(drawn.boundaries) if drawn.acts is None else drawn.acts
    return (drawn.boundaries * chances).sum() / chances.sum().clamp(min=1)


class MeanFieldObjective(Objective, TraceMeanField_ELBO):
    """`TraceMeanField_ELBO` that also measures the terms of its last loss."""


class LeaveOneOutELBO(Objective):
    """ELBO with hard boundaries whose q(M | X) learns by score function, with the other draws as each draw's baseline.

        ∇ELBO = E[ ∇_path log w_k + (log w_k - mean_{j≠k} log w_j) ∇ log q(M_k | X) ],
        w = p(X, Z, S, M) / q(Z, S, M | X)

    This gradient is unbiased; the straight-through gradient of the relaxed boundaries is not, since it replaces a jump
    by a slope and misses that a segment which is not opened saves the cost of its z. The loss is the true bound, so
    `temperature` is ignored. Each sequence is drawn `num_particles` times, folded into the batch.

    Sources: Kool, van Hoof and Welling 2019, *Buy 4 REINFORCE samples, get a baseline for free*; Mnih and Rezende
    2016 (VIMCO) for the idea that particles serve as each other's baseline.

    Arguments:
        num_particles: K, at least 2.
        boundary_cost: nats that the gradient of q(M) subtracts from a path's log weight for each of its boundaries,
            after the penalty on description length of *Learning Options via Compression* (Jiang et al. 2022). The
            loss itself stays the bound.
    """

    def __init__(self, num_particles: int = 2, boundary_cost: float = 0.0) -> None:
        if num_particles < 2:
            raise ValueError(f"num_particles must be at least 2, found {num_particles}")
        super().__init__(num_particles=num_particles)
        self.boundary_cost = boundary_cost
        self.learns_boundaries = True
        """Whether q(M) learns; false while the networks first learn to use segments wherever these lie."""
        self._deviation = torch.zeros(())

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        folded = [_repeat(value, self.num_particles) for value in args]
        kwargs = kwargs | {key: _repeat(kwargs[key], self.num_particles) for key in ("frames", "mask") if key in kwargs}
        with EncodedOnce(self.num_particles):
            self._traces = Trace_ELBO._get_trace(self, model, guide, folded, kwargs | {"temperature": 0.0})
        return self._traces

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Negative ELBO, summed over sequences and averaged over particles."""
        with torch.no_grad():
            return -float(_log_weights(*self._get_trace(model, guide, args, kwargs))[0].sum()) / self.num_particles

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A loss whose value is the negative ELBO and whose gradient is the estimator's."""
        traces = self._get_trace(model, guide, args, kwargs)
        weights, score = (values.view(self.num_particles, -1) for values in _log_weights(*traces))
        judged = weights.detach()
        if self.boundary_cost != 0:
            judged = judged - self.boundary_cost * _count(traces[1]).view_as(judged)
        self._deviation = judged - judged.mean(0)
        advantage = self._deviation * (self.num_particles / (self.num_particles - 1))
        # The last factor has the value 0 and contributes only its gradient.
        surrogate = weights + advantage * (score - score.detach()) if self.learns_boundaries else weights
        return -surrogate.sum() / self.num_particles

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Negative ELBO; its gradient is added to the parameters' `grad`. Raises as :class:`Objective` does."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return finite(loss.item())

    @torch.no_grad()
    def rate_and_spread(self) -> tuple[float, float]:
        """Boundaries per frame of the last loss, and the mean absolute deviation of its draws' log weights, in nats."""
        return drawn_rate(self._traces[1]).item(), self._deviation.abs().mean().item()


class RateControl:
    """Adjusts the cost of a boundary so that q(M) draws `target` boundaries per frame on average.

    The cost follows dual ascent plus a part proportional to the last error, without which the two integrators in a
    row, cost and log odds, would oscillate. Errors are scaled by the spread of the log weights, which is the worth of a
    boundary on the data at hand, plus 1 nat, so that the cost still moves where all draws are alike.

    Arguments:
        target: number of boundaries per frame that could have one, between 0 and 1.
        settled: the initial cost, in nats.
    """

    GAIN = 0.03
    """Share of the spread by which the settled cost would move in a step if every frame had one boundary too many."""
    DAMPING = 2.0
    """Share of the spread that the cost in force would then add to the settled cost."""

    def __init__(self, target: float, settled: float) -> None:
        self.target = target
        self.settled = settled
        self.cost = settled
        """The cost in force, in nats."""

    def step(self, rate: float, spread: float) -> None:
        """Update the cost from the last step's boundary rate and spread of log weights."""
        error = (1 + spread) * (rate - self.target)
        self.settled += self.GAIN * error
        self.cost = self.settled + self.DAMPING * error


def finite(loss: float) -> float:
    """The loss; raises `FloatingPointError` if it is not finite."""
    if not math.isfinite(loss):
        raise FloatingPointError("loss")
    return loss


def _repeat(value: Any, count: int) -> Any:
    return value.repeat(count, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) else value


def _count(guide_trace: Any) -> Tensor:
    """Number of boundaries drawn in every row that a frame follows."""
    drawn = guide_trace.nodes["_RETURN"]["value"]
    return (drawn.boundaries if drawn.acts is None else drawn.boundaries * drawn.acts).sum(0)


def _log_weights(model_trace: Any, guide_trace: Any) -> tuple[Tensor, Tensor]:
    """Log w of every row of the batch, and log q of the sites that have no pathwise gradient; [rows] each."""
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    parts, scores = [], []
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        for site in trace.nodes.values():
            if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
                log_prob = site["log_prob"]
                if trace is guide_trace and not site["fn"].has_rsample:
                    scores.append(site["unscaled_log_prob"])
                    # The derivative of this log q itself has mean zero and would only add noise.
                    log_prob = log_prob.detach()
                parts.append(sign * log_prob)
    total = torch.stack(parts).sum(0)
    return total, torch.stack(scores).sum(0) if scores else torch.zeros_like(total)
