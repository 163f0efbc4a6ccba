"""The boundary's distributions against quadrature, torch, finite differences and the enumeration of all paths."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli, RelaxedBernoulli

from pyro_hrssm.model.distributions import (
    GreyBernoulli,
    HardBoundary,
    RelaxedBoundary,
    decide,
)
from pyro_hrssm.model.limits import FORCED_LOGIT, FORCED_PROBABILITY, Forced
from pyro_hrssm.model.sites import boundary

TEMPERATURES = [0.05, 0.1, 0.5, 1.0, 2.0]
LOGITS = torch.tensor([-4.0, -1.0, 0.0, 0.5, 3.0], dtype=torch.float64)


def relaxed(logits: Tensor, temperature: float, forced: Tensor | None = None) -> RelaxedBoundary:
    return RelaxedBoundary(logits, temperature, forced)


def flags(*values: bool) -> Tensor:
    return torch.tensor(values)


# Relaxed and hard boundaries


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_relaxed_density_integrates_to_one(temperature: float) -> None:
    # The tails decay as exp(-|temperature · y|), so that beyond 60 units either side 1e-26 is left.
    y = (torch.linspace(-60, 60, 20_001, dtype=torch.float64)[:, None] + LOGITS) / temperature
    density = relaxed(LOGITS, temperature).log_prob(y).exp()
    # The trapezoidal rule on a smooth density that vanishes at both ends is exact to rounding.
    torch.testing.assert_close(torch.trapezoid(density, y, dim=0), torch.ones_like(LOGITS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_relaxed_density_is_a_change_of_variables_of_the_relaxed_bernoulli(temperature: float) -> None:
    y = torch.linspace(-9, 9, 37, dtype=torch.float64)[:, None].expand(-1, 5)
    found = relaxed(LOGITS, temperature).log_prob(y)
    parameter = torch.tensor(temperature, dtype=torch.float64)
    log_slope = F.logsigmoid(y) + F.logsigmoid(-y)
    on_the_unit_interval = RelaxedBernoulli(parameter, logits=LOGITS).log_prob(torch.sigmoid(y)) + log_slope
    # 1 - sigmoid(9) keeps 12 of 16 digits.
    torch.testing.assert_close(found, on_the_unit_interval, rtol=1e-9, atol=1e-9)
    in_logit_space = LogitRelaxedBernoulli(parameter, logits=LOGITS).log_prob(y)
    # torch's softplus is linear beyond 20, where it drops exp(-20).
    torch.testing.assert_close(found, in_logit_space, rtol=1e-12, atol=2 * math.exp(-20))


def assert_frequencies(drawn: Tensor, expected: Tensor) -> None:
    """Share of true entries along the first axis against their probability, to 6 standard errors."""
    errors = (expected * (1 - expected) / len(drawn)).sqrt()
    assert ((drawn.to(expected.dtype).mean(0) - expected).abs() <= 6 * errors).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_relaxed_draws_follow_their_distribution(temperature: float) -> None:
    y = relaxed(LOGITS, temperature).sample(torch.Size([20_000]))
    # P(y > v) = sigmoid(logits - temperature · v); v = 0 is the boundary's own probability.
    for threshold in (-2.0, 0.0, 1.0):
        assert_frequencies(y > threshold, torch.sigmoid(LOGITS - temperature * threshold))


def test_hard_draws_follow_their_distribution() -> None:
    assert_frequencies(HardBoundary(LOGITS).sample(torch.Size([20_000])), torch.sigmoid(LOGITS))


def test_hard_density_is_the_bernoulli_one_and_sums_to_one() -> None:
    fn = HardBoundary(LOGITS, forced=flags(True, False, False, False, True))
    values = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, 5)
    torch.testing.assert_close(fn.log_prob(values), dist.Bernoulli(logits=LOGITS).log_prob(values), rtol=0, atol=0)
    # Rounding of one sum.
    torch.testing.assert_close(fn.log_prob(values).exp().sum(0), torch.ones_like(LOGITS), rtol=0, atol=1e-15)


ANY_LOGIT = st.sampled_from([-50.0, -FORCED_LOGIT, -0.5, 0.5, FORCED_LOGIT, 50.0])


@given(st.lists(st.tuples(ANY_LOGIT, st.booleans()), min_size=1), st.sampled_from([0.0, *TEMPERATURES]))
@settings(max_examples=40)
def test_forced_draws_have_the_sign_of_their_logit(entries: list[tuple[float, bool]], temperature: float) -> None:
    logits = torch.tensor([logit for logit, _ in entries])
    forced = torch.tensor([either for _, either in entries])
    fn = relaxed(logits, temperature, forced) if temperature > 0 else HardBoundary(logits, forced)
    drawn = decide(fn.sample(torch.Size([500])), temperature) > 0.5
    assert (drawn == (logits > 0))[:, forced].all()


def test_forcing_leaves_the_density_and_the_free_draws_alone() -> None:
    forced = flags(True, False, True, False, False)
    y = torch.linspace(-9, 9, 37, dtype=torch.float64)[:, None].expand(-1, 5)
    for temperature in TEMPERATURES:
        bound, free = relaxed(LOGITS, temperature, forced), relaxed(LOGITS, temperature)
        torch.testing.assert_close(bound.log_prob(y), free.log_prob(y), rtol=0, atol=0)
        torch.manual_seed(1)
        of_bound = bound.sample(torch.Size([50]))
        torch.manual_seed(1)
        of_free = free.sample(torch.Size([50]))
        torch.testing.assert_close(of_bound[:, ~forced], of_free[:, ~forced], rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_a_boundary_expands_to_a_larger_batch(temperature: float) -> None:
    forced = flags(True, False, False, False, True)
    fn = relaxed(LOGITS, temperature, forced) if temperature > 0 else HardBoundary(LOGITS, forced)
    larger = fn.expand(torch.Size([3, 5]))
    assert larger.batch_shape == (3, 5)
    value = larger.sample()
    torch.testing.assert_close(larger.log_prob(value), fn.log_prob(value), rtol=0, atol=0)
    drawn = decide(larger.sample(torch.Size([200])), temperature) > 0.5
    assert (drawn == (LOGITS > 0))[..., forced].all()


def test_boundary_is_relaxed_at_positive_temperatures_and_clamps_what_is_forced() -> None:
    forced = Forced(none=flags(True, False, False), some=flags(False, True, False))
    expected = torch.tensor([FORCED_PROBABILITY, 1 - FORCED_PROBABILITY, torch.sigmoid(torch.tensor(0.7)).item()])
    for temperature, kind in ((0.0, HardBoundary), (0.3, RelaxedBoundary)):
        logits = forced.clamp(torch.tensor([50.0, -50.0, 0.7]))
        fn = boundary(logits, forced.either, temperature, 3).plain
        assert type(fn) is kind
        torch.testing.assert_close(fn.mean, expected, rtol=1e-5, atol=0)  # float32
        drawn = decide(fn.sample(torch.Size([2000])), temperature) > 0.5
        assert drawn.double().mean(0)[:2].tolist() == [0, 1]


# The straight-through step


def draw(logits: Tensor, temperature: float) -> Tensor:
    torch.manual_seed(3)  # common noise, so that the draw is a smooth function of its logits
    return relaxed(logits, temperature).rsample()


def slopes(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of an elementwise function."""
    return (function(at + step) - function(at - step)) / (2 * step)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_decide_is_hard_forward_and_relaxed_backward(temperature: float) -> None:
    weight = torch.linspace(-2, 2, 101, dtype=torch.float64)
    logits = torch.linspace(-4, 4, 101, dtype=torch.float64).requires_grad_()
    decided = decide(draw(logits, temperature), temperature)
    assert torch.equal(decided.detach(), (draw(logits.detach(), temperature) > 0).double())
    assert set(decided.tolist()) == {0.0, 1.0}
    differences = slopes(lambda at: weight * torch.sigmoid(draw(at, temperature)), logits.detach())
    # Central differences with step 1e-6: truncation 1e-12 / temperature², rounding 1e-10.
    tolerance = {"rtol": 1e-6, "atol": 1e-8}
    # A linear objective: the gradient is that of the relaxed objective.
    (gradient,) = torch.autograd.grad((weight * decided).sum(), logits, retain_graph=True)
    torch.testing.assert_close(gradient, differences, **tolerance)
    # Any other: its slope at the hard value, times the relaxed sample's slope.
    (gradient,) = torch.autograd.grad((decided.exp() * weight).sum(), logits)
    torch.testing.assert_close(gradient, decided.detach().exp() * differences, **tolerance)


def test_decide_returns_hard_draws_unchanged() -> None:
    value = torch.tensor([0.0, 1.0, 1.0])
    assert decide(value, 0) is value


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_stay_finite_where_the_sigmoid_saturates(temperature: float, dtype: torch.dtype) -> None:
    posterior = torch.tensor([-50.0, -5.0, 0.0, 5.0, 50.0], dtype=dtype).repeat(400).requires_grad_()
    prior = posterior.detach().flip(0).requires_grad_()
    q, p = relaxed(posterior, temperature), relaxed(prior, temperature)
    value = q.rsample()
    bound = p.log_prob(value) - q.log_prob(value) + decide(value, temperature)
    bound.sum().backward()
    assert bound.isfinite().all()
    assert posterior.grad is not None
    assert prior.grad is not None
    assert posterior.grad.isfinite().all()
    assert prior.grad.isfinite().all()


# The grey Bernoulli


def test_grey_bernoulli_scores_grey_values_as_a_cross_entropy() -> None:
    logits = torch.randn(6, dtype=torch.float64)
    grey = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.9, 1e-3], dtype=torch.float64)
    probability = torch.sigmoid(logits)
    expected = grey * probability.log() + (1 - grey) * (1 - probability).log()
    fn = GreyBernoulli(logits=logits, validate_args=True)
    torch.testing.assert_close(fn.log_prob(grey), expected, rtol=1e-12, atol=1e-12)  # the same formula, in double
    larger = fn.expand(torch.Size([2, 6])).to_event(1)
    torch.testing.assert_close(larger.log_prob(grey), expected.sum().expand(2), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="support"):
        fn.log_prob(grey + 0.5)


def test_grey_bernoulli_draws_black_and_white() -> None:
    probability = torch.tensor([0.05, 0.5, 0.9])
    drawn = GreyBernoulli(probs=probability).sample(torch.Size([10_000]))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert_frequencies(drawn, probability)
