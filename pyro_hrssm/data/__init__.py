"""Data sets by name, or a user's own arrays: frames in [N, T, X…], split, scaled and read in batches."""

from __future__ import annotations

import inspect
import os.path
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import arrays, balls, bounce, colours, levels, maze, mnist, mnist5k, modes, records
from pyro_hrssm.data.arrays import Recordings, save_npz
from pyro_hrssm.data.batches import Batch
from pyro_hrssm.data.memory import Held
from pyro_hrssm.data.segments import Process
from pyro_hrssm.data.sequences import Emission, Likelihood, Mark, Scaling, Sequences, Splits
from pyro_hrssm.errors import InputError, one_line, require

__all__ = [
    "Batch",
    "Held",
    "Likelihood",
    "Recordings",
    "Scaling",
    "Sequences",
    "Splits",
    "generate",
    "load",
    "process",
    "recordings",
    "save_npz",
    "whole",
]

DATA_SETS = {
    "mnist5k": mnist5k.load,
    "mnist": mnist.load,
    "balls": balls.load,
    "colours": colours.load,
    "levels": levels.load,
}
GENERATORS: dict[str, Callable[..., dict[str, NDArray[Any]]]] = {
    "balls": balls.generate,
    "bounce": bounce.generate,
    "colours": colours.generate,
    "levels": levels.generate,
    "maze": maze.generate,
    "modes": modes.generate,
}
PROCESSES: dict[str, Callable[..., Process]] = {"colours": colours.process_of, "levels": levels.process_of}
"""The generators whose process is known in closed form."""


def load(
    config: DataConfig,
    scaling: Scaling | None = None,
    frame_shape: tuple[int, ...] | None = None,
    held: Held | None = None,
    likelihood: Emission = "auto",
) -> Splits:
    """Training and held-out sequences of the data set that `config` names, of the arrays at that path, or in memory.

    A given `scaling`, such as a checkpoint's, replaces the one that `config` names; `frame_shape`, that of a trained
    model's frames, says which axes are which in arrays that may mean two things; `held` are arrays in memory, in place
    of those that `config` names; `likelihood`, the emission that will score the frames, says on which of them a scaling
    is fitted (:func:`pyro_hrssm.data.splitting.split`). Missing or malformed data, and arrays that may mean two things,
    raise :class:`InputError`.
    """
    if held is None and config.data in DATA_SETS:
        require(
            config.boundaries_mark == "ends",
            f"boundaries_mark starts is for your own arrays, found it with the data set {config.data}",
        )
        require(
            config.window_length in ("auto", None),
            f"window_length is for your own arrays, found it with the data set {config.data}",
        )
        return DATA_SETS[config.data](config, scaling, likelihood)
    return arrays.load(_origin(config.data if held is None else held), config, scaling, frame_shape, likelihood)


def recordings(
    origin: str | Held, scaling: Scaling, frame_shape: tuple[int, ...] | None = None, mark: Mark = "ends"
) -> Recordings:
    """A user's own arrays for a trained model, at a path or in memory: whole, split or cut into windows."""
    return Recordings(_origin(origin), scaling, frame_shape, mark)


def whole(
    origin: str | Held, scaling: Scaling, frame_shape: tuple[int, ...] | None = None, mark: Mark = "ends"
) -> Sequences:
    """All sequences of a user's own arrays, in the file's order, scaled as a trained model expects them.

    Arguments:
        origin: the path of the arrays, or arrays in memory.
        frame_shape: the shape of the model's frames; it says which axes are which in arrays that may mean two things.
        mark: whether boundaries mark the ends of segments or their starts.
    """
    return recordings(origin, scaling, frame_shape, mark).sequences


def _origin(named: str | Held) -> Path | Held:
    if isinstance(named, Held):
        return named
    path = os.path.expanduser(named)  # Path's own raises for `~name` of no user
    if not os.path.exists(path):  # Path's own raises for long names
        known = ", ".join(DATA_SETS)
        raise InputError(f"data must be one of {known} or the path of your own arrays; no such file: {one_line(named)}")
    return Path(path)


def generate(name: str, num: int, seed: int, **parameters: Any) -> dict[str, NDArray[Any]]:
    """`num` synthetic sequences with their true boundaries: `frames` [N, T, X…] and `boundaries` [N, T], or more.

    `generator`, a text, records the name and all parameters; evaluation reads from it how the sequences came about.
    `name` is `balls`, `bounce`, `colours`, `levels`, `maze` or `modes`; `generate` of the module of that name describes
    `parameters`.
    ``save_npz(path, **generate(...))`` writes the arrays to a file.
    """
    if name not in GENERATORS:
        raise InputError(f"only {', '.join(GENERATORS)} can be generated, found {one_line(name)}")
    known = [key for key in inspect.signature(GENERATORS[name]).parameters if key not in ("num", "seed")]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise InputError(f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    record = records.write(name, GENERATORS[name], num=num, seed=seed, **parameters)
    return GENERATORS[name](num, seed, **parameters) | {records.RECORD: np.array(record)}


def process(record: str | None) -> Process | None:
    """The process that drew an archive's sequences, by the archive's record; None where it is not known."""
    found = None if record is None else records.read(record)
    if found is None or found[0] not in PROCESSES:
        return None
    name, parameters = found
    if set(parameters) != set(inspect.signature(GENERATORS[name]).parameters):
        return None  # the record of another version, whose process may be another one
    function = PROCESSES[name]
    try:
        return function(**{key: parameters[key] for key in inspect.signature(function).parameters})
    except Exception:  # a text from a file may hold any values
        return None
