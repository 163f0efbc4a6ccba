"""The command line: seed, device, paths. What the commands do stands in the modules above."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import json
import operator
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import docstring_parser
import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from pyro_hrssm import checkpoint, data, files
from pyro_hrssm.config import DataConfig, HRSSMConfig, TrainingConfig, from_dict, to_dict
from pyro_hrssm.data import Scaling, Sequences, Splits
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.evaluation import Evaluation, in_order, measure, move, random_seed
from pyro_hrssm.inference.prediction import Prediction, Settings, forecast, infill, jump, reconstruct, sample, segment
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.reports import html as report
from pyro_hrssm.reports import plotting
from pyro_hrssm.reports.figures import SHOWN, animation, prediction_figures, run_figures, save_figures
from pyro_hrssm.run import parallel
from pyro_hrssm.run.loading import LoaderError
from pyro_hrssm.run.parallel import ProcessError, Processes
from pyro_hrssm.run.training import Interrupted, Trainer, TrainingError, best_restart, restart_folder

FIRST = 500
"""Training sequences at whose mean frame the emission starts."""

Model = TypeVar("Model", bound=StateSpaceModel)
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Train:
    """Train a model, evaluate it on held-out sequences, and leave a run folder with checkpoints and figures."""

    out: Path | None = None
    """Run folder; must not hold a run yet. Default: runs/ and the name of the data."""
    resume: Path | None = None
    """Go on with this run from its last checkpoint; its settings are the defaults of the other flags."""
    preset: Literal["rows", "video"] = "rows"
    """Defaults of the other flags: `rows`, digits row by row; `video`, images with 5 frames of context."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    model: HRSSMConfig = field(default_factory=HRSSMConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    dataset: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class Evaluate:
    """Score a run with hard boundaries: the bound, its terms, the importance-weighted bound, the boundaries."""

    run: tyro.conf.Positional[Path]
    """Run folder, or one checkpoint file."""
    data: str | None = None
    """Sequences of this file, or held-out ones of this data set; default: held-out ones of the run's own data."""
    particles: int = 100
    """Particles K of the importance-weighted bound."""
    horizons: tuple[int, ...] = ()
    """Also report the log likelihood of the next 1, 5, … frames, given those before."""
    given: int | None = None
    """Frames that these forecasts start from; default: half of them."""
    seed: int = 1
    """Seed of the draws."""
    json: bool = False
    """Print one JSON object instead of a table."""
    device: Device = "auto"
    """Where to compute."""


@dataclass(frozen=True)
class Predict:
    """Reconstruct, forecast, jump, sample or fill in: writes arrays (.npz), film strips (.png) and an animation."""

    run: tyro.conf.Positional[Path]
    """Run folder, or one checkpoint file."""
    mode: Literal["reconstruct", "forecast", "jump", "sample", "infill"] = "forecast"
    """What to predict: given frames again, frames after them, one frame per future segment, sequences from the prior,
    or missing frames."""
    data: str | None = None
    """Sequences of this file, or held-out ones of this data set; default: held-out ones of the run's own data."""
    context: int | None = None
    """Frames given (forecast, jump); default: half of them."""
    horizon: int | None = None
    """Frames, or segments for jump, to predict (forecast, jump, sample); default: as many as remain."""
    num_sequences: int = 8
    """Sequences to predict, from the first on."""
    num_samples: int = 10
    """Samples per sequence."""
    draw: bool = False
    """Draw frames from p(x | ·) instead of taking its mean."""
    chunk_size: int = 8192
    """Samples times sequences in one pass: bounds memory."""
    out: Path = Path("predictions.npz")
    """Arrays: `frames`, `boundaries`, `prior`, `posterior`, `abstract`, `observation` [samples, B, T, …], `lengths`
    and `given` [B], and the data's own `original` [B, T, …]. Pictures are written beside it."""
    seed: int = 1
    """Seed of the draws."""
    device: Device = "auto"
    """Where to compute."""


@dataclass(frozen=True)
class Segment:
    """Most probable segments of sequences: a table with one row per segment."""

    run: tyro.conf.Positional[Path]
    """Run folder, or one checkpoint file."""
    data: str | None = None
    """Sequences of this file, or held-out ones of this data set; default: held-out ones of the run's own data."""
    out: Path = Path("segments.csv")
    """Columns: sequence, start, end (both frames of the segment, from 0), and the probability of its ending there,
    empty where the sequence itself ends."""
    device: Device = "auto"
    """Where to compute."""


@dataclass(frozen=True)
class Report:
    """Write one HTML file about a run: scores, training curves, settings, and sequences to step through."""

    run: tyro.conf.Positional[Path]
    """Run folder, or one checkpoint file, which has neither scores nor curves."""
    data: str | None = None
    """Sequences of this file, or held-out ones of this data set; default: held-out ones of the run's own data."""
    num_sequences: int = 6
    """Sequences to show, from the first on."""
    out: Path = Path("report.html")
    """The file; it needs no other one and no network."""
    seed: int = 1
    """Seed of the draw of the states that is shown."""
    device: Device = "auto"
    """Where to compute."""


@dataclass(frozen=True)
class Generate:
    """Write synthetic sequences whose true boundaries are known."""

    out: Path | None = None
    """Archive (.npz) with `frames`, `boundaries` and what else the data set knows. Default: the data set's name in
    this folder."""
    num: Annotated[int, tyro.conf.arg(aliases=("--episodes",))] = 1000
    """Sequences."""
    seed: int = 0
    """Seed of all draws."""


def _generate_type(name: str) -> type[Generate]:
    """:class:`Generate` with one more flag for each parameter of a data set's own generator, described there."""
    generate = data.GENERATORS[name]
    hints = get_type_hints(generate)
    described = {entry.arg_name: entry.description for entry in docstring_parser.parse(generate.__doc__ or "").params}
    flags = [
        (key, Annotated[hints[key], tyro.conf.arg(help=described[key])], field(default=parameter.default))
        for key, parameter in inspect.signature(generate).parameters.items()
        if key not in ("num", "seed")
    ]
    made = dataclasses.make_dataclass(name, flags, bases=(Generate,), frozen=True)
    made.__doc__ = (generate.__doc__ or "").split("\n\n")[0]
    return made


PRESETS = {
    "rows": Train(),
    "video": Train(
        preset="video",
        model=HRSSMConfig(frame_shape=(32, 32, 3), context=5, max_segments=5, max_length=8),
        training=TrainingConfig(batch_size=16),
        dataset=DataConfig(data="balls"),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `pyro-hrssm`.

    A wrong input, or a file that cannot be written, ends with one line and exit code 2; Ctrl-C with one and 130;
    output that nobody reads any more with none and 141.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command = parse(arguments)
        if isinstance(command, Train):
            train(command, arguments)
        elif isinstance(command, Evaluate):
            evaluate_run(command)
        elif isinstance(command, Predict):
            predict(command)
        elif isinstance(command, Segment):
            segment_run(command)
        elif isinstance(command, Report):
            report_run(command)
        else:
            generate(command)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output has left, as `head` does; Python would fail once more as it flushes on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (InputError, TrainingError, ProcessError, LoaderError) as error:
        print(f"pyro-hrssm: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt as stop:
        print(f"pyro-hrssm: {stop.args[0] if stop.args else 'interrupted'}", file=sys.stderr)
        sys.exit(128 + (stop.number if isinstance(stop, Interrupted) else signal.SIGINT))


def train(command: Train, arguments: Sequence[str]) -> None:
    """Set up or resume a run, train it to its last step, evaluate it, draw its figures.

    Each of the processes that `torchrun` starts comes here; the first one alone writes and prints.
    """
    device = _device(command.device)
    # Before they connect: one that left while the others still do would end them with an error of another kind.
    Processes(size=parallel.world_size()).check_divides(command.training.batch_size)
    with parallel.joined(device) as processes:
        _train(command, arguments, device, processes)


def _train(command: Train, arguments: Sequence[str], device: torch.device, processes: Processes) -> None:
    begun = checkpoint.Checkpoint(0, {}, {}) if command.resume is None else checkpoint.resume(command.resume)
    scaling = Scaling.from_dict(begun.record.get("scaling")) if begun.record else None
    splits = processes.after_first(lambda: data.load(command.dataset, scaling))
    command = dataclasses.replace(command, model=_fit_to_data(command.model, splits))
    run = _run_folder(command)
    if processes.first:
        shared = f", {processes.size} processes" if processes.size > 1 else ""
        print(f"{run}: {len(splits.train)} sequences to train on, {len(splits.held_out)} held out, on {device}{shared}")
    if not begun.tensors:
        processes.on_first(lambda: _begin(command, splits, run, {"command": list(arguments), "device": str(device)}))
    with _telling_how_to_go_on(run):
        scores = _fit(command, splits, run, device, begun, processes)
    if processes.first:
        print(scores.table())
        print(f"figures, metrics and checkpoints: {run}")


def _begin(command: Train, splits: Splits, run: Path, further: dict[str, Any]) -> None:
    """Make the run's folder, where it is new, and write what the run was told."""
    record = _record(command, splits)
    if command.resume is None:
        checkpoint.new_run(run)
    files.write_json(run / "config.json", record | further)


@contextlib.contextmanager
def _telling_how_to_go_on(run: Path) -> Iterator[None]:
    """Give Ctrl-C a message: the run is in its folder and can be resumed."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = (f"interrupted; go on with: pyro-hrssm train --resume {shlex.quote(str(run))}",)
        raise


def _fit(
    command: Train,
    splits: Splits,
    run: Path,
    device: torch.device,
    begun: checkpoint.Checkpoint,
    processes: Processes,
) -> Evaluation:
    """Train to the last step, from where the run stands or from the best of several starts; score the model."""
    if not begun.tensors and command.training.restarts > 1:
        command, begun = _restart(command, splits, run, device, processes)
    trainer = _trainer(command, splits, run, device, processes)
    if begun.tensors:
        if processes.first and begun.record.get("data_sha256") != trainer.record["data_sha256"]:
            print(f"pyro-hrssm: {run} began with other sequences than it goes on with now", file=sys.stderr)
        trainer.restore(begun)
    trainer.fit(splits.train, splits.held_out)

    def score() -> Evaluation:
        scores = trainer.score(splits.train, splits.held_out)
        files.write_json(run / "evaluation.json", {"step": trainer.step} | scores.to_dict())
        return scores

    return processes.on_first(score)


def _trainer(command: Train, splits: Splits, run: Path, device: torch.device, processes: Processes) -> Trainer:
    torch.manual_seed(command.training.seed)
    model = StateSpaceModel.build(command.model)
    first = splits.train.batch(range(min(FIRST, len(splits.train))))
    model.start_at(first.frames, first.mask)
    model = model.to(device)
    shown = move(splits.held_out.batch(range(min(SHOWN, len(splits.held_out)))), device)

    def pictures(model: StateSpaceModel, step: int, writer: Any) -> None:
        figures = run_figures(model, *shown)
        save_figures(figures, run)
        for name, figure in figures.items():
            writer.add_figure(name, figure, step)

    # The record holds a digest of all data: one process is enough to read them for it.
    record = _record(command, splits) if processes.first else {}
    return Trainer(model, command.training, run, record, pictures, processes)


def _restart(
    command: Train, splits: Splits, run: Path, device: torch.device, processes: Processes
) -> tuple[Train, checkpoint.Checkpoint]:
    """Try several seeds; the command for the best one, and where it stands."""

    def seeded(seed: int) -> Train:
        return dataclasses.replace(command, training=dataclasses.replace(command.training, seed=seed, restarts=1))

    def start(seed: int, folder: Path) -> Trainer:
        trainer = _trainer(seeded(seed), splits, folder, device, processes)
        begun = checkpoint.newest(folder)  # by a process that was stopped among the restarts
        if begun is not None:
            trainer.restore(begun)
        return trainer

    seed = best_restart(start, command.training, run, splits.train, splits.held_out)
    tried = restart_folder(run, seed)
    if processes.first:
        files.write_bytes(run / "metrics.jsonl", (tried / "metrics.jsonl").read_bytes())
        print(f"going on with seed {seed}")
    return seeded(seed), checkpoint.load(tried)


def evaluate_run(command: Evaluate) -> None:
    """Score a run's newest checkpoint on held-out sequences, or on all of another file."""
    if command.particles < 1:
        raise InputError(f"particles must be at least 1, found {command.particles}")
    device = _device(command.device)
    model, held_out, train = _open(command.run, command.data, device, StateSpaceModel)
    scores = measure(
        model,
        held_out,
        train,
        particles=command.particles,
        seed=command.seed,
        given=command.given,
        horizons=command.horizons,
    )
    print(json.dumps(scores.to_dict()) if command.json else scores.table())


def predict(command: Predict) -> None:
    """Predict from a run's newest checkpoint; write arrays and pictures."""
    settings = Settings(command.num_samples, command.draw, command.chunk_size, progress=True)
    if command.num_sequences < 1:
        raise InputError(f"num_sequences must be at least 1, found {command.num_sequences}")
    if command.out.suffix != ".npz":
        raise InputError(f"out must end in .npz, found {command.out}")
    device = _device(command.device)
    kind = HRSSM if command.mode == "jump" else StateSpaceModel
    model, sequences, _ = _open(command.run, command.data, device, kind)
    frames, mask, _ = next(in_order(sequences, device, command.num_sequences))
    with random_seed(device, command.seed):
        prediction = _predict(command, model, frames, mask, settings)
    arrays = {name: value.cpu().numpy() for name, value in prediction._asdict().items()}
    # In the data's own units.
    arrays["frames"] = sequences.scaling.invert(arrays["frames"]).astype("float32")
    arrays["original"] = sequences.scaling.invert(frames.cpu().numpy()).astype("float32")
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    files.write_bytes(command.out, packed.getvalue())
    for name, figure in prediction_figures(prediction).items():
        plotting.save(figure, command.out.with_name(f"{command.out.stem}_{name}.png"))
    plotting.animate(animation(prediction.frames[0]), command.out.with_suffix(".gif"))
    print(f"{command.out}: frames {list(arrays['frames'].shape)}; film strips and animation beside it")


def _predict(
    command: Predict, model: StateSpaceModel, frames: Tensor, mask: Tensor | None, settings: Settings
) -> Prediction:
    total = frames.shape[1]
    given = max(model.config.context + 1, total // 2) if command.context is None else command.context
    if command.mode in ("forecast", "jump") and not 1 <= given <= total:
        raise InputError(f"context must lie between 1 and the sequences' {total} frames, found {given}")
    rest = total - given
    cut = None if mask is None else mask[:, :given]
    if command.mode == "forecast":
        return forecast(model, frames[:, :given], rest if command.horizon is None else command.horizon, cut, settings)
    if command.mode == "jump":
        segments = (model.config.max_segments or 5) if command.horizon is None else command.horizon
        return jump(model, frames[:, :given], segments, cut, settings)
    if command.mode == "sample":
        start = model.config.context
        horizon = total - start if command.horizon is None else command.horizon
        return sample(model, len(frames), horizon, frames[:, :start] if start else None, settings)
    if command.mode == "reconstruct":
        return reconstruct(model, frames, mask, settings)
    if mask is None:
        raise InputError("infill needs data with missing frames (NaN, or a mask), found none missing")
    return infill(model, frames, mask, settings)


def segment_run(command: Segment) -> None:
    """Write the most probable segments of every sequence."""
    device = _device(command.device)
    model, sequences, _ = _open(command.run, command.data, device, HRSSM)
    start = model.config.context
    lines, first = ["sequence,start,end,probability"], 0
    for frames, mask, _ in tqdm(in_order(sequences, device), unit="batch", desc="segment"):
        found = segment(model, frames, mask)
        for number, (boundaries, probabilities) in enumerate(zip(*found[:2], strict=True), first):
            seen = frames.new_ones(frames.shape[1]) if mask is None else mask[number - first]
            lines += _segment_rows(number, boundaries, probabilities, start, int(seen.nonzero()[-1]) + 1)
        first += len(frames)
    files.write_text(command.out, "\n".join(lines) + "\n")
    print(f"{command.out}: {len(lines) - 1} segments of {first} sequences")


def _segment_rows(number: int, boundaries: Tensor, probabilities: Tensor, start: int, stop: int) -> Iterator[str]:
    """One line per segment of a sequence whose modelled frames are `start` to `stop - 1`."""
    modelled = start
    for index in boundaries.nonzero().squeeze(1).tolist():
        yield f"{number},{start},{modelled + index},{probabilities[index]:.6f}"
        start = modelled + index + 1
    yield f"{number},{start},{stop - 1},"


def report_run(command: Report) -> None:
    """Write the report of a run's newest checkpoint."""
    if command.num_sequences < 1:
        raise InputError(f"num_sequences must be at least 1, found {command.num_sequences}")
    if command.out.suffix != ".html":
        raise InputError(f"out must end in .html, found {command.out}")
    device = _device(command.device)
    loaded = checkpoint.load(command.run)
    model, sequences, train = _restore(loaded, command.data, device, StateSpaceModel)
    print(f"{command.run}: step {loaded.step}, drawing {min(command.num_sequences, len(sequences))} sequences")
    name = loaded.record["data"]["data"] if command.data is None else command.data
    source = f"{'Sequences' if train is None else 'Held-out sequences'} of {name}"
    page = report.page(command.run, loaded, model, sequences, source, command.num_sequences, command.seed)
    files.write_text(command.out, page)
    print(f"{command.out}: {len(page) / 1e6:.1f} MB in one file, to be opened in any browser")


def generate(command: Generate) -> None:
    """Write a synthetic data set."""
    name = type(command).__name__
    out = Path(f"{name}.npz") if command.out is None else command.out
    parameters = vars(command).copy()
    for key in ("out", "num", "seed"):
        del parameters[key]
    arrays = data.generate(name, command.num, command.seed, **parameters)
    data.save_npz(out, **arrays)
    rate = arrays["boundaries"][:, :-1].mean()
    print(f"{out}: frames {list(arrays['frames'].shape)}, a true boundary after {100 * rate:.1f} % of them")


def _open(
    run: Path, name: str | None, device: torch.device, kind: type[Model]
) -> tuple[Model, Sequences, Sequences | None]:
    """What :func:`_restore` makes of a run folder's newest checkpoint, or of one checkpoint file."""
    return _restore(checkpoint.load(run), name, device, kind)


def _restore(
    loaded: checkpoint.Checkpoint, name: str | None, device: torch.device, kind: type[Model]
) -> tuple[Model, Sequences, Sequences | None]:
    """A run's model, which must be of this kind, what to use it on, and training sequences where there are any.

    Used on are the held-out sequences of a data set, or all of a file of its own.
    """
    model = kind.restore(loaded, device)
    scaling = Scaling.from_dict(loaded.record.get("scaling"))
    dataset = from_dict(DataConfig, loaded.record.get("data"))
    if name is None or name in data.DATA_SETS or name == dataset.data:
        chosen = dataset if name is None else dataclasses.replace(dataset, data=name)
        splits = data.load(chosen, scaling)
        return model, splits.held_out, splits.train
    if not Path(name).expanduser().exists():
        data.load(dataclasses.replace(dataset, data=name))  # says what a name can be
    return model, data.whole(name, scaling), None


def _device(name: Device) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch finds no GPU here; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if not parallel.distributed():
        return torch.device("cuda")
    number = parallel.local_rank()
    if number >= torch.cuda.device_count():
        raise InputError(f"every process needs a GPU of its own, found {torch.cuda.device_count()}: start fewer")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _fit_to_data(config: HRSSMConfig, splits: Splits) -> HRSSMConfig:
    """The model's configuration with what only the data can say: frame shape, window, the likelihood that suits."""
    frames = splits.train.num_frames - config.context
    if frames < 1:
        raise InputError(f"context {config.context} leaves no frame of {splits.train.num_frames} to model")
    return dataclasses.replace(
        config,
        frame_shape=splits.train.frame_shape,
        window=frames if config.window is None else config.window,
        likelihood=splits.likelihood if config.likelihood == "auto" else config.likelihood,
    )


def _run_folder(command: Train) -> Path:
    if command.resume is not None:
        if command.out not in (None, command.resume):
            raise InputError(f"a resumed run stays in its folder {command.resume}, found --out {command.out}")
        return command.resume
    return Path("runs") / Path(command.dataset.data).stem if command.out is None else command.out


def _record(command: Train, splits: Splits) -> dict[str, Any]:
    """What every checkpoint carries beside the weights."""
    return {
        "model": to_dict(command.model),
        "training": to_dict(command.training),
        "data": to_dict(command.dataset),
        "scaling": splits.scaling.to_dict(),
        "data_sha256": {"train": splits.train.digest(), "held_out": splits.held_out.digest()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,  # unlike the package's version, with that of CUDA
            **{name: version(name) for name in ("pyro-hrssm", "pyro-ppl", "numpy")},
        },
        "git": _git_state(),
    }


def _git_state() -> str | None:
    """The commit this code was run from, with a mark where files were changed; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def parse(arguments: Sequence[str]) -> Train | Evaluate | Predict | Segment | Report | Generate:
    """The command, its defaults taken from `--resume` or `--preset` where given; a wrong flag is one line, exit 2."""
    if list(arguments[:1]) == ["data"]:
        return _parse_data(arguments[1:])
    defaults = _defaults(arguments)
    train_type = Annotated[Train, tyro.conf.subcommand("train", default=defaults)]
    evaluate_type = Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    predict_type = Annotated[Predict, tyro.conf.subcommand("predict")]
    segment_type = Annotated[Segment, tyro.conf.subcommand("segment")]
    report_type = Annotated[Report, tyro.conf.subcommand("report")]
    data_type = Annotated[Generate, tyro.conf.subcommand("data")]
    with _one_line_errors():
        return tyro.cli(
            train_type | evaluate_type | predict_type | segment_type | report_type | data_type,
            prog="pyro-hrssm",
            description="Segments, forecasts and jumpy imagination from sequences without labels.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )


def _parse_data(arguments: Sequence[str]) -> Generate:
    """The command `data NAME`, every data set with its own flags."""
    types = [Annotated[_generate_type(name), tyro.conf.subcommand(name)] for name in data.GENERATORS]
    union: Any = functools.reduce(operator.or_, types)
    with _one_line_errors():
        command: Generate = tyro.cli(
            union,
            prog="pyro-hrssm data",
            description=Generate.__doc__,
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    return command


def _defaults(arguments: Sequence[str]) -> Train:
    resume, preset = _value_of("--resume", arguments), _value_of("--preset", arguments)
    if resume is None:
        return PRESETS.get(preset or "rows", PRESETS["rows"])
    record = checkpoint.resume(Path(resume)).record
    return Train(
        model=from_dict(HRSSMConfig, record.get("model")),
        training=from_dict(TrainingConfig, record.get("training")),
        dataset=from_dict(DataConfig, record.get("data")),
    )


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn the parser's boxed message into one line."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            yield
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise InputError(_first_paragraph(message.getvalue())) from None


def _first_paragraph(box: str) -> str:
    """What a box of the parser says above its first rule, without its frame."""
    lines = [line.strip("│ ").strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    said = []
    for line in lines:
        if line.startswith(("╭", "╰")):
            continue
        if line.startswith("─"):
            break
        said.append(line)
    return " ".join(said) or "the command line could not be read; see pyro-hrssm --help"
