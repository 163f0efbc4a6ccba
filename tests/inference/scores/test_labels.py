"""Scores of types against hand counts, against the packages that have them, and against definitions spelled out."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.scores.labels import edit_score, label_score, overlap_f1, renamed


def test_scores_equal_hand_counts() -> None:
    truth = np.array([[0, 0, 0, 1, 1, 1, 2, 2]])
    found = np.array([[5, 5, 5, 5, 3, 3, 3, 3]])
    result = label_score(found, truth, np.ones((1, 8), bool))
    # 5 is 0 (3 frames right), and 3 is 1 or 2 (2 frames right each way).
    assert result.accuracy == 5 / 8
    # The pairs of frames that share a type: 12 of ours, 7 true, 5 of both (3 of type 0, 1 each of types 1 and 2);
    # expected by chance: 12 · 7 / 28 = 3.
    assert result.ari == pytest.approx((5 - 3) / ((12 + 7) / 2 - 3))
    ours = math.log(2)
    true = -2 * 3 / 8 * math.log(3 / 8) - 1 / 4 * math.log(1 / 4)
    # Shared information: H(truth) - H(truth | ours), where each of our types holds 3 + 1 or 2 + 2 frames.
    within = 0.5 * (-3 / 4 * math.log(3 / 4) - 1 / 4 * math.log(1 / 4)) + 0.5 * math.log(2)
    assert result.nmi == pytest.approx(2 * (true - within) / (ours + true))
    # Runs: two of ours against three, one of which must be put in.
    assert result.edit == pytest.approx(1 - 1 / 3)
    # The run of 0 overlaps by 3/4. The other, under the name 1, overlaps by 2/5; under the name 2, by 2/4.
    assert result.f1_overlap_10 == result.f1_overlap_25 == 4 / 5
    assert result.f1_overlap_50 in (2 / 5, 4 / 5)


def test_a_perfect_segmentation_under_other_names_has_every_score() -> None:
    truth = np.array([[0, 0, 1, 1, 0], [2, 2, 1, 1, 1]])
    result = label_score(np.array([7, 0, 4])[truth], truth, np.ones((2, 5), bool))
    assert set(result.to_dict().values()) == {1.0}


def test_unknown_frames_and_padding_do_not_count() -> None:
    truth = np.array([[0, 0, -1, 1, 1, 1]])
    found = np.array([[1, 1, 0, 0, 0, 1]])
    counted = np.array([[1, 1, 1, 1, 1, 0]], bool)
    assert set(label_score(found, truth, counted).to_dict().values()) == {1.0}
    # A frame without a type is wrong.
    found[0, 0] = -1
    assert label_score(found, truth, counted).accuracy == 3 / 4
    with pytest.raises(InputError, match="labels must be known"):
        label_score(found, truth, np.zeros((1, 6), bool))


def test_nothing_found_is_wrong_everywhere() -> None:
    truth = np.array([[0, 0, 1]])
    result = label_score(np.full((1, 3), -1), truth, np.ones((1, 3), bool))
    assert (result.accuracy, result.ari, result.edit, result.f1_overlap_10) == (0, 0, 0, 0)


labels = st.lists(st.integers(0, 3), min_size=8, max_size=8)


@given(labels, labels, st.integers(1, 8))
def test_types_of_all_frames_are_compared_as_the_packages_do(found: list[int], truth: list[int], length: int) -> None:
    """The second sequence is shorter; accuracy is the best over all one-to-one namings, spelled out."""
    ours, true = np.array(found).reshape(2, 4), np.array(truth).reshape(2, 4)
    counted = np.arange(4) < np.array([[4], [min(4, length)]])
    result = label_score(ours, true, counted)
    assert result.nmi == pytest.approx(normalized_mutual_info_score(true[counted], ours[counted]))
    assert result.ari == pytest.approx(adjusted_rand_score(true[counted], ours[counted]))
    right = max((np.array(names)[ours] == true)[counted].mean() for names in itertools.permutations(range(4)))
    assert result.accuracy == pytest.approx(right)


def test_more_types_than_true_ones_keep_names_of_their_own() -> None:
    truth, found = np.array([[0, 0, 0, 0, 0]]), np.array([[0, 1, 1, 2, -1]])
    named = renamed(found, truth, np.ones((1, 5), bool))
    assert named[0, 1:3].tolist() == [0, 0]
    assert len(set(named[0].tolist())) == 4


def levenshtein(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return len(a) + len(b)
    replaced = levenshtein(a[1:], b[1:]) + (a[0] != b[0])
    return min(replaced, levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1)


def runs(values: list[int]) -> list[tuple[int, set[int]]]:
    """The type and the frames of every run."""
    found: list[tuple[int, set[int]]] = []
    for t, value in enumerate(values):
        if found and found[-1][0] == value:
            found[-1][1].add(t)
        else:
            found.append((value, {t}))
    return found


short = st.lists(st.integers(0, 2), min_size=6, max_size=6)


@given(short, short)
def test_edit_is_the_distance_of_the_runs(found: list[int], truth: list[int]) -> None:
    ours, true = ([kind for kind, _ in runs(values)] for values in (found, truth))
    expected = 1 - levenshtein(ours, true) / max(len(ours), len(true))
    assert edit_score(np.array(found), np.array(truth)) == pytest.approx(expected)


@given(st.lists(st.tuples(short, short), min_size=1, max_size=3), st.sampled_from((0.1, 0.25, 0.5)))
def test_overlap_f1_counts_segments_as_ms_tcn_does(rows: list[tuple[list[int], list[int]]], overlap: float) -> None:
    """True and false positives and false negatives, counted one by one over sets of frames."""
    true_positives = false_positives = false_negatives = 0
    for found, truth in rows:
        true, taken = runs(truth), set()
        for kind, frames in runs(found):
            shares = [len(frames & other) / len(frames | other) * (kind == name) for name, other in true]
            best = shares.index(max(shares))
            if shares[best] >= overlap and best not in taken:
                true_positives += 1
                taken.add(best)
            else:
                false_positives += 1
        false_negatives += len(true) - len(taken)
    expected = 2 * true_positives / (2 * true_positives + false_positives + false_negatives)
    arrays = [(np.array(found), np.array(truth)) for found, truth in rows]
    assert overlap_f1(arrays, overlap) == pytest.approx(expected)


def test_overlap_f1_equals_a_hand_count() -> None:
    """A true segment that two found ones overlap is found once; the longer overlap decides which one it is."""
    truth = np.array([0] * 10 + [1] * 10)
    found = np.array([0] * 6 + [2] * 2 + [0] * 2 + [1] * 10)
    # Ours: 0 (6/10), 2 (no such type), 0 (2/10, but taken), 1 (whole). Two hits among 4 of ours and 2 true ones.
    assert overlap_f1([(found, truth)], 0.5) == overlap_f1([(found, truth)], 0.1) == 4 / 6
