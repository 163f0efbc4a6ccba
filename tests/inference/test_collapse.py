"""What is said of segments that cannot mean anything."""

import dataclasses

import pytest

from pyro_hrssm.inference.evaluation import Evaluation, collapse

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
