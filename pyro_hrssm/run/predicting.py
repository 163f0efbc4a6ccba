"""Predictions of a trained run in the data's own units: their arrays, and the files of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_hrssm import files
from pyro_hrssm.data import Scaling
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.evaluation import random_seed
from pyro_hrssm.inference.forecasts import draws_for, quantiles
from pyro_hrssm.inference.prediction import Prediction, Settings, forecast, infill, jump, reconstruct, sample
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.masks import has_weights
from pyro_hrssm.reports import drawing, fans, figures
from pyro_hrssm.run.use import Opened

Mode: TypeAlias = Literal["reconstruct", "forecast", "jump", "sample", "infill"]
CHUNK_SIZE = 8192
"""Samples times sequences in one pass, at most."""

USUAL_SAMPLES = 10
"""Samples per sequence where neither a number nor quantiles are asked for."""


class Predicted(NamedTuple):
    """A prediction in the data's own units, as NumPy arrays; T counts given frames, then predicted ones.

    The frames of a model with a context start after the context. Values after a sequence's `lengths` are zeros.
    """

    frames: NDArray[np.float32]
    """[samples, B, T, X…] means of p(x | ·), or draws from it."""
    boundaries: NDArray[np.bool_]
    """[samples, B, T] whether a segment ends with the frame; false at the last one."""
    prior: NDArray[np.float32]
    """[samples, B, T] probability of that under the prior."""
    posterior: NDArray[np.float32]
    """[samples, B, T] probability of that given the frames; 0 after the given ones."""
    abstract: NDArray[np.float32]
    """[samples, B, T, Z] abstract states."""
    observation: NDArray[np.float32]
    """[samples, B, T, S] observation states."""
    lengths: NDArray[np.int64]
    """[B] number of frames of each sequence."""
    given: NDArray[np.int64]
    """[B] number of these that were given."""
    quantiles: NDArray[np.float32] | None = None
    """[Q, B, T, X…] quantiles of every entry over the samples; None where none were asked for."""
    quantile_levels: NDArray[np.float64] | None = None
    """[Q] their levels, growing."""

    @property
    def future(self) -> NDArray[np.float32]:
        """The predicted frames alone, [samples, B, horizon, X…], from each sequence's own end on."""
        return self._after_given(self.frames)

    @property
    def future_quantiles(self) -> NDArray[np.float32] | None:
        """The quantiles [Q, B, horizon, X…] of the predicted frames alone; None where none were asked for."""
        return None if self.quantiles is None else self._after_given(self.quantiles)

    def _after_given(self, values: NDArray[Any]) -> NDArray[Any]:
        horizon = int((self.lengths - self.given).max(initial=0))
        places = self.given[:, None] + np.arange(horizon)
        return values[:, np.arange(len(places))[:, None], places]

    @classmethod
    def of(cls, prediction: Prediction, scaling: Scaling, levels: Sequence[float] = ()) -> Predicted:
        """A model's prediction, brought to the data's own units, with quantiles of these levels, growing."""
        arrays = {name: value.cpu().numpy() for name, value in prediction._asdict().items()}
        frames = np.empty_like(arrays["frames"], np.float32)
        for number, scaled in enumerate(arrays["frames"]):  # in float64, one sample's frames at a time
            frames[number] = scaling.invert(scaled)
        frames[:, np.arange(frames.shape[2]) >= arrays["lengths"][:, None]] = 0
        result = cls(**arrays | {"frames": frames})
        if not levels:
            return result
        return result._replace(quantiles=_quantiles(frames, levels), quantile_levels=np.asarray(levels))


def how(num_samples: int | None, draw: bool, levels: Sequence[float], chunk_size: int, progress: bool) -> Settings:
    """How predictions are computed: quantiles are those of draws, and need more of them."""
    samples = draws_for(levels, num_samples) if levels else num_samples
    return Settings(USUAL_SAMPLES if samples is None else samples, draw or bool(levels), chunk_size, progress)


def predict(
    opened: Opened,
    mode: Mode,
    given: int | None,
    horizon: int | None,
    num_sequences: int | None,
    settings: Settings,
    seed: int,
) -> Prediction:
    """Predict the first so many sequences, or all, in the model's units.

    Arguments:
        given: number of given frames (forecast, jump); None for half of the frames.
        horizon: number of frames, or of segments for jump, to predict; None for as many as remain.
        seed: seed of the draws.
    """
    model, sequences = opened.model, opened.source.sequences
    frames, mask, _ = sequences.batch(range(_count(opened, num_sequences))).to(model.device)
    with random_seed(model.device, seed):
        return _predicted(model, mode, frames, mask, given, horizon, settings)


def write(
    opened: Opened, mode: Mode, prediction: Prediction, num_sequences: int, levels: Sequence[float], out: Path
) -> None:
    """Write a prediction's arrays (.npz), film strips (.png) and an animation (.gif).

    Arguments:
        mode, num_sequences: those of :func:`predict`.
        levels: levels of the quantiles over samples that are written too, growing; vectors get a picture of them.
    """
    model, sequences = opened.model, opened.source.sequences
    count = _count(opened, num_sequences)
    frames, mask, _ = sequences.batch(range(count))
    predicted = Predicted.of(prediction, sequences.scaling, levels)
    arrays = {name: values for name, values in predicted._asdict().items() if values is not None}
    observed = np.ones(frames.shape[:2], bool) if mask is None else mask.numpy() > 0
    original = sequences.scaling.invert(frames.numpy()).astype("float32")
    original[~observed] = 0
    arrays |= {"original": original, "mask": observed, "rows": sequences.rows[:count]}
    if mask is not None and has_weights(mask):
        arrays["weights"] = mask.numpy()
    if sequences.names is not None:
        arrays["names"] = sequences.names[:count]
    if sequences.spans is not None:
        arrays["starts"] = sequences.spans.starts[:count]
    pictures = figures.prediction_figures(prediction)
    if levels and arrays["quantiles"].ndim == 4:
        pictures["quantiles"] = _fan(arrays, mode, model.config.context)
    with files.writing(out) as file:
        np.savez_compressed(file, **arrays)
    for name, figure in pictures.items():
        drawing.save(figure, out.with_name(f"{out.stem}_{name}.png"))
    part = figures.animate(prediction.frames[0], out.with_suffix(".gif"))
    shown = f" ({part})" if part else ""
    also = f", quantiles {list(arrays['quantiles'].shape)}" if levels else ""
    print(f"{out}: frames {list(arrays['frames'].shape)}{also}; film strips and animation{shown} beside it")


def _count(opened: Opened, num_sequences: int | None) -> int:
    total = len(opened.source.sequences)
    return total if num_sequences is None else min(num_sequences, total)


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
