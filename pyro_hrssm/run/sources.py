"""The sequences that a command uses a run on, and which of them the run was trained on.

`--data FILE` is all rows of the file, however its path is spelt; a data set's name is its held-out sequences; without
`--data`, it is the held-out sequences of the run's own data.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm import data
from pyro_hrssm.config import DataConfig, HRSSMConfig, from_dict
from pyro_hrssm.data import Held, Recordings, Scaling, Sequences, Splits
from pyro_hrssm.data.memory import ARRAYS, located
from pyro_hrssm.errors import InputError, one_line, require

OTHER_UNITS = "the run was trained on frames in other units"


class Source(NamedTuple):
    """Sequences to use a run on."""

    sequences: Sequences
    """Held-out sequences of a data set, or all sequences of a file."""
    tuning: Sequences | None
    """Training sequences of the data set; None for a file, and where every recording has held-out windows."""
    description: str
    """What the sequences are."""
    trained: NDArray[np.bool_] | None
    """[N] whether the run was trained on each, or on a part of it; None where that is not known."""
    in_part: bool = False
    """Whether the run was trained on windows of the sequences, rather than on whole ones."""
    uncut: Source | None = None
    """The recordings that the sequences are windows of, or those with held-out windows; None for sequences that were
    not cut."""

    @property
    def whole(self) -> Source:
        """The same without cuts."""
        return self if self.uncut is None else self.uncut

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
        parts = " in part" if self.in_part and self.trained_on(count) else ""
        return f"{text}, {self.trained_on(count) or 'none'} of them trained on{parts}"

    def trained_on(self, first: int | None = None) -> int | None:
        """How many of the first so many sequences, or of all, the run was trained on; None where it is not known."""
        return None if self.trained is None else int(self.trained[:first].sum())


def choose(run: Path, record: dict[str, Any], name: str | Held | None, own: Held | None = None) -> Source:
    """The sequences that `--data` means for a run.

    Arguments:
        run: the run, for messages and for the arrays that its folder may keep.
        record: the record of its checkpoint.
        name: the value of `--data`, or arrays in memory; None for the run's own data.
        own: the run's own data where they are arrays in memory.

    Raises:
        InputError: where the data are missing or malformed, or the run's own are no longer those it was trained on.
    """
    scaling = Scaling.from_dict(record.get("scaling"))
    dataset = from_dict(DataConfig, record.get("data"))
    config = from_dict(HRSSMConfig, record.get("model"))
    known = _digests(record)
    if isinstance(name, Held):
        return _every(name, "the arrays given", scaling, config, dataset, None)
    if name is not None and name not in data.DATA_SETS:
        return _every(name, one_line(name), scaling, config, dataclasses.replace(dataset, data=name), known)
    if name is not None:
        chosen = dataclasses.replace(dataset, data=name, boundaries_mark="ends", window_length=None)
        return _held_out(data.load(chosen, scaling, config.frame_shape), name, config, known)
    if own is None and dataset.data in data.DATA_SETS:
        source = _held_out(data.load(dataset, scaling, config.frame_shape), dataset.data, config, known)
    else:
        source = _own(located(dataset, run).data if own is None else own, scaling, config, dataset, known)
    require(known is None or source.trained is not None, _changed(run, dataset.data))
    return source


def _own(
    origin: str | Held, scaling: Scaling, config: HRSSMConfig, dataset: DataConfig, known: tuple[str, str] | None
) -> Source:
    """The held-out sequences of a run's own arrays; of windows, also the recordings that have some, whole."""
    recordings = data.recordings(origin, scaling, config.frame_shape, dataset.boundaries_mark)
    splits, called = recordings.split(dataset), one_line(ARRAYS if isinstance(origin, Held) else origin)
    source = _held_out(splits, called, config, known)
    if splits.cut is None:
        return source
    held_out = np.unique(splits.held_out.rows)
    trained = None if source.trained is None else np.isin(held_out, splits.train.rows)
    others = np.setdiff1d(np.arange(len(recordings.sequences)), held_out)
    tuning = recordings.sequences.subset(others) if len(others) > 0 else None
    told = f"Recordings with held-out frames of {called}"
    whole = Source(recordings.sequences.subset(held_out), tuning, told, trained, in_part=True)
    return source._replace(uncut=whole)


def _held_out(splits: Splits, called: str, config: HRSSMConfig, known: tuple[str, str] | None) -> Source:
    """The held-out sequences of a data set, on none of which a run of these digests was trained."""
    trained = np.zeros(len(splits.held_out), bool) if _are(splits, known) else None
    if trained is None:  # those that a run was trained on had passed this
        splits.held_out.check_likelihood(config.likelihood, OTHER_UNITS)
    what = "sequences" if splits.cut is None else f"windows of {splits.cut.length} frames"
    return Source(splits.held_out, splits.train, f"Held-out {what} of {called}", trained)


def _every(
    origin: str | Held,
    called: str,
    scaling: Scaling,
    config: HRSSMConfig,
    dataset: DataConfig,
    known: tuple[str, str] | None,
) -> Source:
    """All sequences of a file, or of arrays in memory, for a model of this configuration.

    Arguments:
        called: what sentences call the origin.
        dataset: how they are cut.
        known: the digests of what the run was trained on, to be looked for in a file; None to not look.
    """
    recordings = data.recordings(origin, scaling, config.frame_shape, dataset.boundaries_mark)
    sequences = recordings.sequences
    sequences.check_likelihood(config.likelihood, OTHER_UNITS)
    train = None if known is None else _trained_part(dataset, recordings, known)
    trained = _trained_on(sequences, train, sequences)
    in_part = train is not None and train.spans is not None
    source = Source(sequences, None, f"Sequences of {called}", trained, in_part)
    cut = recordings.windows(dataset, config.context + (config.window or 0))
    if cut is None:
        return source
    told = f"Windows of {cut.num_frames} frames of {called}"
    return Source(cut, None, told, _trained_on(cut, train, sequences), in_part, source)


def _trained_part(dataset: DataConfig, recordings: Recordings, known: tuple[str, str]) -> Sequences | None:
    """The sequences of a file that the run was trained on; None where the file is not the one of the run."""
    # A single sequence that is not cut cannot be split, so that no run was trained on it.
    if len(recordings.sequences) == 1 and dataset.window_length is None:
        return None
    try:
        splits = recordings.split(dataset)
    except InputError:  # a file that can be used, but not trained on: its recordings are too short to hold out windows
        return None
    return splits.train if _are(splits, known) else None


def _are(splits: Splits, known: tuple[str, str] | None) -> bool:
    """Whether these are the sequences of these digests; of other ones, only the smaller split is read to the end."""
    return known is not None and known[1] == splits.held_out.digest() and known[0] == splits.train.digest()


def _trained_on(sequences: Sequences, train: Sequences | None, recordings: Sequences) -> NDArray[np.bool_] | None:
    """[N] whether each sequence, or a part of it, is among those trained on; None where these are not known."""
    if train is None:
        return None
    if train.spans is None or sequences.spans is None:
        return np.isin(sequences.rows, train.rows)
    touched = train.spans.touch((len(recordings), recordings.num_frames))
    return sequences.spans.any_of(touched)


def _digests(record: dict[str, Any]) -> tuple[str, str] | None:
    """The digests of the training and the held-out sequences; None in records that lack them."""
    values = record.get("data_sha256")
    if not isinstance(values, dict):
        return None
    train, held_out = values.get("train"), values.get("held_out")
    return (train, held_out) if isinstance(train, str) and isinstance(held_out, str) else None


def _changed(run: Path, name: str) -> str:
    if name == ARRAYS:
        return "the arrays are no longer those on which the run was trained and scored: they were written over"
    way_out = "takes its held-out sequences" if name in data.DATA_SETS else "takes all of its sequences"
    return (
        f"{one_line(name)} no longer holds the sequences on which {one_line(run)} was trained and scored; "
        f"--data {one_line(name)} {way_out} as they are now"
    )
