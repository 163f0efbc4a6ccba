"""Steps that run ahead of the host: on a CPU, where a recorded step is a Python function, and on a GPU as a CUDA graph.

A GPU adds the capture and the replay, and nothing else: schedules, ring, skipped steps, restoring and the order of
random numbers are the same code.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro import poutine
from recorded import (
    SETTINGS,
    TINY,
    Doubles,
    SpoiltAt,
    assert_close,
    assert_equal,
    called,
    rehearsed,
    sequences,
    trainer,
)
from torch import Tensor
from waiting import OnlyOn

from pyro_hrssm import TrainingConfig, checkpoint, files
from pyro_hrssm.config import LeaveOneOut
from pyro_hrssm.data import loading
from pyro_hrssm.inference.graphed import Step
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.run import ahead, training
from pyro_hrssm.run.ahead import DECIDED, Phase
from pyro_hrssm.run.diagnosis import TrainingError
from pyro_hrssm.run.parallel import Processes
from pyro_hrssm.run.schedules import Scheduled, scheduled
from pyro_hrssm.run.training import Trainer

# The steps are those of the eager loop


@pytest.mark.parametrize(("posterior", "mask", "place"), [
    ("conditioned", False, "resident"), ("conditioned", True, "streamed"),
    ("factorised", True, "resident"), ("limited", False, "streamed"),
])  # fmt: skip
@pytest.mark.parametrize("setting", ["trace", "leave_one_out"])
def test_the_eager_trainers_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, posterior: str, mask: bool, place: str
) -> None:
    monkeypatch.setattr(ahead, "fits", lambda *_: place == "resident")
    model, data = dataclasses.replace(TINY, boundary_posterior=posterior, context=1), sequences(mask, Doubles)
    runs = {}
    for name, recorder in (("eager", None), ("ahead", called)):
        runs[name] = trainer(tmp_path / name, recorder, model, double=True, **SETTINGS[setting])
        runs[name].fit(data, data)
    # The rate of a GPU's Adam is a float32, 6e-8 off; 12 steps of about 4e-3 each. All else differs in order alone.
    assert_close(runs["eager"], runs["ahead"], 1e-8)
    assert torch.equal(*(checkpoint.load(tmp_path / name).tensors["random.cpu"] for name in runs))
    rows = [files.read_lines(tmp_path / name / "metrics.jsonl") for name in runs]
    assert [list(row) for row in rows[0]] == [list(row) for row in rows[1]]
    for eager, device in zip(*rows, strict=True):
        assert device == pytest.approx(eager, rel=1e-6, abs=1e-6)  # the eager loss of `trace` is summed site by site


@pytest.mark.parametrize(("setting", "model"), [*((name, "hrssm") for name in SETTINGS), ("trace", "rssm")])
def test_single_precision_descends_alike(tmp_path: Path, setting: str, model: str) -> None:
    config, data, runs = dataclasses.replace(TINY, model=model), sequences(), []
    for name, recorder in (("eager", None), ("ahead", called)):
        runs.append(trainer(tmp_path / name, recorder, config, **SETTINGS[setting]))
        runs[-1].fit(data, data)
    # Adam divides a gradient by its size: where a gradient is nearly 0, another order of its sum turns a step around.
    assert_close(*runs, 5e-3)


# What the host sends ahead


def test_a_phase_holds_what_python_decides() -> None:
    """At every step, a value that is a number is the schedule's own, and all others are the table's."""
    config = TrainingConfig(
        steps=40, kl_warmup_steps=5, switch_warmup_steps=10, final_state_weight=4.0,
        elbo=LeaveOneOut(exploration=0.5, boundary_price=3.0, prior_from=0.6, boundary_warmup_steps=7),
    )  # fmt: skip
    numbers: dict[Phase, list[int]] = {}
    for step in range(config.steps):
        row = torch.tensor(scheduled(config, step), dtype=torch.float64)
        phase = Phase.at(config, step)
        for name, value, exact in zip(Scheduled._fields, phase.values(row), scheduled(config, step), strict=True):
            assert value == exact
            assert isinstance(value, Tensor) == (exact not in DECIDED.get(name, ())), name
        numbers.setdefault(phase, []).append(step)
    assert all(steps == list(range(steps[0], steps[-1] + 1)) for steps in numbers.values())
    # From these steps on: the KL has weight 1; q(M) learns; z's terms are switched; no sequence explores; p(m) has its
    # whole say; the weight of s moves.
    assert [steps[0] for steps in numbers.values()] == [0, 4, 7, 9, 20, 28, 29]


def test_what_lies_ahead_is_sent_once_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Size] = []
    for module in (ahead, loading):
        real = module.send
        monkeypatch.setattr(module, "send", lambda v, place, real=real: (sent.append(v.shape), real(v, place)))
    run = trainer(tmp_path, called, log_every=4, steps=10, checkpoint_every=100, evaluate_every=0)
    run.fit(sequences(), sequences())
    # Three windows, for the lines of the log at steps 4, 8 and 10: a table of schedules and a table of indices each.
    assert sent == [(4, 7), (4, 8)] * 3


@pytest.mark.parametrize("log_every", [1, 3, 5, 100])
def test_neither_the_log_nor_evaluations_change_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    monkeypatch.setattr(ahead, "MOST_AHEAD", 5)
    runs = []
    for number, settings in enumerate(({"evaluate_every": 0}, {"log_every": log_every, "evaluate_every": 4})):
        runs.append(trainer(tmp_path / str(number), called, **SETTINGS["leave_one_out"], **settings))
        runs[-1].fit(sequences(), sequences())
    assert_equal(*runs)


def test_every_line_of_the_log_is_its_own_steps(tmp_path: Path) -> None:
    rows = {}
    for log_every in (1, 4):
        run = trainer(tmp_path / str(log_every), called, log_every=log_every, evaluate_every=0)
        run.fit(sequences(), sequences())
        rows[log_every] = {row["step"]: row for row in files.read_lines(run.run / "metrics.jsonl")}
    assert list(rows[1]) == list(range(1, 13))
    assert rows[4] == {step: row for step, row in rows[1].items() if step % 4 == 0} | {12: rows[1][12]}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_rehearsal_leaves_no_trace(tmp_path: Path, setting: str) -> None:
    runs, logs = [], []
    for recorder in (called, rehearsed):
        runs.append(trainer(tmp_path / recorder.__name__, recorder, **SETTINGS[setting]))
        runs[-1].fit(sequences(), sequences())
        logs.append((runs[-1].run / "metrics.jsonl").read_bytes())
    assert_equal(*runs)
    assert logs[0] == logs[1]


def test_steps_are_recorded_once_per_phase_and_shape(tmp_path: Path) -> None:
    recorded = []
    run = trainer(tmp_path, lambda function, _: recorded.append(function) or function, kl_warmup_steps=4)
    run.fit(sequences(), sequences())
    assert len(recorded) == 2, "one while the weight rises, one at 1"


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("posterior", ["conditioned", "factorised", "limited"])
@pytest.mark.parametrize("setting", ["trace", "leave_one_out"])
def test_a_step_waits_for_nothing_and_has_no_tensor_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, posterior: str, mask: bool
) -> None:
    """In every phase, on the device `meta`, whose tensors have no values that could come to the host."""
    guarded: list[Phase] = []

    def recorder(function: Step, _: object) -> Step:
        def step() -> None:
            with OnlyOn("meta"):
                function()
            guarded.append(function.args[0])  # type: ignore[attr-defined]

        return step

    model = dataclasses.replace(TINY, boundary_posterior=posterior, context=1)
    run = trainer(tmp_path, recorder, model, device="meta", **SETTINGS[setting])
    monkeypatch.setattr(run.optimiser, "move", lambda: run.model.zero_grad(set_to_none=True))  # Adam has no `meta`
    with training.pyro_for_training(), ahead.ahead(run, sequences(mask), recorder, 12, None) as steps:
        for _ in range(12):
            if len(steps._random) == 4:
                steps._random.clear()  # as a reading does, which would need values
            steps.take()
            run.step += 1
    assert guarded == [Phase.at(run.config, step) for step in range(12)]
    assert len(set(guarded)) > 1


def test_a_step_is_recorded_without_the_graph_of_an_eager_one(tmp_path: Path) -> None:
    """Autograd's nodes for parameters keep the stream in which they were made, and no capture may wait for another."""
    held = []
    run = trainer(tmp_path, lambda function, _: held.append("_traces" in vars(run.elbo)) or function)
    run.update(sequences().batch(range(8)).frames, None)
    assert "_traces" in vars(run.elbo)
    run.fit(sequences(), sequences(), until=2)
    assert held == [False]
    assert "_traces" not in vars(run.elbo)


# Resuming


@pytest.mark.parametrize("setting", SETTINGS)
def test_resuming_gives_the_uninterrupted_runs_parameters_bit_for_bit(tmp_path: Path, setting: str) -> None:
    data, settings = sequences(mask=True), SETTINGS[setting] | {"checkpoint_every": 5, "keep_checkpoints": 5}
    whole = trainer(tmp_path / "whole", rehearsed, **settings)
    whole.fit(data, data)
    torch.manual_seed(99)
    resumed = trainer(tmp_path / "resumed", rehearsed, **settings)
    resumed.restore(checkpoint.load(tmp_path / "whole" / "checkpoints" / "00000005.safetensors"))
    resumed.fit(data, data)
    assert_equal(whole, resumed)


def test_an_eager_run_goes_on_ahead_and_back(tmp_path: Path) -> None:
    """A checkpoint does not say how its steps were taken."""
    whole = trainer(tmp_path / "whole", called, double=True)
    whole.fit(sequences(kind=Doubles), sequences(kind=Doubles))
    turns = trainer(tmp_path / "turns", None, double=True)
    for until, recorder in ((4, called), (7, None), (None, called)):
        turns.recorder = recorder
        turns.fit(sequences(kind=Doubles), sequences(kind=Doubles), until)
        turns.save()
        again = trainer(tmp_path / "turns", None, double=True)
        again.restore(checkpoint.load(tmp_path / "turns"))
        turns = again
    assert_close(whole, turns, 1e-8)  # as above


# Values that are not finite


@pytest.mark.parametrize("place", ["resident", "streamed"])
@pytest.mark.parametrize("log_every", [1, 5, 12])
def test_a_nan_moves_no_parameter_and_is_named_at_the_next_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int, place: str
) -> None:
    monkeypatch.setattr(ahead, "fits", lambda *_: place == "resident")
    eager = trainer(tmp_path / "eager", None, log_every=log_every, evaluate_every=0)
    with pytest.raises(TrainingError) as expected:
        eager.fit(sequences(kind=SpoiltAt), sequences())
    assert eager.step > 0, "the first step must be a good one"
    run = trainer(tmp_path / "ahead", called, log_every=log_every, evaluate_every=0)
    taken: list[int] = []
    monkeypatch.setattr(run.optimiser, "clip", lambda real=run.optimiser.clip: (taken.append(run.step), real()))
    with pytest.raises(TrainingError) as found:
        run.fit(sequences(kind=SpoiltAt), sequences())
    assert str(found.value) == str(expected.value), "step and site"
    assert run.step == run.optimiser.steps == eager.step
    assert len(taken) <= eager.step + max(log_every, 1)
    assert_close(eager, run, 1e-6)
    assert all(value.isfinite().all() for value in run.optimiser.tensors().values())
    steps = {name: value.item() for name, value in run.optimiser.tensors().items() if name.endswith(".step")}
    assert set(steps.values()) == {float(eager.step)}


def test_a_gradient_that_is_not_finite_is_found_too(tmp_path: Path) -> None:
    run = trainer(tmp_path, called)
    run.fit(sequences(), sequences(), until=4)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    next(iter(run.model.emission.decoder.parameters())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"step 5: site x .*not finite"):
        run.fit(sequences(), sequences())
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


def test_a_bad_step_does_not_move_the_price_of_a_boundary(tmp_path: Path) -> None:
    run = trainer(tmp_path, called, **SETTINGS["leave_one_out"])
    run.fit(sequences(), sequences(), until=5)
    assert run.rate is not None
    before = list(run.rate.state)
    assert before != [0.0, 0.0]
    with torch.no_grad():
        next(iter(run.model.emission.decoder.parameters())).fill_(float("nan"))
    with pytest.raises(TrainingError, match="step 6: site x"):
        run.fit(sequences(), sequences())
    assert run.rate.state == before


# Refusals


@pytest.mark.parametrize(
    ("settings", "size", "reason"),
    [
        ({}, 2, "several processes"),
        ({"compile": True}, 1, "compiled"),
        ({"elbo": "mean_field"}, 1, "mean_field"),
        ({}, 1, None),
    ],
)
def test_what_cannot_be_recorded(settings: dict[str, Any], size: int, reason: str | None) -> None:
    found = ahead.refusal(TrainingConfig(**settings), Processes(size=size))
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


def test_what_cannot_be_recorded_runs_as_before_and_says_so_once(tmp_path: Path) -> None:
    eager = trainer(tmp_path / "eager", None, elbo="mean_field")
    eager.fit(sequences(), sequences())
    refused = trainer(tmp_path / "refused", called, elbo="mean_field")
    with pytest.warns(UserWarning, match="graph: the training step runs without, because elbo mean_field") as said:
        refused.fit(sequences(), sequences())
    assert len(said) == 1
    assert_equal(eager, refused)


def test_a_users_handler_sees_every_step(tmp_path: Path) -> None:
    seen: list[str] = []

    class Watching(poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg: Any) -> None:
            seen.append(msg["name"])

    run = trainer(tmp_path, called, evaluate_every=0)
    with pytest.warns(UserWarning, match="handler"), Watching():
        run.fit(sequences(), sequences(), until=3)
    assert seen.count("x") >= 3


def test_an_update_of_the_users_own_takes_every_step(tmp_path: Path) -> None:
    class Counting(Trainer):
        updates = 0

        def update(self, frames: Tensor, mask: Tensor | None) -> float:
            self.updates += 1
            return super().update(frames, mask)

    made = trainer(tmp_path)
    run = Counting(made.model, made.config, tmp_path, {})
    run.recorder = called
    with pytest.warns(UserWarning, match="update is another function"):
        run.fit(sequences(), sequences(), until=3)
    assert run.updates == 3


def test_a_cpu_records_nothing(tmp_path: Path) -> None:
    torch.manual_seed(1)
    assert Trainer(StateSpaceModel.build(TINY), TrainingConfig(), tmp_path, {}).recorder is None
