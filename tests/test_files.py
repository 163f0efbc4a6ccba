"""Files written whole or not at all, JSON and JSON lines."""

import errno
import json
import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_hrssm import files
from pyro_hrssm.errors import InputError
from pyro_hrssm.files import FileError


def failing(code: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.json"
    files.write_json(path, {"a": (1, 2.5), "b": [float("nan"), {"c": float("inf")}], "d": None})
    assert files.read_json(path) == {"a": [1, 2.5], "b": [None, {"c": None}], "d": None}
    assert [file.name for file in path.parent.iterdir()] == ["config.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evaluation.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr(os, "replace", failing(errno.ENOSPC))
    with pytest.raises(FileError, match=r"cannot write .*evaluation.json \(No space left"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_files_that_an_editor_on_windows_has_saved(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(mark + b'{\r\n  "a": [1,\r\n 2]\r\n}\r\n')
    assert files.read_json(tmp_path / "config.json") == {"a": [1, 2]}
    (tmp_path / "metrics.jsonl").write_bytes(mark + b'{"step": 1}\r\n{"step": 2}\r\n')
    files.rewind_lines(tmp_path / "metrics.jsonl", 1)
    assert files.read_lines(tmp_path / "metrics.jsonl") == [{"step": 1}]


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"\xff\xfe\x00", b"[" * 100_000])
def test_json_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"config.json") as error:
        files.read_json(path)
    assert "\n" not in str(error.value)


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert files.read_lines(path) == []
    rows = [{"step": step, "nats_per_sequence": 0.1 * step} for step in range(0, 50, 10)]
    for row in rows:
        files.append_line(path, row)
        assert json.loads(path.read_text().splitlines()[-1]) == row
    assert files.read_lines(path) == rows
    files.append_line(path, {"step": 50, "nats_per_sequence": float("nan")})
    assert files.read_lines(path)[-1] == {"step": 50, "nats_per_sequence": None}


def test_rewinding(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    files.rewind_lines(path, 100)
    assert not path.exists()
    rows = [{"step": step, "nats_per_sequence": 0.1 * step} for step in range(0, 50, 10)]
    for row in rows:
        files.append_line(path, row)
    with path.open("a") as file:
        file.write('{"step": 15, "nats_per')
    files.rewind_lines(path, 20)
    assert files.read_lines(path) == rows[:3]
    files.append_line(path, {"step": 30})
    assert files.read_lines(path) == [*rows[:3], {"step": 30}]


def test_a_torn_line_in_the_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "na{"step": 3}\n{"step": 4}\n')
    with pytest.warns(UserWarning, match="dropped line 2"):
        files.rewind_lines(path, 10)
    assert files.read_lines(path) == [{"step": 1}, {"step": 4}]


def test_a_line_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write"):
        files.append_line(tmp_path / "absent" / "metrics.jsonl", {"step": 1})


@pytest.mark.parametrize(
    "found", [PackageNotFoundError("x"), PermissionError(13, "Permission denied"), KeyError("x"), None]
)
def test_metadata_that_cannot_be_read_give_an_unknown_version(
    found: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.installed_version("numpy") == np.__version__

    def version(_: str) -> None:
        if found is not None:
            raise found

    monkeypatch.setattr(files, "version", version)
    assert files.installed_version("numpy") == "unknown"
