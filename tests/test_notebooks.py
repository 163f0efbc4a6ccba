"""The notebooks run from a clean state, match their scripts, and hold no logic of their own."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def test_every_notebook_has_its_script() -> None:
    names = [f"{name}.ipynb" for name in ("01_model", "02_rows", "03_segments", "04_imagination", "05_your_data")]
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == names
    assert [path.with_suffix(".ipynb").name for path in SCRIPTS] == names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_both_say_the_same(script: Path) -> None:
    pair = (jupytext.read(path) for path in (script, script.with_suffix(".ipynb")))
    written, shown = ([(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in pair)
    assert written == shown, "make notebooks writes the one from the other"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_outputs_are_there_whole_and_without_noise(script: Path) -> None:
    cells = [cell for cell in jupytext.read(script.with_suffix(".ipynb")).cells if cell.cell_type == "code"]
    # In order from 1: run from clean, once.
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/svg+xml"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_no_logic_of_their_own(script: Path) -> None:
    source = "\n".join(line for line in script.read_text().splitlines() if not line.startswith("# %"))
    defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While)
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, defined)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_runs_from_clean(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PYRO_HRSSM_SMOKE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = jupytext.read(script)
    # Raises CellExecutionError, with the cell and its traceback.
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs").is_dir() == (script.stem != "01_model")
