"""The README's commands parse, and its Python runs."""

import re
import shlex
from pathlib import Path

import pytest

from pyro_hrssm.cli import main, parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny run at the place of the README's run."""
    folder = tmp_path_factory.mktemp("readme")
    sizes = ["--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--batch-size", "8"]
    main(["train", *sizes, "--steps", "2", "--particles", "2", "--out", str(folder / "runs" / "rows")])
    return folder


def test_every_command_line_parses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("pyro-hrssm ")]
    assert len(lines) >= 5
    for line in lines:
        arguments = shlex.split(line, comments=True)[1:]
        if "--help" not in arguments:
            command = parse(arguments)
            # `data` has one type per data set, named after it.
            assert type(command).__name__.lower() == arguments[1 if arguments[0] == "data" else 0]


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"`?make ([a-z]+)`?", README))
    assert {"train", "test", "lint"} <= targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_the_python_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = blocks("python")
    assert len(found) >= 2
    names: dict[str, object] = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    assert names["future"].frames.shape == (100, 4, 28, 28)  # type: ignore[attr-defined]
    assert names["ahead"].frames.shape == (1, 4, 17, 28)  # type: ignore[attr-defined]
    assert names["draws"]["x_future"].shape == (5, 8, 4, 3)  # type: ignore[index]


def test_every_picture_and_link_is_there() -> None:
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
