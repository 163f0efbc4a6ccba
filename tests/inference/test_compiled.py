"""The compiled objective against the original objective, on the same random numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_hrssm import HRSSMConfig, TrainingConfig
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.compiled import OLDEST, CompiledObjective, _version
from pyro_hrssm.inference.objectives import LeaveOneOutELBO, Objective
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.run.training import Trainer
from pyro_hrssm.scaling import Scaling

needs_torch = pytest.mark.skipif(_version() < OLDEST, reason=f"needs torch {OLDEST}")

OBJECTIVES = {"trace": Objective, "leave_one_out": LeaveOneOutELBO}


def tiny(**fields: Any) -> StateSpaceModel:
    torch.manual_seed(2)
    sizes = {"frame_shape": (3,), "hidden": 8, "abstract_size": 2, "observation_size": 2, "window": 5}
    return StateSpaceModel.build(HRSSMConfig(**(sizes | {"max_segments": 3, "max_length": 3} | fields)))


def measures(objective: Objective, model: StateSpaceModel, frames: Tensor, mask: Tensor | None, **keywords: Any) -> Any:
    """Loss, gradients and the measurements for the log, under one seed."""
    model.zero_grad()
    pyro.set_rng_seed(7)
    loss = objective.loss_and_grads(model.model, model.guide, frames, mask, **keywords)
    terms, rate = objective.measured()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return loss, gradients, {name: value.item() for name, value in terms.items()}, rate.item()


@needs_torch
def test_a_loaded_model_looks_at_no_frames_while_it_is_exported() -> None:
    model = tiny(likelihood="normal").eval()
    model.scaling = Scaling(0.0, 2.0)
    loss = CompiledObjective(Objective(), model, "eager").loss_and_grads(
        model.model, model.guide, torch.randn(2, 2, 3), temperature=0.5
    )
    assert loss == pytest.approx(loss)  # not NaN


@needs_torch
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model", ["hrssm", "rssm"])
def test_the_exported_objective_is_the_objective(model: str, objective: str, mask: bool) -> None:
    module = tiny(model=model, context=1)
    # The context and four frames, the fewest on which both limits bind: exporting takes its time for every frame.
    frames = torch.rand(6, 5, 3)
    seen = torch.arange(5) < torch.tensor([5, 5, 4, 3, 5, 2])[:, None] if mask else None
    plain = OBJECTIVES[objective]()
    compiled = CompiledObjective(OBJECTIVES[objective](), module, backend="eager")
    names = ("temperature", "kl_weight", "state_weight", "switch_gradient")
    plainly, shared = (0.5, 1.0, 1.0, 0.0), (0.2, 1.0, 4.0, 0.3)
    for values in ((0.9, 1.0, 1.0, 0.0), plainly, (0.7, 0.3, 1.0, 0.0), (0.2, 0.8, 1.0, 0.0), shared):
        keywords = dict(zip(names, values, strict=True))
        found, expected = (measures(each, module, frames, seen, **keywords) for each in (compiled, plain))
        # The same sums in float32, some in another order.
        torch.testing.assert_close(found[:2], expected[:2], rtol=1e-4, atol=1e-4)
        if keywords["kl_weight"] == keywords["state_weight"] == 1:
            assert found[2] == pytest.approx(expected[2], rel=1e-4, abs=1e-4)
        assert found[3] == expected[3]
    # One program for each set of shapes, whatever the temperature; one more for each set of terms that is weighted.
    assert len(compiled._programs) == 3


@needs_torch
def test_neither_the_parameter_store_nor_svi_see_the_export(tmp_path: Path) -> None:
    with pyro.get_param_store().scope():
        module = tiny()
        objective = CompiledObjective(Objective(), module, backend="eager")
        measures(objective, module, torch.rand(4, 2, 3), None, temperature=0.5, kl_weight=1.0)
        assert len(pyro.get_param_store()) == 0


@needs_torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_run_descends_the_same_bound(tmp_path: Path) -> None:
    frames = torch.rand(16, 4, 3)
    losses = {}
    for compile in (False, True):
        torch.manual_seed(3)
        config = TrainingConfig(batch_size=16, learning_rate=2e-2, warmup_steps=1, steps=60, compile=compile)
        trainer = Trainer(tiny(), config, tmp_path, {})
        losses[compile] = torch.tensor([trainer.update(frames, None) / 16 for _ in range(60)])
        trainer.step = 60
    first, last = slice(0, 5), slice(40, 60)
    for values in losses.values():
        assert values[last].mean() < values[first].mean() - 0.2
    # Other noise: the mean of 20 losses of 16 sequences each, to 6 standard errors.
    error = sum(values[last].var() / 20 for values in losses.values()).sqrt()
    assert abs(losses[True][last].mean() - losses[False][last].mean()) < 6 * error


def test_what_cannot_be_compiled_says_so() -> None:
    with pytest.raises(InputError, match="compile needs elbo trace or leave_one_out, found mean_field"):
        TrainingConfig(compile=True, elbo="mean_field")


def test_an_older_torch_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.4.0+cpu")
    module, schedule = tiny(), {"temperature": 1.0, "kl_weight": 1.0}
    with pytest.raises(InputError, match=r"^compile needs torch 2\.14 or newer, found 2\.4\.0\+cpu$"):
        measures(CompiledObjective(Objective(), module), module, torch.rand(4, 5, 3), None, **schedule)
