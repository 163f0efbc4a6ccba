"""Log densities of every site of model and guide against `oracle.py`, which loops over sequences and paths."""

import dataclasses
import math
from typing import Any

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch import Tensor

from pyro_hrssm import HRSSM, HRSSMConfig

POSTERIORS = ("conditioned", "factorised", "limited")
TOLERANCE = 1e-8  # double precision: sums of a hundred terms of size 1 to 100, rounded differently
LIMITS = st.sampled_from([None, 1, 2, 3, 9])


def config_of(**fields: Any) -> HRSSMConfig:
    sizes = {"frame_shape": (2,), "hidden": 8, "abstract_size": 2, "observation_size": 3, "channels": 2}
    kinds = {"networks": "mlp", "likelihood": "bernoulli"}
    return HRSSMConfig(**(sizes | kinds | fields))


def random_frames(config: HRSSMConfig, size: int, length: int) -> Tensor:
    """[size, context + length, X…]; Bernoulli frames hold greys and exact zeros and ones."""
    frames = torch.rand(size, config.context + length, *config.frame_shape, dtype=torch.float64)
    return frames.mul(1.5).sub(0.25).clamp(0, 1) if config.likelihood == "bernoulli" else 2 * frames - 1


def path_values(path: Tensor, temperature: float) -> dict[str, Tensor]:
    """Values of the boundary sites that stand for a path [B, T-1] of booleans."""
    value = path.double()
    if temperature > 0:
        value = (2 * value - 1) * torch.rand(path.shape, dtype=torch.float64).mul(5).add(0.01)
    return {f"m_{t}": column for t, column in enumerate(value.unbind(1))}


@torch.no_grad()
def draw(
    model: HRSSM, frames: Tensor, mask: Tensor | None, temperature: float, path: Tensor | None = None
) -> dict[str, Tensor]:
    """Site values drawn from the guide, along a path where one is given."""
    data = {} if path is None else path_values(path, temperature)
    guide = poutine.condition(model.guide, data=data)
    values = oracle.site_values(poutine.trace(guide).get_trace(frames, mask, temperature=temperature))
    # The value of a copied z_t must not matter.
    return {name: value + 100 if _never_opens(values, name, temperature) else value for name, value in values.items()}


def _never_opens(values: dict[str, Tensor], name: str, temperature: float) -> bool:
    letter, t = name.split("_")
    if letter != "z" or t == "0":
        return False
    return not any(oracle.is_boundary(value, temperature) for value in values[f"m_{int(t) - 1}"])


def conditioned_traces(
    model: HRSSM, frames: Tensor, mask: Tensor | None, values: dict[str, Tensor], temperature: float, **how: Any
) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of the model and the guide at given site values, with their densities."""
    traces = []
    for program in (model.model, model.guide):
        trace = poutine.trace(poutine.condition(program, data=values)).get_trace(
            frames, mask, temperature=temperature, **how
        )
        trace.compute_log_prob()
        traces.append(trace)
    return traces[0], traces[1]


def log_probs(trace: poutine.Trace) -> dict[str, Tensor]:
    """Densities [B] of the sites of a trace; the plate and deterministic sites have none."""
    names = [name for name in trace.nodes if name[:2] in ("m_", "z_", "s_") or name in ("x", "x_future")]
    return {name: trace.nodes[name]["log_prob"] for name in names}


def assert_agree(actual: dict[str, Tensor], expected: list[oracle.Densities]) -> None:
    assert set().union(*expected) <= set(actual)
    for name, value in actual.items():
        wanted = torch.stack([row.get(name, torch.zeros((), dtype=torch.float64)).detach() for row in expected])
        torch.testing.assert_close(
            value.detach(), wanted, rtol=0, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )


def expected_sites(length: int) -> set[str]:
    latent = {f"{letter}_{t}" for letter in "zs" for t in range(length)}
    return latent | {f"m_{t}" for t in range(length - 1)}


def shortest(max_length: int | None) -> st.SearchStrategy[int]:
    """A `min_length` that is at most `max_length`."""
    return st.integers(1, 4 if max_length is None else min(4, max_length))


@st.composite
def masks(draw: st.DrawFn, size: int, length: int, config: HRSSMConfig | None = None) -> Tensor | None:
    """None, or any flags: missing frames at the start, inside and before the end, and shorter sequences.

    With a configuration also any flags of entries or, for a Normal emission, any weights of them.
    """
    if draw(st.booleans()):
        return None
    if config is not None and draw(st.booleans()):
        weighted = config.likelihood == "normal" and draw(st.booleans())
        values = [0.0, 0.0, 0.01, 0.5, 1.0, 7.0, 1e4] if weighted else [False, True, True]
        shape = (size, length, *config.frame_shape)
        many = st.lists(st.sampled_from(values), min_size=math.prod(shape), max_size=math.prod(shape))
        return torch.tensor(draw(many), dtype=torch.float64 if weighted else torch.bool).reshape(shape)
    flags = st.lists(st.sampled_from([True, True, False]), min_size=length, max_size=length)
    return torch.tensor(draw(st.lists(flags, min_size=size, max_size=size)))


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("posterior", POSTERIORS)
@settings(max_examples=8)
@given(data=st.data())
def test_every_site_has_the_oracle_s_density(posterior: str, temperature: float, context: int, data: Any) -> None:
    max_length = data.draw(LIMITS, "max_length")
    config = config_of(
        boundary_posterior=posterior,
        context=context,
        likelihood=data.draw(st.sampled_from(["bernoulli", "normal"]), "likelihood"),
        noise_scale=data.draw(st.sampled_from(["learned", 0.7]), "noise_scale"),
        smoothing=data.draw(st.booleans(), "smoothing"),
        max_segments=data.draw(LIMITS, "max_segments"),
        max_length=max_length,
        min_length=data.draw(shortest(max_length), "min_length"),
        window=data.draw(st.sampled_from([None, 1, 3, 4]), "window"),
        boundary_layers=data.draw(st.integers(1, 3), "boundary_layers"),
        frame_shape=data.draw(st.sampled_from([(2,), (1, 3)]), "frame_shape"),
        entry_flags=data.draw(st.booleans(), "entry_flags"),
    )
    size, length = data.draw(st.integers(1, 3), "sequences"), data.draw(st.integers(1, 6), "frames")
    model = oracle.random_model(config, data.draw(st.integers(0, 10**6), "parameters"))
    frames = random_frames(config, size, length)
    mask = data.draw(masks(size, context + length, config), "mask")

    # The guide's own draws are replayed in the model, as in SVI.
    with torch.no_grad():
        guide_trace = poutine.trace(model.guide).get_trace(frames, mask, temperature=temperature)
        replayed = poutine.replay(model.model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(frames, mask, temperature=temperature)
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    p, q = oracle.batch_densities(model, frames, mask, oracle.site_values(guide_trace), temperature)
    assert set(log_probs(guide_trace)) == expected_sites(length)
    assert set(log_probs(model_trace)) == expected_sites(length) | {"x"}
    assert_agree(log_probs(guide_trace), q)
    assert_agree(log_probs(model_trace), p)

    # Any path of boundaries is tested, also against the limits; the conditioned guide has only allowed paths.
    if posterior != "conditioned":
        values = draw(model, frames, mask, temperature, torch.rand(size, length - 1) < 0.5)
        p, q = oracle.batch_densities(model, frames, mask, values, temperature)
        model_trace, guide_trace = conditioned_traces(model, frames, mask, values, temperature)
        assert_agree(log_probs(guide_trace), q)
        assert_agree(log_probs(model_trace), p)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    ("max_segments", "max_length", "min_length"),
    [
        (2, 2, 1), (3, None, 1), (None, 3, 1), (2, 3, 1), (4, 2, 1), (1, 2, 1),
        (None, None, 2), (2, None, 2), (None, 3, 2), (2, 3, 2), (3, 2, 2), (3, 3, 3), (None, None, 9),
    ],
)  # fmt: skip
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_every_path_has_the_oracle_s_density(
    posterior: str,
    max_segments: int | None,
    max_length: int | None,
    min_length: int,
    window: int | None,
    temperature: float,
) -> None:
    limits = {"max_segments": max_segments, "max_length": max_length, "min_length": min_length, "window": window}
    config = config_of(boundary_posterior=posterior, hidden=4, **limits)
    model = oracle.random_model(config)
    paths = [path for path in oracle.paths(4) if posterior != "conditioned" or oracle.allowed(config, path)]
    frames = random_frames(config, 1, 5).expand(len(paths), -1, -1)
    values = draw(model, frames, None, temperature, torch.tensor(paths))
    model_trace, guide_trace = conditioned_traces(model, frames, None, values, temperature)
    p, q = oracle.batch_densities(model, frames, None, values, temperature)
    assert_agree(log_probs(model_trace), p)
    assert_agree(log_probs(guide_trace), q)

    if temperature == 0:
        log_q = sum(value for name, value in log_probs(guide_trace).items() if name.startswith("m_"))
        total = log_q.exp().sum().item()
        if posterior == "conditioned":
            # A forced boundary keeps ε of doubt, at most four times along a path.
            assert 1 - 4 * oracle.EPSILON <= total <= 1 + TOLERANCE
        else:
            assert total == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("min_length", [1, 2])
def test_gradients_are_the_oracle_s(posterior: str, min_length: int, temperature: float, context: int) -> None:
    """The backward passes written by hand, against autograd through the oracle's loops."""
    limits = {"max_segments": 3, "max_length": 3, "min_length": min_length}
    config = config_of(boundary_posterior=posterior, context=context, hidden=4, **limits)
    model = oracle.random_model(config)
    frames = random_frames(config, 2, 6)
    mask = torch.ones(2, context + 6, dtype=torch.bool)
    mask[0, context + 2] = mask[1, -1] = False
    values = draw(model, frames, mask, temperature)
    traces = conditioned_traces(model, frames, mask, values, temperature)
    expected = oracle.batch_densities(model, frames, mask, values, temperature)
    for trace, rows in zip(traces, expected, strict=True):
        sums = [
            sum(value.sum() for value in log_probs(trace).values()),
            sum(value for row in rows for value in row.values()),
        ]
        parameters = dict(model.named_parameters())
        actual, wanted = (torch.autograd.grad(total, parameters.values(), allow_unused=True) for total in sums)
        for name, one, other in zip(parameters, actual, wanted, strict=True):
            zero = torch.zeros_like(parameters[name])
            torch.testing.assert_close(
                zero if one is None else one,
                zero if other is None else other,
                rtol=1e-8,  # double precision, gradients up to hundreds
                atol=1e-8,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def through_boundaries(trace: poutine.Trace, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients [B] of z's log densities with respect to every boundary's site value."""
    total = sum(value.sum() for name, value in log_probs(trace).items() if name.startswith("z_"))
    inputs = {name: value for name, value in values.items() if name.startswith("m_")}
    found = torch.autograd.grad(total, inputs.values(), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(inputs.items(), found, strict=True)
    }


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("share", [0.25, 1.0, torch.tensor(0.25, dtype=torch.float64)])
def test_a_boundary_s_gradient_is_the_density_that_it_switches(
    share: float | Tensor, posterior: str, context: int
) -> None:
    """d/dm_t of `hard(m_t) · log p(z_{t+1})` is `σ'(m_t) · log p(z_{t+1})`, whether z_{t+1} is copied or not."""
    temperature = 0.5
    config = config_of(boundary_posterior=posterior, context=context, hidden=4, max_segments=3, max_length=3)
    model = oracle.random_model(config)
    frames = random_frames(config, 4, 6)
    mask = torch.ones(4, context + 6, dtype=torch.bool)
    mask[0, context + 2] = mask[1, -1] = False
    values = draw(model, frames, mask, temperature)
    values = {name: value.requires_grad_(name.startswith("m_")) for name, value in values.items()}
    without = conditioned_traces(model, frames, mask, values, temperature)
    traces = conditioned_traces(model, frames, mask, values, temperature, switch_gradient=share)
    expected = oracle.batch_densities(model, frames, mask, values, temperature, copied=True)
    sizes: list[float] = []
    for before, trace, rows in zip(without, traces, expected, strict=True):
        for name, value in log_probs(trace).items():
            assert torch.equal(value, log_probs(before)[name]), name
        plain, found = through_boundaries(before, values), through_boundaries(trace, values)
        for t in range(5):
            soft = torch.sigmoid(values[f"m_{t}"].detach())
            # A z past the sequence's end is absent, whatever the boundary before it.
            switched = torch.stack([row.get(f"z_{t + 1}", torch.zeros(()).double()).detach() for row in rows])
            wanted = float(share) * soft * (1 - soft) * switched
            sizes.append(wanted.abs().max().item())
            torch.testing.assert_close(found[f"m_{t}"] - plain[f"m_{t}"], wanted, rtol=0, atol=TOLERANCE)
    assert max(sizes) > 0.01, "gradients too small to tell anything"


@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("form", ["frames", "entries", "weights"])
def test_convolutional_networks(form: str, likelihood: str, context: int) -> None:
    likelihood = "normal" if form == "weights" else likelihood
    config = config_of(
        frame_shape=(8, 16, 2),
        networks="conv",
        likelihood=likelihood,
        context=context,
        max_segments=2,
        max_length=3,
        entry_flags=form != "frames",
    )
    model = oracle.random_model(config)
    frames = random_frames(config, 2, 4)
    mask = torch.ones(2, context + 4, dtype=torch.bool)
    mask[0, context + 1] = mask[1, -1] = False
    if form != "frames":
        mask = mask[..., None, None, None] & (torch.rand(frames.shape) < 0.7)
        mask = mask if form == "entries" else mask * (0.1 + torch.rand(mask.shape, dtype=torch.float64))
    values = draw(model, frames, mask, 0.0)
    model_trace, guide_trace = conditioned_traces(model, frames, mask, values, 0.0)
    p, q = oracle.batch_densities(model, frames, mask, values, 0.0)
    assert_agree(log_probs(model_trace), p)
    assert_agree(log_probs(guide_trace), q)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("min_length", [1, 2])
def test_a_padded_sequence_has_the_density_it_has_alone(
    min_length: int, posterior: str, context: int, temperature: float
) -> None:
    limits = {"max_segments": 3, "max_length": 2, "min_length": min_length}
    config = config_of(boundary_posterior=posterior, context=context, **limits)
    model = oracle.random_model(config)
    lengths = [7, 4, 1]
    frames = random_frames(config, 3, 7)
    mask = torch.arange(context + 7) < torch.tensor(lengths).unsqueeze(1) + context
    mask[1, context + 1] = False
    values = draw(model, frames, mask, temperature)
    padded = [log_probs(trace) for trace in conditioned_traces(model, frames, mask, values, temperature)]
    for row, length in enumerate(lengths):
        end = context + length
        own = {name: value[row : row + 1] for name, value in values.items() if name in expected_sites(length)}
        alone = conditioned_traces(model, frames[row : row + 1, :end], mask[row : row + 1, :end], own, temperature)
        for together, trace in zip(padded, alone, strict=True):
            for name, value in together.items():
                wanted = log_probs(trace).get(name, torch.zeros(1, dtype=torch.float64))
                torch.testing.assert_close(value[row : row + 1], wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 7), torch.bool), ((2, 7, 2), torch.bool), ((2, 7, 2), torch.uint8), ((2, 7, 2), None)]
)
def test_a_mask_of_ones_is_no_mask(shape: tuple[int, ...], dtype: torch.dtype | None, told: bool) -> None:
    """Nor are flags or weights of 1 for all entries."""
    config = config_of(context=2, likelihood="normal", entry_flags=told)
    model = oracle.random_model(config)
    frames = random_frames(config, 2, 5)
    values = draw(model, frames, None, 0.5)
    for one, other in zip(
        conditioned_traces(model, frames, None, values, 0.5),
        conditioned_traces(model, frames, torch.ones(shape, dtype=dtype), values, 0.5),
        strict=True,
    ):
        for name, value in log_probs(one).items():
            torch.testing.assert_close(value, log_probs(other)[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("posterior", ["conditioned", "limited"])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("max_segments", "max_length", "min_length", "window"),
    [
        (2, 3, 1, None), (None, 2, 1, None), (1, None, 1, None), (2, 2, 1, 4), (3, 1, 1, 5),
        (None, None, 2, None), (3, 3, 2, 5), (2, 2, 2, 4),
    ],
)  # fmt: skip
def test_forced_boundaries_obey_and_cost_nothing(
    posterior: str,
    temperature: float,
    max_segments: int | None,
    max_length: int | None,
    min_length: int,
    window: int | None,
) -> None:
    limits = {"max_segments": max_segments, "max_length": max_length, "min_length": min_length, "window": window}
    config = config_of(boundary_posterior=posterior, **limits)
    model = oracle.random_model(config)
    frames = random_frames(config, 20, 7)
    lengths = torch.arange(20) % 7 + 1
    mask = torch.arange(7) < lengths.unsqueeze(1)
    values = draw(model, frames, mask, temperature)
    model_trace, guide_trace = conditioned_traces(model, frames, mask, values, temperature)
    count = 0
    for row, length in enumerate(lengths.tolist()):
        m = oracle.of_sequence(values, "m", row)[: length - 1]
        path = [oracle.is_boundary(value, temperature) for value in m]
        assert oracle.allowed(config, path)
        for t, verdict in enumerate(oracle.verdicts(config, path)):
            if verdict is not None:
                cost = guide_trace.nodes[f"m_{t}"]["log_prob"][row] - model_trace.nodes[f"m_{t}"]["log_prob"][row]
                assert cost == 0
                count += 1
    assert count > 0


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize(
    ("max_segments", "max_length", "min_length", "window"),
    [
        (2, 3, 1, None), (None, 2, 1, None), (1, None, 1, None), (2, 2, 1, 4),
        (None, None, 2, None), (None, 3, 2, None), (2, 3, 3, 4), (3, None, 2, 4),
    ],
)  # fmt: skip
def test_draws_obey_the_limits_exactly(
    max_segments: int | None, max_length: int | None, min_length: int, window: int | None, temperature: float
) -> None:
    """Twenty thousand forced boundaries, of which twenty would stray if ε were drawn as it is scored."""
    size, length = 5_000, 6
    limits = {"max_segments": max_segments, "max_length": max_length, "min_length": min_length, "window": window}
    runs = {}
    for posterior in ("conditioned", "limited"):
        config = config_of(boundary_posterior=posterior, hidden=4, **limits)
        model = oracle.random_model(config)
        with torch.no_grad():
            frames = random_frames(config, 1, length).expand(size, -1, -1)
            runs[posterior] = poutine.trace(model.guide).get_trace(frames, temperature=temperature)
            runs["prior"] = poutine.trace(model.model).get_trace(size=size, horizon=length, temperature=temperature)
    for name, trace in runs.items():
        values = torch.stack([trace.nodes[f"m_{t}"]["value"] for t in range(length - 1)], -1)
        distinct = (values > 0).unique(dim=0).tolist()
        assert all(oracle.allowed(config, path) for path in distinct), name


@pytest.mark.parametrize("limits", [(None, None), (7, 7), (None, 7), (7, None)])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_all_posteriors_are_one_where_no_limit_binds(limits: tuple[int | None, int | None], temperature: float) -> None:
    config = config_of(max_segments=limits[0], max_length=limits[1])
    frames = random_frames(config, 3, 7)
    path = torch.rand(3, 6) < 0.5
    traces = []
    for posterior in POSTERIORS:
        model = oracle.random_model(dataclasses.replace(config, boundary_posterior=posterior))
        if not traces:
            values = draw(model, frames, None, temperature, path)
        traces.append(log_probs(conditioned_traces(model, frames, None, values, temperature)[1]))
    for trace in traces[1:]:
        for name, value in trace.items():
            torch.testing.assert_close(value, traces[0][name], rtol=0, atol=TOLERANCE)


def test_segments_are_limited_inside_the_window_alone() -> None:
    """N_max = 2, window of 4 frames: boundaries after frames 0, 1 and 2 act inside it, that after frame 3 does not."""
    config = config_of(max_segments=2, max_length=None, window=4, boundary_posterior="factorised")
    model = oracle.random_model(config)
    frames = random_frames(config, 2, 7)
    path = torch.ones(2, 6, dtype=torch.bool)
    path[1, 1:] = False
    values = draw(model, frames, None, 0.0, path)
    model_trace, _ = conditioned_traces(model, frames, None, values, 0.0)
    scores = [model_trace.nodes[f"m_{t}"]["log_prob"] for t in range(6)]
    for t in (1, 2):
        assert scores[t].tolist() == pytest.approx([math.log(1e-3), math.log(1 - 1e-3)])
    rollout = model_trace.nodes["_RETURN"]["value"]
    for t in (0, 3, 4, 5):
        features = [rollout.observation[t].belief, rollout.observation[t].latent]
        logit = model.emission.features(*features)[1]
        free = torch.nn.functional.logsigmoid(torch.where(path[:, t], logit, -logit))
        torch.testing.assert_close(scores[t], free)


@pytest.mark.parametrize("jumpy", [False, True])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("context", "given_frames"), [(0, 0), (0, 3), (2, 0), (2, 3)])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("min_length", [1, 2])
def test_a_horizon_is_scored_like_given_frames(
    min_length: int, temperature: float, context: int, given_frames: int, window: int | None, jumpy: bool
) -> None:
    limits = {"max_segments": 2, "max_length": 1 + min_length, "min_length": min_length, "window": window}
    config = config_of(context=context, boundary_posterior="limited", **limits)
    model = oracle.random_model(config)
    horizon, size = 4, 3
    length = given_frames + horizon
    frames = random_frames(config, size, given_frames) if context + given_frames else None
    how = {"horizon": horizon, "size": size, "temperature": temperature, "jumpy": jumpy}
    with torch.no_grad():
        guide_trace = poutine.trace(model.guide).get_trace(frames, **how)
        trace = poutine.trace(poutine.replay(model.model, trace=guide_trace)).get_trace(frames, **how)
    trace.compute_log_prob()
    values = oracle.site_values(trace)
    jumps = range(max(0, given_frames - 1), length - 1) if jumpy else range(0)
    assert set(values) == expected_sites(length) - {f"m_{t}" for t in jumps}
    if not jumpy:
        m = [oracle.of_sequence(values, "m", row) for row in range(size)]
        paths = [[oracle.is_boundary(value, temperature) for value in row] for row in m]
        assert all(oracle.allowed(config, path) for path in paths)

    future = trace.nodes["x_future"]["value"]
    assert future.shape == (size, horizon, *config.frame_shape)
    together = future if frames is None else torch.cat([frames, future], 1)
    complete = values | {f"m_{t}": torch.ones(size, dtype=torch.float64) for t in jumps}
    p, _ = oracle.batch_densities(model, together, None, complete, temperature)
    actual = log_probs(trace)
    actual["x"] = actual.get("x", 0) + actual.pop("x_future")
    for row in p:
        for t in jumps:
            row.pop(f"m_{t}")
    assert_agree(actual, p)
