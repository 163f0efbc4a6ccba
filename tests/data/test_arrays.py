from __future__ import annotations

import dataclasses
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import shards as shards_module
from pyro_hrssm.data.arrays import Recordings, load, read, save_npz
from pyro_hrssm.data.sequences import Scaling
from pyro_hrssm.errors import InputError

FRAMES = np.arange(5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)
EVERY = np.arange(5)


def npz(**content: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


class Explosive:
    """An object that a test notices if it is ever unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(Path(__file__).parent / "unpickled"),)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        load(path, DataConfig())
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize(
    ("shape", "frame_shape"),
    [
        ((5, 4, 1), (1,)),
        ((5, 4, 3), (3,)),
        ((5, 6, 8, 6), (8, 6, 1)),
        ((5, 4, 8, 6, 3), (8, 6, 3)),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "npy", "folder"])
def test_ranks(shape: tuple[int, ...], frame_shape: tuple[int, ...], kind: str, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / f"my.{kind}"
    if kind == "folder":
        path.mkdir()
        np.save(path / "b.npy", frames[2:])
        np.save(path / "a.npy", frames[:2])
        (path / "._a.npy").write_bytes(b"what a Mac leaves")
        (path / "readme.txt").write_text("ignored")
    else:
        path.write_bytes(npz(frames=frames) if kind == "npz" else npy(frames))
    splits = load(path, DataConfig())
    assert splits.name == path.name
    assert splits.train.frame_shape == frame_shape
    assert (len(splits.train), len(splits.held_out)) == (4, 1)
    content = read(path).frames.rows(EVERY)
    np.testing.assert_array_equal(content, frames.reshape(*shape[:2], *frame_shape))


@pytest.mark.parametrize("name", ["lengths", "mask", "boundaries"])
@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_arrays_beside_numbers_show_that_they_are_sequences(name: str, kind: str, tmp_path: Path) -> None:
    frames = np.arange(20.0).reshape(5, 4)
    path = written(tmp_path, kind, {"frames": frames, name: np.full(5, 4) if name == "lengths" else np.ones((5, 4))})
    np.testing.assert_array_equal(read(path).frames.rows(EVERY), frames[..., None])


def written(folder: Path, kind: str, content: dict[str, Any]) -> Path:
    """An archive, or a folder of files, with these arrays."""
    path = folder / f"my.{kind}"
    if kind == "npz":
        path.write_bytes(npz(**content))
        return path
    path.mkdir()
    for name, values in content.items():
        (path / f"{name}.npy").write_bytes(npy(values))
    return path


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_folder_counts_by_names_as_an_archive_does(kind: str, tmp_path: Path) -> None:
    mask = np.ones((5, 4), bool)
    mask[2, 1] = False
    beside = {"lengths": np.array([4, 3, 2, 1, 4]), "mask": mask, "boundaries": np.eye(5, 4)}
    arrays = read(written(tmp_path, kind, {"frames": FRAMES, "actions": np.zeros((5, 4, 2)), **beside}))
    np.testing.assert_array_equal(arrays.frames.rows(EVERY), FRAMES)
    np.testing.assert_array_equal(arrays.mask, mask & (np.arange(4) < beside["lengths"][:, None]))
    np.testing.assert_array_equal(arrays.boundaries, np.eye(5, 4, dtype=bool))
    assert arrays.unread == ("actions",)
    assert arrays.num_train is None


def test_arrays_of_other_names_may_hold_anything(tmp_path: Path) -> None:
    path = written(tmp_path, "folder", {"frames": FRAMES, "notes": np.array([Explosive()], object)})
    (path / "damaged.npy").write_bytes(b"no array")
    assert read(path).unread == ("damaged", "notes")
    assert not (Path(__file__).parent / "unpickled").exists()


def test_shards_of_a_folder_have_a_mask_too(tmp_path: Path) -> None:
    mask = np.eye(5, 4)
    mask[4] = 1
    path = written(tmp_path, "folder", {"0": FRAMES[:2], "1": FRAMES[2:], "mask": mask})
    arrays = read(path)
    np.testing.assert_array_equal(arrays.frames.rows(EVERY), FRAMES)
    np.testing.assert_array_equal(arrays.mask, mask.astype(bool))


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_split_of_ones_own_is_kept(kind: str, tmp_path: Path) -> None:
    content = {"train": FRAMES[:3], "test": FRAMES[3:], "test_lengths": np.array([4, 2])}
    path = written(tmp_path, kind, content)
    splits = load(path, DataConfig(scaling="none"))
    np.testing.assert_array_equal(splits.train.batch([0, 1, 2]).frames, FRAMES[:3])
    held_out = splits.held_out.batch([0, 1])
    expected = FRAMES[3:].copy()
    expected[1, 2:] = 0
    np.testing.assert_array_equal(held_out.frames, expected)
    np.testing.assert_array_equal(held_out.mask, [[1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(Recordings(path, splits.scaling).sequences.batch(EVERY).frames[:3], FRAMES[:3])
    shift = np.array(load(path, DataConfig()).scaling.shift)
    np.testing.assert_allclose(shift, FRAMES[:3].mean((0, 1)))  # nothing is fitted on the held-out part


def test_a_single_file_holds_the_frames_whatever_its_name(tmp_path: Path) -> None:
    assert len(read(written(tmp_path, "folder", {"train": FRAMES})).frames) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": FRAMES}, "both train and test, found train"),
        ({"train": FRAMES, "test": FRAMES, "frames": FRAMES}, "must hold frames, or both train and test"),
        ({"train": FRAMES, "test": FRAMES[..., :2]}, "train and test must agree on X… and dtype"),
        ({"train": FRAMES, "test": FRAMES.astype(int)}, "found float32 [4, 3] and int64 [4, 3]"),
        (
            {"train": FRAMES, "test": FRAMES, "test_boundaries": np.ones((4, 4))},
            "test_boundaries must have shape [5, 4]",
        ),
        ({"train": FRAMES, "test": FRAMES, "train_mask": np.ones((4, 4))}, "train_mask must have shape [5, 4]"),
        ({"train": FRAMES, "test": FRAMES, "test_lengths": np.zeros(5, int)}, "test_lengths must lie between"),
        ({"train": FRAMES, "test": np.zeros((0, 4, 3))}, "test must not be empty"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_splits_that_mean_nothing(content: dict[str, Any], message: str, kind: str, tmp_path: Path) -> None:
    if kind == "folder" and list(content) == ["train"]:
        content = content | {"valid": FRAMES}
        message = "valid.npy, which may be sequences too"
    assert message in refused(written(tmp_path, kind, content))


@pytest.mark.parametrize("name", ["frames", "train"])
def test_a_file_that_may_be_a_shard_is_not_left_out(name: str, tmp_path: Path) -> None:
    content = {name: FRAMES, "frames_1": FRAMES} | ({} if name == "frames" else {"test": FRAMES})
    assert "found frames_1.npy, which may be sequences too" in refused(written(tmp_path, "folder", content))


def test_files_of_several_lengths_are_recordings_once_each_says_so(tmp_path: Path) -> None:
    """[5, 8, 8, 1] and [7, 8, 8, 1] are no 12 sequences of 8 frames."""
    path = written(tmp_path, "folder", {"a": np.zeros((5, 8, 8, 1)), "b": np.zeros((7, 8, 8, 1))})
    assert "a.npy: frames may mean two things, found shape [5, 8, 8, 1]: store" in refused(path)
    for name, num in (("a", 5), ("b", 7)):
        np.save(path / f"{name}.npy", np.full((1, num, 8, 8, 1), float(num)))
    found = Recordings(path, Scaling()).sequences
    assert (len(found), found.num_frames, found.lengths.tolist()) == (2, 7, [5, 7])
    frames, mask, _ = found.batch([0, 1])
    assert mask is not None
    assert mask.sum(1).tolist() == [5, 7]
    assert not frames[~mask].any()
    assert frames[mask].flatten(1).mean(1).tolist() == [5.0] * 5 + [7.0] * 7


def test_boundaries_that_mark_starts(tmp_path: Path) -> None:
    starts = np.array([[1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
    path = written(tmp_path, "npz", {"frames": FRAMES, "boundaries": starts})
    expected = [[0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    np.testing.assert_array_equal(read(path, mark="starts").boundaries, expected)
    found = Recordings(path, Scaling(), mark="starts").sequences.batch(EVERY).boundaries
    np.testing.assert_array_equal(found, expected)
    splits = load(path, DataConfig(boundaries_mark="starts"))
    assert (splits.train.batch(range(4)).boundaries.sum() + splits.held_out.batch([0]).boundaries.sum()) == 6
    np.testing.assert_array_equal(read(path).boundaries, starts)


def test_links(tmp_path: Path) -> None:
    for name, content in (("my.npy", npy(FRAMES)), ("my.npz", npz(frames=FRAMES))):
        (tmp_path / name).write_bytes(content)
        (tmp_path / "link").symlink_to(tmp_path / name)
        np.testing.assert_array_equal(read(tmp_path / "link").frames.rows(EVERY), FRAMES)
        (tmp_path / "link").unlink()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/0.npy").symlink_to(tmp_path / "my.npy")
    (tmp_path / "link").symlink_to(tmp_path / "parts")
    np.testing.assert_array_equal(read(tmp_path / "link").frames.rows(EVERY), FRAMES)
    (tmp_path / "my.npy").unlink()
    assert "0.npy: must be a whole .npy file" in refused(tmp_path / "link")


def test_sequences_of_several_lengths_are_told_to_be_padded(tmp_path: Path) -> None:
    ragged = np.empty(3, object)
    ragged[:] = [np.zeros((num, 2)) for num in (3, 4, 5)]
    for kind in ("npz", "folder"):
        path = written(tmp_path, kind, {"frames": ragged})
        assert "Python objects; pad sequences of several lengths to one length T" in refused(path)
    with pytest.raises(InputError, match="found object; pad sequences"):
        save_npz(tmp_path / "new.npz", ragged)
    with pytest.raises(InputError, match=r"frames must be one array, .*; pad sequences"):
        save_npz(tmp_path / "new.npz", [[[1.0], [2.0]], [[1.0]]])
    assert not (tmp_path / "new.npz").exists()


def test_an_archive_without_frames_names_what_is_there(tmp_path: Path) -> None:
    path = written(tmp_path, "npz", {"observations": FRAMES, "actions": FRAMES})
    assert "array named frames, or train and test, found observations, actions" in refused(path)


@pytest.mark.parametrize("kind", ["npy", "folder"])
def test_files_are_memory_mapped(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"my.{kind}"
    if kind == "folder":
        path.mkdir()
        np.save(path / "0.npy", FRAMES)
    else:
        np.save(path, FRAMES)
    (array,) = read(path).frames._arrays
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable


def test_lengths_and_mask_and_boundaries(tmp_path: Path) -> None:
    mask = np.ones((5, 4), np.int8)
    mask[0, 1] = 0
    boundaries = np.eye(5, 4)
    path = tmp_path / "my.npz"
    path.write_bytes(npz(frames=FRAMES, lengths=[4, 3, 2, 1, 4], mask=mask, boundaries=boundaries, other="x"))
    arrays = read(path)
    expected = np.array([[1, 0, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
    np.testing.assert_array_equal(arrays.mask, expected)
    np.testing.assert_array_equal(arrays.boundaries, boundaries.astype(bool))
    batch = load(path, DataConfig(held_out=0.5)).train.batch([0, 1])
    assert batch.mask is not None
    assert (batch.frames[~batch.mask] == 0).all()


@pytest.mark.parametrize("dtype", ["i1", ">i8", "f4"])
def test_labels_are_read_and_follow_the_split(dtype: str, tmp_path: Path) -> None:
    labels = np.arange(20).reshape(5, 4) // 3 - 1
    save_npz(tmp_path / "my.npz", FRAMES, labels=labels.astype(dtype))
    splits = load(tmp_path / "my.npz", DataConfig(held_out=0.4))
    for part, number in ((splits.train, 3), (splits.held_out, 2)):
        assert part.labels is not None
        assert (part.labels.dtype, part.labels.shape) == (np.int64, (number, 4))
        first = splits.scaling.invert(part.batch(np.arange(number)).frames[:, 0])[:, 0]
        rows = np.rint(first / 12).astype(int)  # a sequence of FRAMES has 12 numbers
        np.testing.assert_array_equal(part.labels, labels[rows])
    np.testing.assert_array_equal(Recordings(tmp_path / "my.npz", Scaling()).sequences.labels, labels)
    save_npz(tmp_path / "bare.npz", FRAMES)
    assert load(tmp_path / "bare.npz", DataConfig()).train.labels is None
    assert splits.description().endswith("true types known")


@pytest.mark.parametrize("names", [("frames",), ("0", "1")])
def test_labels_in_a_folder_count_by_name(names: tuple[str, ...], tmp_path: Path) -> None:
    """Beside `frames` and beside shards: `labels` of the same shape as frames of one entry are no shard."""
    frames, labels = np.arange(20.0).reshape(5, 4), np.arange(20).reshape(5, 4) - 1
    for name, part in zip(names, np.array_split(frames, len(names)), strict=True):
        np.save(tmp_path / f"{name}.npy", part)
    np.save(tmp_path / "labels.npy", labels.astype(float))
    every = Recordings(tmp_path, Scaling()).sequences
    assert (len(every), every.frame_shape) == (5, (1,))
    np.testing.assert_array_equal(every.labels, labels)


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_labels_of_one_part_of_a_split_leave_the_other_unknown(kind: str, tmp_path: Path) -> None:
    labels = np.arange(8).reshape(2, 4)
    content = {"train": FRAMES[:3], "test": FRAMES[3:], "test_labels": labels}
    if kind == "npz":
        np.savez(tmp_path / "my.npz", **content)  # type: ignore[arg-type] # mypy takes an array for allow_pickle
    else:
        (tmp_path / "my.folder").mkdir()
        for name, values in content.items():
            np.save(tmp_path / "my.folder" / f"{name}.npy", values)
    splits = load(tmp_path / f"my.{kind}", DataConfig())
    assert splits.train.labels is not None
    assert (splits.train.labels == -1).all()
    np.testing.assert_array_equal(splits.held_out.labels, labels)


def test_boundaries_of_one_part_of_a_split_leave_the_other_unknown(tmp_path: Path) -> None:
    """A labelled test set beside unlabelled training data; the digest of these is that of the same without it."""
    boundaries, labels = np.eye(4, dtype=int)[:2], np.array([[0, 0, 1, 1], [0, 1, -1, 1], [2, 2, 2, 2]])
    digests = []
    for further in ({}, {"test_boundaries": boundaries}, {"test_boundaries": boundaries, "train_labels": labels}):
        np.savez(tmp_path / "my.npz", train=FRAMES[:3], test=FRAMES[3:], **further)  # type: ignore[arg-type]
        splits = load(tmp_path / "my.npz", DataConfig())
        digests.append(splits.train.digest())
        assert splits.held_out.has_boundaries == bool(further)
        assert not splits.train.has_boundaries
        assert splits.train.boundaries is None
        if further:
            np.testing.assert_array_equal(splits.held_out.boundaries, boundaries)
            assert splits.train.doubts() == []
    assert splits.train.bounded.tolist() == [True, False, True]
    assert splits.description().endswith(
        "to train on: true boundaries known of 2 of 3 sequences, true types known of 11 of 12 frames; "
        "held out: true boundaries known"
    )
    assert len(set(digests)) == 1
    np.savez(tmp_path / "my.npz", train=FRAMES[:3], test=FRAMES[3:], train_boundaries=np.ones((3, 4)))
    splits = load(tmp_path / "my.npz", DataConfig(boundaries_mark="starts"))
    assert splits.train.boundaries is not None
    assert splits.train.boundaries.all(axis=0).tolist() == [True, True, True, False]
    assert splits.held_out.boundaries is None
    assert splits.description().endswith("to train on: true boundaries known; held out: no segments known")


def written_as(kind: str, path: Path) -> DataConfig:
    """Recordings, each of which has frames that count in another way, and how they are read."""
    rng = np.random.default_rng(0)
    frames, content = rng.random((6, 90, 2)), {}
    config = DataConfig(str(path), window_length=20, held_out=0.3)
    if kind in ("holes", "entries", "short"):
        frames[1, 70:] = frames[2, 13] = frames[3, 20:40] = np.nan
    if kind == "entries":
        frames[4, 50:, 1] = np.nan
    if kind in ("flags", "weights", "frame weights"):
        given = rng.integers(0, 3, (6, 90, 2)) * 1.0
        given[2, 20:60] = 0
        content["weights"] = given[..., 0] if kind == "frame weights" else given if kind == "weights" else given > 0
    if kind in ("lengths", "short"):
        content["lengths"] = np.array([90, 70, 30, 90, 12, 60])
    if kind == "whole numbers":
        frames = rng.integers(0, 9, frames.shape).astype(np.uint8)
    if kind == "observed":
        content["mask"] = np.ones((6, 90), bool)
    if kind == "split":
        content = {"test": frames[4:], "test_boundaries": rng.random((2, 90)) < 0.2}
        np.savez(path, train=frames[:4], **content)  # type: ignore[arg-type] # mypy takes an array for allow_pickle
        return config
    if kind == "uncut":
        config = dataclasses.replace(config, window_length=None)
    labels, names = rng.integers(-1, 40, (6, 90)), np.array(list("abcdef"))
    save_npz(path, frames, labels=labels, names=names, boundaries=rng.random((6, 90)) < 0.2, **content)
    return config


@pytest.mark.parametrize(
    "kind",
    [
        *("plain", "holes", "entries", "flags", "weights", "frame weights", "lengths", "short", "observed", "split"),
        *("whole numbers", "uncut"),
    ],
)
def test_what_is_read_once_is_split_as_in_training(kind: str, tmp_path: Path) -> None:
    config = written_as(kind, tmp_path / "my.npz")
    splits = load(tmp_path / "my.npz", config)
    again = Recordings(tmp_path / "my.npz", splits.scaling).split(config)
    assert (again.scaling, again.likelihood, again.name) == (splits.scaling, splits.likelihood, splits.name)
    assert (again.cut is None) == (splits.cut is None) == (kind == "uncut")
    for one, other in ((again.train, splits.train), (again.held_out, splits.held_out)):
        assert one.digest() == other.digest()
        assert (one.has_entries, one.description()) == (other.has_entries, other.description())
        assert (one.rows.tolist(), one.lengths.tolist()) == (other.rows.tolist(), other.lengths.tolist())
        assert [str(name) for name in (one.names, one.labels)] == [str(name) for name in (other.names, other.labels)]
        for values, expected in zip(one.batch(range(len(one))), other.batch(range(len(other))), strict=True):
            np.testing.assert_array_equal(values, expected)  # type: ignore[arg-type]


def test_shards_read_like_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "CHUNK_BYTES", 100)
    frames = np.random.default_rng(0).standard_normal((20, 4, 3))
    frames[7, 2] = np.nan
    np.save(tmp_path / "whole.npy", frames)
    (tmp_path / "parts").mkdir()
    for place, part in enumerate(np.split(frames, [3, 9])):
        np.save(tmp_path / "parts" / f"{place}.npy", part)
    whole, parts = (load(tmp_path / name, DataConfig()) for name in ("whole.npy", "parts"))
    assert whole.scaling == parts.scaling
    assert whole.train.digest() == parts.train.digest()
    for one, other in zip(whole.train.batch(np.arange(18)), parts.train.batch(np.arange(18)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", ">f4", "f2", "g"])
def test_save_npz_is_read_back(dtype: str, tmp_path: Path) -> None:
    frames = (FRAMES % 2).astype(dtype)
    lengths, mask = [4, 4, 1, 2, 3], np.ones((5, 4), bool)
    save_npz(tmp_path / "my.npz", frames, lengths=lengths, mask=mask, boundaries=~mask)
    arrays = read(tmp_path / "my.npz")
    np.testing.assert_array_equal(arrays.frames.rows(EVERY), frames)
    assert arrays.frames.dtype == np.dtype(dtype)
    assert arrays.mask is not None
    assert arrays.mask.sum(1).tolist() == lengths
    assert load(tmp_path / "my.npz", DataConfig()).train.has_boundaries
    assert [file.name for file in tmp_path.iterdir()] == ["my.npz"]


def test_save_npz_refuses_what_load_would(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lengths must lie between 1 and 4, found 5 for sequence 1"):
        save_npz(tmp_path / "my.npz", FRAMES, lengths=[4, 5, 1, 1, 1])
    with pytest.raises(InputError, match=r"must end in \.npz, found .*my\.npy"):
        save_npz(tmp_path / "my.npy", FRAMES)
    assert list(tmp_path.iterdir()) == []


def test_save_npz_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InputError, match=r"cannot write .*my.npz \(no space left\)"):
        save_npz(tmp_path / "my.npz", FRAMES)
    assert list(tmp_path.iterdir()) == []


MALFORMED_NPZ = {
    "no frames": (npz(x=FRAMES), "array named frames"),
    "nothing": (npz(), "array named frames"),
    "text": (b"hello\nworld", "whole .npz archive"),
    "zero bytes": (b"", "whole .npz archive"),
    "truncated": (npz(frames=FRAMES)[:200], "whole .npz archive"),
    "one array, no archive": (npy(FRAMES), "whole .npz archive"),
    "a pickle": (pickle.dumps(Explosive()), "whole .npz archive"),
    "frames pickled": (npz(frames=np.array([Explosive()], object)), "plain arrays"),
    "frames no array": (zipped("frames", b"hello"), "frames must be an array"),
    "frames damaged": (zipped("frames.npy", npy(FRAMES)[:-7]), "plain arrays"),
    "frames elsewhere": (zipped("../../frames.npy", npy(FRAMES)), "array named frames"),
    "lengths of another shape": (npz(frames=FRAMES, lengths=[1, 2]), "whole numbers of shape [5], found int64 of"),
    "lengths no integers": (npz(frames=FRAMES, lengths=np.ones(5)), "found float64 of shape [5]"),
    "lengths of text": (npz(frames=FRAMES, lengths=["a"] * 5), "lengths must be whole numbers"),
    "length 0": (npz(frames=FRAMES, lengths=[1, 0, 1, 1, 1]), "between 1 and 4, found 0 for sequence 1"),
    "length too long": (npz(frames=FRAMES, lengths=[1, 1, 1, 1, 5]), "between 1 and 4, found 5 for sequence 4"),
    "negative length": (npz(frames=FRAMES, lengths=[-1, 1, 1, 1, 1]), "found -1 for sequence 0"),
    "mask of another shape": (npz(frames=FRAMES, mask=np.ones((5, 3))), "shape [5, 4] like the frames, found [5, 3]"),
    "mask of text": (npz(frames=FRAMES, mask=np.full((5, 4), "1")), "mask must hold 0 and 1, found <U1"),
    "mask of all frames": (npz(frames=FRAMES, mask=np.zeros((5, 4))), "found none in sequence 0"),
    "boundaries of another shape": (npz(frames=FRAMES, boundaries=np.ones((4, 5))), "boundaries must have shape"),
    "boundaries of 2": (npz(frames=FRAMES, boundaries=np.full((5, 4), 2)), "must hold 0 and 1, found other int64"),
    "labels of another shape": (npz(frames=FRAMES, labels=np.ones(5)), "labels must be whole numbers of shape [5, 4]"),
    "labels of text": (
        npz(frames=FRAMES, labels=np.full((5, 4), "run")),
        "-1 where unknown, found <U3 of shape [5, 4]",
    ),
    "labels below -1": (npz(frames=FRAMES, labels=np.full((5, 4), -2)), "-1 where unknown, found -2"),
    "labels no whole numbers": (npz(frames=FRAMES, labels=np.full((5, 4), 0.5)), "-1 where unknown, found 0.5"),
    "labels NaN": (npz(frames=FRAMES, labels=np.full((5, 4), np.nan)), "-1 where unknown, found nan"),
    "labels too large": (npz(frames=FRAMES, labels=np.full((5, 4), 2**63, "u8")), "found 9223372036854775808"),
    "boundaries NaN": (npz(frames=FRAMES, boundaries=np.full((5, 4), np.nan)), "boundaries must hold 0 and 1"),
}

MALFORMED_FRAMES = {
    "a number": (np.array(1.0), "frames must have shape [N, T]"),
    "rank 1": (np.zeros(5), "found [5]"),
    "rank 6": (np.zeros((2, 2, 2, 2, 2, 2)), "found [2, 2, 2, 2, 2, 2]"),
    "no sequences": (np.zeros((0, 4, 3)), "empty, found shape [0, 4, 3]"),
    "no entries": (np.zeros((5, 4, 0)), "empty, found shape [5, 4, 0]"),
    "one frame": (np.zeros((5, 1, 3)), "at least 2 frames, found 1"),
    "one sequence": (np.zeros((1, 4, 3)), "at least 2 sequences, found 1"),
    "complex": (FRAMES.astype(complex), "found complex128"),
    "text": (FRAMES.astype(str), "found <U32"),
    "dates": (FRAMES.astype("M8[s]"), "found datetime64[s]"),
    "records": (np.zeros((5, 4, 3), [("a\nb", int)]), "booleans, integers or floats"),
    "infinity": (np.where(FRAMES == 20, np.inf, FRAMES), "an infinity in frame 2 of sequence 1"),
    "NaN and infinity": (
        np.where(FRAMES == 20, np.inf, np.where(FRAMES == 19, np.nan, FRAMES)),
        "an infinity in frame 2",
    ),
    "a missing sequence": (np.where(FRAMES < 12, np.nan, FRAMES), "found none in sequence 0"),
    "huge": (FRAMES.astype(float) * 1e306, "small enough to standardise"),
}


@pytest.mark.parametrize("case", MALFORMED_NPZ)
def test_malformed_archives(case: str, tmp_path: Path) -> None:
    content, message = MALFORMED_NPZ[case]
    path = tmp_path / "my.npz"
    path.write_bytes(content)
    assert message in refused(path)
    assert [file.name for file in tmp_path.iterdir()] == ["my.npz"]
    assert not (Path(__file__).parent / "unpickled").exists()


@pytest.mark.parametrize("kind", ["npz", "npy", "folder"])
@pytest.mark.parametrize("case", MALFORMED_FRAMES)
def test_malformed_frames(case: str, kind: str, tmp_path: Path) -> None:
    frames, message = MALFORMED_FRAMES[case]
    path = tmp_path / f"my.{kind}"
    if kind == "folder":
        path.mkdir()
        (path / "0.npy").write_bytes(npy(frames))
    else:
        path.write_bytes(npz(frames=frames) if kind == "npz" else npy(frames))
    assert message in refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        npy(FRAMES)[:-1],
        npy(FRAMES)[:50],
        npy(np.array([Explosive()], object)),
        pickle.dumps(Explosive()),
        npz(frames=FRAMES),
        npy(FRAMES).replace(b"(5, 4, 3)", b"(5, 4, x)"),
        npy(FRAMES).replace(b"(5, 4, 3), }", b"(5, 4, 9**9)"),
    ],
)
def test_malformed_npy(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "my.npy"
    path.write_bytes(content)
    assert "whole .npy file of plain numbers" in refused(path)
    assert not (Path(__file__).parent / "unpickled").exists()


def test_malformed_folders(tmp_path: Path) -> None:
    path = tmp_path / "my"
    path.mkdir()
    assert "a folder must hold .npy files, found none" in refused(path)
    (path / "train").mkdir()
    assert "a folder must hold .npy files, found train" in refused(path)
    np.save(path / "a.npy", FRAMES)
    np.save(path / "b.npy", FRAMES[..., :2])
    assert "found float32 [4, 3] in a.npy and float32 [4, 2] in b.npy" in refused(path)
    np.save(path / "b.npy", FRAMES.astype(int))
    assert "and int64 [4, 3] in b.npy" in refused(path)
    (path / "b.npy").write_bytes(npy(FRAMES)[:-4])
    assert "b.npy: must be a whole .npy file" in refused(path)
    (path / "b.npy").unlink()
    (path / "b.npy").mkdir()
    assert "b.npy: must be a whole .npy file" in refused(path)


@pytest.mark.parametrize("name", ["my.csv", "my", "my.npz.gz"])
def test_files_of_another_kind(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("1,2")
    assert ".npz file, a .npy file or a folder" in refused(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "my.npz")


SOUND = {"my.npz": npz(frames=FRAMES, lengths=[4, 4, 4, 4, 4]), "my.npy": npy(FRAMES)}


@given(name=st.sampled_from(sorted(SOUND)), data=st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_read_or_refused_in_one_line(name: str, data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(SOUND[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    message = ""
    try:
        load(path, DataConfig())
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 600
