"""Training from Python: the run of the command line, from arrays in memory, and what is left of it."""

import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_hrssm
from pyro_hrssm import DataConfig, HRSSMConfig, InputError, Run, TrainingConfig, checkpoint, data, files, fit
from pyro_hrssm.cli import main
from pyro_hrssm.config import LeaveOneOut
from pyro_hrssm.run.process import Interrupted
from pyro_hrssm.run.training import Trainer

TINY: dict[str, Any] = {
    "hidden": 8, "abstract_size": 2, "observation_size": 2, "batch_size": 8, "particles": 2, "steps": 3, "log_every": 1,
    "evaluate_every": 2,
}  # fmt: skip
FLAGS = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
LENGTHS = [9, 6, 9, 4, 7, 9, 5, 9, 3, 9, 8, 9]


def recordings() -> list[np.ndarray]:
    """Of several lengths, in units far from a model's."""
    rng = np.random.default_rng(0)
    return [100 + 7 * rng.normal(size=(length, 3)) for length in LENGTHS]


def padded() -> np.ndarray:
    result = np.zeros((12, 9, 3))
    for row, recording in zip(result, recordings(), strict=True):
        row[: len(recording)] = recording
    return result


def trained(frames: Any, *beside: Any, **given: Any) -> Run:
    return fit(frames, *beside, verbose=False, device="cpu", **(TINY | given))


def same(run: Run, folder: Path) -> None:
    """Whether a run has the parameters, the state and the metrics of the command line's, bit for bit."""
    other = checkpoint.load(folder)
    assert run.loaded.step == other.step
    assert run.loaded.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(run.loaded.tensors[name], other.tensors[name]) for name in other.tensors)
    for name in ("model", "training", "scaling", "data_sha256"):
        assert run.loaded.record[name] == other.record[name], name
    assert run.metrics == files.read_lines(folder / "metrics.jsonl")
    assert run.evaluation == files.read_json(folder / "evaluation.json")


@pytest.fixture
def commanded(tmp_path: Path) -> Any:
    def train(**arrays: Any) -> Path:
        data.save_npz(tmp_path / "own.npz", **arrays)
        main(["train", *FLAGS, "--device", "cpu", "--data", str(tmp_path / "own.npz"), "--out", str(tmp_path / "run")])
        return tmp_path / "run"

    return train


@pytest.mark.usefixtures("no_figures")
def test_every_form_of_the_same_arrays_is_the_run_of_their_archive(commanded: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    frames, boundaries = 100 + 7 * rng.normal(size=(12, 9, 3)).astype(np.float32), rng.random((12, 9)) < 0.3
    frames[rng.random(frames.shape) < 0.1] = np.nan
    frames[:, 0] = 100
    mask = rng.random((12, 9)) < 0.9
    mask[:, 0] = True
    folder = commanded(frames=frames, mask=mask, boundaries=boundaries)
    before = {name: array.copy() for name, array in (("frames", frames), ("mask", mask))}
    same(trained(frames, mask, boundaries), folder)
    same(trained(torch.from_numpy(frames), torch.from_numpy(mask), torch.from_numpy(boundaries)), folder)
    same(trained(list(frames), list(mask), list(boundaries)), folder)
    same(trained({"frames": frames, "mask": mask, "boundaries": boundaries}), folder)
    with np.load(tmp_path / "own.npz") as archive:
        same(trained(archive), folder)
    same(trained(tmp_path / "own.npz"), folder)
    same(trained(frames, mask, boundaries, out=tmp_path / "again"), folder)
    same(Run.load(tmp_path / "again"), folder)
    np.testing.assert_array_equal(frames, before["frames"])
    np.testing.assert_array_equal(mask, before["mask"])


@pytest.mark.usefixtures("no_figures")
def test_recordings_of_several_lengths_are_the_archive_with_their_lengths(commanded: Any) -> None:
    folder = commanded(frames=padded(), lengths=LENGTHS)
    same(trained(recordings()), folder)
    same(trained(padded(), lengths=torch.tensor(LENGTHS)), folder)


@pytest.mark.usefixtures("no_figures")
def test_all_that_lies_beside_frames_counts_also_recording_by_recording(commanded: Any) -> None:
    rng = np.random.default_rng(2)
    labels = [rng.integers(0, 3, length) for length in LENGTHS]
    weights = [rng.integers(1, 5, (length, 3)) for length in LENGTHS]
    names = [f"recording {number}" for number in range(12)]
    table = {"labels": np.full((12, 9), -1), "weights": np.zeros((12, 9, 3))}
    for number, length in enumerate(LENGTHS):
        table["labels"][number, :length], table["weights"][number, :length] = labels[number], weights[number]
    folder = commanded(frames=padded(), lengths=LENGTHS, names=names, **table)
    run = trained(recordings(), labels=labels, weights=weights, names=names)
    assert run.metrics == files.read_lines(folder / "metrics.jsonl")
    assert "held_out_boundary_f1" in run.metrics[-1], "boundaries lie where known labels change"
    assert run.evaluation == files.read_json(folder / "evaluation.json")
    assert set(run.segment(progress=False)["name"]) <= set(names)


@pytest.mark.usefixtures("no_figures")
def test_one_long_recording_is_cut_as_that_of_an_archive(commanded: Any) -> None:
    frames = np.random.default_rng(3).normal(size=(1, 240, 2))
    folder = commanded(frames=frames)
    run = trained([frames[0]])
    same(run, folder)
    assert run.settings.dataset.window_length == 24
    assert len(np.unique(run.segment([frames[0]], progress=False)["sequence"])) == 1, "recordings stay whole"


@pytest.mark.usefixtures("no_figures")
def test_a_named_data_set_and_a_split_of_ones_own(tmp_path: Path) -> None:
    assert trained("levels", steps=1).settings.dataset.data == "levels"
    run = trained({"train": recordings()[:8], "test": recordings()[8:]})
    assert [len(part) for part in run._opened(None, None, {}).source[:2]] == [4, 8]  # type: ignore[arg-type]


def test_nothing_is_left_on_disk_nor_in_torchs_random_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run = trained(recordings())
    run.report("report.html")
    run.forecast(recordings(), 2, progress=False)
    run.segment(recordings(), progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(InputError):
        trained(np.zeros((4, 5)))
    assert os.listdir(tmp_path / "temporary") == []
    assert os.listdir(".") == ["report.html"]
    assert capsys.readouterr() == ("", ""), "neither bars nor sentences"
    assert run.folder is None


@pytest.mark.usefixtures("no_figures")
def test_what_is_read_and_scored_is_printed_where_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    fit(recordings(), **TINY, device="cpu")
    said = capsys.readouterr().out
    assert said.startswith("11 sequences to train on, 1 held out, on cpu; 9 frames of 3 numbers")
    assert "bound (negative ELBO)" in said
    assert tempfile.gettempdir() not in said


@pytest.mark.usefixtures("no_figures")
def test_a_folder_is_the_command_lines_run_and_goes_on_there(commanded: Any, tmp_path: Path) -> None:
    folder = commanded(frames=padded(), lengths=LENGTHS)
    trained(recordings(), out=tmp_path / "fitted", steps=2)
    main(["train", "--resume", str(tmp_path / "fitted"), "--steps", "3"])
    trained(recordings(), steps=2).save(tmp_path / "saved")
    (tmp_path / "fitted").rename(tmp_path / "moved")  # the arrays move with the folder
    main(["train", "--resume", str(tmp_path / "saved"), "--steps", "3"])
    main(["train", *FLAGS, "--steps", "2", "--data", str(tmp_path / "own.npz"), "--out", str(tmp_path / "cut")])
    main(["train", "--resume", str(tmp_path / "cut"), "--steps", "3"])
    for name in ("moved", "saved"):
        same(Run.load(tmp_path / name), tmp_path / "cut")
        main(["evaluate", str(tmp_path / name), "--particles", "1"])
        main(["segment", str(tmp_path / name), "--out", str(tmp_path / "segments.csv")])
    assert checkpoint.load(folder).step == 3
    with pytest.raises(InputError, match="already holds a run"):
        trained(recordings(), out=folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.npz").write_text("the user's own")
    with pytest.raises(InputError, match=r"data\.npz is there already"):
        trained(recordings(), out=tmp_path / "other")
    assert (tmp_path / "other" / "data.npz").read_text() == "the user's own"


@pytest.mark.parametrize(
    "frames",
    [np.zeros((50, 4)), np.zeros((5, 6, 17, 2)), np.zeros((5, 6), complex), np.zeros((1, 9, 3)), np.zeros((0, 5, 2))],
)
def test_errors_are_those_of_the_file(frames: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.npz"
    np.savez(file, frames=frames)
    with pytest.raises(SystemExit):
        main(["train", *FLAGS, "--data", str(file), "--out", str(tmp_path / "run")])
    message = capsys.readouterr().err.removeprefix("pyro-hrssm: own.npz: ").removeprefix(f"pyro-hrssm: {file}: ")
    with pytest.raises(InputError) as refused:
        trained(frames)
    assert str(refused.value) == message.strip()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": [np.ones(9)] * 11}, "mask must have one array for each of 12 recordings, found 11"),
        ({"mask": [np.ones(9)] * 12}, r"mask\[1\] must have shape \[6\], found \[9\]"),
        ({"boundaries": np.ones((12, 8))}, r"boundaries must have shape \[12, 9\] like the frames, found \[12, 8\]"),
        ({"lengths": LENGTHS}, "lengths is for padded frames"),
        ({"names": ["a"]}, r"names must have shape \[12\], one for each sequence, found \[1\]"),
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"step": 5}, "no setting of model, training or dataset is named step; did you mean steps"),
        ({"data": "levels"}, "data is what frames name"),
        ({"preset": "own"}, "preset must be one of auto, segments, rows, video, paper, found own"),
        ({"model": 3}, "model must be an HRSSMConfig, hrssm or rssm, found 3"),
        ({"training": HRSSMConfig()}, "training must be a TrainingConfig"),
        ({"elbo": "trace", "boundary_rate": 0.2}, "boundary_rate needs elbo leave_one_out, found trace"),
        ({"likelihood": "bernoulli"}, r"likelihood bernoulli needs frames in \[0, 1\]"),
    ],
)
def test_a_wrong_argument_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained(recordings(), **given)


def test_recordings_that_disagree_are_named() -> None:
    frames: list[Any] = recordings()
    frames[3] = frames[3].astype(np.float32)
    with pytest.raises(InputError, match=r"recordings must agree .* in frames\[0\] and float32 .* in frames\[3\]"):
        trained(frames)
    with pytest.raises(InputError, match=r"frames\[1\] must be a recording \[T, X…\], found one float"):
        trained([np.zeros(3), 1.0])
    with pytest.raises(InputError, match="at least one recording"):
        trained([])
    with pytest.raises(InputError, match="a file or a data set has its own arrays, found mask beside levels"):
        trained("levels", mask=np.ones((2, 3)))


@pytest.mark.usefixtures("no_figures")
def test_settings_start_from_the_preset_or_from_whole_configurations() -> None:
    own = trained(recordings()).settings
    assert (own.model.max_segments, own.model.hidden, own.training.state_weight) == (None, 8, 1.3)
    assert own.training.leave_one_out.exploration == 0.3, "the preset for a user's own data"
    steered = trained(recordings(), boundary_rate=0.3).settings.training.leave_one_out
    assert (steered.boundary_rate, steered.exploration) == (0.3, 0.3)
    flat = trained(recordings(), model="rssm").settings
    assert (flat.model.model, flat.model.hidden, flat.training.state_weight) == ("rssm", 8, 1.0)
    relaxed = trained(recordings(), elbo="trace").settings.training
    assert (relaxed.elbo, relaxed.state_weight) == ("trace", 1.0)
    paper = trained(recordings(), preset="paper").settings
    assert (paper.model.boundary_posterior, paper.training.elbo) == ("factorised", "trace")
    asked = TrainingConfig(steps=9, elbo=LeaveOneOut(boundary_cost=1.0))
    whole = fit(
        recordings(), model=HRSSMConfig(hidden=4, max_segments=3), training=asked, dataset=DataConfig(held_out=0.5),
        steps=1, batch_size=4, device="cpu", verbose=False,
    ).settings  # fmt: skip
    assert (whole.model.hidden, whole.model.max_segments, whole.training.steps) == (4, 3, 1)
    assert (whole.training.leave_one_out.boundary_cost, whole.dataset.held_out) == (1.0, 0.5)


@pytest.mark.usefixtures("no_figures")
def test_numbers_of_numpy_and_the_users_home_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = trained(recordings(), steps=np.int64(1), learning_rate=np.float32(0.5), credit=np.float64(0.5), out="~/run")
    assert run.folder == tmp_path / "run"
    assert run.settings.training.leave_one_out.credit == 0.5
    run.save("~/saved")
    assert Run.load("~/saved").step == 1


def stopping(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Let a real signal come while a step is under way."""
    real = Trainer.update

    def update(self: Trainer, *batch: Any) -> float:
        if self.step == step:
            os.kill(os.getpid(), number)
        return real(self, *batch)

    monkeypatch.setattr(Trainer, "update", update)


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, as it does in a terminal; tests that run in a shell's background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("no_figures", "heeds_ctrl_c")
def test_ctrl_c_returns_the_run_that_was_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(recordings(), steps=6)
    stopping(monkeypatch, 3, signal.SIGINT)
    with pytest.warns(UserWarning, match="^interrupted at step 4 of 6, whose model this run has$"):
        run = trained(recordings(), steps=6)
    assert (run.step, run.evaluation) == (4, None)
    assert [row for row in whole.metrics if row["step"] <= 4] == run.metrics
    assert run.scores(particles=1, methods="none").sequences == 1
    assert "step 4 of 6" in repr(run)
    with pytest.warns(UserWarning, match="pyro-hrssm train --resume"):
        trained(recordings(), steps=6, out=tmp_path / "stopped")
    run.save(tmp_path / "saved")
    monkeypatch.undo()
    for name in ("stopped", "saved"):
        main(["train", "--resume", str(tmp_path / name), "--device", "cpu"])
        again = Run.load(tmp_path / name)
        assert all(torch.equal(again.loaded.tensors[key], value) for key, value in whole.loaded.tensors.items())


@pytest.mark.usefixtures("no_figures", "heeds_ctrl_c")
def test_ctrl_c_while_the_last_scores_are_taken_and_before_a_step_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Trainer, "score", interrupted)
    with pytest.warns(UserWarning, match="interrupted at step 3 of 3"):
        run = trained(recordings())
    assert (run.step, run.evaluation) == (3, None)
    monkeypatch.setattr(data, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(recordings())
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("no_figures")
def test_another_signal_ends_the_call_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stopping(monkeypatch, 1, signal.SIGTERM)
    with pytest.raises(Interrupted):
        trained(recordings())
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("no_figures")
def test_what_looks_wrong_is_a_warning_of_python() -> None:
    with pytest.warns(UserWarning, match="max_segments 2 and max_length 2 cover 4 of 9 frames") as noted:
        trained(recordings(), max_segments=2, max_length=2)
    assert {warning.filename for warning in noted} == {__file__}


def test_one_process_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="torchrun"):
        trained(recordings())


def test_the_public_names_are_there() -> None:
    assert {"fit", "Run"} <= set(pyro_hrssm.__all__)
    assert pyro_hrssm.fit is fit
    with warnings.catch_warnings():
        assert pyro_hrssm.Run is Run
