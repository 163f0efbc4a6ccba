"""All 70,000 MNIST digits, downloaded by torchvision and read row by row."""

from __future__ import annotations

from http.client import HTTPException
from typing import Any

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data.content import Arrays
from pyro_hrssm.data.sequences import Emission, Scaling, Splits
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.data.splitting import split
from pyro_hrssm.errors import InputError, one_line


def load(config: DataConfig, scaling: Scaling | None = None, likelihood: Emission = "auto") -> Splits:
    """MNIST's own split, 60,000 and 10,000 digits of 28 rows with 28 pixels in [0, 1], one byte per pixel in memory."""
    train, held_out = (_digits(config, part).data.numpy() for part in (True, False))
    return split(Arrays(Shards([train, held_out]), num_train=len(train)), config, scaling, "mnist", likelihood)


def _digits(config: DataConfig, train: bool) -> Any:
    from torchvision.datasets import MNIST  # slow to import

    try:
        return MNIST(config.data_root, train=train, download=True)
    # Causes are a missing network, a broken download, a folder that cannot be written, a damaged file.
    except (RuntimeError, OSError, HTTPException, EOFError, ValueError, AssertionError) as error:
        raise InputError(
            f"MNIST could not be downloaded to {one_line(config.data_root)} or read there ({one_line(error)}); "
            "--data mnist5k needs no download"
        ) from error
