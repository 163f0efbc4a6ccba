"""Training steps as CUDA graphs: all that holds of steps on a CPU, on a GPU."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded import (
    SETTINGS,
    TINY,
    Doubles,
    SpoiltAt,
    assert_close,
    assert_equal,
    sequences,
    trainer,
)
from waiting import waiting_is_an_error

from pyro_hrssm import HRSSM, HRSSMConfig, checkpoint, cli, files
from pyro_hrssm.data import Scaling, Sequences, Splits
from pyro_hrssm.inference.evaluation import random_seed
from pyro_hrssm.run import ahead
from pyro_hrssm.run.diagnosis import TrainingError
from pyro_hrssm.run.together import Lane, fit_together
from pyro_hrssm.run.training import Trainer, pyro_for_training

pytestmark = pytest.mark.cuda

VIDEO = HRSSMConfig(
    frame_shape=(16, 16, 3), hidden=8, abstract_size=2, observation_size=2, channels=2, context=1, max_length=3,
    likelihood="normal", window=5,
)  # fmt: skip
SMALL = [
    *("--device", "cuda", "--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--particles", "2"),
    *("--steps", "40", "--batch-size", "8", "--log-every", "5", "--evaluate-every", "0", "--checkpoint-every", "10"),
]


def on_gpu(run: Path, graph: bool = True, model: HRSSMConfig = TINY, **given: Any) -> Trainer:
    made = trainer(run, model=model, device="cuda", graph=graph, **given)
    assert (made.recorder is not None) == graph
    return made


def video() -> Sequences:
    return Sequences(np.random.default_rng(1).random((24, 6, 16, 16, 3), dtype=np.float32))


def data_of(setting: str, mask: bool = True) -> tuple[HRSSMConfig, Sequences]:
    return (VIDEO, video()) if setting == "video" else (TINY, sequences(mask))


EVERY = {**SETTINGS, "video": {"switch_warmup_steps": 5}}


@pytest.mark.parametrize(("posterior", "mask", "place"), [
    ("conditioned", False, "resident"), ("conditioned", True, "streamed"),
    ("factorised", True, "resident"), ("limited", False, "streamed"),
])  # fmt: skip
@pytest.mark.parametrize("setting", ["trace", "leave_one_out"])
def test_a_graph_takes_the_eager_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, posterior: str, mask: bool, place: str
) -> None:
    monkeypatch.setattr(ahead, "fits", lambda *_: place == "resident")
    model, data = dataclasses.replace(TINY, boundary_posterior=posterior, context=1), sequences(mask, Doubles)
    runs = []
    for graph in (False, True):
        runs.append(on_gpu(tmp_path / str(graph), graph, model, double=True, **SETTINGS[setting]))
        runs[-1].fit(data, data)
    # The same noise; Adam's rate is a float32, 6e-8 off, and a GPU divides by a number as by its reciprocal.
    assert_close(*runs, 1e-7)
    rows = [files.read_lines(run.run / "metrics.jsonl") for run in runs]
    assert rows[1][-1] == pytest.approx(rows[0][-1], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("setting", EVERY)
def test_resuming_gives_the_uninterrupted_runs_parameters_bit_for_bit(tmp_path: Path, setting: str) -> None:
    (model, data), settings = data_of(setting), EVERY[setting] | {"checkpoint_every": 5, "keep_checkpoints": 5}
    whole = on_gpu(tmp_path / "whole", model=model, **settings)
    whole.fit(data, data)
    torch.manual_seed(99)
    resumed = on_gpu(tmp_path / "resumed", model=model, **settings)
    resumed.restore(checkpoint.load(tmp_path / "whole" / "checkpoints" / "00000005.safetensors"))
    resumed.fit(data, data)
    assert_equal(whole, resumed)


@pytest.mark.parametrize("setting", EVERY)
def test_one_seed_writes_identical_metrics(tmp_path: Path, setting: str) -> None:
    model, data = data_of(setting)
    for name in ("one", "two"):
        on_gpu(tmp_path / name, model=model, **EVERY[setting]).fit(data, data)
    assert (tmp_path / "one/metrics.jsonl").read_bytes() == (tmp_path / "two/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("place", ["resident", "streamed"])
@pytest.mark.parametrize("setting", EVERY)
def test_the_host_waits_for_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, place: str) -> None:
    monkeypatch.setattr(ahead, "fits", lambda *_: place == "resident")
    model, data = data_of(setting)
    run = on_gpu(tmp_path, model=model, log_every=4, **EVERY[setting])
    assert run.recorder is not None
    with pyro_for_training(), ahead.ahead(run, data, run.recorder, 12, None) as steps:
        for number in range(12):
            phases = {ahead.Phase.at(run.config, step) for step in (number - 1, number)}
            if number == 0 or len(phases) > 1 or number % 4 == 0:  # recorded or read, for which the host does wait
                steps.settle()
                steps.take()
            else:
                with waiting_is_an_error():
                    steps.take()
            run.step += 1
        steps.settle()


@pytest.mark.parametrize("log_every", [1, 5, 12])
def test_a_nan_moves_no_parameter_and_is_named_at_the_next_reading(tmp_path: Path, log_every: int) -> None:
    found, runs = [], []
    for graph in (False, True):
        run = on_gpu(tmp_path / str(graph), graph, log_every=log_every, evaluate_every=0)
        with pytest.raises(TrainingError) as error:
            run.fit(sequences(kind=SpoiltAt), sequences())
        found.append((str(error.value), run.step, run.optimiser.steps))
        runs.append(run)
    assert found[0] == found[1]
    assert found[0][1] > 0
    assert_close(*runs, 1e-3)  # float32, in another order
    assert all(value.isfinite().all() for value in runs[1].optimiser.tensors().values())


def test_a_run_moves_between_host_and_gpu(tmp_path: Path) -> None:
    """Noise differs between the two, so that what is compared is what a checkpoint says, and that training goes on."""
    data = sequences()
    host = trainer(tmp_path)
    host.fit(data, data, until=4)
    for until, device in ((8, "cuda"), (12, "cpu")):
        saved = checkpoint.load(tmp_path)
        host.save()
        saved = checkpoint.load(tmp_path)
        moved = trainer(tmp_path, device=device)
        moved.restore(saved)
        moved.save()
        again = checkpoint.load(tmp_path)
        names = [name for name in saved.tensors if not name.startswith("random.")]
        assert all(torch.equal(saved.tensors[name], again.tensors[name]) for name in names)
        moved.fit(data, data, until)
        host = moved
    assert files.read_lines(tmp_path / "metrics.jsonl")[-1]["step"] == 12


def test_a_model_scores_alike_on_host_and_gpu(tmp_path: Path) -> None:
    run = on_gpu(tmp_path)
    run.fit(sequences(), sequences())
    batch = sequences().batch(range(24))
    chains = []
    for device in ("cpu", "cuda"):
        model = HRSSM(TINY).to(device)
        model.load_state_dict(run.model.state_dict())
        chains.append(model.boundary_chain(batch.frames.to(device)).marginals().cpu())
    torch.testing.assert_close(*chains, rtol=1e-4, atol=1e-5)  # float32 products in another order


@pytest.mark.parametrize("setting", EVERY)
def test_side_by_side_each_is_as_if_alone(tmp_path: Path, setting: str) -> None:
    (model, data), alone, together, lanes = data_of(setting), [], [], []
    for seed in (1, 2, 3):
        alone.append(on_gpu(tmp_path / f"alone{seed}", model=model, seed=seed, **EVERY[setting]))
        alone[-1].fit(data, data)
    with random_seed(torch.device("cuda"), 5):
        before = torch.cuda.get_rng_state()
        for seed in (1, 2, 3):
            lanes.append(Lane(torch.device("cuda")))
            with lanes[-1].active():
                together.append(on_gpu(tmp_path / f"together{seed}", model=model, seed=seed, **EVERY[setting]))
        fit_together(together, lanes, Splits(data, data, "tiny", "bernoulli", Scaling()))
        assert torch.equal(torch.cuda.get_rng_state(), before), "the lanes have their own noise"
    for one, two in zip(alone, together, strict=True):
        assert_equal(one, two)
        assert (one.run / "metrics.jsonl").read_bytes() == (two.run / "metrics.jsonl").read_bytes()
        states = [checkpoint.load(run.run).tensors["random.cuda"] for run in (one, two)]
        assert torch.equal(*states)


def test_a_step_that_waits_is_refused_with_the_way_out() -> None:
    """In a process of its own: a capture that fails may leave the GPU in a state that others should not meet."""
    program = f"""
import sys, tempfile, pathlib
sys.path[:0] = [{str(Path(__file__).parent)!r}, {os.getcwd()!r}]
from recorded import sequences, trainer
run = trainer(pathlib.Path(tempfile.mkdtemp()), device="cuda")
real = run.model.emission.frames
run.model.emission.frames = lambda features: (features.sum().item(), real(features))[1]
run.fit(sequences(), sequences())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "graph: the training step cannot be captured, use --no-graph" in ended.stderr


# The command line


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "frames.npy"
    found = np.random.default_rng(0).random((40, 6, 3), dtype=np.float32)
    found[::3, 2] = np.nan
    np.save(path, found)
    return path


@pytest.fixture(scope="module")
def whole(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    cli.main(["train", *SMALL, "--data", str(frames), "--out", str(run)])
    return run


def test_every_command_runs_on_the_gpu(frames: Path, whole: Path, tmp_path: Path) -> None:
    on = ["--device", "cuda"]
    cli.main(["evaluate", str(whole), *on, "--particles", "2", "--horizons", "1"])
    for mode in ("reconstruct", "forecast", "jump", "sample", "infill"):
        out = tmp_path / f"{mode}.npz"
        cli.main(
            ["predict", str(whole), *on, "--mode", mode, "--num-samples", "2", "--horizon", "2", "--out", str(out)]
        )
        assert np.isfinite(np.load(out)["frames"]).all()
    for device in ("cpu", "cuda"):
        cli.main(["segment", str(whole), "--device", device, "--out", str(tmp_path / f"{device}.csv")])
    tables = [np.genfromtxt(tmp_path / f"{device}.csv", delimiter=",", skip_header=1) for device in ("cpu", "cuda")]
    np.testing.assert_allclose(*tables, atol=1e-4)  # probabilities in float32
    cli.main(["report", str(whole), *on, "--out", str(tmp_path / "report.html")])


def test_seeds_of_the_command_line_are_runs_of_their_own(frames: Path, whole: Path, tmp_path: Path) -> None:
    cli.main(["train", *SMALL, "--data", str(frames), "--out", str(tmp_path / "seeds"), "--seeds", "2"])
    assert_same(tmp_path / "seeds" / "seed_1", whole)
    assert files.read_json(tmp_path / "seeds" / "seeds.json")["seeds"] == [1, 2]


def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(frames: Path, whole: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "pyro_hrssm", "train"]
    chance, kills, run = np.random.default_rng(0), 0, tmp_path / "run"
    while True:
        begun = (run / "config.json").exists()
        flags = (
            ["--resume", str(run), "--device", "cuda"] if begun else [*SMALL, "--data", str(frames), "--out", str(run)]
        )
        process = subprocess.Popen([*program, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if kills < 2:
            steps, start = _logged(run), time.monotonic()
            while process.poll() is None and _logged(run) <= steps + 1 and time.monotonic() < start + 60:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            kills += 1
        output, _ = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, output
    assert_same(run, whole)


def _logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def assert_same(found: Path, expected: Path) -> None:
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    one, two = checkpoint.load(found), checkpoint.load(expected)
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[name]), name
