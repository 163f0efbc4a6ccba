from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyro_hrssm.data.axes import as_frames, doubt
from pyro_hrssm.errors import InputError

AMBIGUOUS = [
    (3000, 4),
    (20, 500),
    (10, 9, 7, 2),  # points
    (10, 9, 2, 7),
    (10, 9, 17, 3),
    (64, 32, 32, 3),  # a video, or images without time
    (5, 8, 8, 1),
    (10, 3, 32, 32),  # a video with channels first
    (2, 4, 4, 2),
    (10, 9, 3, 32, 32),  # channels first
    (10, 9, 1, 28, 28),
]


@pytest.mark.parametrize("shape", AMBIGUOUS)
def test_a_shape_of_two_meanings_is_refused_and_every_way_out_works(shape: tuple[int, ...]) -> None:
    """The expressions of the message are run as they stand, and what they give is read."""
    frames = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    with pytest.raises(InputError) as raised:
        as_frames(frames)
    message = str(raised.value)
    assert f"frames may mean two things, found shape {list(shape)}: store" in message
    ways = [way.split(" for ")[0] for way in message.split(": store ")[1].split(", or ")]
    assert len(ways) == message.count(" for ") >= 2
    read = [as_frames(eval(way, {"np": np, "frames": frames})) for way in ways]
    assert all(found.ndim in (3, 5) and found.size == frames.size for found in read)
    assert len({found.shape for found in read}) == len(ways)


@pytest.mark.parametrize("shape", [(5, 4, 3), (40, 28, 28), (5, 4, 2, 4, 3), (10, 9, 8, 6), (10, 9, 64, 64, 10)])
def test_a_shape_of_one_meaning_is_read(shape: tuple[int, ...]) -> None:
    frames = np.zeros(shape)
    assert as_frames(frames).shape == shape + ((1,) if len(shape) == 4 else ())


@pytest.mark.parametrize(("shape", "read"), [((30, 4), (30, 4, 1)), ((10, 3, 32, 32), (10, 3, 32, 32, 1))])
def test_what_lies_beside_frames_settles_their_first_axes(shape: tuple[int, ...], read: tuple[int, ...]) -> None:
    assert as_frames(np.zeros(shape), settled=True).shape == read
    with pytest.raises(InputError, match="two things"):  # points stay points, whatever lies beside them
        as_frames(np.zeros((10, 9, 7, 2)), settled=True)


@pytest.mark.parametrize(
    ("shape", "known"), [((30, 4), (1,)), ((10, 9, 7, 2), (7, 2, 1)), ((10, 9, 3, 32, 32), (3, 32, 32))]
)
def test_a_trained_model_settles_what_its_frames_are(shape: tuple[int, ...], known: tuple[int, ...]) -> None:
    assert as_frames(np.zeros(shape), known=known).shape == (*shape[:2], *known)
    with pytest.raises(InputError, match="two things"):
        as_frames(np.zeros(shape), known=(5,))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3, object), "train must be booleans, integers or floats, found object; pad"),
        (np.zeros(3), "train must have shape"),
        (np.zeros((3, 1, 2)), "at least 2 frames, found 1"),
        (np.zeros((3, 4)), r"store train\[..., None\] for 3 sequences of 4 numbers"),
    ],
)
def test_messages_name_the_array(array: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_frames(array, name="train")


def test_few_frames_of_many_entries_are_doubted() -> None:
    assert "np.swapaxes(frames, 1, 2)" in str(doubt(3, (500,)))
    assert doubt(5, (500,)) is doubt(3, (4,)) is doubt(3, (16, 16, 1)) is None
