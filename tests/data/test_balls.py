from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import balls
from pyro_hrssm.data.balls import PALETTE, generate
from pyro_hrssm.errors import InputError


def shares(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Number of pixels [N, T, 6] in each pure colour of the palette, without the soft edges."""
    pixels = frames.reshape(*frames.shape[:2], -1, 1, 3)
    return (pixels == np.rint(255 * PALETTE)).all(-1).sum(2)


def test_boundaries_of_one_ball_are_changes_of_its_colour() -> None:
    data = generate(100, 0, num_balls=1, num_frames=20)
    frames, boundaries = data["frames"], data["boundaries"]
    assert (frames.shape, frames.dtype, boundaries.dtype) == ((100, 20, 32, 32, 3), np.uint8, bool)
    seen = shares(frames)
    assert ((seen > 0).sum(-1) == 1).all()  # one ball, one colour
    colour = seen.argmax(-1)
    np.testing.assert_array_equal(boundaries[:, :-1], colour[:, 1:] != colour[:, :-1])
    assert not boundaries[:, -1].any()


def test_boundaries_of_two_balls() -> None:
    data = generate(100, 1)
    seen = shares(data["frames"])
    area = seen.sum(-1)
    apart = (data["frames"] > 0).any(-1).sum((2, 3)) >= area.max() + 40  # both discs whole, with their edges
    both = apart[:, 1:] & apart[:, :-1]
    assert both.mean() > 0.5
    # A disc of 4 pixels' radius has some 40 pure ones, a few more or less as it moves: 20 are a new colour.
    changed = abs(seen[:, 1:] - seen[:, :-1]).max(-1) > 20
    boundaries = data["boundaries"][:, :-1]
    assert (boundaries | ~changed)[both].all()
    swapped = boundaries & ~changed & both  # both balls hit a wall and exchanged their colours
    assert swapped.sum() <= 2


def test_colours_change_at_the_walls_only() -> None:
    data = generate(50, 2, num_balls=1, image_size=64, num_frames=30)
    covered = (data["frames"] > 0).any(-1)
    margins = np.stack(
        [covered.any(axis=axis).argmax(-1) for axis in (2, 3)]
        + [covered.any(axis=axis)[..., ::-1].argmax(-1) for axis in (2, 3)]
    )
    nearest = margins.min(0) / 64  # from the ball to the nearest wall
    boundaries = data["boundaries"][:, :-1]
    step, pixel = 0.055, 1 / 64
    # The ball reaches the wall within one step; soft edges and whole pixels blur that by 2.
    assert (np.minimum(nearest[:, :-1], nearest[:, 1:])[boundaries] <= step + 2 * pixel).all()
    assert (nearest >= 0).all()


def test_discs_have_their_area_and_place() -> None:
    data = generate(20, 0, num_balls=1, image_size=48, radius=0.2)
    coverage = data["frames"].max(-1) / 255
    # Soft edges: within a pixel of the true area.
    np.testing.assert_allclose(coverage.sum((2, 3)), np.pi * (0.2 * 48) ** 2, atol=1.0)
    edges = [coverage[:, :, 0], coverage[:, :, -1], coverage[..., 0], coverage[..., -1]]
    assert max(edge.max() for edge in edges) <= 1


def test_balls_keep_their_speed_and_turn_a_little() -> None:
    centres, hits = balls._move(np.random.default_rng(0), (200, 2, 25), 0.13, 0.055, 0.05)
    assert centres.min() >= 0.13
    assert centres.max() <= 0.87
    steps = np.diff(centres, axis=2)
    free = ~hits[:, :, 1:]
    np.testing.assert_allclose(np.linalg.norm(steps, axis=-1)[free], 0.055, rtol=1e-9)
    straight = free[:, :, 1:] & free[:, :, :-1] & ~hits[:, :, :-2]
    turns = np.linalg.norm(np.diff(steps, axis=2), axis=-1)[straight] / 0.055
    # A direction's change is the noise across it: |N(0, 0.05)| has mean 0.04.
    assert 0.035 < turns.mean() < 0.045


def test_no_jitter_goes_straight() -> None:
    centres, hits = balls._move(np.random.default_rng(0), (50, 1, 20), 0.1, 0.02, 0.0)
    turns = np.diff(centres, n=2, axis=2)
    free = ~(hits[:, :, 2:] | hits[:, :, 1:-1])
    np.testing.assert_allclose(turns[free], 0, atol=1e-12)


def test_boundaries_come_every_few_frames() -> None:
    rate = generate(300, 0, image_size=1)["boundaries"][:, :-1].mean()
    assert 1 / 7 < rate < 1 / 4


def test_later_balls_cover_earlier_ones() -> None:
    centres = np.full((1, 2, 2, 2), 0.5)
    frames = balls._render(centres, np.array([[[0, 1], [2, 2]]]), 8, 0.3)
    assert (frames[..., :2] <= 64).all()  # at most a soft edge of the ball below
    assert frames[0, 0, 4, 4].tolist() == [0, 0, 255]


def test_rendering_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generate(4, 3)["frames"]
    monkeypatch.setattr(balls, "CHUNK_FRAMES", 7)
    np.testing.assert_array_equal(generate(4, 3)["frames"], whole)


def test_seeds() -> None:
    one, same, other = (generate(3, seed)["frames"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balls, "DEFAULT_NUM", 20)
    splits = balls.load(DataConfig())
    assert (len(splits.train), len(splits.held_out), splits.train.num_frames) == (18, 2, 25)
    assert (splits.name, splits.likelihood, splits.train.frame_shape) == ("balls", "bernoulli", (32, 32, 3))
    batch = splits.train.batch([0, 1])
    assert (batch.frames.min(), batch.frames.max()) == (0, 1)
    assert batch.boundaries is not None


@pytest.mark.parametrize(
    "parameters",
    [
        {"num": 0},
        {"seed": -1},
        {"num_frames": 1},
        {"image_size": 0},
        {"num_balls": 0},
        {"radius": 0.0},
        {"radius": 0.5},
        {"speed": 0.0},
        {"speed": 0.8},
        {"speed": float("nan")},
        {"jitter": -0.1},
        {"jitter": float("inf")},
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must"):
        generate(**{"num": 2, "seed": 0, **parameters})
