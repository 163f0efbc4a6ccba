"""Settings that suit a kind of data: the defaults of a run's other settings."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pyro_hrssm.config import DataConfig, HRSSMConfig, LeaveOneOut, TrainingConfig
from pyro_hrssm.run.settings import Settings

Preset = Literal["segments", "rows", "video", "paper"]

PRESETS: dict[str, Settings] = {
    # The numbers of this preset were chosen on `levels`, `colours` and `modes`; docs/RESULTS.md says what they reach
    # elsewhere. The weight of s need only break a tie, since s can say the noise of the frames at no loss to the bound:
    # with 4 in its place, s was closed for good where frames move within segments.
    "segments": Settings(
        HRSSMConfig(hidden=32, max_segments=None, max_length=None),
        TrainingConfig(
            batch_size=64,
            elbo=LeaveOneOut(exploration=0.3, boundary_price=0.5, prior_from=0.8),
            state_weight=1.3,
            final_state_weight=1.0,
        ),
        DataConfig(data="levels"),
    ),
    "rows": Settings(training=TrainingConfig(steps=2000, batch_size=64, switch_warmup_steps=0)),
    "video": Settings(
        HRSSMConfig(frame_shape=(32, 32, 3), context=5, max_segments=5, max_length=8),
        TrainingConfig(batch_size=16),
        DataConfig(data="balls"),
    ),
    "paper": Settings(HRSSMConfig(boundary_posterior="factorised", smoothing=False, noise_scale=0.3)),
}

_OF_DATA: dict[str, Preset] = {"mnist5k": "rows", "mnist": "rows", "balls": "video"}


def suitable(data: str | None) -> Preset:
    """The preset for a data set's name, or for the path of a user's own arrays; None: the default data."""
    return "rows" if data is None else _OF_DATA.get(data, "segments")


def chosen(preset: str | None, data: str | None, model: str | None, elbo: object) -> Settings:
    """The settings that others start from: those of the preset, without what an objective or a model cannot use.

    Arguments:
        preset: the preset's name; any other name, or None, for the one that suits the data.
        data: as in :func:`suitable`.
        model, elbo: the model's kind and the objective, as they were asked for; None where they were not.
    """
    settings = PRESETS[preset] if preset in PRESETS else PRESETS[suitable(data)]
    return without_steering(settings) if model == "rssm" or elbo in ("trace", "mean_field") else settings


def without_steering(settings: Settings) -> Settings:
    """The settings for a flat model, or for an objective with relaxed boundaries: nothing steers boundaries."""
    training = settings.training
    if isinstance(training.elbo, LeaveOneOut):
        elbo = LeaveOneOut(training.elbo.particles)
        training = dataclasses.replace(training, elbo=elbo, state_weight=1.0, final_state_weight=None)
    return dataclasses.replace(settings, training=training)
