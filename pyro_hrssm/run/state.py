"""Checkpoints of a training under way: writing one, and restoring a trainer from one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_hrssm import checkpoint
from pyro_hrssm.errors import InputError, one_line
from pyro_hrssm.run.best import Best
from pyro_hrssm.run.diagnosis import not_finite
from pyro_hrssm.run.process import random_states, set_random_states
from pyro_hrssm.run.schedules import settled

if TYPE_CHECKING:
    from pyro_hrssm.run.training import Trainer


def write(trainer: Trainer, random: list[dict[str, Tensor]]) -> None:
    """Write a checkpoint; a NaN or an infinity in it raises :class:`TrainingError`.

    Arguments:
        random: the result of :func:`own_random` of every process.
    """
    tensors = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
    tensors |= {f"optimiser.{name}": value for name, value in trainer.optimiser.tensors().items()}
    if trainer.rate is not None:
        tensors["boundary_cost"] = torch.tensor(trainer.rate.state, dtype=torch.float64)
    tensors |= trainer.best.tensors()
    for states in random:
        tensors |= states
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise not_finite(trainer.step, f"tensor {name}")
    loaded = checkpoint.Checkpoint(trainer.step, tensors, trainer.record)
    checkpoint.save(trainer.run, loaded, trainer.config.keep_checkpoints, trainer.kept_best)


def restore(trainer: Trainer, loaded: checkpoint.Checkpoint) -> bool:
    """Restore weights, moments, the cost of a boundary, the best evaluation and this process's random states.

    Returns whether the checkpoint has random states of this process, since fewer processes may have written it.
    """
    trainer.model.load_weights(loaded)
    trainer.optimiser.restore(checkpoint.with_prefix(loaded.tensors, "optimiser."), loaded.step)
    _restore_rate(trainer, loaded)
    _restore_best(trainer, loaded)
    random = checkpoint.with_prefix(loaded.tensors, "random.")
    own = {name: random[_own(trainer, name)] for name in ("cpu", "cuda") if _own(trainer, name) in random}
    if not trainer.processes.leads and not own:
        return False
    try:
        set_random_states(own, trainer.device)
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"checkpoint: random.cpu must be a generator's state, found {one_line(error)}") from error
    return True


def own_random(trainer: Trainer) -> dict[str, Tensor]:
    """This process's random states under the names that a checkpoint gives them."""
    return {f"random.{_own(trainer, name)}": state for name, state in random_states(trainer.device).items()}


def _own(trainer: Trainer, name: str) -> str:
    """The name under which a checkpoint keeps this process's random state."""
    return name if trainer.processes.leads else f"{name}.{trainer.processes.rank}"


def _restore_best(trainer: Trainer, loaded: checkpoint.Checkpoint) -> None:
    """Restore the best evaluation, unless the objective has changed since by other settings, or its checkpoint is gone.

    It is gone where newer checkpoints are damaged, and the run goes on before the one that had replaced it.
    """
    best = Best.of(loaded)
    kept = trainer.processes.on_first(lambda: checkpoint.path_of(trainer.run, best.step).exists())
    known = best.step > settled(trainer.config) and (kept or not trainer.config.keep_best)
    trainer.best = best if known else Best()


def _restore_rate(trainer: Trainer, loaded: checkpoint.Checkpoint) -> None:
    if trainer.rate is not None:
        like = {"boundary_cost": torch.zeros(2, dtype=torch.float64)}
        checkpoint.check_tensors("checkpoint: the cost that boundaries had reached", loaded.tensors, like)
        trainer.rate.state = loaded.tensors["boundary_cost"].tolist()
