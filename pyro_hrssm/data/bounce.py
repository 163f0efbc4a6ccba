"""A ball that flies between two walls, seen through noise: segments of one slope (Ansari et al. 2021, RED-SDS)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.data import segments
from pyro_hrssm.errors import require


def generate(
    num: int, seed: int, *, num_frames: int = 100, width: float = 10.0, speed: float = 0.5, noise: float = 0.1
) -> dict[str, NDArray[Any]]:
    """The position of one ball in one dimension, which walls at 0 and `width` reflect without loss.

    A segment is a flight in one direction. The ball starts anywhere between the walls, with a velocity that is uniform
    within ±`speed` and whose size never changes. The mean of a flight says nothing of its direction, so that no method
    that looks at means sees a bounce. No segment ends with the last frame, so its boundary is 0.

    Args:
        num: number of sequences N.
        seed: seed of all draws.
        num_frames: number of frames T.
        width: distance between the walls.
        speed: largest distance per frame, less than `width`, so that no ball bounces twice between two frames.
        noise: standard deviation of the noise on every observed position.

    Returns:
        `frames` float32 [N, T, 1], `boundaries` bool [N, T], True where the next frame sees the ball fly the other way,
        and `labels` int64 [N, T], the direction of flight: 0 towards the wall at 0, 1 away from it.

    Raises:
        InputError: where a parameter is out of its range.
    """
    segments.check(num, seed, num_frames)
    require(0 < width < np.inf, f"width must be positive and finite, found {width}")
    require(0 < speed < width, f"speed must lie between 0 and the width {width}, found {speed}")
    require(0 <= noise < np.inf, f"noise must be at least 0 and finite, found {noise}")
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, width, (num, 1))
    velocity = rng.uniform(-speed, speed, (num, 1))
    # Unfolded, the flight is a straight line; every second room between the walls is a mirror image.
    unfolded = np.mod(start + velocity * np.arange(num_frames), 2 * width)
    mirrored = unfolded > width
    position = np.where(mirrored, 2 * width - unfolded, unfolded)
    labels = ((velocity > 0) ^ mirrored).astype(np.int64)
    observed = position + noise * rng.standard_normal(position.shape)
    return {"frames": observed[..., None].astype(np.float32), "boundaries": segments.changes(labels), "labels": labels}
