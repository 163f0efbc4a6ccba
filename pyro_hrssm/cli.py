"""The command line: seed, device, paths. What the commands do stands in the modules above."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from pyro_hrssm import checkpoint, data
from pyro_hrssm.config import DataConfig, HRSSMConfig, InputError, TrainingConfig, from_dict, to_dict
from pyro_hrssm.data import Scaling, Splits
from pyro_hrssm.evaluation import evaluate
from pyro_hrssm.figures import run_figures, save_figures
from pyro_hrssm.hrssm import HRSSM
from pyro_hrssm.training import Trainer, TrainingError, held_out_batches, random_seed

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
    """Held-out sequences of this data set or file; default: the run's own."""
    particles: int = 100
    """Particles K of the importance-weighted bound."""
    seed: int = 1
    """Seed of the draws."""
    json: bool = False
    """Print one JSON object instead of a table."""
    device: Device = "auto"
    """Where to compute."""


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
    """Entry point of `pyro-hrssm`; a wrong input ends with one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command = parse(arguments)
        if isinstance(command, Train):
            train(command, arguments)
        else:
            evaluate_run(command)
    except (InputError, TrainingError) as error:
        print(f"pyro-hrssm: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


def train(command: Train, arguments: Sequence[str]) -> None:
    """Set up or resume a run, train it to its last step, evaluate it, draw its figures."""
    device = _device(command.device)
    loaded = None if command.resume is None else checkpoint.load(command.resume)
    scaling = None if loaded is None else Scaling.from_dict(loaded.record.get("scaling"))
    splits = data.load(command.dataset, scaling)
    config = _fit_to_data(command.model, splits)
    torch.manual_seed(command.training.seed)
    model = HRSSM(config).to(device)
    run = _run_folder(command)
    record = _record(config, command, splits)
    batch = next(held_out_batches(splits.held_out, 8, device))

    def pictures(model: HRSSM, step: int, writer: Any) -> None:
        figures = run_figures(model, *batch)
        save_figures(figures, run)
        for name, figure in figures.items():
            writer.add_figure(name, figure, step)

    trainer = Trainer(model, command.training, run, record, pictures)
    if loaded is None:
        checkpoint.new_run(run)
        checkpoint.write_json(run / "config.json", record | {"command": list(arguments), "device": str(device)})
    else:
        trainer.restore(loaded)
        checkpoint.rewind_lines(run / "metrics.jsonl", loaded.step)
    print(f"{run}: {len(splits.train)} sequences to train on, {len(splits.held_out)} held out, on {device}")
    trainer.fit(splits.train, splits.held_out)
    scores = trainer.score(splits.held_out, command.training.particles)
    checkpoint.write_json(run / "evaluation.json", scores.to_dict())
    print(scores.table())
    print(f"figures, metrics and checkpoints: {run}")


def evaluate_run(command: Evaluate) -> None:
    """Score a run's newest checkpoint on held-out sequences."""
    device = _device(command.device)
    loaded = checkpoint.load(command.run)
    model = HRSSM.load(command.run, device)
    dataset = from_dict(DataConfig, loaded.record.get("data"))
    if command.data is not None:
        dataset = dataclasses.replace(dataset, data=command.data)
    splits = data.load(dataset, Scaling.from_dict(loaded.record.get("scaling")))
    if command.particles < 1:
        raise InputError(f"particles must be at least 1, found {command.particles}")
    with random_seed(device, command.seed):
        scores = evaluate(model, held_out_batches(splits.held_out, 500, device), command.particles)
    print(json.dumps(scores.to_dict()) if command.json else scores.table())


def _device(name: Device) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch finds no GPU here; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


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


def _record(config: HRSSMConfig, command: Train, splits: Splits) -> dict[str, Any]:
    """What every checkpoint carries beside the weights."""
    return {
        "model": to_dict(config),
        "training": to_dict(command.training),
        "data": to_dict(command.dataset),
        "scaling": splits.scaling.to_dict(),
        "data_sha256": {"train": splits.train.digest(), "held_out": splits.held_out.digest()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pyro-hrssm", "torch", "pyro-ppl", "numpy")},
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


def parse(arguments: Sequence[str]) -> Train | Evaluate:
    """The command, its defaults taken from `--resume` or `--preset` where given; a wrong flag is one line, exit 2."""
    defaults = _defaults(arguments)
    train_type = Annotated[Train, tyro.conf.subcommand("train", default=defaults)]
    evaluate_type = Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    with _one_line_errors():
        return tyro.cli(
            train_type | evaluate_type,
            prog="pyro-hrssm",
            description="Segments, forecasts and jumpy imagination from sequences without labels.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )


def _defaults(arguments: Sequence[str]) -> Train:
    resume, preset = _value_of("--resume", arguments), _value_of("--preset", arguments)
    if resume is None:
        return PRESETS.get(preset or "rows", PRESETS["rows"])
    record = checkpoint.load(Path(resume)).record
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
