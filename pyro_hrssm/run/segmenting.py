"""Uses of a run's segments: the table of segments, and their types in tables, figures and the report."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm import files
from pyro_hrssm.data.batches import in_order
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference import types
from pyro_hrssm.inference.scores import score
from pyro_hrssm.inference.scores.boundaries import Score
from pyro_hrssm.inference.segments import Found, Segments, find
from pyro_hrssm.inference.types import SegmentTypes
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.model.masks import seen_entries
from pyro_hrssm.progress import bar
from pyro_hrssm.reports import drawing
from pyro_hrssm.reports.type_charts import EXAMPLES, Counts, Section, section, type_examples, type_summary
from pyro_hrssm.run import segment_types
from pyro_hrssm.run.segment_types import Wanted
from pyro_hrssm.run.sources import Source, choose
from pyro_hrssm.run.use import Opened
from pyro_hrssm.run.voice import Voice

DISTINCT = 0.9
"""Mean probability of the segments' types below which clusters run into each other."""


def with_types(opened: Opened, wanted: Wanted, voice: Voice, keep: bool = True) -> Opened:
    """The opened run with these types of segments: those that it has, else new ones, of its own training sequences.

    Arguments:
        keep: whether the run's folder, or its checkpoint file, keeps new types from then on.
    """
    model, path = _hierarchical(opened), segment_types.path_of(opened.run)
    if opened.types is not None and opened.types.wanted == wanted:
        voice.say(f"{path}: the run's {opened.types.types.number} types; remove the file to fit them anew")
        return opened
    source = opened.source
    # Sequences of which it is known that none was trained on, beside others: the run's own data.
    own = source if source.tuning is not None and source.trained is not None else _own(opened)
    assert own.tuning is not None  # a run's own data is split
    kept = segment_types.fit(model, own.tuning, wanted)
    if keep:
        segment_types.save(opened.run, kept, model)
    named = f"{path}: " if keep else ""
    voice.say(f"{named}{kept.types.number} types of segments, fitted on training sequences")
    if wanted.number == "auto" and kept.types.number == types.MOST_TYPES:
        voice.say(f"BIC asks for at least the {types.MOST_TYPES} types that auto tries at most: --types 40 fits more")
    return opened._replace(types=kept)


def _own(opened: Opened) -> Source:
    """The run's own data."""
    try:
        return choose(opened.run, opened.loaded.record, None, opened.held)
    except InputError as error:
        raise InputError(f"types are fitted on the run's own training sequences: {error}") from error


@dataclass(frozen=True)
class SegmentTable:
    """Segments as columns of equal length, `table["start"]` and so on; `columns` makes a table of pandas.

    The columns are `sequence`, from 0; `row`, its number among the recordings; `name`, if sequences have names; `start`
    and `end`, both frames of the segment, from 0; `probability` of its ending there, NaN where the sequence itself
    ends; and, with types, `type`, from 0, the most frequent one, and `type_probability`.
    """

    columns: dict[str, NDArray[Any]]
    """[M] each, in the order of sequences and frames."""
    boundaries: NDArray[np.bool_]
    """[N, T] whether a segment ends with the frame and another one follows."""
    probabilities: NDArray[np.float32]
    """[N, T] exact probability of that under q(m_t | X); 0 in a context and at a sequence's last frame."""
    types: NDArray[np.int64] | None
    """[N, T] type of every frame's segment, -1 in a context and past a sequence's end; None where the run has none."""
    score: Score | None
    """How the boundaries compare with the true ones, of the sequences whose all are known; None where none are."""
    states: NDArray[np.float64] | None = None
    """[M, Z] mean of q(z | M, X) at the segments' first frames; None where it was not asked for."""

    def __len__(self) -> int:
        return len(self.columns["start"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def __repr__(self) -> str:
        scored = "" if self.score is None else f", F1 {self.score.f1:.3f}"
        return f"<{len(self)} segments of {len(self.boundaries)} sequences: {', '.join(self.columns)}{scored}>"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the columns as CSV, chances with six digits and empty where they are NaN."""
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        writer.writerow(self.columns)
        texts = [
            [_chance(value) if isinstance(value, float) else value for value in values.tolist()]
            for values in self.columns.values()
        ]
        writer.writerows(zip(*texts, strict=True))
        files.write_text(Path(os.path.expanduser(path)), written.getvalue())


def table(opened: Opened, shows: bool = True, states: bool = False) -> SegmentTable:
    """The most probable segments of the opened sequences, recordings whole, with types where the run has some.

    Arguments:
        shows: whether there is a progress bar.
        states: whether the table has the segments' abstract states.
    """
    found = _found(opened, shows, states)
    result = _tabled(opened, found)
    return dataclasses.replace(result, states=found.segments.states) if states else result


def _tabled(opened: Opened, found: Found) -> SegmentTable:
    sequences, segments = opened.source.sequences, found.segments
    columns: dict[str, NDArray[Any]] = {
        "sequence": segments.sequence,
        "row": sequences.rows[segments.sequence],
    }
    if sequences.names is not None:
        columns["name"] = sequences.names[segments.sequence]
    columns |= {"start": segments.start, "end": segments.end, "probability": segments.probability}
    shape, kinds = (len(sequences), sequences.num_frames), None
    if opened.types is not None:
        columns["type"], columns["type_probability"] = opened.types.assign(segments, sequences)
        kinds = types.per_frame(segments, columns["type"], shape)
    boundaries, probabilities = np.zeros(shape, bool), np.zeros(shape, np.float32)
    inner = ~np.isnan(segments.probability)
    boundaries[segments.sequence[inner], segments.end[inner]] = True
    context = opened.model.config.context
    probabilities[:, context:] = np.concatenate(found.probabilities)
    frame = np.arange(sequences.num_frames)
    counted = (frame >= context) & (frame < sequences.lengths[:, None] - 1)
    probabilities[~counted] = 0
    bounded, truth = sequences.bounded, sequences.with_boundaries().boundaries
    scored = None if truth is None else score(boundaries[bounded], truth, counted[bounded])
    return SegmentTable(columns, boundaries, probabilities, kinds, scored)


def write_segments(opened: Opened, out: Path) -> None:
    """Write the most probable segments as a table, one row per segment, and figures of their types.

    Of sequences whose true boundaries are known, the score of those that were found is printed.
    """
    sequences = opened.source.sequences
    print(f"{opened.told()}{_unlimited(opened)}")
    found = _found(opened)
    segments = found.segments
    written = _tabled(opened, found)
    if written.score is not None:
        known, total = sequences.bounded.sum(), len(sequences)
        print(f"boundaries{'' if known == total else f' of {known} of {total} sequences'}: {written.score.text()}")
    written.to_csv(out)
    count = len(written)
    if opened.types is None or count == 0:
        print(f"{out}: {count} segments of {len(sequences)} sequences")
        return
    counts, examples = _shown(opened, opened.types.types.number, segments, written["type"])
    drawing.save(type_summary(counts), out.with_name(f"{out.stem}_types.png"))
    drawing.save(type_examples(examples), out.with_name(f"{out.stem}_examples.png"))
    print(f"{out}: {count} segments of {len(sequences)} sequences; figures of their types beside it")
    certainty = written["type_probability"].mean()
    if certainty < DISTINCT:
        other = "frames" if opened.types.wanted.source == "states" else "states"
        print(
            f"types run into each other: a segment's type has a mean probability of {certainty:.2f}; try another "
            f"number, or --types-of {other}"
        )


def _unlimited(opened: Opened) -> str:
    """The end of a line about N_max, which concerns a window that sequences may outlast; empty where none does."""
    config, longest = opened.model.config, int(opened.source.sequences.lengths.max(initial=0))
    if config.max_segments is None or config.window is None or longest <= config.context + config.window:
        return ""
    return f"; max_segments {config.max_segments} limits the segments of their first {config.window} frames alone"


def types_per_frame(opened: Opened) -> NDArray[np.int64] | None:
    """The type of every frame's segment, [N, T] as in the data; -1 in a context and past a sequence's end.

    None where the run keeps no types.
    """
    return None if opened.types is None else table(opened).types


def types_section(opened: Opened, shows: bool = True) -> Section | None:
    """The part of a report about the types of the sequences' segments; None where the run keeps no types."""
    if opened.types is None:
        return None
    kept = opened.types
    how = "their number was given"
    if isinstance(kept.types, SegmentTypes) and kept.wanted.number == "auto":
        tried = len(kept.types.bic)
        how = f"of 1 to {tried} types, {kept.types.number} have the lowest Bayesian information criterion"
    clusters = {
        "states": "clusters of the abstract states at the segments' first frames, a Gaussian mixture",
        "frames": "Normals from which all frames of a segment are drawn, a mixture",
    }[kept.wanted.source]
    note = f"{opened.told()}. Types are {clusters} fitted on training sequences; {how}."
    segments = _found(opened, shows).segments
    chosen, _ = kept.assign(segments, opened.source.sequences)
    return section(*_shown(opened, kept.types.number, segments, chosen), note)


def _hierarchical(opened: Opened) -> HRSSM:
    if not isinstance(opened.model, HRSSM):
        raise InputError(f"segments need a hierarchical model, found an {opened.model.config.model.upper()}")
    return opened.model


def _found(opened: Opened, shows: bool = True, states: bool = False) -> Found:
    model = _hierarchical(opened)
    batches = in_order(opened.source.sequences, model.device)
    return find(model, bar(batches, shows, unit="batch", desc="segment"), states=states or opened.types is not None)


def _shown(
    opened: Opened, number: int, segments: Segments, chosen: NDArray[np.int64]
) -> tuple[Counts, list[list[NDArray[np.float64]]]]:
    """What figures and report show: the counts, and examples of every type, spread evenly over its segments.

    Arguments:
        chosen: [M] type of every segment, each from 0 to `number` - 1.
    """
    counts = Counts(*types.summarise(segments, chosen, number))
    examples = []
    for kind in range(number):
        places = np.flatnonzero(chosen == kind)
        places = places[np.unique(np.linspace(0, max(0, len(places) - 1), EXAMPLES).round().astype(int))[: len(places)]]
        examples.append([_frames(opened, segments, place) for place in places])
    return counts, examples


def _frames(opened: Opened, segments: Segments, place: int) -> NDArray[np.float64]:
    """The frames [L, X…] of one segment in the data's own units, NaN where a frame or an entry is missing."""
    batch = opened.source.sequences.batch([segments.sequence[place]])
    part = slice(segments.start[place], segments.end[place] + 1)
    frames = opened.source.sequences.scaling.invert(batch.frames[0, part].numpy())
    if batch.mask is not None:
        seen = seen_entries(batch.mask[:, part], frames.ndim - 1)[0].numpy()
        frames = np.where(seen, frames, np.nan)
    return frames


def _chance(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
