"""A resumed run says which of its settings cannot change, and takes the others."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_hrssm import HRSSMConfig, LeaveOneOut, TrainingConfig, checkpoint
from pyro_hrssm.cli import main
from pyro_hrssm.config import DataConfig, to_dict
from pyro_hrssm.errors import InputError
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.run.resuming import check_unchanged
from pyro_hrssm.run.settings import Settings

OWN = Settings(
    HRSSMConfig(frame_shape=(16, 16, 1), hidden=8, channels=2, likelihood="normal", context=2),
    TrainingConfig(steps=3),
    DataConfig(data="nosuch.npz"),
)
RECORD = {"model": to_dict(OWN.model), "training": to_dict(OWN.training), "data": to_dict(OWN.dataset)}
RECORD["scaling"] = {"shift": 0.0, "scale": 1.0}


def begun(tensors: bool = True) -> checkpoint.Checkpoint:
    weights = StateSpaceModel.build(OWN.model).state_dict() if tensors else {}
    return checkpoint.Checkpoint(2, {f"model.{name}": value for name, value in weights.items()}, RECORD)


def changed(**model: Any) -> Settings:
    return dataclasses.replace(OWN, model=dataclasses.replace(OWN.model, **model))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"hidden": 16}, "hidden is 8 there, found 16"),
        ({"model": "rssm"}, "model is 'hrssm' there, found 'rssm'"),
        ({"networks": "mlp"}, "networks is 'auto' there, found 'mlp'"),
        ({"abstract_size": 3}, "abstract_size is 8 there, found 3"),
        ({"observation_size": 3}, "observation_size is 8 there, found 3"),
        ({"channels": 4}, "channels is 2 there, found 4"),
        ({"likelihood": "bernoulli"}, "likelihood is 'normal' there, found 'bernoulli'"),
        ({"noise_scale": 0.3}, "noise_scale is 'learned' there, found 0.3"),
        ({"smoothing": False}, "smoothing is True there, found False"),
        ({"context": 0}, "context is 2 there, found 0"),
        ({"hidden": 16, "max_length": 3, "min_length": 3}, "hidden is 8 there, found 16"),
        ({"hidden": 16, "channels": 4}, "hidden is 8 there, found 16; channels is 2 there, found 4"),
    ],
)
def test_a_setting_that_shapes_the_weights_is_named(model: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        check_unchanged(changed(**model), Path("run"), begun())
    assert str(refusal.value) == (
        "run goes on with the weights of step 2, to which these settings are bound: "
        f"{said}; train another run (--out) to change them"
    )


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"max_segments": 3, "max_length": None},
        {"max_length": 30, "min_length": 20},
        {"boundary_posterior": "limited"},
        {"context": 3},
    ],
)
def test_other_settings_may_change(model: dict[str, Any]) -> None:
    check_unchanged(changed(**model), Path("run"), begun())


def test_a_run_without_a_checkpoint_may_change_anything() -> None:
    check_unchanged(changed(hidden=16), Path("run"), begun(tensors=False))


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (TrainingConfig(elbo=LeaveOneOut(boundary_rate=0.2)), "boundary_rate is None there, found 0.2"),
        (TrainingConfig(restarts=3), "restarts are over, found 3"),
    ],
)
def test_what_belongs_to_the_start_of_a_run_is_named(training: TrainingConfig, said: str) -> None:
    with pytest.raises(InputError, match=f"bound: {said};"):
        check_unchanged(dataclasses.replace(OWN, training=training), Path("run"), begun())


def test_the_command_says_so_before_it_reads_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path, begun(), keep=1)
    for flags, said in (
        (["--hidden", "16"], "hidden is 8 there, found 16"),
        (["--preset", "video"], "a resumed run keeps its own settings, found --preset video"),
        (["--out", str(tmp_path / "other")], f"a resumed run stays in its folder {tmp_path}"),
        ([], "nosuch.npz"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["train", "--resume", str(tmp_path), *flags])
        printed = capsys.readouterr().err
        assert stop.value.code == 2
        assert printed.count("\n") == 1
        assert said in printed


def test_a_run_is_resumed_in_its_folder_however_that_is_spelt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    checkpoint.save(tmp_path / "run", begun()._replace(tensors={"x": torch.zeros(1)}), keep=1)
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(tmp_path / "link"), "--out", str(tmp_path / "run/../run")])
    assert "nosuch.npz" in capsys.readouterr().err, "it went on to the data"
