"""The command line end to end, on a tiny configuration, as a user would call it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyro_hrssm import HRSSM, checkpoint
from pyro_hrssm.cli import main

TINY = [
    *("--hidden", "8", "--abstract-size", "2", "--observation-size", "2"),
    *("--batch-size", "8", "--particles", "2", "--log-every", "1"),
]
SCORES = {
    "nats_per_sequence", "iwae_nats_per_sequence", "nats_per_frame", "terms", "boundary_rate", "forced_rate",
    "mean_segment_length",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    main(["train", *TINY, "--steps", "4", "--checkpoint-every", "2", "--out", str(folder)])
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_train_leaves_a_whole_run(run: Path) -> None:
    assert {path.stem for path in (run / "figures").glob("*.png")} == {
        "reconstructions", "boundaries", "samples", "training",
    }  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "nats_per_sequence" in row] == [1, 2, 3, 4]
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["likelihood"] == "bernoulli"
    assert config["model"]["window"] == 28
    assert set(json.loads((run / "evaluation.json").read_text())) >= SCORES
    assert list((run / "tensorboard").iterdir())
    assert HRSSM.load(run).config.hidden == 8


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


def test_resume_goes_on_with_the_runs_own_settings(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    main(["train", *TINY, "--steps", "4", "--checkpoint-every", "2", "--out", str(whole)])
    main(["train", *TINY, "--steps", "4", "--checkpoint-every", "2", "--out", str(cut)])
    (cut / "checkpoints/00000004.safetensors").unlink()
    main(["train", "--resume", str(cut)])
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    one, two = checkpoint.load(whole), checkpoint.load(cut)
    assert one.record == two.record
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors | two.tensors)


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


def test_python_m_pyro_hrssm_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyro_hrssm", "train", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "--max-segments" in done.stdout
