"""Uses of a trained run: open it, predict from it, report on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_hrssm import checkpoint, files
from pyro_hrssm.checkpoint import Checkpoint
from pyro_hrssm.data import Scaling
from pyro_hrssm.errors import InputError, one_line, require
from pyro_hrssm.inference.evaluation import random_seed
from pyro_hrssm.inference.memory import rows_for_batches_of
from pyro_hrssm.inference.prediction import Prediction, Settings, forecast, infill, jump, reconstruct, sample
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.model.rssm import RSSM
from pyro_hrssm.reports import drawing, figures, html
from pyro_hrssm.reports.type_charts import Section
from pyro_hrssm.run import segment_types
from pyro_hrssm.run.segment_types import Kept
from pyro_hrssm.run.sources import Source, choose

Mode: TypeAlias = Literal["reconstruct", "forecast", "jump", "sample", "infill"]


class Opened(NamedTuple):
    """A run's model, and the sequences to use it on."""

    loaded: Checkpoint
    model: StateSpaceModel
    source: Source
    types: Kept | None = None
    """Types of segments that the run keeps."""

    def told(self, first: int | None = None) -> str:
        """A line about the first so many sequences, or about all: :meth:`Source.told`, and what the model lacks."""
        context = self.model.config.context
        unmodelled = int((self.source.sequences.lengths[:first] <= context).sum())
        ending = f"; {unmodelled} of them end within the context of {context} frames" if unmodelled else ""
        return f"{self.source.told(first)}{ending}"


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
    source = choose(run, loaded.record, name)
    context, total = model.config.context, source.sequences.num_frames
    if context >= total:
        raise InputError(f"the run's context of {context} frames leaves none of {total} to model: {source.description}")
    return Opened(loaded, model, source, types)


def most_rows(loaded: Checkpoint) -> int | None:
    """The most sequences times particles that one pass scores, by the run's batch size; None if that is unknown."""
    training = loaded.record.get("training")
    size = training.get("batch_size") if isinstance(training, dict) else None
    return rows_for_batches_of(size) if isinstance(size, int) and size > 0 else None


def open_flat(opened: Opened, run: Path, device: torch.device) -> RSSM:
    """The flat model of another run, for its surprise at the sequences of an opened run.

    Raises:
        InputError: where it is no RSSM, or saw other sequences, or the same in other units, or another context than the
            opened run's model.
    """
    loaded = checkpoint.load(run)
    model = RSSM.restore(loaded, device)
    known, other = (record.get("data_sha256") for record in (opened.loaded.record, loaded.record))
    same = known is not None and known == other
    require(same, f"flat must have been trained on the run's own sequences, found others in {one_line(run)}")
    scaling, flat_scaling = (Scaling.from_dict(each.record.get("scaling")) for each in (opened.loaded, loaded))
    require(
        scaling == flat_scaling,
        f"flat must have been trained with the run's scaling of frames, found another in {one_line(run)}",
    )
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
    model, sequences = opened.model, opened.source.sequences
    print(opened.told(num_sequences))
    count = min(num_sequences, len(sequences))
    frames, mask, _ = sequences.batch(range(count)).to(model.device)
    with random_seed(model.device, seed):
        prediction = _predicted(model, mode, frames, mask, given, horizon, settings)
    arrays = _archived(prediction, sequences.scaling)
    observed = np.ones(frames.shape[:2], bool) if mask is None else mask.cpu().numpy()
    original = sequences.scaling.invert(frames.cpu().numpy()).astype("float32")
    original[~observed] = 0
    arrays |= {"original": original, "mask": observed, "rows": sequences.rows[:count]}
    if sequences.names is not None:
        arrays["names"] = sequences.names[:count]
    with files.writing(out) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type] # mypy takes an array for allow_pickle
    for name, figure in figures.prediction_figures(prediction).items():
        drawing.save(figure, out.with_name(f"{out.stem}_{name}.png"))
    part = figures.animate(prediction.frames[0], out.with_suffix(".gif"))
    shown = f" ({part})" if part else ""
    print(f"{out}: frames {list(arrays['frames'].shape)}; film strips and animation{shown} beside it")


def _archived(prediction: Prediction, scaling: Scaling) -> dict[str, NDArray[Any]]:
    """A prediction's arrays by name, its frames in the data's own units; zeros after each sequence's last frame."""
    arrays = {name: value.cpu().numpy() for name, value in prediction._asdict().items()}
    frames = scaling.invert(arrays["frames"]).astype("float32")
    frames[:, np.arange(frames.shape[2]) >= arrays["lengths"][:, None]] = 0
    return arrays | {"frames": frames}


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
    said = opened.told(num_sequences)
    print(f"{run}: step {opened.loaded.step}. {said}")
    page = html.page(run, opened.loaded, opened.model, opened.source.sequences, said, num_sequences, seed, types)
    files.write_text(out, page)
    print(f"{out}: {len(page) / 1e6:.1f} MB in one file, to be opened in any browser")
