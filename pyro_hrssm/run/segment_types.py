"""Types of segments as a run keeps them: fitted once on its training sequences, then the same for all sequences.

The file `types.npz` of a run's folder holds plain arrays (nothing is unpickled) and the digest of the weights that the
types were fitted for. Types of other weights, such as those before the run was resumed, are not used.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm import files
from pyro_hrssm.data import Sequences
from pyro_hrssm.data.batches import in_order
from pyro_hrssm.errors import InputError, one_line, require
from pyro_hrssm.inference import types
from pyro_hrssm.inference.segments import find_segments
from pyro_hrssm.inference.types import SegmentTypes
from pyro_hrssm.model.hrssm import HRSSM

FITTING_SEQUENCES = 2000
"""The most training sequences whose segments types are fitted on."""

Wanted = int | Literal["auto"]


class Kept(NamedTuple):
    """Types of a run's segments."""

    types: SegmentTypes
    wanted: Wanted
    """The number that was asked for."""


def path_of(run: Path) -> Path:
    """The file of a run folder's types, or of the types of one checkpoint file."""
    return run / "types.npz" if run.is_dir() else run.with_suffix(".types.npz")


def fit(model: HRSSM, train: Sequences, wanted: Wanted, seed: int = 0) -> Kept:
    """Types of the segments of a run's training sequences, of the first 2,000 if there are more."""
    segments = find_segments(model, in_order(train, model.device, FITTING_SEQUENCES))
    return Kept(types.fit(segments, wanted, seed), wanted)


def save(run: Path, kept: Kept, model: HRSSM) -> None:
    """Write a run's types."""
    content: dict[str, Any] = kept.types._asdict() | {"wanted": str(kept.wanted), "weights_sha256": _digest(model)}
    with files.writing(path_of(run)) as file:
        arrays = {name: np.asarray(value) for name, value in content.items()}
        np.savez(file, **arrays)  # type: ignore[arg-type] # mypy takes an array for allow_pickle


def load(run: Path, model: HRSSM) -> Kept | None:
    """A run's types; None where there are none, or where they belong to other weights than this model's."""
    path = path_of(run)
    if not path.is_file():
        return None
    try:
        # From memory: numpy leaves the file of a damaged archive open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            content = {name: archive[name] for name in archive.files}
        kept = _checked(content, model.config.abstract_size)
    except InputError as error:
        raise InputError(f"{path}: {error}; remove the file, or name --types again") from error
    except Exception as error:  # a damaged archive makes zipfile, zlib and numpy's parser raise almost any exception
        found = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{path} must hold a run's types, found {found}; remove the file") from error
    if str(content["weights_sha256"]) != _digest(model):
        warnings.warn(f"passed over: {path} belongs to other weights; --types fits new ones", UserWarning, stacklevel=2)
        return None
    return kept


def _checked(content: dict[str, NDArray[Any]], size: int) -> Kept:
    """The content of a file, where its arrays agree with each other and with a model whose z has this size."""
    wanted = {*SegmentTypes._fields, "wanted", "weights_sha256"}
    require(set(content) == wanted, f"must hold {', '.join(sorted(wanted))}, found {', '.join(sorted(content))}")
    found = SegmentTypes(*(content[name] for name in SegmentTypes._fields))
    number, entries = len(found.weights), len(found.entries)
    shapes = [(number,), (number, entries), (number, entries, entries), (entries,)]
    sound = [value.shape for value in found[:4]] == shapes and number >= 1
    sound = sound and all(value.dtype == np.float64 and np.isfinite(value).all() for value in (*found[:3], found.bic))
    sound = sound and found.entries.dtype == np.int64 and bool(((found.entries >= 0) & (found.entries < size)).all())
    sound = sound and bool((np.linalg.eigvalsh(found.covariances) > 0).all() and (found.weights >= 0).all())
    text = str(content["wanted"])
    require(sound and re.fullmatch(r"auto|[1-9][0-9]*", text) is not None, "the mixture's arrays do not fit each other")
    return Kept(found, "auto" if text == "auto" else int(text))


def _digest(model: HRSSM) -> str:
    """SHA-256 of the model's weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()
