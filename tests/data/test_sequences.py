from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_hrssm.data.sequences import Scaling, Sequences, flags, one_line
from pyro_hrssm.errors import InputError

finite = st.floats(-1e6, 1e6)
positive = st.floats(1e-3, 1e6)


@st.composite
def scalings(draw: st.DrawFn, size: int = 3) -> Scaling:
    if draw(st.booleans()):
        return Scaling(draw(finite), draw(positive))
    numbers = st.lists(finite, min_size=size, max_size=size).map(tuple)
    return Scaling(draw(numbers), draw(st.lists(positive, min_size=size, max_size=size).map(tuple)))


@given(scaling=scalings(), values=st.lists(finite, min_size=6, max_size=6))
@settings(max_examples=50)
def test_invert_undoes_apply(scaling: Scaling, values: list[float]) -> None:
    array = np.array(values).reshape(2, 3)
    scaled = scaling.apply(array)
    assert scaled.dtype == np.float32
    # Half a unit in a float32's last place, of the scaled value.
    tolerance = 2.0**-23 * np.abs(array - scaling.shift) + 1e-9
    assert (np.abs(scaling.invert(scaled) - array) <= tolerance).all()


@given(scaling=scalings())
@settings(max_examples=50)
def test_scaling_survives_json(scaling: Scaling) -> None:
    assert Scaling.from_dict(json.loads(json.dumps(scaling.to_dict()))) == scaling


def test_scaling_keeps_the_digits_of_large_numbers() -> None:
    array = 1e9 + np.array([[0.0], [0.25], [1.0]])
    np.testing.assert_array_equal(Scaling((1e9,), (0.5,)).apply(array), [[0.0], [0.5], [2.0]])


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u2", ">u2", "f2", "i4", "u8", ">f4", "f8"])
def test_scaling_takes_every_type_of_number(dtype: str) -> None:
    array = np.array([[0, 1], [1, 0]], dtype)
    np.testing.assert_array_equal(Scaling(1.0, (1.0, 2.0)).apply(array), [[-1, 0], [0, -0.5]])


@pytest.mark.parametrize(
    "values",
    [
        None,
        {},
        {"shift": 0.0},
        {"shift": 0.0, "scale": 1.0, "more": 1},
        {"shift": 0.0, "scale": 0.0},
        {"shift": 0.0, "scale": [1.0, -1.0]},
        {"shift": 0.0, "scale": []},
        {"shift": float("nan"), "scale": 1.0},
        {"shift": [0.0, float("inf")], "scale": 1.0},
        {"shift": [0.0, 0.0], "scale": [1.0, 1.0, 1.0]},
        {"shift": "0", "scale": 1.0},
        {"shift": 10**400, "scale": 1.0},
        {"shift": True, "scale": 1.0},
        {"shift": [[0.0]], "scale": 1.0},
        {"shift": 0.0, "scale": {"a\nb": 1}},
    ],
)
def test_malformed_scaling(values: Any) -> None:
    with pytest.raises(InputError) as raised:
        Scaling.from_dict(values)
    assert "\n" not in str(raised.value)


def test_scaling_of_other_frames() -> None:
    with pytest.raises(InputError, match="last axis is 2"):
        Sequences(np.zeros((2, 3, 4)), scaling=Scaling((0.0, 0.0), 1.0))


def test_batch_without_gaps() -> None:
    frames = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    boundaries = np.eye(4, 3, dtype=int)
    sequences = Sequences(frames, boundaries=boundaries, scaling=Scaling(0.0, 2.0))
    batch = sequences.batch([2, 0])
    assert (len(sequences), sequences.num_frames, sequences.frame_shape) == (4, 3, (2,))
    assert sequences.has_boundaries
    assert batch.frames.dtype == torch.float32
    assert batch.frames.tolist() == (frames[[2, 0]] / 2).tolist()
    assert batch.mask is None
    assert batch.boundaries is not None
    assert batch.boundaries.dtype == torch.bool
    assert batch.boundaries.tolist() == boundaries[[2, 0]].astype(bool).tolist()


@given(
    holes=st.lists(st.booleans(), min_size=12, max_size=12),
    masked=st.none() | st.lists(st.booleans(), min_size=12, max_size=12),
)
@settings(max_examples=50)
def test_missing_frames_are_masked_and_zero(holes: list[bool], masked: list[bool] | None) -> None:
    frames = np.arange(1.0, 49.0).reshape(3, 4, 2, 1, 2)
    hole = np.array(holes).reshape(3, 4)
    mask = np.ones((3, 4), bool) if masked is None else np.array(masked).reshape(3, 4)
    observed = mask & ~hole
    frames[hole] = np.nan
    before = frames.copy()
    batch = Sequences(frames, None if masked is None else mask, scaling=Scaling((5.0, 6.0), 7.0)).batch([0, 1, 2])
    got = np.ones((3, 4), bool) if batch.mask is None else batch.mask.numpy()
    np.testing.assert_array_equal(got, observed)
    expected = np.where(observed[..., None, None, None], (np.nan_to_num(frames) - [5, 6]) / 7, 0)
    np.testing.assert_allclose(batch.frames, expected, rtol=1e-6)  # float32
    np.testing.assert_array_equal(frames, before)  # the data are never written


def test_masked_frames_may_hold_anything() -> None:
    frames = np.array([[[1.0], [np.inf], [1e300], [np.nan]]])
    batch = Sequences(frames, np.array([[1, 0, 0, 0]])).batch([0])
    assert batch.frames.tolist() == [[[1], [0], [0], [0]]]


@pytest.mark.parametrize("gaps", [None, np.array([1])])
def test_a_frame_that_lacks_entries(gaps: np.ndarray[Any, Any] | None) -> None:
    frames = np.array([[[1.0, np.nan, np.inf], [8, 6, 4], [np.nan, np.nan, np.nan]]])
    weights = np.array([[[1, 1, 0], [1, 1, 1], [1, 1, 1]]], bool)
    batch = Sequences(frames, scaling=Scaling(2.0, 2.0), weights=weights, gaps=gaps).batch([0])
    assert batch.mask is not None
    assert batch.mask.dtype == torch.bool
    assert batch.mask.tolist() == [[[1, 0, 0], [1, 1, 1], [0, 0, 0]]]
    assert batch.frames.tolist() == [[[-0.5, 0, 0], [3, 2, 1], [0, 0, 0]]]


def test_batches_have_one_form_of_mask_where_gaps_are_known() -> None:
    """A compiled step, and one that is recorded for a GPU, has the shapes of its first batch."""
    frames = np.ones((3, 2, 2))
    frames[1, 0, 1] = np.nan
    shapes = [Sequences(frames, gaps=np.array([0, 1, 0])).batch([row]).mask.shape for row in range(3)]  # type: ignore[union-attr]
    assert shapes == [(1, 2, 2)] * 3
    assert [Sequences(frames).batch([row]).mask is None for row in range(3)] == [True, False, True]


@given(data=st.data())
@settings(max_examples=50)
def test_the_mask_of_entries_joins_all_that_is_missing(data: st.DataObject) -> None:
    shape = (2, 3, 2)
    random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    frames = random.standard_normal(shape)
    holes, mask = random.random(shape) < 0.3, random.random(shape[:2]) < 0.7
    frames[holes] = np.nan
    kind = data.draw(st.sampled_from(["?", "i8", "f8"]))
    weights = random.integers(0, 3, data.draw(st.sampled_from([shape, shape[:2]]))).astype(kind)
    batch = Sequences(frames, mask, weights=weights).batch([1, 0])
    assert batch.mask is not None
    assert batch.mask.dtype == (torch.bool if kind == "?" else torch.float32)
    expected = np.broadcast_to(weights if weights.ndim == 3 else weights[..., None], shape) * mask[..., None] * ~holes
    np.testing.assert_array_equal(batch.mask.numpy(), expected[[1, 0]])
    np.testing.assert_allclose(batch.frames, np.where(expected, np.nan_to_num(frames), 0)[[1, 0]], rtol=1e-6)


def test_subsets_keep_weights() -> None:
    weights = np.arange(20).reshape(10, 2)
    sequences = Sequences(np.ones((10, 2, 1)), weights=weights)
    part = sequences.subset([9, 7, 5]).subset([2, 0])
    assert part.batch([0, 1]).mask.tolist() == [[[10], [11]], [[18], [19]]]  # type: ignore[union-attr]
    assert "entries weighted" in part.description()
    assert len({sequences.digest(), part.digest(), Sequences(np.ones((10, 2, 1))).digest()}) == 3
    assert Sequences(np.ones((10, 2, 1)), weights=weights + 1).digest() != sequences.digest()


def test_memory_mapped_frames(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", np.arange(60, dtype=">i4").reshape(5, 4, 3))
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    batch = Sequences(mapped).batch(torch.tensor([4, 1]))
    assert batch.frames.tolist() == np.asarray(mapped)[[4, 1]].tolist()
    batch.frames.add_(1)  # a copy: writable, and the file stays
    assert mapped[4, 0, 0] == 48


def test_subsets_nest() -> None:
    frames = np.arange(20.0).reshape(10, 2, 1)
    labels = np.arange(20).reshape(10, 2)
    names = np.array(list("abcdefghij"))
    every = Sequences(frames, np.ones((10, 2)), np.zeros((10, 2)), extent=(0.0, 19.0), labels=labels, names=names)
    subset = every.subset([9, 7, 5, 3]).subset(np.array([2, 0]))
    assert subset.batch([0, 1]).frames[:, 0, 0].tolist() == [10, 18]
    assert subset.labels is not None
    assert subset.labels.tolist() == [[10, 11], [18, 19]]
    assert subset.names is not None
    assert (subset.names.tolist(), subset.rows.tolist(), subset.extent) == (["f", "j"], [5, 9], (0.0, 19.0))
    assert len(subset.subset([])) == 0


@pytest.mark.parametrize("indices", [[2], [-1], [[0]], [0.5], [True], 0])
def test_wrong_indices(indices: Any) -> None:
    sequences = Sequences(np.zeros((3, 2, 1))).subset([0, 1])
    with pytest.raises(IndexError):
        sequences.batch(indices)
    with pytest.raises(IndexError):
        sequences.subset(indices)


def test_digest_knows_content_not_storage(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 3, 2), np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    digest = Sequences(frames).digest()
    assert len(digest) == 64
    assert Sequences(np.load(tmp_path / "frames.npy", mmap_mode="r")).digest() == digest
    assert Sequences([frames[:2], frames[2:]]).digest() == digest
    assert Sequences(np.asfortranarray(frames)).digest() == digest
    assert Sequences(frames[::-1]).subset([5, 4, 3, 2, 1, 0]).digest() == digest
    assert Sequences(frames, labels=np.zeros((6, 3))).digest() == digest
    changed = frames.copy()
    changed[5, 2, 1] += 1
    flag = np.ones((6, 3), bool)
    others = [
        Sequences(changed),
        Sequences(frames[:5]),
        Sequences(frames[::-1]),
        Sequences(frames.reshape(6, 2, 3)),
        Sequences(frames.astype(np.int16)),
        Sequences(frames, mask=flag),
        Sequences(frames, boundaries=flag),
    ]
    assert len({digest, *(other.digest() for other in others)}) == 8


def test_known_labels_say_where_segments_end() -> None:
    """Where no boundaries are given: between frames of different labels, as long as the sequence lasts."""
    labels = np.array([[3, 3, 0, 0, 1], [2, 1, 1, -1, -1]])
    mask = np.array([[1, 0, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    sequences = Sequences(np.zeros((2, 5, 1)), mask, labels=labels)
    assert sequences.has_boundaries
    found = sequences.subset([1, 0]).batch([0, 1]).boundaries
    assert found is not None
    np.testing.assert_array_equal(sequences.subset([1, 0]).boundaries, found.numpy())
    assert found.int().tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 1, 0]]
    assert sequences.description().endswith("true boundaries known, true types known")
    given = np.zeros((2, 5), bool)
    kept = Sequences(np.zeros((2, 5, 1)), mask, given, labels=labels).batch([0, 1]).boundaries
    assert kept is not None
    assert not kept.any(), "boundaries that are given are not replaced"
    unknown = Sequences(np.zeros((2, 5, 1)), np.ones((2, 5)), labels=labels)
    assert not unknown.has_boundaries
    assert (unknown.boundaries, unknown.batch([0]).boundaries) == (None, None)
    assert unknown.description().endswith(
        "true boundaries known of 1 of 2 sequences, true types known of 8 of 10 frames"
    )


def test_boundaries_are_known_sequence_by_sequence() -> None:
    """One frame of an unknown type says nothing about other sequences."""
    labels = np.array([[3, 3, 0, 0, 1], [2, 1, 1, -1, 4], [-1] * 5])
    sequences = Sequences(np.zeros((3, 5, 1)), labels=labels)
    assert sequences.bounded.tolist() == [True, False, False]
    known = sequences.subset([0])
    assert known.has_boundaries
    assert known.boundaries is not None
    assert known.boundaries.tolist() == known.batch([0]).boundaries.tolist() == [[0, 1, 0, 1, 0]]  # type: ignore[union-attr]
    assert known.description().endswith("as they are, true boundaries known, true types known")
    assert sequences.subset([2, 1]).description().endswith("as they are, true types known of 4 of 10 frames")
    assert sequences.subset([2]).description().endswith("as they are")
    assert not sequences.subset([]).has_boundaries


def test_a_subset_shares_the_arrays_of_its_set() -> None:
    """A copy for each subset took seconds and the memory of all rows."""
    flags = np.ones((50, 20), bool)
    flags[:, -1] = False
    every = Sequences(np.zeros((50, 20, 1)), flags, flags, labels=np.zeros((50, 20), np.int64), weights=flags)
    part = every.subset([3, 4]).subset([1])
    for name in ("frames", "mask", "boundaries", "labels", "weights"):
        assert getattr(part.arrays, name) is getattr(every.arrays, name), name
    assert np.shares_memory(every.arrays.mask, flags)
    assert part._truth is every._truth


def test_labels_change_no_digest() -> None:
    labels = np.array([[3, 3, 0, 0, 1], [2, 1, 1, -1, -1]])
    mask = np.array([[1, 0, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    assert Sequences(np.zeros((2, 5, 1)), mask, labels=labels).digest() == Sequences(np.zeros((2, 5, 1)), mask).digest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": np.zeros((2, 3))}, r"\[N, T, X…\], found \[2, 3\]"),
        ({"frames": [np.zeros((num, 8, 8, 1)) for num in (5, 7)]}, r"which axes are N and T, found \[12, 8, 8, 1\]"),
        ({"frames": np.zeros((2, 3, 1)), "mask": np.zeros((2, 4))}, r"mask must have shape \[2, 3\]"),
        (
            {"frames": np.zeros((2, 3, 1)), "weights": np.zeros((3, 2))},
            r"weights must have shape \[2, 3\] or \[2, 3, 1\]",
        ),
        ({"frames": np.zeros((2, 3, 1)), "boundaries": np.full((2, 3), 2)}, "boundaries must hold 0 and 1"),
    ],
)
def test_wrong_arrays(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sequences(**arguments)


@pytest.mark.parametrize("values", [np.array([[0.5]]), np.array([[np.nan]]), np.array([["1"]]), np.array([[-1]])])
def test_flags_other_than_0_and_1(values: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InputError, match="must hold 0 and 1"):
        flags("mask", values, (1, 1))


def test_one_line() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert len(one_line("x" * 999)) == 200


def test_sequences_know_their_rows_and_where_they_end() -> None:
    mask = np.arange(5) < np.array([[5], [4], [2], [0]])
    mask[0, 2] = False
    sequences = Sequences(np.zeros((4, 5, 2)), mask)
    assert sequences.lengths.tolist() == [5, 4, 2, 0]
    part = sequences.subset([3, 1]).subset([1])
    assert (part.rows.tolist(), part.lengths.tolist(), part.names) == ([1], [4], None)
    assert Sequences(np.zeros((4, 5, 2))).lengths.tolist() == [5] * 4
