"""A trained run in Python: the model, its scaling and its metrics, and everything that is done with them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_hrssm import checkpoint, files
from pyro_hrssm.checkpoint import METRICS, Checkpoint
from pyro_hrssm.data import Held, Scaling, memory
from pyro_hrssm.errors import InputError, one_line, require
from pyro_hrssm.inference import prediction
from pyro_hrssm.inference.evaluation import Evaluation, random_seed
from pyro_hrssm.inference.scores.methods import Which
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.model.rssm import RSSM
from pyro_hrssm.reports import charts, figures
from pyro_hrssm.run import parallel, predicting, scoring, segment_types, segmenting, use
from pyro_hrssm.run.predicting import Mode, Predicted
from pyro_hrssm.run.segment_types import Kept
from pyro_hrssm.run.segmenting import SegmentTable
from pyro_hrssm.run.settings import Settings
from pyro_hrssm.run.voice import in_python

CONFIG, EVALUATION = "config.json", "evaluation.json"


class Run:
    """A trained model with its scaling, its metrics and its data: what :func:`pyro_hrssm.fit` returns.

    Frames go in, and predictions come out, in the data's own units. Where a method takes `frames`, these are what `fit`
    takes, arrays in memory, a list of recordings, a path or a data set's name, with the arrays beside them as
    keywords (`mask`, `boundaries`, `lengths`, `weights`, `labels`, `names`); None stands for the held-out sequences of
    the run's own data. A run can be pickled, its arrays with it.

    Example:
        >>> import numpy as np
        >>> import pyro_hrssm
        >>> frames = np.random.default_rng(0).normal(20.0, 3.0, (40, 12, 2))
        >>> run = pyro_hrssm.fit(frames, steps=2, hidden=8, verbose=False)
        >>> run.save("run")
        >>> again = pyro_hrssm.Run.load("run")
        >>> again.scores(particles=5).nats_per_sequence == run.scores(particles=5).nats_per_sequence
        True
    """

    loaded: Checkpoint
    """The state of training: step, weights, optimiser and random numbers, and the record of their origin."""
    metrics: list[dict[str, Any]]
    """What training logged, as `metrics.jsonl` holds it: a table by `pandas.DataFrame(run.metrics)`."""
    evaluation: dict[str, Any] | None
    """The held-out scores at the end of training; None for a run that was stopped before."""
    folder: Path | None
    """The run's folder or checkpoint file; None for a run in memory alone."""

    def __init__(
        self,
        loaded: Checkpoint,
        device: torch.device,
        metrics: list[dict[str, Any]],
        evaluation: dict[str, Any] | None,
        origin: dict[str, Any],
        folder: Path | None,
        held: Held | None,
        types: Kept | None,
        best: Checkpoint | None = None,
    ) -> None:
        self.loaded, self.metrics, self.evaluation, self.folder = loaded, metrics, evaluation, folder
        self._origin, self._held, self._types, self._best = origin, held, types, best
        self._model = StateSpaceModel.restore(loaded, device)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "auto") -> Run:
        """The run of a folder, as of its newest checkpoint, or of one checkpoint file; also the command line's."""
        place = Path(os.path.expanduser(path))
        return cls._of(place, checkpoint.load(place), parallel.device_named(device))

    @classmethod
    def _of(
        cls, path: Path, loaded: Checkpoint, device: torch.device, held: Held | None = None, kept: bool = True
    ) -> Run:
        """The run at a path; `kept`: whether the path stays."""
        folder = path if path.is_dir() else memory.kept_by(path).parent
        rows = [row for row in files.read_lines(folder / METRICS) if row.get("step", 0) <= loaded.step]
        found, origin = (
            files.read_json(folder / name) if (folder / name).exists() else None for name in (EVALUATION, CONFIG)
        )
        own = isinstance(found, dict) and found.get("step") == loaded.step
        known = origin if isinstance(origin, dict) else {}
        begun = {name: known[name] for name in ("command", "device") if name in known}
        run = cls(loaded, device, rows, found if own else None, begun, path if kept else None, held, None)
        if isinstance(run.model, HRSSM):
            run._types = segment_types.load(path, run.model)
        if path.is_dir() and checkpoint.BEST in loaded.tensors:
            with contextlib.suppress(InputError):  # a run of `keep_best` off, or one whose file was removed
                run._best = checkpoint.load(checkpoint.best_of(path))
        return run

    @property
    def best(self) -> Run | None:
        """The run as it was at its best held-out bound, where `keep_best` has kept that; None where it has not."""
        if self._best is None:
            return None
        rows = [row for row in self.metrics if row["step"] <= self._best.step]
        evaluation = self.evaluation if self._best.step == self.step else None
        place = None if self.folder is None else checkpoint.path_of(self.folder, self._best.step)
        run = Run(self._best, self.model.device, rows, evaluation, self._origin, place, self._held, None)
        if place is not None and isinstance(run.model, HRSSM):
            run._types = segment_types.load(place, run.model)
        return run

    @property
    def model(self) -> StateSpaceModel:
        """The model in evaluation mode; it takes and gives scaled frames, unlike the run."""
        return self._model

    @property
    def scaling(self) -> Scaling:
        """The map between the data's units and the model's."""
        return Scaling.from_dict(self.loaded.record.get("scaling"))

    @property
    def settings(self) -> Settings:
        """The configurations that the run was trained with: `model`, `training` and `dataset`."""
        return Settings.of(self.loaded.record)

    @property
    def types(self) -> Kept | None:
        """The types of segments that the run keeps; None before :meth:`segment` has been asked for some."""
        return self._types

    @property
    def step(self) -> int:
        """Gradient steps taken."""
        return self.loaded.step

    def __repr__(self) -> str:
        config, total = self.model.config, self.settings.training.steps
        shape = "×".join(map(str, config.frame_shape))
        parts = [
            f"{config.model.upper()} of frames [{shape}]",
            f"step {self.step} of {total}",
            f"data {one_line(self.settings.dataset.data)}",
        ]
        if self.evaluation is not None:
            parts.append(f"{self.evaluation['nats_per_sequence']:.2f} nats per held-out sequence")
        parts.append("in memory" if self.folder is None else f"in {one_line(self.folder)}")
        return f"<Run: {', '.join(parts)}>"

    def scores(
        self,
        frames: Any = None,
        mask: Any = None,
        *,
        particles: int = 100,
        horizons: Sequence[int] = (),
        given: int | None = None,
        num_samples: int = 100,
        margin: int | None = None,
        methods: Which = "all",
        whole: bool = False,
        flat: Run | str | os.PathLike[str] | None = None,
        seed: int = 1,
        **beside: Any,
    ) -> Evaluation:
        """The scores of `pyro-hrssm evaluate`: the bound, its terms, and of boundaries where true ones are known.

        `print(run.scores().table())` is what the command prints.

        Arguments:
            particles: particles K of the importance-weighted bound.
            horizons: also score forecasts of the next 1, 5, … frames.
            given: frames that these forecasts start from; None for half of them.
            num_samples: draws of each forecast.
            margin: also score boundaries within so many frames.
            methods: methods beside the model: `all` may take a minute; `quick`, those of training; `none`.
            whole: score recordings from end to end, rather than the windows that they were cut into for training.
            flat: a run of an RSSM on the same sequences, to stand beside this one.
            seed: seed of the draws.
        """
        scoring.check(particles, margin)
        opened = self._opened(frames, mask, beside)
        opened = opened.whole() if whole else opened
        if flat is not None:
            scoring.check_flat(opened, horizons, methods)
        return scoring.scores(
            opened, particles=particles, seed=seed, given=given, horizons=tuple(horizons), margin=margin,
            methods=methods, flat=None if flat is None else lambda: _flat(opened, flat), num_samples=num_samples,
        )  # fmt: skip

    def segment(
        self,
        frames: Any = None,
        mask: Any = None,
        *,
        types: int | Literal["auto"] | None = None,
        types_of: segment_types.Source = "states",
        states: bool = False,
        progress: bool = True,
        **beside: Any,
    ) -> SegmentTable:
        """The most probable segments of sequences, recordings whole, as a table with one row per segment.

        Arguments:
            types: number of types of segments, or `auto`. They are fitted on the run's training sequences and kept, so
                that later calls, with or without this argument, give new sequences the same types.
            types_of: what types are clusters of: abstract `states`, or `frames`.
            states: whether the table has the segments' abstract states, which are inferred frame by frame.
            progress: whether to show a progress bar.

        Raises:
            InputError: where the model is a flat one, without segments.
        """
        wanted = segment_types.asked(types, types_of)
        opened = self._opened(frames, mask, beside, HRSSM).whole()
        if wanted is not None:
            opened = segmenting.with_types(opened, wanted, in_python(verbose=False), keep=self.folder is not None)
            self._types = opened.types
        return segmenting.table(opened, shows=progress, states=states)

    def forecast(
        self,
        frames: Any,
        horizon: int,
        mask: Any = None,
        *,
        num_samples: int | None = None,
        quantiles: Sequence[float] = (),
        draw: bool = False,
        seed: int = 1,
        progress: bool = True,
        **beside: Any,
    ) -> Predicted:
        """Continue each sequence after its last frame; `future` of the result has the predicted frames alone.

        Arguments:
            horizon: number of frames to predict.
            num_samples: samples per sequence; None for 10, or with quantiles 100 or as many more as they need.
            quantiles: levels such as 0.1, 0.5 and 0.9, of quantiles over samples that are then drawn.
            draw: draw frames from p(x | ·) instead of taking its mean.
            seed: seed of the draws.
            progress: whether to show a progress bar.
        """
        return self._predicted("forecast", frames, mask, beside, horizon, num_samples, quantiles, draw, seed, progress)

    def jump(
        self,
        frames: Any,
        num_segments: int,
        mask: Any = None,
        *,
        num_samples: int | None = None,
        quantiles: Sequence[float] = (),
        draw: bool = False,
        seed: int = 1,
        progress: bool = True,
        **beside: Any,
    ) -> Predicted:
        """Predict the first frame of each of the next segments; arguments as of :meth:`forecast`."""
        return self._predicted(
            "jump", frames, mask, beside, num_segments, num_samples, quantiles, draw, seed, progress, HRSSM
        )

    def reconstruct(
        self,
        frames: Any,
        mask: Any = None,
        *,
        num_samples: int | None = None,
        quantiles: Sequence[float] = (),
        draw: bool = False,
        seed: int = 1,
        progress: bool = True,
        **beside: Any,
    ) -> Predicted:
        """Infer states from all frames, and decode them into frames; arguments as of :meth:`forecast`."""
        return self._predicted("reconstruct", frames, mask, beside, None, num_samples, quantiles, draw, seed, progress)

    def infill(
        self,
        frames: Any,
        mask: Any = None,
        *,
        num_samples: int | None = None,
        quantiles: Sequence[float] = (),
        draw: bool = False,
        seed: int = 1,
        progress: bool = True,
        **beside: Any,
    ) -> Predicted:
        """Fill in frames and entries that are NaN, or that a mask misses; arguments as of :meth:`forecast`."""
        return self._predicted("infill", frames, mask, beside, None, num_samples, quantiles, draw, seed, progress)

    def sample(
        self,
        num_sequences: int,
        horizon: int,
        context: Any = None,
        *,
        num_samples: int = 1,
        quantiles: Sequence[float] = (),
        draw: bool = False,
        seed: int = 1,
        progress: bool = True,
    ) -> Predicted:
        """Draw sequences from the prior.

        Arguments:
            horizon: number of frames.
            context: [num_sequences, K, X…] for a model with a context of K frames; NaN is missing.
        """
        levels = tuple(sorted(quantiles))
        settings = predicting.how(num_samples, draw, levels, predicting.CHUNK_SIZE, progress)
        with random_seed(self.model.device, seed):
            given, seen = None, None
            if context is not None:
                scaled = self.scaling.apply(context)
                given, seen = np.nan_to_num(scaled, nan=0.0), ~np.isnan(scaled)
            drawn = prediction.sample(
                self.model, num_sequences, horizon, given, settings, None if seen is None or seen.all() else seen
            )
        return Predicted.of(drawn, self.scaling, levels)

    def _predicted(
        self,
        mode: Mode,
        frames: Any,
        mask: Any,
        beside: dict[str, Any],
        horizon: int | None,
        num_samples: int | None,
        quantiles: Sequence[float],
        draw: bool,
        seed: int,
        progress: bool,
        kind: type[StateSpaceModel] = StateSpaceModel,
    ) -> Predicted:
        levels = tuple(sorted(quantiles))
        settings = predicting.how(num_samples, draw, levels, predicting.CHUNK_SIZE, progress)
        opened = self._opened(frames, mask, beside, kind).whole()
        total = opened.source.sequences.num_frames
        found = predicting.predict(opened, mode, total, horizon, None, settings, seed)
        return Predicted.of(found, self.scaling, levels)

    def figures(self, frames: Any = None, mask: Any = None, *, seed: int = 1, **beside: Any) -> dict[str, Figure]:
        """The figures that training paints, by name: `reconstructions`, `samples`, `training`, …"""
        opened = self._opened(frames, mask, beside)
        sequences = opened.source.sequences
        batch = sequences.batch(range(min(figures.SHOWN, len(sequences)))).to(self.model.device)
        with random_seed(self.model.device, seed):
            made = figures.run_figures(self.model, *batch)
        return made | ({"training": charts.training_curves(self.metrics)} if self.metrics else {})

    def report(
        self,
        path: str | os.PathLike[str],
        frames: Any = None,
        mask: Any = None,
        *,
        num_sequences: int = 6,
        seed: int = 1,
        **beside: Any,
    ) -> None:
        """Write one HTML file: scores, curves, settings, and the first sequences to step through."""
        opened = self._opened(frames, mask, beside)
        types = segmenting.types_section(opened, shows=False)
        with self._somewhere() as folder:
            use.report(
                opened, folder, num_sequences, seed, Path(os.path.expanduser(path)), types, in_python(verbose=False)
            )

    def save(self, folder: str | os.PathLike[str], data: bool = True) -> None:
        """Write the run into a new folder, on which every command of the command line works, `train --resume` too.

        Arguments:
            data: whether the folder also keeps the arrays in memory that the run was trained on. Without them, commands
                need `--data`.

        Raises:
            InputError: where a run is already there, or a file cannot be written.
        """
        place = Path(os.path.expanduser(folder))
        checkpoint.new_run(place)
        if data and self._held is not None:
            memory.keep(self._held, place)
        elif data and self.settings.dataset.data == memory.ARRAYS and self.folder is not None:
            memory.copy(self.folder, place)
        files.write_json(place / CONFIG, self.loaded.record | self._origin)
        files.write_lines(place / METRICS, self.metrics)
        if self.evaluation is not None:
            files.write_json(place / EVALUATION, self.evaluation)
        if self._best is not None:
            checkpoint.save(place, self._best, keep=1)
        checkpoint.save(place, self.loaded, keep=1, best=None if self._best is None else self._best.step)
        if self._types is not None and isinstance(self.model, HRSSM):
            segment_types.save(place, self._types, self.model)

    @contextlib.contextmanager
    def _somewhere(self) -> Iterator[Path]:
        """The run's folder or file; of a run in memory, a copy without its data, which goes with the context."""
        if self.folder is not None:
            yield self.folder
            return
        with tempfile.TemporaryDirectory(prefix="pyro_hrssm_") as folder:
            self.save(Path(folder) / "run", data=False)
            yield Path(folder) / "run"

    def _opened(
        self, frames: Any, mask: Any, beside: dict[str, Any], kind: type[StateSpaceModel] = StateSpaceModel
    ) -> use.Opened:
        """The run, opened on frames and what lies beside them; None for its own data."""
        if not isinstance(self.model, kind):
            raise InputError(f"a model of kind {kind.__name__} is needed, found {self.model.config.model}")
        given = {name: values for name, values in ({"mask": mask} | beside).items() if values is not None}
        name: str | Held | None
        if frames is None or isinstance(frames, (str, os.PathLike)):
            require(not given, f"{', '.join(given)} must lie beside frames in memory, found {one_line(frames)}")
            name = None if frames is None else os.fspath(frames)
        else:
            name = memory.hold(frames, **given)
        run = Path("run") if self.folder is None else self.folder
        opened = use.open_on(self.loaded, self.model, name, self._types, run, self._held)
        if name is not None:
            for line in use.doubts(opened, given=False):
                in_python(verbose=False).warn(line)
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_model"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._model = StateSpaceModel.restore(self.loaded, parallel.device_named("auto"))


def _flat(opened: use.Opened, flat: Run | str | os.PathLike[str]) -> RSSM:
    if isinstance(flat, Run):
        return use.flat_beside(opened, flat.loaded, Path("run") if flat.folder is None else flat.folder)
    return use.open_flat(opened, Path(os.path.expanduser(flat)))
