"""Film strips: marks are where segments start, and every shape of frame is drawn."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from drawn import draw, flags, frames, marked, starts
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from pyro_hrssm.errors import InputError
from pyro_hrssm.reports import strips

SHAPES = [(28,), (8,), (3,), (1,), (8, 8), (6, 9, 1), (8, 8, 3), (4, 4, 2)]


def ticks(marks: LineCollection, along: int) -> list[int]:
    """Frames whose near edge has a bracket's tick; brackets without a tick continue from the line above."""
    return [round(float(line[0][along]) + 0.4) for line in marks.get_segments() if len(line) == 3]


@pytest.mark.parametrize(
    ("count", "length", "shape"),
    [*((count, length, shape) for count, length in [(1, 1), (1, 2), (2, 7)] for shape in SHAPES), (10, 5, (28,))],
)
def test_marks_are_the_segment_starts(count: int, length: int, shape: tuple[int, ...]) -> None:
    x, m = frames(count, length, shape), flags(count, length)
    along = 1 if len(shape) == 1 and shape[0] >= 8 else 0
    expected = starts(m)[:8]

    pair = strips.reconstructions(x, x, m)
    draw(pair)
    assert sorted(ticks(mark, along) for mark in marked(pair, "segment-starts")) == sorted(expected * 2)

    strip = strips.film_strip(x, m)
    draw(strip)
    assert sorted(ticks(mark, along) for mark in marked(strip, "segment-starts")) == sorted(expected)

    assert marked(strips.film_strip(x), "segment-starts") == []


def test_a_long_strip_goes_on_below() -> None:
    x, m = frames(2, 55, (4, 4)), flags(2, 55)
    figure = strips.film_strip(x, m, context=30)
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
    figure = strips.film_strip(frames(count, length, shape), flags(count, length, 0.2, seed), length // 2)
    found = sum(len(ticks(mark, 0)) for mark in marked(figure, "segment-starts"))
    assert found == sum(map(len, starts(flags(count, length, 0.2, seed))))


def test_marks_stay_out_of_the_pixels() -> None:
    for shape in [(28,), (3,), (8, 8)]:
        x, m = frames(4, 20, shape), flags(4, 20)
        for figure in (strips.film_strip(x, m, 5), strips.reconstructions(x, x, m)):
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
    figure = strips.film_strip(x)
    for axes, sequence in zip(figure.axes, x, strict=True):
        image = np.asarray(axes.images[0].get_array())
        assert image.shape == (9, 12, 3)
        np.testing.assert_allclose(image, np.repeat(sequence[..., None], 3, -1), atol=1 / 255)  # 256 greys

    x = frames(1, 3, (5, 6, 3))
    image = np.asarray(strips.film_strip(x).axes[0].images[0].get_array())
    for t in range(3):
        np.testing.assert_array_equal(image[:, t * 8 + 1 : t * 8 + 7], x[0, t])
        assert (image[:, t * 8] == 1).all()


@pytest.mark.parametrize("channels", [2, 4, 8])
def test_channels_without_colours_stand_side_by_side(channels: int) -> None:
    x = frames(2, 3, (5, 6, channels))
    figure = strips.film_strip(x)
    beside = np.concatenate([x[..., channel] for channel in range(channels)], -1)
    image = np.asarray(figure.axes[0].images[0].get_array())
    pad = max(1, 6 * channels // 24)
    for t in range(3):
        start = t * (6 * channels + 2 * pad) + pad
        drawn = image[:, start : start + 6 * channels]
        np.testing.assert_allclose(drawn, np.repeat(beside[0, t][..., None], 3, -1), atol=1 / 255)  # 256 greys
    m = flags(2, 3)
    for made in (figure, strips.film_strip(x, m, 1), strips.reconstructions(x, x, m)):
        draw(made)
        said = [text.get_text() for text in made.legends[0].get_texts()]
        assert said[-1] == f"{channels} channels side by side"
    found = strips.pixels(x, x)
    assert found.kind == "images"
    assert found.originals.shape == (2, 3, 5, 6 * channels, 3)
    np.testing.assert_allclose(found.rebuilt[..., 0] / 255, beside, atol=1 / 255)


def test_of_many_channels_the_mean_is_drawn() -> None:
    x = frames(1, 2, (5, 6, 9))
    figure = strips.film_strip(x)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mean of 9 channels"]
    np.testing.assert_allclose(strips.pixels(x, x).originals[..., 0] / 255, x.mean(-1), atol=1 / 255)


def test_missing_frames_and_ends() -> None:
    x, m = frames(2, 10, (12,)), np.ones((2, 10))
    x[0, 3] = np.nan
    mask = np.ones((2, 10))
    mask[0, 3:5] = mask[0, 8:] = mask[1] = 0
    means = np.nan_to_num(x, nan=0.5)
    figure = strips.reconstructions(x, means, m, mask)
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
    figure = strips.film_strip(x, value_range=value_range)
    draw(figure)
    for row, brightness in zip(np.asarray(figure.axes[0].images[0].get_array()), expected, strict=True):
        assert brightness is None or np.allclose(row, brightness, atol=1 / 255)


def test_labels() -> None:
    x, m = frames(2, 6, (12,)), flags(2, 6)
    figure = strips.film_strip(x, m, [2, 0], ["seven", "two"], title="Predictions")
    assert figure.get_suptitle() == "Predictions"
    assert [axes.get_title() for axes in figure.axes] == ["seven", "two"]
    assert figure.axes[0].get_ylabel() == "frame t"
    (given_frames,) = marked(figure, "context")
    assert given_frames.get_segments()[0][:, 1].tolist() == [-0.5, 1.5]
    assert isinstance(given_frames.axes, Axes)


@pytest.mark.parametrize(
    ("count", "length", "shape", "layers", "drawn"),
    [
        (8, 300, (4, 4), 2, 48), (8, 300, (4, 4), 1, 96), (1, 1000, (4, 4, 3), 1, 768), (8, 48, (4, 4), 2, 48),
        (2, 601, (28,), 2, 600), (2, 5000, (3,), 1, 600), (40, 100, (4, 4), 1, 96),
    ],
)  # fmt: skip
def test_of_long_sequences_as_much_is_drawn_as_a_screen_shows(
    count: int, length: int, shape: tuple[int, ...], layers: int, drawn: int
) -> None:
    x, m = np.zeros((count, length, *shape)), flags(count, length)
    figure = strips.film_strip(x, m, length) if layers == 1 else strips.reconstructions(x, x, m)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) <= 32
    said = figure.get_suptitle().splitlines()[1:]
    assert said == ([f"first {drawn} of {length} frames"] if drawn < length else [])
    along = 1 if shape == (28,) else 0
    found = sum(len(ticks(mark, along)) for mark in marked(figure, "segment-starts"))
    assert found == layers * sum(len([t for t in row if t < drawn]) for row in starts(m)[:8])


def test_of_large_frames_as_many_pixels_are_drawn_as_a_screen_shows() -> None:
    x = frames(1, 2, (600, 300))
    figure = strips.film_strip(x)
    assert figure.get_suptitle() == "Samples\none pixel in 3, down and across"
    image = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(image[:, 4:104, 0], x[0, 0, ::3, ::3], atol=1 / 255)  # 256 greys
    rows = np.asarray(strips.film_strip(frames(1, 5, (1000,))).axes[0].images[0].get_array())
    assert rows.shape == (5, 250, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: strips.film_strip(np.ones((2, 3))), "B, T, X…"),
        (lambda: strips.film_strip(np.ones((2, 0, 3))), "B, T, X…"),
        (lambda: strips.film_strip(np.ones((2, 3, 8)), np.ones((2, 4))), "boundaries must have shape"),
        (lambda: strips.film_strip(np.ones((2, 3, 8)), context=4), "context must lie"),
        (lambda: strips.film_strip(np.ones((2, 3, 8)), context=[1, 2, 3]), "context must be"),
        (lambda: strips.film_strip(np.ones((2, 3, 8)), titles=["one"]), "titles must hold"),
        (lambda: strips.film_strip(np.ones((2, 3, 8)), limit=0), "limit must be"),
        (lambda: strips.film_strip(np.ones((2, 3, 8)), value_range=(1, 1)), "value_range must rise"),
        (lambda: strips.reconstructions(np.ones((2, 3, 8)), np.ones((2, 3, 9)), np.ones((2, 3))), "means must have"),
        (
            lambda: strips.reconstructions(np.ones((2, 3, 8)), np.ones((2, 3, 8)), np.ones((2, 3)), np.ones(2)),
            "mask must have",
        ),
    ],
)
def test_wrong_inputs(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
