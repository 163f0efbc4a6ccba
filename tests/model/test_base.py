"""A model loaded from a run: where it is read from, the scaling that it carries, and the warning about raw frames."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_hrssm import HRSSM, HRSSMConfig, InputError, StateSpaceModel, checkpoint
from pyro_hrssm.checkpoint import Checkpoint
from pyro_hrssm.config import to_dict
from pyro_hrssm.inference.bounds import log_weights
from pyro_hrssm.prediction import forecast, segment
from pyro_hrssm.scaling import Scaling

STANDARD = Scaling((100.0, -3.0, 0.2), (5.0, 0.5, 0.01))


def saved(run: Path, scaling: Scaling | None, **changes: Any) -> HRSSM:
    """A model in evaluation mode whose run is written into this folder."""
    sizes: dict[str, Any] = {"frame_shape": (3,), "hidden": 8, "abstract_size": 2, "observation_size": 2}
    config = HRSSMConfig(**(sizes | {"likelihood": "normal"} | changes))
    model = HRSSM(config).eval()
    record: dict[str, Any] = {"model": to_dict(config)}
    if scaling is not None:
        record["scaling"] = scaling.to_dict()
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    checkpoint.save(run, Checkpoint(3, tensors, record), keep=1)
    return model


def raw_frames(scaling: Scaling) -> Tensor:
    return torch.from_numpy(scaling.invert(torch.randn(4, 6, 3)))


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("name", ["", "checkpoints/00000003.safetensors"])
def test_a_run_is_named_by_any_path(tmp_path: Path, kind: Any, name: str) -> None:
    model = saved(tmp_path, STANDARD)
    loaded = HRSSM.load(kind(tmp_path / name))
    assert all(torch.equal(one, two) for one, two in zip(loaded.parameters(), model.parameters(), strict=True))
    assert StateSpaceModel.load(kind(tmp_path / name), device=torch.device("cpu")).config == model.config


def test_a_loaded_model_carries_the_scaling_of_its_run(tmp_path: Path) -> None:
    saved(tmp_path, STANDARD)
    model = HRSSM.load(tmp_path)
    assert model.scaling == STANDARD
    assert pickle.loads(pickle.dumps(model)).scaling == copy.deepcopy(model).scaling == STANDARD
    assert HRSSM(model.config).scaling is None


def test_frames_go_from_the_datas_units_and_back(tmp_path: Path) -> None:
    saved(tmp_path, STANDARD)
    model, raw = HRSSM.load(tmp_path), raw_frames(STANDARD)
    assert model.scaling is not None
    scaled = model.scaling.apply(raw)
    found = forecast(model, scaled, 2).frames
    torch.manual_seed(1)
    given = forecast(model, torch.from_numpy(scaled), 2).frames
    torch.manual_seed(1)
    assert torch.equal(forecast(model, scaled, 2).frames, given)
    assert model.scaling.invert(found).shape == (1, 4, 8, 3)
    np.testing.assert_allclose(model.scaling.invert(scaled), raw, rtol=1e-6)  # float32


@pytest.mark.parametrize(
    "use",
    [
        lambda model, frames: forecast(model, frames, 1),
        lambda model, frames: segment(model, frames),
        lambda model, frames: log_weights(model, frames),
        lambda model, frames: model.model(frames),
        lambda model, frames: Trace_ELBO().loss(model.model, model.guide, frames),
    ],
)
def test_raw_frames_are_noticed_once(tmp_path: Path, use: Any) -> None:
    saved(tmp_path, STANDARD)
    model, raw = HRSSM.load(tmp_path), raw_frames(STANDARD)
    use(model, STANDARD.apply(raw))  # no warning, which would be an error
    with pytest.warns(
        UserWarning, match=r"frames from -\S+ to 1\d\d\S* are far from those .* model.scaling.apply"
    ) as caught:
        use(model, raw)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    use(model, raw)


@pytest.mark.parametrize(
    ("scaling", "likelihood", "frames"),
    [
        (Scaling(0.0, 255.0), "bernoulli", torch.randint(0, 256, (2, 5, 3)).float()),
        (Scaling(), "bernoulli", torch.randint(0, 256, (2, 5, 3)).float()),
        (Scaling(-1.0, 2.0), "bernoulli", 2 * torch.rand(2, 5, 3) - 1),
        (Scaling(0.5, 0.01), "normal", 0.5 + 0.01 * torch.randn(2, 5, 3)),
        (Scaling(0.0, 30.0), "normal", 30 * torch.randn(2, 5, 3)),
    ],
)
def test_raw_frames_of_every_scaling_are_noticed(
    tmp_path: Path, scaling: Scaling, likelihood: str, frames: Tensor
) -> None:
    saved(tmp_path, scaling, likelihood=likelihood)
    model = HRSSM.load(tmp_path)
    model.model(scaling.apply(frames) if likelihood == "normal" else np.clip(scaling.apply(frames), 0, 1))
    with pytest.warns(UserWarning, match="far from those"):
        model.guide(frames)


def test_hidden_frames_are_not_looked_at(tmp_path: Path) -> None:
    saved(tmp_path, STANDARD)
    model = HRSSM.load(tmp_path)
    frames, mask = torch.randn(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
    mask[0, 2:] = False
    frames[0, 2:] = 1e6
    model.model(frames, mask)
    mask[:] = False
    model.model(frames, mask)


def test_no_frame_is_looked_at_in_training(tmp_path: Path) -> None:
    """A look is a wait for the device."""
    saved(tmp_path, STANDARD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HRSSM.load(tmp_path).train().model(raw_frames(STANDARD))


def test_a_scaling_of_other_frames_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, Scaling((1.0, 2.0), 1.0))
    with pytest.raises(InputError, match="last axis is 2"):
        HRSSM.load(tmp_path)


def test_a_record_without_scaling_loads(tmp_path: Path) -> None:
    saved(tmp_path, None)
    assert HRSSM.load(tmp_path).scaling is None
