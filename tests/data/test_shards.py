from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_hrssm.data import shards as module
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.errors import InputError


class Recorder(np.ndarray[Any, Any]):
    """An array that notes which of its rows are read."""

    rows_read: list[int]

    def __getitem__(self, item: Any) -> Any:
        self.rows_read.extend(np.asarray(item).tolist())
        return np.asarray(self)[item]


def recorder(array: np.ndarray[Any, Any]) -> Recorder:
    recording = array.view(Recorder)
    recording.rows_read = []
    return recording


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5), data=st.data())
@settings(max_examples=50)
def test_rows_equal_those_of_the_joined_array(sizes: list[int], data: st.DataObject) -> None:
    joined = np.arange(sum(sizes) * 6, dtype=np.int16).reshape(-1, 3, 2)
    shards = Shards(np.split(joined, np.cumsum(sizes)[:-1]))
    assert shards.shape == joined.shape
    assert len(shards) == len(joined)
    rows = st.integers(0, max(0, len(joined) - 1))
    indices = np.array(data.draw(st.lists(rows, max_size=8 if len(joined) else 0)), dtype=np.int64)
    np.testing.assert_array_equal(shards.rows(indices), joined[indices])


def test_only_the_rows_asked_for_are_read() -> None:
    parts = [recorder(np.zeros((10, 2, 1))) for _ in range(3)]
    Shards(parts).rows(np.array([3, 25, 21, 3]))
    assert [sorted(part.rows_read) for part in parts] == [[3, 3], [], [1, 5]]


def test_chunks_cover_the_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 5 * 8)  # two rows of two 8-byte numbers
    array = np.arange(14.0).reshape(7, 2)
    indices = np.array([6, 0, 3, 3, 1])
    chunks = list(Shards([array[:4], array[4:]]).chunks(indices))
    assert [(part.start, part.stop) for part, _ in chunks] == [(0, 2), (2, 4), (4, 5)]
    np.testing.assert_array_equal(np.concatenate([chunk for _, chunk in chunks]), array[indices])


def test_a_row_larger_than_a_chunk_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    assert len(list(Shards([np.zeros((3, 4))]).chunks(np.arange(3)))) == 3


@pytest.mark.parametrize(
    "arrays",
    [[], [np.zeros((2, 3)), np.zeros((2, 4))], [np.zeros((2, 3)), np.zeros((2, 3), np.float32)], [np.zeros(())]],
)
def test_arrays_that_do_not_join(arrays: list[np.ndarray[Any, Any]]) -> None:
    with pytest.raises(InputError):
        Shards(arrays)
