"""Pictures of segment types: bars, boxes, cells and panels are those of their numbers."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import draw, marked

from pyro_hrssm.errors import InputError
from pyro_hrssm.reports import drawing, type_charts
from pyro_hrssm.reports.type_charts import Counts


def counts(number: int, transitions: np.ndarray | None = None) -> Counts:
    lengths = [np.arange(1, 3 + kind) for kind in range(number)]
    chain = np.ones((number, number), int) if transitions is None else transitions
    sizes = np.array([part.size for part in lengths])
    return Counts(sizes, np.array([part.sum() for part in lengths]), lengths, chain)


@pytest.mark.parametrize("number", [1, 3, 13, 40])
def test_shares_and_transitions(number: int) -> None:
    given = counts(number, np.arange(number * number).reshape(number, number))
    figure = type_charts.type_summary(given)
    draw(figure)
    widths = [bar.get_width() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    expected = [*given.segments / given.segments.sum(), *given.frames / given.frames.sum()]
    np.testing.assert_allclose(widths, 100 * np.array(expected))
    (image,) = marked(figure, "transitions")
    cells = np.asarray(image.get_array())
    np.testing.assert_allclose(cells, given.transitions / np.maximum(1, given.transitions.sum(1, keepdims=True)))
    written = [text.get_text() for text in figure.axes[2].texts]
    assert written == ([f"{100 * cell:.0f}" for cell in cells.ravel() if cell >= 0.005] if number <= 12 else [])


def test_a_type_that_never_occurs_has_empty_places() -> None:
    given = Counts(np.array([2, 0]), np.array([7, 0]), [np.array([3, 4]), np.zeros(0, int)], np.array([[1, 0], [0, 0]]))
    figure = type_charts.type_summary(given)
    draw(figure)
    assert [text.get_text() for text in figure.axes[2].texts] == ["100"]
    with pytest.raises(InputError, match="at least one type, found 0"):
        type_charts.type_summary(counts(0))


@pytest.mark.parametrize(
    ("shape", "kind"), [((1,), "lines"), ((3,), "lines"), ((9,), "image"), ((6, 6), "image"), ((6, 6, 3), "image")]
)
def test_examples_of_every_kind_of_frame(shape: tuple[int, ...], kind: str) -> None:
    random = np.random.default_rng(0)
    lengths = [[1, 5, 2], [7], []]
    examples = [[random.random((length, *shape)) for length in row] for row in lengths]
    examples[0][1][2] = np.nan
    figure = type_charts.type_examples(examples)
    draw(figure)
    panels = np.array(figure.axes, object).reshape(3, 3)
    assert [[len(axes.lines) + len(axes.images) > 0 for axes in row] for row in panels] == [
        [True, True, True], [True, False, False], [False, False, False],
    ]  # fmt: skip
    if kind == "lines":
        assert [len(line.get_xdata()) for line in panels[0, 1].lines] == [5] * shape[0]
        np.testing.assert_array_equal(panels[1, 0].lines[0].get_ydata(), examples[1][0][:, 0])
    # A short segment looks short: all panels have room for the longest.
    if shape == (9,):
        assert {axes.get_ylim() for axes in panels.flat if axes.images} == {(6.5, -0.5)}
    with pytest.raises(InputError, match="at least one segment, found none"):
        type_charts.type_examples([[], []])


def test_a_long_segment_of_images_shows_its_first_and_last_frame() -> None:
    film = np.linspace(0, 1, 9)[:, None, None] * np.ones((9, 2, 2))
    figure = type_charts.type_examples([[film]])
    draw(figure)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.shape == (2, 8, 3)
    # Frames 0, 3, 5 and 8 of values from 0 to 1; a colour map has 256 steps.
    np.testing.assert_allclose(shown[0, ::2, 0], 255 * np.array([0, 3, 5, 8]) / 8, atol=1)


def test_of_long_segments_and_large_frames_as_much_is_drawn_as_a_screen_shows() -> None:
    figure = type_charts.type_examples([[np.zeros((drawing.FRAMES + 5, 9)), np.ones((3, 9))]])
    draw(figure)
    assert np.asarray(figure.axes[0].images[0].get_array()).shape[0] == drawing.FRAMES
    assert f"first {drawing.FRAMES} of {drawing.FRAMES + 5} frames" in figure.get_suptitle()
    figure = type_charts.type_examples([[np.zeros((2, 2 * drawing.PIXELS, 4, 1))]])
    draw(figure)
    assert np.asarray(figure.axes[0].images[0].get_array()).shape[0] == drawing.PIXELS
    assert figure.get_suptitle().endswith("one pixel in 2, down and across")
    assert type_charts.type_examples([[np.zeros((9, 2, 2))]]).get_suptitle() == "Examples of each type"


def test_the_report_s_rows() -> None:
    given = counts(3, np.array([[0, 3, 1], [0, 0, 0], [1, 0, 1]]))
    found = type_charts.section(given, [[np.zeros((2, 1))], [np.zeros((3, 1))], []], "a note")
    assert found.rows == [
        ("0", "2", "15.8 %", "1.5", "1 (75 %), 2 (25 %)"),
        ("1", "3", "31.6 %", "2.0", "–"),
        ("2", "4", "52.6 %", "2.5", "0 (50 %), 2 (50 %)"),
    ]
    assert all(picture.startswith("data:image/png;base64,") for _, picture in found.pictures)
