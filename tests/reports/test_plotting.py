"""Figures: inputs stay as they were, marks stand where segments start, and every shape of frame is drawn."""

from __future__ import annotations

import io
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from pyro_hrssm import plotting
from pyro_hrssm.errors import InputError

SHAPES = [(28,), (8,), (3,), (1,), (8, 8), (6, 9, 1), (8, 8, 3), (4, 4, 2)]


def frames(count: int, length: int, shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).random((count, length, *shape))


def flags(count: int, length: int, rate: float = 0.3, seed: int = 1) -> Any:
    return (np.random.default_rng(seed).random((count, length)) < rate).astype(float)


def draw(figure: Figure) -> None:
    """Render at a low resolution: layout warnings, which are errors here, come only then."""
    figure.set_dpi(30)
    FigureCanvasAgg(figure).print_raw(io.BytesIO())


def marked(figure: Figure, gid: str) -> list[Any]:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def starts(boundaries: Any) -> Any:
    """By the convention, written out: the first frame, and each after a frame with m = 1."""
    return [[t for t in range(len(row)) if t == 0 or row[t - 1] > 0.5] for row in boundaries]


def ticks(marks: LineCollection, along: int) -> list[int]:
    """Frames whose near edge bears a bracket's tick: brackets without one go on from the line above."""
    return [round(float(line[0][along]) + 0.4) for line in marks.get_segments() if len(line) == 3]


@pytest.mark.parametrize(
    ("count", "length", "shape"),
    [*((count, length, shape) for count, length in [(1, 1), (1, 2), (2, 7)] for shape in SHAPES), (10, 5, (28,))],
)
def test_marks_are_the_segment_starts(count: int, length: int, shape: tuple[int, ...]) -> None:
    x, m = frames(count, length, shape), flags(count, length)
    along = 1 if len(shape) == 1 and shape[0] >= 8 else 0
    expected = starts(m)[:8]

    pair = plotting.reconstructions(x, x, m)
    draw(pair)
    assert sorted(ticks(mark, along) for mark in marked(pair, "segment-starts")) == sorted(expected * 2)

    strip = plotting.film_strip(x, m)
    draw(strip)
    assert sorted(ticks(mark, along) for mark in marked(strip, "segment-starts")) == sorted(expected)

    assert marked(plotting.film_strip(x), "segment-starts") == []


def test_a_long_strip_goes_on_below() -> None:
    x, m = frames(2, 55, (4, 4)), flags(2, 55)
    figure = plotting.film_strip(x, m, context=30)
    draw(figure)
    found = [ticks(mark, 0) for mark in marked(figure, "segment-starts")]
    assert [[*chain(*found[:3])], [*chain(*found[3:])]] == starts(m)
    given_frames = [mark.get_segments()[0][:, 0].tolist() for mark in marked(figure, "context")]
    assert given_frames == [[-0.5, 18.5], [18.5, 29.5]] * 2
    numbers = [label.get_text() for axes in figure.axes[:3] for label in axes.get_xticklabels()]
    assert numbers == [str(t) for t in range(55)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 60), st.sampled_from(SHAPES), st.integers(0, 10**6))
def test_any_size_and_length(count: int, length: int, shape: tuple[int, ...], seed: int) -> None:
    figure = plotting.film_strip(frames(count, length, shape), flags(count, length, 0.2, seed), length // 2)
    found = sum(len(ticks(mark, 0)) for mark in marked(figure, "segment-starts"))
    assert found == sum(map(len, starts(flags(count, length, 0.2, seed))))


def test_marks_stay_out_of_the_pixels() -> None:
    for shape in [(28,), (3,), (8, 8)]:
        x, m = frames(4, 20, shape), flags(4, 20)
        for figure in (plotting.film_strip(x, m, 5), plotting.reconstructions(x, x, m)):
            draw(figure)
            panels = [axes for axes in figure.axes if axes.images]
            for mark in marked(figure, "segment-starts") + marked(figure, "context"):
                for line in mark.get_segments():
                    points = mark.get_transform().transform(line)
                    for axes in panels:
                        low, high = np.asarray(axes.bbox.get_points())
                        inside = (points > low).all(1) & (points < high).all(1)
                        assert not inside.any()


def test_pixels_are_the_frames() -> None:
    x = frames(2, 9, (12,))
    figure = plotting.film_strip(x)
    for axes, sequence in zip(figure.axes, x, strict=True):
        image = np.asarray(axes.images[0].get_array())
        assert image.shape == (9, 12, 3)
        np.testing.assert_allclose(image, np.repeat(sequence[..., None], 3, -1), atol=1 / 255)  # 256 greys

    x = frames(1, 3, (5, 6, 3))
    image = np.asarray(plotting.film_strip(x).axes[0].images[0].get_array())
    for t in range(3):
        np.testing.assert_array_equal(image[:, t * 8 + 1 : t * 8 + 7], x[0, t])
        assert (image[:, t * 8] == 1).all()


def test_missing_frames_and_ends() -> None:
    x, m = frames(2, 10, (12,)), np.ones((2, 10))
    x[0, 3] = np.nan
    mask = np.ones((2, 10))
    mask[0, 3:5] = mask[0, 8:] = mask[1] = 0
    means = np.nan_to_num(x, nan=0.5)
    figure = plotting.reconstructions(x, means, m, mask)
    draw(figure)
    original, nothing, rebuilt, _ = figure.axes
    pixels = np.asarray(original.images[0].get_array())
    assert len(pixels) == 8
    coloured = (np.ptp(pixels, axis=-1) > 0.05).all(1)
    assert np.flatnonzero(coloured).tolist() == [3, 4]
    np.testing.assert_allclose(np.asarray(rebuilt.images[0].get_array())[..., 0], means[0, :8], atol=1 / 255)
    assert not nothing.images
    assert [len(mark.get_segments()) for mark in marked(figure, "segment-starts")] == [8, 0, 8, 0]
    assert [text.get_text() for text in figure.legends[0].get_texts()][1:] == ["missing frame"]


@pytest.mark.parametrize(
    ("values", "value_range", "expected"),
    [
        (np.array([0.2, 0.4]), None, [0.2, 0.4]),
        (np.array([-1.0, 3.0]), None, [0.0, 1.0]),
        (np.array([5.0, 5.0]), None, [0.0, 0.0]),
        (np.array([0.0, np.inf]), None, [0.0, None]),
        (np.array([51, 255], np.uint8), None, [0.2, 1.0]),
        (np.array([True, False]), None, [1.0, 0.0]),
        (np.array([-2.0, 1.0]), (-1, 3), [0.0, 0.5]),
    ],
)
def test_value_ranges(values: Any, value_range: Any, expected: list[Any]) -> None:
    x = np.repeat(values[None, :, None], 8, -1)
    figure = plotting.film_strip(x, value_range=value_range)
    draw(figure)
    for row, brightness in zip(np.asarray(figure.axes[0].images[0].get_array()), expected, strict=True):
        assert brightness is None or np.allclose(row, brightness, atol=1 / 255)


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


def test_probabilities() -> None:
    m, truth = flags(9, 12), flags(9, 12, seed=2)
    prior = frames(9, 12, ())
    prior[:, -1] = np.nan
    figure = plotting.boundary_probabilities(prior, m, m, truth, limit=3)
    draw(figure)
    assert len(figure.axes) == 3
    for gid, expected in (("boundaries", m), ("true-boundaries", truth)):
        found = [np.asarray(line.get_xdata()).tolist() for line in marked(figure, gid)]
        # A boundary at t opens a segment at t + 1; the last frame's opens none.
        assert found == [[t - 1 for t in row[1:]] for row in starts(expected)[:3]]
    plain = plotting.boundary_probabilities(prior[:1, :2], m[:1, :2], m[:1, :2])
    draw(plain)
    assert marked(plain, "true-boundaries") == []


@pytest.mark.parametrize(("count", "length"), [(1, 1), (1, 2), (12, 28), (120, 10)])
def test_raster(count: int, length: int) -> None:
    m, truth = flags(count, length), flags(count, length, seed=2)
    model = np.zeros((count, length), bool)
    true = model.copy()
    for i, (own, other) in enumerate(zip(starts(m), starts(truth), strict=True)):
        model[i, own] = true[i, other] = True

    figure = plotting.boundary_raster(m)
    draw(figure)
    (image,) = marked(figure, "segment-starts")
    np.testing.assert_array_equal((image.get_array() < 1).any(-1), model)

    figure = plotting.boundary_raster(m, truth)
    draw(figure)
    (image,) = marked(figure, "segment-starts")
    cells = np.asarray(image.get_array())
    np.testing.assert_array_equal((cells < 1).any(-1), model | true)
    np.testing.assert_array_equal((cells == 0).all(-1), model & true)


def test_segment_lengths() -> None:
    figure = plotting.segment_lengths([3, 3, 5, 1], torch.tensor([2, 2]))
    draw(figure)
    bars: list[Any] = [*figure.axes[0].patches]
    stairs = [bar.get_data() for bar in bars if bar.get_label().startswith(("model", "truth"))]
    np.testing.assert_array_equal(stairs[0].values, [25, 0, 50, 0, 25])
    np.testing.assert_array_equal(stairs[1].values, [0, 100, 0, 0, 0])
    np.testing.assert_array_equal(stairs[0].edges, np.arange(6) + 0.5)
    assert figure.legends[0].get_texts()[0].get_text() == "model: 4 segments, mean 3.0 frames"


@pytest.mark.parametrize("lengths", [[], [1], [1000, 3], np.arange(1, 500)])
def test_odd_segment_lengths(lengths: Any) -> None:
    figure = plotting.segment_lengths(lengths, [])
    draw(figure)
    bars: Any = figure.axes[0].patches[0]
    values = bars.get_data().values
    assert values.sum() == pytest.approx(100 if len(lengths) else 0)  # Every segment falls into a bar.


@pytest.mark.parametrize("groups", [None, [0, 1, 1, 0, 2, 2], np.eye(3)[[0, 1, 2, 0, 1, 2]]])
def test_abstract_states(groups: Any) -> None:
    # A line of 6 points, far from the origin, in 3 dimensions: one component tells all of them apart.
    states = torch.tensor([1.0, 2.0, -2.0]) * torch.arange(6.0)[:, None] + 5
    figure = plotting.abstract_states(states, groups)
    draw(figure)
    places = np.concatenate([np.asarray(points.get_offsets()) for points in figure.axes[0].collections])
    assert len(places) == 6
    assert np.ptp(places[:, 0]) == pytest.approx(15)  # 5 steps of length 3
    np.testing.assert_allclose(places[:, 1], 0, atol=1e-5)
    assert figure.axes[0].get_xlabel() == "first component (100 % of the variance)"
    assert len(figure.legends) == (1 if np.ndim(groups) == 1 and groups is not None else 0)


def test_abstract_states_of_one_entry_and_wrong_ones() -> None:
    draw(plotting.abstract_states(np.zeros((3, 1))))
    with pytest.raises(InputError, match="states must have shape"):
        plotting.abstract_states(np.zeros((1, 4)))
    with pytest.raises(InputError, match="groups must have shape"):
        plotting.abstract_states(np.zeros((3, 4)), [1, 2])


def test_training_curves() -> None:
    terms = {"emission": 100.0, "z": 5.0, "s": 9.0, "m": None, "boundary_rate": 0.2, "temperature": 0.9}
    rows: list[dict[str, Any]] = [{"step": step, "nats_per_sequence": 200 - step, **terms} for step in range(0, 50, 10)]
    rows += [{"step": 45, "held_out_nats_per_sequence": 150.0}, {"step": 50, "seconds": 3}]
    figure = plotting.training_curves(rows)
    draw(figure)
    curves = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    np.testing.assert_array_equal(curves["training loss"].get_xydata(), [[t, 200 - t] for t in range(0, 50, 10)])
    np.testing.assert_array_equal(curves["held-out bound"].get_xydata(), [[45, 150]])
    assert "m, boundary" not in curves
    draw(plotting.training_curves([]))
    draw(plotting.training_curves(rows[:1]))


def test_labels() -> None:
    x, m = frames(2, 6, (12,)), flags(2, 6)
    figure = plotting.film_strip(x, m, [2, 0], ["seven", "two"], title="Predictions")
    assert figure.get_suptitle() == "Predictions"
    assert [axes.get_title() for axes in figure.axes] == ["seven", "two"]
    assert figure.axes[0].get_ylabel() == "frame t"
    (given_frames,) = marked(figure, "context")
    assert given_frames.get_segments()[0][:, 1].tolist() == [-0.5, 1.5]
    assert isinstance(given_frames.axes, Axes)


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


def test_animation(tmp_path: Path) -> None:
    film = np.zeros((5, 8, 8))
    for t in range(5):
        film[t, t] = 1
    for given_frames, width, length in (
        (film, 128, 5),
        (list(film), 128, 5),
        ([film, film[:3]], 128 * 2 + 16, 5),
        (np.repeat(film[..., None], 3, -1), 128, 5),
        (film[:1], 128, 1),
    ):
        plotting.animate(given_frames, tmp_path / "film.gif", fps=10)
        with Image.open(tmp_path / "film.gif") as image:
            assert image.format == "GIF"
            assert image.size == (width, 128)
            assert getattr(image, "n_frames", 1) == length
            for t in range(length):
                image.seek(t)
                assert length == 1 or image.info["duration"] == 100  # milliseconds
                np.testing.assert_array_equal(np.asarray(image.convert("L"))[8::16, 8:128:16], 255 * film[t])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plotting.film_strip(np.ones((2, 3))), "B, T, X…"),
        (lambda: plotting.film_strip(np.ones((2, 0, 3))), "B, T, X…"),
        (lambda: plotting.film_strip(np.ones((2, 3, 8)), np.ones((2, 4))), "boundaries must have shape"),
        (lambda: plotting.film_strip(np.ones((2, 3, 8)), context=4), "context must lie"),
        (lambda: plotting.film_strip(np.ones((2, 3, 8)), context=[1, 2, 3]), "context must be"),
        (lambda: plotting.film_strip(np.ones((2, 3, 8)), titles=["one"]), "titles must hold"),
        (lambda: plotting.film_strip(np.ones((2, 3, 8)), limit=0), "limit must be"),
        (lambda: plotting.film_strip(np.ones((2, 3, 8)), value_range=(1, 1)), "value_range must rise"),
        (lambda: plotting.reconstructions(np.ones((2, 3, 8)), np.ones((2, 3, 9)), np.ones((2, 3))), "means must have"),
        (
            lambda: plotting.reconstructions(np.ones((2, 3, 8)), np.ones((2, 3, 8)), np.ones((2, 3)), np.ones(2)),
            "mask must have",
        ),
        (lambda: plotting.boundary_probabilities(np.ones(3), np.ones(3), np.ones(3)), "prior must have"),
        (lambda: plotting.boundary_raster(np.ones(3)), "boundaries must have"),
        (lambda: plotting.animate(np.ones((2, 3, 4, 5)), Path("film.gif")), "frames must have shape"),
        (lambda: plotting.animate([np.ones((2, 3, 4)), np.ones((2, 5, 4))], Path("film.gif")), "one height"),
        (lambda: plotting.animate([], Path("film.gif")), "at least one sequence"),
        (lambda: plotting.animate(np.ones((2, 3, 4)), Path("film.gif"), fps=0), "fps must be"),
    ],
)
def test_wrong_inputs(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_pyplot_is_left_alone() -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    draw(plotting.boundary_raster(flags(3, 5)))
    assert sys.modules.get("matplotlib.pyplot") is pyplot
    assert pyplot is None or pyplot.get_fignums() == []
