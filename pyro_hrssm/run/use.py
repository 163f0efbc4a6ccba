"""Uses of a trained run: open it, predict from it, report on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyro_hrssm import checkpoint, data, files
from pyro_hrssm.checkpoint import Checkpoint
from pyro_hrssm.config import DataConfig, from_dict
from pyro_hrssm.data import Scaling, Sequences
from pyro_hrssm.data.batches import in_order
from pyro_hrssm.errors import InputError, require
from pyro_hrssm.inference.evaluation import random_seed
from pyro_hrssm.inference.prediction import Prediction, Settings, forecast, infill, jump, reconstruct, sample
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.model.rssm import RSSM
from pyro_hrssm.reports import drawing, html, strips
from pyro_hrssm.reports.figures import animation, prediction_figures
from pyro_hrssm.reports.type_charts import Section
from pyro_hrssm.run import segment_types
from pyro_hrssm.run.segment_types import Kept

Mode: TypeAlias = Literal["reconstruct", "forecast", "jump", "sample", "infill"]


class Opened(NamedTuple):
    """A run's model, and the sequences to use it on."""

    loaded: Checkpoint
    model: StateSpaceModel
    sequences: Sequences
    """Held-out sequences of a data set, or all sequences of a file other than the run's own."""
    train: Sequences | None
    """Training sequences of the data set; None for such a file."""
    source: str
    """A description of the sequences."""
    types: Kept | None = None
    """Types of segments that the run keeps."""


def open_run(
    run: Path, name: str | None, device: torch.device, kind: type[StateSpaceModel] = StateSpaceModel
) -> Opened:
    """Open a run folder's newest checkpoint, or one checkpoint file, and the sequences to use it on.

    Arguments:
        name: the name of a data set, or a file's path; None for the run's own data.
        kind: the class that the model must have.
    """
    loaded = checkpoint.load(run)
    model = kind.restore(loaded, device)
    types = segment_types.load(run, model) if isinstance(model, HRSSM) else None
    scaling = Scaling.from_dict(loaded.record.get("scaling"))
    dataset = from_dict(DataConfig, loaded.record.get("data"))
    if name is None or name in data.DATA_SETS or name == dataset.data:
        chosen = dataset if name is None else dataclasses.replace(dataset, data=name)
        splits = data.load(chosen, scaling)
        return Opened(loaded, model, splits.held_out, splits.train, f"Held-out sequences of {chosen.data}", types)
    if not Path(name).expanduser().exists():
        data.load(dataclasses.replace(dataset, data=name))  # raises an error that lists the possible names
    return Opened(loaded, model, data.whole(name, scaling), None, f"Sequences of {name}", types)


def open_flat(opened: Opened, run: Path, device: torch.device) -> RSSM:
    """The flat model of another run, for its surprise at the sequences of an opened run.

    Raises:
        InputError: where it is no RSSM, or saw other training sequences or another context than the opened run's model.
    """
    loaded = checkpoint.load(run)
    model = RSSM.restore(loaded, device)
    same = loaded.record.get("data_sha256") == opened.loaded.record.get("data_sha256")
    require(same, f"flat must have been trained on the run's own sequences, found others in {run}")
    context = opened.model.config.context
    require(
        model.config.context == context,
        f"flat must have the run's context of {context} frames, found {model.config.context}",
    )
    return model


def predict(
    opened: Opened,
    mode: Mode,
    given: int | None,
    horizon: int | None,
    num_sequences: int,
    settings: Settings,
    seed: int,
    out: Path,
) -> None:
    """Predict sequences; write arrays (.npz), film strips (.png) and an animation (.gif).

    Arguments:
        given: number of given frames (forecast, jump); None for half of the frames.
        horizon: number of frames, or of segments for jump, to predict; None for as many as remain.
        num_sequences: number of sequences, from the first on.
        seed: seed of the draws.
    """
    model, sequences = opened.model, opened.sequences
    frames, mask, _ = next(in_order(sequences, model.device, num_sequences))
    with random_seed(model.device, seed):
        prediction = _predicted(model, mode, frames, mask, given, horizon, settings)
    arrays = {name: value.cpu().numpy() for name, value in prediction._asdict().items()}
    # The written frames are in the data's own units.
    arrays["frames"] = sequences.scaling.invert(arrays["frames"]).astype("float32")
    arrays["original"] = sequences.scaling.invert(frames.cpu().numpy()).astype("float32")
    with files.writing(out) as file:
        np.savez_compressed(file, **arrays)
    for name, figure in prediction_figures(prediction).items():
        drawing.save(figure, out.with_name(f"{out.stem}_{name}.png"))
    strips.animate(animation(prediction.frames[0]), out.with_suffix(".gif"))
    print(f"{out}: frames {list(arrays['frames'].shape)}; film strips and animation beside it")


def _predicted(
    model: StateSpaceModel,
    mode: Mode,
    frames: Tensor,
    mask: Tensor | None,
    given: int | None,
    horizon: int | None,
    settings: Settings,
) -> Prediction:
    total, start = frames.shape[1], model.config.context
    given = max(start + 1, total // 2) if given is None else given
    if mode in ("forecast", "jump") and not 1 <= given <= total:
        raise InputError(f"context must lie between 1 and the sequences' {total} frames, found {given}")
    first, first_mask = frames[:, :given], None if mask is None else mask[:, :given]
    if mode == "forecast":
        return forecast(model, first, total - given if horizon is None else horizon, first_mask, settings)
    if mode == "jump":
        segments = (model.config.max_segments or 5) if horizon is None else horizon
        return jump(model, first, segments, first_mask, settings)
    if mode == "sample":
        horizon = total - start if horizon is None else horizon
        return sample(model, len(frames), horizon, frames[:, :start] if start else None, settings)
    if mode == "reconstruct":
        return reconstruct(model, frames, mask, settings)
    if mask is None:
        raise InputError("infill needs data with missing frames (NaN, or a mask), found none missing")
    return infill(model, frames, mask, settings)


def report(opened: Opened, run: Path, num_sequences: int, seed: int, out: Path, types: Section | None = None) -> None:
    """Write one HTML file about the run.

    Arguments:
        run: the run's folder, with its scores and curves, or a checkpoint file.
        num_sequences: number of sequences to show, from the first on.
        seed: seed of the draw of states that is shown.
        types: the part about the types of segments.
    """
    loaded, model, sequences = opened.loaded, opened.model, opened.sequences
    print(f"{run}: step {loaded.step}, drawing {min(num_sequences, len(sequences))} sequences")
    page = html.page(run, loaded, model, sequences, opened.source, num_sequences, seed, types)
    files.write_text(out, page)
    print(f"{out}: {len(page) / 1e6:.1f} MB in one file, to be opened in any browser")
