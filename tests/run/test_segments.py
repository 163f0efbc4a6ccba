"""The preset for a user's own arrays finds segments of which it was told nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from pyro_hrssm import data
from pyro_hrssm.cli import main


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("name", "num", "parameters", "steps", "least"),
    [
        ("colours", 2000, {"noise": 0.0}, 600, 0.98),
        # Three of ten boundaries change nothing: no more than 0.82 can be seen.
        ("colours", 2000, {"noise": 0.0, "min_length": 3, "max_length": 3, "repeat": 0.3}, 600, 0.80),
        ("levels", 1000, {}, 1000, 0.92),  # 0.946 measured; 0.96 after 2,000 steps
    ],
    ids=["colours", "colours that may repeat", "levels"],
)
def test_segments_are_found_by_the_bare_command(
    tmp_path: Path, name: str, num: int, parameters: dict[str, Any], steps: int, least: float
) -> None:
    file, run = tmp_path / "own.npz", tmp_path / "run"
    data.save_npz(file, **data.generate(name, num, 0, **parameters))
    main(["train", "--data", str(file), "--steps", str(steps), "--evaluate-every", "0", "--out", str(run)])
    scores = json.loads((run / "evaluation.json").read_text())["boundaries"]
    assert scores["f1"] >= least
