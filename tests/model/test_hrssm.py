"""HRSSM as a Pyro program: limits in every sample, jumpy imagination, and its use with Pyro's tools.

The densities of its sites are checked in `test_densities.py`.
"""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections.abc import Sequence
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.inspect import get_model_relations
from torch import Tensor

from pyro_hrssm.batching.later import Queue
from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.errors import InputError
from pyro_hrssm.model.hrssm import HRSSM, Inference, Rollout

TEMPERATURES = [0.0, 0.1, 1.0]


def tiny(**changes: Any) -> HRSSM:
    sizes = {"frame_shape": (3,), "hidden": 8, "abstract_size": 2, "observation_size": 2}
    return HRSSM(HRSSMConfig(**{**sizes, **changes}))


def with_limits(
    max_segments: int | None, max_length: int | None, window: int | None, min_length: int = 1, **changes: Any
) -> HRSSM:
    limits = {"max_segments": max_segments, "max_length": max_length, "window": window, "min_length": min_length}
    return tiny(**limits, **changes)


def random_frames(size: int, length: int) -> Tensor:
    return torch.rand(size, length, 3)


def sharpen(model: HRSSM, bias: float) -> HRSSM:
    """Make the boundary logits of p and q extreme: they spread over tens around `bias`."""
    with torch.no_grad():
        for layer in (model.emission.boundary, model.posterior.boundary_logit.product):
            layer.weight.mul_(100)
            layer.bias.fill_(bias)
    return model


def sites(trace: poutine.Trace, letter: str) -> list[str]:
    """Names of the latent sites `letter_0`, `letter_1`, … of a trace."""
    return [name for name in trace.nodes if re.fullmatch(rf"{letter}_\d+", name)]


# Limits


def segments_of(boundaries: Sequence[float]) -> list[tuple[int, int]]:
    """First frame and length of each segment of len(boundaries) + 1 frames."""
    assert set(boundaries) <= {0.0, 1.0}
    starts = [0, *(t + 1 for t, ends in enumerate(boundaries) if ends == 1)]
    ends = [*starts[1:], len(boundaries) + 1]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def assert_limits(boundaries: Tensor, model: HRSSM) -> None:
    """Check by its segments that every row of boundaries [N, frames - 1] obeys the limits.

    At most N_max segments open within the window. No segment is longer than l_max, except the last allowed one,
    which lasts to the window's end. No segment is shorter than `min_length`, except the last one, which the row's end
    may cut.
    """
    config = model.config
    for row in {tuple(row) for row in boundaries.tolist()}:
        segments = segments_of(row)
        window = len(row) + 1 if config.window is None else config.window
        most = len(row) + 1 if config.max_segments is None else config.max_segments
        assert sum(start < window for start, _ in segments) <= most
        assert all(length >= config.min_length for _, length in segments[:-1])
        for number, (start, length) in enumerate(segments, 1):
            longest = len(row) + 1 if config.max_length is None else config.max_length
            if number == most and start < window:
                longest = max(longest, window - start)
            assert length <= longest


LIMIT = st.none() | st.integers(1, 4)
LENGTHS = st.tuples(LIMIT, st.sampled_from([1, 1, 2, 3, 4])).filter(lambda pair: pair[0] is None or pair[1] <= pair[0])
"""Longest and shortest segment."""
BIAS = st.sampled_from([-50.0, -1.0, 0.0, 1.0, 50.0])


@given(LIMIT, LENGTHS, st.none() | st.integers(1, 8), st.integers(1, 11), BIAS, st.sampled_from(TEMPERATURES))
@settings(max_examples=40)
def test_prior_samples_obey_the_limits(
    max_segments: int | None,
    lengths: tuple[int | None, int],
    window: int | None,
    horizon: int,
    bias: float,
    temperature: float,
) -> None:
    longest, shortest = lengths
    model = sharpen(with_limits(max_segments, longest, window, shortest), bias)
    trace = poutine.trace(model.model).get_trace(size=24, horizon=horizon, temperature=temperature)
    rollout: Rollout = trace.nodes["_RETURN"]["value"]
    assert len(rollout.boundaries) == len(rollout.boundary_priors) == horizon - 1
    assert len(rollout.abstract) == len(rollout.observation) == horizon
    assert sites(trace, "m") == [f"m_{t}" for t in range(horizon - 1)]
    if horizon == 1:
        return
    boundaries = torch.stack(rollout.boundaries, 1)
    assert_limits(boundaries, model)
    assert torch.equal(trace.nodes["boundaries"]["value"], boundaries)
    values = torch.stack([trace.nodes[f"m_{t}"]["value"] for t in range(horizon - 1)], 1)
    assert torch.equal(values if temperature == 0 else (values > 0).float(), boundaries)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "limits", [(3, 4, None), (2, 3, 6), (None, 2, None), (None, None, None, 3), (2, 3, 6, 2), (None, 4, None, 3)]
)
def test_predictive_samples_obey_the_limits(limits: tuple[Any, ...], temperature: float) -> None:
    model = sharpen(with_limits(*limits), 0.0)
    samples = Predictive(model.model, num_samples=4)(size=16, horizon=9, temperature=temperature)
    assert samples["boundaries"].shape == (4, 16, 8)
    assert samples["x_future"].shape == (4, 16, 9, 3)
    assert_limits(samples["boundaries"].flatten(0, 1), model)


@pytest.mark.parametrize(
    ("min_length", "eager", "reluctant"),
    [(1, [0, 1, 5, 6, 7, 8, 9, 10, 11], [0, 3, 6, 9]), (2, [0, 2, 5, 7, 9, 11], [0, 3, 6, 9])],
)
def test_past_the_window_the_limits_of_length_alone_hold(
    min_length: int, eager: list[int], reluctant: list[int]
) -> None:
    """If boundaries are almost certain or almost excluded, only the limits decide the segments."""
    model = with_limits(2, 3, 5, min_length)
    # Where a boundary is forced, p_m does not matter; elsewhere ±1e4 makes it certain.
    for bias, expected in ((1e4, eager), (-1e4, reluctant)):
        with torch.no_grad():
            model.emission.boundary.bias.fill_(bias)
        boundaries = torch.stack(model.model(size=8, horizon=12, temperature=0).boundaries, 1)
        assert [start for start, _ in segments_of(boundaries[0].tolist())] == expected
        assert (boundaries == boundaries[0]).all()


@given(
    LIMIT,
    LENGTHS,
    st.none() | st.integers(1, 8),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    BIAS,
    st.sampled_from(TEMPERATURES),
    st.sampled_from(["conditioned", "limited"]),
)
@settings(max_examples=40)
def test_guide_draws_obey_the_limits(
    max_segments: int | None,
    limits: tuple[int | None, int],
    window: int | None,
    lengths: list[int],
    bias: float,
    temperature: float,
    posterior: str,
) -> None:
    most, least = limits
    model = sharpen(with_limits(max_segments, most, window, least, boundary_posterior=posterior), bias)
    # Sequences of several lengths in one batch, eight of each.
    size, longest = 8 * len(lengths), max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths).repeat_interleave(8)[:, None]
    inference: Inference = model.guide(random_frames(size, longest), mask, temperature=temperature)
    assert inference.boundaries.shape == (longest - 1, size)
    assert len(inference.boundary_posteriors) == longest - 1
    for row, length in enumerate(lengths):
        assert_limits(inference.boundaries.T[8 * row : 8 * row + 8, : length - 1], model)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("posterior", ["conditioned", "limited"])
@pytest.mark.parametrize("limits", [(3, 3, 8), (3, 3, 8, 2), (None, None, None, 3), (2, 4, 7, 3)])
def test_forecasts_obey_the_limits_across_their_start(
    limits: tuple[Any, ...], posterior: str, temperature: float
) -> None:
    model = sharpen(with_limits(*limits, boundary_posterior=posterior), 0.0)
    predictive = Predictive(model.model, guide=model.guide, num_samples=3)
    samples = predictive(random_frames(16, 5), horizon=6, temperature=temperature)
    assert_limits(samples["boundaries"].flatten(0, 1), model)


# Forecasts and jumpy imagination


def replayed(model: HRSSM, program: Any, frames: Tensor | None, seed: int, **arguments: Any) -> poutine.Trace:
    """The program's trace under one seed, with the guide's values for the frames."""
    pyro.set_rng_seed(seed)
    guide = poutine.trace(model.guide).get_trace(frames, **arguments)
    pyro.set_rng_seed(seed + 1)
    trace = poutine.trace(poutine.replay(program, trace=guide)).get_trace(frames, **arguments)
    trace.compute_log_prob()
    return trace


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("given_frames", [0, 1, 4])
def test_a_jumpy_rollout_is_a_full_one_where_every_frame_opens_a_segment(given_frames: int, temperature: float) -> None:
    # The full roll-out would obey these limits if its boundaries were not given.
    model, horizon = with_limits(3, 4, None, 2), 5
    frames = random_frames(6, given_frames) if given_frames else None
    arguments: dict[str, Any] = {"horizon": horizon, "temperature": temperature}
    if frames is None:
        arguments["size"] = 6
    first = max(given_frames - 1, 0)
    future = [f"m_{t}" for t in range(first, given_frames + horizon - 1)]
    ones = {name: torch.ones(6) if temperature == 0 else torch.full((6,), 40.0) for name in future}
    full = replayed(model, poutine.condition(model.model, data=ones), frames, 5, **arguments)
    jumpy = replayed(model, model.model, frames, 5, jumpy=True, **arguments)

    assert sites(full, "m") == [f"m_{t}" for t in range(given_frames + horizon - 1)]
    assert sites(jumpy, "m") == [f"m_{t}" for t in range(first)]
    for letter in ("z", "s"):
        assert sites(jumpy, letter) == sites(full, letter) == [f"{letter}_{t}" for t in range(given_frames + horizon)]
        for name in sites(full, letter):
            for what in ("value", "log_prob"):
                # The same sums over batches of other sizes, in float32.
                torch.testing.assert_close(jumpy.nodes[name][what], full.nodes[name][what], rtol=1e-4, atol=1e-5)
    assert jumpy.nodes["x_future"]["value"].shape == (6, horizon, 3)

    rollout: Rollout = jumpy.nodes["_RETURN"]["value"]
    assert len(rollout.abstract) == given_frames + horizon
    # Every frame of the horizon is a segment of its own: a new abstract state each time.
    ahead = torch.stack([state.latent for state in rollout.abstract[max(given_frames - 1, 0) :]])
    assert (ahead[1:] != ahead[:-1]).all()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_a_forecast_keeps_the_observed_frames_sites(temperature: float) -> None:
    model, frames = tiny(), random_frames(6, 4)
    alone = replayed(model, model.model, frames, 5, temperature=temperature)
    longer = replayed(model, model.model, frames, 5, temperature=temperature, horizon=3)
    for name in ["x", *sites(alone, "z"), *sites(alone, "s"), *sites(alone, "m")]:
        assert torch.equal(longer.nodes[name]["value"], alone.nodes[name]["value"])
        # The same sums over batches of other sizes, in float32.
        torch.testing.assert_close(longer.nodes[name]["log_prob"], alone.nodes[name]["log_prob"], rtol=1e-4, atol=1e-5)
    # The last frame's boundary acts only if the roll-out goes on.
    assert sites(alone, "m") == [f"m_{t}" for t in range(3)]
    assert sites(longer, "m") == [f"m_{t}" for t in range(6)]
    assert "x_future" not in alone.nodes
    assert longer.nodes["x_future"]["value"].shape == (6, 3, 3)


def test_abstract_states_change_at_boundaries_alone() -> None:
    rollout = tiny().model(size=32, horizon=8, temperature=0.5)
    for t, opens in enumerate(rollout.boundaries):
        before, after = rollout.abstract[t], rollout.abstract[t + 1]
        changed = opens > 0.5
        for old, new in zip(before, after, strict=True):
            assert ((new != old).any(-1) == changed).all()


# Wrong uses


def frames_and(size: int = 4, length: int = 5, **changes: Any) -> dict[str, Any]:
    return {"frames": random_frames(size, length), **changes}


@pytest.mark.parametrize("program", ["model", "guide"])
@pytest.mark.parametrize(
    ("context", "arguments", "words"),
    [
        (0, {"frames": torch.rand(4, 5)}, ["[B, T, 3]", "[4, 5]"]),
        (0, {"frames": torch.rand(4, 5, 3, 1)}, ["[B, T, 3]", "[4, 5, 3, 1]"]),
        (0, {"frames": torch.rand(4, 5, 2)}, ["[B, T, 3]", "[4, 5, 2]"]),
        (0, {"frames": torch.ones(4, 5, 3, dtype=torch.long)}, ["float", "int64"]),
        (0, {"frames": torch.rand(0, 5, 3)}, ["[B, T, 3]", "[0, 5, 3]"]),
        (0, {"frames": torch.rand(4, 0, 3)}, ["T at least 1", "[4, 0, 3]"]),
        (2, {"frames": torch.rand(4, 1, 3)}, ["T at least 2", "[4, 1, 3]"]),
        (2, {"size": 3, "horizon": 4}, ["context", "None"]),
        (0, frames_and(mask=torch.ones(4, 6, dtype=torch.bool)), ["[4, 5]", "[4, 6]"]),
        (0, frames_and(mask=torch.ones(5, dtype=torch.bool)), ["[4, 5]", "[5]"]),
        (0, frames_and(mask=torch.ones(4, 5, 2, dtype=torch.bool)), ["[4, 5] or [4, 5, 3]", "[4, 5, 2]"]),
    ],
)
def test_a_wrong_shape_is_told_in_one_line(
    context: int, arguments: dict[str, Any], words: list[str], program: str
) -> None:
    with pytest.raises(InputError) as caught:
        getattr(tiny(context=context), program)(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("context", "arguments"),
    [
        pytest.param(0, {"size": 3}, id="nothing to roll out"),
        pytest.param(2, {"frames": torch.rand(4, 2, 3)}, id="a context and nothing to roll out"),
        pytest.param(0, {"size": 0, "horizon": 3}, id="no sequence"),
        pytest.param(0, frames_and(horizon=-1), id="negative horizon"),
        pytest.param(0, frames_and(temperature=-1.0), id="negative temperature"),
    ],
)
def test_a_rollout_that_cannot_be_is_told_in_one_line(context: int, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        tiny(context=context).model(**arguments)
    assert "\n" not in str(caught.value)


# Small and special sequences


def svi_step(model: HRSSM, *arguments: Any, **more: Any) -> float:
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    return svi.step(*arguments, **more)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("posterior", ["conditioned", "factorised", "limited"])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize(("size", "length"), [(1, 1), (1, 5), (4, 1), (4, 2)])
def test_small_batches_and_short_sequences_train(
    size: int, length: int, context: int, posterior: str, temperature: float
) -> None:
    model = tiny(context=context, boundary_posterior=posterior, max_segments=2, max_length=3)
    frames = random_frames(size, context + length)
    loss = svi_step(model, frames, temperature=temperature)
    assert loss == pytest.approx(loss)  # not NaN
    trace = poutine.trace(model.guide).get_trace(frames, temperature=temperature)
    assert trace.nodes["_RETURN"]["value"].boundaries.shape == (length - 1, size)
    for letter, count in (("z", length), ("s", length), ("m", length - 1)):
        assert sites(trace, letter) == [f"{letter}_{t}" for t in range(count)]
    future = model.model(frames, horizon=2, temperature=temperature).future
    assert future is not None
    assert future.batch_shape == (size,)
    assert future.event_shape == (2, 3)


def test_a_context_is_given_and_not_modelled() -> None:
    model, frames = tiny(context=3), random_frames(4, 8)
    trace = poutine.trace(model.model).get_trace(frames)
    assert torch.equal(trace.nodes["x"]["value"], frames[:, 3:])
    assert len(sites(trace, "z")) == 5
    # The context decides the first belief, and through the belief all later values.
    beliefs = [trace.nodes["_RETURN"]["value"].abstract[0].belief]
    for frame in range(8):
        changed = frames.clone()
        changed[:, frame] = 1 - changed[:, frame]
        beliefs.append(model.model(changed).abstract[0].belief)
    same = [torch.equal(belief, beliefs[0]) for belief in beliefs[1:]]
    assert same == [False] * 3 + [True] * 5


def test_a_context_alone_is_continued() -> None:
    model, frames = tiny(context=3), random_frames(4, 3)
    assert model.guide(frames, horizon=2) is None
    samples = Predictive(model.model, guide=model.guide, num_samples=2)(frames, horizon=2)
    assert samples["x_future"].shape == (2, 4, 2, 3)


@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
def test_images_train_and_continue(likelihood: str) -> None:
    model = tiny(frame_shape=(16, 16, 3), networks="conv", channels=4, likelihood=likelihood)
    frames = torch.rand(2, 4, 16, 16, 3)
    before = copy.deepcopy(model.state_dict())
    svi_step(model, frames)
    after = model.state_dict()
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    trace = poutine.trace(model.model).get_trace(frames, horizon=3)
    assert trace.nodes["x"]["value"].shape == frames.shape
    assert trace.nodes["x_future"]["value"].shape == (2, 3, 16, 16, 3)
    assert model.guide(frames).boundaries.shape == (3, 2)


def test_hidden_pixels_are_never_seen() -> None:
    model, frames = tiny(context=1), random_frames(3, 6)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]], dtype=torch.bool)
    losses = []
    for filling in (0.0, 0.7, float("nan")):
        pyro.set_rng_seed(1)
        filled = torch.where(mask[..., None], frames, filling)
        kept = filled.clone()
        loss = Trace_ELBO().differentiable_loss(model.model, model.guide, filled, mask)
        assert torch.equal(filled.nan_to_num(-1), kept.nan_to_num(-1))  # no input is written to
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)
        losses.append(loss.item())
    assert losses[0] == losses[1] == losses[2]


def test_a_missing_frame_is_not_a_black_one() -> None:
    model, frames = tiny(context=2), random_frames(3, 6)
    for frame in (0, 4):  # of the context, from which p starts too; and of those modelled
        black, mask = frames.clone(), torch.ones(3, 6, dtype=torch.bool)
        black[:, frame], mask[:, frame] = 0.0, False
        first = [model.model(black, flags).abstract[0].belief for flags in (None, mask)]
        assert torch.equal(*first) == (frame >= 2)
        posteriors = [model.guide(black, flags).boundary_posteriors for flags in (None, mask)]
        assert any(
            not torch.equal(seen.unmasked.logits, missing.unmasked.logits)
            for seen, missing in zip(*posteriors, strict=True)
        )


# Pyro's and PyTorch's own tools


@pytest.mark.parametrize("program", ["model", "guide"])
def test_pyro_can_tell_the_structure_of(program: str) -> None:
    from pyro.infer.inspect import get_model_relations

    function = getattr(tiny(), program)
    relations = get_model_relations(function, model_args=(random_frames(2, 3),))
    latent = {*(f"{letter}_{t}" for letter in "zs" for t in range(3)), "m_0", "m_1"}
    assert latent <= set(relations["sample_sample"])
    assert relations["plate_sample"]["sequences"]
    # The chain of abstract states, and the frames that observation states show.
    parents = relations["sample_sample"]
    if program == "model":
        assert "x" in relations["observed"]
        assert {"s_0", "s_1", "s_2"} <= set(parents["x"])
        assert {"m_0", "z_0"} <= set(parents["z_1"])
    else:
        assert {"m_0", "m_1"} <= set(parents["z_1"])


@pytest.mark.parametrize("program", ["model", "guide"])
def test_pyro_can_draw(program: str) -> None:
    pytest.importorskip("graphviz")
    graph = pyro.render_model(getattr(tiny(), program), model_args=(random_frames(2, 3),), render_distributions=True)
    assert "z_1" in graph.source


def test_format_shapes_lists_every_site() -> None:
    model, frames = tiny(), random_frames(4, 3)
    trace = poutine.trace(model.model).get_trace(frames, torch.ones(4, 3, dtype=torch.bool), horizon=1)
    trace.compute_log_prob()
    lines = [line.split() for line in trace.format_shapes().splitlines()]
    rows = {line[0]: line for line in lines if "dist" in line}
    assert rows["z_1"] == ["z_1", "dist", "4", "|", "2"]
    assert rows["m_2"] == ["m_2", "dist", "4", "|"]
    assert rows["x"] == ["x", "dist", "4", "|", "3", "3"]
    assert rows["x_future"] == ["x_future", "dist", "4", "|", "1", "3"]


def densities(model: HRSSM, frames: Tensor) -> list[Tensor]:
    """Log densities under one seed, of q and of p."""
    pyro.set_rng_seed(9)
    guide = poutine.trace(model.guide).get_trace(frames)
    trace = poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(frames)
    return [guide.log_prob_sum(), trace.log_prob_sum()]


def test_a_state_dict_holds_all_of_a_model() -> None:
    first, second, frames = tiny(context=1), tiny(context=1), random_frames(4, 5)
    assert densities(first, frames) != densities(second, frames)
    second.load_state_dict(first.state_dict())
    assert densities(first, frames) == densities(second, frames)


def parameters_of(model: HRSSM) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def moved(model: HRSSM, before: list[Tensor]) -> bool:
    return any(not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_two_models_share_nothing() -> None:
    first, second, frames = tiny(), tiny(), random_frames(4, 5)
    before = parameters_of(first)
    svi_step(first, frames)
    assert moved(first, before)
    before, others = parameters_of(first), parameters_of(second)
    svi_step(second, frames)
    assert moved(second, others)
    assert not moved(first, before)


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    model, frames = tiny(), random_frames(4, 5)
    svi_step(model, frames)
    twin = copy.deepcopy(model)
    assert densities(model, frames) == densities(twin, frames)
    before = parameters_of(model)
    svi_step(twin, frames)
    assert moved(twin, before)
    assert not moved(model, before)


def test_parameters_put_in_place_of_others_are_the_ones_trained() -> None:
    model, frames = tiny(), random_frames(4, 5)
    svi_step(model, frames)
    model.load_state_dict(tiny().state_dict(), assign=True)
    before = parameters_of(model)
    svi_step(model, frames)
    assert moved(model, before)


def test_sites_depend_on_earlier_frames_alone() -> None:
    """Pyro's picture of the model, although densities of all frames are computed at once."""
    relations = get_model_relations(tiny().model, (random_frames(2, 4),))["sample_sample"]
    for name, parents in relations.items():
        frame = int(name[2:]) if name[:2] in ("z_", "s_", "m_") else None
        if frame is not None:
            assert all(int(parent[2:]) <= frame for parent in parents), (name, parents)
    assert "z_0" in relations["z_1"]


def test_a_traced_step_is_freed_at_once() -> None:
    """No reference cycle keeps tensors until the garbage collector runs."""
    model, frames = tiny(), random_frames(3, 4)

    def step() -> None:
        guide = poutine.trace(model.guide).get_trace(frames, temperature=0.5)
        trace = poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(frames, temperature=0.5)
        trace.log_prob_sum()
        watched.extend(weakref.ref(trace.nodes[name]["fn"]) for name in ("z_1", "s_2", "m_0"))

    watched: list[Any] = []
    step()
    gc.collect()
    watched.clear()
    gc.disable()
    try:
        step()
        assert [reference() for reference in watched] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("context", [0, 2])
def test_handlers_that_look_at_every_name_work(context: int) -> None:
    model, frames = tiny(context=context), random_frames(4, 6)
    for program in (model.guide, model.model):
        hidden = poutine.block(program, hide_fn=lambda message: message["name"].startswith("z_"))
        names = set(poutine.trace(hidden).get_trace(frames).nodes)
        assert "s_0" in names
        assert not any(name.startswith("z_") for name in names)


def test_a_roll_out_is_freed_when_it_is_forgotten() -> None:
    """A circle of results would keep its tensors until the garbage collector comes round."""
    model = tiny()
    gc.collect()
    gc.disable()
    try:
        before = sum(type(found) is Queue for found in gc.get_objects())
        with torch.no_grad():
            model.model(size=4, horizon=6)
            model.model(random_frames(4, 6), horizon=3, jumpy=True)
        assert sum(type(found) is Queue for found in gc.get_objects()) == before
    finally:
        gc.enable()
