"""The sequences that a command uses a run on, and which of them the run was trained on.

`--data FILE` is all rows of the file, however its path is spelt; a data set's name is its held-out sequences; without
`--data`, it is the held-out sequences of the run's own data.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm import data
from pyro_hrssm.config import DataConfig, HRSSMConfig, from_dict
from pyro_hrssm.data import Scaling, Sequences
from pyro_hrssm.errors import InputError, one_line

OTHER_UNITS = "the run was trained on frames in other units"


class Source(NamedTuple):
    """Sequences to use a run on."""

    sequences: Sequences
    """Held-out sequences of a data set, or all sequences of a file."""
    tuning: Sequences | None
    """Training sequences of the data set; None for a file."""
    description: str
    """What the sequences are."""
    trained: NDArray[np.bool_] | None
    """[N] whether the run was trained on each; None where that is not known."""

    def told(self, first: int | None = None) -> str:
        """A line about the first so many sequences, or about all: how many there are, and how many are trained on."""
        total = len(self.sequences)
        count = total if first is None else min(first, total)
        text = f"{self.description}: {count}"
        if first is not None:
            text += f" of {total}" if first <= total else f", which is all, and fewer than --num-sequences {first}"
        if self.trained is None:
            return (
                f"{text}; these are not the data in the run's record: how many of them it was trained on is not known"
            )
        return f"{text}, {self.trained_on(count) or 'none'} of them trained on"

    def trained_on(self, first: int | None = None) -> int | None:
        """How many of the first so many sequences, or of all, the run was trained on; None where it is not known."""
        return None if self.trained is None else int(self.trained[:first].sum())


def choose(run: Path, record: dict[str, Any], name: str | None) -> Source:
    """The sequences that `--data` means for a run.

    Arguments:
        run: the run, for messages.
        record: the record of its checkpoint.
        name: the value of `--data`; None for the run's own data.

    Raises:
        InputError: where the data are missing or malformed, or the run's own are no longer those it was trained on.
    """
    scaling = Scaling.from_dict(record.get("scaling"))
    dataset = from_dict(DataConfig, record.get("data"))
    config = from_dict(HRSSMConfig, record.get("model"))
    known = _digests(record)
    if name is None or name in data.DATA_SETS:
        chosen = dataset if name is None else dataclasses.replace(dataset, data=name, boundaries_mark="ends")
        splits = data.load(chosen, scaling, config.frame_shape)
        splits.held_out.check_likelihood(config.likelihood, OTHER_UNITS)
        own = known is not None and known == (splits.train.digest(), splits.held_out.digest())
        if name is None and known is not None and not own:
            raise InputError(_changed(run, dataset.data))
        trained = np.zeros(len(splits.held_out), bool) if own else None
        return Source(splits.held_out, splits.train, f"Held-out sequences of {one_line(chosen.data)}", trained)
    if not os.path.exists(os.path.expanduser(name)):  # Path's own raise for `~name` of no user, and for long names
        data.load(dataclasses.replace(dataset, data=name))  # raises an error that lists the possible names
    sequences = data.whole(name, scaling, config.frame_shape, dataset.boundaries_mark)
    sequences.check_likelihood(config.likelihood, OTHER_UNITS)
    trained = None
    if known is not None and len(sequences) > 1:  # a single sequence cannot be split, so that no run was trained on it
        splits = data.load(dataclasses.replace(dataset, data=name), scaling, config.frame_shape)
        if known == (splits.train.digest(), splits.held_out.digest()):
            trained = np.zeros(len(sequences), bool)
            trained[splits.train.rows] = True
    return Source(sequences, None, f"Sequences of {one_line(name)}", trained)


def _digests(record: dict[str, Any]) -> tuple[str, str] | None:
    """The digests of the training and the held-out sequences; None in records that lack them."""
    values = record.get("data_sha256")
    if not isinstance(values, dict):
        return None
    train, held_out = values.get("train"), values.get("held_out")
    return (train, held_out) if isinstance(train, str) and isinstance(held_out, str) else None


def _changed(run: Path, name: str) -> str:
    way_out = "takes its held-out sequences" if name in data.DATA_SETS else "takes all of its sequences"
    return (
        f"{one_line(name)} no longer holds the sequences on which {one_line(run)} was trained and scored; "
        f"--data {one_line(name)} {way_out} as they are now"
    )
