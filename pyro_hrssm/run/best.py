"""The best held-out bound of a run, by which a checkpoint is kept and training may stop early."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_hrssm import checkpoint
from pyro_hrssm.config import TrainingConfig
from pyro_hrssm.run.schedules import settled


class Best(NamedTuple):
    """The best evaluation among those that count, and how many have followed it."""

    nats: float = math.inf
    """Its held-out bound, in nats per sequence."""
    step: int = 0
    """Its step; 0 before the first evaluation that counts."""
    waited: int = 0
    """Number of evaluations since, none of which was better."""

    def after(self, step: int, nats: float) -> Best:
        """The best evaluation once that of a further step has been taken."""
        return Best(nats, step) if nats < self.nats else self._replace(waited=self.waited + 1)

    @classmethod
    def of(cls, loaded: checkpoint.Checkpoint) -> Best:
        """The best evaluation before a checkpoint, as :func:`tensors` has noted it."""
        if checkpoint.BEST not in loaded.tensors:
            return cls()
        like = {checkpoint.BEST: torch.zeros(3, device="cpu")}
        checkpoint.check_tensors("checkpoint: the best evaluation", loaded.tensors, like)
        nats, step, waited = loaded.tensors[checkpoint.BEST].tolist()
        return cls(nats, int(step), int(waited))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {checkpoint.BEST: torch.tensor(self, dtype=torch.float64, device="cpu")} if self.step > 0 else {}


def counts(config: TrainingConfig, step: int) -> bool:
    """Whether the evaluation after so many steps is compared with others.

    It is where something asks for it, the objective has settled, and the run evaluates at this step however often it is
    interrupted.
    """
    regular = step == config.steps or (config.evaluate_every > 0 and step % config.evaluate_every == 0)
    return regular and step > settled(config) and (config.keep_best or config.patience is not None)


def idle(config: TrainingConfig) -> str | None:
    """A sentence that `patience` cannot stop a run of these settings; None if it can, or is not set."""
    if config.patience is None:
        return None
    start = settled(config)
    found = (config.steps - 1) // config.evaluate_every - start // config.evaluate_every
    if found > config.patience:
        return None
    return (
        f"patience {config.patience} stops nothing: it needs {config.patience + 1} evaluations between step {start}, "
        f"at which the objective's schedules end, and step {config.steps}, and evaluate_every {config.evaluate_every} "
        f"gives {found}"
    )


def told(best: Best, config: TrainingConfig, step: int, stopped_early: bool) -> list[str]:
    """Lines about the end of a training at this step: that it stopped early, and that an earlier step was better."""
    lines = []
    if stopped_early:
        lines.append(
            f"stopped early at step {step} of {config.steps}: {best.waited} evaluations in a row without a better "
            "held-out bound; train --resume with a larger --patience, or with None, goes on"
        )
    if 0 < best.step < step and config.keep_best:
        lines.append(
            f"the held-out bound was best at step {best.step}, {best.nats:.2f} nats per sequence: its checkpoint is "
            "kept, and commands on this run take it with --best"
        )
    return lines
