"""A price per boundary that training moves, so that q(M) draws as many boundaries as are asked for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Judged(NamedTuple):
    """How the draws of a step judged boundaries: sums, which several processes can add."""

    boundaries: float | Tensor
    """Number of boundaries that q(M) drew."""
    chances: float | Tensor
    """Number of frames that could have one."""
    deviations: float | Tensor
    """Absolute deviations of the rows' log weights from the mean over the draws of their sequence, in nats."""
    rows: float | Tensor
    """Number of rows: sequences times draws."""


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
        """Update the cost from the last step's boundary rate and spread of log weights, if q(M) drew any boundaries."""
        given = (self.state, [float(value) for value in judged])
        state, sums = (torch.tensor(values, dtype=torch.float64, device="cpu") for values in given)
        self.state = self.moved(state, sums).tolist()

    def moved(self, state: Tensor, judged: Tensor) -> Tensor:
        """The state [2] after a step, from the one before it: doubles on any device, for which the host does not wait.

        Arguments:
            judged: [4] doubles, the sums of :class:`Judged`.
        """
        boundaries, chances, deviations, rows = judged.unbind()
        scale = 1 + deviations / rows
        error = scale * (boundaries / chances - self.target)
        most = self.MOST * scale
        settled = torch.minimum(most, torch.maximum(-most, state[0] + self.GAIN * error))
        return torch.where(chances > 0, torch.stack([settled, settled + self.DAMPING * error]), state)
