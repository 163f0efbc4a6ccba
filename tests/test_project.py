"""The project's own rules: one list of dependencies, and imports that point upward only."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyro_hrssm"

LAYERS = [
    "errors",
    "config",
    "files",
    "checkpoint",
    "batching",
    "model",
    "inference",
    "data",
    "reports",
    "run",
    "objectives",
    "plotting",
    "prediction",
    "cli",
]
ALLOWED = {layer: set(LAYERS[: position + 1]) for position, layer in enumerate(LAYERS)} | {
    "data": {"errors", "config", "files", "data"},
    "__init__": set(LAYERS),
    "__main__": {"cli"},
}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_layers(source: str, package: str) -> Iterator[str]:
    """Layers that the source of a module in `package` imports, anywhere in it; the package itself is `__init__`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, layer, *_ = [*name.split("."), "__init__"]
            if root == PACKAGE.name:
                yield layer if layer in ALLOWED else "__init__"


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import torch\nfrom torch import nn", "pyro_hrssm", []),
        ("import pyro_hrssm", "pyro_hrssm", ["__init__"]),
        ("from pyro_hrssm import HRSSM, model", "pyro_hrssm", ["__init__", "model"]),
        ("import pyro_hrssm.data.mnist as mnist", "pyro_hrssm", ["data"]),
        ("from pyro_hrssm.errors import InputError", "pyro_hrssm", ["errors"]),
        ("from . import cli", "pyro_hrssm", ["cli"]),
        ("from .hrssm import HRSSM", "pyro_hrssm.model", ["model"]),
        ("def late():\n    from ..errors import InputError", "pyro_hrssm.data", ["errors"]),
        ("from .mnist import load", "pyro_hrssm.data", ["data"]),
    ],
)
def test_imports_are_found(source: str, package: str, expected: list[str]) -> None:
    assert list(imported_layers(source, package)) == expected


def test_imports_point_upward() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    assert {"__init__", "config", "data"} <= {layer_of(path) for path in paths}
    assert {layer_of(path) for path in paths} <= set(ALLOWED), "a new file needs its place in LAYERS"
    wrong = []
    for path in paths:
        package = ".".join(path.relative_to(ROOT).parent.parts)
        for layer in imported_layers(path.read_text(encoding="utf-8"), package):
            if layer not in ALLOWED[layer_of(path)]:
                wrong.append(f"{path.relative_to(ROOT)} imports {layer}")
    assert wrong == []


def test_dependency_lists_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (packages,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]

    assert "-e ." in packages
    listed = sorted(str(Requirement(package)) for package in packages if package != "-e .")
    declared = sorted(str(Requirement(package)) for package in project["dependencies"] + extras["test"])
    assert listed == declared
    assert set(extras["scores"]) <= set(extras["test"])
