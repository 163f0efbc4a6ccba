"""Bouncing balls that change colour at the walls (Kim, Ahn and Bengio 2019, section 5.1), as small videos."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import colours
from pyro_hrssm.data.content import Arrays
from pyro_hrssm.data.sequences import Emission, Scaling, Splits
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.data.splitting import split
from pyro_hrssm.errors import require

# Fully saturated, so that a Bernoulli emission can be certain of every channel.
PALETTE = colours.PALETTE[:6]
"""[6, 3] red, green, blue, yellow, magenta, cyan; the box is black."""

DEFAULT_NUM = 2000
DATA_SEED = 0
CHUNK_FRAMES = 256  # rendered at once, a bound on memory


def load(config: DataConfig, scaling: Scaling | None = None, likelihood: Emission = "auto") -> Splits:
    """2,000 default sequences, the same for every run, split at random and scaled to [0, 1]."""
    data = generate(DEFAULT_NUM, DATA_SEED)
    return split(Arrays(Shards([data["frames"]]), boundaries=data["boundaries"]), config, scaling, "balls", likelihood)


def generate(
    num: int,
    seed: int,
    *,
    num_frames: int = 25,
    image_size: int = 32,
    num_balls: int = 2,
    radius: float = 0.13,
    speed: float = 0.055,
    jitter: float = 0.05,
) -> dict[str, NDArray[Any]]:
    """Balls cross a square box of side 1, and every ball changes its colour whenever it hits a wall.

    Balls pass over each other: where one ball hides another, a true boundary may be hard to see. The default
    speed makes a boundary about every 5 frames. No segment ends with the last frame, so its boundary is 0.

    Args:
        num: number of sequences N.
        seed: seed of all draws.
        num_frames: number of frames T.
        image_size: pixels along each side.
        num_balls: number of balls in the box.
        radius: radius of a ball, in sides of the box.
        speed: distance per frame, in sides of the box.
        jitter: noise on the direction at every frame, as a share of the speed; the speed itself is constant.

    Returns:
        `frames` uint8 [N, T, side, side, 3] and `boundaries` bool [N, T], True where the next frame shows a
        new colour.

    Raises:
        InputError: where a parameter is out of its range.
    """
    require(num >= 1 and seed >= 0, f"num must be at least 1 and seed at least 0, found {num} and {seed}")
    require(num_frames >= 2, f"num_frames must be at least 2, found {num_frames}")
    require(image_size >= 1, f"image_size must be at least 1, found {image_size}")
    require(num_balls >= 1, f"num_balls must be at least 1, found {num_balls}")
    require(0 < radius < 0.5, f"radius must lie between 0 and 0.5, found {radius}")
    require(0 < speed <= 1 - 2 * radius, f"speed must lie between 0 and 1 - 2 radius, found {speed}")
    require(0 <= jitter < np.inf, f"jitter must be at least 0 and finite, found {jitter}")
    rng = np.random.default_rng(seed)
    positions, hits = _move(rng, (num, num_balls, num_frames), radius, speed, jitter)
    paint = _paint(rng, hits)
    return {"frames": _render(positions, paint, image_size, radius), "boundaries": _boundaries(paint)}


def _move(
    rng: np.random.Generator, shape: tuple[int, int, int], radius: float, speed: float, jitter: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Centres [N, balls, T, 2], and whether a ball hit a wall on its way to the frame, [N, balls, T]."""
    num, num_balls, num_frames = shape
    centres, hits = np.empty((*shape, 2)), np.zeros(shape, bool)
    centre = rng.uniform(radius, 1 - radius, (num, num_balls, 2))
    velocity = _with_speed(rng.standard_normal(centre.shape), speed)
    for t in range(num_frames):
        centres[:, :, t] = centre
        velocity = _with_speed(velocity + jitter * speed * rng.standard_normal(centre.shape), speed)
        centre = centre + velocity
        low, high = centre < radius, centre > 1 - radius
        centre = np.where(low, 2 * radius - centre, np.where(high, 2 * (1 - radius) - centre, centre))
        velocity = np.where(low, np.abs(velocity), np.where(high, -np.abs(velocity), velocity))
        if t + 1 < num_frames:
            hits[:, :, t + 1] = (low | high).any(axis=-1)
    return centres, hits


def _with_speed(velocity: NDArray[np.float64], speed: float) -> NDArray[np.float64]:
    """The same directions [..., 2] at one speed; free noise would speed up the balls and multiply the boundaries."""
    return velocity * (speed / np.linalg.norm(velocity, axis=-1, keepdims=True))


def _paint(rng: np.random.Generator, hits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Colour [N, balls, T] of every ball: another colour of the palette after every hit."""
    first = rng.integers(len(PALETTE), size=(*hits.shape[:2], 1))
    steps = rng.integers(1, len(PALETTE), size=hits.shape) * hits
    return (first + np.cumsum(steps, axis=-1)) % len(PALETTE)


def _boundaries(paint: NDArray[np.int64]) -> NDArray[np.bool_]:
    num, _, num_frames = paint.shape
    boundaries = np.zeros((num, num_frames), bool)
    boundaries[:, :-1] = (paint[:, :, 1:] != paint[:, :, :-1]).any(axis=1)
    return boundaries


def _render(
    centres: NDArray[np.float64], paint: NDArray[np.int64], image_size: int, radius: float
) -> NDArray[np.uint8]:
    """Frames [N, T, side, side, 3] of discs with soft edges; later balls lie over earlier ones."""
    num, num_balls, num_frames, _ = centres.shape
    # Balls come first and all frames form one axis: [balls, N · T, …].
    centres = np.moveaxis(centres, 1, 0).reshape(num_balls, -1, 2)
    paint = np.moveaxis(paint, 1, 0).reshape(num_balls, -1)
    frames = np.empty((num * num_frames, image_size, image_size, 3), np.uint8)
    for start in range(0, len(frames), CHUNK_FRAMES):
        part = slice(start, start + CHUNK_FRAMES)
        canvas = np.zeros(frames[part].shape, np.float32)
        for centre, colour in zip(centres, paint, strict=True):
            coverage = _disc(centre[part], image_size, radius)[..., None]
            canvas += coverage * (PALETTE[colour[part]][:, None, None] - canvas)
        frames[part] = np.rint(255 * canvas)
    return frames.reshape(num, num_frames, image_size, image_size, 3)


def _disc(centre: NDArray[np.float64], image_size: int, radius: float) -> NDArray[np.float32]:
    """Share [M, side, side] of every pixel inside the disc, from the distance of the pixel's middle to the edge."""
    middles = (np.arange(image_size) + 0.5) / image_size
    across, down = ((middles - centre[:, axis, None]).astype(np.float32) ** 2 for axis in (0, 1))
    distance = np.sqrt(down[:, :, None] + across[:, None, :])
    return np.clip((np.float32(radius) - distance) * image_size + np.float32(0.5), 0, 1)
