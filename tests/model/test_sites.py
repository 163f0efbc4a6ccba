"""Sites whose densities are computed for all frames at once against the plain distributions, one by one."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_hrssm.batching.later import Queue, Result, Value, known
from pyro_hrssm.model.distributions import HardBoundary, RelaxedBoundary
from pyro_hrssm.model.limits import Forced
from pyro_hrssm.model.sites import ScoredTogether, Site, boundary, latent, masked, sample_latents

FRAMES, SIZE, WIDTH = 4, 5, 3
SHAPE = torch.Size([SIZE, WIDTH])
CLOSE = {"rtol": 1e-12, "atol": 1e-12}  # the same formula, in double


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def parameters() -> tuple[Tensor, Tensor]:
    return double(FRAMES, SIZE, WIDTH), double(FRAMES, SIZE, WIDTH).exp()


def plain_normal(mean: Tensor, scale: Tensor, *masks: Tensor) -> dist.TorchDistribution:
    fn = dist.Normal(mean, scale).to_event(1)
    for mask in masks:
        fn = fn.mask(mask > 0.5)
    return fn


def sites(fns: list[Site], values: Tensor, variable: str = "z") -> Any:
    """The trace of a program whose sites take these values [T, B, …], scored together."""

    def program() -> None:
        with pyro.plate("sequences", SIZE, dim=-1), ScoredTogether(torch.zeros((), dtype=torch.float64)):
            for t, fn in enumerate(fns):
                pyro.sample(f"{variable}_{t}", fn)

    data = {f"{variable}_{t}": value for t, value in enumerate(values.unbind(0))}
    return poutine.trace(poutine.condition(program, data)).get_trace()


@pytest.mark.parametrize("masks", [0, 1, 2])
def test_states_have_the_plain_densities_and_gradients(masks: int) -> None:
    means, scales = parameters()
    queue = Queue(lambda mean, scale: (mean, scale))
    flags = torch.rand(2, FRAMES, SIZE) < 0.6
    values = double(FRAMES, SIZE, WIDTH)
    fns = [
        latent(queue.add((means[t], scales[t])), SHAPE, *[flags[0, t], flags[1, t].double()][:masks])
        for t in range(FRAMES)
    ]
    kept = [sites(fns, values).nodes[f"z_{t}"]["value"] for t in range(FRAMES)]
    # Copies of the values get the plain densities; the sites' own tensors get those of all frames at once.
    found = torch.stack([fn.log_prob(value) for fn, value in zip(fns, kept, strict=True)])
    plain = torch.stack([fn.log_prob(value.clone()) for fn, value in zip(fns, kept, strict=True)])
    expected = torch.stack(
        [plain_normal(means[t], scales[t], *[flag[t] for flag in flags[:masks]]).log_prob(values[t]) for t in range(4)]
    )
    weights = torch.randn(FRAMES, SIZE, dtype=torch.float64)
    leaves = [means, values]
    wanted = torch.autograd.grad((weights * expected).sum(), leaves)
    for densities in (found, plain):
        torch.testing.assert_close(densities, expected, **CLOSE)
        gradients = torch.autograd.grad((weights * densities).sum(), leaves, retain_graph=True)
        torch.testing.assert_close(gradients, wanted, **CLOSE)


def test_all_frames_share_one_evaluation_of_their_densities() -> None:
    calls: list[int] = []

    def heads(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(mean))
        return mean, scale

    means, scales = parameters()
    queue = Queue(heads)
    trace = sites([latent(queue.add((means[t], scales[t])), SHAPE) for t in range(FRAMES)], means.detach() + 1)
    assert calls == []
    trace.compute_log_prob()
    assert calls == [FRAMES]


def test_every_variable_is_scored_apart() -> None:
    means, scales = parameters()
    wide = double(FRAMES, SIZE, 2 * WIDTH)

    def program() -> None:
        with pyro.plate("sequences", SIZE, dim=-1), ScoredTogether(torch.zeros((), dtype=torch.float64)):
            for t, (narrow, broad) in enumerate(zip(known(means, scales), known(wide, wide.exp()), strict=True)):
                pyro.sample(f"z_{t}", latent(narrow, SHAPE))
                pyro.sample(f"s_{t}", latent(broad, torch.Size([SIZE, 2 * WIDTH])))

    trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    for t in range(FRAMES):
        for name, mean, scale in ((f"z_{t}", means[t], scales[t]), (f"s_{t}", wide[t], wide[t].exp())):
            expected = plain_normal(mean, scale).log_prob(trace.nodes[name]["value"])
            torch.testing.assert_close(trace.nodes[name]["log_prob"], expected, **CLOSE)


def test_what_is_scored_together_is_freed_with_the_trace() -> None:
    """A reference cycle of sites and densities would keep a step's tensors until the garbage collector runs."""
    means, scales = parameters()
    gc.disable()
    try:
        fns = [latent(each, SHAPE) for each in known(means, scales)]
        trace = sites(fns, means.detach() + 1)
        trace.compute_log_prob()
        seen = [weakref.ref(fn) for fn in fns]
        del fns, trace
        assert [ref() for ref in seen] == [None] * FRAMES
    finally:
        gc.enable()


NONE: list[tuple[Value, ...]] = [()] * FRAMES


def test_known_states_are_drawn_once_and_then_afresh() -> None:
    means, scales = parameters()
    fn = latent(known(means, scales)[0], SHAPE, drawn=means[0] + 1)
    first, second = fn(), fn()
    assert torch.equal(first, means[0] + 1)
    assert first.requires_grad
    assert not torch.equal(first, second)
    assert fn.rsample(torch.Size([2])).shape == (2, SIZE, WIDTH)
    trace = poutine.trace(sample_latents).get_trace("z", (means, scales), NONE)
    drawn = trace.nodes["_RETURN"]["value"]
    for t in range(FRAMES):
        assert torch.equal(drawn[t], trace.nodes[f"z_{t}"]["value"])
    standard = (drawn - means) / scales
    gradients = torch.autograd.grad(drawn.sum(), means)
    assert torch.equal(gradients[0], torch.ones_like(means))
    assert standard.abs().max() < 6  # 60 standard Normals


def test_known_states_that_take_another_value_keep_it() -> None:
    means, scales = parameters()
    other = torch.zeros(SIZE, WIDTH, dtype=torch.float64)
    drawn = poutine.condition(sample_latents, {"z_2": other})("z", (means, scales), NONE)
    assert torch.equal(drawn[2], other)
    assert not any(torch.equal(drawn[t], other) for t in (0, 1, 3))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_boundaries_have_the_plain_densities(temperature: float, masked: bool) -> None:
    logits = double(FRAMES, SIZE)
    valid = torch.rand(FRAMES, SIZE) < 0.6
    values = torch.randn(FRAMES, SIZE, dtype=torch.float64)
    values = values if temperature > 0 else (values > 0).double()
    fns = [
        boundary(odds, None, temperature, SIZE, *([valid[t]] if masked else [])) for t, odds in enumerate(known(logits))
    ]
    trace = sites(fns, values, "m")
    for t, fn in enumerate(fns):
        assert isinstance(fn.unmasked, RelaxedBoundary if temperature > 0 else HardBoundary)
        assert fn.has_rsample == (temperature > 0)
        value = trace.nodes[f"m_{t}"]["value"]
        plain = fn.unmasked.log_prob(value)
        torch.testing.assert_close(fn.log_prob(value), torch.where(valid[t], plain, 0.0) if masked else plain, **CLOSE)
        torch.testing.assert_close(fn.log_prob(value.clone()), fn.log_prob(value), **CLOSE)


def test_a_forced_boundary_draws_what_it_must() -> None:
    forced = Forced(torch.tensor([True, False, False]), torch.tensor([False, True, False]))
    logits = forced.clamp(torch.tensor([50.0, -50.0, 0.0]))
    for temperature in (0.0, 0.5):
        fn = boundary(logits, forced.either, temperature, 3)
        drawn = fn.unmasked.sample(torch.Size([50])) > (0.5 if temperature == 0 else 0)
        assert drawn.double().mean(0)[:2].tolist() == [0.0, 1.0]


def test_sites_have_the_divergence_of_their_distributions() -> None:
    mask = torch.rand(SIZE) < 0.5
    q, p = (latent(known(*parameters())[0], SHAPE, mask) for _ in range(2))
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(q.plain, p.plain), rtol=0, atol=0)
    assert (kl_divergence(q, p)[~mask] == 0).all()


def test_a_plate_leaves_a_site_of_its_size_as_it_is() -> None:
    means, scales = parameters()

    def program() -> None:
        with pyro.plate("sequences", SIZE, dim=-1):
            sample_latents("z", (means, scales), NONE)

    trace = poutine.trace(program).get_trace()
    fn = trace.nodes["z_0"]["fn"]
    assert isinstance(fn, Site)
    assert (fn.batch_shape, fn.event_shape) == ((SIZE,), (WIDTH,))
    assert fn.expand(torch.Size([2, SIZE])).batch_shape == (2, SIZE)
    torch.testing.assert_close(fn.mean, means[0])
    torch.testing.assert_close(fn.variance, scales[0].square())


# The Normal that is made when it is needed


class Parameters:
    """Mean and scale, and the number of times they were computed."""

    def __init__(self) -> None:
        self.mean = torch.randn(4, WIDTH, dtype=torch.float64, requires_grad=True)
        self.scale = (torch.rand(4, WIDTH, dtype=torch.float64) + 0.1).requires_grad_()
        self.calls = 0

    def _compute(self, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return mean, scale

    def latent(self, *masks: Tensor) -> Site:
        result: Result = Queue(self._compute).add((self.mean, self.scale))
        return latent(result, self.mean.shape, *masks)

    def normal(self) -> TorchDistribution:
        return dist.Normal(self.mean, self.scale).to_event(1)


def test_a_latent_site_is_the_normal() -> None:
    parameters = Parameters()
    found, expected = parameters.latent(), parameters.normal()
    value = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(found.log_prob(value), expected.log_prob(value), **CLOSE)
    for name in ("mean", "variance"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for name in ("loc", "scale", "stddev"):
        assert torch.equal(getattr(found.plain.base_dist, name), getattr(expected.base_dist, name))
    torch.testing.assert_close(found.plain.entropy(), expected.entropy(), rtol=0, atol=0)
    assert (found.batch_shape, found.event_shape) == (expected.batch_shape, expected.event_shape)
    assert found.has_rsample


@pytest.mark.parametrize("method", ["sample", "rsample"])
@pytest.mark.parametrize("sample_shape", [(), (5,)])
def test_a_latent_site_draws_what_the_normal_draws(method: str, sample_shape: tuple[int, ...]) -> None:
    parameters = Parameters()
    results = []
    for fn in (parameters.latent(), parameters.normal()):
        torch.manual_seed(7)
        value = getattr(fn, method)(torch.Size(sample_shape))
        gradients: tuple[Any, ...] = (None, None)
        if method == "rsample":
            gradients = torch.autograd.grad(value.square().sum(), [parameters.mean, parameters.scale])
        results.append((value, *gradients))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_a_latent_site_has_the_normals_divergence_through_masks() -> None:
    q, p = Parameters(), Parameters()
    expected = kl_divergence(q.normal(), p.normal())
    torch.testing.assert_close(kl_divergence(q.latent(), p.latent()), expected, rtol=0, atol=0)
    for left, right in itertools.product((q.latent().plain, q.normal()), (p.latent().plain, p.normal())):
        torch.testing.assert_close(kl_divergence(left, right), expected, rtol=0, atol=0)
    mask = torch.tensor([True, False, False, True])
    masked = kl_divergence(q.latent(mask), p.latent(mask))
    torch.testing.assert_close(masked, torch.where(mask, expected, 0.0), rtol=0, atol=0)


def test_a_latent_site_expands() -> None:
    parameters = Parameters()
    fn = parameters.latent()
    assert fn.expand(torch.Size([4])) is fn
    assert parameters.calls == 0
    larger, expected = fn.expand(torch.Size([2, 4])), parameters.normal().expand(torch.Size([2, 4]))
    assert (larger.batch_shape, larger.event_shape) == ((2, 4), (WIDTH,))
    value = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(larger.log_prob(value), expected.log_prob(value), **CLOSE)
    torch.manual_seed(7)
    drawn = larger.sample()
    torch.manual_seed(7)
    assert torch.equal(drawn, expected.sample())


def computed_when_needed(make: Callable[[], Site], calls: Callable[[], int], value: Tensor) -> None:
    def program(obs: Tensor | None = None) -> None:
        with pyro.plate("sequences", len(value), dim=-1):
            pyro.sample("z_0", make(), obs=obs)

    observed = poutine.trace(program).get_trace(value)
    assert calls() == 0
    drawn = poutine.trace(program).get_trace()
    assert calls() == 1
    replayed = poutine.trace(poutine.replay(program, trace=drawn)).get_trace()
    assert calls() == 1
    observed.log_prob_sum()
    replayed.log_prob_sum()
    assert calls() == 3


def test_a_latent_site_asks_for_its_parameters_only_when_needed() -> None:
    parameters = Parameters()
    mask = torch.tensor([True, False, True, True])
    value = torch.randn(4, WIDTH, dtype=torch.float64)
    computed_when_needed(lambda: parameters.latent(mask), lambda: parameters.calls, value)


def test_a_boundary_site_asks_for_its_logits_only_when_needed() -> None:
    calls = []

    def logits(values: Tensor) -> Tensor:
        calls.append(1)
        return values

    mask, values = torch.tensor([True, True, False, True, True]), torch.randn(5, dtype=torch.float64)
    computed_when_needed(lambda: boundary(Queue(logits).add((values,)), None, 0.5, 5, mask), lambda: len(calls), values)


def test_a_factor_s_gradient_is_the_density_that_it_switches() -> None:
    log_prob = torch.tensor([-3.0, -4.0, -5.0, -6.0], requires_grad=True)
    factor = torch.tensor([1.0, 0.0, 1.0, 0.0], requires_grad=True)
    valid = torch.tensor([True, True, False, False])
    value = masked(log_prob, factor, valid)
    assert value.tolist() == [-3.0, 0.0, 0.0, 0.0]
    value.sum().backward()
    assert factor.grad is not None
    assert log_prob.grad is not None
    assert factor.grad.tolist() == [-3.0, -4.0, 0.0, 0.0]
    assert log_prob.grad.tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("worthless", [math.inf, -math.inf, math.nan])
def test_a_density_that_is_switched_off_may_be_infinite(worthless: float) -> None:
    factor = torch.tensor([0.0, 1.0], requires_grad=True)
    value = masked(torch.tensor([worthless, -2.0]), factor)
    assert value.tolist() == [0.0, -2.0]
    value.sum().backward()
    assert factor.grad is not None
    assert factor.grad.tolist() == [0.0, -2.0]


@pytest.mark.parametrize("worthless", [-math.inf, math.nan])
def test_a_density_that_is_switched_on_is_not_hidden(worthless: float) -> None:
    value = masked(torch.tensor([worthless]), torch.ones(1, requires_grad=True))
    assert not value.isfinite().any()


def test_a_value_that_is_not_the_site_s_own_has_the_same_gradient() -> None:
    """Scored together or by itself, a density gives its factor the same gradient."""
    means, scales = parameters()
    factors = (torch.rand(FRAMES, SIZE) < 0.5).double().requires_grad_()
    values = torch.randn(FRAMES, SIZE, WIDTH, dtype=torch.float64)
    each = known(means, scales)
    fns = [latent(each[t], SHAPE, factors[t]) for t in range(FRAMES)]
    total = sites(fns, values).log_prob_sum()
    alone = sum(fn.log_prob(value.clone()).sum() for fn, value in zip(fns, values, strict=True))
    for found, wanted in zip(
        torch.autograd.grad(total, [factors, means]), torch.autograd.grad(alone, [factors, means]), strict=True
    ):
        torch.testing.assert_close(found, wanted, **CLOSE)
        assert (found != 0).any()
