"""The SVI loop: it learns, resumes bit for bit, and stops at the first NaN with the name of its site."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyro_hrssm import HRSSM, HRSSMConfig, TrainingConfig, checkpoint
from pyro_hrssm.data import Batch, Sequences
from pyro_hrssm.data.batches import batch_indices
from pyro_hrssm.errors import InputError
from pyro_hrssm.reports import drawing, strips
from pyro_hrssm.run import training
from pyro_hrssm.run.diagnosis import TrainingError
from pyro_hrssm.run.schedules import kl_weight, learning_rate, switch_gradient, temperature
from pyro_hrssm.run.training import Trainer

TINY = HRSSMConfig(
    frame_shape=(3,), hidden=8, abstract_size=2, observation_size=2, max_segments=3, max_length=3, window=6
)


def sequences(size: int = 24, mask: bool = False) -> Sequences:
    generator = torch.Generator().manual_seed(3)
    frames, seen = torch.rand(size, 6, 3, generator=generator), torch.rand(size, 6, generator=generator) > 0.2
    seen[:, 0] = True
    return Sequences(frames.numpy(), seen.numpy() if mask else None)


class Spoilt(Sequences):
    """Sequences that return NaN, unlike any reader of files."""

    def batch(self, indices: Any) -> Batch:
        batch = super().batch(indices)
        return batch._replace(frames=torch.full_like(batch.frames, float("nan")))


def trainer(run: Path, model: HRSSMConfig = TINY, shown: Batch | None = None, **settings: object) -> Trainer:
    defaults: dict[str, object] = {
        "steps": 10,
        "batch_size": 8,
        "checkpoint_every": 5,
        "warmup_steps": 2,
        "log_every": 2,
    }
    config = TrainingConfig(**(defaults | settings))  # type: ignore[arg-type]
    torch.manual_seed(config.seed)
    return Trainer(HRSSM(model), config, run, {}, shown)


@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
@pytest.mark.parametrize("posterior", ["conditioned", "factorised", "limited"])
@pytest.mark.parametrize("mask", [False, True])
def test_training_lowers_the_held_out_bound(tmp_path: Path, elbo: str, posterior: str, mask: bool) -> None:
    model = HRSSMConfig(**{**vars(TINY), "boundary_posterior": posterior})
    run = trainer(tmp_path, model, steps=40, learning_rate=1e-2, elbo=elbo, kl_warmup_steps=5)
    data = sequences(mask=mask)
    before = run.score(data, data).nats_per_sequence
    run.fit(data, data)
    # A random start gives every pixel a probability near 1/2; 40 steps at 1e-2 gain far more than the draws' noise.
    assert run.score(data, data).nats_per_sequence < before - 0.3


def test_resuming_gives_the_uninterrupted_runs_parameters_bit_for_bit(tmp_path: Path) -> None:
    data = sequences(mask=True)
    whole = trainer(tmp_path / "whole", keep_checkpoints=5)
    whole.fit(data, data)

    torch.manual_seed(99)
    resumed = trainer(tmp_path / "resumed", keep_checkpoints=5)
    resumed.restore(checkpoint.load(tmp_path / "whole" / "checkpoints" / "00000005.safetensors"))
    assert resumed.step == 5
    resumed.fit(data, data)

    for (name, one), two in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    one, two = whole.optimiser.tensors(), resumed.optimiser.tensors()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_one_seed_writes_identical_metrics(tmp_path: Path) -> None:
    for name in ("one", "two"):
        trainer(tmp_path / name).fit(sequences(), sequences())
    assert (tmp_path / "one/metrics.jsonl").read_bytes() == (tmp_path / "two/metrics.jsonl").read_bytes()
    trainer(tmp_path / "other", seed=2).fit(sequences(), sequences())
    assert (tmp_path / "one/metrics.jsonl").read_bytes() != (tmp_path / "other/metrics.jsonl").read_bytes()


def test_a_nan_stops_training_before_a_parameter_moves_and_names_site_and_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=6, checkpoint_every=3)
    data = sequences()
    run.config = TrainingConfig(**{**vars(run.config), "steps": 4})
    run.fit(data, data)
    kept = checkpoint.load(tmp_path)
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.config = TrainingConfig(**{**vars(run.config), "steps": 6})
    with pytest.raises(TrainingError, match=r"step 5: site m_0 .*not finite"):
        run.fit(Spoilt(torch.rand(24, 6, 3).numpy()), data)
    assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())
    assert checkpoint.load(tmp_path).step == kept.step == 4


@pytest.mark.parametrize("site", ["z_2", "s_1", "x"])
def test_the_first_bad_site_is_named(tmp_path: Path, site: str) -> None:
    run = trainer(tmp_path)
    spoilt = {"z_2": run.model.posterior.abstract, "s_1": run.model.posterior.observation}
    with torch.no_grad():
        if site == "x":
            run.model.emission.decoder.layers[-1].bias[0] = float("inf")
        else:
            spoilt[site].layers[-1].bias[0] = float("nan")
    expected = {"z_2": "z_0", "s_1": "s_0", "x": "x"}[site]
    with pytest.raises(TrainingError, match=rf"step 1: site {expected} "):
        run.fit(sequences(), sequences())


def test_batches_are_a_function_of_seed_and_step() -> None:
    straight = batch_indices(10, 4, seed=1, start=0)
    first = [next(straight) for _ in range(7)]
    later = batch_indices(10, 4, seed=1, start=5)
    assert torch.equal(next(later), first[5])
    assert torch.equal(next(later), first[6])
    epoch = torch.cat(first[:2])
    assert len(set(epoch.tolist())) == 8, "no sequence twice in an epoch"
    assert len(next(batch_indices(3, 8, seed=1, start=0))) == 3, "a set smaller than a batch is the batch"


def test_schedules_start_end_and_peak_where_they_say() -> None:
    config = TrainingConfig(
        steps=100, warmup_steps=10, learning_rate=1e-2, final_learning_rate=1e-4, kl_warmup_steps=20,
        temperature_start=1.0, temperature_end=0.1, switch_warmup_steps=50,
    )  # fmt: skip
    rates = [learning_rate(config, step) for step in range(101)]
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1e-2)
    assert rates[0] == pytest.approx(1e-3)
    assert rates[100] == pytest.approx(1e-4)
    assert temperature(config, 0) == 1.0
    assert temperature(config, 99) == pytest.approx(0.1)
    assert [kl_weight(config, step) for step in (0, 19, 50)] == [pytest.approx(0.05), 1.0, 1.0]
    assert [switch_gradient(config, step) for step in (0, 24, 49, 99)] == [pytest.approx(0.02), 0.5, 1.0, 1.0]
    for steps, share in ((None, 0.0), (0, 1.0)):
        assert switch_gradient(TrainingConfig(switch_warmup_steps=steps), 0) == share


def test_the_clip_is_global_and_per_sequence(tmp_path: Path) -> None:
    run = trainer(tmp_path, clip_norm=0.5)
    run.optimiser.batch_size = 4
    for parameter in run.optimiser.parameters:
        parameter.grad = torch.ones_like(parameter)
    gradients = [parameter.grad for parameter in run.optimiser.parameters]
    run.optimiser(None)
    assert all(parameter.grad is None for parameter in run.optimiser.parameters)
    total = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    assert total.item() == pytest.approx(0.5 * 4, rel=1e-4)  # float32 sums, and clip_grad_norm_'s 1e-6


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(sequences(), sequences())
    larger = trainer(tmp_path, HRSSMConfig(**{**vars(TINY), "hidden": 12}))
    with pytest.raises(InputError, match="holds another model"):
        larger.restore(checkpoint.load(tmp_path))


def test_looking_at_the_model_does_not_change_the_run(tmp_path: Path) -> None:
    quiet = trainer(tmp_path / "quiet", evaluate_every=0)
    quiet.fit(sequences(), sequences())
    watched = trainer(tmp_path / "watched", evaluate_every=3)
    watched.fit(sequences(), sequences())
    for one, two in zip(quiet.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_figure_that_fails_is_one_line_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate\n7.3 GiB")

    plain = trainer(tmp_path / "plain")
    plain.fit(sequences(), sequences())
    monkeypatch.setattr(strips, "film_strip", fail)
    spoilt = trainer(tmp_path / "spoilt", shown=sequences().batch(range(4)))
    spoilt.fit(sequences(), sequences())
    told = [line for line in capsys.readouterr().err.splitlines() if "pyro-hrssm" in line]
    assert told == ["pyro-hrssm: step 10: figure samples was not drawn: Unable to allocate 7.3 GiB"]
    drawn = {file.stem for file in (tmp_path / "spoilt/figures").iterdir()}
    assert drawn == {"reconstructions", "boundaries", "segments", "segment_lengths", "training"}
    assert checkpoint.load(tmp_path / "spoilt").step == 10
    for one, two in zip(plain.model.parameters(), spoilt.model.parameters(), strict=True):
        assert torch.equal(one, two)

    monkeypatch.setattr("pyro_hrssm.reports.figures.sample", fail)
    again = trainer(tmp_path / "again", shown=sequences().batch(range(4)))
    again.fit(sequences(), sequences())
    assert "step 10: no figure was drawn: Unable to allocate 7.3 GiB\n" in capsys.readouterr().err


def test_the_checkpoint_of_a_step_comes_before_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def paint(*_: object) -> dict[str, bytes]:
        found.append(checkpoint.load(tmp_path).step)
        return {}

    monkeypatch.setattr(training, "paint", paint)
    trainer(tmp_path, shown=sequences().batch(range(4)), evaluate_every=5).fit(sequences(), sequences())
    assert found == [5, 10]


def test_a_figure_is_painted_once_for_the_folder_and_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, painted = drawing.Figure.savefig, []
    monkeypatch.setattr(drawing.Figure, "savefig", lambda *args, **kw: painted.append(args) or real(*args, **kw))
    trainer(tmp_path, shown=sequences().batch(range(4))).fit(sequences(), sequences())
    names = {"reconstructions", "samples", "boundaries", "segments", "segment_lengths", "training"}
    assert len(painted) == len(names)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["images"]) == names
    for name in names:
        (image,) = events.Images(name)
        assert image.step == 10
        assert image.encoded_image_string == (tmp_path / f"figures/{name}.png").read_bytes()
