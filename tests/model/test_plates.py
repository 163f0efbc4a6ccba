"""Plates around a program: vectorised particles, parallel predictions, a plate of the user's; against one at a time."""

from __future__ import annotations

import contextlib
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.objectives import Objective
from pyro_hrssm.model.base import StateSpaceModel

KINDS = ["hrssm", "rssm"]

# q draws all boundaries first, in another order than p.
pytestmark = pytest.mark.filterwarnings("ignore:Failed to verify mean field")


def tiny(kind: str, **changes: Any) -> StateSpaceModel:
    torch.manual_seed(5)
    sizes = {"frame_shape": (3,), "hidden": 8, "abstract_size": 2, "observation_size": 2}
    model = StateSpaceModel.build(HRSSMConfig(model=kind, max_segments=3, max_length=3, **{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh model hardly reacts to its states
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batch(size: int = 3, length: int = 6) -> tuple[Tensor, Tensor]:
    """Sequences of which one ends early and one misses a frame."""
    frames, mask = torch.rand(size, length, 3), torch.ones(size, length, dtype=torch.bool)
    mask[0, 4:] = mask[1, 3] = False
    return frames, mask


# The same numbers as a batch that repeats the sequences


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dim", "context", "temperature"), [(-2, 0, 0.0), (-2, 2, 0.5), (-3, 2, 0.0), (-3, 0, 0.5)])
def test_a_plate_around_a_program_is_a_batch_that_repeats_the_sequences(
    dim: int, context: int, kind: str, temperature: float
) -> None:
    model, (frames, mask) = tiny(kind, context=context), batch()
    shape = (4, *[1] * (-2 - dim), 3)

    def run(plated: bool) -> dict[str, tuple[Tensor, Tensor]]:
        arguments = (frames, mask) if plated else (frames.repeat(4, 1, 1), mask.repeat(4, 1))
        pyro.set_rng_seed(8)
        with pyro.plate("copies", 4, dim=dim) if plated else contextlib.nullcontext():
            guide = poutine.trace(model.guide).get_trace(*arguments, temperature=temperature)
            program = poutine.replay(model.model, trace=guide)
            trace = poutine.trace(program).get_trace(*arguments, temperature=temperature, horizon=2)
        found = {}
        for name, each in (("q", guide), ("p", trace)):
            each.compute_log_prob()
            for key, site in each.nodes.items():
                if site["type"] == "sample" and key not in ("copies", "sequences"):
                    whole = torch.zeros(site["fn"].batch_shape)  # `boundaries` has one density for all
                    found[f"{name} {key}"] = site["value"], whole + site["log_prob"]
        return found

    plated, repeated = run(True), run(False)
    assert plated.keys() == repeated.keys()
    for name, (value, log_prob) in plated.items():
        assert value.shape[: len(shape)] == shape, name
        assert log_prob.shape == shape, name
        torch.testing.assert_close(value.reshape(repeated[name][0].shape), repeated[name][0])
        # Sums in float32 over the same numbers, some in another order.
        torch.testing.assert_close(log_prob.reshape(-1), repeated[name][1], rtol=1e-4, atol=1e-4)


def test_frames_may_have_the_plates_axes() -> None:
    model = tiny("hrssm", context=1)
    frames, mask = torch.rand(4, 3, 6, 3), torch.rand(4, 3, 6) > 0.3
    mask[..., -1] = True

    def log_probs(plated: bool) -> Tensor:
        pyro.set_rng_seed(1)
        arguments = (frames, mask) if plated else (frames.flatten(0, 1), mask.flatten(0, 1))
        with pyro.plate("groups", 4, dim=-2) if plated else contextlib.nullcontext():
            trace = poutine.trace(model.model).get_trace(*arguments)
        trace.compute_log_prob()
        return trace.nodes["x"]["log_prob"]

    torch.testing.assert_close(log_probs(True).flatten(), log_probs(False), rtol=1e-5, atol=1e-5)  # float32


def test_the_frames_of_all_particles_are_encoded_once() -> None:
    model, (frames, mask) = tiny("hrssm", context=1), batch()
    encoded: list[int] = []
    model.posterior.encoder.register_forward_hook(lambda module, inputs, output: encoded.append(output.shape[1]))
    with pyro.plate("copies", 50, dim=-2):
        model.guide(frames, mask)
        model.model(frames, mask)
    assert encoded == [3, 3]  # all frames of the guide, and the model's context


def test_what_the_programs_return_has_the_plates_axes() -> None:
    model, (frames, mask) = tiny("hrssm"), batch()
    with pyro.plate("copies", 4, dim=-2):
        inference = model.guide(frames, mask)
        rollout = model.model(frames, mask, horizon=2)
        drawn = model.model(size=5, horizon=2)
    assert inference.boundaries.shape == inference.acts.shape == (5, 4, 3)
    assert all(posterior.mean.shape == (4, 3) for posterior in inference.boundary_posteriors)
    assert all(prior.mean.shape == (4, 3) for prior in rollout.boundary_priors)
    assert all(boundary.shape == (4, 3) for boundary in rollout.boundaries)
    assert all(value.shape[:2] == (4, 3) for state in (*rollout.abstract, *rollout.observation) for value in state)
    assert rollout.observed.log_prob(frames).shape == (4, 3)
    assert rollout.future.sample((7,)).shape == (7, 4, 3, 2, 3)
    assert drawn.future.mean.shape == (4, 5, 2, 3)


# Pyro's estimators


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("elbo", "temperature"), [(Trace_ELBO, 0.0), (Trace_ELBO, 0.5), (TraceMeanField_ELBO, 0.5), (TraceGraph_ELBO, 0.5)]
)
def test_vectorised_particles_have_the_bound_of_sequential_ones(elbo: Any, temperature: float, kind: str) -> None:
    model, (frames, mask) = tiny(kind, context=1), batch(length=5)

    def losses(vectorised: bool, count: int) -> Tensor:
        estimator = elbo(num_particles=4, vectorize_particles=vectorised, max_plate_nesting=1)
        arguments = (model.model, model.guide, frames, mask)
        with torch.no_grad():
            return torch.tensor([estimator.loss(*arguments, temperature=temperature) for _ in range(count)])

    one, two = losses(True, 20), losses(False, 8)
    error = (one.var() / len(one) + two.var() / len(two)).sqrt()
    assert abs(one.mean() - two.mean()) < 6 * error  # 6 standard errors


def test_vectorised_particles_tighten_a_renyi_bound() -> None:
    model, (frames, mask) = tiny("hrssm"), batch()
    with torch.no_grad():
        elbo, iwae = (RenyiELBO(alpha=0, num_particles=count, vectorize_particles=True) for count in (2, 500))
        loose, tight = (
            torch.tensor([each.loss(model.model, model.guide, frames, mask, temperature=0.0) for _ in range(10)]).mean()
            for each in (elbo, iwae)
        )
    assert tight < loose


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, Objective])
@pytest.mark.parametrize("kind", KINDS)
def test_vectorised_particles_have_the_gradient_of_a_repeated_batch(kind: str, elbo: Any) -> None:
    model, (frames, mask) = tiny(kind), batch()
    gradients = []
    for vectorised in (True, False):
        model.zero_grad()
        estimator = elbo(num_particles=4 if vectorised else 1, vectorize_particles=vectorised, max_plate_nesting=1)
        arguments = (frames, mask) if vectorised else (frames.repeat(4, 1, 1), mask.repeat(4, 1))
        pyro.set_rng_seed(3)
        estimator.loss_and_grads(model.model, model.guide, *arguments, temperature=0.5)
        scale = 1 if vectorised else 1 / 4
        gradients.append([parameter.grad * scale for parameter in model.parameters()])
    # Sums in float32 over the same numbers, some in another order.
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_vectorised_step_moves_every_parameter(kind: str) -> None:
    model, (frames, mask) = tiny(kind, context=1), batch()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True)
    SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), elbo).step(frames, mask)
    assert all(not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


# Pyro's predictions


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_parallel_predictions_agree_with_sequential_ones(kind: str, context: int) -> None:
    model, (frames, mask) = tiny(kind, context=context), batch(length=5)
    sequential, parallel = (
        Predictive(model.model, guide=model.guide, num_samples=count, parallel=parallel)(
            frames, mask, horizon=2, temperature=0.0
        )
        for count, parallel in ((40, False), (800, True))
    )
    assert parallel.keys() == sequential.keys()
    for name, values in parallel.items():
        one, two = values.float(), sequential[name].float()
        assert one.shape[1:] == two.shape[1:], name
        error = (one.var(0) / len(one) + two.var(0) / len(two)).sqrt()
        # 7 standard errors, and where all 40 draws agree, a boundary that is rarer than one in them.
        assert ((one.mean(0) - two.mean(0)).abs() <= 7 * error + 0.12).all(), name


def test_parallel_samples_of_the_prior_obey_the_limits() -> None:
    model = tiny("hrssm")
    samples = Predictive(model.model, num_samples=50, parallel=True)(size=4, horizon=8)
    assert samples["x_future"].shape == (50, 4, 8, 3)
    assert samples["boundaries"].shape == (50, 4, 7)
    assert samples["boundaries"].sum(-1).max() <= 2
    assert 0 < samples["boundaries"].float().mean() < 1


def test_conditioned_sites_broadcast_over_particles() -> None:
    model, (frames, _) = tiny("hrssm"), batch()
    opened = poutine.condition(model.model, {"m_2": torch.tensor([1.0, 0.0, 1.0])})
    with pyro.plate("copies", 4, dim=-2):
        rollout = opened(frames, temperature=0.0)
    assert rollout.boundaries[2].tolist() == [[1.0, 0.0, 1.0]] * 4


# What is refused


def test_a_plate_on_the_sequences_axis_is_refused_in_one_line() -> None:
    model, (frames, _) = tiny("hrssm"), batch()
    with pytest.raises(InputError, match="move the plate 'outer' to dim=-2"), pyro.plate("outer", 4):
        model.model(frames)


def test_frames_of_other_plates_are_refused_in_one_line() -> None:
    model = tiny("hrssm")
    wanted = r"\[B, T, 3\] or \[4, B, T, 3\], found \[5, 3, 6, 3\]"
    with pytest.raises(InputError, match=wanted), pyro.plate("outer", 4, dim=-2):
        model.model(torch.rand(5, 3, 6, 3))


def test_a_loop_over_a_plate_is_no_axis() -> None:
    model, (frames, _) = tiny("rssm"), batch()
    shapes = [model.model(frames).observed.batch_shape for _ in pyro.plate("parts", 2)]
    assert shapes == [(3,), (3,)]
