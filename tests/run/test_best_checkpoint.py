"""The best checkpoint and early stopping: which evaluations are compared, what is kept, and how a run goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded import SETTINGS, STEERED, assert_equal, called, sequences, trainer

from pyro_hrssm import LeaveOneOut, TrainingConfig, checkpoint, files
from pyro_hrssm.cli import main
from pyro_hrssm.data import Scaling, Splits
from pyro_hrssm.errors import InputError
from pyro_hrssm.run.best import Best, counts, idle
from pyro_hrssm.run.presets import PRESETS
from pyro_hrssm.run.schedules import scheduled, settled
from pyro_hrssm.run.together import Lane, fit_together
from pyro_hrssm.run.training import Trainer

CPU = torch.device("cpu")
BOUNDS = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5, 10: 3.0, 12: 2.0}
"""Held-out bounds by step: the best is that of step 4 until step 12, since the equal one of step 10 is not better."""
EVERY = {"steps": 12, "evaluate_every": 2, "checkpoint_every": 5, "keep_checkpoints": 1}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Held-out bounds that every trainer of the test finds, by step; the log has the true ones."""
    bounds, real = dict(BOUNDS), Trainer._evaluate

    def evaluate(self: Trainer, *arguments: Any) -> float:
        found = real(self, *arguments)
        return bounds.get(self.step, found)

    monkeypatch.setattr(Trainer, "_evaluate", evaluate)
    return bounds


def kept(run: Path) -> list[int]:
    return sorted(int(file.stem) for file in (run / "checkpoints").iterdir())


def fitted(run: Path, until: int | None = None, recorder: Any = None, **settings: Any) -> Trainer:
    made = trainer(run, recorder, **EVERY | settings)
    made.fit(sequences(), sequences(), until)
    return made


# Which evaluations are compared.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0),
        ({"kl_warmup_steps": 30}, 29),
        ({"switch_warmup_steps": 20, "kl_warmup_steps": 10}, 19),
        ({"switch_warmup_steps": 0}, 0),
        ({"state_weight": 4.0, "final_state_weight": 1.0}, 90),
        ({"state_weight": 4.0}, 0),
        ({"elbo": "leave_one_out"}, 0),
        ({"elbo": LeaveOneOut(exploration=0.3)}, 30),
        ({"elbo": LeaveOneOut(boundary_price=0.5, prior_from=0.5)}, 60),
        ({"elbo": LeaveOneOut(boundary_price=0.5, prior_from=1.0)}, 0),
        ({"elbo": LeaveOneOut(boundary_warmup_steps=40)}, 40),
        ({"elbo": LeaveOneOut(boundary_warmup_steps=400)}, 0),
        ({"kl_warmup_steps": 1000}, 99),
    ],
)
def test_the_objective_has_settled_where_none_of_its_schedules_moves_any_more(
    settings: dict[str, Any], expected: int
) -> None:
    config = TrainingConfig(steps=100, **settings)
    found = settled(config)
    assert found == pytest.approx(expected, abs=1)  # shares of the steps are floats
    warmup = config.leave_one_out.boundary_warmup_steps
    asked = [
        (*scheduled(config, step)._replace(learning_rate=0.0, temperature=0.0), step >= warmup) for step in range(100)
    ]
    assert len(set(asked[found:])) == 1
    assert found == 0 or asked[found - 1] != asked[found]


def test_the_preset_for_segments_settles_after_nine_tenths_and_the_others_at_once() -> None:
    assert settled(PRESETS["segments"].training) == pytest.approx(1350, abs=1)
    assert {name for name in PRESETS if settled(PRESETS[name].training) == 0} == {"rows", "video", "paper"}


def test_evaluations_count_at_their_own_steps_once_the_objective_has_settled() -> None:
    config = TrainingConfig(steps=99, evaluate_every=10, kl_warmup_steps=30)
    assert [step for step in range(1, 100) if counts(config, step)] == [*range(30, 99, 10), 99]
    off = TrainingConfig(steps=99, evaluate_every=10, keep_best=False)
    assert not any(counts(off, step) for step in range(100))
    assert counts(TrainingConfig(steps=99, evaluate_every=10, keep_best=False, patience=1), 10)
    at_the_end = TrainingConfig(steps=99, evaluate_every=0)
    assert [step for step in range(100) if counts(at_the_end, step)] == [99]


def test_what_patience_needs() -> None:
    with pytest.raises(InputError, match="patience needs evaluations, evaluate_every of at least 1, found 0"):
        TrainingConfig(patience=2, evaluate_every=0)
    with pytest.raises(InputError, match="patience must be at least 1, found 0"):
        TrainingConfig(patience=0)
    assert idle(TrainingConfig(evaluate_every=0)) is None


@pytest.mark.parametrize("patience", [1, 2, 3, 4])
@pytest.mark.parametrize("warmup", [0, 5, 6, 7])
def test_patience_that_stops_nothing_is_told(warmup: int, patience: int) -> None:
    config = TrainingConfig(steps=12, evaluate_every=3, kl_warmup_steps=warmup, patience=patience)
    best, stops = Best(), False
    for step in range(1, 12):  # the worst that can be: no bound is better than the first
        if counts(config, step):
            best = best.after(step, float(step))
        stops = stops or best.waited >= patience
    assert (idle(config) is None) == stops


# What is kept, and where training stops.


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path: Path, scripted: dict[int, float]) -> None:
    run = fitted(tmp_path / "run", until=11)
    assert kept(run.run) == [4, 11]
    assert checkpoint.best_of(run.run).stem == "00000004"
    then = fitted(tmp_path / "then", until=4)
    best = checkpoint.load(checkpoint.best_of(run.run))
    assert best.step == 4
    for name, value in then.model.state_dict().items():
        assert torch.equal(best.tensors[f"model.{name}"], value)
    run.fit(sequences(), sequences())
    assert kept(run.run) == [12]
    assert checkpoint.best_of(run.run).stem == "00000012"


def test_without_it_the_last_ones_alone(tmp_path: Path, scripted: dict[int, float]) -> None:
    run = fitted(tmp_path, until=11, keep_best=False)
    assert kept(run.run) == [11]
    assert checkpoint.BEST not in checkpoint.load(run.run).tensors
    with pytest.raises(checkpoint.CheckpointError, match="has no best checkpoint at step 11"):
        checkpoint.best_of(run.run)


def test_patience_without_keeping_stops_all_the_same(tmp_path: Path, scripted: dict[int, float]) -> None:
    run = fitted(tmp_path, keep_best=False, patience=2)
    assert run.step == 8
    assert kept(run.run) == [8]
    with pytest.raises(checkpoint.CheckpointError, match="lacks the checkpoint of its best step 4"):
        checkpoint.best_of(run.run)


@pytest.mark.parametrize(("patience", "stops"), [(1, 6), (2, 8), (3, 10), (4, None)])
def test_patience_stops_with_a_checkpoint_of_that_step(
    tmp_path: Path, scripted: dict[int, float], patience: int, stops: int | None
) -> None:
    run = fitted(tmp_path, patience=patience)
    assert run.step == (stops or 12)
    assert run.stopped_early == (stops is not None)
    assert run.ends(None)
    assert checkpoint.load(tmp_path).step == run.step
    assert kept(tmp_path) == ([4, stops] if stops else [12])
    assert files.read_lines(tmp_path / "metrics.jsonl")[-1]["step"] == run.step


def test_neither_counts_before_the_objective_has_settled(tmp_path: Path, scripted: dict[int, float]) -> None:
    run = fitted(tmp_path, patience=1, kl_warmup_steps=5, until=7)
    assert run.best == Best(4.0, 6, 0)
    run = fitted(tmp_path / "stops", patience=2, kl_warmup_steps=7)
    assert run.step == 12, "3.5, 3.0 and 2.0 get better and better"


def test_an_evaluation_at_a_step_that_only_an_interruption_reaches_is_not_compared(
    tmp_path: Path, scripted: dict[int, float]
) -> None:
    scripted[3] = 0.5
    run = fitted(tmp_path, until=3)
    assert run.best == Best(5.0, 2, 0)


def test_the_step_on_a_device_ahead_of_the_host_keeps_and_stops_alike(
    tmp_path: Path, scripted: dict[int, float]
) -> None:
    run = fitted(tmp_path / "run", recorder=called, patience=2)
    assert run.step == 8
    assert kept(run.run) == [4, 8]
    for step in (4, 8):
        then = fitted(tmp_path / str(step), until=step, recorder=called)
        found = checkpoint.load(checkpoint.path_of(run.run, step))
        assert all(torch.equal(found.tensors[f"model.{name}"], v) for name, v in then.model.state_dict().items())


def test_side_by_side_each_stops_where_it_would_alone(tmp_path: Path, scripted: dict[int, float]) -> None:
    lanes, runs, alone = [Lane(CPU), Lane(CPU)], [], []
    for patience, lane in zip((1, 3), lanes, strict=True):
        alone.append(fitted(tmp_path / f"alone{patience}", recorder=called, patience=patience))
        with lane.active():
            runs.append(trainer(tmp_path / f"beside{patience}", called, **EVERY, patience=patience))
    fit_together(runs, lanes, Splits(sequences(), sequences(), "tiny", "bernoulli", Scaling()))
    assert [run.step for run in runs] == [6, 10]
    for one, two in zip(runs, alone, strict=True):
        assert_equal(one, two)
        assert kept(one.run) == kept(two.run)


# Resuming.


class Killed(Exception):
    pass


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> None:
    """Run until the update after so many steps, which never ends."""
    real = Trainer.update

    def update(self: Trainer, *arguments: Any) -> float:
        if self.step == step:
            raise Killed
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        with pytest.raises(Killed):
            run()


def same(one: Path, two: Path) -> None:
    for first, second in ((one, two), (checkpoint.best_of(one), checkpoint.best_of(two))):
        found, expected = checkpoint.load(first), checkpoint.load(second)
        assert found.step == expected.step
        assert found.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(found.tensors[name], value) for name, value in expected.tensors.items())
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()
    assert kept(one) == kept(two)


SOON = dataclasses.replace(STEERED, exploration=0.2, prior_from=0.2)
"""All that steers boundaries, and has its last value after a third of the steps."""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SETTINGS["trace"], 10),
        (SETTINGS["bf16"], 8),
        ({"elbo": SOON, "state_weight": 2.0}, 10),
    ],
)
def test_a_run_killed_after_any_step_keeps_and_stops_as_if_it_had_not_been(
    tmp_path: Path,
    scripted: dict[int, float],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    expected: int,
) -> None:
    settings = settings | {"patience": 2}
    scripted |= {6: 3.0, 8: 4.0, 10: 5.0}
    whole = fitted(tmp_path / "whole", **settings)
    assert whole.step == expected
    for step in (3, 6, 7):
        run = tmp_path / str(step)
        killed_at(step, monkeypatch, lambda run=run: fitted(run, **settings))
        again = trainer(run, **EVERY | settings)
        if (run / "checkpoints").exists():
            again.restore(checkpoint.load(run))
        assert again.step <= step
        again.fit(sequences(), sequences())
        same(run, whole.run)


def test_a_stopped_run_stays_where_it_is_and_goes_on_with_more_patience(
    tmp_path: Path, scripted: dict[int, float]
) -> None:
    whole = fitted(tmp_path / "whole", patience=4)
    fitted(tmp_path / "run", patience=2)
    before = kept(tmp_path / "run")
    again = trainer(tmp_path / "run", **EVERY, patience=2)
    again.restore(checkpoint.load(tmp_path / "run"))
    assert again.stopped_early
    again.fit(sequences(), sequences())
    assert again.step == 8
    assert kept(tmp_path / "run") == before
    further = trainer(tmp_path / "run", **EVERY, patience=4)
    further.restore(checkpoint.load(tmp_path / "run"))
    further.fit(sequences(), sequences())
    assert further.step == 12
    assert_equal(further, whole)
    assert further.best == whole.best


def test_where_the_newest_checkpoints_are_damaged_the_best_is_one_that_is_there(
    tmp_path: Path, scripted: dict[int, float]
) -> None:
    """Step 6 is the best, so that step 2's checkpoint is gone; the run falls back to step 5, whose best was step 2."""
    scripted |= {2: 3.0, 4: 4.0, 6: 1.0, 8: 2.0, 10: 5.0, 12: 6.0}
    run = fitted(tmp_path, until=7, keep_checkpoints=3)
    assert kept(tmp_path) == [5, 6, 7]
    for step in (6, 7):
        checkpoint.path_of(tmp_path, step).write_bytes(b"torn")
    run = trainer(tmp_path, **EVERY)
    with pytest.warns(UserWarning, match="passed over"):
        run.restore(checkpoint.load(tmp_path))
    assert run.best == Best()
    scripted[6] = 3.5  # as after other noise: no longer better than step 2 was
    run.fit(sequences(), sequences())
    assert checkpoint.best_of(tmp_path).stem == "00000008"
    assert checkpoint.load(checkpoint.best_of(tmp_path)).step == 8


def test_the_best_under_an_objective_that_has_changed_since_is_no_measure(
    tmp_path: Path, scripted: dict[int, float]
) -> None:
    settings = {"state_weight": 4.0, "final_state_weight": 1.0}
    run = fitted(tmp_path, **settings)
    assert run.best == Best(2.0, 12, 0)
    longer = trainer(tmp_path, **EVERY | settings | {"steps": 24})
    longer.restore(checkpoint.load(tmp_path))
    assert longer.best == Best(), "at step 12 of 24 the states weigh 4 again"


def test_an_old_checkpoint_knows_no_best(tmp_path: Path) -> None:
    assert Best.of(checkpoint.Checkpoint(3, {}, {})) == Best()
    damaged = checkpoint.Checkpoint(3, {checkpoint.BEST: torch.tensor([1.0, float("nan"), 0.0])}, {})
    with pytest.raises(InputError, match="the best evaluation"):
        Best.of(damaged)


# The command line.

TINY = [
    *("--device", "cpu", "--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--particles", "2"),
    *("--steps", "12", "--batch-size", "8", "--log-every", "4", "--evaluate-every", "2", "--checkpoint-every", "5"),
    *("--elbo", "trace"),
]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(path, frames=np.random.default_rng(0).random((40, 6, 3)))
    return path


@pytest.fixture
def command(own: Path, no_figures: None) -> list[str]:
    return ["train", *TINY, "--data", str(own)]


def test_a_run_that_stops_early_is_whole_and_says_so(
    command: list[str], tmp_path: Path, scripted: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main([*command, "--out", str(run), "--patience", "2"])
    said = capsys.readouterr().out
    stopped = "stopped early at step 8 of 12: 2 evaluations in a row without a better held-out bound"
    assert stopped in said
    assert "the held-out bound was best at step 4, 3.00 nats per sequence" in said
    scores = files.read_json(run / "evaluation.json")
    assert (scores["step"], scores["stopped_early"]) == (8, True)
    before = (run / "metrics.jsonl").read_bytes()

    main(["train", "--resume", str(run)])
    assert stopped in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before
    assert files.read_json(run / "evaluation.json") == scores

    main(["train", "--resume", str(run), "--patience", "None"])
    said = capsys.readouterr().out
    assert "stopped early" not in said
    assert "was best at" not in said, "the last step is the best"
    assert "stopped_early" not in files.read_json(run / "evaluation.json")
    assert checkpoint.load(run).step == 12
    main([*command, "--out", str(tmp_path / "whole")])
    one, two = checkpoint.load(run), checkpoint.load(tmp_path / "whole")
    assert all(torch.equal(one.tensors[name], value) for name, value in two.tensors.items())


def test_commands_take_the_best_checkpoint_where_asked(
    command: list[str], tmp_path: Path, scripted: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main([*command, "--out", str(run), "--patience", "2"])
    capsys.readouterr()

    def scores(*arguments: str) -> dict[str, Any]:
        main(["evaluate", *arguments, "--json", "--particles", "2", "--device", "cpu"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    best, last = scores(str(run), "--best"), scores(str(run))
    assert best == scores(str(checkpoint.path_of(run, 4)))
    assert best != last
    main(["segment", str(run), "--best", "--out", str(tmp_path / "segments.csv")])
    main(["report", str(run), "--best", "--out", str(tmp_path / "report.html")])
    assert "stopped early" not in (tmp_path / "report.html").read_text("utf-8"), "these are scores of the last step"
    main(["report", str(run), "--out", str(tmp_path / "last.html")])
    assert "stopped early" in (tmp_path / "last.html").read_text("utf-8")


def test_where_there_is_no_best_checkpoint_it_is_told_in_one_line(
    command: list[str], tmp_path: Path, scripted: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main([*command, "--out", str(run), "--no-keep-best"])
    file = checkpoint.path_of(run, 12)
    for path, said in ((run, "has no best checkpoint at step 12"), (file, "best needs a run's folder, found")):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(path), "--best"])
        assert stop.value.code == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1


def test_patience_that_cannot_stop_a_run_warns_at_the_start(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*command, "--out", str(tmp_path / "run"), "--patience", "7"])
    said = capsys.readouterr().err
    assert "pyro-hrssm: patience 7 stops nothing: it needs 8 evaluations between step 0" in said
    assert "evaluate_every 2 gives 5" in said


def test_trials_of_restarts_ignore_patience(command: list[str], tmp_path: Path, scripted: dict[int, float]) -> None:
    run = tmp_path / "run"
    trials = ["--restarts", "2", "--restart-steps", "9", "--patience", "1", "--steps", "16"]
    main([*command, "--out", str(run), *trials])
    for seed in (1, 2):
        tried = checkpoint.load(run / "restarts" / f"seed_{seed}")
        assert tried.step == 9, "patience would end it at step 6"
        assert checkpoint.BEST not in tried.tensors
    assert checkpoint.load(run).step >= 12, "after the trial: step 10, then 12 is better"
    assert int(checkpoint.best_of(run).stem) > 9


def test_seeds_that_stopped_early_are_whole(
    command: list[str], tmp_path: Path, scripted: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seeds"
    several = [*command, "--out", str(out), "--seeds", "2", "--patience", "2"]
    main(several)
    assert capsys.readouterr().out.count("stopped early at step 8 of 12") == 2
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.*") if file.name != "seeds.json"}
    spread = (out / "seeds.json").read_bytes()
    main(several)
    assert capsys.readouterr().out.count("whole, and kept") == 2
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert (out / "seeds.json").read_bytes() == spread
    with pytest.raises(SystemExit):
        main([*several, "--patience", "3"])
    assert "seed_1 is of other settings (patience)" in capsys.readouterr().err


def test_seeds_of_an_old_run_are_kept_although_it_lacks_these_settings(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seeds"
    main([*command, "--out", str(out), "--seeds", "2"])
    for seed in (1, 2):
        config = out / f"seed_{seed}" / "config.json"
        record = files.read_json(config)
        for name in ("keep_best", "patience"):
            del record["training"][name]
        files.write_json(config, record)
    capsys.readouterr()
    main([*command, "--out", str(out), "--seeds", "2"])
    assert capsys.readouterr().out.count("whole, and kept") == 2
    shutil.rmtree(out)
