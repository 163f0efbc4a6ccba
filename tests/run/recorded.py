"""Tiny runs whose steps are recorded, and recorders for a CPU, where a recorded step is a Python function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_hrssm import HRSSMConfig, TrainingConfig
from pyro_hrssm.config import LeaveOneOut
from pyro_hrssm.data import Batch, Sequences
from pyro_hrssm.inference.graphed import REHEARSALS, Step
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.run.training import Trainer

TINY = HRSSMConfig(
    frame_shape=(3,), hidden=8, abstract_size=2, observation_size=2, max_segments=3, max_length=3, window=6
)
STEERED = LeaveOneOut(exploration=0.5, boundary_price=3.0, prior_from=0.6, boundary_rate=0.2, boundary_warmup_steps=3)
SETTINGS: dict[str, dict[str, Any]] = {
    "trace": {"kl_warmup_steps": 4, "switch_warmup_steps": 5},
    "leave_one_out": {"elbo": STEERED, "state_weight": 4.0, "final_state_weight": 1.0},
    "bf16": {"precision": "bf16"},
}


class Doubles(Sequences):
    """Sequences in double precision, in which sums in another order agree to many digits."""

    def batch(self, indices: Any) -> Batch:
        batch = super().batch(indices)
        return batch._replace(frames=batch.frames.double())


class SpoiltAt(Sequences):
    """Sequences of which one is NaN in places, unlike those of any reader of files."""

    spoilt = 7

    def batch(self, indices: Any) -> Batch:
        batch = super().batch(indices)
        frames = batch.frames.clone()
        frames[torch.as_tensor(np.asarray(indices)) == self.spoilt] = float("nan")
        return batch._replace(frames=frames)


def called(function: Step, rehearsing: object) -> Step:
    """The recorder of these tests: every call of the recorded step is a call of the function."""
    return function


def rehearsed(function: Step, rehearsing: Callable[[], contextlib.AbstractContextManager[None]]) -> Step:
    """A recorder that first runs the step as often as one for CUDA graphs does."""
    with rehearsing():
        for _ in range(REHEARSALS):
            function()
    return function


def sequences(mask: bool = False, kind: type[Sequences] = Sequences) -> Sequences:
    generator = torch.Generator().manual_seed(3)
    frames, seen = torch.rand(24, 6, 3, generator=generator), torch.rand(24, 6, generator=generator) > 0.2
    seen[:, 0] = True
    return kind(frames.numpy(), seen.numpy() if mask else None)


def trainer(
    run: Path, recorder: Any = None, model: HRSSMConfig = TINY, device: str = "cpu", double: bool = False, **given: Any
) -> Trainer:
    settings = {"steps": 12, "batch_size": 8, "checkpoint_every": 6, "warmup_steps": 2, "log_every": 4} | given
    config = TrainingConfig(**settings)  # type: ignore[arg-type]
    torch.manual_seed(config.seed)
    built = StateSpaceModel.build(model).to(device)
    made = Trainer(built.double() if double else built, config, run, {})
    made.recorder = recorder if device == "cpu" else made.recorder
    return made


def assert_equal(one: Trainer, two: Trainer) -> None:
    """Check that parameters, moments and the cost of a boundary are equal bit for bit."""
    for (name, found), expected in zip(one.model.state_dict().items(), two.model.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name
    found, expected = one.optimiser.tensors(), two.optimiser.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert (one.rate is None) == (two.rate is None)
    if one.rate is not None and two.rate is not None:
        assert one.rate.state == two.rate.state


def assert_close(one: Trainer, two: Trainer, tolerance: float) -> None:
    for (name, found), expected in zip(one.model.state_dict().items(), two.model.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=name)
