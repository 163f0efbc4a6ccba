from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import MNIST

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import mnist
from pyro_hrssm.data.sequences import Scaling
from pyro_hrssm.errors import InputError


@pytest.fixture
def few_digits(tmp_path: Path) -> Path:
    """A folder like that of torchvision's download, with 6 and 3 digits."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, num in (("train", 6), ("t10k", 3)):
        pixels = (np.arange(num * 784) % 256).astype(np.uint8)
        sizes = np.array([num, 28, 28], ">i4").tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + pixels.tobytes())
        labels = np.arange(num, dtype=np.uint8).tobytes()
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[:4] + labels)
    return tmp_path


def test_digits_are_rows_in_the_unit_interval(few_digits: Path) -> None:
    config = DataConfig(data="mnist", data_root=few_digits)
    splits = mnist.load(config)
    assert (len(splits.train), len(splits.held_out), splits.train.frame_shape) == (6, 3, (28,))
    assert (splits.name, splits.likelihood, splits.scaling) == ("mnist", "bernoulli", Scaling(0.0, 255.0))
    expected = (np.arange(3 * 784) % 256).reshape(3, 28, 28) / 255
    np.testing.assert_allclose(splits.held_out.batch([0, 1, 2]).frames, expected, rtol=1e-6)  # float32


def test_a_scaling_given_is_used(few_digits: Path) -> None:
    splits = mnist.load(DataConfig(data_root=few_digits), Scaling(0.0, 510.0))
    assert splits.held_out.batch([0]).frames.max() == 0.5


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [])
    with pytest.raises(InputError, match=r"--data mnist5k needs no download") as raised:
        mnist.load(DataConfig(data_root=tmp_path / "new"))
    assert "\n" not in str(raised.value)


def test_damaged_files(few_digits: Path) -> None:
    path = few_digits / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="or read there") as raised:
        mnist.load(DataConfig(data_root=few_digits))
    assert "\n" not in str(raised.value)


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--data mnist5k"):
        mnist.load(DataConfig(data_root=tmp_path / "file"))
