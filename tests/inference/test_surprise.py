"""The surprise of frames against the likelihoods of prefixes, and against a Gaussian whose likelihood is known."""

import math

import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_hrssm import RSSM, HRSSMConfig
from pyro_hrssm.inference.bounds import log_likelihood
from pyro_hrssm.inference.surprise import surprise


def model_of(**fields: object) -> RSSM:
    torch.manual_seed(4)
    sizes = {"frame_shape": (2,), "hidden": 8, "observation_size": 2, "likelihood": "normal", "model": "rssm"}
    return RSSM(HRSSMConfig(**(sizes | fields))).double().eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("context", [0, 2])
def test_surprises_add_up_to_the_importance_weighted_likelihood(context: int) -> None:
    """With the same draws, the surprises of all frames are the bound of the whole sequence."""
    model, frames = model_of(context=context), torch.randn(3, 6, 2, dtype=torch.float64)
    torch.manual_seed(1)
    found = surprise(model, frames, particles=5)
    torch.manual_seed(1)
    assert found.shape == (3, 6 - context)
    torch.testing.assert_close(-found.sum(1), log_likelihood(model, frames, particles=5))


@pytest.mark.parametrize("kind", ["flags", "weights"])
@pytest.mark.parametrize("shape", [(2,), (2, 2, 1)])
def test_surprises_of_frames_that_lack_entries_add_up_too(kind: str, shape: tuple[int, ...]) -> None:
    """In passes of a few rows, into which the sequences and their masks are split and repeated."""
    model, frames = model_of(context=1, frame_shape=shape, entry_flags=True), torch.randn(3, 6, *shape).double()
    weights = torch.randint(0, 3, frames.shape)
    weights[:, 0] = 1
    mask = weights > 0 if kind == "flags" else weights.double()
    for most in (None, 6):
        torch.manual_seed(1)
        found = surprise(model, frames, mask, particles=4, most=most)
        torch.manual_seed(1)
        expected = log_likelihood(model, frames, mask, particles=4, most=most)
        torch.testing.assert_close(-found.sum(1), expected)
    moved = frames.where(weights > 0, 1e3)
    torch.manual_seed(1)
    torch.testing.assert_close(surprise(model, moved, mask, particles=4, most=6), found, rtol=0, atol=0)


@pytest.mark.parametrize("context", [0, 2])
def test_surprises_up_to_a_frame_are_the_likelihood_of_the_frames_up_to_it(context: int) -> None:
    """With the same draws, p scores every prefix on its own, as if no later frame existed."""
    model, frames = model_of(context=context), torch.randn(3, 6, 2, dtype=torch.float64)
    torch.manual_seed(1)
    found = surprise(model, frames, particles=5)
    torch.manual_seed(1)
    copies = frames.repeat(5, 1, 1)
    with torch.no_grad():
        drawn = poutine.trace(model.guide).get_trace(copies)
        drawn.compute_log_prob()
        for stop in range(1, 7 - context):
            prefix = poutine.replay(model.model, trace=drawn)
            scored = poutine.trace(prefix).get_trace(copies[:, : context + stop])
            scored.compute_log_prob()
            weights = scored.nodes["x"]["log_prob"]
            for t in range(stop):
                weights = weights + scored.nodes[f"s_{t}"]["log_prob"] - drawn.nodes[f"s_{t}"]["log_prob"]
            expected = torch.logsumexp(weights.view(5, 3), 0) - math.log(5)
            torch.testing.assert_close(-found[:, :stop].sum(1), expected)


def test_a_model_without_memory_is_surprised_as_a_gaussian_is() -> None:
    """With an emission that reads no state, a frame is as surprising as its own density says."""
    model = model_of(noise_scale=0.5)
    with torch.no_grad():
        for parameter in model.emission.parameters():
            parameter.zero_()
    frames = torch.randn(3, 5, 2, dtype=torch.float64)
    density = -0.5 * (frames / 0.5).square().sum(-1) - 2 * math.log(0.5 * math.sqrt(2 * math.pi))
    found = surprise(model, frames, particles=4000)
    torch.testing.assert_close(found, -density, rtol=0, atol=0.05)  # the weights of s vary


def test_missing_frames_and_frames_past_the_end_say_nothing_of_themselves() -> None:
    model, mask = model_of(), torch.ones(2, 6, dtype=torch.bool)
    mask[0, 2] = mask[1, 4:] = False
    frames = torch.randn(2, 6, 2, dtype=torch.float64)

    def of(values: Tensor) -> Tensor:
        torch.manual_seed(1)
        return surprise(model, values, mask)

    found = of(frames)
    assert torch.equal(found, of(frames.masked_fill(~mask[..., None], 9.0)))
    assert torch.equal(found[1, 4:], torch.zeros(2, dtype=torch.float64))


def test_sequences_are_taken_in_parts_too() -> None:
    """With p = q and an emission that reads no state, every draw gives a frame's own density."""
    model, frames = model_of(noise_scale=0.5), torch.randn(5, 4, 2, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    density = -0.5 * (frames / 0.5).square().sum(-1) - 2 * math.log(0.5 * math.sqrt(2 * math.pi))
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[4, 2:] = False
    torch.testing.assert_close(surprise(model, frames, particles=3, most=2), -density)
    torch.testing.assert_close(surprise(model, frames, mask, particles=3, most=2), -density.masked_fill(~mask, 0))


def test_particles_are_taken_in_parts() -> None:
    """More particles than fit one pass are drawn in several; an image has one density per pixel."""
    torch.manual_seed(4)
    config = HRSSMConfig(frame_shape=(4, 4), hidden=8, observation_size=2, likelihood="bernoulli", model="rssm")
    model, frames = RSSM(config).eval(), torch.rand(2, 3, 4, 4)
    assert surprise(model, frames, particles=20_000).isfinite().all()
    assert surprise(model, frames).shape == (2, 3)
