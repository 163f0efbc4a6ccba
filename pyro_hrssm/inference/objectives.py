"""Training objectives for `SVI`: Pyro's own, which also measure their terms, and a score-function estimator."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_hrssm.inference.bounds import terms
from pyro_hrssm.inference.prices import Judged
from pyro_hrssm.model.given import Array, EncodedOnce

MOST_RANDOM = 0.7
"""The largest rate at which a sequence's boundaries are drawn where they explore."""


JUDGED_AT_ONCE = 512
"""The most frames whose shares in each other's boundaries stand in one matrix, which grows as their square."""


class Measured(NamedTuple):
    """The numbers that a step's log needs, besides the loss."""

    terms: dict[str, Tensor]
    """Terms of the objective in nats per sequence; they form no bound where boundaries are relaxed."""
    boundary_rate: Tensor
    """Number of boundaries drawn per frame that could have one."""


class Drawn(NamedTuple):
    """The boundaries that q(M) drew."""

    boundaries: Tensor
    """Their number."""
    chances: Tensor
    """Number of frames that could have one."""

    @property
    def rate(self) -> Tensor:
        """Boundaries per frame that could have one; 0 where q(M) drew none at all."""
        return self.boundaries / self.chances.clamp(min=1)


class Objective(Trace_ELBO):
    """`Trace_ELBO` that also measures the terms of its last loss."""

    learns_boundaries = True
    _traces: tuple[Any, Any]
    _own: Tensor | None = None
    """[rows] bool, the rows of the last loss whose boundaries q(M) drew; None if it drew all."""

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        with EncodedOnce():
            self._traces = super()._get_trace(model, guide, args, kwargs)
        return self._traces

    def forget(self) -> None:
        """Let go of the last loss's traces: on a GPU, nodes of their gradients hold on to the stream they ran in."""
        self.__dict__.pop("_traces", None)

    @torch.no_grad()
    def measured(self) -> Measured:
        """The measurements of the last loss."""
        parts = {name: values.mean() for name, values in terms(*self._traces).items()}
        return Measured(parts, self._drawn().rate)

    def _drawn(self) -> Drawn:
        """What q(M) drew for the last loss."""
        drawn = self._traces[1].nodes["_RETURN"]["value"]
        chances = torch.ones_like(drawn.boundaries) if drawn.acts is None else drawn.acts.to(drawn.boundaries.dtype)
        chances = chances if self._own is None else chances * self._own
        return Drawn((drawn.boundaries * chances).sum(), chances.sum())

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of one particle, boundaries relaxed, as a tensor that needs no Python number: it can be compiled."""
        return torch.stack([*terms(*self._get_trace(model, guide, args, kwargs)).values()]).sum()

    def loss_on_device(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, for which the host does not wait; its gradient is added to the parameters' `grad`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.detach()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss, its gradient added to the parameters' `grad`; raises `FloatingPointError` if it is not finite."""
        # Gradients can be finite where the loss is not, and the optimiser, which sees gradients alone, would step.
        return finite(super().loss_and_grads(model, guide, *args, **kwargs))


class MeanFieldObjective(Objective, TraceMeanField_ELBO):
    """`TraceMeanField_ELBO` that also measures the terms of its last loss."""


class LeaveOneOutELBO(Objective):
    """ELBO with hard boundaries whose q(M | X) learns by score function, with the other draws as each draw's baseline.

        ∇ELBO = E[ ∇_path log w_k + (log w_k - mean_{j≠k} log w_j) ∇ log q(M_k | X) ],
        w = p(X, Z, S, M) / q(Z, S, M | X)

    This gradient is unbiased; the straight-through gradient of the relaxed boundaries is not, since it replaces a jump
    by a slope and misses that a segment which is not opened saves the cost of its z. The loss is the true bound, so
    `temperature` is ignored. Each sequence is drawn `num_particles` times, folded into the batch.

    With `credit` below 1, the frames around a boundary judge it. `log w` is a sum over frames u, and the deviation of
    frame u's part from the other draws' counts `credit^d` times for m_t, where d is the distance of u to the nearer one
    of the frames t and t+1, which m_t separates. Far frames hardly depend on m_t, but their own draws add a variance
    that grows with T. Leaving them out exchanges this variance for a bias.

    Two more attributes steer q(M) away from the segmentations on which training would otherwise settle. Both leave the
    loss a true bound, and at the values that they start with both do nothing.

    - `exploration` is the share of the sequences whose boundaries are not drawn from q(M), but at a random rate of the
      sequence's own, from one boundary in all to one after most frames. The other networks so learn to use segments
      wherever these lie, before q(M) learns where they pay. The bound of these sequences is that of this other guide.
    - `learned_prior` is the share to which p(m) has a say in whether a boundary is right. The rest judges as if p(m)
      gave every boundary odds of `price` nats against it. p(m) imitates q(M): fewer boundaries make every one dearer,
      until none is left, unless p(m) is kept out while z is not yet of use.

    Sources: Kool, van Hoof and Welling 2019, *Buy 4 REINFORCE samples, get a baseline for free*; Mnih and Rezende
    2016 (VIMCO) for the idea that particles serve as each other's baseline.

    Arguments:
        num_particles: K, at least 2.
        boundary_cost: nats that the gradient of q(M) subtracts from a path's log weight for each of its boundaries,
            after the penalty on description length of *Learning Options via Compression* (Jiang et al. 2022).
        credit: from 0, where only the frames t and t+1 judge m_t, to 1, where all frames do without a bias.
        price: nats against a boundary, where p(m) has no say.
    """

    def __init__(
        self, num_particles: int = 2, boundary_cost: float = 0.0, credit: float = 1.0, price: float = 0.0
    ) -> None:
        if num_particles < 2:
            raise ValueError(f"num_particles must be at least 2, found {num_particles}")
        if not 0 <= credit <= 1:
            raise ValueError(f"credit must lie between 0 and 1, found {credit}")
        super().__init__(num_particles=num_particles)
        self.boundary_cost: float | Tensor = boundary_cost
        self.credit = credit
        self.learns_boundaries = True
        """Whether q(M) learns; false while the networks first learn to use segments wherever these lie."""
        self.price = price
        self.exploration: float | Tensor = 0.0
        self.learned_prior: float | Tensor = 1.0
        self._deviations = torch.zeros(0)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        folded = [_repeat(value, self.num_particles) for value in args]
        kwargs = kwargs | {key: _repeat(kwargs[key], self.num_particles) for key in ("frames", "mask") if key in kwargs}
        kwargs = kwargs | {"temperature": 0.0}
        self._own = None
        if _positive(self.exploration):
            odds = self._random_odds(kwargs["frames"] if "frames" in kwargs else folded[0])
            kwargs["boundary_odds"], self._own = odds, odds.isnan()
        with EncodedOnce(self.num_particles):
            self._traces = Trace_ELBO._get_trace(self, model, guide, folded, kwargs)
        return self._traces

    def _random_odds(self, frames: Array) -> Tensor:
        """[rows] log odds of boundaries, equal for all draws of a sequence; NaN for sequences that do not explore."""
        size = len(frames) // self.num_particles
        like = frames if isinstance(frames, Tensor) else torch.zeros(0, device="cpu")
        # Rates are as likely between 1 and 2 boundaries in a sequence as between 2 and 4.
        fewest, most = math.log(1 / frames.shape[1]), math.log(MOST_RANDOM)
        rates = torch.empty(size, dtype=like.dtype, device=like.device).uniform_(min(fewest, most), most).exp()
        explores = torch.rand(size, device=like.device) < self.exploration
        return torch.where(explores, torch.logit(rates), math.nan).repeat(self.num_particles)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Negative ELBO, summed over sequences and averaged over particles."""
        with torch.no_grad():
            return -float(_log_weights(*self._get_trace(model, guide, args, kwargs)).sum()) / self.num_particles

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A loss whose value is the negative ELBO and whose gradient is the estimator's."""
        traces = self._get_trace(model, guide, args, kwargs)
        weights = _log_weights(*traces)
        surrogate = weights.sum(0)
        score = _scores(traces[1])
        if self.learns_boundaries and score is not None:
            advantage = self._advantage(weights.detach())
            # Without the costs: a control that scaled its price by the price's own spread would run away.
            total = weights.detach().sum(0).view(self.num_particles, -1)
            self._deviations = (total - total.mean(0)).abs().flatten()
            # The last factor has the value 0 and contributes only its gradient.
            surrogate = surrogate + (advantage * (score - score.detach())).sum(0)
        return -surrogate.sum() / self.num_particles

    def _advantage(self, weights: Tensor) -> Tensor:
        """[T-1, rows] nats by which each boundary's draw is better than the sequence's other draws.

        Arguments:
            weights: [T, rows] log weights of the frames.
        """
        judged = weights - self._costs(len(weights))
        by_draw = judged.view(len(judged), self.num_particles, -1)
        deviation = (by_draw - by_draw.mean(1, keepdim=True)).view_as(judged)
        return self._near(deviation) * (self.num_particles / (self.num_particles - 1))

    def _costs(self, length: int) -> Tensor:
        """[T, rows] nats to subtract from the frames' log weights before these judge boundaries."""
        model_trace, guide_trace = self._traces
        drawn = guide_trace.nodes["_RETURN"]["value"]
        acts = drawn.boundaries if drawn.acts is None else drawn.boundaries * drawn.acts
        fixed = 1 - self.learned_prior
        costs = (self.boundary_cost + fixed * self.price) * acts
        if _positive(fixed):
            costs = costs + fixed * _free_log_prior(model_trace)
        return torch.cat([costs, costs.new_zeros(length - len(costs), costs.shape[1])])

    def _near(self, deviation: Tensor) -> Tensor:
        """[T-1, rows] sums over frames, weighted by their distance to each boundary, of deviations [T, rows]."""
        if self.credit == 1:
            return deviation.sum(0).expand(len(deviation) - 1, -1)
        frames = torch.arange(min(len(deviation), JUDGED_AT_ONCE), device=deviation.device)
        after = frames - frames[:, None]  # how many frames after t
        distance = torch.where(after > 0, after - 1, -after)
        shares = torch.pow(self.credit, distance.to(deviation.dtype))
        if len(deviation) <= JUDGED_AT_ONCE:
            return shares[:-1] @ deviation
        return self._near_in_pieces(deviation, shares)

    def _near_in_pieces(self, deviation: Tensor, shares: Tensor) -> Tensor:
        """The same piece by piece: what the frames before a piece and after it say fades from its edges on.

        Arguments:
            shares: those of the frames [n] of one piece in its boundaries.
        """
        pieces, fading = deviation.split(len(shares)), shares[:, :1]  # credit^0, credit^1, …
        before = after = torch.zeros_like(deviation[0])
        sums = []
        for piece in pieces:
            size, fades = len(piece), fading[: len(piece)]
            sums.append(shares[:size, :size] @ piece + self.credit * fades * before)
            before = (fades.flip(0) * piece).sum(0) + self.credit**size * before
        for place in reversed(range(len(pieces))):
            piece, fades = pieces[place], fading[: len(pieces[place])]
            sums[place] = sums[place] + fades.flip(0) * after
            after = (fades * piece).sum(0) + self.credit ** len(piece) * after
        return torch.cat(sums)[:-1]

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Negative ELBO; its gradient is added to the parameters' `grad`. Raises as :class:`Objective` does."""
        return finite(self.loss_on_device(model, guide, *args, **kwargs).item())

    @torch.no_grad()
    def judged(self) -> Judged:
        """How the draws of the last loss judged boundaries, in the sequences that did not explore: tensors []."""
        drawn, own = self._drawn(), self._own
        if own is None:
            rows = drawn.chances.new_full((), len(self._deviations))
            return Judged(drawn.boundaries, drawn.chances, self._deviations.sum(), rows)
        deviations = torch.where(own, self._deviations, 0.0)
        return Judged(drawn.boundaries, drawn.chances, deviations.sum(), own.sum())


def finite(loss: float) -> float:
    """The loss; raises `FloatingPointError` if it is not finite."""
    if not math.isfinite(loss):
        raise FloatingPointError("loss")
    return loss


def _positive(share: float | Tensor) -> bool:
    """Whether a share is more than 0. One on the device counts as more, so that the host need not wait to see it."""
    return isinstance(share, Tensor) or share > 0


def _repeat(value: Any, count: int) -> Any:
    if isinstance(value, np.ndarray):
        return np.concatenate([value] * count)
    return value.repeat(count, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) else value


def _free_log_prior(model_trace: Any) -> Tensor:
    """[T-1, rows] log p(m_t | ·) of the boundaries drawn, 0 where the limits left no choice."""
    log_priors = []
    for t, prior in enumerate(model_trace.nodes["_RETURN"]["value"].boundary_priors):
        log_prior = model_trace.nodes[f"m_{t}"]["log_prob"].detach()
        forced = prior.unmasked.forced
        log_priors.append(log_prior if forced is None else log_prior.masked_fill(forced, 0.0))
    return torch.stack(log_priors)


def _log_weights(model_trace: Any, guide_trace: Any) -> Tensor:
    """Log w of every frame, [T, rows]: a boundary's terms count for the frame before it.

    Boundaries have no pathwise gradient; the derivative of their own log q has mean zero and would only add noise.
    """
    # The frames of `x` are scored one by one below.
    model_trace.compute_log_prob(site_filter=lambda name, site: name != "x")
    guide_trace.compute_log_prob()
    frames = list(_emission(model_trace.nodes["x"]).unbind(1))
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and name[:2] in ("z_", "s_", "m_"):
                log_prob = site["log_prob"]
                if trace is guide_trace and not site["fn"].has_rsample:
                    log_prob = log_prob.detach()
                t = int(name[2:])
                frames[t] = frames[t] + sign * log_prob
    return torch.stack(frames)


def _emission(site: Any) -> Tensor:
    """[rows, T] log density of every frame of the site `x`, whose event is a sequence."""
    density: Tensor = site["fn"].to_event(-1).log_prob(site["value"])
    return density * site["scale"]


def _scores(guide_trace: Any) -> Tensor | None:
    """[T-1, rows] log q of every boundary; None without boundaries."""
    scores = [site["unscaled_log_prob"] for name, site in guide_trace.nodes.items() if name[:2] == "m_"]
    return torch.stack(scores) if scores else None
