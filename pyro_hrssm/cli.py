"""The command line: its commands, and how they are parsed; `run` does the work."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import operator
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pyro_hrssm import checkpoint, data, flags
from pyro_hrssm.config import DataConfig, HRSSMConfig, TrainingConfig
from pyro_hrssm.data.loading import LoaderError
from pyro_hrssm.errors import InputError, one_line, require
from pyro_hrssm.files import why
from pyro_hrssm.inference.scores.methods import Which
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.run import life, parallel, predicting, scoring, seeds, segment_types, segmenting, use
from pyro_hrssm.run.diagnosis import TrainingError
from pyro_hrssm.run.parallel import ProcessError
from pyro_hrssm.run.presets import Preset, chosen
from pyro_hrssm.run.process import Interrupted
from pyro_hrssm.run.settings import Settings
from pyro_hrssm.run.voice import PRINTED

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Train:
    """Train a model, evaluate it on held-out sequences, and leave a run folder with checkpoints and figures."""

    out: Path | None = None
    """Run folder; must not hold a run yet. Default: runs/ and the name of the data."""
    resume: Path | None = None
    """Go on with this run from its last checkpoint; its settings are the defaults of the other flags."""
    preset: Literal["auto"] | Preset = "auto"
    """Defaults of the other flags: `segments`, right segments without limits, for your own data; `rows`, digits row by
    row; `video`, images with 5 frames of context; `paper`, the published system to the letter; `auto` goes by `--data`.
    """
    seeds: int = 1
    """Seeds, from `--seed` on, that are each trained to the end, in folders of their own below `--out`: side by side on
    a GPU, else one after the other. Their scores are given as mean ± standard deviation, also in `seeds.json`. The same
    command again goes on where it was stopped."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    model: HRSSMConfig = field(default_factory=HRSSMConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    dataset: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class OfRun:
    """The flags of every command on a trained run."""

    run: tyro.conf.Positional[Path]
    """Run folder, or one checkpoint file."""
    best: bool = False
    """Take the checkpoint of the run's best held-out bound (`train --keep-best`), not the last one."""
    data: str | None = None
    """All sequences of this file, or held-out ones of this data set; default: held-out ones of the run's own data."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""


@dataclass(frozen=True)
class Evaluate(OfRun):
    """Score a run with hard boundaries: the bound, its terms, the importance-weighted bound, the boundaries."""

    particles: int = 100
    """Particles K of the importance-weighted bound."""
    horizons: tuple[int, ...] = ()
    """Also report the log likelihood of the next 1, 5, … frames, given those before; and of the frame so far ahead, the
    CRPS and the share inside the central 80 % interval, beside persistence: the last frame given, and as its spread the
    changes over as many frames in the training sequences."""
    given: int | None = None
    """Frames that these forecasts start from; default: half of them."""
    num_samples: int = 100
    """Draws of each forecast."""
    margin: int | None = None
    """Also report F1 where a boundary may be so many frames off, and tune the other methods for it."""
    methods: Which = "all"
    """Methods beside the model where true boundaries are known: `all`, also hidden Markov models and kernel change
    points; `quick`, those of training's own evaluation; `none`."""
    flat: Path | None = None
    """Run of an RSSM on the same sequences: its forecasts are scored beside the run's, and the peaks of its surprise
    are one more method of `--methods all`."""
    seed: int = 1
    """Seed of the draws."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class Predict(OfRun):
    """Reconstruct, forecast, jump, sample or fill in: writes arrays (.npz), film strips (.png) and an animation."""

    mode: predicting.Mode = "forecast"
    """The prediction: given frames again, frames after them, one frame per future segment, sequences from the prior, or
    what is missing, frames or single entries."""
    context: int | None = None
    """Frames given (forecast, jump); default: half of them."""
    horizon: int | None = None
    """Frames, or segments for jump, to predict (forecast, jump, sample); default: as many as remain."""
    num_sequences: int = 8
    """Sequences to predict, from the first on."""
    num_samples: int | None = None
    """Samples per sequence; default: 10, and with `--quantiles` 100, or as many more as quantiles in the tails need."""
    draw: bool = False
    """Draw frames from p(x | ·) instead of taking its mean."""
    quantiles: tuple[float, ...] = ()
    """Also write quantiles of every entry of the frames, such as 0.1 0.5 0.9, over samples that are then drawn from
    p(x | ·) as by `--draw`, with a picture if frames are vectors. Given frames have those of their reconstructions."""
    chunk_size: int = 8192
    """Samples times sequences in one pass: bounds memory."""
    out: Path = Path("predictions.npz")
    """Arrays: `frames`, `boundaries`, `prior`, `posterior`, `abstract`, `observation` [samples, B, T, …], `lengths`
    and `given` [B], zeros after a sequence's `lengths`; with `--quantiles` also `quantiles` [Q, B, T, …] and
    `quantile_levels` [Q], growing; the data's own `original` [B, T, …] with its `mask` [B, T], or [B, T, …] where
    entries are missing or have `weights`, zeros where that is false; `rows` [B], each sequence's number in its file,
    its `names` if the file has them, and the `starts` of windows in their recordings.
    Pictures are written beside it."""
    seed: int = 1
    """Seed of the draws."""


@dataclass(frozen=True)
class Segment(OfRun):
    """Most probable segments of sequences, recordings whole: a table with one row per segment, and their types."""

    types: Literal["auto"] | int | None = None
    """Number of types of segments, or `auto` for the one that fits best by BIC. They are fitted on the run's training
    sequences and kept in the run, so that later calls, with or without this flag, give new sequences the same types."""
    types_of: segment_types.Source = "states"
    """What types are clusters of: the abstract `states` of the segments, or their `frames`, for segments in which one
    thing goes on from many starting points, such as oscillations in any phase; `frames` needs a number of types."""
    out: Path = Path("segments.csv")
    """Columns: sequence (from 0), row (its number in the file), name (if the file has `names`), start, end (both frames
    of the segment, from 0), and the probability of its ending there, empty where the sequence itself ends; where the
    run keeps types also type (from 0, the most frequent one) and type_probability, with figures of the types beside
    the table."""


@dataclass(frozen=True)
class Report(OfRun):
    """Write one HTML file about a run: scores, training curves, settings, and sequences to step through."""

    num_sequences: int = 6
    """Sequences to show, from the first on."""
    out: Path = Path("report.html")
    """The file; it needs no other one and no network."""
    seed: int = 1
    """Seed of the draw of the states that is shown."""


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `pyro-hrssm`.

    A wrong input, or a file that cannot be written, ends with one line and exit code 2; Ctrl-C with one line and 130; a
    closed pipe on the output with none and 141.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an output in ASCII has no ±
    try:
        command = parse(arguments)
        if isinstance(command, OfRun) and command.best:
            command = dataclasses.replace(command, run=checkpoint.best_of(command.run))
        if isinstance(command, Train):
            train(command, arguments)
        elif isinstance(command, Evaluate):
            evaluate(command)
        elif isinstance(command, Predict):
            predict(command)
        elif isinstance(command, Segment):
            segment(command)
        elif isinstance(command, Report):
            report(command)
        else:
            generate(command)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has left, as `head` does; Python would fail once more as it flushes on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (InputError, TrainingError, ProcessError, LoaderError) as error:
        print(f"pyro-hrssm: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except OSError as error:  # a name too long, a folder that must not be searched: wherever a path is touched first
        named = f"cannot use {error.filename} ({why(error)})" if error.filename is not None else one_line(error)
        print(f"pyro-hrssm: {named}", file=sys.stderr)
        sys.exit(2 if error.filename is not None else 1)
    except KeyboardInterrupt as stop:
        print(f"pyro-hrssm: {stop.args[0] if stop.args else 'interrupted'}", file=sys.stderr)
        sys.exit(128 + (stop.number if isinstance(stop, Interrupted) else signal.SIGINT))


def train(command: Train, arguments: Sequence[str]) -> None:
    """Begin or resume a run, train it to its last step, evaluate it, draw its figures."""
    if command.resume is not None and command.preset != "auto":
        raise InputError(
            f"a resumed run keeps its own settings, found --preset {command.preset}: name flags one by one"
        )
    settings = Settings(command.model, command.training, command.dataset)
    require(command.seeds >= 1, f"seeds must be at least 1, found {command.seeds}")
    if command.seeds > 1:
        require(command.resume is None, "seeds begins runs of its own, and its command again goes on; found --resume")
        seeds.train_seeds(settings, command.seeds, command.out, parallel.device_named(command.device), list(arguments))
        return
    life.train(settings, command.out, command.resume, parallel.device_named(command.device), list(arguments))


def evaluate(command: Evaluate) -> None:
    """Score a run's newest checkpoint on held-out sequences, or on all of a file."""
    scoring.check(command.particles, command.margin)
    opened, flat = _open(command), command.flat
    if flat is not None:
        scoring.check_flat(opened, command.horizons, command.methods)
    if not command.json:
        print(opened.told())
    scores = scoring.scores(
        opened,
        particles=command.particles,
        seed=command.seed,
        given=command.given,
        horizons=command.horizons,
        margin=command.margin,
        methods=command.methods,
        flat=None if flat is None else lambda: use.open_flat(opened, flat),
        num_samples=command.num_samples,
    )
    about = {"source": opened.source.description, "trained_on": opened.source.trained_on()}
    print(json.dumps(scores.to_dict() | about) if command.json else scores.table("sequences"))


def predict(command: Predict) -> None:
    """Predict from a run's newest checkpoint; write arrays and pictures."""
    levels, num = tuple(sorted(command.quantiles)), command.num_sequences
    how = predicting.how(command.num_samples, command.draw, levels, command.chunk_size, progress=True)
    _check_output(command, ".npz")
    kind = HRSSM if command.mode == "jump" else StateSpaceModel
    opened = _open(command, kind)
    print(opened.told(num))
    if levels and opened.model.config.likelihood == "bernoulli":
        print("quantiles under the run's Bernoulli likelihood: every draw of an entry is its smallest or largest value")
    found = predicting.predict(opened, command.mode, command.context, command.horizon, num, how, command.seed)
    predicting.write(opened, command.mode, found, num, levels, command.out)


def segment(command: Segment) -> None:
    """Write the most probable segments of every sequence."""
    wanted = None if command.types is None else segment_types.Wanted(command.types, command.types_of)
    if wanted is not None:
        segment_types.check(wanted)
    elif command.types_of != "states":
        raise InputError(f"types_of {command.types_of} needs a number of --types, found none")
    opened = _open(command, HRSSM)
    if wanted is not None:
        opened = segmenting.with_types(opened, wanted, PRINTED)
    segmenting.write_segments(opened, command.out)


def report(command: Report) -> None:
    """Write the report of a run's newest checkpoint."""
    _check_output(command, ".html")
    opened = _open(command)
    types = segmenting.types_section(opened)
    use.report(opened, command.run, command.num_sequences, command.seed, command.out, types)


def _open(command: OfRun, kind: type[StateSpaceModel] = StateSpaceModel) -> use.Opened:
    opened = use.open_run(command.run, command.data, parallel.device_named(command.device), kind)
    if isinstance(command, Segment):
        opened = opened.whole()
    for line in use.doubts(opened, given=command.data is not None):
        print(f"pyro-hrssm: {line}", file=sys.stderr)
    return opened


def _check_output(command: Predict | Report, ending: str) -> None:
    require(command.num_sequences >= 1, f"num_sequences must be at least 1, found {command.num_sequences}")
    require(command.out.suffix == ending, f"out must end in {ending}, found {command.out}")


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
    return flags.ask(
        train_type | evaluate_type | predict_type | segment_type | report_type | data_type,
        arguments,
        prog="pyro-hrssm",
        description="Segments, forecasts and jumpy imagination from sequences without labels.",
    )


def _parse_data(arguments: Sequence[str]) -> Generate:
    """The command `data NAME`, every data set with its own flags."""
    types = [
        Annotated[flags.with_parameters(name, Generate, function), tyro.conf.subcommand(name)]
        for name, function in data.GENERATORS.items()
    ]
    union: Any = functools.reduce(operator.or_, types)
    command: Generate = flags.ask(union, arguments, prog="pyro-hrssm data", description=Generate.__doc__)
    return command


def _defaults(arguments: Sequence[str]) -> Train:
    resume, named = _value_of("--resume", arguments), _value_of("--preset", arguments)
    if resume is not None and resume not in flags.NONE:
        found = Settings.of(checkpoint.resume(Path(resume)).record)
        return Train(model=found.model, training=found.training, dataset=found.dataset)
    data, model, elbo = (_value_of(flag, arguments) for flag in ("--data", "--model", "--elbo"))
    start = chosen(named, data, model, elbo)
    return Train(model=start.model, training=start.training, dataset=start.dataset)


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value given last, which is the one that counts."""
    value = None
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
    return value
