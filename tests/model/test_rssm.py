"""The flat baseline: its densities against their equations, spelled out, and the interface it shares."""

import math
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_hrssm import HRSSM, HRSSMConfig, TrainingConfig, checkpoint
from pyro_hrssm.data import Sequences
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.bounds import log_likelihood, log_weights
from pyro_hrssm.inference.prediction import Settings, forecast, infill, jump, reconstruct, sample, segment
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.rssm import RSSM
from pyro_hrssm.run.training import Trainer


def config_of(**fields: Any) -> HRSSMConfig:
    sizes = {"model": "rssm", "frame_shape": (2,), "hidden": 8, "abstract_size": 2, "observation_size": 2}
    return HRSSMConfig(**(sizes | {"networks": "mlp", "likelihood": "bernoulli"} | fields))


def random_model(seed: int = 0, **fields: Any) -> RSSM:
    generator = torch.Generator().manual_seed(seed)
    model = RSSM(config_of(**fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def some(model: RSSM, size: int = 3, length: int = 6) -> Tensor:
    shape = (size, model.config.context + length, *model.config.frame_shape)
    return torch.rand(shape, dtype=torch.float64)


def literal(
    model: RSSM, frames: Tensor, observed: list[bool], s: list[Tensor], weights: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """log p(X, S) and log q(S | X) of one sequence, frame by frame from the equations."""
    context, length = model.config.context, oracle.modelled_length(model, observed)
    encoded = oracle._encodings(model, list(frames), observed, weights)[: context + length]
    if context:
        h = torch.tanh(oracle._linear(model.from_context, oracle._walk(model, 0, encoded[:context])))
    else:
        h = model.first
    log_p = log_q = torch.zeros((), dtype=torch.float64)
    for t in range(length):
        h = oracle._gru(model.recurrence, s[t - 1], h) if t > 0 else h
        log_p = log_p + oracle._normal(s[t], *oracle._head(model.prior, h))
        feature = oracle._elu(oracle._linear(model.emission.combine, torch.cat([h, s[t]])))
        if observed[context + t]:
            log_p = log_p + oracle._emission(model, feature, frames[context + t], weights[context + t])
        past, future = (
            oracle._walk(model, 0, encoded[: context + t + 1]),
            oracle._walk(model, 1, encoded[context + t :][::-1]),
        )
        log_q = log_q + oracle._normal(s[t], *oracle._head(model.posterior.observation, torch.cat([past, future])))
    return log_p, log_q


@pytest.mark.parametrize("fields", [{}, {"context": 2}, {"likelihood": "normal"}], ids=["plain", "context", "normal"])
@pytest.mark.parametrize("masked", ["", "frames", "entries"])
def test_densities_are_those_of_the_equations(fields: dict[str, Any], masked: str) -> None:
    model = random_model(**fields, entry_flags=masked == "entries")
    frames = some(model)
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    if masked:
        mask[0, -2:] = mask[1, 3] = mask[2, 0] = False
    entries = mask.unsqueeze(-1).repeat(1, 1, 2)
    if masked == "entries":
        entries &= torch.rand(entries.shape) < 0.7
    mask = entries.any(-1)
    given = {"": None, "frames": mask, "entries": entries}[masked]
    guide = poutine.trace(model.guide).get_trace(frames, given)
    trace = poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(frames, given)
    log_p, log_q = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for total, one in ((log_q, guide), (log_p, trace)):
        one.compute_log_prob()
        for name in one.stochastic_nodes:
            if not name.endswith("sequences"):
                total += one.nodes[name]["log_prob"].detach()
        if one is trace:
            total += one.nodes["x"]["log_prob"].detach()
    for row in range(3):
        s = [guide.nodes[f"s_{t}"]["value"][row] for t in range(6)]
        expected = literal(model, frames[row], mask[row].tolist(), s, [*entries[row].double()])
        torch.testing.assert_close((log_p[row], log_q[row]), expected, rtol=1e-9, atol=1e-9)  # double precision


def test_the_bound_meets_the_evidence() -> None:
    """log p(x) from plain simulations of the prior."""
    model = random_model(seed=1, frame_shape=(1,), observation_size=1, min_scale=0.3)
    frames = some(model, size=2, length=3).round()
    rollout = model.model(size=200_000, horizon=3)
    assert rollout.future is not None
    hits = torch.stack([rollout.future.log_prob(x.expand(200_000, -1, -1)).exp() for x in frames])
    evidence, error = hits.mean(1).log(), hits.std(1) / hits.mean(1) / math.sqrt(200_000)
    batches = torch.stack([log_likelihood(model, frames, particles=2000) for _ in range(16)])
    slack = 5 * torch.hypot(error, batches.std(0) / 4)  # 5 standard errors
    assert ((batches.mean(0) - evidence).abs() < slack).all()
    assert (log_weights(model, frames, particles=2000).weights.mean(0) < evidence + slack).all()


def test_predictions_come_without_boundaries() -> None:
    model, frames = random_model(context=1), some(random_model(context=1))
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 5:] = mask[1, 2] = False
    settings = Settings(num_samples=2)
    for result in (
        reconstruct(model, frames, mask, settings),
        forecast(model, frames, 4, mask, settings),
        infill(model, frames, mask, settings),
        sample(model, 3, 5, frames[:, :1], settings),
    ):
        assert result.frames.isfinite().all()
        assert not result.boundaries.any()
        assert result.abstract.shape[-1] == 0
        assert result.observation.shape[-1] == 2
    for call in (lambda: jump(model, frames, 2), lambda: segment(model, frames)):
        with pytest.raises(InputError, match=r"RSSM|hierarchical"):
            call()


def test_training_checkpoint_and_loading(tmp_path: Path) -> None:
    sequences = Sequences(torch.rand(24, 6, 2, generator=torch.Generator().manual_seed(1)).numpy())
    settings = TrainingConfig(steps=40, batch_size=8, warmup_steps=2, learning_rate=1e-2, particles=5)
    torch.manual_seed(1)
    run = Trainer(RSSM(config_of()), settings, tmp_path, {"model": vars(config_of())})
    before = run.score(sequences, sequences).nats_per_sequence
    run.fit(sequences, sequences)
    # A random start gives every entry a probability near 1/2; what is learnt gains more than the draws' noise.
    assert run.score(sequences, sequences).nats_per_sequence < before - 0.1
    loaded = StateSpaceModel.load(tmp_path)
    assert isinstance(loaded, RSSM)
    for one, other in zip(loaded.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match="HRSSM is needed, found rssm"):
        HRSSM.load(tmp_path)
    assert checkpoint.load(tmp_path).step == 40
