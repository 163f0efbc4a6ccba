"""Animations: every frame is in the file, and long sequences cost no more memory than short ones."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import frames
from PIL import Image

from pyro_hrssm.errors import InputError
from pyro_hrssm.reports import animation, figures


def test_animation(tmp_path: Path) -> None:
    film = np.zeros((5, 8, 8))
    for t in range(5):
        film[t, t] = 1
    for given_frames, width, length in (
        (film, 128, 5),
        (list(film), 128, 5),
        ([film, film[:3]], 128 * 2 + 16, 5),
        (np.repeat(film[..., None], 3, -1), 128, 5),
        (film[:1], 128, 1),
    ):
        animation.animate(given_frames, str(tmp_path / "film.gif"), fps=10)
        with Image.open(tmp_path / "film.gif") as image:
            assert image.format == "GIF"
            assert image.size == (width, 128)
            assert getattr(image, "n_frames", 1) == length
            for t in range(length):
                image.seek(t)
                assert length == 1 or image.info["duration"] == 100  # milliseconds
                np.testing.assert_array_equal(np.asarray(image.convert("L"))[8::16, 8:128:16], 255 * film[t])


def test_rows_are_drawn_line_by_line(tmp_path: Path) -> None:
    for length, pictures, step in ((5, 5, 1), (300, 100, 3)):
        x = 0.5 + 0.5 * frames(2, length, (9,))
        animation.unroll(x, tmp_path / "film.gif", min_height=1)
        with Image.open(tmp_path / "film.gif") as image:
            assert image.n_frames == pictures
            gap = max(1, length // 16)
            assert image.size == (2 * 9 + gap, length)
            for number in (0, 1, pictures - 1):
                image.seek(number)
                shown = np.asarray(image.convert("L"))[:, 9 + gap :] / 255
                until = (number + 1) * step
                np.testing.assert_allclose(shown[:until], x[1, :until], atol=0.02)  # a palette of 256 colours
                assert (shown[until:] < 0.02).all()


@pytest.mark.parametrize(
    ("length", "shape", "count", "said"),
    [
        (1000, (3,), 120, "first 600 of 1000 frames"),
        (500, (4, 4), 240, "first 240 of 500 frames"),
        (9, (600, 8, 3), 9, "one pixel in 3, down and across"),
        (9, (12,), 9, ""),
    ],
)
def test_of_long_sequences_the_first_frames_are_shown(
    length: int, shape: tuple[int, ...], count: int, said: str, tmp_path: Path
) -> None:
    tracemalloc.start()
    assert figures.animate(torch.rand(8, length, *shape), tmp_path / "film.gif") == said
    assert tracemalloc.get_traced_memory()[1] < 200e6, "it took 7.3 GiB for 1,000 vectors"
    tracemalloc.stop()
    with Image.open(tmp_path / "film.gif") as image:
        assert image.n_frames == count


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: animation.animate(np.ones((2, 3, 4, 5)), Path("film.gif")), "frames must have shape"),
        (lambda: animation.animate([np.ones((2, 3, 4)), np.ones((2, 5, 4))], Path("film.gif")), "one height"),
        (lambda: animation.animate([], Path("film.gif")), "at least one sequence"),
        (lambda: animation.animate(np.ones((2, 3, 4)), Path("film.gif"), fps=0), "fps must be"),
        (lambda: animation.unroll(np.ones((2, 3)), Path("film.gif")), "B, T, X"),
    ],
)
def test_wrong_inputs(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
