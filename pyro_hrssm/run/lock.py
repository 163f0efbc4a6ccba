"""The lock of a run's folder: one command at a time trains into it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pyro_hrssm.errors import InputError, one_line
from pyro_hrssm.files import FileError, why

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = "lock.json"
"""The file in a run's folder that names the process and the host of the command that trains into it."""


class Holder(NamedTuple):
    """The process that holds a lock, as far as the lock's file says."""

    process: int | None
    host: str | None


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """A context in which no other command trains into this folder, which exists.

    The lock is the system's own (POSIX `fcntl`), which ends with the process however that ends, and is not inherited by
    the processes that read ahead. The file says who holds it; one that a dead process of this host left is taken over.
    Another host's is not, since not every file system shares locks between hosts.

    Raises:
        InputError: where another command holds the lock: names its process and host.
    """
    path = run / NAME
    file = _acquired(path)
    try:
        yield
    finally:
        if fcntl is None:
            file.close()  # Windows removes no open file
        # Removed while it is locked: whoever has opened it meanwhile finds that it is no longer the folder's file.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        file.close()


def _acquired(path: Path) -> BinaryIO:
    while True:
        try:
            file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise FileError(f"cannot write {path} ({why(error)})") from error
        try:
            if not _is_still(path, file) or not _take(path, file):
                file.close()
                continue
        except BaseException:
            file.close()
            raise
        return file


def _take(path: Path, file: BinaryIO) -> bool:
    """Lock the file and write this process into it; False where the file has been removed since it was opened."""
    locked = _locked(file)
    holder = _read(file)
    if locked is False:
        raise InputError(f"{path.parent} is being trained by {_named(holder)}: wait until it ends, or stop it first")
    if not _is_still(path, file):
        return False
    here = socket.gethostname()
    if holder.host not in (None, here):
        raise InputError(
            f"{path.parent} is being trained by {_named(holder)}, another host than this one, {one_line(here)}: "
            f"if nothing trains it there, remove {path}"
        )
    if locked is None and holder.process is not None and _alive(holder.process):
        raise InputError(
            f"{path.parent} is being trained by {_named(holder)}: wait until it ends; if it has, remove {path}"
        )
    # The lock holds without its text too, so that a full disk is told by the file for which it matters.
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.seek(0)
        file.write(json.dumps({"process": os.getpid(), "host": here}).encode() + b"\n")
    return True


def _locked(file: BinaryIO) -> bool | None:
    """Lock the file; False where another process has done so, None where the system has no locks for it."""
    if fcntl is None:
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def _is_still(path: Path, file: BinaryIO) -> bool:
    """Whether the open file is the one at this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def _read(file: BinaryIO) -> Holder:
    """The holder that the file names; a lock that was torn by a crash names none."""
    file.seek(0)
    try:
        values: Any = json.loads(file.read())
    except (ValueError, RecursionError, OSError):
        values = None
    values = values if isinstance(values, dict) else {}
    process, host = values.get("process"), values.get("host")
    return Holder(process if type(process) is int else None, host if isinstance(host, str) else None)


def _named(holder: Holder) -> str:
    if holder.process is None or holder.host is None:
        return "another process"
    return f"process {one_line(holder.process)} on {one_line(holder.host)}"


def _alive(process: int) -> bool:
    """Whether a process of this host runs; True where that cannot be asked."""
    if os.name != "posix":  # there, `os.kill` would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
