"""What the documents and the notebooks name exists: classes, methods, functions, modules and files."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pyro_hrssm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyro_hrssm"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.py")),
]

LIBRARIES = ("numpy", "pyro", "torch")
"""Names in them, as in `torch.export`, are looked up there."""
NAMESPACES = ("torch", "torch.nn", "torch.utils.data", "pyro.distributions", "pyro.infer", "pyro.optim", "pyro.poutine")
"""Where a class that is named alone may live, if not in the package or among Python's own."""

# A call's arguments are plain ASCII, where those of a formula, as in p(x_t | ·), are not.
NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\([ -~]*\))?")
CLASS = re.compile(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*")
PYTHON_FILE = re.compile(r"[\w./]+\.py")
FILE_TYPES = {"cff", "csv", "gif", "html", "ipynb", "json", "jsonl", "md", "npy", "npz", "png", "toml", "txt", "yml"}


def code_spans(path: Path) -> list[str]:
    """What stands in backticks in a document, or in a notebook's text; blocks of code are left to other tests."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        cells = re.split(r"^# %%", text, flags=re.MULTILINE)
        text = "\n".join(cell for cell in cells if cell.startswith(" [markdown]"))
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


@cache
def modules() -> list[ModuleType]:
    names = (found.name for found in pkgutil.walk_packages(pyro_hrssm.__path__, "pyro_hrssm."))
    return [pyro_hrssm, *(importlib.import_module(name) for name in names if not name.endswith("__main__"))]


def roots(name: str) -> Iterator[Any]:
    """What a dotted name may start from: a module by its last name, a class, or a library."""
    if name in LIBRARIES:
        yield importlib.import_module(name)
    if hasattr(builtins, name):
        yield getattr(builtins, name)
    for module in modules():
        if module.__name__.rpartition(".")[2] == name:
            yield module
        if inspect.isclass(vars(module).get(name)):
            yield vars(module)[name]
    for namespace in map(importlib.import_module, NAMESPACES):
        if inspect.isclass(getattr(namespace, name, None)):
            yield getattr(namespace, name)


def has(owner: Any, name: str) -> bool:
    """Whether a module or a class has this name; of a class also what its instances are given."""
    if member(owner, name) is not None or hasattr(owner, name):
        return True
    return inspect.isclass(owner) and any(
        name in vars(base).get("__annotations__", {}) or name in given_to_instances(base)
        for base in owner.__mro__
        if base.__module__.startswith("pyro_hrssm")
    )


def member(owner: Any, name: str) -> Any:
    """An attribute, or a module's part that must be imported first; None where there is none."""
    if inspect.ismodule(owner) and not hasattr(owner, name) and hasattr(owner, "__path__"):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(f"{owner.__name__}.{name}")
    return getattr(owner, name, None)


@cache
def given_to_instances(owner: type) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    assigned = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in assigned if isinstance(node.value, ast.Name) and node.value.id == "self"}


def exists(name: str) -> bool:
    first, *rest = name.split(".")
    return any(follows(root, rest) for root in roots(first))


def follows(owner: Any, names: list[str]) -> bool:
    if not names:
        return True
    # The type of what only an instance has is not known: a name may end there, but lead no further.
    return has(owner, names[0]) and (len(names) == 1 or follows(member(owner, names[0]), names[1:]))


def missing(spans: Iterable[str]) -> list[str]:
    """Those of the spans that name an object or a Python file that does not exist."""
    wrong = []
    for span in spans:
        name = NAME.fullmatch(span)
        if PYTHON_FILE.fullmatch(span):
            places = [*ROOT.glob(span), *PACKAGE.glob(f"**/{span}"), *(ROOT / "benchmarks").glob(span)]
            named, found = True, bool(places)
        elif name is None or name[1].rpartition(".")[2] in FILE_TYPES:
            named, found = False, False
        else:
            named = "." in name[1] or bool(CLASS.fullmatch(name[1]))
            found = named and exists(name[1])
        if named and not found:
            wrong.append(span)
    return wrong


def names_in_code(source: str) -> Iterator[str]:
    """What a notebook's code imports from the package, and what it asks of that: `model.hrssm.HRSSM.guide`."""
    tree = ast.parse(source)
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_hrssm"):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    yield from imported.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            if first in imported and NAME.fullmatch(rest):
                yield imported[first] + dot + rest


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.suffix == ".py"], ids=lambda path: path.name)
def test_every_name_in_a_notebooks_code_exists(path: Path) -> None:
    source = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# %"))
    names = list(names_in_code(source))
    assert names
    assert missing(names) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_name_in_a_document_exists(path: Path) -> None:
    assert missing(code_spans(path)) == []


@pytest.mark.parametrize(
    "span",
    [
        "HRSSM",
        "HRSSM.guide",
        "HRSSM.config",  # annotated in the base class
        "AbstractLevel.prior",  # given to instances
        "Posterior.encode",  # of a base class
        "paths.Grid.of",
        "pyro_hrssm.model.sites.Site",
        "pyro_hrssm.objectives.LeaveOneOutELBO()",
        "torch.export",
        "pyro.contrib.forecast",
        "Trace_ELBO",
        "model/hrssm.py",
        "walks.py",
        "tests/oracle.py",
        "config.json",  # a run's, no object
        "m_t",
        "N_max",
        "Bern(σ(φ_t))",
        "pip install -e .",
    ],
)
def test_names_that_exist_are_found(span: str) -> None:
    assert missing([span]) == []


@pytest.mark.parametrize(
    "span",
    [
        "AbstractLevel.belief",
        "HRSSM.model.nowhere",
        "Deferred",
        "paths.nowhere",
        "pyro_hrssm.nowhere",
        "pyro_hrssm.model.sites.Nowhere()",
        "torch.nowhere",
        "pyro.contrib.nowhere",
        "Nowhere(frames, 3)",
        "nowhere.function",
        "model/nowhere.py",
    ],
)
def test_a_name_that_does_not_exist_is_reported(span: str) -> None:
    assert missing([span]) == [span]
