"""Scores of boundaries against hand counts and definitions spelled out."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_hrssm.inference.scores.boundaries import Score, covering, f1, score


def flags(*rows: str) -> np.ndarray:
    return np.array([[letter == "1" for letter in row] for row in rows])


def test_scores_equal_hand_counts() -> None:
    found, truth = flags("0100100", "1000010"), flags("0100010", "0100010")
    counted = flags("1111110", "1111110")
    result = score(found, truth, counted, 3)
    # Exact: frames 1 and 5. Within one: 1-1, 4-5, 0-1 and 5-5. Covering of the first sequence: segments of 2, 4 and 1
    # frames, covered to 1, 3/4 and 1/2; of the second: 1/2, 4/5 and 1.
    covered = ((2 + 3 + 1 / 2) / 7 + (1 + 16 / 5 + 1) / 7) / 2
    assert result == Score(2 / 4, 2 / 4, 2 / 4, 1.0, pytest.approx(covered), 1.0)
    assert set(result.to_dict()) == {"precision", "recall", "f1", "f1_tolerance_1", "covering", "f1_margin"}


def test_positions_not_counted_do_not_count() -> None:
    found, truth = flags("11111"), flags("00101")
    # The frames are 2, 3 and 4; of the true segments, {2} is covered wholly, and {3, 4} by half.
    assert score(found, truth, flags("00110")) == Score(1 / 2, 1.0, 2 / 3, 2 / 3, pytest.approx(2 / 3))
    assert score(found, truth, flags("00000")) == Score(0.0, 0.0, 0.0, 0.0, 0.0)
    # Nor does one in the midst: the frames are all of one found segment, as they are of one true segment.
    assert score(flags("00100"), flags("00000"), flags("11010")).covering == 1.0
    assert "f1_margin" not in score(found, truth, flags("00000")).to_dict()


def test_a_match_needs_one_frame_within_the_margin_in_the_same_sequence() -> None:
    found, truth = flags("1000000100", "0000000010"), flags("0000100000", "1000000000")
    counted = flags("1111111110", "1111111110")
    assert [f1(found, truth, counted, margin) for margin in (0, 2, 3, 4, 7)] == [0, 0, 2 / 5, 2 / 5, 2 / 5]
    assert f1(found, truth, counted, 10**9) == 4 / 5
    assert f1(flags("0001", "0000"), flags("0000", "1000"), flags("1111", "1111"), 10**9) == 0


row = st.lists(st.booleans(), min_size=6, max_size=6)


@given(st.lists(st.tuples(row, row), min_size=1, max_size=2), st.integers(0, 3))
def test_tolerant_matches_are_the_most_possible(rows: list[tuple[list[bool], list[bool]]], margin: int) -> None:
    best = both = 0
    for found, truth in rows:
        a, b = np.flatnonzero(found), np.flatnonzero(truth)
        few, many = sorted((a, b), key=len)
        best += max(
            sum(abs(int(x) - int(y)) <= margin for x, y in zip(few, chosen, strict=True))
            for chosen in itertools.permutations(many, len(few))
        )
        both += len(a) + len(b)
    found, truth = (np.array(part) for part in zip(*rows, strict=True))
    result = score(found, truth, np.ones((len(rows), 6), bool), margin)
    assert result.f1_margin == 2 * best / max(1, both)
    if margin == 1:
        assert result.f1_tolerance_1 == result.f1_margin
    if margin == 0:
        assert result.f1 == result.f1_margin


def segments(boundaries: list[bool], length: int) -> Iterator[set[int]]:
    start = 0
    for t in range(length):
        if t == length - 1 or boundaries[t]:
            yield set(range(start, t + 1))
            start = t + 1


@given(st.lists(st.tuples(row, row, st.integers(1, 6)), min_size=1, max_size=3))
def test_covering_is_its_definition(rows: list[tuple[list[bool], list[bool], int]]) -> None:
    """Arbelaez et al. 2010, over sets of frames; a sequence of one frame has no position and is left out."""
    shares = []
    for found, truth, length in rows:
        total = 0.0
        for true in segments(truth, length):
            total += len(true) * max(len(true & ours) / len(true | ours) for ours in segments(found, length))
        if length > 1:
            shares.append(total / length)
    found, truth = (np.array([row[part] for row in rows]) for part in (0, 1))
    counted = np.arange(6) < np.array([row[2] for row in rows])[:, None] - 1
    assert covering(found, truth, counted) == pytest.approx(np.mean(shares) if shares else 0.0)
