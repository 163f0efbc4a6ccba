"""The bounds against log p(x), estimated by sampling the prior, and an evaluation's scores against hand sums."""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import oracle
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_hrssm import HRSSM, HRSSMConfig
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference import bounds, memory
from pyro_hrssm.inference.bounds import LogWeights, forecast_log_likelihood, log_likelihood, log_weights
from pyro_hrssm.inference.evaluation import evaluate

POSTERIORS = ("conditioned", "factorised", "limited")
TERMS = ("emission", "z", "s", "m")


class Estimate(NamedTuple):
    """A Monte Carlo mean per sequence, [B] each."""

    mean: Tensor
    error: Tensor
    """Standard error of the mean."""


def config_of(**fields: Any) -> HRSSMConfig:
    sizes = {"frame_shape": (1,), "hidden": 8, "abstract_size": 1, "observation_size": 1}
    kinds = {"networks": "mlp", "likelihood": "bernoulli", "max_segments": 2, "max_length": 2}
    return HRSSMConfig(**(sizes | kinds | {"min_scale": 0.3} | fields))


def tiny_model(config: HRSSMConfig, seed: int = 1) -> HRSSM:
    """A random model with a wide q: the weights have light tails, so that their standard errors are reliable."""
    model = oracle.random_model(config, seed, spread=0.3)
    with torch.no_grad():
        for head in (model.posterior.abstract, model.posterior.observation):
            _, raw_scale = head.layers[2].bias.chunk(2)
            raw_scale += 0.5
    return model


def log_of(mean: Tensor, error: Tensor) -> Estimate:
    """The logarithm of a positive mean, to first order in its error."""
    return Estimate(mean.log(), error / mean)


def mean_of(samples: Tensor) -> Estimate:
    """Over the first axis."""
    return Estimate(samples.mean(0), samples.std(0) / math.sqrt(len(samples)))


@torch.no_grad()
def evidence(model: HRSSM, frames: Tensor, mask: Tensor | None, count: int, *, doubt: bool) -> Estimate:
    """log p(x) as a sum over all paths of boundaries, with states drawn `count` times from the prior along each path.

    With `doubt`, a path against the limits has the probability ε of its score; without it, such a path has probability
    0 and a forced boundary probability 1, as in generation.
    """
    config, size = model.config, len(frames)
    total, variance = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    many, many_mask = frames.repeat(count, 1, 1), None if mask is None else mask.repeat(count, 1)
    acts = torch.ones(many.shape[:2], dtype=torch.bool) if many_mask is None else many_mask
    acts = acts.flip(1).cummax(1).values.flip(1)[:, config.context + 1 :]
    for path in oracle.paths(frames.shape[1] - config.context - 1):
        verdicts = oracle.verdicts(config, path)
        data = {f"m_{t}": torch.full((size * count,), float(m), dtype=torch.float64) for t, m in enumerate(path)}
        program = poutine.condition(model.model, data=data)
        trace = poutine.trace(program).get_trace(many, many_mask, temperature=0.0)
        trace.compute_log_prob()
        weights = trace.nodes["x"]["log_prob"].exp()
        for t, m in enumerate(path):
            chance = trace.nodes[f"m_{t}"]["log_prob"].exp()
            if verdicts[t] is not None and not doubt:
                chance = torch.full_like(chance, float(m == verdicts[t]))
            # A boundary at or past the end is no event, so only one of its two paths counts.
            weights = weights * torch.where(acts[:, t], chance, float(not m))
        estimate = mean_of(weights.view(count, size))
        total, variance = total + estimate.mean, variance + estimate.error**2
    return log_of(total, variance.sqrt())


@torch.no_grad()
def simulated_evidence(model: HRSSM, frames: Tensor, count: int) -> Estimate:
    """log p(x) from plain simulations of the prior, boundaries and all, scored by their emission."""
    rollout = model.model(size=count, horizon=frames.shape[1], temperature=0.0)
    return log_of(*mean_of(torch.stack([rollout.future.log_prob(x.expand(count, -1, -1)).exp() for x in frames], 1)))


def bound(weights: Tensor, particles: int) -> Estimate:
    """The importance-weighted bound from weights [K, B], in groups of `particles`."""
    groups = weights.view(-1, particles, weights.shape[1])
    return mean_of(torch.logsumexp(groups, 1) - math.log(particles))


def assert_at_most(lower: Estimate, upper: Estimate) -> None:
    slack = 5 * torch.hypot(lower.error, upper.error)  # 5 standard errors
    assert (lower.mean <= upper.mean + slack).all(), f"{lower} exceeds {upper}"


def assert_equal(one: Estimate, other: Estimate) -> None:
    assert_at_most(one, other)
    assert_at_most(other, one)


def tiny_frames(model: HRSSM, length: int) -> Tensor:
    frames = torch.rand(2, model.config.context + length, *model.config.frame_shape, dtype=torch.float64)
    return frames.round() if model.config.likelihood == "bernoulli" else frames


CASES = {
    "plain": ({}, 3, None),
    "four frames, window": ({"window": 3}, 4, None),
    "two normal pixels": ({"frame_shape": (2,), "likelihood": "normal", "noise_scale": 1.0}, 3, None),
    "context": ({"context": 2}, 3, None),
    "masks": ({"max_segments": 3}, 4, [[1, 0, 1, 1], [1, 1, 1, 0]]),
}


@pytest.mark.parametrize(("fields", "length", "flags"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_bounds_tighten_to_the_evidence(
    posterior: str, fields: dict[str, Any], length: int, flags: list[list[int]] | None
) -> None:
    """ELBO ≤ IWAE-10 ≤ IWAE-1000 ≈ log p(x), and the mean weight is p(x)."""
    model = tiny_model(config_of(boundary_posterior=posterior, **fields))
    frames = tiny_frames(model, length)
    mask = None if flags is None else torch.tensor(flags, dtype=torch.bool)
    # Independent draws for each bound, so that their order is not Jensen's inequality on one sample.
    elbo = bound(log_weights(model, frames, mask, 2_000).weights, 1)
    iwae_10 = bound(log_weights(model, frames, mask, 4_000).weights, 10)
    weights = log_weights(model, frames, mask, 20_000).weights
    iwae_1000 = bound(weights, 1_000)
    # A factorised guide can violate the limits, and is then scored with ε; the other guides never do.
    truth = evidence(model, frames, mask, 4_000, doubt=posterior == "factorised")

    assert_at_most(elbo, iwae_10)
    assert_at_most(iwae_10, iwae_1000)
    assert_at_most(iwae_1000, truth)
    assert (elbo.mean < truth.mean - 0.01).all(), "too easy to tell a bound from the evidence"
    assert_equal(log_of(*mean_of(weights.exp())), truth)
    # K particles fall short of log p(x) by half the squared relative error of their mean, to first order.
    spread = weights.exp().std(0) / weights.exp().mean(0)
    gap = spread**2 / 2_000
    assert_at_most(truth, Estimate(iwae_1000.mean + 2 * gap, iwae_1000.error))


def test_simulations_know_the_same_evidence() -> None:
    """The prior's own simulations obey the limits exactly: no ε."""
    model = tiny_model(config_of())
    frames = tiny_frames(model, 4)
    assert_equal(simulated_evidence(model, frames, 40_000), evidence(model, frames, None, 4_000, doubt=False))


def test_evidence_is_a_distribution() -> None:
    """Over all binary sequences, p(x) sums to 1, limits and masks and all."""
    model = tiny_model(config_of(), seed=2)
    frames = torch.tensor(list(oracle.paths(3)), dtype=torch.float64).unsqueeze(-1)
    for doubt in (False, True):
        estimate = evidence(model, frames, None, 2_000, doubt=doubt)
        # The sequences share no draws; 5 standard errors.
        error = (estimate.error * estimate.mean.exp()).square().sum().sqrt().item()
        assert estimate.mean.exp().sum().item() == pytest.approx(1, abs=5 * error)


# Scores


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[HRSSM], list[dict[str, Tensor]]]:
    """Record the site values of every run of a model's guide in a list."""

    def watch(model: HRSSM) -> list[dict[str, Tensor]]:
        runs: list[dict[str, Tensor]] = []
        guide = model.guide

        def watched(*args: Any, **kwargs: Any) -> Any:
            assert kwargs.get("temperature") == 0, "a bound needs hard boundaries"
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
            runs.append(oracle.site_values(trace))
            return trace.nodes["_RETURN"]["value"]

        monkeypatch.setattr(model, "guide", watched)
        return runs

    return watch


def hand_weights(
    model: HRSSM, frames: Tensor, mask: Tensor | None, particles: int, values: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Terms [K, B] and counts of boundaries and of those that l_max forced, from a guide's draws and the oracle."""
    size = len(frames)
    folded = frames.repeat(particles, 1, 1)
    folded_mask = None if mask is None else mask.repeat(particles, 1)
    rows_p, rows_q = oracle.batch_densities(model, folded, folded_mask, values, 0.0)
    terms = {name: torch.zeros(particles * size, dtype=torch.float64) for name in TERMS}
    boundaries = torch.zeros(particles * size, dtype=torch.float64)
    forced = torch.zeros(particles * size, dtype=torch.float64)
    for row, (p, q) in enumerate(zip(rows_p, rows_q, strict=True)):
        terms["emission"][row] = -p["x"]
        for name in q:
            terms[name[0]][row] += (q[name] - p[name]).detach()
        observed = [True] * frames.shape[1] if mask is None else mask[row % size].tolist()
        count = max(0, oracle.modelled_length(model, observed) - 1)
        path = [oracle.is_boundary(value, 0.0) for value in oracle.of_sequence(values, "m", row)[:count]]
        boundaries[row] = sum(path)
        verdicts = oracle.verdicts(model.config, path)
        forced[row] = sum(m and verdict is True for m, verdict in zip(path, verdicts, strict=True))
    return {k: v.view(particles, size) for k, v in terms.items()}, boundaries.view(-1, size), forced.view(-1, size)


def batches_of(context: int) -> list[tuple[Tensor, Tensor | None]]:
    def frames(size: int, length: int) -> Tensor:
        return torch.rand(size, context + length, 2, dtype=torch.float64)

    mask = torch.ones(3, context + 5, dtype=torch.bool)
    mask[0, context + 2] = mask[1, context + 3 :] = mask[2, context + 1 :] = False
    return [(frames(2, 5), None), (frames(3, 5), mask)]


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_log_weights_are_the_oracle_s(posterior: str, context: int, recorded: Callable[..., Any]) -> None:
    config = config_of(frame_shape=(2,), boundary_posterior=posterior, context=context, max_segments=3, max_length=2)
    model = oracle.random_model(config, seed=4)
    for frames, mask in batches_of(context):
        runs = recorded(model)
        drawn: LogWeights = log_weights(model, frames, mask, 3)
        (values,) = runs
        terms, boundaries, forced = hand_weights(model, frames, mask, 3, values)
        assert drawn.terms.keys() == terms.keys()
        for name, value in terms.items():
            torch.testing.assert_close(drawn.terms[name], value, rtol=0, atol=1e-8)  # double precision
        torch.testing.assert_close(drawn.weights, -sum(terms.values()), rtol=0, atol=1e-8)
        assert torch.equal(drawn.boundaries, boundaries)
        assert torch.equal(drawn.forced, forced)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_an_evaluation_adds_up(posterior: str, context: int, recorded: Callable[..., Any]) -> None:
    config = config_of(frame_shape=(2,), boundary_posterior=posterior, context=context, max_segments=3, max_length=2)
    model = oracle.random_model(config, seed=4)
    batches, particles = batches_of(context), 4
    runs = recorded(model)
    scores = json.loads(json.dumps(evaluate(model, batches, particles).to_dict()))

    nats, iwae, terms = [], [], dict.fromkeys(TERMS, 0.0)
    boundaries = forced = frames_scored = chances = 0.0
    for (frames, mask), values in zip(batches, runs, strict=True):
        parts, drawn, by_length = hand_weights(model, frames, mask, particles, values)
        weights = -sum(parts.values())
        for row in range(len(frames)):
            nats.append(-weights[:, row].mean().item())
            iwae.append(-(torch.logsumexp(weights[:, row], 0) - math.log(particles)).item())
            for name in TERMS:
                terms[name] += parts[name][:, row].mean().item()
            boundaries += drawn[:, row].mean().item()
            forced += by_length[:, row].mean().item()
            length = oracle.modelled_length(model, [True] * frames.shape[1] if mask is None else mask[row].tolist())
            frames_scored += length
            chances += length - 1

    count = len(nats)
    mean = sum(nats) / count
    variance = sum((value - mean) ** 2 for value in nats) / (count - 1)
    expected = {
        "nats_per_sequence": mean,
        "nats_standard_error": math.sqrt(variance / count),
        "iwae_nats_per_sequence": sum(iwae) / count,
        "particles": particles,
        "nats_per_frame": sum(nats) / frames_scored,
        "boundary_rate": boundaries / chances,
        "forced_rate": forced / boundaries,
        "mean_segment_length": frames_scored / (boundaries + count),
        "sequences": count,
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=1e-8), name
    assert scores["terms"] == pytest.approx({name: value / count for name, value in terms.items()}, rel=1e-8, abs=1e-8)
    assert sum(scores["terms"].values()) == pytest.approx(scores["nats_per_sequence"])
    assert forced > 0, "no boundary was forced: this says nothing of their rate"


def test_an_evaluation_without_boundaries() -> None:
    """One frame per sequence: no boundary to count, one segment of one frame."""
    model = oracle.random_model(config_of(frame_shape=(2,)))
    scores = evaluate(model, [(torch.rand(3, 1, 2, dtype=torch.float64), None)], 2)
    assert (scores.boundary_rate, scores.forced_rate, scores.mean_segment_length) == (0, 0, 1)
    assert scores.terms["m"] == 0
    assert scores.nats_per_frame == pytest.approx(scores.nats_per_sequence)


@pytest.mark.parametrize("limit", ["ROWS_AT_ONCE", "NUMBERS_AT_ONCE", "ENTRIES_IN_CACHE"])
def test_particles_in_parts_are_all_there(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Particles are drawn in parts that fit memory and cache; any parts give K weights of every sequence."""
    model = oracle.random_model(config_of(frame_shape=(2,)))
    frames = torch.rand(3, 3, 2, dtype=torch.float64)
    # 7 sequences: two draws of three sequences in one pass.
    numbers = memory.numbers_per_row(model.config, 3)
    each = {"ROWS_AT_ONCE": 1, "NUMBERS_AT_ONCE": numbers, "ENTRIES_IN_CACHE": model.config.hidden}
    room = f"pyro_hrssm.inference.{'bounds' if limit == 'ENTRIES_IN_CACHE' else 'memory'}.{limit}"
    monkeypatch.setattr(room, 7 * each[limit])
    passes, one_draw_each = [], bounds._one_draw_each
    monkeypatch.setattr(
        bounds,
        "_one_draw_each",
        lambda model, frames, mask: passes.append(len(frames)) or one_draw_each(model, frames, mask),
    )
    drawn = log_weights(model, frames, None, 5)
    assert passes == [6, 6, 3]
    assert drawn.weights.shape == drawn.boundaries.shape == drawn.forced.shape == (5, 3)
    assert len(drawn.weights.unique()) == 15
    # A pass may hold fewer rows than there are sequences.
    passes.clear()
    monkeypatch.setattr(room, 2 * each[limit])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    drawn = log_weights(model, frames, mask, 2)
    assert passes == [2, 2, 1 * 2]
    assert drawn.weights.shape == (2, 3)
    assert drawn.boundaries[:, 1].max() <= 1, "the second sequence has one boundary that acts"


@torch.no_grad()
def weighted_forecast(model: HRSSM, frames: Tensor, given: int, count: int) -> Estimate:
    """log p(future | past), simulated from the prior after weighted states of the past: `E[w p(future | ·)] / E[w]`."""
    size = len(frames)
    many = frames.repeat(count, 1, 1)
    past = many[:, :given]
    guide = poutine.trace(model.guide).get_trace(past, temperature=0.0)
    replayed = poutine.replay(poutine.block(model.model, hide=["x_future"]), trace=guide)
    trace = poutine.trace(replayed).get_trace(past, horizon=frames.shape[1] - given, temperature=0.0)
    trace.compute_log_prob()
    guide.compute_log_prob()
    inferred = [name for name in guide.stochastic_nodes if not name.endswith("sequences")]
    log_w = trace.nodes["x"]["log_prob"] + sum(
        trace.nodes[name]["log_prob"] - guide.nodes[name]["log_prob"] for name in inferred
    )
    future = trace.nodes["_RETURN"]["value"].future.base_dist.log_prob(many[:, given:])
    weights = log_w.view(count, size).exp()
    hits = weights * future.sum(1).view(count, size).exp()
    ratio = hits.mean(0) / weights.mean(0)
    # Delta method for a ratio of means.
    error = ((hits - ratio * weights) / weights.mean(0)).std(0) / math.sqrt(count)
    return log_of(ratio, error)


@pytest.mark.parametrize(
    "fields",
    [{"max_segments": None}, {}, {"context": 1, "max_length": 3}],
    ids=["no count", "both limits", "context"],
)
def test_forecast_likelihood_is_that_of_futures_rolled_on_from_weighted_pasts(fields: dict[str, Any]) -> None:
    model = tiny_model(config_of(**fields))
    frames = tiny_frames(model, 4)
    given = model.config.context + 2
    batches = torch.stack([forecast_log_likelihood(model, frames, given, particles=2000) for _ in range(16)])
    assert_equal(mean_of(batches), weighted_forecast(model, frames, given, 50_000))


def test_forecast_likelihood_adds_up_and_reads_the_mask() -> None:
    model = tiny_model(config_of())
    frames = tiny_frames(model, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    torch.manual_seed(3)
    before = log_likelihood(model, frames[:, :2], mask[:, :2], 50)
    whole = log_likelihood(model, frames, mask, 50)
    torch.manual_seed(3)
    torch.testing.assert_close(forecast_log_likelihood(model, frames, 2, mask, 50), whole - before)
    # The second sequence has no frame to forecast: both estimates are of the same two frames.
    many = torch.stack([forecast_log_likelihood(model, frames, 2, mask, 2000)[1] for _ in range(20)])
    assert abs(many.mean()) < 5 * many.std() / math.sqrt(20)  # 5 standard errors


@pytest.mark.parametrize("given", [0, 1, 5, 9])
def test_forecast_likelihood_needs_something_given_and_something_left(given: int) -> None:
    model = tiny_model(config_of(context=1))
    with pytest.raises(InputError, match="given must lie between 2 and 4"):
        forecast_log_likelihood(model, tiny_frames(model, 4), given)
