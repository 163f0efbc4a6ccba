"""Uses of a trained run: open it, predict from it, report on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_hrssm import checkpoint, files
from pyro_hrssm.checkpoint import Checkpoint
from pyro_hrssm.data import Scaling
from pyro_hrssm.errors import InputError, one_line, require
from pyro_hrssm.inference.evaluation import random_seed
from pyro_hrssm.inference.forecasts import quantiles
from pyro_hrssm.inference.memory import rows_for_batches_of
from pyro_hrssm.inference.prediction import Prediction, Settings, forecast, infill, jump, reconstruct, sample
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.model.masks import has_weights
from pyro_hrssm.model.rssm import RSSM
from pyro_hrssm.reports import drawing, fans, figures, html
from pyro_hrssm.reports.type_charts import Section
from pyro_hrssm.run import segment_types
from pyro_hrssm.run.segment_types import Kept
from pyro_hrssm.run.settings import unflagged
from pyro_hrssm.run.sources import Source, choose

Mode: TypeAlias = Literal["reconstruct", "forecast", "jump", "sample", "infill"]


class Opened(NamedTuple):
    """A run's model, and the sequences to use it on."""

    loaded: Checkpoint
    model: StateSpaceModel
    source: Source
    types: Kept | None = None
    """Types of segments that the run keeps."""

    def whole(self) -> Opened:
        """The same with recordings that are not cut into windows."""
        return self._replace(source=self.source.whole)

    def told(self, first: int | None = None) -> str:
        """A line about the first so many sequences, or about all: :meth:`Source.told`, and what the model lacks."""
        context = self.model.config.context
        unmodelled = int((self.source.sequences.lengths[:first] <= context).sum())
        ending = f"; {unmodelled} of them end within the context of {context} frames" if unmodelled else ""
        unflagged_here = unflagged(self.model.config, self.source.sequences)
        flags = f"; {unflagged_here}" if unflagged_here else ""
        return f"{self.source.told(first)}{ending}{flags}"


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


def open_flat(opened: Opened, run: Path) -> RSSM:
    """The flat model of another run, to stand beside the model of an opened run on the same sequences.

    Raises:
        InputError: where it is no RSSM, or was trained on other sequences, in other units or with another context.
    """
    loaded, own = checkpoint.load(run), opened.loaded
    model = StateSpaceModel.restore(loaded, opened.model.device)
    if not isinstance(model, RSSM):
        raise InputError(f"flat must be a run of an RSSM, found an {model.config.model.upper()} in {one_line(run)}")
    same = loaded.record.get("data_sha256") == own.record.get("data_sha256")
    require(same, f"flat must have been trained on the run's own sequences, found others in {one_line(run)}")
    scaled = model.scaling == opened.model.scaling
    require(scaled, f"flat must take frames in the run's units, found another scaling in {one_line(run)}")
    context, found = opened.model.config.context, model.config.context
    require(context == found, f"flat must have the run's context of {context} frames, found {found}")
    return model


def most_rows(loaded: Checkpoint) -> int | None:
    """The most sequences times particles that one pass scores, by the run's batch size; None if that is unknown."""
    training = loaded.record.get("training")
    size = training.get("batch_size") if isinstance(training, dict) else None
    return rows_for_batches_of(size) if isinstance(size, int) and size > 0 else None


def predict(
    opened: Opened,
    mode: Mode,
    given: int | None,
    horizon: int | None,
    num_sequences: int,
    settings: Settings,
    levels: Sequence[float],
    seed: int,
    out: Path,
) -> None:
    """Predict sequences; write arrays (.npz), film strips (.png) and an animation (.gif).

    Arguments:
        given: number of given frames (forecast, jump); None for half of the frames.
        horizon: number of frames, or of segments for jump, to predict; None for as many as remain.
        num_sequences: number of sequences, from the first on.
        levels: levels of the quantiles over samples that are written too, growing; vectors get a picture of them.
        seed: seed of the draws.
    """
    model, sequences = opened.model, opened.source.sequences
    print(opened.told(num_sequences))
    if levels and model.config.likelihood == "bernoulli":
        print("quantiles under the run's Bernoulli likelihood: every draw of an entry is its smallest or largest value")
    count = min(num_sequences, len(sequences))
    frames, mask, _ = sequences.batch(range(count)).to(model.device)
    with random_seed(model.device, seed):
        prediction = _predicted(model, mode, frames, mask, given, horizon, settings)
    arrays = _archived(prediction, sequences.scaling)
    observed = np.ones(frames.shape[:2], bool) if mask is None else mask.cpu().numpy() > 0
    original = sequences.scaling.invert(frames.cpu().numpy()).astype("float32")
    original[~observed] = 0
    arrays |= {"original": original, "mask": observed, "rows": sequences.rows[:count]}
    if mask is not None and has_weights(mask):
        arrays["weights"] = mask.cpu().numpy()
    if sequences.names is not None:
        arrays["names"] = sequences.names[:count]
    if sequences.spans is not None:
        arrays["starts"] = sequences.spans.starts[:count]
    pictures = figures.prediction_figures(prediction)
    if levels:
        arrays |= {"quantiles": _quantiles(arrays["frames"], levels), "quantile_levels": np.asarray(levels)}
        if arrays["quantiles"].ndim == 4:
            pictures["quantiles"] = _fan(arrays, mode, model.config.context)
    with files.writing(out) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type] # mypy takes an array for allow_pickle
    for name, figure in pictures.items():
        drawing.save(figure, out.with_name(f"{out.stem}_{name}.png"))
    part = figures.animate(prediction.frames[0], out.with_suffix(".gif"))
    shown = f" ({part})" if part else ""
    also = f", quantiles {list(arrays['quantiles'].shape)}" if levels else ""
    print(f"{out}: frames {list(arrays['frames'].shape)}{also}; film strips and animation{shown} beside it")


def _quantiles(frames: NDArray[Any], levels: Sequence[float]) -> NDArray[np.float32]:
    """Quantiles [Q, B, T, X…] over the samples of frames [samples, B, T, X…], one sequence after the other."""
    result = np.empty((len(levels), *frames.shape[1:]), np.float32)
    for sequence in range(frames.shape[1]):
        result[:, sequence] = quantiles(frames[:, sequence], levels)
    return result


def _fan(arrays: dict[str, NDArray[Any]], mode: Mode, context: int) -> Figure:
    """The picture of a prediction's quantiles, beside the data where these are of the same frames."""
    size, total = arrays["quantiles"].shape[1:3]
    data = np.full(arrays["quantiles"].shape[1:], np.nan)
    mask = arrays["mask"].reshape(size, arrays["mask"].shape[1], -1)
    original = np.where(mask, arrays["original"], np.nan)[:, context : context + total]
    data[:, : original.shape[1]] = original
    if mode in ("jump", "sample"):  # what is drawn stands for no frame of the data
        data[np.arange(total) >= arrays["given"].reshape(size, 1)] = np.nan
    return fans.fan_chart(
        arrays["quantiles"], arrays["quantile_levels"].tolist(), data, arrays["given"], arrays["lengths"]
    )


def _archived(prediction: Prediction, scaling: Scaling) -> dict[str, NDArray[Any]]:
    """A prediction's arrays by name, its frames in the data's own units; zeros after each sequence's last frame."""
    arrays = {name: value.cpu().numpy() for name, value in prediction._asdict().items()}
    frames = np.empty_like(arrays["frames"], np.float32)
    for number, scaled in enumerate(arrays["frames"]):  # in float64, one sample's frames at a time
        frames[number] = scaling.invert(scaled)
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
        context = (frames[:, :start], None if mask is None else mask[:, :start]) if start else (None, None)
        return sample(model, len(frames), horizon, context[0], settings, context[1])
    if mode == "reconstruct":
        return reconstruct(model, frames, mask, settings)
    if mask is None:
        raise InputError("infill needs data with missing frames or entries (NaN, or a mask), found none missing")
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
