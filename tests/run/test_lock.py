"""The lock of a run's folder: one process at a time, stale ones taken over, another host's named."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyro_hrssm.errors import InputError
from pyro_hrssm.run import lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks processes")


@contextlib.contextmanager
def elsewhere(run: Path) -> Iterator[int]:
    """Another process that holds the lock until the context ends, or until it is killed."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lock.held(run):
            os.write(told, b"held")
            signal.pause()
    os.read(ready, 4)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)


def refused(run: Path) -> str:
    """The error of who would train into this folder."""
    with pytest.raises(InputError) as refusal, lock.held(run):
        pass
    return str(refusal.value)


def left_by(run: Path, process: object, host: object) -> None:
    (run / lock.NAME).write_text(json.dumps({"process": process, "host": host}))


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with elsewhere(tmp_path) as pid:
        assert json.loads((tmp_path / lock.NAME).read_text()) == {"process": pid, "host": socket.gethostname()}
        for _ in range(2):
            assert refused(tmp_path).startswith(f"{tmp_path} is being trained by process {pid} on ")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert (tmp_path / lock.NAME).exists(), "a killed process leaves its lock"
        with lock.held(tmp_path):
            assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()
    assert not (tmp_path / lock.NAME).exists()


def test_the_children_of_a_dead_process_do_not_hold_its_lock(tmp_path: Path) -> None:
    """Processes that read ahead outlive a killed run for some seconds."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock.held(tmp_path).__enter__()
        child = os.fork()
        if child == 0:
            signal.pause()
        os.write(told, child.to_bytes(8, "big"))
        signal.pause()
    child = int.from_bytes(os.read(ready, 8), "big")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        with lock.held(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_folder_through_a_link_is_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with elsewhere(tmp_path / "run"):
        assert "link is being trained by process" in refused(tmp_path / "link")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"process": "x", "host": 3}', '{"process": 1}'])
def test_a_lock_torn_by_a_crash_is_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / lock.NAME).write_text(text)
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()


def test_another_host_is_named_with_the_way_out(tmp_path: Path) -> None:
    left_by(tmp_path, 7, "elsewhere")
    said = refused(tmp_path)
    assert "process 7 on elsewhere" in said
    assert said.endswith(f" remove {tmp_path / lock.NAME}")
    (tmp_path / lock.NAME).unlink()
    with lock.held(tmp_path):
        pass


@pytest.mark.parametrize("system", ["no locks", "no module"])
def test_where_the_system_has_no_locks_the_process_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if system == "no module":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr("pyro_hrssm.run.lock.fcntl.lockf", unsupported)
    left_by(tmp_path, os.getppid(), socket.gethostname())
    said = refused(tmp_path)
    assert f"process {os.getppid()} on " in said
    assert said.endswith(f" remove {tmp_path / lock.NAME}")
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    left_by(tmp_path, pid, socket.gethostname())
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()


def test_a_lock_that_is_removed_as_it_is_opened_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: Callable[..., bool | None] = lock._locked
    removed = []

    def remove(file: object) -> bool | None:
        if not removed:
            removed.append((tmp_path / lock.NAME).unlink())
        return locked(file)

    monkeypatch.setattr(lock, "_locked", remove)
    with lock.held(tmp_path):
        assert (tmp_path / lock.NAME).exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent") == f"cannot write {tmp_path / 'absent/lock.json'} (No such file or directory)"
