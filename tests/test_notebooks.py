"""The notebooks run from a clean state, match their scripts, and hold no logic of their own."""

from __future__ import annotations

import ast
import os
import time
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
jupyter_client = pytest.importorskip("jupyter_client")

FOLDER = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
LARGEST = 300_000
"""Bytes of a notebook with its outputs, at most."""


def test_every_notebook_has_its_script() -> None:
    names = [
        f"{name}.ipynb"
        for name in ("01_model", "02_rows", "03_segments", "04_imagination", "05_your_data", "06_recording")
    ]
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
    assert "application/vnd.jupyter.widget-view+json" not in kinds  # a progress bar, which a page shows as it began
    assert kinds & {"image/png", "image/svg+xml"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_no_logic_of_their_own(script: Path) -> None:
    source = "\n".join(line for line in script.read_text().splitlines() if not line.startswith("# %"))
    defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While)
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, defined)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_none_is_larger_than_a_page_should_be(script: Path) -> None:
    assert script.with_suffix(".ipynb").stat().st_size <= LARGEST


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_none_hands_strings_to_the_command_line(script: Path) -> None:
    cells = [cell.source for cell in jupytext.read(script).cells if cell.cell_type == "code"]
    # Magics, as in `%timeit run.jump(given, 4)`, are no Python.
    source = "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith("%"))
    nodes = list(ast.walk(ast.parse(source)))
    imported = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    called = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    assert "pyro_hrssm.cli" not in imported
    assert "main" not in {name.rpartition(".")[2] for name in called}
    assert ("pyro_hrssm.fit" in called) == (script.stem != "01_model")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_runs_from_clean(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PYRO_HRSSM_SMOKE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = jupytext.read(script)
    # Raises CellExecutionError, with the cell and its traceback.
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs").is_dir() == (script.stem == "05_your_data")  # the only one that keeps its run


BEGIN = """
import multiprocessing, pathlib, signal, tempfile, time
import numpy as np, pyro, torch
from pyro_hrssm import HRSSM, HRSSMConfig, TrainingConfig, checkpoint
from pyro_hrssm.data import Sequences
from pyro_hrssm.run.training import Trainer
def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
before, run = handlers(), pathlib.Path(tempfile.mkdtemp())
model = HRSSM(HRSSMConfig(frame_shape=(3,), hidden=8, abstract_size=2, observation_size=2))
data = Sequences(np.zeros((20, 6, 3), np.float32))
settings = dict(batch_size=4, workers=1, evaluate_every=0, checkpoint_every=10**6, warmup_steps=1)
trainer = Trainer(model, TrainingConfig(steps=10**6, **settings), run, {})
"""
TRAIN = "print('begun', flush=True)\ntrainer.fit(data, data)"
AFTER = """
assert trainer.step == checkpoint.load(run).step > 0
assert handlers() == before
assert not multiprocessing.active_children()
assert not pyro.get_param_store()
again = Trainer(model, TrainingConfig(steps=trainer.step + 2, **settings), run, {})
again.restore(checkpoint.load(run))
again.fit(data, data)
print("step", again.step - trainer.step)
"""


@pytest.mark.slow
def test_ctrl_c_in_a_live_notebook_leaves_the_run_and_the_kernel_usable() -> None:
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3")

    def executed(code: str) -> str:
        """What a cell prints, and its error's name; the cell is interrupted a moment after it prints `begun`."""
        number, printed = client.execute(code), ""
        while True:
            message = client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != number:
                continue
            content = message["content"]
            printed += content.get("text", "") + content.get("ename", "")
            if "begun" in content.get("text", ""):
                time.sleep(2)
                manager.interrupt_kernel()
            if content.get("execution_state") == "idle":
                return printed

    try:
        assert executed(BEGIN) == ""
        assert "Interrupted" in executed(TRAIN)
        assert "step 2" in executed(AFTER)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
