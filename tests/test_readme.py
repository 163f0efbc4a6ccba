"""The commands of the README and of the user guide parse, and their Python runs."""

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from pyro_hrssm.cli import main, parse

ROOT = Path(__file__).parent.parent
GUIDE = [ROOT / "README.md", ROOT / "docs" / "start.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
PAGES = pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.name)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


COMMANDS = [(page, line) for page in GUIDE for block in blocks(page, "sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny run at the place of the guide's run."""
    folder = tmp_path_factory.mktemp("readme")
    sizes = ["--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--batch-size", "8"]
    main(["train", *sizes, "--steps", "2", "--particles", "2", "--out", str(folder / "runs" / "rows")])
    return folder


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: getattr(value, "name", value))
def test_every_command_is_one_that_there_is(
    page: Path, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        words = ["pyro-hrssm", *words[words.index("pyro_hrssm") + 1 :]]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", MAKEFILE, flags=re.MULTILINE)
    elif words[0] == "pip":
        assert words[1:3] == ["install", "-e"]
    else:
        assert words[0] == "pyro-hrssm"
        command = parse(words[1:])
        # `data` has one type per data set, named after it.
        assert type(command).__name__.lower() == words[2 if words[1] == "data" else 1]


def test_every_page_of_commands_is_read() -> None:
    assert len({page for page, _ in COMMANDS}) >= 8


@PAGES
def test_what_a_page_mentions_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"`make ([a-z]+)`", text)
    assert all(re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE) for target in targets)
    assert all(importlib.util.find_spec(name) for name in re.findall(r"python -m (benchmarks\.\w+)", text))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", project, flags=re.MULTILINE) for extra in re.findall(r"\.\[(\w+)\]", text))


@pytest.mark.parametrize("page", [page for page in GUIDE if blocks(page, "python")], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        quick = re.sub(r"steps=\d+", "steps=2", block).replace("size=(200, ", "size=(20, ")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(quick, page.name, "exec"), names)
    if page.name == "README.md":
        assert names["ahead"].future_quantiles.shape == (3, 20, 20, 4)  # type: ignore[attr-defined]
        assert names["table"].boundaries.shape == (20, 50)  # type: ignore[attr-defined]


@PAGES
def test_every_picture_and_link_is_there(page: Path) -> None:
    for path in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / path).exists(), path


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
