"""What is said of segments that cannot mean anything, and of sequences known by heart."""

import dataclasses
import math

import pytest

from pyro_hrssm.inference.doubts import collapse, doubts, overfit, unsure
from pyro_hrssm.inference.evaluation import Evaluation

SCORES = Evaluation(1.0, 0.1, 0.9, 20, 0.1, {}, 0.2, 0.0, 5.0, 100)


@pytest.mark.parametrize(
    ("rate", "said"),
    [(0.9, "a segment ends with 90 % of the frames"), (0.0002, "hardly any sequence has a second segment")],
)
def test_segments_that_end_always_or_never_are_told(rate: float, said: str) -> None:
    text = collapse(dataclasses.replace(SCORES, boundary_rate=rate))
    assert text is not None
    assert text.startswith(said)
    assert "--boundary-rate" in text


def test_of_other_segments_nothing_is_said() -> None:
    assert collapse(SCORES) is None
    assert collapse(dataclasses.replace(SCORES, boundary_rate=0.01)) is None


def test_boundaries_that_the_model_is_not_sure_of_are_told() -> None:
    scores = dataclasses.replace(SCORES, boundary_agreement=0.34)
    assert doubts(scores, has_segments=True, passes=1)[0].startswith("two draws of boundaries share 34 % of them")
    assert doubts(scores, has_segments=False, passes=1) == []
    assert unsure(dataclasses.replace(SCORES, boundary_agreement=0.85)) is None
    assert unsure(SCORES) is None
    everywhere = dataclasses.replace(scores, boundary_rate=0.9)  # one line about the same segments is enough
    assert len(doubts(everywhere, has_segments=True, passes=1)) == 1


@pytest.mark.parametrize(
    ("seen", "error", "per_frame"),
    [
        (20.0, 5.0, "8.0"),
        (20.0, math.nan, "8.0"),
        (89.0, 1.0, "1.1"),
        (95.0, 1.0, None),
        (20.0, 60.0, None),
        (120.0, 1.0, None),
    ],
)
def test_a_bound_that_is_far_better_in_training_is_told(seen: float, error: float, per_frame: str | None) -> None:
    # 100 nats per sequence of 10 frames
    scores = dataclasses.replace(
        SCORES,
        nats_per_sequence=100.0,
        nats_per_frame=10.0,
        nats_standard_error=error,
        training_nats_per_sequence=seen,
    )
    text = overfit(scores, 10)
    assert (text is None) == (per_frame is None)
    assert text is None or text.startswith(f"a held-out frame costs {per_frame} nats more than one trained on")
    assert doubts(scores, has_segments=False, passes=10) == ([] if text is None else [text])


def test_a_negative_bound_has_a_gap_too() -> None:
    scores = dataclasses.replace(
        SCORES, nats_per_sequence=-50.0, nats_per_frame=-5.0, training_nats_per_sequence=-100.0
    )
    assert (overfit(scores, 10) or "").startswith("a held-out frame costs 5.0 nats more")
    assert overfit(scores, 9) is None  # too early
    assert overfit(SCORES, 10) is None  # not measured
