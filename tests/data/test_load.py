from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import Scaling, Splits, generate, load, save_npz
from pyro_hrssm.errors import InputError


def test_named_sets_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load(DataConfig(data="mnist5k")), Splits)
    assert load(DataConfig(data="colours")).name == "colours"
    assert load(DataConfig(data="levels")).name == "levels"
    np.save(tmp_path / "my.npy", np.ones((4, 2, 3), np.uint8))
    assert load(DataConfig(data=str(tmp_path / "my.npy"))).name == "my.npy"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load(DataConfig(data="~/my.npy")).name == "my.npy"


def test_a_scaling_given_is_used_for_every_kind(tmp_path: Path) -> None:
    scaling = Scaling(1.0, 2.0)
    np.save(tmp_path / "my.npy", np.ones((4, 2, 3)))
    for data in ("mnist5k", "colours", str(tmp_path / "my.npy")):
        splits = load(DataConfig(data=data), scaling)
        assert splits.scaling == splits.train.scaling == splits.held_out.scaling == scaling


@pytest.mark.parametrize(
    "name", ["mnist6k", "no/such/file.npz", "a\nb", "x" * 5000, "~nobody-of-that-name/x.npy", "\0"]
)
def test_unknown_names(name: str) -> None:
    with pytest.raises(
        InputError, match=r"mnist5k, mnist, balls, colours, levels or the path .* no such file"
    ) as raised:
        load(DataConfig(data=name))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["balls", "colours", "levels"])
def test_generated_sets_are_saved_and_read(name: str, tmp_path: Path) -> None:
    data = generate(name, 6, 0, num_frames=7)
    assert data["frames"].shape[:2] == data["boundaries"].shape == (6, 7)
    save_npz(tmp_path / "my.npz", **data)
    splits = load(DataConfig(data=str(tmp_path / "my.npz")))
    boundaries = splits.train.batch(range(5)).boundaries
    assert boundaries is not None
    held_out = splits.held_out.batch([0]).boundaries
    assert held_out is not None
    assert int(boundaries.sum() + held_out.sum()) == data["boundaries"].sum()


def test_generating_the_unknown() -> None:
    with pytest.raises(
        InputError, match="only balls, bounce, colours, levels, maze, modes can be generated, found mnist"
    ):
        generate("mnist", 3, 0)
    with pytest.raises(InputError, match="balls has no parameter colour, size; it has num_frames, image_size"):
        generate("balls", 3, 0, size=3, colour=2)


def test_importing_reads_nothing_heavy() -> None:
    source = "import sys, pyro_hrssm.data; print(*{'torchvision', 'mlxtend', 'pandas'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.split() == []
