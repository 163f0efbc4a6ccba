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


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("given", [{"gaps": np.array([0, 3])}, {"weights": np.ones((2, 7))}])
def test_the_encoder_is_told_of_entries_where_they_are_missing_or_weighted(part: int, given: dict[str, Any]) -> None:
    whole, gaps = (Sequences(np.zeros((2, 7, 3), np.float32), **how) for how in ({}, given))
    complete = splits_of(7)
    partly = complete._replace(**{("train", "held_out")[part]: gaps})
    assert not Settings().fitted(complete).model.entry_flags
    assert Settings().fitted(partly).model.entry_flags
    assert Settings().fitted(partly).unflagged(partly) is None
    # The weights of a run under way fit one encoder.
    begun = Settings().fitted(partly, bound=True)
    assert not begun.model.entry_flags
    assert "its encoder takes a missing entry for one that reads 0" in (begun.unflagged(partly) or "")
    assert begun.unflagged(complete) is None
    assert Settings(HRSSMConfig(entry_flags=True)).fitted(complete, bound=True).model.entry_flags
    assert not whole.has_entries


def test_weights_are_refused_where_the_data_suit_a_bernoulli_emission() -> None:
    weighted = Sequences(np.zeros((2, 7, 3), np.uint8), weights=np.ones((2, 7)))
    splits = Splits(weighted, weighted, "mine", "bernoulli", Scaling())
    with pytest.raises(InputError, match=r"weights need likelihood normal, .* --likelihood normal takes any"):
        Settings().fitted(splits)
    assert Settings(HRSSMConfig(likelihood="normal")).fitted(splits).model.likelihood == "normal"


@pytest.mark.parametrize(("context", "ended"), [(0, None), (1, "2 of 8"), (2, "4 of 8"), (4, "6 of 8")])
def test_sequences_that_end_within_the_context_are_counted(context: int, ended: str | None) -> None:
    mask = np.arange(5) < np.array([[5], [4], [2], [1]])
    mask[0, 2] = False  # missing, and no end
    sequences = Sequences(np.zeros((4, 5, 3), np.float32), mask)
    splits = Splits(sequences, sequences, "mine", "normal", Scaling())
    said = Settings(HRSSMConfig(context=context)).unmodelled(splits)
    frames = f"{context} frames"
    assert said == (ended and f"{ended} sequences end within the context of {frames}: they say nothing")
