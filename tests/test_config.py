"""Records of runs, old and new; flags, and the document that says when one wants each."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pyro_hrssm import HRSSM, DataConfig, HRSSMConfig, InputError, LeaveOneOut, TrainingConfig, checkpoint
from pyro_hrssm.cli import main, parse
from pyro_hrssm.config import from_dict, to_dict

OLD: dict[str, Any] = {
    "steps": 2, "restarts": 1, "restart_steps": 200, "batch_size": 8, "seed": 1, "elbo": "trace", "elbo_particles": 2,
    "boundary_cost": 0.0, "boundary_rate": None, "boundary_warmup_steps": 0, "learning_rate": 0.004,
    "warmup_steps": 100, "final_learning_rate": 0.0001, "amsgrad": False, "clip_norm": 10.0, "temperature_start": 1.0,
    "temperature_end": 0.6, "kl_warmup_steps": 0, "state_weight": 1.0, "log_every": 10, "evaluate_every": 0,
    "checkpoint_every": 250, "keep_checkpoints": 3, "particles": 1, "precision": "float32", "compile": False,
    "workers": 0, "validate": False,
}  # fmt: skip
"""What a run recorded before the settings of `leave_one_out` were a table of their own."""
NEW = TrainingConfig(steps=2, batch_size=8, evaluate_every=0, particles=1)
STEERED: dict[str, Any] = {"boundary_cost": 4.0, "boundary_rate": 0.18, "boundary_warmup_steps": 500}
TINY = ["--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--batch-size", "8", "--particles", "1"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (OLD, "trace"),
        (OLD | {"elbo": "mean_field"}, "mean_field"),
        (OLD | {"elbo": "leave_one_out"}, LeaveOneOut(credit=1.0)),
        (OLD | {"elbo": "leave_one_out", "elbo_particles": 3} | STEERED, LeaveOneOut(3, credit=1.0, **STEERED)),
        (OLD | {"amsgrad": True, "validate": True}, "trace"),
    ],
)
def test_an_old_record_is_read(record: dict[str, Any], expected: Any) -> None:
    read = from_dict(TrainingConfig, record)
    assert read.elbo == expected
    assert dataclasses.replace(read, elbo="trace") == dataclasses.replace(NEW, graph=False, keep_best=False)


def test_a_record_older_than_some_settings_takes_their_defaults() -> None:
    first = {"steps", "boundary_cost", "boundary_rate", "boundary_warmup_steps", "compile", "precision", "state_weight"}
    record = {name: value for name, value in OLD.items() if name not in {*first, "workers"}}
    assert from_dict(TrainingConfig, record | {"steps": 2, "elbo": "leave_one_out"}).elbo == LeaveOneOut(credit=1.0)


def test_a_model_older_than_smoothing_has_the_paper_s_posterior_of_s() -> None:
    old = {name: value for name, value in to_dict(HRSSMConfig(noise_scale=0.3)).items() if name != "smoothing"}
    read = from_dict(HRSSMConfig, old)
    assert (read.smoothing, read.noise_scale) == (False, 0.3)
    now = HRSSMConfig(noise_scale=0.3, smoothing=False)
    assert HRSSM(read).state_dict().keys() == HRSSM(now).state_dict().keys()
    sizes = [tuple(HRSSM(config).posterior.observation.layers[0].weight.shape) for config in (read, HRSSMConfig())]
    assert sizes == [(128, 128 + 8), (128, 2 * 128 + 8)]


def test_a_model_older_than_the_limit_on_short_segments_has_none() -> None:
    record = to_dict(HRSSMConfig(max_length=7))
    assert from_dict(HRSSMConfig, record | {"min_length": 3}).min_length == 3
    del record["min_length"]
    assert from_dict(HRSSMConfig, record) == HRSSMConfig(max_length=7, min_length=1)


def test_a_model_older_than_missing_entries_has_no_flags_of_them() -> None:
    record = to_dict(HRSSMConfig(frame_shape=(8, 8, 3), networks="conv", entry_flags=True))
    flagged = HRSSM(from_dict(HRSSMConfig, record)).posterior.encoder.layers[0].weight.shape
    del record["entry_flags"]
    plain = HRSSM(from_dict(HRSSMConfig, record)).posterior.encoder.layers[0].weight.shape
    assert (flagged[1], plain[1]) == (6, 3)


def test_the_shortest_segment_is_no_longer_than_the_longest() -> None:
    assert HRSSMConfig(min_length=10).min_length == 10
    assert HRSSMConfig(min_length=11, max_length=None).min_length == 11
    with pytest.raises(InputError, match=r"^min_length must be at most max_length 10, found 11$"):
        HRSSMConfig(min_length=11)
    with pytest.raises(InputError, match=r"^min_length must be at least 1, found 0$"):
        HRSSMConfig(min_length=0)


@pytest.mark.parametrize("elbo", ["trace", "mean_field", "leave_one_out", LeaveOneOut(3, **STEERED)])
def test_a_record_is_read_back(elbo: Any) -> None:
    config = TrainingConfig(elbo=elbo)
    assert from_dict(TrainingConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_a_record_keeps_its_form() -> None:
    """Scripts read it, and older versions of the package go on with it."""
    assert OLD.keys() - to_dict(TrainingConfig()).keys() == {"amsgrad", "validate"}
    later = {"compile", "precision", "state_weight", "final_state_weight", "switch_warmup_steps", "workers"}
    later |= {"credit", "exploration", "boundary_price", "prior_from", "graph", "keep_best", "patience"}
    assert to_dict(TrainingConfig()).keys() <= OLD.keys() | later
    assert to_dict(TrainingConfig(elbo=LeaveOneOut(3)))["elbo"] == "leave_one_out"


def test_a_value_that_steers_boundaries_is_checked_too() -> None:
    record = to_dict(TrainingConfig(elbo=LeaveOneOut()))
    for name, value, message in (
        ("boundary_rate", 2.0, "boundary_rate must lie between 0 and 1, found 2.0"),
        ("boundary_cost", float("nan"), "boundary_cost must be a finite number, found nan"),
        ("boundary_warmup_steps", True, "boundary_warmup_steps must be a whole number, found True"),
        ("elbo_particles", 1, "leave_one_out needs at least 2 particles, found 1"),
        ("more", 1, "TrainingConfig has no field 'more'"),
        ("elbo", {"particles": 2}, "elbo must be one of trace, mean_field or a LeaveOneOut, found {"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            from_dict(TrainingConfig, record | {name: value})


def test_the_name_alone_means_its_defaults() -> None:
    assert TrainingConfig(elbo="leave_one_out").elbo == LeaveOneOut()  # type: ignore[arg-type]
    with pytest.raises(InputError, match="elbo must be one of trace, mean_field or a LeaveOneOut, found 'vimco'"):
        TrainingConfig(elbo="vimco")  # type: ignore[arg-type]


def as_old(run: Path, **changes: Any) -> Path:
    """The run, its settings recorded as they once were; with what AMSGrad leaves in Adam's state if they say so."""
    loaded = checkpoint.load(run)
    loaded.record["training"] = OLD | changes
    for later in ("min_length", "entry_flags"):
        del loaded.record["model"][later]
    if changes.get("amsgrad"):
        second = {name: value for name, value in loaded.tensors.items() if name.endswith(".exp_avg_sq")}
        loaded.tensors.update({name.replace("exp_avg_sq", "max_exp_avg_sq"): value for name, value in second.items()})
    checkpoint.save(run, loaded, keep=1)
    return run


@pytest.mark.usefixtures("no_figures")
def test_an_old_run_goes_on_and_one_of_amsgrad_is_only_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["train", *TINY, "--steps", "2", "--evaluate-every", "0", "--elbo", "leave_one_out", "--out", str(run)])
    as_old(run, elbo="leave_one_out", boundary_cost=4.0, elbo_particles=3)
    main(["train", "--resume", str(run), "--steps", "3"])
    recorded = checkpoint.load(run).record["training"]
    assert (recorded["elbo"], recorded["elbo_particles"], recorded["boundary_cost"]) == ("leave_one_out", 3, 4.0)
    as_old(run, amsgrad=True, steps=3)
    main(["evaluate", str(run), "--particles", "1"])
    assert HRSSM.load(run).config.hidden == 8
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(run), "--steps", "4"])
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert [line for line in said if "AMSGrad, which is gone" in line and "cannot be resumed" in line] == said[-1:]


# Flags


def training(*flags: str) -> TrainingConfig:
    command: Any = parse(["train", *flags])
    return command.training  # type: ignore[no-any-return]


def test_flags_beside_leave_one_out_become_its_settings() -> None:
    assert training("--elbo", "leave_one_out").elbo == LeaveOneOut()
    flags = ["--boundary-cost", "4", "--boundary-rate", "0.18", "--boundary-warmup-steps", "500"]
    assert training("--elbo", "leave_one_out", "--elbo-particles", "3", *flags).elbo == LeaveOneOut(3, **STEERED)
    assert training("--preset", "video", *flags, "--elbo=leave_one_out").elbo == LeaveOneOut(**STEERED)
    assert training("--elbo", "mean_field").elbo == "mean_field"
    assert training() == TrainingConfig(steps=2000, batch_size=64, switch_warmup_steps=0)
    assert training("--preset", "paper") == TrainingConfig()


def test_what_a_preset_says_that_is_no_flag_stays() -> None:
    command: Any = parse(["train", "--preset", "video", "--hidden", "16"])
    assert command.model == HRSSMConfig(frame_shape=(32, 32, 3), context=5, max_segments=5, max_length=8, hidden=16)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--boundary-rate", "0.18"], "boundary_rate needs elbo leave_one_out, found trace"),
        (["--boundary-cost", "4"], "boundary_cost needs elbo leave_one_out, found trace"),
        (["--elbo-particles", "3"], "elbo_particles needs elbo leave_one_out, found trace"),
        (["--elbo", "mean_field", "--boundary-cost", "5"], "boundary_cost needs elbo leave_one_out, found mean_field"),
        (["--elbo", "leave_one_out", "--elbo-particles", "1"], "leave_one_out needs at least 2 particles, found 1"),
        (["--elbo", "vimco"], "invalid choice 'vimco'"),
        (["--min-length", "4", "--max-length", "3"], "min_length must be at most max_length 3, found 4"),
        (["--amsgrad"], "Unrecognized options: --amsgrad"),
        (["--validate"], "Unrecognized options: --validate"),
        (["--window", "3"], "Unrecognized options: --window, 3"),
    ],
)  # fmt: skip
def test_flags_that_mean_nothing_together_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", *flags])
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert printed.startswith(f"pyro-hrssm: {message}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("none", ["None", "none"])
def test_none_is_written_in_either_case_wherever_it_is_a_value(none: str) -> None:
    found: Any = parse(["train", "--preset", "rows", "--out", none, "--resume", none, "--max-segments", none])
    assert (found.out, found.resume, found.model.max_segments) == (None, None, None)
    optional = [*("--max-length", none), *("--switch-warmup-steps", none), *("--final-state-weight", none)]
    found = parse(["train", *optional, "--elbo", "leave_one_out", "--boundary-rate", none, "--boundary-price", none])
    assert (found.model.max_length, found.training.switch_warmup_steps) == (None, None)
    assert found.training.final_state_weight is None
    assert (found.training.elbo.boundary_rate, found.training.elbo.boundary_price) == (None, None)
    found = parse(["predict", "run", "--data", none, "--context", none, "--horizon", none])
    assert (found.data, found.context, found.horizon) == (None, None, None)
    assert parse(["evaluate", "run", "--given", none]).given is None  # type: ignore[union-attr]
    assert parse(["data", "colours", "--out", none]).out is None  # type: ignore[union-attr]


def test_none_is_no_value_of_a_flag_that_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--hidden", "none"], ["--noise-scale", "none"], ["--max-segments", "nothing"]):
        with pytest.raises(SystemExit) as stop:
            main(["train", *flags])
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_flag_changes_one_setting_of_the_run_that_goes_on(tmp_path: Path) -> None:
    steered = LeaveOneOut(3, **STEERED)
    record = {"model": to_dict(HRSSMConfig(min_scale=0.5, window=28)), "data": to_dict(DataConfig())}
    old = OLD | STEERED | {"elbo": "leave_one_out", "elbo_particles": 3}
    new = to_dict(TrainingConfig(elbo=steered))
    for number, (written, credit) in enumerate([(new, 0.8), (old, 1.0)]):
        run = tmp_path / str(number)
        checkpoint.save(run, checkpoint.Checkpoint(1, {}, record | {"training": written}), keep=1)
        resume = ["--resume", str(run)]
        assert training(*resume).elbo == LeaveOneOut(3, **STEERED, credit=credit)
        assert training(*resume, "--boundary-rate", "None").elbo == LeaveOneOut(3, 4.0, None, 500, credit)
        assert training(*resume, "--boundary-cost", "1").elbo == LeaveOneOut(3, 1.0, 0.18, 500, credit)
        assert training(*resume, "--elbo", "trace").elbo == "trace"
        with pytest.raises(InputError, match="boundary_cost needs elbo leave_one_out, found trace"):
            training(*resume, "--elbo", "trace", "--boundary-cost", "1")
        command: Any = parse(["train", *resume, "--hidden", "16"])
        assert (command.model.min_scale, command.model.window, command.model.hidden) == (0.5, 28, 16)
        command = parse(["train", *resume, "--min-length", "2"])
        assert (command.model.min_length, command.model.max_length) == (2, 10)


def test_the_document_names_every_flag_and_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = set(re.findall(r"^[│\s]*(--[a-z][a-z-]*)", capsys.readouterr().out, flags=re.MULTILINE))
    text = (Path(__file__).parent.parent / "docs" / "OPTIONS.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(--[a-z][a-z-]*)` \| \S", text, flags=re.MULTILINE)
    assert len(shown) > 40
    assert sorted(named) == sorted(shown)
    assert set(re.findall(r"--[a-z][a-z-]*", text)) <= shown | {"--help"}


# The parser's message


class Screen(io.StringIO):
    """What stdout is connected to: a terminal, or none, of some encoding."""

    encoding = ""

    def __init__(self, encoding: str, terminal: bool) -> None:
        super().__init__()
        self.encoding, self.terminal = encoding, terminal

    def isatty(self) -> bool:
        return self.terminal


def said(*arguments: str) -> str:
    with pytest.raises(InputError) as refusal:
        parse(arguments)
    return str(refusal.value)


@pytest.mark.parametrize("width", ["", "1", "40", "100"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("terminal", [False, True])
def test_the_parsers_message_does_not_hang_on_the_terminal(
    width: str, encoding: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A narrow one would cut words in two, a terminal would have colours, another encoding another frame."""
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stdout", Screen(encoding, terminal))
    value = f"{'many' * 15} ---- {'few' * 15},{'some' * 15}"
    expected = f"Error parsing --hidden: invalid literal for int() with base 10: '{value}'"
    assert said("train", "--hidden", value) == expected
    assert said("train", "--hiden", "4") == "Unrecognized options: --hiden, 4"
    assert said("train", "--likelihood", "poisson") == (
        "invalid choice 'poisson' for argument '--likelihood'. Expected one of ('auto', 'bernoulli', 'normal')."
    )
    assert said("train", "--hidden", "-4") == "hidden must be at least 1, found -4"
    assert said() == "Expected one of {train, evaluate, predict, segment, report, data}."
    assert said("data", "nothing").startswith("Unrecognized options: nothing")
    assert said("evaluate").startswith("Missing from pyro-hrssm evaluate: PATH Run folder, or one checkpoint file.")
    assert os.environ["COLUMNS"] == width
