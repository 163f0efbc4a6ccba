"""The price of a boundary in the eyes of q(M), in nats, where training moves it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pyro_hrssm.config import LeaveOneOut


class Judged(NamedTuple):
    """How the draws of the last step judged boundaries."""

    rate: float
    """Boundaries drawn per frame that could have one."""
    spread: float
    """Mean absolute deviation of a sequence's log weights from the mean over its draws, in nats."""
    noise: float
    """Mean absolute advantage of a boundary, in nats."""


class Price(Protocol):
    """A price that follows what each step's draws say."""

    state: list[float]
    """The numbers that a checkpoint keeps."""

    @property
    def cost(self) -> float:
        """The price in force, in nats."""

    def step(self, judged: Judged) -> None:
        """Update the price after a step."""


def price(config: LeaveOneOut) -> Price | None:
    """The moving price that a configuration asks for, if any."""
    if config.boundary_rate is not None:
        return RateControl(config.boundary_rate, config.boundary_cost)
    return NoisePrice(config.boundary_price) if config.boundary_price > 0 else None


class NoisePrice:
    """A price in proportion to the noise of the judgement: boundaries stay whose gain stands out from chance.

    The gain of a boundary is an estimate from few draws, in nats that grow with the number of entries in a frame and
    shrink as the model learns. The mean absolute advantage measures both, so that one `multiple` serves all data.

    Arguments:
        multiple: the price in units of the mean absolute advantage.
    """

    MEMORY = 0.98
    """Share of the average that stays at every step: it goes back some 50 steps."""

    def __init__(self, multiple: float) -> None:
        self.multiple = multiple
        self.state = [0.0, 0.0]  # average noise so far, and the weight of the steps in it

    @property
    def cost(self) -> float:
        """The price in force, in nats."""
        average, weight = self.state
        return self.multiple * average / weight if weight > 0 else 0.0

    def step(self, judged: Judged) -> None:
        """Take the last step's noise into the average."""
        average, weight = self.state
        new = 1 - self.MEMORY
        self.state = [self.MEMORY * average + new * judged.noise, self.MEMORY * weight + new]


class RateControl:
    """Adjusts the cost of a boundary so that q(M) draws `target` boundaries per frame on average.

    The cost follows dual ascent plus a part proportional to the last error, without which the two integrators in a
    row, cost and log odds, would oscillate. Errors are scaled by the spread of the log weights, which is the worth of a
    boundary on the data at hand, plus 1 nat, so that the cost still moves where all draws are alike. The settled cost
    stays within a few spreads: beyond, it would move no boundary, and only have to come back.

    Arguments:
        target: number of boundaries per frame that could have one, between 0 and 1.
        settled: the initial cost, in nats.
    """

    GAIN = 0.03
    """Share of the spread by which the settled cost would move in a step if every frame had one boundary too many."""
    DAMPING = 2.0
    """Share of the spread that the cost in force would then add to the settled cost."""
    MOST = 3.0
    """The largest settled cost, in spreads."""

    def __init__(self, target: float, settled: float) -> None:
        self.target = target
        self.state = [settled, settled]  # the settled cost, and the one in force

    @property
    def cost(self) -> float:
        """The cost in force, in nats."""
        return self.state[1]

    def step(self, judged: Judged) -> None:
        """Update the cost from the last step's boundary rate and spread of log weights."""
        scale = 1 + judged.spread
        error = scale * (judged.rate - self.target)
        most = self.MOST * scale
        settled = min(most, max(-most, self.state[0] + self.GAIN * error))
        self.state = [settled, settled + self.DAMPING * error]
