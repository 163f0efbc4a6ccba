"""Schedules of training: functions of the step, so that a resumed run needs no state for them."""

from __future__ import annotations

import bisect
import math
from typing import NamedTuple

from torch import Tensor

from pyro_hrssm.config import TrainingConfig


class Scheduled(NamedTuple):
    """The values of all schedules at one step: numbers, or tensors that a step on the device reads them from."""

    learning_rate: float | Tensor
    temperature: float | Tensor
    kl_weight: float | Tensor
    state_weight: float | Tensor
    switch_gradient: float | Tensor
    exploration: float | Tensor
    learned_prior: float | Tensor

    @property
    def arguments(self) -> dict[str, float | Tensor]:
        """The values that `model` and `guide` take, by the names of their arguments."""
        return {name: getattr(self, name) for name in ("temperature", "kl_weight", "state_weight", "switch_gradient")}


def scheduled(config: TrainingConfig, step: int) -> Scheduled:
    """The values of all schedules at a step."""
    return Scheduled(
        learning_rate(config, step),
        temperature(config, step),
        kl_weight(config, step),
        state_weight(config, step),
        switch_gradient(config, step),
        exploration(config, step),
        learned_prior(config, step),
    )


def settled(config: TrainingConfig) -> int:
    """The first step from which on the objective stays the same to the last one.

    Its weights, the gradients of boundaries, how boundaries are drawn and what judges them have then reached their last
    values. The learning rate and the temperature move to the last step: no step would be left.
    """

    def asked(step: int) -> tuple[Scheduled, bool]:
        values = scheduled(config, step)._replace(learning_rate=0.0, temperature=0.0)
        return values, step >= config.leave_one_out.boundary_warmup_steps

    last = asked(config.steps - 1)
    # Every schedule is monotone, so that none leaves its last value again.
    return bisect.bisect_left(range(config.steps), True, key=lambda step: asked(step) == last)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Learning rate: linear increase over the warm-up, then half a cosine down to `final_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_learning_rate + share * (config.learning_rate - config.final_learning_rate)


def temperature(config: TrainingConfig, step: int) -> float:
    """Temperature of the boundaries: linear from `temperature_start` to `temperature_end`."""
    progress = min(1.0, step / max(1, config.steps - 1))
    return config.temperature_start + progress * (config.temperature_end - config.temperature_start)


def switch_gradient(config: TrainingConfig, step: int) -> float:
    """Share of a boundary's gradient in z's terms: 0, or a linear increase to 1 over `switch_warmup_steps`."""
    steps = config.switch_warmup_steps
    if steps is None:
        return 0.0
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0


def kl_weight(config: TrainingConfig, step: int) -> float:
    """Weight of the latent terms: linear increase to 1 over `kl_warmup_steps`."""
    return min(1.0, (step + 1) / config.kl_warmup_steps) if config.kl_warmup_steps > 0 else 1.0


def state_weight(config: TrainingConfig, step: int) -> float:
    """Weight of the terms of s: `state_weight`, and from 70 to 90 % of the steps linear to `final_state_weight`."""
    if config.final_state_weight is None:
        return config.state_weight
    share = _between(0.7, 0.9, step, config.steps)
    return config.state_weight + share * (config.final_state_weight - config.state_weight)


def exploration(config: TrainingConfig, step: int) -> float:
    """Share of the sequences whose boundaries are drawn at random rates: linear from 1 to 0."""
    until = config.leave_one_out.exploration
    return 1 - _between(0.0, until, step, config.steps) if until > 0 else 0.0


def learned_prior(config: TrainingConfig, step: int) -> float:
    """Share to which p(m) judges boundaries: 1, or where they have a price, from 0 to 1 over a tenth of the steps."""
    elbo = config.leave_one_out
    if elbo.boundary_price is None:
        return 1.0
    return _between(elbo.prior_from, elbo.prior_from + 0.1, step, config.steps)


def _between(start: float, end: float, step: int, steps: int) -> float:
    """0 up to the share `start` of all steps, 1 from `end` on, linear between."""
    return min(1.0, max(0.0, (step / steps - start) / (end - start)))
