"""Every short training stays finite, or stops with an error that names site and step."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch

from pyro_hrssm import HRSSM, HRSSMConfig, StateSpaceModel, TrainingConfig, checkpoint
from pyro_hrssm.data import Sequences
from pyro_hrssm.run.diagnosis import TrainingError
from pyro_hrssm.run.training import Trainer

STOPPED = re.compile(
    r"step (\d+): (?:(site) (?:[msz]_\d+|x)(?: \(.*\))?|(held-out) site [xmsz]|(tensor) \S+) is not finite; "
    r"the last checkpoint is whole"
)
BLOCK = 40
LONG = 500


class Case(NamedTuple):
    model: HRSSMConfig
    training: TrainingConfig
    train: Sequences
    held_out: Sequences
    frames: str
    """Kind of values in the frames."""
    validate: bool
    """Whether Pyro checks shapes and supports at every step."""


def logarithmic(draw: random.Random, low: float, high: float) -> float:
    return 10 ** draw.uniform(np.log10(low), np.log10(high))


def frames_of(draw: random.Random, shape: tuple[int, ...], likelihood: str) -> tuple[str, np.ndarray[Any, Any]]:
    noise = np.random.default_rng(draw.randrange(2**32))
    constant = draw.choice([0.0, 0.5, 1.0])
    kinds = {"uniform": noise.random(shape), "constant": np.full(shape, constant), "binary": noise.random(shape) > 0.5}
    if likelihood == "normal":
        kinds |= {
            "standardised": noise.standard_normal(shape),
            "an outlier": np.where(np.arange(shape[1])[:, None] == 1, 1e4, noise.standard_normal((*shape[:2], 1)))
            .reshape(*shape[:2], *[1] * (len(shape) - 2)) * np.ones(shape),
            "large": noise.standard_normal(shape) * logarithmic(draw, 1e3, 1e38),
        }  # fmt: skip
    name = draw.choice(sorted(kinds))
    return name, kinds[name].astype("f4")


def mask_of(draw: random.Random, number: int, length: int, context: int) -> np.ndarray[Any, Any] | None:
    """A mask: none, gaps, early ends, both, or a single observed frame; every sequence has an observed frame."""
    noise = np.random.default_rng(draw.randrange(2**32))
    gaps, ends = noise.random((number, length)) < 0.6, np.arange(length) < noise.integers(1, length + 1, (number, 1))
    mask = draw.choice([None, None, gaps, ends, gaps & ends, np.zeros_like(gaps)])
    if mask is not None:
        mask[:, draw.randrange(min(context + 1, length))] = True
    return mask


def case(seed: int) -> Case:
    """A random short training; four in five have plausible settings, the others absurd ones."""
    draw = random.Random(seed)
    absurd = seed % 5 == 4
    length = LONG if seed % 125 == 8 else draw.choice([2, 3, 4, 6, 9, 12])
    context = draw.choice([0, 0, 0, 1])
    shape = draw.choice([(1,), (3,), (2, 2, 1)])
    likelihood: Any = draw.choice(["bernoulli", "normal"])
    model = HRSSMConfig(
        model=draw.choice(["hrssm", "hrssm", "hrssm", "rssm"]),
        frame_shape=shape,
        hidden=draw.choice([4, 8]),
        abstract_size=2,
        observation_size=draw.choice([1, 3]),
        likelihood=likelihood,
        noise_scale=logarithmic(draw, *(1e-30, 1e30) if absurd else (1e-3, 10)),
        max_segments=draw.choice([None, 1, 2, 5]),
        max_length=draw.choice([None, 1, 3, 10]),
        window=draw.choice([None, max(1, length - context)]),
        context=context,
        boundary_posterior=draw.choice(["conditioned", "factorised", "limited"]),
        boundary_layers=draw.choice([1, 3]),
        min_scale=logarithmic(draw, *(1e-38, 1) if absurd else (1e-4, 1e-1)),
    )
    rate = draw.choice([4e-3, 0.4]) if not absurd else logarithmic(draw, 1, 1e42)
    start, end = sorted((logarithmic(draw, *(1e-30, 10) if absurd else (1e-2, 1)) for _ in range(2)), reverse=True)
    training = TrainingConfig(
        steps=2 if length == LONG else draw.choice([2, 3, 4]),
        batch_size=draw.choice([1, 2, 5]),
        seed=seed,
        elbo=draw.choice(["trace", "mean_field", "leave_one_out"]),
        learning_rate=rate,
        final_learning_rate=draw.choice([0.0, rate]),
        # The second one, of a setting that is gone, keeps what is drawn after it: each seed stays the case that it was.
        warmup_steps=(draw.choice([0, 2]), draw.choice([False, True]))[0],
        clip_norm=logarithmic(draw, 1e-3, 1e38) if absurd else 10.0,
        temperature_start=start,
        temperature_end=end,
        kl_warmup_steps=draw.choice([0, 3]),
        state_weight=draw.choice([1.0, 1.0, 4.0]),
        log_every=1,
        evaluate_every=draw.choice([0, 1]),
        checkpoint_every=draw.choice([1, 10]),
    )
    validate = draw.choice([False, False, False, True])
    number = draw.choice([1, 3, 5])
    name, frames = frames_of(draw, (number + 2, length, *shape), likelihood)
    mask = mask_of(draw, number + 2, length, context)
    data = Sequences(frames, mask)
    return Case(model, training, data.subset(range(number)), data.subset(range(number, number + 2)), name, validate)


def finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())


def check_steps(trainer: Trainer) -> None:
    """Let Pyro check shapes and supports at every step, which training itself switches off."""
    trainer.update = pyro.validation_enabled()(trainer.update)  # type: ignore[method-assign]


def stop(short: Case, run: Path) -> str | None:
    """The error that stopped the training; None if all values, to the held-out bound, were finite."""
    torch.manual_seed(short.training.seed)
    trainer = Trainer(StateSpaceModel.build(short.model), short.training, run, {})
    if short.validate:
        check_steps(trainer)
    step, taken = trainer.optimiser.adam.step, 0

    def watched() -> None:
        nonlocal taken
        gradients = [value.grad for value in trainer.optimiser.parameters if value.grad is not None]
        assert gradients
        assert finite(dict(enumerate(gradients))), "a step on a gradient that is not finite"  # type: ignore[arg-type]
        taken += 1
        step()

    trainer.optimiser.adam.step = watched  # type: ignore[method-assign]
    try:
        trainer.fit(short.train, short.held_out)
    except TrainingError as error:
        told = str(error)
    else:
        told = None
    if (run / "checkpoints").exists():
        assert finite(checkpoint.load(run).tensors)
    if told is not None:
        found = STOPPED.fullmatch(told)
        assert found is not None, told
        assert taken == int(found[1]) - (found[2] == "site"), "a step that was refused has moved parameters"
        return told
    assert taken == short.training.steps
    assert finite(trainer.model.state_dict())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not any(value is None for row in rows for value in row.values()), rows  # how a NaN is written
    assert "held_out_nats_per_sequence" in rows[-1]
    return None


@pytest.mark.parametrize(
    "block", [0, *(pytest.param(block, marks=pytest.mark.slow) for block in range(1, 1000 // BLOCK))]
)
def test_a_short_training_stays_finite_or_says_where_it_stopped(block: int, tmp_path: Path) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        short = case(seed)
        try:
            told = stop(short, tmp_path / str(seed))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {short.model} {short.training} {short.frames} frames") from error
        # At plausible settings, only large frames stop the training.
        assert told is None or seed % 5 == 4 or short.frames == "large", f"seed {seed}: {told}"


# Rare cases among the random trainings


def trainer(run: Path, likelihood: str = "normal", **settings: Any) -> Trainer:
    torch.manual_seed(1)
    sizes: Any = {"hidden": 4, "abstract_size": 2, "observation_size": 2, "max_segments": 3, "max_length": 3}
    config = HRSSMConfig(frame_shape=(3,), likelihood=likelihood, noise_scale=10, **sizes)  # type: ignore[arg-type]
    training = TrainingConfig(**({"steps": 2, "batch_size": 4, "warmup_steps": 0} | settings))
    return Trainer(HRSSM(config), training, run, {})


def sequences(value: float = 1.0, length: int = 5) -> Sequences:
    noise = torch.rand(4, length, 3, generator=torch.Generator().manual_seed(0))
    return Sequences((noise * value).numpy())


def copied(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


@pytest.mark.parametrize("elbo", ["trace", "mean_field", "leave_one_out"])
def test_an_infinite_loss_of_finite_gradient_moves_nothing(elbo: str, tmp_path: Path) -> None:
    """The square of 1e20 overflows, its derivative does not."""
    run = trainer(tmp_path, elbo=elbo)
    before = copied(run)
    with pytest.raises(TrainingError, match="step 1: site x is not finite"):
        run.fit(sequences(1e20), sequences())
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    # The stopped step leaves nothing behind that spoils the next step.
    run.fit(sequences(), sequences())
    assert finite(run.model.state_dict())


@pytest.mark.parametrize("validate", [False, True])
def test_parameters_that_overflow_reach_no_checkpoint(validate: bool, tmp_path: Path) -> None:
    """A step that is too large has a finite loss and a finite gradient; a later step that fails may not come."""
    run = trainer(tmp_path, "bernoulli", steps=1, learning_rate=1e39, checkpoint_every=1)
    if validate:
        check_steps(run)
    with pytest.raises(TrainingError, match=r"step 1: (held-out site|tensor) \S+ is not finite"):
        run.fit(sequences(), sequences())
    with pytest.raises(TrainingError, match=r"step 1: tensor model\.\S+ is not finite"):
        run.save()
    assert not (tmp_path / "checkpoints").exists()


def test_a_held_out_bound_that_overflows_stops_the_training(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    with pytest.raises(TrainingError, match="step 2: held-out site x is not finite"):
        run.fit(sequences(), sequences(1e25))


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("elbo", ["trace", "mean_field", "leave_one_out"])
@pytest.mark.parametrize(
    "spoilt", ["posterior.boundary_logit.product.bias", "emission.boundary.bias", "emission.decoder.layers.2.bias"]
)
def test_a_spoilt_network_is_told_by_its_site_whoever_notices(
    spoilt: str, elbo: str, validate: bool, tmp_path: Path
) -> None:
    """Draws from a NaN, and torch's own checks, raise other errors."""
    run = trainer(tmp_path, elbo=elbo)
    if validate:
        check_steps(run)
    with torch.no_grad():
        run.model.get_parameter(spoilt).fill_(float("nan"))
    site = "x" if "decoder" in spoilt else "m_0"
    with pytest.raises(TrainingError, match=f"step 1: site {site} is not finite"):
        run.fit(sequences(), sequences())


def test_torchs_checks_are_no_nan(tmp_path: Path) -> None:
    """Errors that these checks find beside a NaN are kept: here, frames that are no probabilities."""
    run = trainer(tmp_path, "bernoulli")
    check_steps(run)
    with pytest.raises(ValueError, match="support"):
        run.fit(sequences(2.0), sequences())


@pytest.mark.parametrize(
    ("spoilt", "site"),
    [
        ("posterior.abstract", "z_0"),
        ("posterior.observation", "s_0"),
        ("emission.decoder", "x"),
    ],
)
def test_a_bad_gradient_is_traced_to_its_site_in_few_passes(
    spoilt: str, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One backward pass per site would take hours for long sequences."""
    run = trainer(tmp_path)
    for parameter in run.model.get_submodule(spoilt).parameters():
        parameter.register_hook(lambda gradient: gradient * float("nan"))
    passes, grad = [], torch.autograd.grad

    def counted(*arguments: Any, **keywords: Any) -> Any:
        passes.append(None)
        return grad(*arguments, **keywords)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    before = copied(run)
    with pytest.raises(TrainingError, match=rf"step 1: site {site} \(its gradient\) is not finite"):
        run.fit(sequences(length=40), sequences())
    assert len(passes) <= 8  # 2 · (40 + 40 + 39) + 1 sites, halved each time
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
