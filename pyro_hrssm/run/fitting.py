"""Training from Python: what `pyro-hrssm train` does, on arrays in memory too, with the trained run as the result."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from pyro_hrssm import checkpoint
from pyro_hrssm.config import DataConfig, HRSSMConfig, TrainingConfig
from pyro_hrssm.data import memory
from pyro_hrssm.data.memory import ARRAYS, Held
from pyro_hrssm.errors import InputError, one_line, require
from pyro_hrssm.run import life, parallel
from pyro_hrssm.run.presets import PRESETS, Preset, chosen
from pyro_hrssm.run.process import Interrupted, random_states, set_random_states
from pyro_hrssm.run.settings import Settings
from pyro_hrssm.run.trained import Run
from pyro_hrssm.run.voice import in_python

COMMAND = ["pyro_hrssm.fit"]
"""What stands for the command in the record of a run that was trained from Python."""


def fit(
    frames: Any,
    mask: Any = None,
    boundaries: Any = None,
    *,
    lengths: Any = None,
    weights: Any = None,
    labels: Any = None,
    names: Any = None,
    model: HRSSMConfig | Literal["hrssm", "rssm"] | None = None,
    training: TrainingConfig | None = None,
    dataset: DataConfig | None = None,
    preset: Literal["auto"] | Preset = "auto",
    out: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    verbose: bool = True,
    **settings: Any,
) -> Run:
    """Train a model on sequences, score it on those held out, and return the run.

    It is the run that `pyro-hrssm train` makes of the same arrays, bit for bit on a CPU, and leaves torch's random
    numbers as they were. Ctrl-C returns the run as it is after the step under way, with a warning.

    Example:
        >>> import numpy as np
        >>> import pyro_hrssm
        >>> frames = np.random.default_rng(0).normal(20.0, 3.0, (40, 12, 2))  # 40 sequences of 12 frames of 2 numbers
        >>> run = pyro_hrssm.fit(frames, steps=2, hidden=8, verbose=False)
        >>> run.segment(frames).boundaries.shape
        (40, 12)
        >>> run.forecast(frames, horizon=5, num_samples=3, progress=False).future.shape
        (3, 40, 5, 2)

    Arguments:
        frames: arrays or tensors [N, T, X…], of the shapes that an archive may hold; a list of recordings [T, X…] or
            [T] of any lengths; a table of an archive's arrays by name; a file's path; or the name of a data set. NaN is
            missing. Arrays are not copied: they must stay as they are while the run is used on them.
        mask: [N, T], or [N, T, X…] of entries, true where observed.
        boundaries: [N, T], true where a segment ends with the frame. Nothing is learned from them; they are scored.
        lengths: [N] number of frames of padded sequences.
        weights: [N, T] or [N, T, X…], the known relative precisions.
        labels: [N, T] the true types of the frames' segments, -1 where unknown.
        names: [N] texts. All these arrays are for frames in memory, as they lie beside frames in an archive; beside a
            list of recordings they may be lists too, of [T, …] each.
        model: the whole configuration of the model, or its kind alone; None for the preset's.
        training: the configuration of the training; None for the preset's.
        dataset: how sequences are split, scaled and cut; None for the preset's. Its `data` is not read.
        preset: the settings that others start from, as of the command line: `auto` goes by the data.
        out: a folder for the run, as the command line leaves one, with the arrays that were in memory (`data.npz`);
            None keeps nothing on disk.
        device: `auto` takes a GPU where there is one.
        verbose: whether progress bars are shown, and what was read and the scores are printed.
        settings: single settings in place of the configurations' own, by the names of the flags: `steps=500`,
            `hidden=16`, `boundary_rate=0.2`.

    Raises:
        InputError: where arrays or settings are wrong; the message is the one of the command line.
        TrainingError: where a loss or a gradient is no longer finite.
        KeyboardInterrupt: on Ctrl-C before the first step, and on SIGTERM.
    """
    beside = {"mask": mask, "boundaries": boundaries, "lengths": lengths, "weights": weights}
    held, name = _taken(frames, beside | {"labels": labels, "names": names})
    asked = _settings(name, preset, model, training, dataset, settings)
    require(parallel.world_size() == 1, "fit needs one process: start several with torchrun -m pyro_hrssm train")
    place = parallel.device_named(device)
    with _folder(out) as folder, _own_random(place):
        stopped = _trained(asked, folder, place, held, verbose, kept=out is not None)
        run = Run._of(folder, checkpoint.load(folder), place, held, kept=out is not None)
    if stopped:
        resume = f"; pyro-hrssm train --resume {folder} goes on" if out is not None else ""
        text = f"interrupted at step {run.step} of {asked.training.steps}, whose model this run has{resume}"
        in_python(verbose).warn(text)
    return run


def _taken(frames: Any, beside: dict[str, Any]) -> tuple[Held | None, str]:
    """Arrays in memory, and the name of the data for the record."""
    if not isinstance(frames, (str, os.PathLike)):
        return memory.hold(frames, **beside), ARRAYS
    given = [name for name, values in beside.items() if values is not None]
    require(not given, f"a file or a data set has its own arrays, found {', '.join(given)} beside {one_line(frames)}")
    return None, os.fspath(frames)


def _settings(
    data: str,
    preset: str,
    model: HRSSMConfig | str | None,
    training: TrainingConfig | None,
    dataset: DataConfig | None,
    changes: dict[str, Any],
) -> Settings:
    """The settings of a run on these data."""
    names = ("auto", *PRESETS)
    require(preset in names, f"preset must be one of {', '.join(names)}, found {one_line(preset)}")
    require("data" not in changes, "data is what frames name, found it among the settings")
    if isinstance(model, str):
        changes = {"model": model} | changes
    for name, value, kind in (("training", training, TrainingConfig), ("dataset", dataset, DataConfig)):
        require(value is None or isinstance(value, kind), f"{name} must be a {kind.__name__}, found {one_line(value)}")
    require(
        model is None or isinstance(model, (HRSSMConfig, str)),
        f"model must be an HRSSMConfig, hrssm or rssm, found {one_line(model)}",
    )
    whole = model if isinstance(model, HRSSMConfig) else None
    kind_asked = whole.model if whole is not None else changes.get("model")
    start = chosen(preset, data, kind_asked, changes.get("elbo", None if training is None else training.elbo))
    begun = Settings(whole or start.model, training or start.training, dataset or start.dataset)
    return begun.changed(changes | {"data": data})


@contextlib.contextmanager
def _folder(out: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The run's folder, which goes with the context where the user named none."""
    if out is not None:
        yield Path(os.path.expanduser(out))
        return
    with tempfile.TemporaryDirectory(prefix="pyro_hrssm_") as folder:
        yield Path(folder) / "run"


@contextlib.contextmanager
def _own_random(device: torch.device) -> Iterator[None]:
    """A context after which torch's random numbers are what they were."""
    before = random_states(device)
    try:
        yield
    finally:
        set_random_states(before, device)


def _trained(
    settings: Settings, folder: Path, device: torch.device, held: Held | None, verbose: bool, kept: bool
) -> bool:
    """Train; returns whether Ctrl-C ended it after it had saved a step."""
    try:
        life.train(
            settings, folder, None, device, COMMAND, held, voice=in_python(verbose), shows=verbose, kept=kept
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        asked = not isinstance(stop, Interrupted) or stop.number == signal.SIGINT
        try:
            saved = checkpoint.newest(folder)
        except InputError:
            saved = None
        if asked and saved is not None:
            return True
        if not kept:
            stop.args = ("interrupted",)  # there is no folder from which to go on
        raise
    return False
