"""A reader returns the content of any file exactly, or refuses the file with one line.

Chosen inputs are in `tests/data/test_arrays.py` and `tests/test_checkpoint.py`; the inputs here are random.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import typing
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyro_hrssm import (
    HRSSM,
    RSSM,
    DataConfig,
    HRSSMConfig,
    InputError,
    LeaveOneOut,
    StateSpaceModel,
    TrainingConfig,
    checkpoint,
    data,
    files,
)
from pyro_hrssm.cli import main
from pyro_hrssm.config import flat_name, from_dict, to_dict
from pyro_hrssm.data import Scaling
from pyro_hrssm.data.arrays import read
from pyro_hrssm.run.training import Trainer

Content = dict[str, Any]
TINY = HRSSMConfig(frame_shape=(3,), hidden=4, abstract_size=2, observation_size=2, boundary_layers=2)


class Unpickled(BaseException):
    """An error that no `except Exception` of a reader hides."""


@pytest.fixture(autouse=True)
def _no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any unpickling in these tests fails them."""

    def fail(*_: Any, **__: Any) -> None:
        raise Unpickled

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, fail)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and its bytes."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def refusal(call: Callable[[], Any]) -> str | None:
    """The line that refuses an input; None if the input is accepted. Other exceptions and warnings are raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Warning)
            call()
    except InputError as error:
        message = str(error)
        assert message.splitlines() == [message]
        assert len(message) < 1000
        return message
    return None


def refused(call: Callable[[], Any]) -> str:
    message = refusal(call)
    assert message is not None, "taken"
    return message


# Arrays

SHAPES = [(), (3,), (4, 2), (6, 5), (2, 4, 3)]
DTYPES = ["?", "u1", ">u2", "u8", "i1", "<i8", "f2", "<f4", ">f8", "g"]
KINDS = ["npz", "npy", "folder", "names"]
"""An archive, a file, a folder of shards with what lies beside them, a folder of arrays by name."""
SCALINGS: Any = ["auto", "none", "unit", "standard"]


@st.composite
def contents(draw: st.DrawFn, dtypes: list[str] = DTYPES) -> Content:
    """Valid arrays: every sequence has an observed frame; missing frames are NaN throughout or masked."""
    number, length, shape = draw(st.integers(2, 5)), draw(st.integers(2, 5)), draw(st.sampled_from(SHAPES))
    dtype, random = np.dtype(draw(st.sampled_from(dtypes))), np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random.standard_normal((number, length, *shape)) * 10 ** draw(st.integers(-2, 2))
    frames = np.asarray(values > 0 if dtype.kind == "b" else np.abs(values) if dtype.kind == "u" else values).astype(
        dtype
    )
    content: Content = {"frames": np.asfortranarray(frames) if draw(st.booleans()) else frames}
    if dtype.kind == "f" and draw(st.booleans()):
        frames[random.random((number, length)) < 0.3] = np.nan
        frames[:, 0] = 0
    if draw(st.booleans()):
        content["lengths"] = random.integers(1, length + 1, number).astype(draw(st.sampled_from(["i8", "u1", ">i2"])))
    if draw(st.booleans()):
        mask = random.random((number, length)) < 0.6
        mask[:, 0] = True
        content["mask"] = mask.astype(draw(st.sampled_from(["?", "i1", "f8"])))
    if draw(st.booleans()):
        content["boundaries"] = (random.random((number, length)) < 0.4).astype(draw(st.sampled_from(["?", "u1"])))
    if draw(st.booleans()):
        content["labels"] = random.integers(-1, 9, (number, length)).astype(draw(st.sampled_from(["i1", ">i8", "f4"])))
    return content


def packed(content: Content, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, values in content.items():
            archive.writestr(f"{name}.npy", npy(values))
    return file.getvalue()


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def write(folder: Path, kind: str, content: Content) -> Path:
    """A file or folder for each kind, which replaces the one before."""
    path = folder / f"my.{kind}"
    if kind in ("folder", "names"):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        named = dict(content)
        if kind == "folder":
            frames = named.pop("frames")
            shards = np.split(frames, [1]) if np.ndim(frames) and len(frames) > 1 else [frames]
            named |= {str(shard): part for shard, part in enumerate(shards)}
        for name, values in named.items():
            (path / f"{name}.npy").write_bytes(npy(values))
    else:
        path.write_bytes(packed(content) if kind == "npz" else npy(content["frames"]))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def observed(content: Content) -> NDArray[np.bool_]:
    """The mask that a reader should return."""
    frames = content["frames"]
    mask = ~np.isnan(frames.astype(float)).reshape(*frames.shape[:2], -1).all(-1)
    mask &= np.asarray(content.get("mask", mask)).astype(bool)
    if "lengths" in content:
        mask &= np.arange(frames.shape[1]) < content["lengths"][:, None].astype(int)
    return mask


def ambiguous(content: Content) -> bool:
    """Whether the frames may mean two things: numbers or a recording, images or points or a video."""
    shape, settled = content["frames"].shape, len(content) > 1
    if len(shape) == 2:
        return not settled
    return len(shape) == 4 and (min(shape[2:]) <= 4 or (shape[1] <= 4 and not settled))


def channelled(content: Content) -> Content:
    """The same with the last axis of frames written out."""
    frames = content["frames"]
    return content | {"frames": frames[..., None] if frames.ndim in (2, 4) else frames}


@given(
    content=contents(),
    kind=st.sampled_from(KINDS),
    scaling=st.sampled_from(SCALINGS),
    mark=st.sampled_from(["ends", "starts"]),
)
@settings(max_examples=150)
def test_sound_arrays_are_read_back_exactly(content: Content, kind: str, scaling: Any, mark: Any, folder: Path) -> None:
    content = {"frames": content["frames"]} if kind == "npy" else content
    path = write(folder, kind, content)
    if ambiguous(content):
        assert "may mean two things, found" in refused(lambda: read(path))
        content = channelled(content)
        path = write(folder, kind, content)
    frames = content["frames"]
    shape = frames.shape + ((1,) if frames.ndim in (2, 4) else ())
    whole = data.whole(str(path), Scaling(), mark=mark)
    found = read(path)
    np.testing.assert_array_equal(found.frames.rows(np.arange(len(frames))), frames.reshape(shape))
    assert found.frames.dtype == frames.dtype
    batch = whole.batch(np.arange(len(frames)))
    mask = observed(content)
    np.testing.assert_array_equal(mask if batch.mask is None else batch.mask, mask)
    np.testing.assert_array_equal(
        batch.frames,
        np.where(mask.reshape(*mask.shape, *[1] * (len(shape) - 2)), frames.reshape(shape), 0).astype("f4"),
    )
    if "boundaries" in content:
        marked = content["boundaries"].astype(bool)
        if mark == "starts":
            marked = np.concatenate([marked[:, 1:], np.zeros_like(marked[:, :1])], axis=1)
        np.testing.assert_array_equal(batch.boundaries, marked)
    if "labels" in content:
        np.testing.assert_array_equal(whole.labels, content["labels"].astype(int))
    config = DataConfig(data=str(path), scaling=scaling, boundaries_mark=mark)
    if scaling == "unit":
        check_scaled(data.load(config, likelihood="bernoulli"), scaling, "bernoulli")
    splits = data.load(config)
    assert len(splits.train) + len(splits.held_out) == len(frames)
    assert splits.description().splitlines() == [splits.description()]
    check_scaled(splits, scaling)


def check_scaled(splits: data.Splits, scaling: str, likelihood: str | None = None) -> None:
    """Scaled frames are finite, lie within their extent, and in [0, 1] where an emission asks for that, and those to
    train on also where a scaling does.
    """
    assert splits.train.extent is not None
    lowest, highest = splits.train.extent
    bernoulli = (likelihood or splits.likelihood) == "bernoulli"
    assert not bernoulli or (lowest >= 0 and highest <= 1)
    for part in (splits.train, splits.held_out):
        batch = part.batch(np.arange(len(part)))
        seen = batch.frames if batch.mask is None else batch.frames[batch.mask]
        assert torch.isfinite(batch.frames).all()
        assert lowest <= seen.min() <= seen.max() <= highest
        if scaling == "unit" and part is splits.train:
            assert 0 <= seen.min() <= seen.max() <= 1


@given(content=contents(), kind=st.sampled_from(["npz", "names"]), scaling=st.sampled_from(SCALINGS), data_=st.data())
@settings(max_examples=60)
def test_a_split_of_ones_own_is_read_back_exactly(
    content: Content, kind: str, scaling: Any, data_: st.DataObject, folder: Path
) -> None:
    """Arrays named train and test are the two parts, each with what lies beside it."""
    content = channelled(content)
    cut = data_.draw(st.integers(1, len(content["frames"]) - 1))
    parts = {"train" + f"_{name}" * (name != "frames"): values[:cut] for name, values in content.items()} | {
        "test" + f"_{name}" * (name != "frames"): values[cut:] for name, values in content.items()
    }
    path = write(folder, kind, parts)
    splits = data.load(DataConfig(data=str(path), scaling=scaling))
    assert (len(splits.train), len(splits.held_out)) == (cut, len(content["frames"]) - cut)
    check_scaled(splits, scaling)
    whole = data.whole(str(path), Scaling()).batch(np.arange(len(content["frames"])))
    mask = observed(content)
    np.testing.assert_array_equal(mask if whole.mask is None else whole.mask, mask)
    again = data.load(DataConfig(data=str(path)), Scaling())
    joined = torch.cat([part.batch(np.arange(len(part))).frames for part in (again.train, again.held_out)])
    assert torch.equal(joined, whole.frames)
    if "labels" in content:
        assert again.train.labels is not None
        assert again.held_out.labels is not None
        labels = np.concatenate([again.train.labels, again.held_out.labels])
        np.testing.assert_array_equal(labels, content["labels"].astype(int))


def place(content: Content, values: Any) -> NDArray[Any]:
    """The frames as doubles with `values` written into the first sequence's last frame."""
    frames = np.ascontiguousarray(content["frames"]).astype(float)
    frames.reshape(*frames.shape[:2], -1)[0, -1, : len(values)] = values
    return frames


def without_first(content: Content) -> NDArray[Any]:
    mask = np.ones(content["frames"].shape[:2])
    mask[0] = 0
    return mask


SPOILS: dict[str, tuple[str, Callable[[Content], Any], str]] = {
    "a number": ("frames", lambda _: np.array(1.0), "must have shape"),
    "rank 1": ("frames", lambda c: c["frames"].reshape(-1).astype(float), "must have shape"),
    "rank 6": ("frames", lambda _: np.zeros((2,) * 6), "must have shape"),
    "no sequences": ("frames", lambda c: c["frames"][:0], "must not be empty"),
    "one sequence": ("frames", lambda c: c["frames"][:1], "2 sequences"),
    "one frame": ("frames", lambda c: c["frames"][:, :1], "at least 2 frames"),
    "complex": ("frames", lambda c: c["frames"].astype(complex), "booleans, integers or floats"),
    "text": ("frames", lambda c: c["frames"].astype(str), "booleans, integers or floats"),
    "bytes": ("frames", lambda c: c["frames"].astype("S3"), "booleans, integers or floats"),
    "spans of time": ("frames", lambda c: np.zeros(c["frames"].shape, "m8[s]"), "booleans, integers or floats"),
    "records": ("frames", lambda c: np.zeros(c["frames"].shape, [("a\nb", "f4")]), "booleans, integers or floats"),
    "objects": ("frames", lambda c: np.asarray(c["frames"]).astype(object), "plain"),
    "infinity": ("frames", lambda c: place(c, [np.inf]), "an infinity in frame"),
    "minus infinity": ("frames", lambda c: place(c, [-np.inf]), "an infinity in frame"),
    "NaN and infinity": ("frames", lambda c: place({"frames": np.zeros((2, 2, 3))}, [np.nan, np.inf]), "an infinity"),
    "too large": ("frames", lambda c: place(c, [1e300]), "small enough"),
    "negative lengths": ("lengths", lambda c: -np.ones(len(c["frames"]), int), "must lie between 1 and"),
    "a length of 0": ("lengths", lambda c: np.zeros(len(c["frames"]), "u1"), "found 0 for sequence 0"),
    "lengths too large": ("lengths", lambda c: np.full(len(c["frames"]), 2**64 - 1, "u8"), "must lie between 1 and"),
    "lengths with a fraction": ("lengths", lambda c: np.ones(len(c["frames"])), "must be whole numbers"),
    "lengths NaN": ("lengths", lambda c: np.full(len(c["frames"]), np.nan), "must be whole numbers"),
    "too few lengths": ("lengths", lambda c: np.ones(len(c["frames"]) - 1, int), "must be whole numbers"),
    "lengths in a column": ("lengths", lambda c: np.ones((len(c["frames"]), 1), int), "must be whole numbers"),
    "one length": ("lengths", lambda _: np.array(1), "must be whole numbers"),
    "a mask of pixels": ("mask", lambda _: np.ones((2, 2, 2)), "must have shape"),
    "a mask of sequences": ("mask", lambda c: np.ones(len(c["frames"])), "must have shape"),
    "a mask too long": ("mask", lambda c: np.ones((len(c["frames"]), 9)), "must have shape"),
    "a mask of 2": ("mask", lambda c: 2 * np.ones(c["frames"].shape[:2]), "must hold 0 and 1"),
    "a mask of -1": ("mask", lambda c: -np.ones(c["frames"].shape[:2], int), "must hold 0 and 1"),
    "a mask of text": ("mask", lambda c: np.full(c["frames"].shape[:2], "yes"), "must hold 0 and 1"),
    "a mask of NaN": ("mask", lambda c: np.full(c["frames"].shape[:2], np.nan), "must hold 0 and 1"),
    "a sequence never seen": ("mask", without_first, "found none in sequence 0"),
    "weights of sequences": ("weights", lambda c: np.ones(len(c["frames"])), "must have shape"),
    "negative weights": ("weights", lambda c: -np.ones(c["frames"].shape[:2]), "must be numbers of at least 0"),
    "weights of NaN": ("weights", lambda c: np.full(c["frames"].shape[:2], np.nan), "must be numbers of at least 0"),
    "infinite weights": ("weights", lambda c: np.full(c["frames"].shape, 1e39), "must be numbers of at least 0"),
    "vanishing weights": ("weights", lambda c: np.full(c["frames"].shape, 1e-50), "must be numbers of at least 0"),
    "weights of text": ("weights", lambda c: np.full(c["frames"].shape[:2], "1"), "must be numbers of at least 0"),
    "no weight above 0": ("weights", lambda c: np.zeros(c["frames"].shape[:2], int), "found none in sequence 0"),
    "boundaries of pixels": ("boundaries", lambda _: np.ones((2, 2, 2)), "must have shape"),
    "boundaries of 0.5": ("boundaries", lambda c: np.full(c["frames"].shape[:2], 0.5), "must hold 0 and 1"),
    "pickled boundaries": ("boundaries", lambda c: np.zeros(c["frames"].shape[:2], object), "plain"),
    "labels of sequences": ("labels", lambda c: np.ones(len(c["frames"]), int), "must be whole numbers of shape"),
    "labels of 0.5": ("labels", lambda c: np.full(c["frames"].shape[:2], 0.5), "-1 where unknown, found 0.5"),
    "labels of -2": ("labels", lambda c: np.full(c["frames"].shape[:2], -2), "-1 where unknown, found -2"),
    "pickled labels": ("labels", lambda c: np.zeros(c["frames"].shape[:2], object), "plain"),
}  # fmt: skip


@given(content=contents(), spoil=st.sampled_from(sorted(SPOILS)), kind=st.sampled_from(KINDS))
@settings(max_examples=150)
def test_arrays_that_mean_nothing_are_refused(content: Content, spoil: str, kind: str, folder: Path) -> None:
    key, change, expected = SPOILS[spoil]
    content = channelled(content)
    spoilt = {**({"frames": content["frames"]} if key == "frames" else content), key: change(content)}
    path = write(folder, "npz" if kind == "npy" and key != "frames" else kind, spoilt)
    before = listing(folder)
    message = refused(lambda: data.load(DataConfig(data=str(path))))
    assert expected in message
    assert "found" in message
    assert message.startswith(f"{path}: ")
    if spoil != "one sequence":  # to evaluate on one is possible
        refused(lambda: data.whole(str(path), Scaling()))
    assert listing(folder) == before


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with bits flipped, pieces cut out, doubled or overwritten, or the end cut off."""
    spoilt = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(0, len(spoilt) - 1)))
        stop = min(len(spoilt), start + draw(st.integers(1, 20)))
        change = draw(st.sampled_from(["flip", "cut", "double", "overwrite", "end"]))
        if change == "flip" and spoilt:
            spoilt[start] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del spoilt[start:stop]
        elif change == "double":
            spoilt[start:start] = spoilt[start:stop]
        elif change == "overwrite":
            spoilt[start:stop] = draw(st.binary(min_size=stop - start, max_size=stop - start))
        else:
            del spoilt[start:]
    return bytes(spoilt)


ARCHIVED = {
    "frames": np.arange(60, dtype="f4").reshape(5, 4, 3),
    "lengths": np.array([4, 3, 2, 1, 4]),
    "boundaries": np.eye(5, 4, dtype=bool),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@given(data_=st.data())
@settings(max_examples=100)
def test_a_damaged_archive_gives_the_same_arrays_or_none(compression: int, data_: st.DataObject, folder: Path) -> None:
    path = folder / "damaged.npz"
    path.write_bytes(data_.draw(damage(packed(ARCHIVED, compression))))
    found: list[Any] = []
    if refusal(lambda: found.append(read(path))) is None:
        (arrays,) = found
        np.testing.assert_array_equal(arrays.frames.rows(np.arange(5)), ARCHIVED["frames"])
        np.testing.assert_array_equal(arrays.mask.sum(1), ARCHIVED["lengths"])
        np.testing.assert_array_equal(arrays.boundaries, ARCHIVED["boundaries"])


def test_an_array_whose_name_is_damaged_is_not_left_out(folder: Path) -> None:
    """An archive names its members twice."""
    content = packed(ARCHIVED)
    path = folder / "damaged.npz"
    path.write_bytes(content[::-1].replace(b"lengths.npy"[::-1], b"lengthz.npy"[::-1], 1)[::-1])
    assert "lengthz.npy" in refused(lambda: read(path))


HEADER_VALUES = st.sampled_from([
    "'<f4'", "'|O'", "'<f8'", "'|V9'", "'<U9'", "'|S0'", "'<m8[s]'", "[('a', '<f4')]", "('<f4', (2,))", "'é'", "''",
    "None", "True", "False", "2", "'no'", "()", "(5,)", "(5, 4)", "(4, 5, 3)", "(6, 4, 3)", "(1, 4, 3)", "(-5, -4, 3)",
    "(5, 4, 3, 1)", "(5, 4.0, 3)", "(True, 60, 1)", "(0, 4, 3)", "(2**62, 4, 3)", "(9223372036854775807, 9, 9)",
    "[5, 4, 3]", "(5, 4, 3" + ", 1" * 70 + ")", "__import__('os')", "'\\d'", "(5L, 4L, 3L)", "(" * 200,
])  # fmt: skip


@given(
    header=st.fixed_dictionaries(
        {"descr": st.just("'<f4'") | HEADER_VALUES, "fortran_order": st.just("False") | HEADER_VALUES},
        optional={"shape": st.just("(5, 4, 3)") | HEADER_VALUES, "more": HEADER_VALUES},
    ),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), (4, 0), (0, 0)]),
)
@settings(max_examples=100)
def test_a_header_that_means_something_else(header: dict[str, str], version: tuple[int, int], folder: Path) -> None:
    """An array is read only if it fills the file to its last byte."""
    text = ("{" + ", ".join(f"'{name}': {value}" for name, value in header.items()) + "}\n").encode("utf-8")
    size = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    content = b"\x93NUMPY" + bytes(version) + size + text + ARCHIVED["frames"].tobytes()
    for name, written in (
        ("my.npy", content),
        ("my.npz", packed({}) if not content else zipped("frames.npy", content)),
    ):
        path = folder / name
        path.write_bytes(written)
        found: list[Any] = []
        if refusal(lambda path=path, found=found: found.append(read(path))) is None:
            assert found[0].frames.dtype.itemsize * np.prod(found[0].frames.shape) == ARCHIVED["frames"].nbytes


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    "name", ["../frames.npy", "/frames.npy", "..\\frames.npy", "a/../../frames.npy", "C:frames.npy"]
)
def test_no_member_of_an_archive_leaves_its_folder(name: str, tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "my.npz").write_bytes(zipped(name, npy(ARCHIVED["frames"])))
    before = listing(tmp_path)
    assert "array named frames" in refused(lambda: read(inner / "my.npz"))
    # A sound array beside it is read, and the other is left where it is.
    with zipfile.ZipFile(inner / "my.npz", "a") as archive:
        archive.writestr("frames.npy", npy(ARCHIVED["frames"]))
    before = listing(tmp_path)
    read(inner / "my.npz")
    assert listing(tmp_path) == before
    assert not Path("/frames.npy").exists()


@pytest.mark.parametrize("scaling", [Scaling(1e300, 1.0), Scaling(0.0, 1e-300), Scaling((0.0, 0.0, -1e39), 1.0)])
@pytest.mark.parametrize("dtype", ["u1", "?", "f2", "f8"])
def test_a_scaling_that_makes_infinities_is_refused(scaling: Scaling, dtype: str, folder: Path) -> None:
    path = write(folder, "npy", {"frames": np.ones((3, 4, 3), dtype)})
    assert "once scaled" in refused(lambda: data.load(DataConfig(data=str(path)), scaling))
    assert "once scaled" in refused(lambda: data.whole(str(path), scaling))


def test_a_scaling_is_tried_in_the_precision_that_it_will_have(folder: Path) -> None:
    """Half floats are scaled as 32-bit ones, to which 1e-300 is 0; and 0 / 0 is no number."""
    path = write(folder, "npy", {"frames": np.zeros((3, 4, 3), "f2")})
    assert "once scaled" in refused(lambda: data.whole(str(path), Scaling(0.0, 1e-300)))


# Configurations

CONFIGS: list[Any] = [HRSSMConfig, TrainingConfig, LeaveOneOut, DataConfig]
LATER: dict[Any, tuple[str, ...]] = {
    TrainingConfig: (
        "compile",
        "final_state_weight",
        "graph",
        "keep_best",
        "patience",
        "precision",
        "state_weight",
        "switch_warmup_steps",
        "workers",
        *map(flat_name, vars(LeaveOneOut())),
    ),
    HRSSMConfig: ("min_length", "smoothing"),
    DataConfig: ("scaling", "boundaries_mark", "window_length", "window_overlap"),
}
"""Settings that records of old runs lack."""

ODD = [
    10**400, -(10**400), 2**63, float("nan"), float("inf"), -0.0, True, "a\nb\r\u2028c", "\ud800", "x" * 5000,
    [], {}, [None], [28.0], [10**400], [2**40, 2**40], [1] * 5000, b"28", Path("x"), np.zeros((3, 3)),
    np.float32(1), np.int64(3), object(), 3 + 4j, range(3), (28,), {"a": {"b": "\n"}}, "hrssm", "None",
    None, 0, -1, 1e-320, 1.7e308,
]  # fmt: skip
VALUES = (
    st.sampled_from(ODD)
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.recursive(st.none() | st.booleans() | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=5)
)


def fits(value: Any, annotation: str) -> bool:
    """Whether a JSON value fits an annotation, checked independently of the reader."""
    if annotation.endswith(" | None"):
        return value is None or fits(value, annotation.removesuffix(" | None"))
    if annotation.startswith(("float | Literal", "int | Literal")):
        return any(fits(value, part) for part in annotation.split(" | "))
    if annotation.startswith("Literal"):
        return isinstance(value, str) and value in ast.literal_eval(annotation.removeprefix("Literal").split(" | ")[0])
    if annotation.startswith("tuple"):
        return isinstance(value, (list, tuple)) and all(fits(item, "int") for item in value)
    kinds: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str, "Path": (str, Path)}
    return isinstance(value, kinds[annotation]) and (annotation == "bool" or not isinstance(value, bool))


@given(kind=st.sampled_from(CONFIGS), value=VALUES, data_=st.data())
@settings(max_examples=250)
def test_a_value_is_kept_or_refused_by_name(kind: Any, value: Any, data_: st.DataObject) -> None:
    field = data_.draw(st.sampled_from(dataclasses.fields(kind)))
    values = to_dict(kind()) | {field.name: value}
    found: list[Any] = []
    message = refusal(lambda: found.append(from_dict(kind, values)))
    if message is None:
        assert fits(value, str(field.type))
        kept = to_dict(found[0])[field.name]
        expected = Path(value) if field.type == "Path" else value
        assert (list(kept) == list(value)) if isinstance(value, (list, tuple)) else str(kept) == str(expected)
    else:
        assert field.name in message
        assert "found" in message


@given(kind=st.sampled_from(CONFIGS), data_=st.data())
@settings(max_examples=60)
def test_keys_that_are_unknown_or_missing_are_named(kind: Any, data_: st.DataObject) -> None:
    values = to_dict(kind())
    known = sorted(values)
    dropped = data_.draw(st.lists(st.sampled_from(known), unique=True, max_size=3))
    keys = (
        st.text(max_size=3)
        | st.integers()
        | st.none()
        | st.sampled_from(["a\nb", "\ud800", "x" * 5000, 10**400, (1, 2)])
    )
    added = data_.draw(st.lists(keys.filter(lambda key: key not in known), unique=True, max_size=3))
    for name in dropped:
        del values[name]
    message = refusal(lambda: from_dict(kind, values | dict.fromkeys(added)))
    dropped = [name for name in dropped if name not in LATER.get(kind, ())]
    assert (message is None) == (not dropped and not added)
    if message is not None:
        assert kind.__name__ in message
        assert "has no field" in message if added else all(repr(name) in message for name in dropped)


def test_a_value_too_large_to_write() -> None:
    """Python refuses to write numbers of thousands of digits, and lists nested as deeply."""
    deep: list[Any] = []
    for _ in range(100_000):  # Python 3.13 writes some thousands
        deep = [deep]
    for value in (10**5000, [10**5000], deep):
        values = to_dict(HRSSMConfig()) | {"model": value}
        assert f"found {type(value).__name__} too large to show" in refused(
            lambda values=values: from_dict(HRSSMConfig, values)
        )
    assert "found int too large to show" in refused(lambda: TrainingConfig(steps=10**5000))
    assert "has no field int too large to show" in refused(lambda: from_dict(HRSSMConfig, {10**5000: 1}))


@given(kind=st.sampled_from(CONFIGS), value=VALUES.filter(lambda value: not isinstance(value, dict)))
@settings(max_examples=30)
def test_no_table_no_configuration(kind: Any, value: Any) -> None:
    assert "must be a table of values, found" in refused(lambda: from_dict(kind, value))


def sound(annotation: str) -> st.SearchStrategy[Any]:
    """Values that any field of this annotation takes."""
    if annotation.endswith(" | LeaveOneOut"):
        steered = {field.name: sound(str(field.type)) for field in dataclasses.fields(LeaveOneOut)}
        return sound(annotation.removesuffix(" | LeaveOneOut")) | st.builds(LeaveOneOut, **steered)
    if annotation.startswith(("float | Literal", "int | Literal")):
        parts = annotation.split(" | ")
        return st.one_of(st.none() if part == "None" else sound(part) for part in parts)
    if annotation.startswith("Literal"):
        return st.sampled_from(typing.get_args(eval(annotation, vars(typing))))
    strategies: dict[str, st.SearchStrategy[Any]] = {
        "int": st.integers(2, 1000), "int | None": st.none() | st.integers(1, 1000), "bool": st.booleans(),
        "float": st.floats(0.01, 0.99), "float | None": st.none() | st.floats(0.01, 0.99), "str": st.text(min_size=1),
        "Path": st.just(Path("a/b")), "tuple[int, ...]": st.just((16, 24, 3)),
    }  # fmt: skip
    return strategies[annotation]


@given(kind=st.sampled_from(CONFIGS), data_=st.data())
@settings(max_examples=60)
def test_a_sound_configuration_is_read_back_exactly(kind: Any, data_: st.DataObject) -> None:
    drawn = {field.name: data_.draw(sound(str(field.type))) for field in dataclasses.fields(kind)}
    if "final_learning_rate" in drawn:
        drawn["final_learning_rate"] = min(drawn["final_learning_rate"], drawn["learning_rate"])
        # Whatever is drawn for it steers boundaries, which a compiled program cannot follow.
        drawn["compile"] = drawn["compile"] and drawn["elbo"] == "trace"
    if drawn.get("max_length") is not None:
        drawn["min_length"] = min(drawn["min_length"], drawn["max_length"])
    config = kind(**drawn)
    assert from_dict(kind, json.loads(json.dumps(to_dict(config)))) == config


# Checkpoints


def weights(model: StateSpaceModel) -> dict[str, torch.Tensor]:
    return {f"model.{name}": value for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("run")
    return checkpoint.save(run, checkpoint.Checkpoint(5, weights(HRSSM(TINY)), {"model": to_dict(TINY)}), keep=1)


def sealed(header: Content, body: bytes) -> bytes:
    """A file of this header whose seal is right: 64 zeros replaced by the digest of all bytes."""
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + body
    return content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1)


METADATA = st.sampled_from([
    "1", "2", "99", "-1", "0", "1.0", "", "x", "a\nb", "1" * 5000, "null", "[]", "{}", '{"model": {}}', "[" * 5000,
    "\ud800", None, 1, -1, float("inf"), float("nan"), [], {}, True,
])  # fmt: skip
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(
            ["F32", "F16", "BF16", "F64", "I64", "U64", "BOOL", "F8_E4M3", "F4", "C64", "X", "", 1, None]
        ),
        "shape": st.sampled_from(
            [[], [2], [4], [1, 2], [-2], [-1, -2], [2**62, 4], [0], ["2"], [2.0], None, "2", [1] * 70]
        ),
        "data_offsets": st.sampled_from(
            [[0, 8], [8, 0], [0, 4], [0, 9], [-8, 0], [0], [], [2**63, 2**64], None, ["0", "8"]]
        ),
        "more": st.just(1),
    },
)


@given(
    metadata=st.fixed_dictionaries({}, optional=dict.fromkeys(("format_version", "step", "record", "other"), METADATA)),
    entry=ENTRIES,
    tables=st.sampled_from(["both", "none", "no metadata", "metadata alone"]),
    body=st.sampled_from([bytes(8), b"", bytes(7), bytes(9)]),
)
@settings(max_examples=250)
def test_a_sealed_file_of_any_header(metadata: Content, entry: Content, tables: str, body: bytes, folder: Path) -> None:
    """The seal shows that a file is unchanged, not that this package wrote the file."""
    whole = {"format_version": "1", "step": "5", "record": "{}"} | metadata | {"sha256": "0" * 64}
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry
    header = {"both": {"__metadata__": whole, "model.x": tensor}, "none": {}, "no metadata": {"model.x": tensor},
              "metadata alone": {"__metadata__": whole}}[tables]  # fmt: skip
    path = folder / "any.safetensors"
    path.write_bytes(sealed(header, body))
    found: list[Any] = []
    message = refusal(lambda: found.append(checkpoint.load(path)))
    if message is not None:
        assert message.startswith(f"checkpoint {path} ")
    else:
        assert found[0].step >= 0
        assert isinstance(found[0].record, dict)
        assert len(body) == (8 if tables == "both" else 0)
    refused(lambda: StateSpaceModel.load(path))


@dataclasses.dataclass(frozen=True)
class Draw:
    """The argument of a change."""

    name: str
    size: str
    other: Any
    odd: float
    position: int


def entry(value: torch.Tensor, draw: Draw) -> torch.Tensor:
    value = value.clone()
    value.view(-1)[draw.position % value.numel()] = draw.odd
    return value


NAMES = sorted(weights(HRSSM(TINY)))
OF_WEIGHTS: dict[str, Callable[[torch.Tensor, Draw], torch.Tensor | None]] = {
    "missing": lambda _, __: None,
    "of a higher rank": lambda value, _: value.unsqueeze(0),
    "twice as long": lambda value, _: torch.cat([value, value]),
    "empty": lambda value, _: value[:0],
    "flat": lambda value, _: value.flatten()[None, None],
    "not finite": entry,
    **{str(dtype): (lambda value, _, dtype=dtype: value.to(dtype))
       for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool)},
}  # fmt: skip
OF_THE_MODEL: dict[str, Callable[[Draw], Content]] = {
    "a size": lambda draw: {draw.size: draw.other},
    "frames": lambda draw: {"frame_shape": [5, draw.other]},
    "images": lambda draw: {"frame_shape": [16, 16, draw.other]},
    "no shape": lambda draw: {"frame_shape": draw.other},
    "a context": lambda _: {"context": 2},
    "another kind": lambda _: {"model": "rssm"},
    "no such kind": lambda _: {"model": "lstm"},
    "convolutions": lambda _: {"networks": "conv"},
    "unknown": lambda _: {"unknown": 1},
}


@given(
    change=st.sampled_from([*OF_WEIGHTS, *OF_THE_MODEL, "a key less", "a tensor more", "no weights", "no model"]),
    draw=st.builds(
        Draw,
        name=st.sampled_from(NAMES),
        size=st.sampled_from(["hidden", "abstract_size", "observation_size", "boundary_layers"]),
        other=st.sampled_from([1, 3, 5, 6, 60_000, 2**40, 10**400, -4, 0, None, "4", 4.0, float("nan")]),
        odd=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
        position=st.integers(0, 1000),
    ),
)
@settings(max_examples=150)
def test_weights_and_configuration_that_disagree(change: str, draw: Draw, saved: Path) -> None:
    loaded = checkpoint.load(saved)
    tensors, model = dict(loaded.tensors), dict(loaded.record["model"])
    if change in OF_WEIGHTS:
        value = OF_WEIGHTS[change](tensors.pop(draw.name), draw)
        tensors |= {} if value is None else {draw.name: value}
    elif change in OF_THE_MODEL:
        model |= OF_THE_MODEL[change](draw)
    elif change == "a key less":
        del model[draw.size]
    elif change == "a tensor more":
        tensors[f"{draw.name}.more\n"] = torch.ones(2)
    run = saved.parents[1] / "spoilt"
    record = {} if change == "no model" else json.loads(json.dumps({"model": model}))
    path = checkpoint.save(run, checkpoint.Checkpoint(5, {} if change == "no weights" else tensors, record), keep=1)
    before = listing(run)
    message = refused(lambda: HRSSM.load(path))
    assert any(word in message for word in ("found", "has no", "lacks"))
    assert listing(run) == before


@pytest.mark.parametrize("name", ["absent", "a\nb", "a\0b", "x" * 300])
@pytest.mark.parametrize("reader", [checkpoint.load, StateSpaceModel.load, lambda path: data.whole(path, Scaling())])
def test_a_name_of_no_file(name: str, reader: Callable[[str | Path], Any], tmp_path: Path) -> None:
    refused(lambda: reader(tmp_path / name))


def test_a_sound_model_is_read_back_exactly(saved: Path, tmp_path: Path) -> None:
    for model in (HRSSM(TINY), RSSM(dataclasses.replace(TINY, model="rssm", context=1))):
        record = {"model": to_dict(model.config)}
        path = checkpoint.save(tmp_path, checkpoint.Checkpoint(5, weights(model), record), keep=1)
        found = StateSpaceModel.load(path)
        assert type(found) is type(model)
        assert found.config == model.config
        for name, value in model.state_dict().items():
            assert torch.equal(found.state_dict()[name], value)
    assert "kind HRSSM" in refused(lambda: HRSSM.load(path))
    with torch.no_grad():
        found.emission.combine.weight.fill_(2.0)  # a leaf of its own
    half = {name: value.half() for name, value in weights(model).items()}
    checkpoint.save(tmp_path, checkpoint.Checkpoint(6, half, record), keep=1)
    assert StateSpaceModel.load(tmp_path).emission.combine.weight.dtype == torch.float32


def trainer(run: Path, **settings: Any) -> Trainer:
    return Trainer(
        HRSSM(TINY), TrainingConfig(steps=1, batch_size=2, warmup_steps=0, **settings), run, {"model": to_dict(TINY)}
    )


MOMENT = "optimiser.emission.combine.weight.exp_avg_sq"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop(MOMENT), "found nothing"),
        (lambda t: t.update({MOMENT: t[MOMENT].T[None]}), "found torch.float32 of shape"),
        (lambda t: t.update({MOMENT: t[MOMENT] * float("inf")}), "a NaN or an infinity"),
        (lambda t: t.update({MOMENT: t[MOMENT].long()}), "found torch.int64"),
        (lambda t: t.update({MOMENT.replace("combine", "other"): t[MOMENT]}), "knows no parameter"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("optimiser.")], "found nothing"),
        (lambda t: t.pop("random.cpu"), "random.cpu"),
        (lambda t: t.update({"random.cpu": t["random.cpu"][:9]}), "random.cpu"),
        (lambda t: t.update({"random.cpu": t["random.cpu"].float()}), "random.cpu"),
    ],
)
def test_a_run_is_not_resumed_from_half_a_state(
    change: Callable[[Content], Any], expected: str, tmp_path: Path
) -> None:
    frames = data.Sequences(np.random.default_rng(0).random((3, 4, 3)))
    trainer(tmp_path).fit(frames, frames)
    loaded = checkpoint.load(tmp_path)
    trainer(tmp_path).restore(loaded)
    change(loaded.tensors)
    assert expected in refused(lambda: trainer(tmp_path).restore(loaded))


def test_a_run_of_amsgrad_is_not_resumed_without_it(tmp_path: Path) -> None:
    frames = data.Sequences(np.random.default_rng(0).random((3, 4, 3)))
    trainer(tmp_path).fit(frames, frames)
    loaded = checkpoint.load(tmp_path)
    loaded.tensors[MOMENT.replace("exp_avg_sq", "max_exp_avg_sq")] = loaded.tensors[MOMENT]
    assert "max_exp_avg_sq" in refused(lambda: trainer(tmp_path).restore(loaded))


# Pickles, everywhere


class Planted:
    """An object whose unpickling leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def plants(trace: Path) -> Iterator[bytes]:
    planted = Planted(trace)
    for protocol in (0, 2, 5):
        yield pickle.dumps(planted, protocol)
    yield npy(np.array([planted], object))
    yield npy(np.array([(1, planted)], [("a", "f4"), ("b", object)]))
    for content in (npy(np.array([planted] * 2, object)), pickle.dumps(planted)):
        for name in ("frames.npy", "frames", "data.pkl", "archive/data.pkl"):
            yield zipped(name, content)
    file = io.BytesIO()
    torch.save(planted, file)
    yield file.getvalue()
    torch.save({"model.x": planted}, file, _use_new_zipfile_serialization=False)
    yield file.getvalue()
    metadata = {
        "format_version": "1",
        "step": "5",
        "record": pickle.dumps(planted, 0).decode("ascii"),
        "sha256": "0" * 64,
    }
    yield sealed({"__metadata__": metadata}, b"")


def test_no_reader_runs_a_planted_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, run = tmp_path / "executed", tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    readers: dict[str, Callable[[Path], Any]] = {
        "my.npz": lambda path: data.load(DataConfig(data=str(path))),
        "my.npy": lambda path: data.load(DataConfig(data=str(path))),
        "run/0.npy": lambda path: data.load(DataConfig(data=str(path.parent))),
        "run/checkpoints/00000005.safetensors": StateSpaceModel.load,
        "run/config.json": files.read_json,
    }
    contents = list(plants(trace))
    for content in contents:
        for name, reader in readers.items():
            path = tmp_path / name
            path.write_bytes(content)
            refused(lambda reader=reader, path=path: reader(path))
    assert not trace.exists()
    monkeypatch.undo()
    pickle.loads(contents[0])
    assert trace.is_dir()  # It would have.


# The command line


def ends(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_the_command_line_ends_with_one_line(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = np.zeros((4, 5, 3))
    frames[2, 1, 0] = np.inf
    spoilt, out = write(tmp_path, "npz", {"frames": frames}), tmp_path / "out"
    assert "an infinity in frame 1" in ends(capsys, "train", "--data", str(spoilt), "--out", str(out))
    assert not out.exists()
    spoilt.write_bytes(pickle.dumps(Planted(tmp_path / "executed")))
    assert "must be a whole .npz archive" in ends(capsys, "train", "--data", str(spoilt), "--out", str(out))
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(saved.read_bytes()[:-1])
    assert "damaged" in ends(capsys, "evaluate", str(copy), "--particles", "1")
    tensors = dict(checkpoint.load(saved).tensors)
    record = {"model": to_dict(dataclasses.replace(TINY, hidden=2**16))}
    large = checkpoint.save(tmp_path, checkpoint.Checkpoint(5, tensors, record), keep=1)
    assert "another model" in ends(capsys, "evaluate", str(large))
    assert {path.name for path in tmp_path.iterdir()} == {"my.npz", "copy.safetensors", "checkpoints"}
