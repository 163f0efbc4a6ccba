"""The project's own rules: one list of dependencies, one version, and imports that keep to the contracts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import pyro_hrssm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = {contract["id"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package that a test may spoil, beside the contracts."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pyro_hrssm", tmp_path / "pyro_hrssm", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run import-linter as `make lint` does, on the package in a folder."""
    command = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "500"}  # lines are not wrapped
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_imports_keep_to_the_contracts() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in done.stdout


@pytest.mark.parametrize(
    ("contract", "module", "planted", "reported"),
    [
        ("rooms", "errors", "import pyro_hrssm.config", "pyro_hrssm.config"),
        ("rooms", "batching.walks", "from ..model.limits import Counts", "pyro_hrssm.model.limits"),
        ("rooms", "model.levels", "def late():\n    from pyro_hrssm.run import training", "pyro_hrssm.run.training"),
        ("rooms", "model.base", "import pyro_hrssm.data.mnist as mnist", "pyro_hrssm.data.mnist"),
        ("rooms", "data.arrays", "from pyro_hrssm.model.base import StateSpaceModel", "pyro_hrssm.model.base"),
        ("rooms", "data.colours", "from pyro_hrssm import inference", "pyro_hrssm.inference"),
        ("rooms", "inference.bounds", "from pyro_hrssm import cli", "pyro_hrssm.cli"),
        ("rooms", "reports.figures", "from ..run import training", "pyro_hrssm.run.training"),
        ("rooms", "cli", "from . import plotting", "pyro_hrssm.plotting"),
        ("rooms", "inference.evaluation", "import pyro_hrssm.prediction", "pyro_hrssm.prediction"),
        ("data", "data.splitting", "from pyro_hrssm import checkpoint", "pyro_hrssm.checkpoint"),
        ("batching", "batching.later", "from pyro_hrssm.config import HRSSMConfig", "pyro_hrssm.config"),
        ("model", "model.limits", "from .paths import Grid", "pyro_hrssm.model.paths"),
        ("model", "model.posterior", "from pyro_hrssm.model import levels", "pyro_hrssm.model.levels"),
        ("model", "model.rssm", "from pyro_hrssm.model.hrssm import HRSSM", "pyro_hrssm.model.hrssm"),
        ("painting", "reports.fresh", "from pyro_hrssm.model.base import Rollout", "pyro_hrssm.model.base"),
        ("circles", "inference.bounds", "from pyro_hrssm.inference import evaluation", "pyro_hrssm.inference"),
        ("public", "cli", "import pyro_hrssm", "pyro_hrssm"),
    ],
)
def test_an_import_that_breaks_a_contract_is_reported(
    copy: Path, contract: str, module: str, planted: str, reported: str
) -> None:
    file = copy / "pyro_hrssm" / f"{module.replace('.', '/')}.py"
    with file.open("a", encoding="utf-8") as end:
        end.write(f"\n{planted}\n")
    done = lint_imports(copy, "--contract", contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert CONTRACTS[contract]["name"] in done.stdout
    # A circle is reported by its room and, within it, by the import to take away.
    arrow = reported if contract == "circles" else f"pyro_hrssm.{module} -> {reported} (l."
    assert arrow in done.stdout


@pytest.mark.parametrize(("contract", "file"), [("rooms", "fresh.py"), ("model", "model/fresh.py")])
def test_a_new_file_needs_its_place(copy: Path, contract: str, file: str) -> None:
    (copy / "pyro_hrssm" / file).write_text("", encoding="utf-8")
    done = lint_imports(copy, "--contract", contract)
    assert done.returncode != 0
    assert "fresh" in done.stdout


def test_dependency_lists_agree() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (packages,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]

    assert "-e ." in packages
    listed = sorted(str(Requirement(package)) for package in packages if package != "-e .")
    declared = sorted(str(Requirement(package)) for package in project["dependencies"] + extras["test"])
    assert listed == declared
    assert set(extras["scores"]) <= set(extras["test"])
    lowest = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8")
    pinned = sorted(Requirement(line).name for line in lowest.splitlines() if not line.startswith("#"))
    assert pinned == sorted(Requirement(package).name for package in project["dependencies"] + extras["test"])


def test_there_is_one_version() -> None:
    assert pyro_hrssm.__version__ == version("pyro-hrssm") == PROJECT["project"]["version"]
    citation: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == pyro_hrssm.__version__
    dated = f"## [{pyro_hrssm.__version__}] - {citation['date-released']}"
    assert dated in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "pyro_hrssm" / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["pyro_hrssm"]
