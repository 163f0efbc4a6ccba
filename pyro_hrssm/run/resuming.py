"""What a resumed run cannot change: the settings to which its weights and its history are bound."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from pyro_hrssm.checkpoint import Checkpoint
from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.errors import InputError, found
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.run.settings import Settings


def check_unchanged(settings: Settings, run: Path, begun: Checkpoint) -> None:
    """Raise :class:`InputError` where settings differ from a run's own that its checkpoint does not fit.

    A run without a checkpoint starts over, and may change anything.

    Arguments:
        settings: what the command asks for.
        run: the run's folder, for the message.
        begun: the checkpoint from which it goes on.
    """
    if not begun.tensors:
        return
    own = Settings.of(begun.record)
    changed = [
        f"{name} is {found(getattr(own.model, name))} there, found {found(getattr(settings.model, name))}"
        for name in _bound(own.model, settings.model)
    ]
    rates = (own.training.leave_one_out.boundary_rate, settings.training.leave_one_out.boundary_rate)
    if rates[0] is None and rates[1] is not None:
        changed.append(f"boundary_rate is None there, found {found(rates[1])}")
    if settings.dataset.scaling != own.dataset.scaling:
        changed.append(f"scaling is {own.dataset.scaling} there, found {settings.dataset.scaling}")
    if settings.training.restarts > 1:
        changed.append(f"restarts are over, found {found(settings.training.restarts)}")
    if changed:
        raise InputError(
            f"{run} goes on with the weights of step {begun.step}, to which these settings are bound: "
            f"{'; '.join(changed)}; train another run (--out) to change them"
        )


def _bound(own: HRSSMConfig, asked: HRSSMConfig) -> list[str]:
    """Names of the settings that differ and each change the names or shapes of a model's parameters."""
    names = [field.name for field in dataclasses.fields(own) if getattr(own, field.name) != getattr(asked, field.name)]
    return [name for name in names if _shapes(_with(own, asked, name)) != _shapes(own)]


def _with(own: HRSSMConfig, asked: HRSSMConfig, name: str) -> HRSSMConfig:
    try:
        return dataclasses.replace(own, **{name: getattr(asked, name)})
    except InputError:  # two limits that are right together alone; none of them changes a shape
        return own


def _shapes(config: HRSSMConfig) -> dict[str, torch.Size]:
    """The shape of every parameter, without memory for any."""
    with torch.device("meta"):
        return {name: value.shape for name, value in StateSpaceModel.build(config).state_dict().items()}
