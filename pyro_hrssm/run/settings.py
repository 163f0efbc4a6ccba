"""The settings of a run, and the record of them in its folder and its checkpoints."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_hrssm.config import (
    DataConfig,
    HRSSMConfig,
    LeaveOneOut,
    TrainingConfig,
    flat_name,
    from_dict,
    objective,
    to_dict,
)
from pyro_hrssm.data import Sequences, Splits
from pyro_hrssm.errors import InputError, one_line, require
from pyro_hrssm.files import installed_version

BERNOULLI = "--scaling none keeps frames as they are, --scaling unit maps them to [0, 1], --likelihood normal takes any"
"""What a user can do about frames that a Bernoulli emission cannot score."""


@dataclass(frozen=True)
class Settings:
    """The three configurations of a run."""

    model: HRSSMConfig = field(default_factory=HRSSMConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    dataset: DataConfig = field(default_factory=DataConfig)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Settings:
        """The settings in a checkpoint's record."""
        return cls(
            from_dict(HRSSMConfig, record.get("model")),
            from_dict(TrainingConfig, record.get("training")),
            from_dict(DataConfig, record.get("data")),
        )

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """These settings with others in place of some, by their names in any configuration, which are those of flags.

        Raises:
            InputError: where no setting has a name, or a value is wrong.
        """
        parts = {name: vars(config).keys() for name, config in vars(self).items()}
        steering = [flat_name(name) for name in vars(self.training.leave_one_out)]
        known = [*itertools.chain(*parts.values()), *steering]
        for name in changes:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            require(name in known, f"no setting of model, training or dataset is named {one_line(name)}{hint}")
        # Numbers of NumPy's are whole numbers and floats as well: a grid of settings may hold them.
        given = {name: value.item() if isinstance(value, np.generic) else value for name, value in changes.items()}
        steered = {name: given[name] for name in steering if name in given}
        elbo = given.get("elbo", self.training.elbo)
        own = elbo if isinstance(elbo, LeaveOneOut) else self.training.leave_one_out
        named = "leave_one_out" if isinstance(elbo, LeaveOneOut) else elbo
        given["elbo"] = objective(named, steered, own)
        return Settings(
            *(
                dataclasses.replace(getattr(self, part), **{name: given[name] for name in names if name in given})
                for part, names in parts.items()
            )
        )

    def fitted(self, splits: Splits, bound: bool = False) -> Settings:
        """These settings with those that depend on the data: frame shape, windows, a suitable likelihood, entry flags.

        Arguments:
            bound: whether the run has weights already, whose encoder takes entry flags or does not.
        """
        config, frames = self.model, self._modelled(splits)
        likelihood = splits.likelihood if config.likelihood == "auto" else config.likelihood
        splits.train.check_likelihood(likelihood, BERNOULLI)
        gaps = splits.train.has_entries or splits.held_out.has_entries
        model = dataclasses.replace(
            config,
            frame_shape=splits.train.frame_shape,
            window=frames if config.window is None else config.window,
            likelihood=likelihood,
            entry_flags=config.entry_flags or (gaps and not bound),
        )
        dataset = dataclasses.replace(self.dataset, window_length=None if splits.cut is None else splits.cut.length)
        return dataclasses.replace(self, model=model, dataset=dataset)

    def uncovered(self, splits: Splits) -> str | None:
        """A sentence that the largest number of longest segments cannot cover the data's frames; None if it can."""
        config, frames = self.model, self._modelled(splits)
        if not config.has_segments or config.max_segments is None or config.max_length is None:
            return None
        # N_max concerns the window alone: the segments of a sequence that goes on past it have no limited number.
        limited = frames if config.window is None else min(frames, config.window)
        covered = config.max_segments * config.max_length
        if covered >= limited:
            return None
        return (
            f"max_segments {config.max_segments} and max_length {config.max_length} cover {covered} of {limited} "
            "frames: segments end by force at max_length, and the last one is longer than it, whatever the data say"
        )

    def unmodelled(self, splits: Splits) -> str | None:
        """A sentence about the sequences that end within the context; None if there are none."""
        every = len(splits.train) + len(splits.held_out)
        ended = sum(int((part.lengths <= self.model.context).sum()) for part in (splits.train, splits.held_out))
        if ended == 0:
            return None
        return f"{ended} of {every} sequences end within the context of {self.model.context} frames: they say nothing"

    def unflagged(self, splits: Splits) -> str | None:
        """A sentence that the run's encoder cannot tell missing entries from others; None where none are missing."""
        return unflagged(self.model, splits.train) or unflagged(self.model, splits.held_out)

    def _modelled(self, splits: Splits) -> int:
        """Frames after the context; raises :class:`InputError` where there are none."""
        total, context = splits.train.num_frames, self.model.context
        if context >= total:
            raise InputError(f"context {context} leaves no frame of {total} to model")
        return total - context

    def seeded(self, seed: int) -> Settings:
        """These settings for one start from this seed, without restarts."""
        return dataclasses.replace(self, training=dataclasses.replace(self.training, seed=seed, restarts=1))

    def record(self, splits: Splits) -> dict[str, Any]:
        """The record that every checkpoint carries beside the weights."""
        return {
            "model": to_dict(self.model),
            "training": to_dict(self.training),
            "data": to_dict(self.dataset),
            "scaling": splits.scaling.to_dict(),
            "data_sha256": {"train": splits.train.digest(), "held_out": splits.held_out.digest()},
            "versions": versions(),
            "git": git_state(),
        }


def unflagged(config: HRSSMConfig, sequences: Sequences) -> str | None:
    """A sentence that this model's encoder cannot tell missing entries from others; None where none are missing."""
    if config.entry_flags or not sequences.has_entries:
        return None
    return (
        "some entries are missing or weighted, and the run began with data in which none were: its encoder takes a "
        "missing entry for one that reads 0 once scaled, so that states are inferred less well"
    )


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a run's numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,  # names the CUDA version too, unlike the package's version
        **{name: installed_version(name) for name in ("pyro-hrssm", "pyro-ppl", "numpy")},
    }


def git_state() -> str | None:
    """The commit of the running code, with a mark if files were changed; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
