"""The training objective as any Pyro user runs it: `SVI`, either ELBO, masks, weights and gradients."""

import copy
import math
from typing import Any

import oracle
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_hrssm import HRSSM, RSSM, HRSSMConfig
from pyro_hrssm.inference.objectives import LeaveOneOutELBO

POSTERIORS = ("conditioned", "factorised", "limited")
# p goes frame by frame, q first through all boundaries, then z, then s: the mean-field condition holds, since no
# site's parents in p are its descendants in q, but Pyro can only compare the order of sites.
ORDER = "ignore:Failed to verify mean field restriction"


def config_of(**fields: Any) -> HRSSMConfig:
    sizes = {"frame_shape": (2,), "hidden": 8, "abstract_size": 2, "observation_size": 2}
    kinds = {"networks": "mlp", "likelihood": "bernoulli", "max_segments": 3, "max_length": 2}
    return HRSSMConfig(**(sizes | kinds | fields))


def batch(context: int = 0) -> tuple[Tensor, Tensor]:
    frames = torch.rand(3, context + 5, 2)
    mask = torch.ones(3, context + 5, dtype=torch.bool)
    mask[1, context + 2] = mask[2, context + 3 :] = False
    return frames, mask


@torch.no_grad()
def estimate(elbo: Any, model: HRSSM, frames: Tensor, mask: Tensor | None, repeats: int) -> tuple[float, float]:
    """Mean loss of a batch and its standard error; repeats are folded into the batch."""
    folded = frames.repeat(repeats, 1, 1)
    folded_mask = None if mask is None else mask.repeat(repeats, 1)
    losses = [elbo.loss(model.model, model.guide, folded, folded_mask, temperature=0.5) / repeats for _ in range(20)]
    values = torch.tensor(losses)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


@pytest.mark.filterwarnings(ORDER)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_both_elbos_expect_the_same_loss(posterior: str, context: int, masked: bool) -> None:
    """The two ELBOs agree; a mask on one side alone, or a term that both sides do not share, would separate them."""
    # Wide Normals have light tails, so that standard errors are reliable.
    config = config_of(boundary_posterior=posterior, context=context, min_scale=0.3)
    model = oracle.random_model(config, spread=0.4).float()
    frames, mask = batch(context)
    sampled, sampled_error = estimate(Trace_ELBO(), model, frames, mask if masked else None, 200)
    analytic, analytic_error = estimate(TraceMeanField_ELBO(), model, frames, mask if masked else None, 200)
    assert abs(sampled - analytic) < 5 * math.hypot(sampled_error, analytic_error)  # 5 standard errors
    assert 5 * sampled_error < 0.1 * abs(sampled), "errors too wide to tell anything"


@pytest.mark.filterwarnings(ORDER)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_a_plain_optimiser_learns(posterior: str, elbo: type) -> None:
    """SVI with `pyro.optim.Adam`: every parameter of both programs moves and the loss falls."""
    model = HRSSM(config_of(boundary_posterior=posterior))
    frames = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]).repeat(4, 1, 1)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 2] = mask[2, 4] = False
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.05}), elbo())
    losses = [svi.step(frames, mask, temperature=0.7) for _ in range(60)]
    assert all(math.isfinite(loss) for loss in losses)
    # It starts near 18 observed frames of two fair coins, 25 nats; one step's loss is off by 3.
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_a_step_of_a_context_model_moves_its_first_belief() -> None:
    """The context's summary takes part in the gradient, through p."""
    model = HRSSM(config_of(context=2))
    frames, mask = batch(2)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    svi.step(frames, mask)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_models_do_not_share_parameters() -> None:
    """Two models of one class in one process, in one parameter store."""
    config = config_of()
    first, second = HRSSM(config), HRSSM(config)
    frames, mask = batch()
    svi = SVI(first.model, first.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    second.model(frames, mask)
    untouched = copy.deepcopy(second.state_dict())
    names = set(pyro.get_param_store().keys())
    svi.step(frames, mask)
    added = set(pyro.get_param_store().keys()) - names
    assert len(names) == len(added) == len(list(first.parameters()))
    for name, value in second.state_dict().items():
        assert torch.equal(value, untouched[name]), name


def test_a_copy_of_a_model_learns_by_itself() -> None:
    """`copy.deepcopy` makes a second model: training it moves the copy, and leaves the original alone."""
    original = HRSSM(config_of())
    frames, mask = batch()
    SVI(original.model, original.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(frames, mask)
    twin = copy.deepcopy(original)
    before = copy.deepcopy(original.state_dict())
    SVI(twin.model, twin.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(frames, mask)
    for name, value in before.items():
        assert torch.equal(original.state_dict()[name], value), name
        assert not torch.equal(twin.state_dict()[name], value), name


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize(("argument", "scaled"), [("kl_weight", "zsm"), ("state_weight", "s")])
def test_a_weight_scales_its_latent_sites_alone(argument: str, scaled: str, posterior: str, temperature: float) -> None:
    model = oracle.random_model(config_of(boundary_posterior=posterior))
    frames, mask = batch()
    frames = frames.double()
    with torch.no_grad():
        values = oracle.site_values(poutine.trace(model.guide).get_trace(frames, mask, temperature=temperature))
    for program in (model.model, model.guide):
        densities = []
        for weight in (1.0, 0.25):
            trace = poutine.trace(poutine.condition(program, data=values)).get_trace(
                frames, mask, temperature=temperature, **{argument: weight}
            )
            trace.compute_log_prob()
            densities.append({name: trace.nodes[name]["log_prob"] for name in trace.nodes if name in (*values, "x")})
        plain, weighted = densities
        assert values.keys() <= plain.keys()
        for name, value in plain.items():
            torch.testing.assert_close(weighted[name], 0.25 * value if name[0] in scaled else value)


@pytest.mark.filterwarnings(ORDER)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("argument", ["kl_weight", "state_weight"])
@pytest.mark.parametrize("kind", ["hrssm", "rssm"])
def test_a_weight_scales_its_part_of_the_loss(kind: str, argument: str, elbo: type) -> None:
    """loss(w) = rest + w · part: straight in w, draws held."""
    model = oracle.random_model(config_of()) if kind == "hrssm" else RSSM(config_of(model=kind)).double()
    frames, mask = batch()
    losses = []
    for weight in (1.0, 0.5, 0.25):
        pyro.set_rng_seed(1)
        losses.append(elbo().loss(model.model, model.guide, frames.double(), mask, **{argument: weight}))
    # Slope of a straight line between any two points; double precision.
    assert (losses[0] - losses[1]) / 0.5 == pytest.approx((losses[1] - losses[2]) / 0.25, rel=1e-9)
    assert losses[0] != losses[1]


@pytest.mark.filterwarnings(ORDER)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize(("of_q", "of_p"), [(50.0, 50.0), (-50.0, -50.0), (50.0, -50.0), (-50.0, 50.0)])
def test_sure_boundaries_have_finite_gradients(of_q: float, of_p: float, posterior: str, elbo: type) -> None:
    """At temperature 0.05 and log odds of ±50 a sigmoid is 0 or 1 in single precision."""
    model = HRSSM(config_of(boundary_posterior=posterior))
    with torch.no_grad():
        model.posterior.boundary_logit.product.bias.fill_(of_q)
        model.emission.boundary.bias.fill_(of_p)
    frames, mask = batch()
    for _ in range(5):
        loss = elbo().loss_and_grads(model.model, model.guide, frames, mask, temperature=0.05)
        assert math.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def step_of(elbo: Any, model: HRSSM, **how: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a step, with frames and noise of one seed."""
    pyro.set_rng_seed(5)
    frames, mask = batch()
    model.zero_grad()
    loss = elbo.loss_and_grads(model.model, model.guide, frames.double(), mask, **how)
    return loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_only_q_s_boundaries_feel_what_they_switch(posterior: str) -> None:
    """The share of the gradient through z's terms changes no loss, no gradient of p and none of q's heads."""
    model = oracle.random_model(config_of(boundary_posterior=posterior))
    (loss, without), (same, through) = (
        step_of(Trace_ELBO(), model, temperature=0.5, switch_gradient=share) for share in (0.0, 1.0)
    )
    assert loss == same
    for name, gradient in without.items():
        # φ, and the encoder that φ reads.
        moved = name.startswith(("posterior.boundary", "posterior.encoder"))
        assert torch.equal(gradient, through[name]) != moved, name


@pytest.mark.filterwarnings(ORDER)
@pytest.mark.parametrize(
    ("elbo", "temperature"), [(Trace_ELBO(), 0.0), (LeaveOneOutELBO(2), 0.5), (TraceMeanField_ELBO(), 0.5)]
)
def test_hard_boundaries_and_analytic_terms_have_no_such_gradient(elbo: Any, temperature: float) -> None:
    model = oracle.random_model(config_of())
    steps = [step_of(elbo, model, temperature=temperature, switch_gradient=share) for share in (0.0, 1.0)]
    assert steps[0][0] == steps[1][0]
    for name, gradient in steps[0][1].items():
        assert torch.equal(gradient, steps[1][1][name]), name


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_boundaries_of_q_learn_from_every_term(posterior: str) -> None:
    """Straight-through: φ gets a gradient through the states that a boundary resets, not from its own KL alone."""
    model = oracle.random_model(config_of(boundary_posterior=posterior, max_segments=None, max_length=None))
    frames = batch()[0].double()
    guide_trace = poutine.trace(model.guide).get_trace(frames, temperature=0.5)
    model_trace = poutine.trace(poutine.replay(model.model, trace=guide_trace)).get_trace(frames, temperature=0.5)
    model_trace.compute_log_prob()
    emission = model_trace.nodes["x"]["log_prob"].sum()
    (gradient,) = torch.autograd.grad(emission, model.posterior.boundary_logit.product.bias)
    assert gradient.abs() > 1e-6  # a sum of a dozen terms of order 0.1
