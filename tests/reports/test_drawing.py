"""All pictures, by their public names: inputs stay as they were, and files are written whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import draw, flags, frames
from matplotlib.figure import Figure
from PIL import Image

from pyro_hrssm import plotting
from pyro_hrssm.errors import InputError


def everything(x: Any, m: Any, p: Any) -> list[Figure]:
    return [
        plotting.reconstructions(x, x, m, m),
        plotting.film_strip(x, m, 1),
        plotting.boundary_probabilities(p, p, m, m),
        plotting.boundary_raster(m, m),
        plotting.segment_lengths(m.sum(1), m.sum(1)),
    ]


@pytest.mark.parametrize("shape", [(12,), (3,), (6, 6), (6, 6, 3)])
@pytest.mark.parametrize("scale", [1, 300])
def test_inputs_stay_as_they_were(shape: tuple[int, ...], scale: int, tmp_path: Path) -> None:
    given_values = [scale * frames(2, 6, shape) - scale // 2, flags(2, 6), flags(2, 6, seed=2) * 0.9]
    copies = [value.copy() for value in given_values]
    for value in given_values:
        value.flags.writeable = False
    figures = everything(*given_values)
    if len(shape) > 1:
        plotting.animate(given_values[0][0], tmp_path / "film.gif")
    for figure in figures:
        draw(figure)
    for value, copy in zip(given_values, copies, strict=True):
        np.testing.assert_array_equal(value, copy)


def test_tensors_with_gradients() -> None:
    x, m = torch.rand(2, 6, 12, requires_grad=True), torch.ones(2, 6, dtype=torch.bool)
    for figure in everything(x * 1, m, torch.rand(2, 6, requires_grad=True)):
        draw(figure)


def test_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures" / "raster.png"
    plotting.save(plotting.boundary_raster(flags(3, 5)), path, dpi=50)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 300  # 6 inches
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InputError, match=r"cannot write .*raster.png \(No space left"):
        plotting.save(plotting.boundary_raster(flags(4, 5)), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["raster.png"]


def test_pyplot_is_left_alone() -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    draw(plotting.boundary_raster(flags(3, 5)))
    assert sys.modules.get("matplotlib.pyplot") is pyplot
    assert pyplot is None or pyplot.get_fignums() == []
