from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import load, save_npz, whole
from pyro_hrssm.data import weights as weighting
from pyro_hrssm.data.arrays import read
from pyro_hrssm.data.batches import Batch
from pyro_hrssm.errors import InputError

RANDOM = np.random.default_rng(0)
FRAMES = RANDOM.standard_normal((6, 5, 3))


def config(path: Path, **fields: Any) -> DataConfig:
    return DataConfig(data=str(path), held_out=0.5, **fields)


def every(path: Path, **fields: Any) -> Batch:
    """All sequences of a file, in its order."""
    splits = load(config(path, **fields))
    return whole(str(path), splits.scaling).batch(range(len(splits.train) + len(splits.held_out)))


def saved(folder: Path, kind: str, **arrays: NDArray[Any]) -> Path:
    path = folder / f"my.{kind}"
    if kind == "npz":
        save_npz(path, **arrays)
    else:
        path.mkdir()
        for name, values in arrays.items():
            np.save(path / f"{name}.npy", values)
    return path


@pytest.mark.parametrize("kind", ["npz", "folder"])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_weights_lie_beside_frames(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    weights = RANDOM.integers(0, 4, shape)
    weights[:, 0] = 2
    mask = every(saved(tmp_path, kind, frames=FRAMES, weights=weights)).mask
    assert mask is not None
    assert mask.dtype == torch.float32
    np.testing.assert_array_equal(mask, np.broadcast_to(weights.reshape(6, 5, -1), FRAMES.shape))


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_mask_of_entries_in_bytes(kind: str, tmp_path: Path) -> None:
    """Whole numbers have no NaN; a mask of entries suits a Bernoulli emission too."""
    frames, mask = RANDOM.integers(0, 256, (6, 5, 8, 8, 1), np.uint8), RANDOM.random((6, 5, 8, 8, 1)) < 0.5
    path = saved(tmp_path, kind, frames=frames, mask=mask)
    found = every(path)
    assert load(config(path)).likelihood == "bernoulli"
    assert found.mask is not None
    assert found.mask.dtype == torch.bool
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_allclose(found.frames, np.where(mask, frames / 255, 0), rtol=1e-6)


def test_frames_without_a_last_axis_have_weights_without_it(tmp_path: Path) -> None:
    frames, weights = RANDOM.standard_normal((6, 5, 8, 8)), RANDOM.random((6, 5, 8, 8))
    found = every(saved(tmp_path, "npz", frames=frames, weights=weights)).mask
    assert found is not None
    np.testing.assert_array_equal(found, weights.astype(np.float32)[..., None])
    flagged = saved(tmp_path, "folder", frames=frames, mask=weights > 0.5)
    np.testing.assert_array_equal(every(flagged).mask, (weights > 0.5)[..., None])  # type: ignore[arg-type]


def test_weights_of_the_frames_own_shape_do_not_say_which_axes_are_which(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="may mean two things"):
        save_npz(tmp_path / "my.npz", np.ones((40, 5)), weights=np.ones((40, 5)))
    save_npz(tmp_path / "my.npz", np.ones((40, 5, 1)), weights=np.ones((40, 5)))


def test_a_mask_lengths_and_nan_join_the_weights(tmp_path: Path) -> None:
    frames, weights = FRAMES.copy(), 1 + RANDOM.random((6, 5))
    frames[2, 1, 0] = frames[3, 2] = np.nan
    mask = np.ones(FRAMES.shape, bool)
    mask[4, 0, 1] = mask[1, 3] = False
    lengths = np.array([5, 5, 5, 5, 5, 3])
    path = saved(tmp_path, "npz", frames=frames, weights=weights, mask=mask, lengths=lengths)
    expected = np.where(mask & ~np.isnan(frames), weights[..., None], 0)
    expected[5, 3:] = 0
    np.testing.assert_array_equal(every(path).mask, expected.astype(np.float32))  # type: ignore[arg-type]
    arrays = read(path)
    assert arrays.mask is not None
    splits = load(config(path))
    assert splits.train.has_entries
    assert splits.held_out.has_entries
    assert np.concatenate([splits.train.lengths, splits.held_out.lengths]).sum() == 28
    said = splits.train.description() + splits.held_out.description()
    assert said.count("entries weighted") == 2
    counted = [sum(map(int, re.findall(rf"(\d+) of \d+ {what} missing", said))) for what in ("frames", "entries")]
    assert counted == [4, 2]


@pytest.mark.parametrize("kinds", [("?", None), (None, "i8"), ("?", "f4")])
def test_a_split_of_ones_own_has_weights_in_either_part(kinds: tuple[str | None, str | None], tmp_path: Path) -> None:
    parts, arrays = {"train": FRAMES[:4], "test": FRAMES[4:]}, {}
    expected = []
    for (name, frames), kind in zip(parts.items(), kinds, strict=True):
        values = RANDOM.integers(0, 2, frames.shape)
        values[:, 0] = 1
        arrays |= {} if kind is None else {f"{name}_weights": values.astype(kind)}
        expected.append(np.ones(frames.shape) if kind is None else values)
    path = tmp_path / "my.npz"
    np.savez(path, **parts, **arrays)
    splits = load(config(path))
    found = [part.batch(range(len(part))).mask for part in (splits.train, splits.held_out)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)  # type: ignore[arg-type]
    assert len({one.dtype for one in found if one is not None}) == 1


def test_weights_need_a_noise(tmp_path: Path) -> None:
    path = saved(tmp_path, "npz", frames=RANDOM.integers(0, 2, (6, 5, 3)), weights=np.ones((6, 5)))
    splits = load(config(path))
    with pytest.raises(InputError, match=r"weights need likelihood normal, .* found bernoulli; way out"):
        splits.train.check_likelihood(splits.likelihood, "way out")
    splits.train.check_likelihood("normal", "way out")


def test_memory_mapped_weights_stay_in_their_file(tmp_path: Path) -> None:
    path = saved(tmp_path, "folder", frames=FRAMES, weights=np.ones(FRAMES.shape))
    weights = read(path).weights
    assert isinstance(weights, np.memmap) or isinstance(weights.base, np.memmap)  # type: ignore[union-attr]


def test_frames_of_no_weight_are_not_seen() -> None:
    weights = np.zeros((2, 3, 2))
    weights[0, 1, 1] = 0.5
    assert weighting.seen(weights).tolist() == [[False, True, False], [False] * 3]
    assert weighting.seen(np.array([[1, 0]])).tolist() == [[True, False]]


def test_parts_of_two_lengths_have_their_weights(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    train, test = random.random((3, 4, 2)), random.random((2, 6, 2))
    weights = random.integers(1, 4, (3, 4)).astype(np.float32)
    labels = random.integers(0, 3, (3, 4))
    np.savez(tmp_path / "own.npz", train=train, test=test, train_weights=weights, train_labels=labels)
    splits = load(DataConfig(str(tmp_path / "own.npz")))
    found = [part.batch(range(len(part))).mask for part in (splits.train, splits.held_out)]
    assert found[0] is not None
    assert found[1] is not None
    np.testing.assert_array_equal(found[0][:, :4, 0].numpy(), weights)
    assert not found[0][:, 4:].any()
    assert (found[1] == 1).all()
    part = splits.train.subset([2, 0])
    assert part.labels is not None
    np.testing.assert_array_equal(part.labels[:, :4], labels[[2, 0]])
    np.testing.assert_array_equal(part.batch([0]).mask[0, :4, 1], weights[2])  # type: ignore[index]
