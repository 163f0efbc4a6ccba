"""The frames that each site of q may see with boundaries held fixed; no site sees a frame that is not there."""

import math
from collections.abc import Callable
from typing import Any

import oracle
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_hrssm import HRSSM, HRSSMConfig
from pyro_hrssm.inference.bounds import log_weights
from pyro_hrssm.inference.evaluation import evaluate

FRAMES = 7
MOVED = 1e-6  # a frame's influence through a chain of saturating recurrences, far above rounding
STILL = 1e-12  # double precision: rounding alone
POSTERIORS = ("conditioned", "factorised", "limited")


def config_of(**fields: Any) -> HRSSMConfig:
    sizes = {"frame_shape": (2,), "hidden": 8, "abstract_size": 2, "observation_size": 2}
    kinds = {"networks": "mlp", "likelihood": "bernoulli", "max_segments": None, "max_length": None}
    return HRSSMConfig(**(sizes | kinds | fields))


def parameters_of(fn: Any) -> Tensor:
    """Mean and scale of a Normal site, or the logits of a boundary site, below masks and event axes: [B, …]."""
    fn = fn.unmasked
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return torch.cat([fn.loc, fn.scale], -1) if hasattr(fn, "loc") else fn.logits.unsqueeze(-1)


def guide_parameters(
    model: HRSSM, frames: Tensor, mask: Tensor | None, values: dict[str, Tensor], temperature: float
) -> dict[str, Tensor]:
    """Parameters of every site of the guide when the values of its sites are held."""
    guide = poutine.condition(model.guide, data=values)
    trace = poutine.trace(guide).get_trace(frames, mask, temperature=temperature)
    return {name: parameters_of(trace.nodes[name]["fn"]) for name in values}


def held_values(config: HRSSMConfig, path: list[bool], size: int = 1) -> dict[str, Tensor]:
    """Site values along a path of boundaries; a boundary's value is both its logit and, at temperature 0, itself."""
    values = {f"m_{t}": torch.full((size,), float(m), dtype=torch.float64) for t, m in enumerate(path)}
    for letter, width in (("z", config.abstract_size), ("s", config.observation_size)):
        for t in range(len(path) + 1):
            values[f"{letter}_{t}"] = torch.randn(size, width, dtype=torch.float64)
    return values


def moves(one: Tensor, other: Tensor) -> bool:
    """Whether the parameters moved; anything between rounding and a real change fails."""
    distance = (one - other).abs().max().item()
    assert distance <= STILL or distance >= MOVED, f"neither still nor moved: {distance}"
    return distance >= MOVED


@pytest.mark.parametrize(
    "path",
    [
        (0, 0, 1, 0, 1, 0),
        (0, 0, 0, 0, 0, 0),
        (1, 1, 1, 1, 1, 1),
        (1, 0, 0, 0, 0, 1),
        (0, 1, 0, 0, 1, 1),
    ],
    ids=lambda path: "".join(map(str, path)),
)
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("smoothing", [True, False])
def test_which_frames_move_the_states(path: tuple[int, ...], context: int, temperature: float, smoothing: bool) -> None:
    """q(z_t) sees all frames before t and its segment; q(s_t) its segment, without smoothing up to t alone, and z_t."""
    config = config_of(context=context, smoothing=smoothing)
    model = oracle.random_model(config)
    boundaries = [bool(m) for m in path]
    values = held_values(config, boundaries)
    opens = [True, *boundaries]
    start = [max(i for i in range(t + 1) if opens[i]) for t in range(FRAMES)]
    end = [next(i for i in range(t, FRAMES) if i == FRAMES - 1 or opens[i + 1]) for t in range(FRAMES)]
    frames = torch.rand(1, context + FRAMES, 2, dtype=torch.float64)
    before = guide_parameters(model, frames, None, values, temperature)
    for changed in range(-context, FRAMES):
        other = frames.clone()
        other[:, context + changed] = 1 - other[:, context + changed]
        after = guide_parameters(model, other, None, values, temperature)
        for t in range(FRAMES):
            if opens[t]:
                assert moves(before[f"z_{t}"], after[f"z_{t}"]) == (changed <= end[t]), (changed, t)
            last = end[t] if smoothing else t
            assert moves(before[f"s_{t}"], after[f"s_{t}"]) == (start[t] <= changed <= last), (changed, t)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_which_states_move_the_states(temperature: float) -> None:
    """q(s_t) sees its segment's z and no other state; q(z_t) sees none."""
    config = config_of()
    model = oracle.random_model(config)
    path = [False, True, False, False, True, False]
    values = held_values(config, path)
    opens = [True, *path]
    start = [max(i for i in range(t + 1) if opens[i]) for t in range(FRAMES)]
    frames = torch.rand(1, FRAMES, 2, dtype=torch.float64)
    before = guide_parameters(model, frames, None, values, temperature)
    for letter in "zs":
        for changed in range(FRAMES):
            name = f"{letter}_{changed}"
            after = guide_parameters(model, frames, None, values | {name: values[name] + 1}, temperature)
            for t in range(FRAMES):
                assert not moves(before[f"z_{t}"], after[f"z_{t}"])
                assert moves(before[f"s_{t}"], after[f"s_{t}"]) == (letter == "z" and changed == start[t])


def test_a_copied_state_is_not_read() -> None:
    """The value that a masked z_t holds moves neither the guide's densities nor the model's."""
    config = config_of()
    model = oracle.random_model(config)
    path = [False, True, False, False, True, False]
    values = held_values(config, path)
    frames = torch.rand(1, FRAMES, 2, dtype=torch.float64)
    for program in (model.model, model.guide):
        densities = []
        for shift in (0.0, 50.0):
            moved = {name: value + shift if _copied(name, path) else value for name, value in values.items()}
            densities.append(log_densities(poutine.condition(program, data=moved), frames, None, 0.0))
        assert densities[0].keys() == densities[1].keys()
        for name, value in densities[0].items():
            torch.testing.assert_close(value, densities[1][name], rtol=0, atol=STILL)


def _copied(name: str, path: list[bool]) -> bool:
    letter, t = name.split("_")
    return letter == "z" and t != "0" and not path[int(t) - 1]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_which_frames_move_the_boundaries(layers: int, context: int, temperature: float) -> None:
    """φ_t is not causal: each convolution sees one frame further either side."""
    config = config_of(context=context, boundary_layers=layers)
    model = oracle.random_model(config)
    values = held_values(config, [False] * (FRAMES - 1))
    frames = torch.rand(1, context + FRAMES, 2, dtype=torch.float64)
    before = guide_parameters(model, frames, None, values, temperature)
    for changed in range(-context, FRAMES):
        other = frames.clone()
        other[:, context + changed] = 1 - other[:, context + changed]
        after = guide_parameters(model, other, None, values, temperature)
        for t in range(FRAMES - 1):
            assert moves(before[f"m_{t}"], after[f"m_{t}"]) == (abs(changed - t) <= layers), (changed, t)


# Frames that are not there


FORMS = ("frames", "entries", "weights")
"""The forms of a mask; see :mod:`pyro_hrssm.model.masks`."""


def masked_batch(context: int, form: str = "frames") -> tuple[Tensor, Tensor]:
    """A whole sequence, one with frames missing (the first and one of the context too), and a short one.

    In a mask of entries, frames of every sequence, and one of the context, lack one entry of two.
    """
    frames = torch.rand(4, context + FRAMES, 2, dtype=torch.float64)
    mask = torch.ones(4, context + FRAMES, dtype=torch.bool)
    mask[1, [0, context, context + 3, context + 4]] = False
    mask[2, context + 4 :] = False
    mask[3, context + 1 :] = False
    if form == "frames":
        return frames, mask
    entries = mask.unsqueeze(-1).repeat(1, 1, 2)
    entries[[0, 0, 1, 2, 3], [0, context + 3, context + 2, context + 1, context], [1, 0, 1, 0, 1]] = False
    return frames, entries if form == "entries" else entries * (0.2 + 3 * torch.rand(entries.shape).double())


FILLINGS = {
    "NaN": lambda shape: torch.full(shape, math.nan, dtype=torch.float64),
    "infinity": lambda shape: torch.full(shape, math.inf, dtype=torch.float64),
    "large": lambda shape: torch.full(shape, -1e30, dtype=torch.float64),
    "other": lambda shape: torch.rand(shape, dtype=torch.float64),
}


def refilled(frames: Tensor, mask: Tensor, filling: Callable[[torch.Size], Tensor]) -> Tensor:
    return torch.where(mask > 0 if mask.dim() > 2 else mask.unsqueeze(-1), frames, filling(frames.shape))


def log_densities(program: Any, frames: Tensor, mask: Tensor | None, temperature: float) -> dict[str, Tensor]:
    trace = poutine.trace(program).get_trace(frames, mask, temperature=temperature)
    trace.compute_log_prob()
    names = [name for name in trace.nodes if name[:2] in ("m_", "z_", "s_") or name == "x"]
    return {name: trace.nodes[name]["log_prob"] for name in names}


@pytest.mark.parametrize("filling", FILLINGS.values(), ids=FILLINGS)
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("told", [False, True])
def test_unobserved_pixels_move_nothing(
    told: bool,
    form: str,
    temperature: float,
    posterior: str,
    context: int,
    filling: Callable[[torch.Size], Tensor],
) -> None:
    """Samples and densities of guide and model, to the last bit, whether or not the encoder is told of entries."""
    config = config_of(
        context=context,
        boundary_posterior=posterior,
        max_segments=3,
        max_length=3,
        likelihood="normal" if form == "weights" else "bernoulli",
        entry_flags=told,
    )
    model = oracle.random_model(config)
    frames, mask = masked_batch(context, form)
    results = []
    for batch in (frames, refilled(frames, mask, filling)):
        pyro.set_rng_seed(3)
        with torch.no_grad():
            guide_trace = poutine.trace(model.guide).get_trace(batch, mask, temperature=temperature)
            replayed = poutine.replay(model.model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(batch, mask, temperature=temperature)
        values = {f"value {name}": value for name, value in oracle.site_values(guide_trace).items()}
        for side, trace in (("p", model_trace), ("q", guide_trace)):
            trace.compute_log_prob()
            names = [name for name in trace.nodes if f"value {name}" in values or name == "x"]
            values |= {f"{side} {name}": trace.nodes[name]["log_prob"] for name in names}
        results.append(values)
    for name, value in results[0].items():
        assert value.isfinite().all(), name
        assert torch.equal(value, results[1][name]), name


@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction")  # p goes by frame, q by kind of site
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("form", FORMS)
def test_unobserved_pixels_move_no_gradient(
    form: str, posterior: str, context: int, likelihood: str, elbo: type
) -> None:
    config = config_of(
        context=context,
        boundary_posterior=posterior,
        max_segments=3,
        max_length=3,
        likelihood="normal" if form == "weights" else likelihood,
        entry_flags=form != "frames",
    )
    model = oracle.random_model(config)
    frames, mask = masked_batch(context, form)
    results = []
    for batch in (frames, *(refilled(frames, mask, filling) for filling in FILLINGS.values())):
        pyro.set_rng_seed(3)
        model.zero_grad()
        loss = elbo().loss_and_grads(model.model, model.guide, batch, mask, temperature=0.5)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((loss, gradients))
    assert math.isfinite(results[0][0])
    for loss, gradients in results:
        assert loss == results[0][0]
        for name, gradient in gradients.items():
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            assert torch.equal(gradient, results[0][1][name]), name


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("form", FORMS)
def test_unobserved_pixels_move_no_evaluation(form: str, context: int) -> None:
    config = config_of(context=context, max_segments=3, max_length=3, likelihood="normal", entry_flags=True)
    model = oracle.random_model(config)
    frames, mask = masked_batch(context, form)
    results = []
    for batch in (frames, *(refilled(frames, mask, filling) for filling in FILLINGS.values())):
        pyro.set_rng_seed(3)
        results.append((log_weights(model, batch, mask, 5).weights, evaluate(model, [(batch, mask)], 5)))
    assert results[0][0].isfinite().all()
    for weights, scores in results[1:]:
        assert torch.equal(weights, results[0][0])
        assert scores == results[0][1]


def test_an_observed_pixel_moves_the_densities() -> None:
    """The tests above are able to fail."""
    config = config_of(max_segments=3, max_length=3)
    model = oracle.random_model(config)
    frames, mask = masked_batch(0)
    values = held_values(config, [False, True, False, False, True, False], 4)
    before = log_densities(poutine.condition(model.guide, data=values), frames, mask, 0.0)
    seen = frames.clone()
    seen[1, 2] = 1 - seen[1, 2]
    after = log_densities(poutine.condition(model.guide, data=values), seen, mask, 0.0)
    assert moves(before["z_2"][1], after["z_2"][1])
    assert moves(before["s_2"][1], after["s_2"][1])
    assert not moves(before["s_2"][0], after["s_2"][0])


@pytest.mark.parametrize("changed", ["value", "flag", "weight"])
def test_an_entry_that_is_there_moves_the_densities(changed: str) -> None:
    """So do its flag and its weight, which the encoder is told."""
    config = config_of(max_segments=3, max_length=3, likelihood="normal", entry_flags=True)
    model = oracle.random_model(config)
    frames, mask = masked_batch(0, "weights" if changed == "weight" else "entries")
    values = held_values(config, [False, True, False, False, True, False], 4)
    other, other_mask = frames.clone(), mask.clone()
    if changed == "value":
        other[1, 2, 0] = 1 - other[1, 2, 0]
    else:
        other_mask[1, 2, 0] = 9.0 if changed == "weight" else False
    for program, names in ((model.guide, ("z_2", "s_2")), (model.model, ("x",))):
        held = poutine.condition(program, data=values)
        before, after = log_densities(held, frames, mask, 0.0), log_densities(held, other, other_mask, 0.0)
        for name in names:
            assert moves(before[name][1], after[name][1]), name
            assert not moves(before[name][0], after[name][0]), name


def test_the_length_of_padding_moves_nothing() -> None:
    """Five unobserved frames appended to every sequence change nothing."""
    config = config_of(max_segments=3, max_length=3)
    model = oracle.random_model(config)
    frames, mask = masked_batch(0)
    longer = torch.cat([frames, torch.full((4, 5, 2), math.nan, dtype=torch.float64)], 1)
    longer_mask = torch.cat([mask, torch.zeros(4, 5, dtype=torch.bool)], 1)
    path = [False, True, False, False, True, False]
    values = held_values(config, path, 4)
    padding = held_values(config, path + [True] * 5, 4)
    for program in (model.model, model.guide):
        short = log_densities(poutine.condition(program, data=values), frames, mask, 0.0)
        long = log_densities(poutine.condition(program, data=padding | values), longer, longer_mask, 0.0)
        for name, value in long.items():
            expected = short.get(name, torch.zeros(4, dtype=torch.float64))
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)  # other shapes of matrix product
