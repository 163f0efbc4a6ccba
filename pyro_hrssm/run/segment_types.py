"""Types of segments as a run keeps them: fitted once on its training sequences, then the same for all sequences.

The file `types.npz` of a run's folder holds plain arrays (nothing is unpickled) and the digest of the weights that the
types were fitted for. Types of other weights, such as those before the run was resumed, are not used.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm import files
from pyro_hrssm.data import Sequences
from pyro_hrssm.data.batches import in_order
from pyro_hrssm.errors import InputError, one_line, require
from pyro_hrssm.inference import frame_types, types
from pyro_hrssm.inference.frame_types import FrameTypes
from pyro_hrssm.inference.segments import Segments, find_segments
from pyro_hrssm.inference.types import Floats, Integers, SegmentTypes
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.run.parallel import digest

FITTING_SEQUENCES = 2000
"""The most training sequences whose segments types are fitted on."""

Number: TypeAlias = int | Literal["auto"]
Source: TypeAlias = Literal["states", "frames"]

_KINDS: dict[Source, type[SegmentTypes] | type[FrameTypes]] = {"states": SegmentTypes, "frames": FrameTypes}


class Wanted(NamedTuple):
    """The types that were asked for."""

    number: Number
    source: Source
    """What types are clusters of: the abstract states of segments, or their frames."""


class Kept(NamedTuple):
    """Types of a run's segments."""

    types: SegmentTypes | FrameTypes
    wanted: Wanted

    def assign(self, segments: Segments, sequences: Sequences) -> tuple[Integers, Floats]:
        """The most probable type [M], from 0, of the segments [M] of these sequences, and its probability [M]."""
        if isinstance(self.types, FrameTypes):
            return frame_types.assign(self.types, segments, sequences)
        return types.assign(self.types, segments.states)


def path_of(run: Path) -> Path:
    """The file of a run folder's types, or of the types of one checkpoint file."""
    return run / "types.npz" if run.is_dir() else run.with_suffix(".types.npz")


def check(wanted: Wanted) -> None:
    """Raise :class:`InputError` where no such types can be fitted."""
    number, source = wanted
    require(not isinstance(number, int) or number >= 1, f"types must be at least 1 or auto, found {number}")
    # BIC takes the frames of a segment for independent, which they are not: it asked for 7 types of 3 modes.
    require(source == "states" or number != "auto", "types_of frames needs a number of --types, found auto")


def asked(types: Number | None, types_of: Source) -> Wanted | None:
    """The types that these arguments ask for; errors as of :func:`check`."""
    if types is None:
        require(types_of == "states", f"types_of {types_of} needs a number of types, found none")
        return None
    wanted = Wanted(types, types_of)
    check(wanted)
    return wanted


def fit(model: HRSSM, train: Sequences, wanted: Wanted, seed: int = 0) -> Kept:
    """Types of the segments of a run's training sequences, of the first 2,000 if there are more.

    The recordings that windows cover are read whole: a segment that lies in two windows, or at the edge of one, would
    count twice, and BIC would take both for independent.
    """
    check(wanted)
    train = train.subset(range(min(len(train), FITTING_SEQUENCES))).stretches()
    segments = find_segments(model, in_order(train, model.device))
    if wanted.source == "frames" and wanted.number != "auto":
        return Kept(frame_types.fit(model, segments, train, wanted.number, seed), wanted)
    return Kept(types.fit(segments, wanted.number, seed), wanted)


def save(run: Path, kept: Kept, model: HRSSM) -> None:
    """Write a run's types."""
    texts = {"number": str(kept.wanted.number), "source": kept.wanted.source, "weights_sha256": digest(model)}
    arrays = {name: np.asarray(value) for name, value in (kept.types._asdict() | texts).items()}
    with files.writing(path_of(run)) as file:
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
        kept = _checked(content, model)
    except Exception as error:  # a damaged archive makes zipfile, zlib and numpy's parser raise almost any exception
        found = one_line(error) if isinstance(error, InputError) else f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{path} must hold a run's types, found {found}; remove the file") from error
    if str(content["weights_sha256"]) != digest(model):
        warnings.warn(f"passed over: {path} belongs to other weights; --types fits new ones", UserWarning, stacklevel=2)
        return None
    return kept


def _checked(content: dict[str, NDArray[Any]], model: HRSSM) -> Kept:
    """The content of a file, where its arrays agree with each other and with the model."""
    texts = {name: str(content.pop(name, "")) for name in ("number", "source", "weights_sha256")}
    content["weights_sha256"] = np.array(texts["weights_sha256"])
    known = texts["source"] in _KINDS and re.fullmatch(r"auto|[1-9][0-9]*", texts["number"]) is not None
    require(known, f"types {texts['number']} of {texts['source']}")
    kind = _KINDS["frames" if texts["source"] == "frames" else "states"]
    require({*kind._fields, "weights_sha256"} == set(content), f"arrays {', '.join(sorted(content))}")
    found = kind(*(content[name] for name in kind._fields))
    count, width = len(found.weights), found.means.shape[-1]
    sound = (found.weights.shape, found.means.shape) == ((count,), (count, width)) and count >= 1
    sound = sound and found.covariances.shape == (count, width, width) and _places_fit(found, width, model)
    floats = [value for name, value in content.items() if name not in ("entries", "weights_sha256")]
    sound = sound and all(value.dtype == np.float64 and bool(np.isfinite(value).all()) for value in floats)
    sound = sound and bool((np.linalg.eigvalsh(found.covariances) > 0).all() and (found.weights >= 0).all())
    require(sound, "arrays that do not fit each other or the model")
    number: Number = "auto" if texts["number"] == "auto" else int(texts["number"])
    return Kept(found, Wanted(number, "frames" if isinstance(found, FrameTypes) else "states"))


def _places_fit(found: SegmentTypes | FrameTypes, width: int, model: HRSSM) -> bool:
    """Whether the mixture's entries or axes are those of the model's states or frames."""
    if isinstance(found, SegmentTypes):
        entries, size = found.entries, model.config.abstract_size
        return (
            entries.shape == (width,) and entries.dtype == np.int64 and bool(((entries >= 0) & (entries < size)).all())
        )
    size = int(np.prod(model.config.frame_shape))
    return found.centre.shape == (size,) and 2 * found.axes.shape[-1] == width and found.axes.shape[0] == size
