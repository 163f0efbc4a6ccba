"""Long recordings are cut into windows: which frames they hold, and that none is both trained on and held out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import load, save_npz, windows
from pyro_hrssm.data.content import Arrays
from pyro_hrssm.data.sequences import Sequences, Splits
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.data.spans import Cut, Spans, Windows
from pyro_hrssm.errors import InputError


def numbered(*lengths: int) -> Shards:
    """Recordings whose frames are their own numbers: the recording's times 100,000 and the frame's."""
    return Shards([100_000.0 * row + np.arange(n)[None, :, None] for row, n in enumerate(lengths)])


def plan(frames: Shards, mask: Any, config: DataConfig, num_train: int | None = None) -> Cut | None:
    return windows.plan(Arrays(frames, mask, num_train=num_train), config)


def frames_of(spans: Spans) -> list[tuple[int, int]]:
    each = zip(*(part.tolist() for part in spans), strict=True)
    return [(row, frame) for row, start, length in each for frame in range(start, start + length)]


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=7),
    size=st.integers(2, 60),
    overlap=st.floats(0, 0.99),
    held_out=st.floats(0.01, 0.9),
    seed=st.integers(0, 50),
)
@settings(max_examples=200)
def test_no_frame_is_both_trained_on_and_held_out(
    lengths: list[int], size: int, overlap: float, held_out: float, seed: int
) -> None:
    config = DataConfig(window_length=size, window_overlap=overlap, held_out=held_out, split_seed=seed)
    if len(lengths) == 1 and size < lengths[0] < 2 * size:
        with pytest.raises(InputError, match="half of a recording's"):
            plan(numbered(*lengths), None, config)
        return
    cut = plan(numbered(*lengths), None, config)
    if cut is None:
        assert max(lengths) <= size
        return
    train, held = frames_of(cut.train), frames_of(cut.held_out)
    assert train
    assert held
    assert not set(train) & set(held)
    assert len(held) == len(set(held))  # no held-out frame counts twice
    for spans in (cut.train, cut.held_out):
        stops = spans.starts + spans.lengths
        assert (spans.starts >= 0).all()
        assert (stops <= np.array(lengths)[spans.rows]).all()
        # A window is shorter than the others only where it is a whole recording.
        assert (spans.lengths == np.minimum(size, np.array(lengths)[spans.rows])).all()


@pytest.mark.parametrize("seed", range(40))
def test_all_but_a_few_frames_are_used(seed: int) -> None:
    cut = plan(numbered(1030), None, DataConfig(window_length=50, held_out=0.2, split_seed=seed))
    assert cut is not None
    train, held = set(frames_of(cut.train)), set(frames_of(cut.held_out))
    assert len(held) == 200
    assert len(train | held) == 1030
    steps = np.diff(cut.train.starts[cut.train.starts < min(frame for _, frame in held)])
    assert set(steps[:-1].tolist()) <= {25}  # the last one ends with the stretch


def test_recordings_shorter_than_a_window_are_read_once_each() -> None:
    """A pass over all recordings for each of them took 20 seconds for 20,000."""

    class Counted(list[tuple[int, int, int]]):
        passes = 0

        def __iter__(self) -> Iterator[tuple[int, int, int]]:
            Counted.passes += 1
            return super().__iter__()

    short = Counted((row, 0, 50) for row in range(300))
    spans = windows._windows(short, 120, 60, to_the_end=True)
    assert spans.rows.tolist() == list(range(300))
    assert (spans.lengths == 50).all()
    assert Counted.passes <= 2


def test_the_split_of_a_recording_never_changes() -> None:
    starts = []
    for seed in range(3):
        cut = plan(numbered(1000), None, DataConfig(window_length=100, split_seed=seed))
        assert cut is not None
        starts.append(cut.held_out.starts.tolist())
    assert starts == [[100], [700], [700]]


def test_of_several_recordings_some_are_held_out_whole() -> None:
    cut = plan(numbered(*[300] * 10), None, DataConfig(window_length=100, held_out=0.3))
    assert cut is not None
    assert len(set(cut.held_out.rows.tolist())) == 3
    assert not set(cut.held_out.rows.tolist()) & set(cut.train.rows.tolist())
    assert cut.said == (
        "10 recordings of up to 300 frames cut into windows of 100 frames, overlapping by 50 (--window-length, "
        "--window-overlap); 3 of them held out"
    )
    few = plan(numbered(300, 300, 30), None, DataConfig(window_length=100))
    assert few is not None
    assert set(few.held_out.rows.tolist()) == {0, 1}
    assert set(few.train.rows.tolist()) == {0, 1, 2}
    assert "a stretch of 2 of them held out" in few.said
    given = plan(numbered(300, 250), None, DataConfig(window_length=100), num_train=1)
    assert given is not None
    assert set(given.train.rows.tolist()) == {0}
    assert given.held_out.rows.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("lengths", "named", "expected"),
    [
        ([1000] * 5, "auto", None),  # cut already
        ([1001] * 5, "auto", 100),
        ([50, 40, 3000, 60, 70], "auto", 200),
        ([5000] * 5, None, None),
        ([400] * 5, 30, 30),
        ([400] * 5, 400, None),
        ([500], "auto", 50),  # a single sequence
        ([1_000_000], "auto", 200),
        ([90], "auto", None),
        ([700], 70, 70),
    ],
)
def test_what_is_cut_by_itself(lengths: list[int], named: Any, expected: int | None) -> None:
    cut = plan(numbered(*lengths), None, DataConfig(window_length=named))
    assert (None if cut is None else cut.length) == expected


def test_windows_read_what_the_recording_holds() -> None:
    recordings = numbered(30, 7)
    spans = Spans.of([(0, 3, 10), (0, 8, 10), (1, 0, 7)])
    cut = Windows(recordings, spans)
    assert cut.shape == (3, 10, 1)
    found = cut.rows(np.array([2, 0, 1, 0]))[..., 0]
    assert found[0].tolist() == [*range(100_000, 100_007), 0, 0, 0]
    assert found[1].tolist() == found[3].tolist() == list(range(3, 13))
    assert found[2].tolist() == list(range(8, 18))
    within = cut.within(None)
    assert within is not None
    assert within.sum(1).tolist() == [10, 10, 7]
    flags = np.zeros((2, 30), bool)
    flags[0, [3, 12, 17]] = flags[1, 6] = True
    assert [np.flatnonzero(row).tolist() for row in spans.gather(flags)] == [[0, 9], [4, 9], [6]]
    assert np.flatnonzero(spans.touch((2, 30))[0]).tolist() == list(range(3, 18))


def test_windows_without_an_observed_frame_are_left_out() -> None:
    values = np.arange(1000.0)[None, :, None].copy()
    values[0, 300:460] = np.nan
    config = DataConfig(window_length=50, window_overlap=0.0, held_out=0.05, split_seed=3)
    cut = plan(Shards([values]), None, config)
    assert cut is not None
    assert not {300, 350, 400} & set(cut.train.starts.tolist())
    assert 450 in cut.train.starts.tolist()
    spans = windows.apart(Arrays(Shards([values])), 50)
    assert spans is not None
    assert spans.starts.tolist() == [start for start in range(0, 1000, 50) if start not in (300, 350, 400)]


@pytest.mark.parametrize(
    ("length", "most", "frames", "expected"),
    [
        (30, 5000, 400, 30),
        (None, 20, 400, None),  # trained on windows of 20, but not long
        (None, 20, 1400, 140),
        ("auto", 1500, 1400, None),  # trained on whole sequences that are longer
        (None, 1500, 1600, 160),
    ],
)
def test_what_is_cut_to_use_a_model_on_it(length: Any, most: int, frames: int, expected: int | None) -> None:
    spans = windows.apart(Arrays(numbered(frames)), length, most)
    assert (None if spans is None else spans.lengths[0]) == expected


def test_a_recording_ends_where_its_mask_says() -> None:
    mask = np.ones((2, 1200), bool)
    mask[1, 300:] = mask[0, 5] = False
    frames = Shards([np.zeros((2, 1200, 1), np.uint8)])
    assert Arrays(frames, mask).lengths.tolist() == [1200, 300]
    cut = plan(frames, mask, DataConfig())
    assert cut is not None
    assert (cut.train.starts + cut.train.lengths)[cut.train.rows == 1].max() <= 300


@pytest.mark.parametrize(
    ("lengths", "config", "message"),
    [
        ([100], {"window_length": 60}, "window_length must be at most half of a recording's 100 frames"),
        ([100], {"window_length": 100}, "at least 2 sequences, found 1: --window-length cuts"),
        ([50], {}, "at least 2 sequences, found 1: --window-length cuts"),
        ([3000], {"split_seed": -1}, "split_seed must be at least 0"),
    ],
)
def test_recordings_that_cannot_be_split(
    tmp_path: Path, lengths: list[int], config: dict[str, Any], message: str
) -> None:
    np.save(tmp_path / "own.npy", np.random.default_rng(0).random((1, *lengths, 3)))
    with pytest.raises(InputError, match=message):
        load(DataConfig(str(tmp_path / "own.npy"), **config))


def rows(sequences: Sequences) -> list[tuple[int, int]]:
    assert sequences.spans is not None
    return list(zip(sequences.rows.tolist(), sequences.spans.starts.tolist(), strict=True))


def check_content(splits: Splits, frames: np.ndarray[Any, Any], boundaries: np.ndarray[Any, Any]) -> None:
    for part in (splits.train, splits.held_out):
        batch = part.batch(range(len(part)))
        assert batch.boundaries is not None
        own = part.scaling.invert(batch.frames.numpy())
        for values, ends, (row, start) in zip(own, batch.boundaries.numpy(), rows(part), strict=True):
            np.testing.assert_allclose(values, frames[row, start : start + 40], atol=1e-5)  # float32
            np.testing.assert_array_equal(ends, boundaries[row, start : start + 40])


def test_windows_of_an_archive_keep_names_and_boundaries(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames, boundaries = rng.random((3, 200, 2)), rng.random((3, 200)) < 0.2
    names = np.array(["a", "b", "c"])
    save_npz(tmp_path / "own.npz", frames, boundaries=boundaries, names=names)
    splits = load(DataConfig(str(tmp_path / "own.npz"), window_length=40, held_out=0.3))
    check_content(splits, frames, boundaries)
    assert splits.num_in_file == 3
    for part in (splits.train, splits.held_out, splits.train.subset([3, 1])):
        assert part.names is not None
        assert part.names.tolist() == names[part.rows].tolist()
    assert splits.description().startswith("3 recordings of up to 200 frames cut into windows of 40 frames, overlap")
    assert splits.train.generator is None


@pytest.mark.parametrize("kind", ["mask", "weights", "frame weights"])
def test_windows_have_the_masks_of_their_entries(kind: str, tmp_path: Path) -> None:
    """Of recordings of two lengths, too, and without windows in which nothing is observed."""
    rng = np.random.default_rng(0)
    frames, values = rng.random((2, 400, 3)), rng.integers(0, 3, (2, 400, 3)).astype(np.float32)
    values[0, 80:120] = 0
    values[1, 370:] = 0
    if kind == "frame weights":
        values[..., 1:] = values[..., :1]
    stored = {"mask": values > 0, "weights": values, "frame weights": values[..., 0]}[kind]
    save_npz(tmp_path / "own.npz", frames, **{kind.split()[-1]: stored})
    splits = load(DataConfig(str(tmp_path / "own.npz"), window_length=40, window_overlap=0, held_out=0.3))
    places = []
    for part in (splits.train, splits.held_out, splits.train.subset([3, 1])):
        mask = part.batch(range(len(part))).mask
        assert mask is not None
        for window, (row, start) in zip(mask.numpy(), rows(part), strict=True):
            expected = values[row, start : start + 40]
            np.testing.assert_array_equal(window, expected > 0 if kind == "mask" else expected)
            places.append((row, start))
    assert (0, 80) not in places
    assert max(start for row, start in places if row == 1) == 330
    assert ("entries missing from the others" in splits.description()) == (kind != "frame weights")


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    size=st.integers(2, 40),
    overlap=st.floats(0, 0.99),
    seed=st.integers(0, 50),
    kept=st.floats(0.2, 1),
)
@settings(max_examples=100)
def test_the_stretches_that_windows_cover_have_each_frame_once(
    lengths: list[int], size: int, overlap: float, seed: int, kept: float
) -> None:
    spans = [
        (row, start, min(size, n - start)) for row, n in enumerate(lengths) for start in range(0, n, 1 + size // 2)
    ]
    random = np.random.default_rng(seed)
    windows = Spans.of([span for span in spans if random.random() < kept] or spans[:1])
    windows = windows.where(random.permutation(len(windows.rows)))
    whole_ones, owner = windows.merged()
    assert sorted(frames_of(whole_ones)) == sorted(set(frames_of(windows)))
    # No two of them could be one.
    stops = {(row, start + length) for row, start, length in zip(*map(np.ndarray.tolist, whole_ones), strict=True)}
    assert not stops & set(zip(whole_ones.rows.tolist(), whole_ones.starts.tolist(), strict=True))
    assert (whole_ones.rows[owner] == windows.rows).all()
    assert (whole_ones.starts[owner] <= windows.starts).all()
    assert ((whole_ones.starts + whole_ones.lengths)[owner] >= windows.starts + windows.lengths).all()


@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.5])
@pytest.mark.parametrize("kind", [None, "weights", "lengths"])
def test_windows_are_put_together_again(kind: str | None, overlap: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames, boundaries = rng.random((3, 230, 2)).astype(np.float32), rng.random((3, 230)) < 0.2
    labels, names = boundaries.cumsum(1), np.array(["a", "b", "c"])
    weights, lengths = rng.integers(0, 3, frames.shape).astype(np.float32), np.array([230, 150, 220])
    further = {"weights": {"weights": weights}, "lengths": {"lengths": lengths}}.get(kind, {})
    save_npz(tmp_path / "own.npz", frames, boundaries=boundaries, labels=labels, names=names, **further)
    settings = {"window_length": 40, "window_overlap": overlap, "held_out": 0.3, "scaling": "none"}
    train = load(DataConfig(str(tmp_path / "own.npz"), **settings)).train
    found = train.stretches()
    assert train.spans is not None
    assert found.spans is not None
    assert len(found) == len(train.spans.merged()[0].rows) < len(train)
    assert found.spans.lengths.sum() == train.spans.touch((3, 230)).sum(), "no frame is there twice"
    assert found.names is not None
    assert found.names.tolist() == names[found.rows].tolist()
    batch = found.batch(range(len(found)))
    assert (batch.mask is None) == (kind is None and len(set(found.lengths)) == 1)
    for number, (row, start, length) in enumerate(zip(*(part.tolist() for part in found.spans), strict=True)):
        stop = start + length
        seen = weights[row, start:stop] > 0 if kind == "weights" else True
        own = np.where(seen, frames[row, start:stop], 0)
        np.testing.assert_array_equal(batch.frames[number, :length].numpy(), own)
        assert batch.boundaries is not None
        assert found.labels is not None
        np.testing.assert_array_equal(batch.boundaries[number, :length].numpy(), boundaries[row, start:stop])
        np.testing.assert_array_equal(
            found.labels[number], [*labels[row, start:stop], *[-1] * (found.num_frames - length)]
        )
        if kind == "weights":
            assert batch.mask is not None
            np.testing.assert_array_equal(batch.mask[number, :length].numpy(), weights[row, start:stop])
    uncut = load(DataConfig(str(tmp_path / "own.npz"), **settings | {"window_length": None})).train
    assert uncut.stretches() is uncut


def test_scaling_is_fitted_on_the_windows_to_train_on(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).random((1, 2000, 1))
    config = DataConfig(str(tmp_path / "own.npy"), held_out=0.2)
    np.save(tmp_path / "own.npy", frames)
    before = load(config)
    held_out = before.held_out.spans
    assert held_out is not None
    frames[0, held_out.touch((1, 2000))[0]] += 1000
    np.save(tmp_path / "own.npy", frames)
    assert load(config).scaling == before.scaling


def test_a_folder_of_recordings_of_several_lengths(tmp_path: Path) -> None:
    for row, (length, values) in enumerate([(1500, 1.0), (40, 2.0), (300, 3.0), (90, 4.0), (10, 5.0), (700, 6.0)]):
        np.save(tmp_path / f"{row}.npy", np.full((1, length, 2), values))
    splits = load(DataConfig(str(tmp_path), held_out=0.2))
    assert splits.cut is not None
    assert splits.cut.length == 150
    seen = set()
    for part in (splits.train, splits.held_out):
        batch = part.batch(range(len(part)))
        assert batch.mask is not None
        own = part.scaling.invert(batch.frames.numpy())
        for values, mask, row in zip(own, batch.mask.numpy(), part.rows, strict=True):
            np.testing.assert_allclose(values[mask], row + 1, rtol=1e-5)  # float32
            assert mask.sum() == min(150, [1500, 40, 300, 90, 10, 700][row])
            seen.add(int(row))
    assert seen == set(range(6))
