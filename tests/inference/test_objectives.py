"""The score-function objective: its value is the true bound, its gradient that of the enumerated one."""

import json
import math
from pathlib import Path
from typing import Any

import oracle
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_hrssm import HRSSM, HRSSMConfig, LeaveOneOut, TrainingConfig, checkpoint
from pyro_hrssm.cli import parse
from pyro_hrssm.data import Sequences
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference import objectives
from pyro_hrssm.inference.bounds import log_weights
from pyro_hrssm.inference.objectives import LeaveOneOutELBO, _log_weights
from pyro_hrssm.model.decoding import Decoder
from pyro_hrssm.model.given import acting
from pyro_hrssm.model.limits import SegmentLimits
from pyro_hrssm.model.rssm import RSSM
from pyro_hrssm.run.training import Trainer

POSTERIORS = ("conditioned", "factorised", "limited")


def config_of(**fields: Any) -> HRSSMConfig:
    sizes = {"frame_shape": (2,), "hidden": 8, "abstract_size": 1, "observation_size": 1, "min_scale": 0.3}
    return HRSSMConfig(**(sizes | {"networks": "mlp", "max_segments": 3, "max_length": 3} | fields))


def gradients(loss: Tensor, model: HRSSM) -> Tensor:
    """The gradient of the parameters that only q(M | X) has, in one vector."""
    parameters = [*model.posterior.boundary.parameters(), *model.posterior.boundary_logit.parameters()]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])


def enumerated_loss(
    model: HRSSM, frames: Tensor, mask: Tensor | None, count: int, learned_prior: float = 1.0, price: float = 0.0
) -> Tensor:
    """-Σ_M q(M | X) E[log w | M], the sum over all paths written out, states drawn `count` times along each.

    In log w, `learned_prior` weighs log p(m_t) where a boundary is free, and its rest weighs a price per boundary.
    """
    paths = [path for path in oracle.paths(frames.shape[1] - 1) for _ in range(count * len(frames))]
    copies = len(paths) // len(frames)
    many, many_mask = frames.repeat(copies, 1, 1), None if mask is None else mask.repeat(copies, 1)
    acts = acting(0, many, many_mask)
    taken = torch.tensor(paths)
    data = {f"m_{t}": m.double() for t, m in enumerate(taken.unbind(1))}
    guide = poutine.trace(poutine.condition(model.guide, data)).get_trace(many, many_mask, temperature=0.0)
    replayed = poutine.replay(poutine.condition(model.model, data), trace=guide)
    trace = poutine.trace(replayed).get_trace(many, many_mask, temperature=0.0)
    log_q = torch.zeros(len(many), dtype=torch.float64)
    log_w = torch.zeros(len(many), dtype=torch.float64)
    for one, sign in ((trace, 1), (guide, -1)):
        one.compute_log_prob()
        for name, site in one.nodes.items():
            if name[:2] in ("m_", "z_", "s_") or name == "x":
                log_w = log_w + sign * site["log_prob"]
                if one is guide and name[:2] == "m_":
                    log_q = log_q + site["log_prob"]
    for t, prior in enumerate(trace.nodes["_RETURN"]["value"].boundary_priors):
        free = torch.ones(len(many), dtype=torch.bool) if prior.unmasked.forced is None else ~prior.unmasked.forced
        fixed = trace.nodes[f"m_{t}"]["log_prob"] * free + price * taken[:, t] * acts[:, t]
        log_w = log_w - (1 - learned_prior) * fixed.detach()
    # A path that can never be drawn has no weight, whatever ε its score has.
    free = model.config.boundary_posterior == "factorised"
    ends = zip(paths, acts.sum(1).tolist(), strict=True)
    possible = torch.tensor([free or oracle.allowed(model.config, path[:last]) for path, last in ends])
    # A boundary past the sequence's end is no event: one path alone stands for it.
    stands = (acts | (taken == 0)).all(1)
    return -(log_q.exp() * log_w * stands * possible).sum() / count


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize(("masked", "learned_prior"), [(False, 1.0), (True, 1.0), (True, 0.25)])
def test_gradient_of_the_boundaries_is_that_of_the_enumerated_bound(
    posterior: str, masked: bool, learned_prior: float
) -> None:
    model = oracle.random_model(config_of(boundary_posterior=posterior), seed=3, spread=0.4)
    frames = torch.rand(2, 4, 2, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0]], dtype=torch.bool) if masked else None
    elbo, draws = LeaveOneOutELBO(num_particles=3), []
    elbo.learned_prior, elbo.price = learned_prior, 2.0
    for _ in range(80):
        copies = (frames.repeat(300, 1, 1), None if mask is None else mask.repeat(300, 1))
        draws.append(gradients(elbo.differentiable_loss(model.model, model.guide, *copies) / 300, model))
    estimate, exact = torch.stack(draws), []
    for _ in range(24):  # fewer draws do not determine their spread, whose estimate has heavy tails
        exact.append(gradients(enumerated_loss(model, frames, mask, 300, learned_prior, 2.0), model))
    expected = torch.stack(exact)
    error = torch.hypot(estimate.std(0) / math.sqrt(len(estimate)), expected.std(0) / math.sqrt(len(expected)))
    distance = (estimate.mean(0) - expected.mean(0)).abs()
    assert (distance <= 6 * error + 1e-6).all()  # 6 standard errors, over some hundred entries
    # The test has power: the gradient is far from 0, and the errors are small beside it.
    assert distance.norm() < 0.2 * expected.mean(0).norm()


@pytest.mark.parametrize(("credit", "bias"), [(0.8, 0.1), (0.5, 0.25), (0.0, 0.5)])
def test_judging_boundaries_by_near_frames_has_a_small_bias(credit: float, bias: float) -> None:
    """The gradient of q(M) points where the unbiased one does.

    Measured at T 6, cosine and relative distance: 0.9999 and 0.06 at 0.8, 0.999 and 0.15 at 0.5, 0.994 and 0.29 at 0.
    """
    model = oracle.random_model(config_of(boundary_posterior="factorised"), seed=3, spread=0.4)
    frames = torch.rand(2, 6, 2, dtype=torch.float64).repeat(300, 1, 1)
    whole, near = LeaveOneOutELBO(3), LeaveOneOutELBO(3, credit=credit)

    def gradient(elbo: LeaveOneOutELBO) -> Tensor:
        draws = [gradients(elbo.differentiable_loss(model.model, model.guide, frames) / 300, model) for _ in range(60)]
        return torch.stack(draws).mean(0)

    pyro.set_rng_seed(5)
    expected = gradient(whole)
    pyro.set_rng_seed(5)  # the same draws, so that the difference is the bias and not the noise
    found = gradient(near)
    assert torch.cosine_similarity(found, expected, 0) > 0.98
    assert 0 < (found - expected).norm() < bias * expected.norm()


def distances(frames: int) -> Tensor:
    """[T-1, T] number of frames from each frame to the nearer one of those that a boundary separates, one by one."""
    return torch.tensor([[min(abs(u - t), abs(u - t - 1)) for u in range(frames)] for t in range(frames - 1)])


@pytest.mark.parametrize("at_once", [1, 3, 4, 23, 512])
@pytest.mark.parametrize("credit", [0.0, 0.8, 1.0])
def test_frames_count_by_their_distance_however_many_are_judged_at_once(
    credit: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "JUDGED_AT_ONCE", at_once)
    deviation = torch.randn(23, 4, dtype=torch.float64)
    found = LeaveOneOutELBO(2, credit=credit)._near(deviation)
    expected = credit ** distances(23).double() @ deviation
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)  # sums in another order, in double


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that is made within."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.entries = max([self.entries, *(value.numel() for value in tree_leaves(made) if isinstance(value, Tensor))])
        return made


def test_the_memory_of_judging_grows_as_the_frames() -> None:
    """No host reads a value, as the meta device has none: a CUDA graph and an exported program can hold the sums."""
    sizes = []
    for frames in (4000, 8000):
        with Largest() as made:
            near = LeaveOneOutELBO(2, credit=0.8)._near(torch.randn(frames, 8, device="meta"))
        assert near.shape == (frames - 1, 8)
        sizes.append(made.entries)
    assert sizes == [512**2, 512**2]


@pytest.mark.parametrize(("credit", "grows"), [(0.8, False), (1.0, True)])
def test_near_frames_judge_a_boundary_as_surely_in_long_sequences(credit: float, grows: bool) -> None:
    """A boundary's advantage varies at T 200 as at T 20, but ten times as much and more where all frames judge it."""
    model = oracle.random_model(config_of(max_segments=None, max_length=None), seed=3, spread=0.4)
    variances = []
    for length in (20, 200):
        frames = torch.rand(1, length, 2, dtype=torch.float64).expand(200, -1, -1)
        elbo = LeaveOneOutELBO(2, credit=credit)
        with torch.no_grad():
            traces = elbo._get_trace(model.model, model.guide, (frames, None), {})
            advantage = elbo._advantage(_log_weights(*traces))
        # Boundaries near the ends have fewer frames to either side.
        variances.append(advantage[8:-8].var().item())
    assert (variances[1] > 4 * variances[0]) == grows
    assert grows or variances[1] < 1.5 * variances[0]


def test_value_is_the_bound_whatever_the_temperature() -> None:
    model = oracle.random_model(config_of(), spread=0.4)
    frames = torch.rand(3, 5, 2, dtype=torch.float64)
    pyro.set_rng_seed(2)
    expected = -log_weights(model, frames, particles=4).weights.mean(0).sum().item()
    for temperature in (0.1, 1.0):
        for call in ("loss", "loss_and_grads"):
            pyro.set_rng_seed(2)
            loss = getattr(LeaveOneOutELBO(4), call)(model.model, model.guide, frames, temperature=temperature)
            assert loss == pytest.approx(expected, rel=1e-9)  # double precision


def test_the_weight_of_the_latent_terms_leaves_the_score_whole() -> None:
    """With weight 0.5 the objective is the emission and half of each latent term; q(M)'s score is still its score."""
    model = oracle.random_model(config_of(), spread=0.4)
    frames = torch.rand(3, 5, 2, dtype=torch.float64)
    pyro.set_rng_seed(2)
    drawn = log_weights(model, frames, particles=2)
    latent = sum(drawn.terms[name] for name in ("z", "s", "m"))
    expected = (drawn.terms["emission"] + 0.5 * latent).sum().item() / 2
    pyro.set_rng_seed(2)
    assert LeaveOneOutELBO(2).loss(model.model, model.guide, frames, kl_weight=0.5) == pytest.approx(expected, rel=1e-9)
    pyro.set_rng_seed(2)
    more = 0.5 * drawn.terms["z"] + 0.5 * drawn.terms["m"] + 3.5 * drawn.terms["s"]
    expected += more.sum().item() / 2
    loss = LeaveOneOutELBO(2).loss(model.model, model.guide, frames, state_weight=4.0)
    assert loss == pytest.approx(expected, rel=1e-9)
    halves = []
    for weight in (1.0, 0.5):
        pyro.set_rng_seed(2)
        guide = poutine.trace(model.guide).get_trace(frames, temperature=0.0, kl_weight=weight)
        guide.compute_log_prob()
        halves.append(sum(guide.nodes[f"m_{t}"]["unscaled_log_prob"] for t in range(4)))
    torch.testing.assert_close(*halves)


def test_a_flat_model_has_no_score_and_trains_the_same_way(tmp_path: Path) -> None:
    data = Sequences(torch.rand(16, 5, 2, generator=torch.Generator().manual_seed(1)).numpy())
    config = config_of(model="rssm")
    torch.manual_seed(0)
    model = RSSM(config)
    settings = TrainingConfig(steps=30, batch_size=8, warmup_steps=2, learning_rate=1e-2, elbo="leave_one_out")
    run = Trainer(model, settings, tmp_path, {})
    before = run.score(data, data).nats_per_sequence
    run.fit(data, data)
    assert run.score(data, data).nats_per_sequence < before - 0.1


def test_svi_takes_it_as_any_other_elbo() -> None:
    torch.manual_seed(1)
    model = HRSSM(config_of())
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), LeaveOneOutELBO())
    frames = torch.rand(8, 5, 2)
    losses = [svi.step(frames) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_it_needs_two_draws() -> None:
    with pytest.raises(ValueError, match="at least 2, found 1"):
        LeaveOneOutELBO(1)


def expected_boundaries(model: HRSSM, frames: Tensor, mask: Tensor | None) -> Tensor:
    """Σ_M q(M | X) · its boundaries that act, the sum over all paths written out."""
    total = torch.zeros((), dtype=torch.float64)
    acts = acting(0, frames, mask)
    for path in oracle.paths(frames.shape[1] - 1):
        data = {f"m_{t}": torch.full((len(frames),), float(m), dtype=torch.float64) for t, m in enumerate(path)}
        trace = poutine.trace(poutine.condition(model.guide, data)).get_trace(frames, mask, temperature=0.0)
        trace.compute_log_prob()
        log_q = torch.stack([trace.nodes[name]["log_prob"] for name in data]).sum(0)
        # A boundary past the sequence's end is no event: one path alone stands for it.
        stands = torch.stack([acts[:, t] | (not m) for t, m in enumerate(path)]).all(0)
        total = total + (log_q.exp() * stands * (acts * torch.tensor(path)).sum(1)).sum()
    return total


@pytest.mark.parametrize("masked", [False, True])
def test_a_boundary_costs_its_cost(masked: bool) -> None:
    """On the same draws, the cost changes q(M)'s gradient by the cost times that of the expected boundaries."""
    model = oracle.random_model(config_of(boundary_posterior="factorised"), seed=3, spread=0.4)
    frames = torch.rand(2, 4, 2, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool) if masked else None
    draws = []
    for seed in range(60):
        copies = (frames.repeat(300, 1, 1), None if mask is None else mask.repeat(300, 1))
        pair, losses = [], []
        for cost in (0.0, 5.0):
            pyro.set_rng_seed(seed)
            loss = LeaveOneOutELBO(2, cost).differentiable_loss(model.model, model.guide, *copies) / 300
            pair.append(gradients(loss, model))
            losses.append(loss.item())
        assert losses[0] == losses[1]  # the reported loss is the bound
        draws.append(pair[1] - pair[0])
    estimate = torch.stack(draws)
    expected = 5.0 * gradients(expected_boundaries(model, frames, mask), model)
    error = estimate.std(0) / math.sqrt(len(estimate))
    assert ((estimate.mean(0) - expected).abs() <= 6 * error + 1e-9).all()  # 6 standard errors
    assert (estimate.mean(0) - expected).norm() < 0.2 * expected.norm()


def test_boundaries_stay_as_they_started_until_they_are_to_learn(tmp_path: Path) -> None:
    steered = LeaveOneOut(boundary_warmup_steps=2)
    config = TrainingConfig(elbo=steered, batch_size=8, warmup_steps=1, steps=4, learning_rate=1e-2)
    torch.manual_seed(4)
    trainer = Trainer(HRSSM(config_of()), config, tmp_path, {})
    frames, changes = torch.rand(8, 5, 2), []
    for step in range(4):
        layer, head = trainer.model.posterior.boundary_logit.product, trainer.model.posterior.observation.layers[0]
        before = [layer.weight.detach().clone(), head.weight.detach().clone()]
        trainer.update(frames, None)
        trainer.step = step + 1
        changes.append([not torch.equal(layer.weight, before[0]), not torch.equal(head.weight, before[1])])
    assert changes == [[False, True], [False, True], [True, True], [True, True]]


def test_a_run_without_the_cost_that_it_had_reached_is_refused(tmp_path: Path) -> None:
    frames = torch.rand(8, 5, 2)
    data, settings = Sequences(frames.numpy()), {"batch_size": 8, "warmup_steps": 1, "steps": 2}
    Trainer(HRSSM(config_of()), TrainingConfig(elbo="leave_one_out", **settings), tmp_path, {}).fit(data, data)
    held = TrainingConfig(elbo=LeaveOneOut(boundary_rate=0.2), **settings)
    with pytest.raises(InputError, match="cost that boundaries had reached: boundary_cost must be finite"):
        Trainer(HRSSM(config_of()), held, tmp_path, {}).restore(checkpoint.load(tmp_path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--boundary-rate", "0.2"], "boundary_rate needs elbo leave_one_out, found trace"),
        (["--boundary-rate", "1", "--elbo", "leave_one_out"], "boundary_rate must lie between 0 and 1, found 1.0"),
        (["--boundary-rate", "0.2", "--elbo", "leave_one_out", "--compile"], "boundary_rate needs compile off"),
    ],
)
def test_a_rate_that_cannot_be_held_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(["train", *flags])


def test_a_rate_is_refused_in_python_as_it_is_as_a_flag() -> None:
    with pytest.raises(InputError, match=r"boundary_rate must lie between 0 and 1, found 1\.0"):
        LeaveOneOut(boundary_rate=1.0)
    with pytest.raises(InputError, match=r"boundary_rate needs compile off, found boundary_rate 0\.2 with it"):
        TrainingConfig(elbo=LeaveOneOut(boundary_rate=0.2), compile=True)


def test_a_flat_model_has_no_boundaries_to_hold(tmp_path: Path) -> None:
    for fields in ({"boundary_rate": 0.2}, {"boundary_cost": 1.0}, {"boundary_warmup_steps": 3}):
        settings = TrainingConfig(elbo=LeaveOneOut(**fields))
        with pytest.raises(InputError, match=f"{next(iter(fields))} needs a model with segments, found rssm"):
            Trainer(RSSM(config_of(model="rssm")), settings, tmp_path, {})


def test_only_an_objective_that_draws_hard_boundaries_can_let_them_wait() -> None:
    with pytest.raises(InputError, match="boundary_warmup_steps needs elbo leave_one_out, found trace"):
        parse(["train", "--boundary-warmup-steps", "10"])


@pytest.mark.parametrize("target", [0.1, 0.6])
def test_boundaries_are_held_to_their_rate(tmp_path: Path, target: float) -> None:
    """The rate is held on noise, where segments do not improve the bound."""
    config = TrainingConfig(
        elbo=LeaveOneOut(boundary_rate=target), batch_size=64, warmup_steps=1, steps=400, learning_rate=1e-2,
        evaluate_every=0, log_every=1,
    )  # fmt: skip
    torch.manual_seed(4)
    model = HRSSM(config_of(max_segments=None, max_length=None))
    data = Sequences(torch.rand(256, 8, 2).numpy())
    Trainer(model, config, tmp_path, {}).fit(data, data)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [row["boundary_rate"] for row in rows if 300 < row["step"] <= 400 and "boundary_rate" in row]
    # The drawn rate oscillates around the target.
    assert sum(last) / len(last) == pytest.approx(target, abs=0.08)
    assert len({row["boundary_cost_nats"] for row in rows if "boundary_cost_nats" in row}) > 300


@pytest.mark.parametrize(
    "held",
    [
        {"boundary_warmup_steps": 3},
        {"boundary_rate": 0.3, "boundary_cost": 2.0},
        {"exploration": 0.9, "boundary_price": 0.5, "prior_from": 0.5},
    ],
)
def test_a_run_stopped_on_the_way_goes_on(tmp_path: Path, held: dict[str, Any]) -> None:
    config = TrainingConfig(elbo=LeaveOneOut(**held), batch_size=8, warmup_steps=1, steps=5)
    frames = torch.rand(8, 5, 2)

    def trainer(run: Path) -> Trainer:
        torch.manual_seed(4)
        return Trainer(HRSSM(config_of(window=5)), config, run, {})

    data = Sequences(frames.numpy())
    whole = trainer(tmp_path / "whole")
    whole.fit(data, data)
    trainer(tmp_path / "parts").fit(data, data, until=2)
    resumed = trainer(tmp_path / "parts")
    resumed.restore(checkpoint.load(tmp_path / "parts" / "checkpoints" / "00000002.safetensors"))
    resumed.fit(data, data)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("posterior", ["factorised", "conditioned"])
def test_a_guide_with_given_odds_draws_boundaries_at_them(posterior: str) -> None:
    model = oracle.random_model(config_of(boundary_posterior=posterior, max_segments=None, max_length=3), spread=0.4)
    frames = torch.rand(4000, 9, 2, dtype=torch.float64)
    odds = torch.tensor([-1.0, math.nan], dtype=torch.float64).repeat(2000)
    with torch.no_grad():
        drawn = poutine.trace(model.guide).get_trace(frames, temperature=0.0, boundary_odds=odds)
        plain = model.decode_boundaries(frames).probabilities
    boundaries = drawn.nodes["_RETURN"]["value"].boundaries.T
    limits = SegmentLimits(None, None if posterior == "factorised" else 3)
    given = Decoder(torch.full((8, 1), -1.0, dtype=torch.float64), limits, None).decode().probabilities
    # 5 standard errors of a frequency among 2,000 sequences.
    assert (boundaries[::2].mean(0) - given[0]).abs().max() < 5 * 0.5 / math.sqrt(2000)
    assert (boundaries[1::2].mean(0) - plain[1::2].mean(0)).abs().max() < 5 * 0.5 / math.sqrt(2000)


def test_exploring_sequences_do_not_teach_q_and_share_their_odds_between_draws() -> None:
    model = oracle.random_model(config_of(max_segments=None, max_length=None), spread=0.4)
    frames = torch.rand(500, 12, 2, dtype=torch.float64)
    elbo = LeaveOneOutELBO(2)
    elbo.exploration = 1.0
    loss = elbo.differentiable_loss(model.model, model.guide, frames)
    assert math.isfinite(loss.item())
    assert gradients(loss, model).abs().max() == 0
    counts = elbo._traces[1].nodes["_RETURN"]["value"].boundaries.sum(0).view(2, 500)
    # Rates lie between one boundary in 12 frames and 0.7, most of them far from their mean.
    assert torch.corrcoef(counts)[0, 1] > 0.5
    assert counts.min() == 0
    assert counts.max() >= 9
    elbo.exploration = 0.5
    assert gradients(elbo.differentiable_loss(model.model, model.guide, frames), model).abs().max() > 0


def test_a_price_does_not_scale_itself_and_explorers_are_not_judged() -> None:
    """What the control of a rate is told depends neither on the cost in force nor on sequences that explore."""
    model = oracle.random_model(config_of(max_segments=None, max_length=None), spread=0.4)
    frames = torch.rand(60, 12, 2, dtype=torch.float64)
    judged = []
    for cost in (0.0, 1000.0):
        pyro.set_rng_seed(1)
        elbo = LeaveOneOutELBO(2, cost)
        elbo.differentiable_loss(model.model, model.guide, frames)
        judged.append(elbo.judged())
    assert judged[0] == judged[1]
    assert (judged[0].chances, judged[0].rows) == (2 * 60 * 11, 120)
    elbo = LeaveOneOutELBO(2)
    elbo.exploration = 0.5
    elbo.differentiable_loss(model.model, model.guide, frames)
    drawn = elbo._traces[1].nodes["_RETURN"]["value"].boundaries
    rows = elbo._own
    assert rows is not None
    assert 20 < rows.sum() < 100
    assert elbo.judged().rows == rows.sum()
    assert elbo.judged().boundaries == drawn[:, rows].sum()
    assert elbo.measured().boundary_rate == pytest.approx((drawn[:, rows].sum() / (11 * rows.sum())).item())


def test_arguments_by_name_are_drawn_as_often() -> None:
    model = oracle.random_model(config_of(), seed=1)
    frames, mask = torch.rand(4, 5, 2, dtype=torch.float64), torch.ones(4, 5, dtype=torch.bool)
    losses = []
    for args, kwargs in (((frames, mask), {}), ((frames,), {"mask": mask}), ((), {"frames": frames, "mask": mask})):
        pyro.set_rng_seed(2)
        losses.append(LeaveOneOutELBO().loss(model.model, model.guide, *args, **kwargs))
    assert losses[1:] == losses[:1] * 2
