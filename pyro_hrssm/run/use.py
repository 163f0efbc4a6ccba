"""Uses of a trained run: open it, on its own sequences or on others, and report on it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from pyro_hrssm import checkpoint, files
from pyro_hrssm.checkpoint import Checkpoint
from pyro_hrssm.config import DataConfig, from_dict
from pyro_hrssm.data import Held, Sequences
from pyro_hrssm.errors import InputError, one_line, require
from pyro_hrssm.inference.memory import rows_for_batches_of
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.model.rssm import RSSM
from pyro_hrssm.reports import html
from pyro_hrssm.reports.type_charts import Section
from pyro_hrssm.run import segment_types
from pyro_hrssm.run.segment_types import Kept
from pyro_hrssm.run.settings import unflagged
from pyro_hrssm.run.sources import Source, choose
from pyro_hrssm.run.voice import PRINTED, Voice

LARGER = 3.0
"""The least divisor of integers of two bits and more; nobody divides frames in [0, 1] by as much."""


class Opened(NamedTuple):
    """A run's model, and the sequences to use it on."""

    loaded: Checkpoint
    model: StateSpaceModel
    source: Source
    types: Kept | None = None
    """Types of segments that the run keeps."""
    run: Path = Path("run")
    """Its folder or checkpoint file, for messages, and for the arrays that a folder may keep."""
    held: Held | None = None
    """The arrays in memory that the run was trained on; None where its data are named, or kept in its folder."""

    def whole(self) -> Opened:
        """The same with recordings that are not cut into windows."""
        return self._replace(source=self.source.whole)

    def told(self, first: int | None = None) -> str:
        """A line about the first so many sequences, or about all: :meth:`Source.told`, and what the model lacks."""
        context = self.model.config.context
        unmodelled = int((self.source.sequences.lengths[:first] <= context).sum())
        ending = f"; {unmodelled} of them end within the context of {context} frames" if unmodelled else ""
        unflagged_here = unflagged(self.model.config, self.source.sequences)
        flags = f"; {unflagged_here}" if unflagged_here else ""
        return f"{self.source.told(first)}{ending}{flags}"


def open_run(
    run: Path, name: str | None, device: torch.device, kind: type[StateSpaceModel] = StateSpaceModel
) -> Opened:
    """Open a run folder's newest checkpoint, or one checkpoint file, and the sequences to use it on.

    Arguments:
        name: the name of a data set, or a file's path; None for the run's own data.
        kind: the class that the model must have.
    """
    loaded = checkpoint.load(run)
    model = kind.restore(loaded, device)
    types = segment_types.load(run, model) if isinstance(model, HRSSM) else None
    return open_on(loaded, model, name, types, run)


def open_on(
    loaded: Checkpoint,
    model: StateSpaceModel,
    name: str | Held | None,
    types: Kept | None,
    run: Path,
    held: Held | None = None,
) -> Opened:
    """A checkpoint's model with the sequences to use it on.

    Arguments:
        name: as in :func:`open_run`, or arrays in memory.
        types, run, held: those of :class:`Opened`.
    """
    source = choose(run, loaded.record, name, held)
    context, total = model.config.context, source.sequences.num_frames
    if context >= total:
        raise InputError(f"the run's context of {context} frames leaves none of {total} to model: {source.description}")
    return Opened(loaded, model, source, types, run, held)


def doubts(opened: Opened, given: bool) -> list[str]:
    """Sentences on what the sequences may mean otherwise.

    Arguments:
        given: whether they were named, so that a sentence says what was read.
    """
    mark = from_dict(DataConfig, opened.loaded.record.get("data")).boundaries_mark
    source = opened.source
    said = [f"{source.description}: {source.sequences.description()}"] if given else []
    said += (source.sequences if source.tuning is None else source.tuning).doubts(mark)
    twice = _scaled_already(source.sequences)
    return said if twice is None else [*said, twice]


def _scaled_already(sequences: Sequences) -> str | None:
    """A sentence about frames that lie within [0, 1] before the run's scaling, which maps some larger range onto it."""
    scaling, extent = sequences.scaling, sequences.extent
    if extent is None or not isinstance(scaling.scale, float) or scaling.shift != 0 or scaling.scale < LARGER:
        return None
    largest = extent[1] * scaling.scale
    if extent[0] < 0 or not 0 < largest <= 1 + 1e-6:  # in float32
        return None
    return (
        f"frames from {extent[0] * scaling.scale:.4g} to {largest:.4g} are divided by {scaling.scale:.4g}, as those "
        "were that the run was trained on: give frames in the same units, not scaled ones"
    )


def open_flat(opened: Opened, run: Path) -> RSSM:
    """The flat model of another run, to stand beside the model of an opened run on the same sequences.

    Raises:
        InputError: where it is no RSSM, or was trained on other sequences, in other units or with another context.
    """
    return flat_beside(opened, checkpoint.load(run), run)


def flat_beside(opened: Opened, loaded: Checkpoint, run: Path) -> RSSM:
    """What :func:`open_flat` does, of a checkpoint already read."""
    own = opened.loaded
    model = StateSpaceModel.restore(loaded, opened.model.device)
    if not isinstance(model, RSSM):
        raise InputError(f"flat must be a run of an RSSM, found an {model.config.model.upper()} in {one_line(run)}")
    same = loaded.record.get("data_sha256") == own.record.get("data_sha256")
    require(same, f"flat must have been trained on the run's own sequences, found others in {one_line(run)}")
    scaled = model.scaling == opened.model.scaling
    require(scaled, f"flat must take frames in the run's units, found another scaling in {one_line(run)}")
    context, found = opened.model.config.context, model.config.context
    require(context == found, f"flat must have the run's context of {context} frames, found {found}")
    return model


def most_rows(loaded: Checkpoint) -> int | None:
    """The most sequences times particles that one pass scores, by the run's batch size; None if that is unknown."""
    training = loaded.record.get("training")
    size = training.get("batch_size") if isinstance(training, dict) else None
    return rows_for_batches_of(size) if isinstance(size, int) and size > 0 else None


def report(
    opened: Opened,
    run: Path,
    num_sequences: int,
    seed: int,
    out: Path,
    types: Section | None = None,
    voice: Voice = PRINTED,
) -> None:
    """Write one HTML file about the run.

    Arguments:
        run: the run's folder, with its scores and curves, or a checkpoint file.
        num_sequences: number of sequences to show, from the first on.
        seed: seed of the draw of states that is shown.
        types: the part about the types of segments.
        voice: where sentences go.
    """
    said = opened.told(num_sequences)
    voice.say(f"{run}: step {opened.loaded.step}. {said}")
    page = html.page(run, opened.loaded, opened.model, opened.source.sequences, said, num_sequences, seed, types)
    files.write_text(out, page)
    voice.say(f"{out}: {len(page) / 1e6:.1f} MB in one file, to be opened in any browser")
