"""The settings of a run, as far as they depend on its data."""

from typing import Any

import numpy as np
import pytest

from pyro_hrssm import HRSSMConfig
from pyro_hrssm.data import Scaling, Sequences, Splits
from pyro_hrssm.errors import InputError
from pyro_hrssm.run.settings import Settings


def splits_of(num_frames: int) -> Splits:
    sequences = Sequences(np.zeros((2, num_frames, 3), np.float32))
    return Splits(sequences, sequences, "mine", "normal", Scaling())


@pytest.mark.parametrize(
    ("num_frames", "fields", "covered"),
    [
        (12, {}, None),
        (13, {}, (12, 13)),
        (15, {"context": 3}, None),
        (16, {"context": 3}, (12, 13)),
        (13, {"max_segments": None}, None),
        (13, {"max_length": None}, None),
        (13, {"model": "rssm"}, None),
        (20, {"window": 12}, None),  # past the window, the number of segments has no limit
        (20, {"window": 14}, (12, 14)),
        (12, {"window": 30}, None),
        (13, {"window": 30}, (12, 13)),
        (13, {"min_length": 4}, (12, 13)),
    ],
)
def test_limits_that_cannot_cover_the_frames_are_named(
    num_frames: int, fields: dict[str, Any], covered: tuple[int, int] | None
) -> None:
    splits = splits_of(num_frames)
    said = Settings(HRSSMConfig(**({"max_segments": 3, "max_length": 4} | fields))).fitted(splits).uncovered(splits)
    if covered is None:
        assert said is None
    else:
        assert said is not None
        assert said.startswith(f"max_segments 3 and max_length 4 cover {covered[0]} of {covered[1]} frames: ")


def test_settings_take_shape_window_and_likelihood_from_the_data() -> None:
    fitted = Settings(HRSSMConfig(context=2)).fitted(splits_of(7)).model
    assert (fitted.frame_shape, fitted.window, fitted.likelihood) == ((3,), 5, "normal")
    kept = Settings(HRSSMConfig(window=4, likelihood="bernoulli")).fitted(splits_of(7)).model
    assert (kept.window, kept.likelihood) == (4, "bernoulli")
    with pytest.raises(InputError, match=r"^context 7 leaves no frame of 7 to model$"):
        Settings(HRSSMConfig(context=7)).fitted(splits_of(7))


@pytest.mark.parametrize(("context", "ended"), [(0, None), (1, "2 of 8"), (2, "4 of 8"), (4, "6 of 8")])
def test_sequences_that_end_within_the_context_are_counted(context: int, ended: str | None) -> None:
    mask = np.arange(5) < np.array([[5], [4], [2], [1]])
    mask[0, 2] = False  # missing, and no end
    sequences = Sequences(np.zeros((4, 5, 3), np.float32), mask)
    splits = Splits(sequences, sequences, "mine", "normal", Scaling())
    said = Settings(HRSSMConfig(context=context)).unmodelled(splits)
    frames = f"{context} frames"
    assert said == (ended and f"{ended} sequences end within the context of {frames}: they say nothing")
