"""Uses of a run's segments: the table of segments, and their types in tables, figures and the report."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pyro_hrssm import files
from pyro_hrssm.data.batches import in_order
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference import types
from pyro_hrssm.inference.scores import score
from pyro_hrssm.inference.segments import Segments, find_segments
from pyro_hrssm.inference.types import SegmentTypes
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.reports import drawing
from pyro_hrssm.reports.type_charts import EXAMPLES, Counts, Section, section, type_examples, type_summary
from pyro_hrssm.run import segment_types
from pyro_hrssm.run.segment_types import Kept, Wanted
from pyro_hrssm.run.sources import Source, choose
from pyro_hrssm.run.use import Opened

DISTINCT = 0.9
"""Mean probability of the segments' types below which clusters run into each other."""


def with_types(opened: Opened, run: Path, name: str | None, wanted: Wanted) -> Opened:
    """The opened run with these types of segments: those that it keeps, else new ones, which it keeps from then on.

    Arguments:
        run: the run's folder, or a checkpoint file, beside which the types are kept.
        name: the data set or file that the run was opened on; None for its own data.
    """
    model, path = _hierarchical(opened), segment_types.path_of(run)
    if opened.types is not None and opened.types.wanted == wanted:
        print(f"{path}: the run's {opened.types.types.number} types; remove the file to fit them anew")
        return opened
    own = opened.source if name is None and opened.source.tuning is not None else _own(opened, run)
    assert own.tuning is not None  # a run's own data is split
    kept = segment_types.fit(model, own.tuning, wanted)
    segment_types.save(run, kept, model)
    print(f"{path}: {kept.types.number} types of segments, fitted on training sequences")
    if wanted.number == "auto" and kept.types.number == types.MOST_TYPES:
        print(f"BIC asks for at least the {types.MOST_TYPES} types that auto tries at most: --types 40 fits more")
    return opened._replace(types=kept)


def _own(opened: Opened, run: Path) -> Source:
    """The run's own data."""
    try:
        return choose(run, opened.loaded.record, None)
    except InputError as error:
        raise InputError(f"types are fitted on the run's own training sequences: {error}") from error


def write_segments(opened: Opened, out: Path) -> None:
    """Write the most probable segments as a table, one row per segment, and figures of their types.

    Where the true boundaries are known, the score of those that were found is printed.
    """
    sequences = opened.source.sequences
    print(f"{opened.told()}{_unlimited(opened)}")
    segments = _found(opened)
    _score(opened, segments)
    columns: dict[str, list[Any]] = {
        "sequence": segments.sequence.tolist(),
        "row": sequences.rows[segments.sequence].tolist(),
    }
    if sequences.names is not None:
        columns["name"] = sequences.names[segments.sequence].tolist()
    columns |= {"start": segments.start.tolist(), "end": segments.end.tolist()}
    columns["probability"] = [_chance(value) for value in segments.probability.tolist()]
    count = len(segments.sequence)
    if opened.types is None:
        _write_table(out, columns)
        print(f"{out}: {count} segments of {len(sequences)} sequences")
        return
    kinds, chances = opened.types.assign(segments, sequences)
    columns |= {"type": kinds.tolist(), "type_probability": [_chance(value) for value in chances.tolist()]}
    _write_table(out, columns)
    if count == 0:
        print(f"{out}: 0 segments of {len(sequences)} sequences")
        return
    counts, examples = _shown(opened, opened.types, segments)
    drawing.save(type_summary(counts), out.with_name(f"{out.stem}_types.png"))
    drawing.save(type_examples(examples), out.with_name(f"{out.stem}_examples.png"))
    print(f"{out}: {count} segments of {len(sequences)} sequences; figures of their types beside it")
    if chances.mean() < DISTINCT:
        other = "frames" if opened.types.wanted.source == "states" else "states"
        print(
            f"types run into each other: a segment's type has a mean probability of {chances.mean():.2f}; try another "
            f"number, or --types-of {other}"
        )


def _unlimited(opened: Opened) -> str:
    """The end of a line about N_max, which concerns a window that sequences may outlast; empty where none does."""
    config, longest = opened.model.config, int(opened.source.sequences.lengths.max(initial=0))
    if config.max_segments is None or config.window is None or longest <= config.context + config.window:
        return ""
    return f"; max_segments {config.max_segments} limits the segments of their first {config.window} frames alone"


def _score(opened: Opened, segments: Segments) -> None:
    """Print how the boundaries that were found compare with the true ones, where these are known."""
    sequences, context = opened.source.sequences, opened.model.config.context
    if sequences.boundaries is None:
        return
    found = np.zeros(sequences.boundaries.shape, bool)
    inner = ~np.isnan(segments.probability)
    found[segments.sequence[inner], segments.end[inner]] = True
    frame = np.arange(sequences.num_frames)
    counted = (frame >= context) & (frame < sequences.lengths[:, None] - 1)
    print(f"boundaries: {score(found, sequences.boundaries, counted).text()}")


def _write_table(out: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length, by name, as CSV."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    files.write_text(out, written.getvalue())


def types_per_frame(opened: Opened) -> NDArray[np.int64] | None:
    """The type of every frame's segment, [N, T] as in the data; -1 in a context and past a sequence's end.

    None where the run keeps no types.
    """
    if opened.types is None:
        return None
    segments = _found(opened)
    chosen, _ = opened.types.assign(segments, opened.source.sequences)
    return types.per_frame(segments, chosen, (len(opened.source.sequences), opened.source.sequences.num_frames))


def types_section(opened: Opened) -> Section | None:
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
    return section(*_shown(opened, kept, _found(opened)), note)


def _hierarchical(opened: Opened) -> HRSSM:
    if not isinstance(opened.model, HRSSM):
        raise InputError(f"segments need a hierarchical model, found an {opened.model.config.model.upper()}")
    return opened.model


def _found(opened: Opened) -> Segments:
    model = _hierarchical(opened)
    batches = in_order(opened.source.sequences, model.device)
    return find_segments(model, tqdm(batches, unit="batch", desc="segment"), states=opened.types is not None)


def _shown(opened: Opened, kept: Kept, segments: Segments) -> tuple[Counts, list[list[NDArray[np.float64]]]]:
    """What figures and report show: the counts, and examples of every type, spread evenly over its segments."""
    chosen, _ = kept.assign(segments, opened.source.sequences)
    counts = Counts(*types.summarise(segments, chosen, kept.types.number))
    examples = []
    for kind in range(kept.types.number):
        places = np.flatnonzero(chosen == kind)
        places = places[np.unique(np.linspace(0, max(0, len(places) - 1), EXAMPLES).round().astype(int))[: len(places)]]
        examples.append([_frames(opened, segments, place) for place in places])
    return counts, examples


def _frames(opened: Opened, segments: Segments, place: int) -> NDArray[np.float64]:
    """The frames [L, X…] of one segment in the data's own units, NaN where a frame is missing."""
    batch = opened.source.sequences.batch([segments.sequence[place]])
    part = slice(segments.start[place], segments.end[place] + 1)
    frames = opened.source.sequences.scaling.invert(batch.frames[0, part].numpy())
    if batch.mask is not None:
        frames[~batch.mask[0, part].numpy()] = np.nan
    return frames


def _chance(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
