"""Training objectives for `SVI`: Pyro's own, which say what they are made of, and a score-function estimator."""

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
    """What a step's log needs, besides the loss."""

    terms: dict[str, Tensor]
    """Those of the objective in nats per sequence: no bound where boundaries are relaxed."""
    boundary_rate: Tensor
    """Boundaries drawn per frame that could have one."""


class Objective(Trace_ELBO):
    """`Trace_ELBO` that says what its last loss was made of."""

    learns_boundaries = True
    _traces: tuple[Any, Any]

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        with EncodedOnce():
            self._traces = super()._get_trace(model, guide, args, kwargs)
        return self._traces

    @torch.no_grad()
    def measured(self) -> Measured:
        """Of the last loss."""
        parts = {name: values.mean() for name, values in terms(*self._traces).items()}
        return Measured(parts, drawn_rate(self._traces[1]))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of one particle as a tensor, boundaries relaxed; no number leaves it, so that it can be compiled."""
        return torch.stack([*terms(*self._get_trace(model, guide, args, kwargs)).values()]).sum()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss, its gradient added to the parameters' `grad`; raises `FloatingPointError` if it is not finite."""
        # Gradients can be finite where the loss is not: the optimiser, which sees them alone, would step.
        return finite(super().loss_and_grads(model, guide, *args, **kwargs))


def drawn_rate(guide_trace: Any) -> Tensor:
    """Boundaries drawn per frame that could have one."""
    drawn = guide_trace.nodes["_RETURN"]["value"]
    chances = torch.ones_like(drawn.boundaries) if drawn.acts is None else drawn.acts
    return (drawn.boundaries * chances).sum() / chances.sum().clamp(min=1)


class MeanFieldObjective(Objective, TraceMeanField_ELBO):
    """`TraceMeanField_ELBO` that says what its last loss was made of."""


class LeaveOneOutELBO(Objective):
    """ELBO with hard boundaries whose q(M | X) learns by score function, every draw judged against the others.

        ∇ELBO = E[ ∇_path log w_k + (log w_k - mean_{j≠k} log w_j) ∇ log q(M_k | X) ],
        w = p(X, Z, S, M) / q(Z, S, M | X)

    Unbiased, where the straight-through gradient of the relaxed boundaries is not: that one takes a jump for a slope,
    and does not feel that a segment not opened saves its z. What it descends is the true bound, so `temperature` is
    ignored. Each sequence is drawn `num_particles` times, folded into the batch.

    Sources: Kool, van Hoof and Welling 2019, *Buy 4 REINFORCE samples, get a baseline for free*; Mnih and Rezende
    2016 (VIMCO) for the idea of particles that judge each other.

    Arguments:
        num_particles: K, at least 2.
        boundary_cost: nats by which q(M) is told that a path is worse for each of its boundaries, after the penalty on
            description length of *Learning Options via Compression* (Jiang et al. 2022). The loss itself is the bound.
    """

    def __init__(self, num_particles: int = 2, boundary_cost: float = 0.0) -> None:
        if num_particles < 2:
            raise ValueError(f"num_particles must be at least 2, found {num_particles}")
        super().__init__(num_particles=num_particles)
        self.boundary_cost = boundary_cost
        self.learns_boundaries = True
        """Whether q(M) learns; false while the networks are to get used to segments wherever they are."""
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
        # The last factor is 0: it carries a gradient alone.
        surrogate = weights + advantage * (score - score.detach()) if self.learns_boundaries else weights
        return -surrogate.sum() / self.num_particles

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Negative ELBO; its gradient is added to the parameters' `grad`. Raises as its base does."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return finite(loss.item())

    @torch.no_grad()
    def rate_and_spread(self) -> tuple[float, float]:
        """Boundaries per frame of the last loss, and how far its draws' log weights lay from each other, in nats."""
        return drawn_rate(self._traces[1]).item(), self._deviation.abs().mean().item()


class RateControl:
    """Moves the cost of a boundary so that q(M) draws `target` boundaries per frame on average.

    Dual ascent on the cost, and a part in proportion to the last error, without which the two integrators in a row,
    cost and log odds, would swing. In the scale of the log weights' spread, since that is what a boundary is worth on
    the data at hand; a nat more, so that it still moves where all draws are alike.

    Arguments:
        target: boundaries per frame that could have one, between 0 and 1.
        settled: the cost to start from, in nats.
    """

    GAIN = 0.03
    """Share of the spread by which the settled cost would move in a step if every frame had a boundary too many."""
    DAMPING = 2.0
    """Share of the spread that would come on top."""

    def __init__(self, target: float, settled: float) -> None:
        self.target = target
        self.settled = settled
        self.cost = settled
        """In force, in nats."""

    def step(self, rate: float, spread: float) -> None:
        """Take in what the last step drew."""
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
    """Boundaries drawn with a frame after them, by row."""
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
                    # Its own derivative has mean zero and would only add noise.
                    log_prob = log_prob.detach()
                parts.append(sign * log_prob)
    total = torch.stack(parts).sum(0)
    return total, torch.stack(scores).sum(0) if scores else torch.zeros_like(total)
