"""Charts: bars, points and curves are at the places of their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from drawn import draw, flags, frames, marked, starts

from pyro_hrssm.errors import InputError
from pyro_hrssm.reports import charts


def test_probabilities() -> None:
    m, truth = flags(9, 12), flags(9, 12, seed=2)
    prior = frames(9, 12, ())
    prior[:, -1] = np.nan
    figure = charts.boundary_probabilities(prior, m, m, truth, limit=3)
    draw(figure)
    assert len(figure.axes) == 3
    for gid, expected in (("boundaries", m), ("true-boundaries", truth)):
        found = [np.asarray(line.get_xdata()).tolist() for line in marked(figure, gid)]
        # A boundary at t opens a segment at t + 1; the last frame's opens none.
        assert found == [[t - 1 for t in row[1:]] for row in starts(expected)[:3]]
    plain = charts.boundary_probabilities(prior[:1, :2], m[:1, :2], m[:1, :2])
    draw(plain)
    assert marked(plain, "true-boundaries") == []


@pytest.mark.parametrize(("count", "length"), [(1, 1), (1, 2), (12, 28), (120, 10)])
def test_raster(count: int, length: int) -> None:
    m, truth = flags(count, length), flags(count, length, seed=2)
    model = np.zeros((count, length), bool)
    true = model.copy()
    for i, (own, other) in enumerate(zip(starts(m), starts(truth), strict=True)):
        model[i, own] = true[i, other] = True

    figure = charts.boundary_raster(m)
    draw(figure)
    (image,) = marked(figure, "segment-starts")
    np.testing.assert_array_equal((image.get_array() < 1).any(-1), model)

    figure = charts.boundary_raster(m, truth)
    draw(figure)
    (image,) = marked(figure, "segment-starts")
    cells = np.asarray(image.get_array())
    np.testing.assert_array_equal((cells < 1).any(-1), model | true)
    np.testing.assert_array_equal((cells == 0).all(-1), model & true)


def test_of_long_sequences_the_first_frames_are_drawn() -> None:
    m = flags(700, 2000)
    raster = charts.boundary_raster(m, m)
    assert raster.get_suptitle().splitlines()[1:] == ["first 600 of 700 sequences, first 600 of 2000 frames"]
    (image,) = marked(raster, "segment-starts")
    assert image.get_array().shape == (600, 600, 3)
    assert len(raster.findobj()) < 500, "it drew a line between any two frames"
    chances = charts.boundary_probabilities(m[:6], m[:6], m[:6], m[:6])
    assert chances.get_suptitle().splitlines()[1:] == ["first 600 of 2000 frames"]
    assert max(np.max(np.asarray(line.get_xdata())) for line in marked(chances, "boundaries")) < 600
    for figure in (raster, chances):
        draw(figure)


def test_segment_lengths() -> None:
    figure = charts.segment_lengths([3, 3, 5, 1], torch.tensor([2, 2]))
    draw(figure)
    bars: list[Any] = [*figure.axes[0].patches]
    stairs = [bar.get_data() for bar in bars if bar.get_label().startswith(("model", "truth"))]
    np.testing.assert_array_equal(stairs[0].values, [25, 0, 50, 0, 25])
    np.testing.assert_array_equal(stairs[1].values, [0, 100, 0, 0, 0])
    np.testing.assert_array_equal(stairs[0].edges, np.arange(6) + 0.5)
    assert figure.legends[0].get_texts()[0].get_text() == "model: 4 segments, mean 3.0 frames"


@pytest.mark.parametrize("lengths", [[], [1], [1000, 3], np.arange(1, 500)])
def test_odd_segment_lengths(lengths: Any) -> None:
    figure = charts.segment_lengths(lengths, [])
    draw(figure)
    bars: Any = figure.axes[0].patches[0]
    values = bars.get_data().values
    assert values.sum() == pytest.approx(100 if len(lengths) else 0)  # Every segment falls into a bar.


@pytest.mark.parametrize("groups", [None, [0, 1, 1, 0, 2, 2], np.eye(3)[[0, 1, 2, 0, 1, 2]]])
def test_abstract_states(groups: Any) -> None:
    # A line of 6 points, far from the origin, in 3 dimensions: one component tells all of them apart.
    states = torch.tensor([1.0, 2.0, -2.0]) * torch.arange(6.0)[:, None] + 5
    figure = charts.abstract_states(states, groups)
    draw(figure)
    places = np.concatenate([np.asarray(points.get_offsets()) for points in figure.axes[0].collections])
    assert len(places) == 6
    assert np.ptp(places[:, 0]) == pytest.approx(15)  # 5 steps of length 3
    np.testing.assert_allclose(places[:, 1], 0, atol=1e-5)
    assert figure.axes[0].get_xlabel() == "first component (100 % of the variance)"
    assert len(figure.legends) == (1 if np.ndim(groups) == 1 and groups is not None else 0)


def test_abstract_states_of_one_entry_and_wrong_ones() -> None:
    draw(charts.abstract_states(np.zeros((3, 1))))
    with pytest.raises(InputError, match="states must have shape"):
        charts.abstract_states(np.zeros((1, 4)))
    with pytest.raises(InputError, match="groups must have shape"):
        charts.abstract_states(np.zeros((3, 4)), [1, 2])


def test_training_curves() -> None:
    terms = {"emission": 100.0, "z": 5.0, "s": 9.0, "m": None, "boundary_rate": 0.2, "temperature": 0.9}
    rows: list[dict[str, Any]] = [{"step": step, "nats_per_sequence": 200 - step, **terms} for step in range(0, 50, 10)]
    rows += [{"step": 45, "held_out_nats_per_sequence": 150.0}, {"step": 50, "seconds": 3}]
    figure = charts.training_curves(rows)
    draw(figure)
    curves = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    np.testing.assert_array_equal(curves["training loss"].get_xydata(), [[t, 200 - t] for t in range(0, 50, 10)])
    np.testing.assert_array_equal(curves["held-out bound"].get_xydata(), [[45, 150]])
    assert "m, boundary" not in curves
    titles = [axes.get_title() for axes in figure.axes if axes.lines]
    assert titles == ["Loss and held-out bound", "Latent terms", "Boundary rate", "Temperature of the relaxation"]
    scored = charts.training_curves([*rows, {"step": 50, "held_out_boundary_f1": 0.5}])
    draw(scored)
    (axes,) = [axes for axes in scored.axes if axes.get_title() == "Boundary score"]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[50, 0.5]])
    assert axes.get_ylim()[0] <= 0
    assert axes.get_ylim()[1] >= 1
    draw(charts.training_curves([]))
    draw(charts.training_curves(rows[:1]))


@pytest.mark.parametrize(("count", "most"), [(1, 1), (7, 7), (8, 7), (5000, 300)])
def test_thinned_curves_keep_their_end(count: int, most: int) -> None:
    rows = [{"step": step, "temperature": 1 / (1 + step)} for step in range(count)]
    found = charts.curves([*rows, {"step": count, "temperature": None}], charts.TRAINING[-1], most)
    points = found["temperature"]
    assert most / 2 < len(points) <= most
    np.testing.assert_array_equal(points[-1], [count - 1, 1 / count])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: charts.boundary_probabilities(np.ones(3), np.ones(3), np.ones(3)), "prior must have"),
        (lambda: charts.boundary_raster(np.ones(3)), "boundaries must have"),
    ],
)
def test_wrong_inputs(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
