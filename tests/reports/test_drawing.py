"""All pictures, by their public names: inputs stay as they were, and files are written whole."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from drawn import draw, flags, frames
from matplotlib.figure import Figure
from PIL import Image

from pyro_hrssm import plotting
from pyro_hrssm.errors import InputError
from pyro_hrssm.reports import charts, drawing


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
    plotting.save(plotting.boundary_raster(flags(3, 5)), str(path), dpi=50)
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


def test_an_svg_element_refers_to_itself_alone() -> None:
    rows = [{"step": step, "z": 2.0 * step} for step in range(5)]
    (group,) = [group for group in charts.TRAINING if "z" in group.names]
    made = [
        drawing.svg(charts.training_chart(group, charts.curves(rows, group)), name, 'a < b "c"', {"#0072b2": "red"})
        for name in ("one", "one", "two")
    ]
    assert made[0] == made[1]
    ids = [re.findall(r' id="([^"]*)"', text) for text in made]
    assert "one-z" in ids[0]
    assert len({*ids[0], *ids[2]}) == 2 * len(ids[0])
    for text, own in zip(made, ids, strict=True):
        root = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
        assert root.get("aria-label") == 'a < b "c"'
        assert {target.removeprefix("#") for target in re.findall(r'href="([^"]*)"', text)} <= set(own)
        assert not re.search(r"https?:|url\(|<style|<!|<\?|#0072b2", text)
        assert "stroke: red" in text


def test_pyplot_is_left_alone() -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    draw(plotting.boundary_raster(flags(3, 5)))
    assert sys.modules.get("matplotlib.pyplot") is pyplot
    assert pyplot is None or pyplot.get_fignums() == []
