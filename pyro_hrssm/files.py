"""Files written whole or not at all, JSON and JSON lines; this module knows neither a run nor a model."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from pyro_hrssm.errors import InputError, one_line


class FileError(InputError):
    """A file cannot be written: one line that names the file and the reason."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` to write into, renamed to `path` at the end, so that `path` is always a whole file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the bytes are on the disk before the name points at them
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems can sync files but not folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which appears whole or not at all; raises :class:`FileError` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise FileError(f"cannot write {path} ({why(error)})") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file; see :func:`writing`."""
    with writing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file (UTF-8), atomically; see :func:`writing`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises :class:`InputError` where it is missing or not JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path} ({why(error)})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} must hold JSON, found {why(error)}") from error


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add one row to a file of JSON lines and flush it, or leave the file as it was; NaN and infinities become null."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise FileError(f"cannot write {path} ({why(error)})") from error


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a whole file of JSON lines, atomically; NaN and infinities become null."""
    write_text(path, "".join(map(_line, rows)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file of JSON lines, in order; a missing file has no rows.

    A last line torn by a crash is dropped silently; any other unreadable line is dropped with a warning.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {path} ({why(error)})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            warnings.warn(f"{path}: dropped line {number}, which is no JSON object", UserWarning, stacklevel=2)
    return rows


def rewind_lines(path: Path, step: int) -> None:
    """Cut a file of JSON lines back to the rows with `row["step"] <= step`, atomically, before a run resumes there."""
    rows = read_lines(path)
    if path.exists():
        write_lines(path, [row for row in rows if row.get("step", math.inf) <= step])


def _line(row: dict[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def installed_version(package: str) -> str:
    """The version that an installed package's metadata give; `unknown` where there are none, or none to be read."""
    try:
        return version(package) or "unknown"
    except (PackageNotFoundError, OSError, ValueError, KeyError):  # not installed, unreadable, or torn
        return "unknown"


def why(error: Exception) -> str:
    """The reason of an error on one line: the system's own words where it refused, else the error's."""
    return getattr(error, "strerror", None) or one_line(error) or type(error).__name__
