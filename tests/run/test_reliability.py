"""Runs that are killed, interrupted or out of disk: the files kept, the message, and resuming bit for bit.

Each case is a process of the command line. Since its start takes seconds, nearly all of them for imports, this file,
run as a program, imports everything once and forks a process per case.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

from benchmarks import soak
from pyro_hrssm import HRSSM, HRSSMConfig, TrainingConfig, checkpoint, cli, data, files
from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import Sequences
from pyro_hrssm.errors import InputError
from pyro_hrssm.run import lock, training, use
from pyro_hrssm.run.process import Interrupted
from pyro_hrssm.run.training import Trainer

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks processes")

STEPS = 24
SETTINGS = [
    *("--device", "cpu", "--hidden", "8", "--abstract-size", "2", "--observation-size", "2"),
    *("--max-segments", "3", "--max-length", "3", "--batch-size", "8", "--particles", "1"),
    *("--steps", str(STEPS), "--log-every", "1", "--evaluate-every", "5", "--keep-checkpoints", "2"),
]
KILLS = 50


def serve() -> None:
    """Fork a command for each line read, and report its exit code on request."""
    # Figures take seconds each, and no case here tests them.
    training.paint = lambda *_: {}
    cli.parse(["train"])
    _import_what_adam_imports()
    for line in iter(sys.stdin.readline, ""):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            _command(json.loads(line), writer)
        os.close(writer)
        print(pid, flush=True)
        sys.stdin.readline()
        with open(reader, encoding="utf-8") as output:
            said = output.read()
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said]), flush=True)


def _import_what_adam_imports() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.Adam([parameter], fused=True).step()


def _command(job: dict[str, object], output: int) -> NoReturn:
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests' parent may ignore Ctrl-C
    if job["largest_file"]:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], resource.RLIM_INFINITY))
    code: object = 0
    try:
        cli.main(job["arguments"])
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 71)


class CommandLine:
    """Commands, each in its own process, one at a time."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
        self.running = 0
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, *arguments: object, largest_file: int = 0) -> int:
        """Start a command and return its process id, which is not reused before :meth:`wait`."""
        if self.running:  # left by a test that failed
            os.kill(self.running, signal.SIGKILL)
            self.wait()
        self.running = int(
            self._ask(json.dumps({"arguments": list(map(str, arguments)), "largest_file": largest_file}))
        )
        return self.running

    def wait(self) -> tuple[int, str]:
        """Exit code of the command, negative for a signal, and its whole output."""
        code, output = json.loads(self._ask("wait"))
        self.running = 0
        return code, output

    def __call__(self, *arguments: object, largest_file: int = 0) -> tuple[int, str]:
        self.start(*arguments, largest_file=largest_file)
        return self.wait()

    def _ask(self, line: str) -> str:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(line, file=self.server.stdin, flush=True)
        return self.server.stdout.readline()

    def close(self) -> None:
        self.server.communicate(timeout=60)


@pytest.fixture(scope="module")
def command() -> Iterator[CommandLine]:
    with contextlib.closing(CommandLine()) as line:
        yield line


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "frames.npy"
    np.save(path, np.random.default_rng(0).random((40, 5, 3), dtype=np.float32))
    return path


@pytest.fixture(scope="module")
def train(frames: Path) -> list[str]:
    """The command of all cases, which differ in folder and in the steps between checkpoints."""
    return ["train", *SETTINGS, "--data", str(frames)]


@pytest.fixture(scope="module")
def whole(command: CommandLine, train: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    code, output = command(*train, "--out", run)
    assert code == 0, output
    return run


def assert_same(found: Path, expected: Path) -> None:
    """Check that two runs ended alike: parameters, optimiser, random numbers, metrics and scores."""
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    one, two = checkpoint.load(found), checkpoint.load(expected)
    assert one.step == two.step
    assert one.tensors.keys() == two.tensors.keys()
    assert {"model", "optimiser", "random", checkpoint.BEST} == {name.partition(".")[0] for name in one.tensors}
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[name]), name


def until(happened: Callable[[], object], seconds: float = 60) -> bool:
    """Wait for an event; return whether it happened in time."""
    stop = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > stop:
            return False
        time.sleep(0.0005)  # less than a checkpoint takes to be written
    return True


def rows(run: Path) -> list[dict[str, object]]:
    return files.read_lines(run / "metrics.jsonl")


def half_written(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob(".*.tmp"))


# Killed.


@needs_fork
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(
    command: CommandLine, train: list[str], whole: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    settings = [*train, "--checkpoint-every", "1"]
    start = time.monotonic()
    assert command("train", "--resume", whole)[0] == 0
    starting = time.monotonic() - start
    chance, kills, torn, runs = random.Random(0), 0, 0, 0
    while kills < KILLS:
        run = tmp_path / str(runs)
        while True:
            begun = (run / "config.json").exists()
            pid = command.start("train", "--resume", run) if begun else command.start(*settings, "--out", run)
            if kills < KILLS:
                time.sleep(chance.uniform(0, 3 * starting))
                if chance.random() < 0.5:  # while a checkpoint is being written
                    until(lambda run=run: half_written(run), seconds=3 * starting)
                os.kill(pid, signal.SIGKILL)
            code, output = command.wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL, output
            assert "passed over" not in output, "a checkpoint was there in part"
            kills += 1
            torn += bool(half_written(run))
            assert kills < 10 * KILLS, "the run never ends"
        assert_same(run, whole)
        assert not half_written(run)
        assert len(list((run / "checkpoints").iterdir())) == 2
        runs += 1
    assert torn > 0, "no kill fell into the writing of a checkpoint"
    measured = {"kills": kills, "while_writing": torn, "runs": runs, "seconds": round(time.monotonic() - start, 1)}
    for name, value in measured.items():
        record_property(name, value)
    print(measured)


@needs_fork
def test_a_run_killed_before_its_first_checkpoint_starts_over_with_its_own_settings(
    command: CommandLine, train: list[str], whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pid = command.start(*train, "--out", run)
    assert until(lambda: len(rows(run)) > 3)
    os.kill(pid, signal.SIGKILL)
    assert command.wait()[0] == -signal.SIGKILL
    assert not (run / "checkpoints").exists()
    code, output = command("train", "--resume", run)
    assert code == 0, output
    assert_same(run, whole)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent", None, r"absent must be a run's folder.*no such folder"),
        ("file", {}, r"file must be a run's folder.*a file"),
        ("empty", None, r"empty must be a run's folder.*found neither"),
        ("listed", [1], r"config.json must hold a table of settings, found list"),
    ],
)
def test_what_is_no_run_cannot_be_resumed(tmp_path: Path, name: str, content: object, message: str) -> None:
    if name == "file":
        files.write_json(tmp_path / name, content)
    elif name != "absent":
        (tmp_path / name).mkdir()
    if name == "listed":
        files.write_json(tmp_path / name / "config.json", content)
    with pytest.raises(InputError, match=message):
        checkpoint.resume(tmp_path / name)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path: Path) -> None:
    files.write_json(tmp_path / "config.json", {})
    files.write_bytes(tmp_path / "checkpoints/00000005.safetensors", b"half")
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(checkpoint.CheckpointError, match="00000005"):
        checkpoint.resume(tmp_path)


@needs_fork
def test_restarts_go_on_where_they_were_stopped(command: CommandLine, train: list[str], tmp_path: Path) -> None:
    flags = [*train, "--steps", "8", "--restarts", "3", "--restart-steps", "4"]
    assert command(*flags, "--out", tmp_path / "whole")[0] == 0
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        run = tmp_path / number.name
        pid = command.start(*flags, "--out", run)
        second = run / "restarts/seed_2"
        assert until(lambda second=second: len(rows(second)) > 1)
        first = run / "restarts/seed_1/checkpoints/00000004.safetensors"
        written = first.stat().st_mtime_ns
        os.kill(pid, number)
        ended, output = command.wait()
        assert ended == code
        assert (f"go on with: pyro-hrssm train --resume {run}\n" in output) == (number == signal.SIGINT)
        assert list((second / "checkpoints").glob("*")) != [] or number == signal.SIGKILL
        resumed, output = command("train", "--resume", run)
        assert resumed == 0, output
        assert first.stat().st_mtime_ns == written, "tried twice"
        assert_same(run, tmp_path / "whole")
        assert (run / "restarts.json").read_bytes() == (tmp_path / "whole/restarts.json").read_bytes()


def test_a_process_of_its_own_killed_and_resumed(train: list[str], whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Without figures, as in `serve`: no case here is about them.
    program = "from pyro_hrssm.run import training as t; t.paint = lambda *_: {}"
    python = [sys.executable, "-c", f"{program}; from pyro_hrssm.cli import main; main()"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*python, *train, "--checkpoint-every", "2", "--out", str(run)], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert until(lambda: list((run / "checkpoints").glob("*.safetensors")) or process.poll(), seconds=300)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert checkpoint.load(run).step < STEPS
    done = subprocess.run(
        [*python, "train", "--resume", str(run)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert_same(run, whole)


# Started twice.


@needs_fork
def test_a_run_is_trained_by_one_command_at_a_time(
    command: CommandLine, train: list[str], whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pid = command.start(*train, "--steps", "100000", "--checkpoint-every", "1", "--out", run)
    assert until(lambda: (run / "checkpoints/00000002.safetensors").exists())
    for flags in (["--resume", run], ["--out", run, *train[1:]]):
        with pytest.raises(SystemExit) as stop, contextlib.redirect_stderr(io.StringIO()) as said:
            cli.main(["train", *map(str, flags)])
        assert stop.value.code == 2
        (line,) = said.getvalue().splitlines()
        assert f"{pid} on {socket.gethostname()}" in line or "already holds a run" in line
    os.kill(pid, signal.SIGKILL)
    command.wait()
    assert (run / lock.NAME).exists()
    code, output = command("train", "--resume", run, "--steps", checkpoint.load(run).step + 1)
    assert code == 0, output
    assert not (run / lock.NAME).exists()


@needs_fork
def test_two_new_runs_do_not_share_a_folder(command: CommandLine, train: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with lock.held(run):  # by a command that has not written its settings yet
        code, output = command(*train, "--out", run)
        assert code == 2
        assert output.splitlines()[-1].startswith(f"pyro-hrssm: {run} is being trained by process {os.getpid()} on ")
        assert [path.name for path in run.iterdir()] == [lock.NAME]


def test_a_run_begun_and_ended_before_the_lock_is_not_written_over(
    train: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def late(run: Path) -> Iterator[None]:
        files.write_json(run / "config.json", {})
        yield

    monkeypatch.setattr(lock, "held", late)
    with pytest.raises(SystemExit) as stop:
        cli.main([*train, "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert files.read_json(tmp_path / "run/config.json") == {}


# Interrupted.


@needs_fork
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_says_how_to_go_on_and_does(
    command: CommandLine, train: list[str], whole: Path, tmp_path: Path, number: signal.Signals, expected: int
) -> None:
    run = tmp_path / "a run"
    pid = command.start(*train, "--out", run)
    assert until(lambda: len(rows(run)) > 2)
    os.kill(pid, number)
    code, output = command.wait()
    assert code == expected, output
    assert output.splitlines()[-1] == f"pyro-hrssm: interrupted; go on with: pyro-hrssm train --resume '{run}'"
    assert "Traceback" not in output
    reached = checkpoint.load(run).step
    assert reached == rows(run)[-1]["step"] < STEPS
    code, output = command("train", "--resume", run)
    assert code == 0, output
    assert_same(run, whole)


def small_trainer(run: Path) -> Trainer:
    sizes = {"hidden": 8, "abstract_size": 2, "observation_size": 2, "max_segments": 3, "max_length": 3}
    torch.manual_seed(1)
    training = TrainingConfig(steps=4, batch_size=8, checkpoint_every=100, log_every=1, evaluate_every=0)
    return Trainer(HRSSM(HRSSMConfig(frame_shape=(3,), window=5, **sizes)), training, run, {})  # type: ignore[arg-type]


def some_sequences() -> Sequences:
    return Sequences(np.random.default_rng(0).random((16, 5, 3), dtype=np.float32))


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Let Ctrl-C interrupt the tests' process, whose parent may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def strike_during_second_update(trainer: Trainer, times: int) -> None:
    """Send Ctrl-C between the gradient and the step of the parameters."""
    real, calls = trainer.optimiser.adam.step, []

    def step() -> object:
        calls.append(1)
        if len(calls) == 2:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return real()

    trainer.optimiser.adam.step = step  # type: ignore[method-assign,assignment]


@pytest.mark.usefixtures("default_signals")
def test_ctrl_c_within_an_update_waits_for_the_step_to_end(tmp_path: Path) -> None:
    interrupted = small_trainer(tmp_path / "interrupted")
    strike_during_second_update(interrupted, times=1)
    with pytest.raises(Interrupted) as stop:
        interrupted.fit(some_sequences(), some_sequences())
    assert stop.value.number == signal.SIGINT
    small_trainer(tmp_path / "straight").fit(some_sequences(), some_sequences(), until=2)
    one, two = checkpoint.load(tmp_path / "interrupted"), checkpoint.load(tmp_path / "straight")
    assert one.step == two.step == 2
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors | two.tensors)
    logged = rows(tmp_path / "straight")[:-1]  # without the evaluation at its end
    assert [row["step"] for row in logged] == [1, 2]
    assert rows(tmp_path / "interrupted") == logged
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_tensorboard_keeps_the_events_of_the_checkpoint_from_which_a_run_goes_on(tmp_path: Path) -> None:
    small_trainer(tmp_path).fit(some_sequences(), some_sequences(), until=2)
    first = set((tmp_path / "tensorboard").iterdir())
    trainer = small_trainer(tmp_path)
    trainer.restore(checkpoint.load(tmp_path))
    trainer.fit(some_sequences(), some_sequences())
    (second,) = set((tmp_path / "tensorboard").iterdir()) - first
    events = list(EventFileLoader(str(second)).Load())
    # Earlier events of this step or a later one are hidden.
    assert [event.step for event in events if event.session_log.status == SessionLog.START] == [3]
    assert {event.step for event in events if event.HasField("summary")} == {3, 4}


@pytest.mark.usefixtures("default_signals")
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path)
    strike_during_second_update(trainer, times=2)
    with pytest.raises(Interrupted):
        trainer.fit(some_sequences(), some_sequences())
    assert trainer.step == 1
    assert checkpoint.newest(tmp_path) is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_first_step_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def at_once() -> Iterator[list[int]]:
        yield [signal.SIGINT]

    with monkeypatch.context() as patch:
        patch.setattr("pyro_hrssm.run.training.between_steps", at_once)
        small_trainer(tmp_path / "cut").fit(some_sequences(), some_sequences())
    cut = small_trainer(tmp_path / "cut")
    torch.manual_seed(99)
    cut.restore(checkpoint.load(tmp_path / "cut"))
    assert cut.step == 0
    cut.fit(some_sequences(), some_sequences())
    straight = small_trainer(tmp_path / "straight")
    straight.fit(some_sequences(), some_sequences())
    one, two = cut.model.state_dict(), straight.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one | two)


@pytest.mark.usefixtures("default_signals")
def test_a_job_started_deaf_to_ctrl_c_stays_so(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = small_trainer(tmp_path)
    strike_during_second_update(trainer, times=2)
    with contextlib.suppress(Interrupted):
        trainer.fit(some_sequences(), some_sequences())
    assert trainer.step == 4
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("name", ["evaluate", "predict", "segment"])
def test_ctrl_c_ends_any_command_with_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(use, "open_run", interrupted)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stop:
        cli.main([name, "run"])
    assert isinstance(stop.value, SystemExit)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "pyro-hrssm: interrupted\n"


# Out of disk.


def fails_to_write(code: int, output: str, run: Path, reason: str) -> None:
    """Check that the command ended with one line, which names a file and the reason, and left the run readable."""
    assert code == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("pyro-hrssm:")]
    assert f"{run}/" in line
    assert f"({reason})" in line
    assert "Traceback" not in output
    assert "Exception" not in output
    assert checkpoint.load(run).step >= 2
    for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        assert isinstance(json.loads(text), dict)


@pytest.fixture
def begun(command: CommandLine, train: list[str], tmp_path: Path) -> Path:
    """A run with checkpoints that has not reached its end."""
    run = tmp_path / "begun"
    pid = command.start(*train, "--checkpoint-every", "1", "--out", run)
    assert until(lambda: (run / "checkpoints/00000002.safetensors").exists())
    os.kill(pid, signal.SIGKILL)
    command.wait()
    return run


@needs_fork
def test_a_full_disk_ends_a_run_in_one_line_and_leaves_it_whole(
    command: CommandLine, whole: Path, begun: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        told = set()
        for pages in (0, 1, 3, 6, 12):
            run = disk / "run"
            shutil.copytree(begun, run)
            free = os.statvfs(disk).f_bavail - pages
            (disk / "ballast").write_bytes(bytes(free * os.statvfs(disk).f_frsize))
            code, output = command("train", "--resume", run)
            fails_to_write(code, output, run, "No space left on device")
            told.add(output.split("cannot write ")[1].split(" (")[0].removeprefix("checkpoint ").split("/run/")[1])
            (disk / "ballast").unlink()
            code, output = command("train", "--resume", run)
            assert code == 0, output
            assert_same(run, whole)
            shutil.rmtree(run)
        assert "metrics.jsonl" in told, told
        assert any(name.startswith("checkpoints/") for name in told), told
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@needs_fork
def test_a_file_that_must_not_grow_ends_a_run_in_one_line_and_leaves_it_whole(
    command: CommandLine, whole: Path, begun: Path, tmp_path: Path
) -> None:
    size = checkpoint.save(tmp_path, checkpoint.load(begun), keep=1).stat().st_size
    logged = (begun / "metrics.jsonl").stat().st_size
    # The disk is too small for the present log, for its next lines, or for a checkpoint.
    for largest, name in ((50, "metrics.jsonl"), (logged + 200, "metrics.jsonl"), (size - 1, "checkpoints/")):
        run = tmp_path / f"run{largest}"
        shutil.copytree(begun, run)
        code, output = command("train", "--resume", run, largest_file=largest)
        fails_to_write(code, output, run, "File too large")
        assert f"{run}/{name}" in output, output
        code, output = command("train", "--resume", run)
        assert code == 0, output
        assert_same(run, whole)


def test_what_tensorboard_cannot_write_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real, calls = RecordWriter.write, []

    def write(writer: RecordWriter, event: bytes) -> None:
        calls.append(event)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(writer, event)

    monkeypatch.setattr(RecordWriter, "write", write)
    with pytest.raises(files.FileError, match=r"cannot write .*tensorboard \(No space left on device\)"):
        small_trainer(tmp_path).fit(some_sequences(), some_sequences())
    assert "Exception" not in capfd.readouterr().err


# Recorded.


@needs_fork
def test_one_seed_gives_one_run(command: CommandLine, train: list[str], whole: Path, tmp_path: Path) -> None:
    assert command(*train, "--out", tmp_path / "again")[0] == 0
    assert_same(tmp_path / "again", whole)
    assert command(*train, "--steps", "2", "--seed", "2", "--out", tmp_path / "other")[0] == 0
    assert rows(tmp_path / "other")[0] != rows(whole)[0]


@needs_fork
def test_a_run_records_what_made_it(whole: Path, train: list[str], frames: Path, tmp_path: Path) -> None:
    config = files.read_json(whole / "config.json")
    assert config["versions"].keys() == {"python", "pyro-hrssm", "torch", "pyro-ppl", "numpy"}
    assert torch.__version__ == config["versions"]["torch"]
    assert config["training"]["seed"] == 1
    assert config["command"] == [*train, "--out", str(whole)]
    assert config["device"] == "cpu"
    assert config["git"] is None or len(config["git"].removesuffix("-dirty")) >= 40
    assert checkpoint.load(whole).record.items() <= config.items()

    splits = data.load(DataConfig(data=str(frames)))
    assert config["data_sha256"] == {"train": splits.train.digest(), "held_out": splits.held_out.digest()}
    changed = np.load(frames)
    changed[splits_member(splits.train, changed), 0, 0] += 1e-3
    np.save(tmp_path / "changed.npy", changed)
    other = data.load(DataConfig(data=str(tmp_path / "changed.npy")))
    assert other.train.digest() != splits.train.digest()
    assert other.held_out.digest() == splits.held_out.digest()


def splits_member(sequences: Sequences, values: np.ndarray) -> int:
    """Position in the file of a split's first sequence."""
    first = sequences.scaling.invert(sequences.batch([0]).frames[0].numpy())
    return int(np.abs(values - first).sum((1, 2)).argmin())


# Run for long.


def test_the_soak_passes_a_flat_course_and_names_what_grows() -> None:
    flat = [soak.Sample(minute=float(m), memory_mib=500 + m % 2, descriptors=12) for m in range(31)]
    assert soak.verdict(flat, [0.01] * 10) == []
    leak = [sample._replace(memory_mib=500 + 2 * sample.minute) for sample in flat]
    assert [line.split()[0] for line in soak.verdict(leak, [0.01] * 10)] == ["memory"]
    files = [sample._replace(descriptors=12 + int(sample.minute) // 5) for sample in flat]
    assert [line.split()[0] for line in soak.verdict(files, [0.01] * 10)] == ["descriptors"]
    slower = [0.01 * (1 + 0.05 * tenth) for tenth in range(10)]
    assert [line.split()[0] for line in soak.verdict(flat, slower)] == ["step"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve()
