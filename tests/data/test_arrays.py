from __future__ import annotations

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
from pyro_hrssm.data.arrays import load, read, save_npz, whole
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
        ((5, 4), (1,)),
        ((5, 4, 3), (3,)),
        ((5, 4, 8, 6), (8, 6, 1)),
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
    np.testing.assert_array_equal(content, frames.reshape(5, 4, *frame_shape))


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
    np.testing.assert_array_equal(whole(tmp_path / "my.npz", Scaling()).labels, labels)
    save_npz(tmp_path / "bare.npz", FRAMES)
    assert load(tmp_path / "bare.npz", DataConfig()).train.labels is None


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
    "partly NaN": (np.where(FRAMES == 20, np.nan, FRAMES), "1 NaN of 3 entries in frame 2 of sequence 1"),
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
    assert "a folder must hold .npy files" in refused(path)
    np.save(path / "a.npy", FRAMES)
    np.save(path / "b.npy", FRAMES[:, :3])
    assert "found float32 [4, 3] in a.npy and float32 [3, 3] in b.npy" in refused(path)
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
