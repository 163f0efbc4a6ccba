"""Sites whose densities are computed for all frames at once against the plain distributions, one by one."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_hrssm.batching.deferred import Deferred, Frame, value_of
from pyro_hrssm.model.distributions import Forced, HardBoundary, RelaxedBoundary
from pyro_hrssm.model.sites import BoundarySites, NormalSites, Site

FRAMES, SIZE, WIDTH = 4, 5, 3
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


@pytest.mark.parametrize("masks", [0, 1, 2])
def test_states_have_the_plain_densities_and_gradients(masks: int) -> None:
    means, scales = parameters()
    source = Deferred(lambda mean, scale: (mean, scale))
    flags = torch.rand(2, FRAMES, SIZE) < 0.6
    sites = NormalSites(torch.Size([SIZE, WIDTH]))
    values = double(FRAMES, SIZE, WIDTH)
    fns = []
    for t in range(FRAMES):
        here = [flags[0, t], flags[1, t].double()][:masks]
        fns.append(sites.at(source.add(means[t], scales[t]), *here))
        sites.keep(values[t])
    # Not the very values kept: the plain densities. The same tensors: all frames at once.
    kept = sites._values
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
    source = Deferred(heads)
    sites = NormalSites(torch.Size([SIZE, WIDTH]))
    fns = []
    for t in range(FRAMES):
        fns.append(sites.at(source.add(means[t], scales[t])))
        sites.keep(means[t].detach() + 1)
    assert calls == []
    for fn, value in zip(fns, sites._values, strict=True):
        fn.log_prob(value)
    assert calls == [FRAMES]


def test_known_states_are_drawn_once_and_then_afresh() -> None:
    means, scales = parameters()
    sites = NormalSites(means.shape[1:], (means, scales))
    fn = sites.at_known(0)
    first, second = fn(), fn()
    assert first.requires_grad
    assert first is sites.keep(first)
    assert not torch.equal(first, second)
    assert fn.rsample(torch.Size([2])).shape == (2, SIZE, WIDTH)
    for t in range(1, FRAMES):
        sites.keep(sites.at_known(t)())
    assert torch.equal(sites.values()[0], first)
    standard = (sites.values() - means) / scales
    gradients = torch.autograd.grad(sites.values().sum(), means)
    assert torch.equal(gradients[0], torch.ones_like(means))
    assert standard.abs().max() < 6  # 60 standard Normals


def test_known_states_that_take_another_value_keep_it() -> None:
    means, scales = parameters()
    sites = NormalSites(means.shape[1:], (means, scales))
    other = torch.zeros(SIZE, WIDTH, dtype=torch.float64)
    for t in range(FRAMES):
        drawn = sites.at_known(t)()
        sites.keep(other if t == 2 else drawn)
    assert torch.equal(sites.values()[2], other)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_boundaries_have_the_plain_densities(temperature: float, masked: bool) -> None:
    logits = double(FRAMES, SIZE)
    source = Deferred.known(logits)
    valid = torch.rand(FRAMES, SIZE) < 0.6
    sites = BoundarySites(SIZE, temperature)
    values = torch.randn(FRAMES, SIZE, dtype=torch.float64)
    values = values if temperature > 0 else (values > 0).double()
    fns = []
    for t in range(FRAMES):
        masks = [valid[t]] if masked else []
        fns.append(sites.at(Frame(source, t), None, *masks))
        assert isinstance(fns[-1].unmasked, RelaxedBoundary if temperature > 0 else HardBoundary)
        assert fns[-1].has_rsample == (temperature > 0)
    for t in range(FRAMES):
        fn = sites.at(Frame(source, t), None, *([valid[t]] if masked else []))
        value = values[t]
        sites.keep(value)
        plain = fn.unmasked.log_prob(value)
        torch.testing.assert_close(fn.log_prob(value), torch.where(valid[t], plain, 0.0) if masked else plain, **CLOSE)
        torch.testing.assert_close(fn.log_prob(value.clone()), fn.log_prob(value), **CLOSE)


def test_a_forced_boundary_draws_what_it_must() -> None:
    logits = torch.tensor([[-50.0, 50.0, 0.0]])
    forced = Forced(torch.tensor([True, False, False]), torch.tensor([False, True, False]))
    for temperature in (0.0, 0.5):
        fn = BoundarySites(3, temperature).at(Frame(Deferred.known(logits), 0), forced)
        drawn = fn.unmasked.sample(torch.Size([50])) > (0.5 if temperature == 0 else 0)
        assert drawn.double().mean(0)[:2].tolist() == [0.0, 1.0]


def test_sites_have_the_divergence_of_their_distributions() -> None:
    sites = [NormalSites(torch.Size([SIZE, WIDTH]), parameters()) for _ in range(2)]
    mask = torch.rand(SIZE) < 0.5
    q, p = (each.at_known(0, mask) for each in sites)
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(q.plain, p.plain), rtol=0, atol=0)
    assert (kl_divergence(q, p)[~mask] == 0).all()


def test_a_plate_leaves_a_site_of_its_size_as_it_is() -> None:
    means, scales = parameters()
    sites = NormalSites(means.shape[1:], (means, scales))

    def program() -> None:
        with pyro.plate("sequences", SIZE, dim=-1):
            sites.keep(pyro.sample("z_0", sites.at_known(0)))

    trace = poutine.trace(program).get_trace()
    fn = trace.nodes["z_0"]["fn"]
    assert isinstance(fn, Site)
    assert (fn.batch_shape, fn.event_shape) == ((SIZE,), (WIDTH,))
    assert fn.expand(torch.Size([2, SIZE])).batch_shape == (2, SIZE)
    torch.testing.assert_close(fn.mean, means[0])
    torch.testing.assert_close(fn.variance, scales[0].square())
    assert value_of(Frame(Deferred.known(means), 1)) is not None
