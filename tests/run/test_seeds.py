"""Several seeds of one run: each is what it would be alone, what is whole is kept, and their scores have a spread."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded import SETTINGS, SpoiltAt, assert_equal, called, sequences, trainer

from pyro_hrssm import TrainingConfig, checkpoint, cli, files
from pyro_hrssm.data import Scaling, Sequences, Splits
from pyro_hrssm.errors import InputError
from pyro_hrssm.run import seeds, together, training
from pyro_hrssm.run.diagnosis import TrainingError
from pyro_hrssm.run.parallel import Processes
from pyro_hrssm.run.process import Interrupted
from pyro_hrssm.run.together import Lane, fit_together, side_by_side
from pyro_hrssm.run.training import Trainer

pytestmark = pytest.mark.usefixtures("no_figures")

TINY = [
    *("--device", "cpu", "--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--particles", "2"),
    *("--steps", "6", "--batch-size", "8", "--log-every", "2", "--evaluate-every", "0", "--checkpoint-every", "3"),
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own data, with true boundaries."""
    path = tmp_path_factory.mktemp("data") / "own.npz"
    random = np.random.default_rng(0)
    boundaries = random.random((60, 6)) < 0.3
    np.savez(path, frames=random.random((60, 6, 3)), boundaries=boundaries)
    return path


def command(own: Path, out: Path, *more: str) -> list[str]:
    return ["train", *TINY, "--data", str(own), "--out", str(out), "--seed", "3", *more]


@pytest.fixture(scope="module")
def whole(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seeds") / "three"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "paint", lambda *_: {})
        cli.main(command(own, out, "--seeds", "3"))
    return out


def same(one: Path, two: Path) -> None:
    """Check that two runs left the same checkpoint, metrics and scores."""
    first, second = checkpoint.load(one), checkpoint.load(two)
    assert all(torch.equal(first.tensors[name], value) for name, value in second.tensors.items())
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_every_seed_is_the_run_of_its_own(own: Path, whole: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == ["seed_3", "seed_4", "seed_5", "seeds.json"]
    cli.main(command(own, tmp_path / "alone", "--seed", "4"))
    same(whole / "seed_4", tmp_path / "alone")


def test_the_spread_is_that_of_the_scores_and_shown(own: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(command(own, whole, "--seeds", "3"))
    shown = capsys.readouterr().out
    spread = files.read_json(whole / "seeds.json")
    assert spread["seeds"] == [3, 4, 5]
    scores = [files.read_json(whole / f"seed_{seed}" / "evaluation.json") for seed in spread["seeds"]]
    for name, values in {
        "nats_per_sequence": [each["nats_per_sequence"] for each in scores],
        "terms.s": [each["terms"]["s"] for each in scores],
        "boundaries.f1": [each["boundaries"]["f1"] for each in scores],
    }.items():
        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        assert spread["scores"][name] == {"mean": mean, "standard_deviation": deviation, "values": values}
        assert any(line.split() == [name, f"{mean:.3f}", "±", f"{deviation:.3f}"] for line in shown.splitlines())
    assert not {"step", "particles", "sequences"} & spread["scores"].keys()
    assert "boundaries.permutation.p_value" in spread["scores"]
    told = {part for name in spread["scores"] for part in name.split(".")}
    assert not {"permutations", "margin", "parameters"} & told, "these say how scores were taken"
    assert "boundaries.baselines.always.f1" in spread["scores"]
    assert "baselines" not in shown
    json.dumps(spread, allow_nan=False)


def test_a_whole_seed_is_kept_and_a_half_one_goes_on(
    own: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, steps = tmp_path / "out", []
    real = Trainer.update

    def stopping(self: Trainer, *arguments: Any) -> float:
        steps.append((self.config.seed, self.step))
        if steps[-1] == (4, 4) and steps.count((4, 4)) == 1:
            signal.raise_signal(signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, "update", stopping)
    with contextlib.ExitStack() as stack:
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stack.callback(signal.signal, signal.SIGTERM, before)
        with pytest.raises(SystemExit) as stop:
            cli.main(command(own, out, "--seeds", "3"))
    assert stop.value.code == 128 + signal.SIGTERM
    assert not (out / "seeds.json").exists()
    first = (out / "seed_3" / "evaluation.json").stat().st_mtime_ns
    cli.main(command(own, out, "--seeds", "3"))
    assert (out / "seed_3" / "evaluation.json").stat().st_mtime_ns == first
    assert steps == [(3, n) for n in range(6)] + [(4, n) for n in range(6)] + [(5, n) for n in range(6)]
    assert (out / "seeds.json").read_bytes() == (whole / "seeds.json").read_bytes()
    same(out / "seed_4", whole / "seed_4")


def test_a_larger_number_of_seeds_adds_those_that_are_missing(own: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cli.main(command(own, out, "--seeds", "2"))
    assert files.read_json(out / "seeds.json")["seeds"] == [3, 4]
    cli.main(command(own, out, "--seeds", "3"))
    assert (out / "seeds.json").read_bytes() == (whole / "seeds.json").read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seeds", "0"], "seeds must be at least 1, found 0"),
        (["--seeds", "2", "--restarts", "3"], "seeds needs restarts 1, found 3"),
        (["--seeds", "2", "--learning-rate", "1e-3"], "seed_3 is of other settings (learning_rate)"),
        (["--seeds", "2", "--hidden", "9"], "seed_3 is of other settings (hidden)"),
    ],
)
def test_what_several_seeds_refuse(
    own: Path, whole: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole / "seeds.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        cli.main(command(own, whole, *more))
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert (whole / "seeds.json").read_bytes() == before


def test_seeds_neither_resume_a_run_nor_begin_in_one(
    own: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        (["train", "--resume", str(whole / "seed_3"), "--seeds", "2"], "seeds begins runs of its own"),
        (command(own, whole / "seed_3", "--seeds", "2"), "holds a run itself"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_a_seed_that_another_command_trains_is_left_to_it(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    cli.main(command(own, out / "seed_3", "--steps", "3"))
    (out / "seed_3" / "evaluation.json").unlink()
    program = (
        "import pathlib, sys; from pyro_hrssm.run import lock\n"
        "with lock.held(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holding = [sys.executable, "-c", program, str(out / "seed_3")]
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SystemExit) as stop:
            cli.main(command(own, out, "--steps", "3", "--seeds", "2"))
        other.communicate()
    assert stop.value.code == 2
    assert f"seed_3 is being trained by process {other.pid}" in capsys.readouterr().err
    assert not (out / "seed_4").exists()
    cli.main(command(own, out, "--steps", "3", "--seeds", "2"))
    assert files.read_json(out / "seeds.json")["seeds"] == [3, 4]
    assert not list(out.rglob("lock.json"))


def test_several_processes_train_one_seed(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds.parallel, "world_size", lambda: 2)
    with pytest.raises(InputError, match="seeds needs one process, found 2"):
        seeds.train_seeds(seeds.Settings(), 2, tmp_path, CPU, [])


# Side by side, as on a GPU


def splits(kind: type[Sequences] = Sequences) -> Splits:
    return Splits(sequences(kind=kind), sequences(), "tiny", "bernoulli", Scaling())


@pytest.mark.parametrize("setting", SETTINGS)
def test_side_by_side_each_is_as_if_alone(tmp_path: Path, setting: str) -> None:
    alone, beside, lanes = [], [], []
    settings = SETTINGS[setting] | {"evaluate_every": 5}
    for seed in (1, 2, 3):
        alone.append(trainer(tmp_path / f"alone{seed}", called, seed=seed, **settings))
        alone[-1].fit(sequences(), sequences())
    before, hook = torch.get_rng_state(), threading.excepthook
    for seed in (1, 2, 3):
        lanes.append(Lane(CPU))
        with lanes[-1].active():
            beside.append(trainer(tmp_path / f"together{seed}", called, seed=seed, **settings))
    fit_together(beside, lanes, splits())
    assert torch.equal(torch.get_rng_state(), before), "the lanes have their own noise"
    assert threading.excepthook is hook
    for one, two in zip(alone, beside, strict=True):
        assert_equal(one, two)
        assert (one.run / "metrics.jsonl").read_bytes() == (two.run / "metrics.jsonl").read_bytes()
        states = [checkpoint.load(run.run).tensors["random.cpu"] for run in (one, two)]
        assert torch.equal(*states)


def test_side_by_side_some_have_begun_before(tmp_path: Path) -> None:
    whole, again, lanes = [], [], [Lane(CPU), Lane(CPU)]
    for seed, begun in ((1, 0), (2, 5)):
        whole.append(trainer(tmp_path / f"whole{seed}", called, seed=seed))
        whole[-1].fit(sequences(), sequences())
        with lanes[seed - 1].active():
            again.append(trainer(tmp_path / f"again{seed}", called, seed=seed))
            if begun:
                again[-1].fit(sequences(), sequences(), until=begun)
    fit_together(again, lanes, splits())
    for one, two in zip(whole, again, strict=True):
        assert_equal(one, two)


def test_of_many_seeds_some_run_side_by_side_and_then_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "MOST_LANES", 2)
    made: list[int] = []

    def make(folder: str, seed: int) -> Trainer:
        made.append(seed)
        return trainer(tmp_path / f"{folder}{seed}", called, seed=seed)

    def each(folder: str, beside: torch.device | None) -> list[Trainer]:
        makers = [functools.partial(make, folder, seed) for seed in (1, 2, 3)]
        found, order = [], []
        for run in together.fit_each(makers, splits(), 8, beside):
            found.append(run)
            order.append(len(made))
        assert order == ([1, 2, 3] if beside is None else [2, 2, 3])
        made.clear()
        return found

    for one, two in zip(each("alone", None), each("beside", CPU), strict=True):
        assert one.step == 8
        assert_equal(one, two)


def test_side_by_side_a_signal_saves_all(tmp_path: Path) -> None:
    lanes, runs = [Lane(CPU), Lane(CPU)], []
    for seed, lane in enumerate(lanes):
        with lane.active():
            runs.append(trainer(tmp_path / str(seed), called, seed=seed, checkpoint_every=100))
    clip, calls = runs[1].optimiser.clip, []

    def interrupting() -> None:
        calls.append(clip())
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    runs[1].optimiser.clip = interrupting  # type: ignore[method-assign]
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(Interrupted):
            fit_together(runs, lanes, splits())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [checkpoint.load(run.run).step for run in runs] == [5, 5]


def test_side_by_side_an_error_says_whose_it_is(tmp_path: Path) -> None:
    lanes, runs = [Lane(CPU), Lane(CPU)], []
    for seed, lane in enumerate(lanes):
        with lane.active():
            runs.append(trainer(tmp_path / f"seed_{seed}", called, seed=seed, log_every=1))
    with pytest.raises(TrainingError, match=r"seed_\d: step \d+: site m_0"):
        fit_together(runs, lanes, splits(SpoiltAt))


@pytest.mark.parametrize(
    ("settings", "device", "size", "beside"),
    [
        ({}, "cuda", 1, True), ({}, "cpu", 1, False), ({"graph": False}, "cuda", 1, False),
        ({"elbo": "mean_field"}, "cuda", 1, False), ({}, "cuda", 2, False),
    ],
)  # fmt: skip
def test_who_trains_side_by_side(settings: dict[str, Any], device: str, size: int, beside: bool) -> None:
    assert side_by_side(TrainingConfig(**settings), torch.device(device), Processes(size=size)) == beside
