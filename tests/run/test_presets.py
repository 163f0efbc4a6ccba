"""The presets, and which one suits which data."""

from typing import Any

import pytest

from pyro_hrssm import LeaveOneOut
from pyro_hrssm.cli import parse
from pyro_hrssm.config import HRSSMConfig, TrainingConfig
from pyro_hrssm.run import schedules
from pyro_hrssm.run.presets import PRESETS


def parsed(*flags: str) -> Any:
    return parse(["train", *flags])


@pytest.mark.parametrize("data", ["my.npz", "folder/of/arrays", "colours", "levels"])
def test_own_arrays_get_segments_without_limits(data: str) -> None:
    command = parsed("--data", data)
    assert command.dataset.data == data
    assert (command.model, command.training) == (PRESETS["segments"].model, PRESETS["segments"].training)
    assert (command.model.max_segments, command.model.max_length, command.model.noise_scale) == (None, None, "learned")
    assert isinstance(command.training.elbo, LeaveOneOut)


def test_the_experiments_of_the_paper_keep_its_limits() -> None:
    assert parsed().model == parsed("--data", "mnist").model == HRSSMConfig()
    assert parsed("--data=balls").model == parsed("--preset", "video").model == PRESETS["video"].model
    assert parsed("--data", "my.npz", "--preset", "rows").model == HRSSMConfig()


def test_the_paper_s_system_to_the_letter() -> None:
    command = parsed("--preset", "paper")
    model = command.model
    assert (model.boundary_posterior, model.smoothing, model.max_segments, model.max_length) == (
        "factorised", False, 5, 10
    )  # fmt: skip
    assert (command.training.elbo, command.training.state_weight) == ("trace", 1.0)


def test_flags_overrule_a_preset() -> None:
    command = parsed("--data", "my.npz", "--exploration", "0.1", "--hidden", "16")
    assert (command.training.elbo.exploration, command.training.elbo.boundary_price) == (0.1, 0.5)
    assert command.model.hidden == 16


def test_a_preset_for_segments_leaves_other_models_and_objectives_free() -> None:
    flat = parsed("--data", "my.npz", "--model", "rssm").training
    assert (flat.elbo, flat.state_weight, flat.final_state_weight) == (LeaveOneOut(), 1.0, None)
    relaxed = parsed("--data", "my.npz", "--elbo", "trace", "--exploration", "0").training
    assert (relaxed.elbo, relaxed.state_weight, relaxed.final_state_weight) == ("trace", 1.0, None)


def test_of_a_flag_given_twice_the_last_counts() -> None:
    assert parsed("--preset", "segments", "--preset", "rows").model == PRESETS["rows"].model
    assert parsed("--data", "my.npz", "--data=mnist5k").model == PRESETS["rows"].model


def test_schedules_of_the_segments() -> None:
    config = TrainingConfig(
        steps=100, elbo=LeaveOneOut(exploration=0.4, boundary_price=0.5, prior_from=0.6), state_weight=4.0,
        final_state_weight=1.0,
    )  # fmt: skip
    at = [0, 20, 40, 60, 65, 70, 80, 90, 99]
    assert [schedules.exploration(config, step) for step in at] == pytest.approx([1, 0.5, 0, 0, 0, 0, 0, 0, 0])
    assert [schedules.learned_prior(config, step) for step in at] == pytest.approx([0, 0, 0, 0, 0.5, 1, 1, 1, 1])
    assert [schedules.state_weight(config, step) for step in at] == pytest.approx([4, 4, 4, 4, 4, 4, 2.5, 1, 1])
    plain = TrainingConfig(steps=100, elbo=LeaveOneOut(), state_weight=3.0)
    steered = (schedules.exploration, schedules.learned_prior, schedules.state_weight)
    assert [schedule(plain, 50) for schedule in steered] == [0.0, 1.0, 3.0]
