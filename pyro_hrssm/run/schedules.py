"""Schedules of training: functions of the step, so that a resumed run needs no state for them."""

from __future__ import annotations

import math

from pyro_hrssm.config import TrainingConfig


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


def kl_weight(config: TrainingConfig, step: int) -> float:
    """Weight of the latent terms: linear increase to 1 over `kl_warmup_steps`."""
    return min(1.0, (step + 1) / config.kl_warmup_steps) if config.kl_warmup_steps > 0 else 1.0
