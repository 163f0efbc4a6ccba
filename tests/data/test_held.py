"""Arrays in memory: they mean what the same arrays in an archive mean, and a run's folder keeps them as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_hrssm import DataConfig, InputError, data
from pyro_hrssm.data import memory
from pyro_hrssm.data.memory import ARRAYS, KEPT, hold, keep, located

RNG = np.random.default_rng(0)
RAGGED = [RNG.normal(size=(length, 3)) for length in (5, 3, 4, 5, 2)]
IMAGES = [RNG.integers(0, 255, (3, 6, 8), dtype=np.uint8) for _ in range(5)]


def digests(splits: data.Splits) -> tuple[str, str]:
    return splits.train.digest(), splits.held_out.digest()


@pytest.mark.parametrize(
    ("frames", "beside"),
    [
        (RNG.normal(size=(6, 5, 3)), {}),
        (RNG.normal(size=(6, 5)), {"lengths": [5, 5, 4, 3, 5, 5]}),
        (torch.rand(6, 5, 3, dtype=torch.float64), {"mask": torch.ones(6, 5, dtype=torch.bool)}),
        (RAGGED, {}),
        (RAGGED, {"boundaries": [np.arange(len(each)) % 2 for each in RAGGED], "names": list("abcde")}),
        (RAGGED, {"weights": [np.ones(each.shape) for each in RAGGED]}),
        ([each[:, 0] for each in RAGGED], {}),
        (IMAGES, {}),
        ([each[..., None] for each in IMAGES], {}),
        ({"train": RAGGED[:3], "test": RAGGED[3:], "train_mask": [np.ones(len(each)) for each in RAGGED[:3]]}, {}),
        (data.generate("colours", 6, 0, num_frames=8), {}),
        ([RNG.normal(size=(400, 2))], {}),
    ],
)
def test_a_folder_keeps_arrays_as_they_are(frames: Any, beside: dict[str, Any], tmp_path: Path) -> None:
    held = hold(frames, **beside)
    keep(held, tmp_path)
    config = DataConfig(data=ARRAYS)
    own, kept = data.load(config, held=held), data.load(located(config, tmp_path))
    assert digests(own) == digests(kept)
    assert own.scaling == kept.scaling
    assert (own.train.generator, own.train.has_boundaries) == (kept.train.generator, kept.train.has_boundaries)
    assert (own.train.names is None) == (kept.train.names is None)
    if own.train.names is not None:
        np.testing.assert_array_equal(own.train.names, kept.train.names)
    checkpoint = tmp_path / "checkpoints" / "00000001.safetensors"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    assert located(config, checkpoint).data == str(tmp_path / KEPT)
    assert located(DataConfig(data="levels"), tmp_path).data == "levels"


def test_numbers_of_any_library_are_taken_without_a_copy() -> None:
    frames = np.zeros((4, 5, 2), np.float32)
    assert np.shares_memory(hold(frames).content["frames"], frames)
    tensor = torch.zeros(4, 5, 2, requires_grad=True)
    assert hold(tensor).content["frames"].shape == (4, 5, 2)  # type: ignore[union-attr]
    half = hold(torch.full((4, 5, 2), 1.5, dtype=torch.bfloat16)).content["frames"]
    assert (half.dtype, half[0, 0, 0]) == (np.float32, 1.5)  # type: ignore[union-attr, index]
    assert hold([[[1.0], [2.0]]] * 3).content["frames"][0].shape == (2, 1)
    names = hold(frames, names=np.array(["a", "b", "c", "d"], object)).content["names"]
    assert names.dtype.kind == "U"  # type: ignore[union-attr]


def test_the_axes_of_recordings_are_told_as_they_are_given() -> None:
    known = {"scaling": data.Scaling()}
    with pytest.raises(InputError) as refused:
        data.load(DataConfig(data=ARRAYS), held=hold([np.zeros((50, 17, 2))]), **known)
    assert str(refused.value) == (
        "frames[0]: frames may mean two things, found shape [50, 17, 2]: store frames[..., None] for images of 17×2 "
        "pixels, or frames.reshape(50, 34) for frames of 17×2 coordinates"
    )
    with pytest.raises(InputError, match=r"np.moveaxis\(frames, 1, -1\) .* frames.reshape\(9, 192\)"):
        data.load(DataConfig(data=ARRAYS), held=hold([np.zeros((9, 3, 8, 8))]), **known)
    with pytest.raises(InputError, match=r"shape \[T\], \[T, X\], .*, found \[2, 2, 2, 2, 2\]"):
        data.load(DataConfig(data=ARRAYS), held=hold([np.zeros((2, 2, 2, 2, 2))]), **known)


@pytest.mark.parametrize(
    ("frames", "beside", "message"),
    [
        ({"frames": RAGGED}, {"mask": [1]}, "a table of arrays holds all of them, found mask beside it"),
        ({"data": RAGGED}, {}, "must hold an array named frames, or train and test, found data"),
        (RAGGED, {"maks": [1]}, "arrays beside frames are lengths, .*, found maks"),
        ([[1.0, 2.0], [[1.0], [1.0, 2.0]]], {}, r"frames\[1\] must be one array"),
        (np.zeros((4, 5, 2), object), {}, "frames must be booleans, integers or floats, found object"),
        ([np.zeros((1, 3)), np.zeros((5, 3))], {}, "a sequence must have at least 2 frames, found 1"),
    ],
)
def test_what_no_archive_could_mean_is_refused(frames: Any, beside: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        data.load(DataConfig(data=ARRAYS), held=hold(frames, **beside))


def test_further_arrays_are_left_out_and_told(tmp_path: Path) -> None:
    held = hold({"frames": np.zeros((4, 5, 2)) + np.arange(5)[:, None], "actions": [[1, 2], [3]]})
    assert data.load(DataConfig(data=ARRAYS), held=held).unread == ("actions",)
    keep(held, tmp_path)
    with np.load(tmp_path / KEPT, allow_pickle=False) as archive:
        assert archive.files == ["frames"]
    with pytest.raises(InputError, match=r"data\.npz is there already"):
        keep(held, tmp_path)
    with pytest.raises(InputError, match="the run's own arrays are not there"):
        located(DataConfig(data=ARRAYS), tmp_path / "elsewhere")
    memory.copy(tmp_path / "nothing", tmp_path)
