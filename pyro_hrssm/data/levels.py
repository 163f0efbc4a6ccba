"""Readings of sensors that hold one level per segment: a change point problem that leaves room above PELT."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import records, segments
from pyro_hrssm.data.content import Arrays
from pyro_hrssm.data.segments import Process
from pyro_hrssm.data.sequences import Emission, Scaling, Splits
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.data.splitting import split
from pyro_hrssm.errors import found, require

NOISE = (0.25, 0.25, 0.25, 1.25)
"""Levels vary by 1 from one to the next: the last of these sensors shows mostly noise."""

MOST_LEVELS = 100  # the exact posterior of the boundaries costs the square

DEFAULT_NUM = 2000
DATA_SEED = 0


def load(config: DataConfig, scaling: Scaling | None = None, likelihood: Emission = "auto") -> Splits:
    """2,000 default sequences, the same for every run, split at random and standardised."""
    data = generate(DEFAULT_NUM, DATA_SEED)
    record = records.write("levels", generate, num=DEFAULT_NUM, seed=DATA_SEED)
    frames, boundaries, labels = Shards([data["frames"]]), data["boundaries"], data["labels"]
    return split(
        Arrays(frames, boundaries=boundaries, labels=labels, generator=record), config, scaling, "levels", likelihood
    )


def generate(
    num: int,
    seed: int,
    *,
    num_frames: int = 60,
    num_levels: int = 6,
    min_length: int = 4,
    max_length: int = 14,
    noise: tuple[float, ...] = NOISE,
    level_seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """`x_t = level[k] + noise · ε` within a segment, whose length is uniform, and k any level but the one before.

    A level has a mean for each sensor, drawn from N(0, 1). Every sequence opens a segment with its first frame. No
    segment ends with the last frame, so its boundary is 0.

    Args:
        num: number of sequences N.
        seed: seed of all draws but those of the levels.
        num_frames: number of frames T.
        num_levels: number of levels K, from 2 to 100.
        min_length: shortest segment, in frames.
        max_length: longest segment, in frames; equal to `min_length`, it gives all segments the same length.
        noise: standard deviation of the noise of each sensor; there are as many sensors D as numbers.
        level_seed: seed of the levels: data sets of the same `level_seed` share them.

    Returns:
        `frames` float32 [N, T, D], `boundaries` bool [N, T] and `labels` int64 [N, T], the level's number.

    Raises:
        InputError: where a parameter is out of its range.
    """
    segments.check(num, seed, num_frames)
    process = process_of(num_levels, min_length, max_length, noise, level_seed)
    rng = np.random.default_rng(seed)
    boundaries = segments.draw_boundaries(rng, (num, num_frames), min_length, max_length)
    labels = segments.draw_states(rng, boundaries, process.chain)
    frames = process.means[labels] + process.noise * rng.standard_normal((num, num_frames, len(noise)))
    return {"frames": frames.astype(np.float32), "boundaries": boundaries, "labels": labels}


def process_of(num_levels: int, min_length: int, max_length: int, noise: tuple[float, ...], level_seed: int) -> Process:
    """The process that :func:`generate` draws from; arguments and errors as there."""
    require(2 <= num_levels <= MOST_LEVELS, f"num_levels must lie between 2 and {MOST_LEVELS}, found {num_levels}")
    segments.check_lengths(min_length, max_length)
    deviations = np.array(noise, np.float64)
    sound = deviations.ndim == 1 and deviations.size > 0 and bool(np.all((deviations >= 0) & (deviations < np.inf)))
    require(sound, f"noise must be finite numbers of at least 0, one per sensor, found {found(noise)}")
    require(0 <= level_seed < 2**32, f"level_seed must lie between 0 and 2**32 - 1, found {level_seed}")
    # The older generator: unlike the draws of `default_rng`, numpy promises never to change its own.
    means = np.random.RandomState(level_seed).standard_normal((num_levels, len(deviations)))
    chain = segments.any_other(num_levels)
    return Process(means, deviations, chain, min_length, max_length)
