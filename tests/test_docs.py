"""The documentation's site: every public name and every page has its place, and messages are quoted as they are."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import pyro_hrssm
from pyro_hrssm import data, objectives, plotting, prediction
from pyro_hrssm.inference import scores

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "api").glob("*.rst"))
DOCUMENTED = [
    name
    for page in REFERENCE
    # Without an empty line before it, a directive is part of a paragraph.
    for name in re.findall(r"\n\n\.\. auto\w+:: (\S+)", page.read_text(encoding="utf-8"))
]
MODULES = (pyro_hrssm, data, objectives, plotting, prediction)
PUBLIC = [f"{module.__name__}.{name}" for module in MODULES for name in module.__all__]


def named(path: str) -> object:
    """The object of a full name."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: object = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert name in DOCUMENTED


@pytest.mark.parametrize("name", [name for name in scores.__all__ if name != "Flags"])
def test_every_score_is_in_the_reference(name: str) -> None:
    assert f"{scores.__name__}.{name}" in DOCUMENTED


def test_the_reference_names_each_object_once_and_with_a_docstring() -> None:
    assert len(DOCUMENTED) == len(set(DOCUMENTED))
    classes = [found for found in map(named, DOCUMENTED) if isinstance(found, type)]
    assert len(classes) == len(set(classes))
    own = [name for name in DOCUMENTED if inspect.isfunction(named(name)) or inspect.isclass(named(name))]
    assert len(own) > 80
    assert not [name for name in own if not named(name).__doc__]


def test_every_page_is_in_a_table_of_contents() -> None:
    pages = {
        str(path.relative_to(DOCS).with_suffix(""))
        for ending in ("md", "rst", "ipynb")
        for path in [*DOCS.rglob(f"*.{ending}"), *(DOCS / "notebooks").glob(f"*.{ending}")]
    }
    listed = ["index"]
    for page, pattern in (("index.md", r"```\{toctree\}\n(.*?)```"), ("api/index.rst", r"toctree::\n(.*)")):
        for tree in re.findall(pattern, (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL):
            entries = [line.strip() for line in tree.splitlines() if line.strip() and not line.strip().startswith(":")]
            folder = "api/" if page.startswith("api/") else ""
            listed += [folder + re.sub(r".*<(.*)>", r"\1", entry) for entry in entries]
    assert sorted(listed) == sorted(pages)


def messages() -> set[str]:
    """Every text of the package, an ellipsis in place of each value that is put in."""
    found = set()
    for path in (ROOT / "pyro_hrssm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def quoted() -> list[str]:
    """The messages that the page of errors quotes."""
    text = (DOCS / "faq.md").read_text(encoding="utf-8")
    return [line for block in re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]


def test_every_quoted_message_is_in_the_code() -> None:
    known = messages()
    assert len(quoted()) >= 15
    assert [quote for quote in quoted() if quote not in known] == []


def test_a_message_that_is_not_in_the_code_would_be_found() -> None:
    assert "no such message: …" not in messages()
