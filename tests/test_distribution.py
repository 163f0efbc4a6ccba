"""What an index takes: a wheel that runs elsewhere, and a source distribution that holds what its tests need."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pyro_hrssm.cli import parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (ROOT / "PYPI.md").read_text(encoding="utf-8")

OF_A_MACHINE = (
    ".git",
    ".venv*",
    "runs",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "mocap6.npz",
)
"""Names that no repository holds, anywhere; `data` too, at the top alone."""


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, in which a build leaves its own files."""
    copy = tmp_path_factory.mktemp("sources") / "pyro_hrssm"
    patterns = shutil.ignore_patterns(*OF_A_MACHINE, ".ipynb_checkpoints")

    def ignored(folder: str, names: list[str]) -> set[str]:
        return patterns(folder, names) | ({"data"} & set(names) if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the source distribution, and of the wheel that was built from it."""
    before, out = files_of(sources), tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(sources)], sources.parent)
    for path in files_of(sources) - before:
        (sources / path).unlink()
    return out


def run(command: list[str], folder: Path, alone: bool = False) -> str:
    """Run a program in a folder; return what it printed.

    Arguments:
        alone: whether `PYTHONPATH`, which may lead to this repository, is left out.
    """
    variables = {name: value for name, value in os.environ.items() if not (alone and name == "PYTHONPATH")}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wheel_of(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_whole_package_and_nothing_else(sources: Path, built: Path) -> None:
    with zipfile.ZipFile(wheel_of(built)) as wheel:
        names = set(wheel.namelist())
        (about,) = {name.partition("/")[0] for name in names if not name.startswith("pyro_hrssm/")}
        entries = wheel.read(f"{about}/entry_points.txt").decode()
    assert about == f"pyro_hrssm-{PROJECT['version']}.dist-info"
    packaged = {name.removeprefix("pyro_hrssm/") for name in names if not name.startswith(about)}
    assert {"py.typed", "reports/report.css", "reports/report.html.jinja", "model/hrssm.py"} <= packaged
    assert packaged == files_of(sources / "pyro_hrssm")
    assert f"{about}/licenses/LICENSE" in names
    assert entries.split() == ["[console_scripts]", "pyro-hrssm", "=", "pyro_hrssm.__main__:main"]


def test_the_source_distribution_holds_the_whole_repository(sources: Path, built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames() if packed.getmember(name).isfile()}
    assert {name for name in names if ".egg-info/" not in name} == files_of(sources) | {"PKG-INFO", "setup.cfg"}


def test_an_index_takes_both(built: Path) -> None:
    said = run([sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(built.iterdir()))], built)
    assert said.count("PASSED") == 2


# Their page on the index.


def test_the_page_has_no_link_that_is_dead_on_an_index() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert links
    assert all(link.startswith("https://") for link in links)


def test_the_page_names_every_extra() -> None:
    named = re.findall(r"^\| `([a-z]+)` \| \S", PAGE, flags=re.MULTILINE)
    assert sorted(named) == sorted(PROJECT["optional-dependencies"])


def test_the_pages_commands_parse() -> None:
    (block,) = [found for found in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) if "pyro-hrssm train" in found]
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "pyro-hrssm"
        assert parse(arguments) is not None


# The wheel runs where the repository is not.


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """A folder for an environment and what runs in it, removed afterwards: with torch it takes gigabytes."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    yield folder
    shutil.rmtree(tmp_path)


def environment_in(folder: Path, *flags: str) -> Path:
    """A new virtual environment; the folder of its programs."""
    run([sys.executable, "-m", "venv", *flags, str(folder / "venv")], folder)
    return folder / "venv" / ("Scripts" if os.name == "nt" else "bin")


def test_the_wheel_trains_and_reports_in_an_environment_of_its_own(built: Path, empty: Path) -> None:
    programs, wheel = environment_in(empty, "--without-pip"), str(wheel_of(built))
    python, command = str(programs / "python"), str(programs / "pyro-hrssm")
    # The pip of the environment that runs the tests installs into the new one. It would take this repository, where an
    # editable installation has left its metadata, for the package already installed.
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--no-deps", "--no-index", wheel], empty, alone=True)
    own = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], empty, alone=True).strip()
    # The dependencies of the other environment; an editable package of it, as this one may be, is not on such a path.
    Path(own, "dependencies.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    found = run([python, "-c", "import pyro_hrssm; print(pyro_hrssm.__file__)"], empty, alone=True)
    assert Path(found.strip()).is_relative_to(empty / "venv")

    np.save(empty / "own.npy", np.random.default_rng(0).random((40, 6, 3)))
    sizes = ["--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--batch-size", "8"]
    settings = ["--steps", "5", *sizes, "--particles", "2", "--data", "own.npy", "--device", "cpu"]
    assert "figures, metrics and checkpoints: runs/own" in run([command, "train", *settings], empty, alone=True)
    run([command, "report", "runs/own", "--device", "cpu"], empty, alone=True)
    assert "<style>" in (empty / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_the_wheel_and_all_that_it_needs_train_in_an_empty_environment(built: Path, empty: Path) -> None:
    """Needs a package index and 6 GB of disk for a while."""
    programs, start = environment_in(empty), time.monotonic()
    # torch and torchvision in one command, so that pip picks a pair that fits.
    run([str(programs / "python"), "-m", "pip", "install", "--no-cache-dir", str(wheel_of(built))], empty, alone=True)
    installed = time.monotonic()
    said = run([str(programs / "pyro-hrssm"), "train", "--steps", "5"], empty, alone=True)
    assert "held-out sequences     500" in said
    print(f"installed in {installed - start:.0f} s, trained in {time.monotonic() - installed:.0f} s")
