"""The command line end to end, on a tiny configuration, as a user would call it."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_hrssm import HRSSM, checkpoint, data
from pyro_hrssm.cli import main
from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import balls
from pyro_hrssm.inference import bounds
from pyro_hrssm.inference.scores import methods
from pyro_hrssm.inference.scores.methods import markov
from pyro_hrssm.run.training import Trainer

TINY = [
    *("--hidden", "8", "--abstract-size", "2", "--observation-size", "2"),
    *("--batch-size", "8", "--particles", "2", "--log-every", "1"),
]
SCORES = {
    "nats_per_sequence", "iwae_nats_per_sequence", "nats_per_frame", "terms", "boundary_rate", "forced_rate",
    "mean_segment_length",
}  # fmt: skip
OLD_DATA = ("data", "data_root", "held_out", "split_seed")
"""What the records of old runs say about data."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    main(["train", *TINY, "--steps", "4", "--checkpoint-every", "2", "--out", str(folder)])
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    lines = capsys.readouterr().err.split("\n")
    assert stop.value.code == 2
    message = "\n".join(line for line in lines if not line.startswith("\r"))  # work may have shown its bar before
    assert message.count("\n") == 1, message
    return message


def test_train_leaves_a_whole_run(run: Path) -> None:
    assert {path.stem for path in (run / "figures").glob("*.png")} == {
        "reconstructions", "boundaries", "samples", "segments", "segment_lengths", "training",
    }  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "nats_per_sequence" in row] == [1, 2, 3, 4]
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["likelihood"] == "bernoulli"
    assert config["model"]["window"] == 28
    assert set(json.loads((run / "evaluation.json").read_text())) >= SCORES
    assert list((run / "tensorboard").iterdir())
    assert HRSSM.load(run).config.hidden == 8


def test_evaluate_takes_passes_of_the_runs_batch_size(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int | None]] = []
    real = bounds.rows_at_once
    monkeypatch.setattr(bounds, "rows_at_once", lambda *sizes: asked.append(sizes[1:]) or real(*sizes))
    main(["evaluate", str(run), "--particles", "2", "--json"])
    assert set(asked) == {(28, 64 * 8)}


def test_evaluate_prints_one_json_object_and_repeats_itself(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for _ in range(2):
        main(["evaluate", str(run), "--particles", "2", "--json"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    scores = json.loads(printed[0])
    assert set(scores) >= SCORES
    assert set(scores["terms"]) == {"emission", "z", "s", "m"}
    assert sum(scores["terms"].values()) == pytest.approx(scores["nats_per_sequence"], rel=1e-4)  # float32 sums
    main(["evaluate", str(run), "--particles", "2"])
    assert "nats per sequence" in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures")
def test_resume_goes_on_with_the_runs_own_settings(run: Path, tmp_path: Path) -> None:
    whole, cut = run, tmp_path / "cut"
    main(["train", *TINY, "--steps", "4", "--checkpoint-every", "2", "--out", str(cut)])
    (cut / "checkpoints/00000004.safetensors").unlink()
    main(["train", "--resume", str(cut)])
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    one, two = checkpoint.load(whole), checkpoint.load(cut)
    assert one.record == two.record
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors | two.tensors)


@pytest.mark.usefixtures("no_figures")
def test_a_run_that_goes_on_with_other_sequences_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "mine.npz", tmp_path / "run"
    data.save_npz(file, **data.generate("colours", 12, 0, num_frames=6))
    main(["train", *TINY, "--steps", "2", "--data", str(file), "--out", str(run)])
    main(["train", "--resume", str(run), "--steps", "3"])
    assert "other sequences" not in capsys.readouterr().err
    data.save_npz(file, **data.generate("colours", 12, 1, num_frames=6))
    main(["train", "--resume", str(run), "--steps", "4"])
    assert f"pyro-hrssm: {run} began with other sequences than it goes on with now" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_limits_that_cannot_cover_the_frames_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.npz"
    data.save_npz(file, **data.generate("colours", 12, 0, num_frames=6))
    settings = [*TINY, "--steps", "1", "--data", str(file), "--max-segments", "2"]
    main(["train", *settings, "--max-length", "3", "--out", str(tmp_path / "covered")])
    assert "max_segments" not in capsys.readouterr().err
    main(["train", *settings, "--max-length", "2", "--out", str(tmp_path / "uncovered")])
    printed = capsys.readouterr().err
    assert printed.startswith(
        "pyro-hrssm: max_segments 2 and max_length 2 cover 4 of 6 frames: segments end by force at max_length, and "
        "the last one is longer than it, whatever the data say\n"
    )
    assert printed.count("pyro-hrssm:") == 1


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("frames", "flags", "said"),
    [
        (np.eye(6, dtype=np.uint8), [], "uint8 as they are; likelihood bernoulli"),
        (np.eye(6, dtype=np.uint16) * 4000, [], "uint16 divided by 4095; likelihood bernoulli"),
        (np.eye(6, dtype=np.uint8), ["--scaling", "standard"], "standardised; likelihood normal"),
        (
            np.eye(6) / 2,
            ["--likelihood", "bernoulli", "--scaling", "none"],
            "float64 as they are; likelihood bernoulli",
        ),
        (np.eye(6) - 2, ["--scaling", "unit"], "float64 mapped from [-2, -1] to [0, 1]; likelihood normal"),
    ],
)
def test_the_first_line_says_what_was_read_and_how_it_is_scaled(
    frames: np.ndarray, flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "mine.npz", frames=np.tile(frames, (12, 1, 1)), actions=np.zeros(3))
    run = tmp_path / "run"
    main(["train", *TINY, "--steps", "1", "--data", str(tmp_path / "mine.npz"), "--out", str(run), *flags])
    printed = capsys.readouterr()
    first = printed.out.splitlines()[0]
    assert first.startswith(f"{run}: 11 sequences to train on, 1 held out, on ")
    assert "; 6 frames of 6 numbers, " in first
    assert said.replace(";", "; not read: actions;") in first
    # Another file is scaled as the run is, and its reading is told where it cannot spoil JSON.
    np.save(tmp_path / "other.npy", np.tile(frames, (3, 1, 1)))
    main(["evaluate", str(run), "--data", str(tmp_path / "other.npy"), "--particles", "2", "--json"])
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert printed.err.startswith(f"pyro-hrssm: Sequences of {tmp_path / 'other.npy'}: 6 frames of 6 numbers, ")


def test_a_bernoulli_is_refused_at_the_start_where_frames_leave_the_unit_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).random((12, 6, 3)))
    flags = ["--data", str(tmp_path / "grey.npy"), "--out", str(tmp_path / "run"), "--likelihood", "bernoulli"]
    printed = refused(capsys, "train", *TINY, *flags)
    assert printed.startswith("pyro-hrssm: likelihood bernoulli needs frames in [0, 1], found values from -")
    assert "--scaling none keeps frames" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_figures")
def test_a_run_on_zeros_and_ones_takes_no_grey_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "mine.npy", np.tile(np.eye(6, dtype=np.uint8), (12, 1, 1)))
    np.save(tmp_path / "grey.npy", np.tile(np.eye(6, dtype=np.uint8) * 255, (12, 1, 1)))
    main(["train", *TINY, "--steps", "1", "--data", str(tmp_path / "mine.npy"), "--out", str(tmp_path / "run")])
    capsys.readouterr()
    printed = refused(capsys, "evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "grey.npy"))
    assert "found values from 0 to 255 (uint8, as they are); the run was trained on frames in other units" in printed
    printed = refused(capsys, "train", "--resume", str(tmp_path / "run"), "--scaling", "unit", "--steps", "2")
    assert "scaling is auto there, found unit; train another run" in printed


@pytest.mark.usefixtures("no_figures")
def test_an_old_run_keeps_its_scaling_and_its_reading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes of 0 and 1 were divided by 255, and two axes were numbers, without a word."""
    numbers, file, run = np.tile(np.eye(6, dtype=np.uint8), (4, 1)), tmp_path / "mine.npy", tmp_path / "run"
    np.save(file, numbers[..., None])
    main(["train", *TINY, "--steps", "1", "--data", str(file), "--out", str(run)])
    np.save(file, numbers)
    newest = checkpoint.load(run)
    settings = {key: value for key, value in newest.record["data"].items() if key in OLD_DATA}
    record = newest.record | {"data": settings, "scaling": {"shift": 0.0, "scale": 255.0}}
    checkpoint.save(run, newest._replace(record=record), keep=1)
    main(["predict", str(run), "--mode", "sample", "--num-sequences", "3", "--out", str(tmp_path / "p.npz")])
    assert np.load(tmp_path / "p.npz")["original"].max() == pytest.approx(1)  # the file's own units
    main(["train", "--resume", str(run), "--steps", "2"])
    assert "6 frames of 1 number, uint8 divided by 255; likelihood bernoulli" in capsys.readouterr().out
    assert checkpoint.load(run).record["scaling"] == {"shift": 0.0, "scale": 255.0}
    assert "frames may mean two things" in refused(capsys, "train", "--data", str(file), "--out", str(tmp_path / "new"))


@pytest.mark.usefixtures("no_figures")
def test_boundaries_that_look_like_starts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = data.generate("colours", 12, 0, num_frames=6)
    starts = np.concatenate([np.ones((12, 1), bool), made["boundaries"][:, :-1]], axis=1)
    np.savez(tmp_path / "ends.npz", frames=made["frames"], boundaries=made["boundaries"])
    np.savez(tmp_path / "starts.npz", frames=made["frames"], boundaries=starts)
    doubt = "--boundaries-mark starts reads them so\n"
    flags, scores = [*TINY, "--steps", "1"], []
    read_as_starts = ["--boundaries-mark", "starts"]
    for name, extra, told in (("starts", [], True), ("starts", read_as_starts, False), ("ends", [], False)):
        file, run = tmp_path / f"{name}.npz", tmp_path / f"run_{len(scores)}"
        main(["train", *flags, *extra, "--data", str(file), "--out", str(run)])
        assert (doubt in capsys.readouterr().err) == told
        main(["evaluate", str(run), "--data", str(file), "--json", "--particles", "2"])
        printed = capsys.readouterr()
        assert (doubt in printed.err) == told
        scores.append(json.loads(printed.out) | {"source": None})
    assert scores[1] == scores[2] != scores[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hidden", "-4"], ["hidden", "-4"]),
        (["--hidden", "many"], ["hidden", "many"]),
        (["--likelihood", "poisson"], ["likelihood", "poisson", "normal"]),
        (["--hiden", "4"], ["--hiden"]),
        (["--data", "nosuchdata"], ["nosuchdata", "mnist5k"]),
        (["--context", "28"], ["context", "28"]),
        (["--learning-rate", "nan"], ["learning_rate", "nan"]),
        (["--resume", "nosuchrun"], ["nosuchrun"]),
        (["--preset", "nosuch"], ["nosuch"]),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(
    flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "train", *TINY, "--out", str(tmp_path / "run"), *flags)
    assert all(word in message for word in words), message
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_is_never_written_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "config.json").read_bytes()
    assert "--resume" in refused(capsys, "train", *TINY, "--steps", "1", "--out", str(run))
    assert (run / "config.json").read_bytes() == before


def test_evaluate_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "checkpoint" in refused(capsys, "evaluate", str(tmp_path))
    assert "evaluate" in refused(capsys, "evaluate")


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("predict", ["--quantiles", "0.1", "0.9", "--num-samples", "8"], "num_samples of at least 9, found 8"),
        ("predict", ["--quantiles", "1.1"], "quantiles must lie between 0 and 1, found 1.1"),
        ("predict", ["--num-samples", "0"], "num_samples must be at least 1, found 0"),
        ("evaluate", ["--horizons", "1", "--num-samples", "8"], "num_samples of at least 9, found 8"),
        ("evaluate", ["--flat", "elsewhere", "--methods", "quick"], "flat needs --horizons, or true boundaries"),
        ("evaluate", ["--horizons", "1", "--flat", "elsewhere"], "elsewhere"),
    ],
)
def test_what_forecasts_cannot_have_is_refused(
    run: Path, command: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, command, str(run), *flags)


def test_quantiles_under_a_bernoulli_are_told_to_be_of_two_values(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q.npz"
    main(["predict", str(run), "--quantiles", "0.5", "--num-samples", "3", "--num-sequences", "1", "--out", str(out)])
    assert "every draw of an entry is its smallest or largest value" in capsys.readouterr().out
    with np.load(out) as arrays:
        assert set(np.unique(arrays["quantiles"])) == {0, 255}


@pytest.mark.parametrize("mode", ["reconstruct", "forecast", "jump", "sample"])
def test_predict_writes_arrays_and_pictures(run: Path, mode: str, tmp_path: Path) -> None:
    out = tmp_path / "found" / "out.npz"
    flags = ["--num-sequences", "3", "--num-samples", "2", "--context", "20", "--horizon", "4", "--out", str(out)]
    main(["predict", str(run), "--mode", mode, *flags])
    total = {"reconstruct": 28, "forecast": 24, "jump": 24, "sample": 4}[mode]
    with np.load(out) as arrays:
        assert arrays["frames"].shape == (2, 3, total, 28)
        assert arrays["boundaries"].shape == (2, 3, total)
        assert arrays["original"].shape == (3, 28, 28)
        assert arrays["frames"].min() >= 0
        assert 1 < arrays["frames"].max() <= 255, "in the data's own units, grey values"
    for name in ("out_sequences.png", "out_samples.png", "out.gif"):
        assert (out.parent / name).stat().st_size > 1000


def test_infill_and_segment_read_a_users_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = np.random.default_rng(0).random((3, 28, 28), dtype=np.float32)
    frames[0, 5:8] = np.nan
    frames[1, 20:] = np.nan
    np.save(tmp_path / "mine.npy", frames)
    flags = ["--data", str(tmp_path / "mine.npy")]
    main(["predict", str(run), "--mode", "infill", *flags, "--num-samples", "2", "--out", str(tmp_path / "filled.npz")])
    with np.load(tmp_path / "filled.npz") as arrays:
        assert np.isfinite(arrays["frames"][:, 0]).all()
        np.testing.assert_allclose(arrays["frames"][0, 2], frames[2], atol=1e-6)  # float32 units and back
    main(["segment", str(run), *flags, "--out", str(tmp_path / "segments.csv")])
    with (tmp_path / "segments.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["sequence", "row", "start", "end", "probability"]
    covered = {number: [r for r in rows if r["sequence"] == r["row"] == number] for number in "012"}
    assert len(rows) == sum(map(len, covered.values()))
    for number, last in (("0", 27), ("1", 19), ("2", 27)):
        starts, ends = ([int(r[column]) for r in covered[number]] for column in ("start", "end"))
        assert starts == [0, *(end + 1 for end in ends[:-1])]
        assert ends[-1] == last
        assert covered[number][-1]["probability"] == ""
        assert all(0 < float(r["probability"]) <= 1 for r in covered[number][:-1])
    capsys.readouterr()
    assert "missing" in refused(capsys, "predict", str(run), "--mode", "infill", "--out", str(tmp_path / "x.npz"))
    assert "nosuch" in refused(capsys, "segment", str(run), "--data", "nosuch.npy")
    assert ".npz" in refused(capsys, "predict", str(run), "--out", str(tmp_path / "x.csv"))


@pytest.mark.usefixtures("no_figures")
def test_segments_that_say_nothing_are_told_once_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyro_hrssm.inference.doubts.ALWAYS", -1.0)
    np.savez(tmp_path / "own.npz", frames=np.random.default_rng(0).random((20, 6, 3)))
    sizes = ["--steps", "1", "--batch-size", "4", "--hidden", "8", "--particles", "1"]
    main(["train", "--data", str(tmp_path / "own.npz"), *sizes, "--out", str(tmp_path / "run")])
    printed = capsys.readouterr()
    assert "pyro-hrssm: a segment ends with" in printed.err
    assert "boundary rate" in printed.out
    main(["train", "--data", str(tmp_path / "own.npz"), *sizes, "--model", "rssm", "--out", str(tmp_path / "flat")])
    assert "a segment ends with" not in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_the_video_preset_trains_on_balls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balls, "DEFAULT_NUM", 60)
    sizes = ["--hidden", "8", "--channels", "2", "--batch-size", "4", "--steps", "1", "--particles", "1"]
    main(["train", "--preset", "video", *sizes, "--out", str(tmp_path / "video")])
    config = HRSSM.load(tmp_path / "video").config
    assert (config.context, config.window, config.max_segments, config.max_length) == (5, 20, 5, 8)
    assert config.convolutional


LONG_NAME = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--data", "OWN", "--out", LONG_NAME),
        ("train", "--data", LONG_NAME),
        ("train", "--data", f"{LONG_NAME}.npz"),
        ("train", "--resume", LONG_NAME),
        ("evaluate", LONG_NAME),
        ("evaluate", "RUN", "--data", LONG_NAME),
        ("segment", "RUN", "--out", f"{LONG_NAME}.csv"),
        ("report", "RUN", "--out", f"{LONG_NAME}.html"),
        ("data", "colours", "--num", "2", "--out", f"{LONG_NAME}.npz"),
    ],
)
def test_a_name_too_long_is_one_line(
    arguments: tuple[str, ...], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "own.npz", frames=np.random.default_rng(0).random((20, 6, 3)))
    paths = {"OWN": str(tmp_path / "own.npz"), "RUN": str(run)}
    message = refused(capsys, *(paths.get(argument, argument) for argument in arguments))
    assert LONG_NAME[:100] in message, "a message shortens a value"


@pytest.fixture
def nobody() -> Iterator[None]:
    """Permissions bind: a user without any where the tests are root's."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "CLOSED/run"), ("train", "--resume", "CLOSED/run"), ("train", "--data", "CLOSED/own.npz"),
        ("train", "--data", "colours", "--out", "CLOSED/run"), ("segment", "CLOSED/run"),
        ("data", "colours", "--num", "2", "--out", "CLOSED/made.npz"),
    ],
)  # fmt: skip
def test_a_folder_that_must_not_be_searched_is_one_line(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(tempfile.mkdtemp())
    closed = folder / "closed"
    closed.mkdir()
    closed.chmod(0)
    try:
        message = refused(capsys, *(argument.replace("CLOSED", str(closed)) for argument in arguments))
        assert f"{closed}/" in message
        assert "Permission denied" in message or f"no such file: {closed}/own.npz" in message
    finally:
        closed.chmod(0o700)
        closed.rmdir()
        folder.rmdir()


def test_a_home_of_no_user_is_a_file_that_is_not_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file: ~nobody-of-this-name/x.npz" in refused(
        capsys, "evaluate", str(run), "--data", "~nobody-of-this-name/x.npz"
    )


@pytest.mark.parametrize("command", ["evaluate", "predict", "report", "train"])
def test_a_seed_that_no_generator_takes_is_one_line(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed, where = "12345678901234567890123", [] if command == "train" else [str(run)]
    out = {"predict": ["--out", str(tmp_path / "p.npz")], "report": ["--out", str(tmp_path / "r.html")]}.get(
        command, []
    )
    message = refused(capsys, command, *where, "--seed", seed, *out)
    assert "seed must" in message
    assert seed in message
    assert not list(tmp_path.iterdir())


def test_the_shell_of_a_notebook_changes_no_command(run: Path) -> None:
    """Its backend draws nothing here, and an output in ASCII has no ±."""
    environment = os.environ | {"MPLBACKEND": "nonsense", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "pyro_hrssm", "evaluate", str(run), "--particles", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert "\\xb1" in done.stdout


def test_importing_the_package_leaves_a_notebooks_backend() -> None:
    program = (
        "import os, pyro_hrssm.cli, pyro_hrssm.plotting, matplotlib\n"
        "assert os.environ['MPLBACKEND'] == 'pdf' == matplotlib.get_backend()"
    )
    environment = os.environ | {"MPLBACKEND": "pdf"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr


def test_python_m_pyro_hrssm_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyro_hrssm", "train", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "--max-segments" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
def test_a_reader_that_leaves_ends_it_quietly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyro_hrssm", "data", "colours", "--num", "4", "--out", str(tmp_path / "made.npz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE
    assert (tmp_path / "made.npz").exists()


def test_data_is_generated_trained_on_and_scored_flat_and_hierarchical(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made.npz"
    main(["data", "colours", "--num", "40", "--seed", "3", "--num-frames", "8", "--noise", "0.2", "--out", str(made)])
    assert "frames [40, 8, 3]" in capsys.readouterr().out
    with np.load(made) as arrays:
        expected = data.generate("colours", 40, 3, num_frames=8, noise=0.2)
        assert all(np.array_equal(arrays[name], value) for name, value in expected.items())
    scores = {}
    for kind in ("hrssm", "rssm"):
        folder = tmp_path / kind
        main(["train", *TINY, "--model", kind, "--steps", "2", "--data", str(made), "--out", str(folder)])
        assert "frame_difference" in capsys.readouterr().out
        assert (folder / "figures/segments.png").exists() == (kind == "hrssm")
        main(["evaluate", str(folder), "--particles", "2", "--horizons", "1", "4", "--methods", "quick", "--json"])
        scores[kind] = json.loads(capsys.readouterr().out)
        assert set(scores[kind]["boundaries"]) >= {"precision", "recall", "f1", "f1_tolerance_1", "baselines"}
        assert set(scores[kind]["forecast_nats"]) == {"1", "4"}
        assert scores[kind]["boundaries"]["baselines"]["best_possible"]["f1"] > 0.9, "colours are clear of the noise"
    assert scores["rssm"]["boundaries"]["f1"] == 0
    assert scores["rssm"]["boundaries"]["baselines"]["always"] == scores["hrssm"]["boundaries"]["baselines"]["always"]
    for command in (["segment", "--out", str(tmp_path / "s.csv")], ["predict", "--mode", "jump"]):
        assert "HRSSM is needed, found rssm" in refused(capsys, command[0], str(tmp_path / "rssm"), *command[1:])
    assert "horizons" in refused(capsys, "evaluate", str(tmp_path / "rssm"), "--horizons", "9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data",), "balls, bounce, colours"),
        (("data", "nothing"), "nothing"),
        (("data", "colours", "--noise", "-1"), "noise"),
        (("data", "balls", "--num", "0"), "num"),
    ],
)
def test_data_refuses_what_it_cannot_make(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *arguments)


def test_brief_trials_paint_no_figures(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", frames=np.random.default_rng(0).random((20, 6, 3)))
    trials = ["--restarts", "2", "--restart-steps", "1", "--steps", "2"]
    main(["train", *TINY, "--data", str(tmp_path / "own.npz"), *trials, "--out", str(tmp_path / "run")])
    assert (tmp_path / "run/restarts/seed_2/checkpoints").is_dir()
    assert [folder.parent.name for folder in tmp_path.rglob("figures")] == ["run"]


@pytest.mark.usefixtures("no_figures")
def test_held_out_sequences_choose_no_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bound, which the run reports, would be favoured by the choice."""
    data.save_npz(tmp_path / "mine.npz", **data.generate("colours", 40, 0, num_frames=8))
    train = data.load(DataConfig(str(tmp_path / "mine.npz"))).train.rows
    bound = Trainer.bound

    def scripted(self: Trainer, these: data.Sequences, *most: int) -> Any:
        """The first seed is the best on training sequences, and the second one on the others."""
        nats = self.config.seed * (1.0 if np.isin(these.rows, train).all() else -1.0)
        return dataclasses.replace(bound(self, these, *most), nats_per_sequence=nats)

    monkeypatch.setattr(Trainer, "bound", scripted)
    settings = [*TINY, "--steps", "4", "--evaluate-every", "0", "--data", str(tmp_path / "mine.npz")]
    main(["train", *settings, "--restarts", "2", "--restart-steps", "2", "--out", str(tmp_path / "run")])
    assert checkpoint.load(tmp_path / "run").record["training"]["seed"] == 1
    assert [row["training_nats_per_sequence"] for row in json.loads((tmp_path / "run/restarts.json").read_text())] == [
        1,
        2,
    ]


@pytest.mark.usefixtures("no_figures")
def test_restarts_go_on_with_the_best_seed_and_report_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.npz"
    data.save_npz(file, **data.generate("colours", 40, 0, num_frames=8))
    settings = [*TINY, "--steps", "4", "--evaluate-every", "0", "--data", str(file)]
    main(["train", *settings, "--restarts", "3", "--restart-steps", "2", "--out", str(tmp_path / "best")])
    rows = json.loads((tmp_path / "best/restarts.json").read_text())
    assert [row["seed"] for row in rows] == [1, 2, 3]
    best = min(rows, key=lambda row: row["training_nats_per_sequence"])["seed"]
    assert f"going on with seed {best}" in capsys.readouterr().out
    straight = tmp_path / "straight"
    main(["train", *settings, "--seed", str(best), "--out", str(straight)])
    one, two = checkpoint.load(tmp_path / "best"), checkpoint.load(straight)
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors | two.tensors)
    assert one.record["training"]["seed"] == best


@pytest.mark.usefixtures("no_figures")
def test_evaluate_compares_with_other_methods_and_a_flat_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(markov, "STATES", (3,))
    file, other = tmp_path / "mine.npz", tmp_path / "other.npz"
    data.save_npz(file, **data.generate("colours", 40, 3, num_frames=8))
    data.save_npz(other, **data.generate("colours", 40, 4, num_frames=8))
    settings = [*TINY, "--steps", "2", "--evaluate-every", "0"]
    for name, source, kind in (("run", file, "hrssm"), ("flat", file, "rssm"), ("far", other, "rssm")):
        main(["train", *settings, "--model", kind, "--data", str(source), "--out", str(tmp_path / name)])
    for name, *further in (("later", "--context", "2"), ("raw", "--scaling", "none", "--likelihood", "normal")):
        main(["train", *settings, "--model", "rssm", *further, "--data", str(file), "--out", str(tmp_path / name)])
    quick = json.loads((tmp_path / "run/evaluation.json").read_text())["boundaries"]
    assert set(quick["baselines"]) == {*methods.QUICK, "best_possible"}
    command, flat = ["evaluate", str(tmp_path / "run"), "--particles", "2"], ["--flat", str(tmp_path / "flat")]
    capsys.readouterr()
    printed = []
    for _ in range(2):
        main([*command, *flat, "--margin", "2", "--json"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    found = json.loads(printed[0])["boundaries"]
    assert set(found["baselines"]) == {*methods.QUICK, *methods.NEEDS, "best_possible"}
    assert found["margin"] == found["permutation"]["margin"] == 2
    assert all("f1_margin" in row and "covering" in row for row in (found, *found["baselines"].values()))
    assert set(found["parameters"]) == {*methods.QUICK, *methods.NEEDS} - {"always", "never"}
    main([*command, *flat])
    table = capsys.readouterr().out
    assert "  surprise_peaks " in table
    main(command)
    assert "without surprise_peaks: needs a flat run: --flat RSSM_RUN" in capsys.readouterr().out
    main([*command, "--methods", "none", "--json"])
    assert json.loads(capsys.readouterr().out)["boundaries"]["baselines"] == {}
    assert set(found["labels"]) == {"gaussian_hmm", "sticky_hmm"}
    assert found["left_out"] == {"types of the model": "pyro-hrssm segment RUN --types K gives a run types"}
    main(["segment", str(tmp_path / "run"), "--types", "2", "--out", str(tmp_path / "segments.csv")])
    capsys.readouterr()
    main([*command, "--methods", "none", "--json"])
    typed = json.loads(capsys.readouterr().out)["boundaries"]
    assert set(typed["labels"]) == {"model"}
    assert typed["left_out"] == {}
    assert "margin" in refused(capsys, *command, "--margin", "-1")
    assert "and --methods all: found neither" in refused(capsys, *command, *flat, "--methods", "quick")
    assert "an RSSM, found an HRSSM" in refused(capsys, *command, "--flat", str(tmp_path / "run"))
    assert "found others in" in refused(capsys, *command, "--flat", str(tmp_path / "far"))
    assert "context of 0 frames, found 2" in refused(capsys, *command, "--flat", str(tmp_path / "later"))
    assert "found another scaling in" in refused(capsys, *command, "--flat", str(tmp_path / "raw"))
