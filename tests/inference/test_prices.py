"""The moving price of a boundary."""

import pytest

from pyro_hrssm.inference.prices import Judged, RateControl


def test_a_held_rate_does_not_wind_up() -> None:
    """Once the rate is right, a price that could not reach it before is back within the memory of a few steps."""
    held = RateControl(0.1, 0.0)
    for _ in range(2000):
        held.step(Judged(9, 10, 4000.0, 4))  # the spread of the first steps, and boundaries that nothing closes
    assert held.state[0] == pytest.approx(RateControl.MOST * 1001)
    held.step(Judged(1, 10, 4.0, 4))
    assert held.cost <= RateControl.MOST * 2


def test_where_all_sequences_explore_a_held_rate_learns_nothing() -> None:
    held = RateControl(0.1, 2.0)
    held.step(Judged(0, 0, 0.0, 0))
    assert held.state == [2.0, 2.0]
