"""Several processes of one run: they step like one process on the joined batch, stop together, and resume.

Each case is two real processes connected by gloo. Since imports take seconds, this file, run as a program, imports
everything once and forks the processes of a case.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyro
import pytest
import torch
from torch.overrides import TorchFunctionMode

from pyro_hrssm import HRSSM, HRSSMConfig, TrainingConfig, checkpoint, cli, files
from pyro_hrssm.data import Batch, Sequences
from pyro_hrssm.errors import InputError
from pyro_hrssm.run import lock, training
from pyro_hrssm.run.diagnosis import TrainingError
from pyro_hrssm.run.parallel import ALONE, Processes, digest, joined
from pyro_hrssm.run.training import Trainer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks processes")

TINY = HRSSMConfig(
    frame_shape=(3,), hidden=8, abstract_size=2, observation_size=2, max_segments=3, max_length=3, window=6
)
CPU = torch.device("cpu")
BOUND = 120
"""Seconds within which the others must notice a lost process: far more than they need, for a busy machine."""


class Doubles(Sequences):
    """float64 frames, on which sums in another order differ by 1e-16 and not by 1e-8."""

    def batch(self, indices: Any) -> Batch:
        batch = super().batch(indices)
        return batch._replace(frames=batch.frames.double())


class SpoiltThird(Sequences):
    """Sequences with a NaN in the third batch read."""

    reads = 0

    def batch(self, indices: Any) -> Batch:
        self.reads += 1
        batch = super().batch(indices)
        return batch._replace(frames=batch.frames * float("nan")) if self.reads == 3 else batch


def sequences(kind: type[Sequences] = Sequences) -> Sequences:
    return kind(np.random.default_rng(3).random((24, 6, 3), dtype=np.float32))


def trainer(run: Path, processes: Processes, double: bool = False, **settings: Any) -> Trainer:
    defaults = {"steps": 6, "batch_size": 8, "warmup_steps": 2, "log_every": 2, "checkpoint_every": 3}
    config = TrainingConfig(**(defaults | {"evaluate_every": 0} | settings))
    torch.manual_seed(config.seed)
    model = HRSSM(TINY)
    return Trainer(model.double() if double else model, config, run, {}, processes=processes)


class JointNoise(TorchFunctionMode):
    """Every process draws the joined batch's noise and keeps the rows of its own sequences."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_):
            size = self.processes.size
            # All draws are of all frames at once: [T, B, …].
            joint = func(torch.cat([args[0]] * size, 1), *args[1:], **(kwargs or {}))
            return args[0].copy_(joint.chunk(size, 1)[self.processes.rank])
        return func(*args, **(kwargs or {}))


# Programs of the processes; each gets the folder of its case.


def same_noise(run: Path, processes: Processes, elbo: str) -> None:
    found = trainer(run, processes, double=True, elbo=elbo, clip_norm=0.5)
    torch.manual_seed(5)
    with JointNoise(processes):
        found.fit(sequences(Doubles), sequences(Doubles))


def own_noise(run: Path, processes: Processes) -> None:
    found = trainer(run, processes)
    found.fit(sequences(), sequences())
    print(json.dumps({"digest": digest(found.model), "noise": torch.rand(3).tolist()}))


def read_ahead(run: Path, processes: Processes, workers: int) -> None:
    trainer(run, processes, workers=workers, precision="bf16").fit(sequences(), sequences())


def patient(run: Path, processes: Processes, until: int | None) -> None:
    bounds, real = {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.5, 5: 1.0, 6: 0.0}, Trainer._evaluate
    # The first process alone evaluates.
    Trainer._evaluate = lambda self, *given: real(self, *given) and bounds[self.step]  # type: ignore[method-assign]
    found = trainer(run, processes, evaluate_every=1, patience=2, keep_checkpoints=1)
    if (run / "checkpoints").exists():
        found.restore(checkpoint.load(run))
    found.fit(sequences(), sequences(), until)
    print(json.dumps([found.step, *found.best]))


def resumed(run: Path, processes: Processes) -> None:
    trainer(run, processes).fit(sequences(), sequences(), until=3)
    torch.manual_seed(99)
    found = trainer(run, processes)
    found.restore(checkpoint.load(run))
    found.fit(sequences(), sequences())


def bad_value(run: Path, processes: Processes, rank: int, validate: bool) -> None:
    found = trainer(run, processes)
    if validate:
        found.update = pyro.validation_enabled()(found.update)  # type: ignore[method-assign]
    found.fit(sequences(SpoiltThird if processes.rank == rank else Sequences), sequences())


def bad_gradient(run: Path, processes: Processes, rank: int) -> None:
    found = trainer(run, processes)
    if processes.rank == rank:
        next(iter(found.model.emission.decoder.parameters())).register_hook(lambda gradient: gradient * float("nan"))
    found.fit(sequences(), sequences())


def drifting(run: Path, processes: Processes) -> None:
    found = trainer(run, processes)
    with torch.no_grad():
        found.model.emission.combine.bias += 1e-6 * processes.rank
    found.fit(sequences(), sequences())


def unequal(run: Path, processes: Processes) -> None:
    torch.manual_seed(processes.rank)
    Trainer(HRSSM(TINY), TrainingConfig(), run, {}, processes=processes)


def signalled(run: Path, processes: Processes, rank: int) -> None:
    found = trainer(run, processes, checkpoint_every=100)
    step = found.optimiser.adam.step

    def strike() -> object:
        if processes.rank == rank and found.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step()

    found.optimiser.adam.step = strike  # type: ignore[method-assign,assignment]
    try:
        found.fit(sequences(), sequences())
    finally:
        print(json.dumps({"step": found.step}))


def lost_first(run: Path, processes: Processes) -> None:
    # The process dies during the work for which the others wait longest.
    processes.on_first(lambda: os.kill(os.getpid(), signal.SIGKILL))


def failing_first(run: Path, processes: Processes) -> None:
    def fail() -> None:
        time.sleep(1)  # the others wait
        raise InputError("only the first was asked")

    processes.on_first(fail)


def collectives(run: Path, processes: Processes) -> None:
    assert processes.on_first(lambda: processes.rank) == 0
    assert processes.after_first(lambda: processes.rank) == processes.rank
    assert processes.largest(processes.rank + 3) == processes.size + 2
    assert processes.gather(processes.rank) == list(range(processes.size))
    assert processes.mean([1.0, processes.rank]) == [1.0, (processes.size - 1) / 2]
    assert processes.add_up(torch.tensor([1.0, 2.0])).tolist() == [processes.size, 2 * processes.size]
    assert processes.share(torch.arange(6)).tolist() == torch.arange(6).tolist()[3 * processes.rank :][:3]
    assert len(set(processes.gather(processes.noise_seed(1)))) == processes.size


def command(run: Path, processes: Processes, arguments: list[str]) -> None:
    raise AssertionError("the command line joins its processes itself")


# How they are started.


def serve() -> None:
    """Fork the processes of each case read, and report their exit codes on request."""
    training.paint = lambda *_: {}
    cli.parse(["train"])
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.Adam([parameter], fused=True).step()
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        pids = []
        for rank in range(job["size"]):
            pid = os.fork()
            if pid == 0:
                _process(job, rank)
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        sys.stdin.readline()
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


def _process(job: dict[str, Any], rank: int) -> NoReturn:
    # A process that hangs must not hang the tests.
    signal.alarm(300)
    output = os.open(f"{job['output']}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if job["size"] > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job["port"])}
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(job["size"]), **address}
    code: object = 0
    try:
        if job["case"] == "command":
            cli.main(job["arguments"]["arguments"])
        else:
            with joined(CPU) as processes:
                globals()[job["case"]](Path(job["run"]), processes, **job["arguments"])
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 71)


class Launcher:
    """Cases, each in its own processes, one case at a time."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
        self.output = folder / "output"
        self.pids: list[int] = []
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, case: Callable[..., None], run: Path, size: int = 2, **arguments: Any) -> list[int]:
        """Start a case and return the ids of its processes."""
        if self.pids:  # left by a test that failed
            for pid in self.pids:
                os.kill(pid, signal.SIGKILL)
            self.wait()
        job = {"case": case.__name__, "run": str(run), "size": size, "arguments": arguments, "port": free_port()}
        self.pids = json.loads(self._ask(json.dumps(job | {"output": str(self.output)})))
        return self.pids

    def wait(self) -> list[tuple[int, str]]:
        """Exit code of each process, negative for a signal, and its whole output."""
        codes = json.loads(self._ask("wait"))
        self.pids = []
        return [(code, Path(f"{self.output}{rank}").read_text("utf-8")) for rank, code in enumerate(codes)]

    def __call__(self, case: Callable[..., None], run: Path, size: int = 2, **arguments: Any) -> list[tuple[int, str]]:
        self.start(case, run, size, **arguments)
        return self.wait()

    def passes(self, case: Callable[..., None], run: Path, size: int = 2, **arguments: Any) -> list[str]:
        """The output of each process of a case, none of which may fail."""
        ended = self(case, run, size, **arguments)
        assert [code for code, _ in ended] == [0] * size, "\n".join(said for _, said in ended)
        return [said for _, said in ended]

    def _ask(self, line: str) -> str:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(line, file=self.server.stdin, flush=True)
        return self.server.stdout.readline()

    def close(self) -> None:
        self.server.communicate(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with contextlib.closing(Launcher(tmp_path_factory.mktemp("launcher"))) as launcher:
        yield launcher


def rows(run: Path) -> list[dict[str, Any]]:
    return files.read_lines(run / "metrics.jsonl")


def assert_same(found: Path, expected: Path) -> None:
    one, two = checkpoint.load(found), checkpoint.load(expected)
    assert one.step == two.step
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[name]), name
    assert rows(found)[-1] == rows(expected)[-1]


# Steps.


def test_what_the_processes_tell_each_other(launch: Launcher, tmp_path: Path) -> None:
    launch.passes(collectives, tmp_path)


def test_one_process_alone_is_told_what_it_says() -> None:
    values = torch.arange(3.0)
    assert ALONE.add_up(values) is values
    assert ALONE.share(values) is values
    assert ALONE.largest(7) == 7
    assert ALONE.gather("a") == ["a"]
    assert ALONE.mean([0.1]) == [0.1]
    assert ALONE.on_first(lambda: 5) == ALONE.after_first(lambda: 5) == 5


@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
def test_two_processes_step_as_one_does_on_the_joined_batch(launch: Launcher, tmp_path: Path, elbo: str) -> None:
    launch.passes(same_noise, tmp_path / "two", elbo=elbo)
    same_noise(tmp_path / "one", ALONE, elbo)
    one, two = (checkpoint.load(tmp_path / name) for name in ("one", "two"))
    assert one.step == two.step == 6
    # The first process evaluates alone, with other noise.
    compared = [name for name in one.tensors if not name.startswith("random.") and name != checkpoint.BEST]
    assert len(compared) > 50
    for name in compared:
        # float64 sums in another order, which Adam's division by small second moments enlarges by powers of ten.
        torch.testing.assert_close(
            two.tensors[name], one.tensors[name], rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m
        )
    # The last row is an evaluation, which the first process runs alone, with other noise.
    for mine, theirs in zip(rows(tmp_path / "one")[:-1], rows(tmp_path / "two")[:-1], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-7, abs=1e-9)


def test_processes_with_noise_of_their_own_stay_equal_and_write_one_run(launch: Launcher, tmp_path: Path) -> None:
    said = [json.loads(text.splitlines()[-1]) for text in launch.passes(own_noise, tmp_path)]
    assert said[0]["digest"] == said[1]["digest"]
    assert said[0]["noise"] != said[1]["noise"]
    # The evaluation at the end adds a row.
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 6, 6]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == [
        "00000003.safetensors",
        "00000006.safetensors",
    ]
    assert {"random.cpu", "random.cpu.1"} <= checkpoint.load(tmp_path).tensors.keys()


def test_a_run_of_two_processes_resumes_bit_for_bit_with_two_and_goes_on_with_one(
    launch: Launcher, tmp_path: Path
) -> None:
    launch.passes(own_noise, tmp_path / "whole")
    launch.passes(resumed, tmp_path / "parts")
    assert_same(tmp_path / "parts", tmp_path / "whole")
    alone = trainer(tmp_path / "alone", ALONE)
    alone.restore(checkpoint.load(tmp_path / "whole" / "checkpoints" / "00000003.safetensors"))
    alone.fit(sequences(), sequences())
    assert checkpoint.load(tmp_path / "alone").step == 6
    assert "random.cpu.1" not in checkpoint.load(tmp_path / "alone").tensors


def test_two_processes_keep_the_best_and_stop_early_together(launch: Launcher, tmp_path: Path) -> None:
    launch.passes(patient, tmp_path / "whole", until=None)
    launch.passes(patient, tmp_path / "parts", until=3)
    for said in launch.passes(patient, tmp_path / "parts", until=None):
        assert json.loads(said.splitlines()[-1]) == [4, 2.0, 2, 2]
    assert_same(tmp_path / "parts", tmp_path / "whole")
    for run in ("whole", "parts"):
        assert sorted(int(file.stem) for file in (tmp_path / run / "checkpoints").iterdir()) == [2, 4]


def test_two_processes_that_read_ahead_in_bfloat16_run_as_those_that_do_not(launch: Launcher, tmp_path: Path) -> None:
    for workers in (0, 1):
        launch.passes(read_ahead, tmp_path / str(workers), workers=workers)
    assert_same(tmp_path / "1", tmp_path / "0")


# Stops.


@pytest.mark.parametrize(("rank", "validate"), [(0, False), (1, False), (1, True)])
def test_a_nan_in_one_process_ends_all_with_the_site_and_the_step(
    launch: Launcher, tmp_path: Path, rank: int, validate: bool
) -> None:
    for code, said in launch(bad_value, tmp_path, rank=rank, validate=validate):
        assert code == 70
        assert "TrainingError: step 3: site m_0 is not finite" in said
    assert not (tmp_path / "checkpoints").exists()


def test_a_gradient_that_one_process_finds_bad_ends_all(launch: Launcher, tmp_path: Path) -> None:
    for code, said in launch(bad_gradient, tmp_path, rank=1):
        assert code == 70
        assert "TrainingError: step 1: site x (its gradient) is not finite" in said


def test_processes_that_drifted_apart_are_found_at_the_next_checkpoint(launch: Launcher, tmp_path: Path) -> None:
    for code, said in launch(drifting, tmp_path):
        assert code == 70
        assert "TrainingError: step 3: the processes' parameters differ" in said
    for code, said in launch(unequal, tmp_path):
        assert code == 70
        assert "TrainingError: step 0: the processes' parameters differ" in said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(launch: Launcher, tmp_path: Path, rank: int) -> None:
    for code, said in launch(signalled, tmp_path, rank=rank):
        assert code == 70
        assert "Interrupted" in said
        assert '{"step": 2}' in said
    assert checkpoint.load(tmp_path).step == 2


def test_what_the_first_raises_alone_all_raise(launch: Launcher, tmp_path: Path) -> None:
    for code, said in launch(failing_first, tmp_path):
        assert code == 70
        assert said.endswith("InputError: only the first was asked\n")


def test_a_first_process_lost_while_the_others_wait_ends_them(launch: Launcher, tmp_path: Path) -> None:
    (first, _), (second, said) = launch(lost_first, tmp_path)
    assert first == -signal.SIGKILL
    assert second == 70
    assert "ProcessError: another process of this run ended" in said


# The command line.


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("data") / "frames.npy"
    np.save(path, np.random.default_rng(0).random((40, 5, 3), dtype=np.float32))
    return [
        *("train", "--data", str(path), "--device", "cpu", "--hidden", "8", "--abstract-size", "2"),
        *("--observation-size", "2", "--max-segments", "3", "--max-length", "3", "--batch-size", "8"),
        *("--particles", "1", "--log-every", "1", "--evaluate-every", "5", "--checkpoint-every", "4"),
    ]


def test_a_batch_that_has_no_equal_shares_is_refused_before_anything_is_written(
    launch: Launcher, flags: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for code, said in launch(command, run, arguments=[*flags, "--batch-size", "7", "--out", str(run)]):
        assert code == 2
        assert said == "pyro-hrssm: batch_size must be divisible by the 2 processes, found 7\n"
    assert not run.exists()


def test_a_lost_process_ends_the_others_and_the_run_goes_on(launch: Launcher, flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    # The run must not end by itself.
    pids = launch.start(command, run, arguments=[*flags, "--steps", "100000", "--out", str(run)])
    stop = time.monotonic() + 240
    while not list((run / "checkpoints").glob("*.safetensors")):
        assert time.monotonic() < stop, "no checkpoint"
        time.sleep(0.05)
    os.kill(pids[1], signal.SIGKILL)
    killed = time.monotonic()
    (first, said), (second, _) = launch.wait()
    assert time.monotonic() - killed < BOUND
    assert second == -signal.SIGKILL
    assert first == 1
    assert "pyro-hrssm: another process of this run ended or hangs" in said
    assert "Traceback" not in said
    reached = checkpoint.load(run).step
    further = ["--resume", str(run), "--steps", str(reached + 4)]
    first_said, second_said = launch.passes(command, run, arguments=["train", *further])
    assert "nats per sequence" in first_said
    assert second_said == ""
    assert checkpoint.load(run).step == reached + 4
    # Another number of processes can resume the run too.
    launch.passes(command, run, 4, arguments=["train", "--resume", str(run), "--steps", str(reached + 6)])
    assert {f"random.cpu.{rank}" for rank in (1, 2, 3)} <= checkpoint.load(run).tensors.keys()
    assert files.read_json(run / "evaluation.json")["step"] == reached + 6


def test_all_processes_learn_that_another_command_trains_the_run(
    launch: Launcher, flags: list[str], tmp_path: Path
) -> None:
    run, empty = tmp_path / "run", tmp_path / "empty"
    launch.passes(command, run, arguments=[*flags, "--steps", "2", "--out", str(run)])
    empty.mkdir()
    for folder, arguments in ((run, ["train", "--resume", str(run)]), (empty, [*flags, "--out", str(empty)])):
        with lock.held(folder):
            for code, said in launch(command, folder, arguments=arguments):
                assert code == 2
                assert said.endswith(
                    f"process {os.getpid()} on {socket.gethostname()}: wait until it ends, or stop it first\n"
                )
        assert not (folder / lock.NAME).exists()
    assert not list(empty.iterdir())


def test_restarts_are_tried_by_all_processes_together(launch: Launcher, flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    further = ["--steps", "4", "--restarts", "2", "--restart-steps", "2", "--out", str(run), "--max-length", "1"]
    first, second = launch.passes(command, run, arguments=[*flags, *further])
    assert first.count("nats per training sequence") == 2
    assert first.count("pyro-hrssm: max_segments 3 and max_length 1 cover 3 of 5 frames") == 1
    assert second == ""
    assert len(files.read_json(run / "restarts.json")) == 2
    assert checkpoint.load(run).step == 4


@pytest.mark.slow
def test_torchrun_trains_stops_at_ctrl_c_and_goes_on(flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}

    def torchrun(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*launcher, str(free_port()), "-m", "pyro_hrssm", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip

    with torchrun(*flags, "--steps", "100000", "--out", str(run)) as process:
        try:
            stop = time.monotonic() + 300
            while len(rows(run)) < 3 and process.poll() is None:
                assert time.monotonic() < stop, "no step"
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=BOUND)
        finally:
            process.kill()
    assert f"interrupted; go on with: pyro-hrssm train --resume {run}" in said
    reached = checkpoint.load(run).step
    assert reached == rows(run)[-1]["step"]
    with torchrun("train", "--resume", str(run), "--steps", str(reached + 3)) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("bound (negative ELBO)") == 1
    assert checkpoint.load(run).step == reached + 3


def test_an_error_of_a_step_is_the_same_for_one_process(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="step 3: site m_0 is not finite"):
        bad_value(tmp_path, ALONE, 0, False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve()
