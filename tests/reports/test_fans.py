"""Fan charts: bands lie between their quantiles, beside the data of the same frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drawn import draw, marked

from pyro_hrssm.errors import InputError
from pyro_hrssm.reports import fans


def fan(levels: int, count: int, total: int, size: int) -> Any:
    return np.sort(np.random.default_rng(0).normal(size=(levels, count, total, size)), axis=0)


def test_bands_and_data_are_at_the_places_of_their_numbers() -> None:
    values, data = fan(5, 2, 10, 3), np.random.default_rng(1).normal(size=(2, 10, 3))
    data[0, 4] = np.nan
    figure = fans.fan_chart(values, [0.05, 0.25, 0.5, 0.75, 0.95], data, [6, 6], [10, 8])
    draw(figure)
    assert len(figure.axes) == 6
    bands, lines, points = (marked(figure, gid) for gid in ("band", "line", "data"))
    assert [len(found) for found in (bands, lines, points)] == [12, 6, 6]
    for number, axes in enumerate(figure.axes):  # entry by entry, each with the sequences side by side
        entry, i = divmod(number, 2)
        stop = (10, 8)[i]
        for band, (low, high) in zip(bands[2 * number : 2 * number + 2], ((0, 4), (1, 3)), strict=True):
            assert band.axes is axes
            found = band.get_data()
            np.testing.assert_array_equal(found.edges, np.arange(stop + 1) - 0.5)
            np.testing.assert_array_equal(found.values, values[high, i, :stop, entry])
            np.testing.assert_array_equal(found.baseline, values[low, i, :stop, entry])
        np.testing.assert_array_equal(lines[number].get_data().values, values[2, i, :stop, entry])
        np.testing.assert_array_equal(points[number].get_ydata(), data[i, :, entry])
    assert [line.get_xdata()[0] for line in marked(figure, "given")] == [5.5] * 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "5 % to 95 %", "25 % to 75 %", "median", "data", "end of the given frames",
    ]  # fmt: skip


def test_levels_without_a_counterpart_are_lines() -> None:
    figure = fans.fan_chart(fan(3, 1, 4, 1), [0.1, 0.2, 0.9], np.full((1, 4, 1), np.nan), [0], [4])
    draw(figure)
    assert len(marked(figure, "band")) == len(marked(figure, "line")) == 1
    assert marked(figure, "given") == []
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["10 % to 90 %", "20 %"]


def test_of_many_frames_those_around_the_forecast_and_of_many_entries_some_are_drawn() -> None:
    figure = fans.fan_chart(fan(2, 5, 1000, 28), [0.1, 0.9], fan(1, 5, 1000, 28)[0], [990] * 5, [1000] * 5)
    draw(figure)
    assert figure.get_suptitle().splitlines()[1:] == ["frames 970 to 999 of 1000, 6 of 28 entries"]
    assert len(figure.axes) == 3 * 6
    assert figure.axes[0].get_xlim() == (969.5, 999.5)
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == [f"entry {k}" for k in (0, 5, 11, 16, 22, 27)]


@pytest.mark.parametrize(("given", "lengths"), [([0], [1]), ([1], [1]), ([0], [0])])
def test_a_single_frame_or_none(given: list[int], lengths: list[int]) -> None:
    figure = fans.fan_chart(fan(2, 1, 1, 1), [0.1, 0.9], np.zeros((1, 1, 1)), given, lengths)
    draw(figure)
    assert len(marked(figure, "band")) == lengths[0]


@pytest.mark.parametrize(
    ("quantiles", "levels", "observed", "message"),
    [
        ((2, 1, 4), [0.1, 0.9], (1, 4, 1), "quantiles must have shape"),
        ((2, 1, 4, 1), [0.1], (1, 4, 1), "levels must hold one per quantile, 2 of them, found 1"),
        ((2, 1, 4, 1), [0.1, 0.9], (1, 5, 1), "observed must have shape"),
    ],
)
def test_wrong_inputs(quantiles: Any, levels: Any, observed: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fans.fan_chart(np.zeros(quantiles), levels, np.zeros(observed), [0], [4])
