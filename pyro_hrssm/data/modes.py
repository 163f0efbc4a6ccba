"""A rotating linear system that is observed through one of several modes at a time (Ansari et al. 2021, RED-SDS).

The paper gives the number of modes, how long they last, the noise and the number of frames; the system's angle, its own
noise and the modes' matrices are ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.data import segments
from pyro_hrssm.errors import require

MOST_MODES = 100


def generate(
    num: int,
    seed: int,
    *,
    num_frames: int = 200,
    num_modes: int = 3,
    min_length: int = 5,
    max_length: int = 20,
    noise: float = 0.2,
    angle: float = 0.3,
    drift: float = 0.05,
    mode_seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """`y_t = C[k] x_t + noise · ε` within a segment, whose length is uniform, and k any mode but the one before.

    The state x, of two entries, rotates through all segments without a break:
    `x_t = √(1 - drift²) R(angle) x_{t-1} + drift · ε`, which keeps the variance of its entries at 1. The matrix C[k]
    [2, 2] of a mode has independent entries from N(0, 1). Modes differ in how the two sensors move, not in their means.
    Every sequence opens a segment with its first frame. No segment ends with the last frame, so its boundary is 0.

    Args:
        num: number of sequences N.
        seed: seed of all draws but those of the modes.
        num_frames: number of frames T.
        num_modes: number of modes K, from 2 to 100.
        min_length: shortest segment, in frames.
        max_length: longest segment, in frames.
        noise: standard deviation of the noise of each sensor.
        angle: radians by which the state turns from frame to frame.
        drift: standard deviation of the state's own noise, from 0 to 1.
        mode_seed: seed of the modes' matrices: data sets of the same `mode_seed` share them.

    Returns:
        `frames` float32 [N, T, 2], `boundaries` bool [N, T] and `labels` int64 [N, T], the mode's number.

    Raises:
        InputError: where a parameter is out of its range.
    """
    segments.check(num, seed, num_frames)
    require(2 <= num_modes <= MOST_MODES, f"num_modes must lie between 2 and {MOST_MODES}, found {num_modes}")
    segments.check_lengths(min_length, max_length)
    require(0 <= noise < np.inf, f"noise must be at least 0 and finite, found {noise}")
    require(bool(np.isfinite(angle)), f"angle must be finite, found {angle}")
    require(0 <= drift <= 1, f"drift must lie between 0 and 1, found {drift}")
    require(0 <= mode_seed < 2**32, f"mode_seed must lie between 0 and 2**32 - 1, found {mode_seed}")
    rng = np.random.default_rng(seed)
    boundaries = segments.draw_boundaries(rng, (num, num_frames), min_length, max_length)
    labels = segments.draw_states(rng, boundaries, segments.any_other(num_modes))
    # The older generator: unlike the draws of `default_rng`, numpy promises never to change its own.
    matrices = np.random.RandomState(mode_seed).standard_normal((num_modes, 2, 2))
    states = _rotate(rng, (num, num_frames), angle, drift)
    seen = np.einsum("ntij,ntj->nti", matrices[labels], states)
    frames = seen + noise * rng.standard_normal(seen.shape)
    return {"frames": frames.astype(np.float32), "boundaries": boundaries, "labels": labels}


def _rotate(rng: np.random.Generator, shape: tuple[int, int], angle: float, drift: float) -> NDArray[np.float64]:
    """States [N, T, 2], which start in every direction at the distance √2 from 0."""
    num, num_frames = shape
    states = np.empty((num, num_frames, 2))
    start = rng.uniform(0, 2 * np.pi, num)
    states[:, 0] = np.sqrt(2) * np.stack([np.cos(start), np.sin(start)], -1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * np.sqrt(1 - drift**2)
    for t in range(1, num_frames):
        states[:, t] = states[:, t - 1] @ turn.T + drift * rng.standard_normal((num, 2))
    return states
