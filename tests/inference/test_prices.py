"""The moving prices of a boundary."""

import pytest

from pyro_hrssm import LeaveOneOut
from pyro_hrssm.inference.prices import Judged, NoisePrice, RateControl, price


def test_a_price_of_noise_is_a_multiple_of_its_recent_mean() -> None:
    moving = NoisePrice(0.5)
    assert moving.cost == 0
    moving.step(Judged(0.2, 100.0, 4.0))
    assert moving.cost == pytest.approx(2.0)  # the first step is the whole average
    for _ in range(500):
        moving.step(Judged(0.2, 100.0, 1.0))
    assert moving.cost == pytest.approx(0.5, rel=1e-3)  # a memory of 50 steps


def test_a_held_rate_does_not_wind_up() -> None:
    """Once the rate is right, a price that could not reach it before is back within the memory of a few steps."""
    held = RateControl(0.1, 0.0)
    for _ in range(2000):
        held.step(Judged(0.9, 1000.0, 1.0))  # the spread of the first steps, and boundaries that nothing closes
    assert held.state[0] == pytest.approx(RateControl.MOST * 1001)
    held.step(Judged(0.1, 1.0, 1.0))
    assert held.cost <= RateControl.MOST * 2


def test_which_price_a_configuration_asks_for() -> None:
    assert price(LeaveOneOut()) is None
    held, noise = price(LeaveOneOut(boundary_rate=0.2, boundary_cost=3.0)), price(LeaveOneOut(boundary_price=0.4))
    assert isinstance(held, RateControl)
    assert (held.target, held.cost) == (0.2, 3.0)
    assert isinstance(noise, NoisePrice)
    assert noise.multiple == 0.4
