"""The contents of a run's folder and of its checkpoints; this module knows no model.

A run is a folder::

    config.json                        the run's settings and command
    metrics.jsonl                      one line per logged step
    evaluation.json                    the bounds at the end
    checkpoints/00000500.safetensors   all tensors and the record after step 500
    figures/*.png
    tensorboard/
    lock.json                          the process that trains into the folder, while one does

Every file except `metrics.jsonl`, which grows by lines, is written under a temporary name and renamed into place: a
reader finds the old file or the new one, never half of a file. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyro_hrssm.errors import InputError
from pyro_hrssm.files import FileError, read_json, replacing, why

METRICS = "metrics.jsonl"
"""A run's file of one JSON line per logged step."""

BEST = "held_out_best"
"""The tensor of a checkpoint that tells the best evaluation before it: nats per sequence, step, evaluations since."""

FORMAT_VERSION = 1
"""Version of the checkpoint's metadata; increased when an older reader would misread a newer file."""

_SEAL = re.compile(rb'"sha256"\s*:\s*"([0-9a-f]{64})"')
_UNSEALED = "0" * 64

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class CheckpointError(FileError):
    """A checkpoint cannot be read or written: one line that names the file and the reason."""


class Checkpoint(NamedTuple):
    """The state from which a run continues: the step reached, all tensors by name, and the record of their origin."""

    step: int
    """Number of gradient steps taken."""
    tensors: dict[str, Tensor]
    """Parameters, optimiser moments, random-number states, statistics of the data."""
    record: dict[str, Any]
    """Configurations, schedules, versions: plain values, ready for JSON (tuples come back as lists)."""


def save(run: str | os.PathLike[str], checkpoint: Checkpoint, keep: int, best: int | None = None) -> Path:
    """Write a checkpoint into a run's folder, then remove those up to its step but the last `keep` and that of `best`.

    Checkpoints of later steps are removed too: the run has since resumed before them, and they would otherwise be
    taken for the newest. Returns the file. Raises :class:`CheckpointError` where the file cannot be written; earlier
    checkpoints are then untouched.
    """
    run = Path(run)
    path = path_of(run, checkpoint.step)
    data = _encode(checkpoint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        whole = [step for step in _steps(run) if step != checkpoint.step]
        previous = f"the previous checkpoint, step {whole[-1]}, is whole" if whole else "there is no earlier one"
        raise CheckpointError(f"cannot write checkpoint {path} ({why(error)}); {previous}") from error
    _remove([file for step, file in _steps(run).items() if step > checkpoint.step])
    _remove(list(path.parent.glob(".*.safetensors.*.tmp")))
    remove_old(run, checkpoint.step, keep, best)
    return path


def path_of(run: str | os.PathLike[str], step: int) -> Path:
    """The file of a run's checkpoint of this step."""
    return Path(run) / "checkpoints" / f"{step:08d}.safetensors"


def remove_old(run: str | os.PathLike[str], step: int, keep: int, best: int | None = None) -> None:
    """Remove a run's checkpoints up to `step`, but for the last `keep` and that of step `best`.

    A run that goes on from its last step saves no further checkpoint; it may have been killed before it removed the old
    one.
    """
    files = _steps(Path(run))
    old = [found for found in files if found <= step][: -max(keep, 1)]
    _remove([files[found] for found in old if found != best])


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read one checkpoint file, or the newest whole checkpoint of a run's folder, onto the CPU.

    In a folder, a damaged checkpoint is skipped with a warning that names it, and temporary files left by a crash are
    ignored. Raises :class:`CheckpointError` where the file is damaged, or the folder holds no whole checkpoint.
    """
    path = Path(path)
    if not os.path.isdir(path):  # `Path.is_dir` raises for names that no file can have
        return _read(path)
    reason = "none is there"
    for file in reversed(_steps(path).values()):
        try:
            return _read(file)
        except CheckpointError as error:
            reason = str(error)
            warnings.warn(f"passed over: {reason}", UserWarning, stacklevel=2)
    raise CheckpointError(
        f"{path} must hold a whole checkpoint such as checkpoints/00000500.safetensors, found none: {reason}"
    )


def newest(run: str | os.PathLike[str]) -> Checkpoint | None:
    """A run's newest whole checkpoint, as :func:`load` finds it; None if the run has not written one yet."""
    return load(run) if _steps(Path(run)) else None


def best_of(run: str | os.PathLike[str]) -> Path:
    """The file of a run's checkpoint with the best held-out bound.

    Raises :class:`CheckpointError` where `run` is no run's folder, or keeps none.
    """
    if not os.path.isdir(run):
        raise CheckpointError(f"best needs a run's folder, found {run}")
    last = load(run)
    if BEST not in last.tensors:
        raise CheckpointError(
            f"{run} has no best checkpoint at step {last.step}: train --keep-best keeps one, from the first evaluation "
            "that is compared on"
        )
    check_tensors(f"{run}: the best evaluation", last.tensors, {BEST: torch.zeros(3, device="cpu")})
    step = int(last.tensors[BEST][1])
    path = path_of(run, step)
    if not path.exists():
        raise CheckpointError(f"{run} lacks the checkpoint of its best step {step}: train --keep-best keeps it")
    return path


def resume(run: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint to continue a run from: the newest whole one or, if the run wrote none, its start.

    The start is step 0 without tensors; its record is the run's `config.json`. Raises :class:`CheckpointError` where
    `run` is not a run's folder, or all of its checkpoints are damaged.
    """
    run = Path(run)
    config = run / "config.json"
    begun = newest(run)
    if begun is not None:
        return begun
    if not config.exists():
        found = "a file" if run.is_file() else "neither" if run.exists() else "no such folder"
        raise CheckpointError(f"{run} must be a run's folder, with config.json and checkpoints, found {found}")
    record = read_json(config)
    if not isinstance(record, dict):
        raise CheckpointError(f"{config} must hold a table of settings, found {type(record).__name__}")
    return Checkpoint(0, {}, record)


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, by their names without the prefix."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def check_tensors(origin: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise :class:`InputError` unless `found` holds every tensor of `expected`, as finite floats of the same shape.

    Arguments:
        origin: the start of the message, which states the fault.
    """
    for name, like in expected.items():
        value = found.get(name)
        wanted = f"{origin}: {name} must be finite floats of shape {list(like.shape)}, found"
        if value is None:
            raise InputError(f"{wanted} nothing")
        if value.dtype not in _FLOATS or value.shape != like.shape:
            raise InputError(f"{wanted} {value.dtype} of shape {list(value.shape)}")
        if not torch.isfinite(value.to(like.dtype)).all():
            raise InputError(f"{wanted} a NaN or an infinity")


def new_run(path: str | os.PathLike[str]) -> None:
    """Create the folder of a new run; raises :class:`InputError` where a run is already there."""
    path = Path(path)
    if (path / "config.json").exists() or (path / "checkpoints").exists():
        raise InputError(f"{path} already holds a run: continue it with --resume, or name another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the run's folder {path} ({why(error)})") from error


def _encode(checkpoint: Checkpoint) -> bytes:
    """One safetensors file whose metadata carry the record and the SHA-256 of all its other bytes."""
    # Tensors are cloned one by one, because safetensors refuses views and tied parameters, which share memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.tensors.items()
    }
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "step": str(checkpoint.step),
        "record": json.dumps(checkpoint.record),
        "sha256": _UNSEALED,
    }
    data = safetensors.torch.save(tensors, metadata)
    seal = _find_seal(data)
    return data[: seal.start(1)] + _digest(data, seal).encode() + data[seal.end(1) :]


def _read(path: Path) -> Checkpoint:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise CheckpointError(f"cannot read checkpoint {path} ({why(error)})") from error
    try:
        return _decode(data)
    except (
        SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise CheckpointError(f"checkpoint {path} is damaged or none of ours: {why(error)}") from error


def _decode(data: bytes) -> Checkpoint:
    """Inverse of :func:`_encode`; the caller turns its errors into a :class:`CheckpointError`."""
    header = json.loads(_header(data))
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not {"format_version", "step", "record"} <= set(metadata):
        raise ValueError("its metadata lack the format version, step or record")
    # The version is checked before the seal, because a newer format may be sealed in another way.
    if int(metadata["format_version"]) > FORMAT_VERSION:
        raise ValueError(
            f"its format version is {int(metadata['format_version'])}, newer than the {FORMAT_VERSION} known here"
        )
    seal = _find_seal(data)
    if seal.group(1).decode() != _digest(data, seal):
        raise ValueError("its bytes do not match its digest")
    record = json.loads(metadata["record"])
    if not isinstance(record, dict):
        raise ValueError("its record is no table of values")
    step = int(metadata["step"])
    if step < 0:
        raise ValueError(f"its step is {step}")
    return Checkpoint(step, safetensors.torch.load(data), record)


def _header(data: bytes) -> bytes:
    """The JSON header of a safetensors file, which follows its length in 8 bytes."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ValueError("it is cut short or no safetensors file")
    return data[8 : 8 + size]


def _find_seal(data: bytes) -> re.Match[bytes]:
    # Quotes inside names and the record are escaped in the header, so that only the seal matches the pattern there.
    seal = _SEAL.search(data, 8, 8 + len(_header(data)))
    if seal is None:
        raise ValueError("its metadata lack the digest")
    return seal


def _digest(data: bytes, seal: re.Match[bytes]) -> str:
    """SHA-256 of the file with its own digest blanked: names, types, shapes, values, step and record."""
    digest = hashlib.sha256(data[: seal.start(1)])
    digest.update(_UNSEALED.encode())
    digest.update(memoryview(data)[seal.end(1) :])
    return digest.hexdigest()


def _steps(run: Path) -> dict[int, Path]:
    """The run's checkpoint files by step, in order."""
    files = {int(file.stem): file for file in (run / "checkpoints").glob("*.safetensors") if file.stem.isdecimal()}
    return dict(sorted(files.items()))


def _remove(files: list[Path]) -> None:
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            # The new checkpoint is safe, so an old one that stays is no reason to end a run.
            warnings.warn(f"cannot remove {file} ({why(error)})", UserWarning, stacklevel=3)
