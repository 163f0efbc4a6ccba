"""Sequences of segments with one colour each: the smallest data set whose boundaries are known."""

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
from pyro_hrssm.errors import require

# Corners of the RGB cube: no eight colours lie further apart.
PALETTE = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0]], dtype=np.float32
)
"""[8, 3] red, green, blue, yellow, magenta, cyan, white, black."""

DEFAULT_NUM = 4000
DATA_SEED = 0


def load(config: DataConfig, scaling: Scaling | None = None, likelihood: Emission = "auto") -> Splits:
    """4,000 default sequences, the same for every run, split at random and standardised."""
    data = generate(DEFAULT_NUM, DATA_SEED)
    record = records.write("colours", generate, num=DEFAULT_NUM, seed=DATA_SEED)
    frames, boundaries, labels = Shards([data["frames"]]), data["boundaries"], data["labels"]
    return split(
        Arrays(frames, boundaries=boundaries, labels=labels, generator=record), config, scaling, "colours", likelihood
    )


def generate(
    num: int,
    seed: int,
    *,
    num_frames: int = 20,
    num_colours: int = 8,
    min_length: int = 2,
    max_length: int = 6,
    repeat: float = 0.0,
    noise: float = 0.1,
    image_size: int | None = None,
) -> dict[str, NDArray[Any]]:
    """`x_t = palette[k] + noise · ε` within a segment, whose length is uniform and whose colour k is a Markov chain.

    Every sequence opens a segment with its first frame. The chain is :func:`transitions`; with `repeat` above 0
    some true boundaries cannot be seen. No segment ends with the last frame, so its boundary is 0.

    Args:
        num: number of sequences N.
        seed: seed of all draws.
        num_frames: number of frames T.
        num_colours: number of colours K, from 2 to 8.
        min_length: shortest segment, in frames.
        max_length: longest segment, in frames; equal to `min_length`, it gives all segments the same length.
        repeat: probability that a segment keeps the colour of the segment before.
        noise: standard deviation of the noise on every entry, where colours are 0 and 1.
        image_size: side of square images in one colour; None for vectors (r, g, b).

    Returns:
        `frames` float32 [N, T, 3] or [N, T, side, side, 3], `boundaries` bool [N, T] and `labels` int64 [N, T], the
        colour's number in the palette.

    Raises:
        InputError: where a parameter is out of its range.
    """
    segments.check(num, seed, num_frames)
    require(image_size is None or image_size >= 1, f"image_size must be at least 1 or None, found {image_size}")
    process = process_of(num_colours, min_length, max_length, repeat, noise)
    rng = np.random.default_rng(seed)
    boundaries = segments.draw_boundaries(rng, (num, num_frames), min_length, max_length)
    labels = segments.draw_states(rng, boundaries, process.chain)
    frames = PALETTE[labels]
    if image_size is not None:
        frames = np.broadcast_to(frames[:, :, None, None], (num, num_frames, image_size, image_size, 3))
    frames = frames + np.float32(noise) * rng.standard_normal(frames.shape, np.float32)
    return {"frames": frames, "boundaries": boundaries, "labels": labels}


def process_of(num_colours: int, min_length: int, max_length: int, repeat: float, noise: float) -> Process:
    """The process that :func:`generate` draws from, the same for all pixels; arguments and errors as there."""
    chain = transitions(num_colours, repeat)
    segments.check_lengths(min_length, max_length)
    require(0 <= noise < np.inf, f"noise must be at least 0 and finite, found {noise}")
    return Process(PALETTE[:num_colours].astype(np.float64), np.full(3, float(noise)), chain, min_length, max_length)


def transitions(num_colours: int = 8, repeat: float = 0.0) -> NDArray[np.float64]:
    """Probabilities [K, K] of the next segment's colour (column) given this one's (row).

    The same colour has probability `repeat`. Of the other colours, in the palette's cyclic order, each is half as
    likely as the one before it. Rows and columns sum to 1, so that all colours are equally frequent.
    """
    require(2 <= num_colours <= len(PALETTE), f"num_colours must lie between 2 and 8, found {num_colours}")
    require(0 <= repeat <= 1, f"repeat must lie between 0 and 1, found {repeat}")
    weights = 0.5 ** np.arange(1, num_colours)
    by_step = np.concatenate([[repeat], (1 - repeat) * weights / weights.sum()])
    places = np.arange(num_colours)
    return by_step[(places - places[:, None]) % num_colours]
