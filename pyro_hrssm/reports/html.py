"""One HTML file about a run: its settings, its scores, its training, and held-out sequences to step through.

The file needs no other file and no network: its pictures are data URIs, its charts SVG and its numbers JSON, and a
content security policy forbids the browser to fetch anything. The page is `report.html.jinja`, which escapes all text
from a run's files; its style and its script are separate files of this package.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from numpy.typing import NDArray
from PIL import Image

from pyro_hrssm.checkpoint import METRICS, Checkpoint
from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.data import Scaling, Sequences
from pyro_hrssm.errors import InputError
from pyro_hrssm.files import read_json, read_lines
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.levels import SMALLEST_NOISE
from pyro_hrssm.reports import charts, drawing, figures
from pyro_hrssm.reports.type_charts import Section

POINTS = 300
"""Number of points in a training curve: more points cannot be told apart."""

MOST_ENTRIES = 64
"""The most entries of a frame whose noise is listed one by one."""

NEAR_FLOOR = 1.5
"""A learned noise below this many floors is as good as at its floor."""

ACROSS = 10
"""Number of image frames on one line of a film strip, which makes them about 30 pixels wide on a phone."""

_SCORES = {
    "step": ("scored after step", "", ""),
    "nats_per_sequence": ("bound (negative ELBO)", "nats per sequence", "%.2f"),
    "nats_standard_error": ("its standard error", "nats per sequence", "%.2f"),
    "training_nats_per_sequence": ("the same, training sequences", "nats per sequence", "%.2f"),
    "iwae_nats_per_sequence": ("importance-weighted bound (IWAE)", "nats per sequence", "%.2f"),
    "particles": ("its particles", "", ""),
    "nats_per_frame": ("bound per frame", "nats per frame", "%.3f"),
    "nats_per_entry": ("bound per entry", "nats per observed entry", "%.4f"),
    "terms": ("term", "nats per sequence", "%.2f"),
    "boundary_rate": ("boundary rate", "per frame", "%.3f"),
    "forced_rate": ("forced boundaries", "share of all", "%.3f"),
    "boundary_agreement": ("boundaries drawn again", "share of all", "%.3f"),
    "mean_segment_length": ("mean segment length", "frames", "%.2f"),
    "sequences": ("held-out sequences", "", ""),
    "forecast_nats": ("forecast, frames ahead:", "nats", "%.2f"),
    "forecast_nats_sequences": ("sequences of the forecast, frames ahead:", "", ""),
    "forced_share": ("positions without a choice", "share of all", "%.3f"),
    "tuned_on": ("baselines tuned on", "", ""),
    "permutation": ("permutation test:", "", "%.3g"),
    "stopped_early": ("stopped early", "", ""),
    "parameters": ("chosen for", "", "%.4g"),
    "left_out": ("left out:", "", ""),
    "labels": ("types:", "", "%.3f"),
}
"""Label, unit and format of the numbers of `evaluation.json`; a number not listed is shown under its own name."""

_BOUNDARY_COLUMNS = {
    "f1": "F1",
    "f1_tolerance_1": "F1 ±1",
    "precision": "precision",
    "recall": "recall",
    "covering": "covering",
}

_HIERARCHICAL = ("z", "m", "boundary_rate", "boundary_f1", "temperature")
"""Quantities that a flat model, without segments and abstract state, logs as constants."""

_COLOURS = {
    drawing.BLUE.lower(): "var(--prior)",
    drawing.ORANGE.lower(): "var(--posterior)",
    drawing.VERMILION.lower(): "var(--segment)",
    "#b0b0b0": "var(--line)",  # Matplotlib's grid
}
"""The page's colours, light or dark, by the colours of its charts."""


def page(
    run: Path,
    loaded: Checkpoint,
    model: StateSpaceModel,
    sequences: Sequences,
    source: str,
    num: int,
    seed: int,
    types: Section | None = None,
) -> str:
    """The whole HTML file.

    Arguments:
        run: the run's folder, with its scores and its training curves if there are any; or a checkpoint file.
        loaded: the checkpoint of the model.
        model: the model, which reconstructs the sequences.
        sequences: the sequences; the first `num` are shown.
        source: a description of the sequences.
        num: number of sequences to show.
        seed: seed of the draw of states that is shown.
        types: what is said of the types of the sequences' segments; None where the run has none.

    Raises:
        InputError: where a file of the run is damaged, or the shape of the frames cannot be drawn.
    """
    shown = figures.first_sequences(model, sequences, num, seed)
    note = drawing.visible(np.empty(model.config.frame_shape))[1] if len(model.config.frame_shape) == 3 else None
    source = source if note is None else f"{source}; an image shows {note}"
    return _painted(run, loaded, model.config, shown, source, _noise(model, sequences.scaling), types)


def _painted(
    run: Path,
    loaded: Checkpoint,
    config: HRSSMConfig,
    shown: Sequence[figures.Shown],
    source: str,
    noise: list[tuple[str, str]],
    types: Section | None,
) -> str:
    """The page about sequences that are already reconstructed."""
    hierarchical = shown[0].ends is not None
    entries = max(config.abstract_size, config.observation_size)
    script = _own("report.js")
    facts = {
        "kind": shown[0].kind,
        "across": ACROSS,
        "start": config.context,
        "hierarchical": hierarchical,
        "sequences": [sequence.numbers for sequence in shown],
    }
    loader = PackageLoader("pyro_hrssm.reports", ".")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template("report.html.jinja").render(
        name=run.resolve().name,
        lead=_lead(run, loaded, config, hierarchical),
        step=loaded.step,
        scores=_scores(run, loaded.step),
        source=source,
        types=types,
        sequences=[_drawn_sequence(one, config.context) for one in shown],
        missing=any(one.missing for one in shown),
        frames_shown=max(len(one.originals) for one in shown),
        longest=max(one.length for one in shown),
        pixel_step=drawing.stride(config.frame_shape),
        entries_shown=figures.STATES if entries > figures.STATES else None,
        charts=_charts(read_lines(run / METRICS) if run.is_dir() else [], hierarchical),
        settings=_settings(loaded.record) | ({"learned noise of each entry": noise} if noise else {}),
        facts=facts,
        data=script_json(facts),
        style=_own("report.css"),
        script=script,
        digest=_digest(script),
    )


def _own(name: str) -> str:
    """The text of a file beside this one."""
    return resources.files("pyro_hrssm.reports").joinpath(name).read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON for a script element: no character sequence in it closes the element or opens a comment."""
    return htmlsafe_json_dumps(value, allow_nan=False, separators=(",", ":"))


def _digest(script: str) -> str:
    """The digest by which the page's policy allows its own script: no other runs, even if an escape were forgotten."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _lead(run: Path, loaded: Checkpoint, config: HRSSMConfig, hierarchical: bool) -> str:
    kind, sizes = "Recurrent state space model without segments", f"s of {config.observation_size}"
    if hierarchical:
        kind, sizes = "Hierarchical recurrent state space model", f"z of {config.abstract_size}, {sizes}"
    frames = "×".join(map(str, config.frame_shape))
    return f"{kind}, hidden size {config.hidden}, {sizes}, frames of {frames}. {run}, step {loaded.step}."


# Film strips


class _Mark(NamedTuple):
    """A polyline on a line of frames: a gap between images, a segment's bracket or a true boundary."""

    kind: str
    points: list[tuple[float, float]]


class _Line(NamedTuple):
    """A line of a film strip, its frames side by side in one picture, in units of about a pixel."""

    top: float
    picture: str
    """A data URI."""
    place: tuple[float, float]
    """The picture's left and top within the line."""
    extent: tuple[float, float]
    """The picture's width and height."""
    marks: list[_Mark]


class _Strip(NamedTuple):
    """A film strip of one sequence, with its lines below each other."""

    name: str
    label: str
    size: tuple[float, float]
    lines: list[_Line]


class _DrawnSequence(NamedTuple):
    """The pictures of a sequence and of its reconstruction, and their segments in words."""

    number: int
    layers: dict[str, _Strip]
    begins: list[int] | None
    """Frames that open a segment of the draw; None for a flat model."""
    truly_begins: list[int] | None
    """Frames that open a true segment; None if these are unknown."""


def _drawn_sequence(shown: figures.Shown, start: int) -> _DrawnSequence:
    """The sequence's pictures; its frames count from `start`, the context's length."""
    layers = {
        label: _strip(shown, name, frames, f"{label} of sequence {shown.number}")
        for name, label, frames in (
            ("original", "original", shown.originals),
            ("rebuilt", "reconstruction", shown.rebuilt),
        )
    }
    begins, truly_begins = (
        None if ends is None else [start + t for t in _starts(ends)] for ends in (shown.ends, shown.truth)
    )
    return _DrawnSequence(shown.number, layers, begins, truly_begins)


def _starts(ends: NDArray[np.bool_]) -> list[int]:
    return [0, *(np.flatnonzero(ends) + 1).tolist()]


_MARGIN, _FOOT = 13, 9
"""Room for brackets before a line of frames, and for true boundaries after it."""


def _strip(shown: figures.Shown, name: str, frames: NDArray[np.uint8], label: str) -> _Strip:
    """The strip of frames [T, X…, 3]: rows below each other, vectors as columns, images in lines of `ACROSS`."""
    count = len(frames)
    length = ACROSS if shown.kind == "images" else count
    lines, top, right = [], 0.0, 0.0
    for first in range(0, count, length):
        part = frames[first : first + length]
        if shown.kind == "rows":
            picture, across = part, 100.0
            step = min(max(100 / part.shape[1], 50 / count), 300 / count)
        elif shown.kind == "vectors":
            picture, across, step = part.transpose(1, 0, 2), 16.0 * part.shape[1], 600 / count
        else:
            picture = part.transpose(1, 0, 2, 3).reshape(part.shape[1], -1, 3)
            step = 600 / min(length, count)
            across = step * part.shape[1] / part.shape[2]
        along = step * len(part)
        # Sizes are along the frames and across them, margins included; the frames of rows run downwards.
        place, extent, box = (0.0, float(_MARGIN)), (along, across), (along + 1, _MARGIN + across + _FOOT)
        if shown.kind == "rows":
            place, extent, box = place[::-1], extent[::-1], box[::-1]
        marks = list(_marks(shown, first, first + len(part), step, across))
        lines.append(_Line(top, _png(picture), place, extent, marks))
        top, right = top + box[1], max(right, box[0])
    return _Strip(f"{shown.number}-{name}", label, (right, top), lines)


def _png(colours: NDArray[np.uint8]) -> str:
    """Pixels [height, width, 3] as a data URI."""
    packed = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(packed, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


def _marks(shown: figures.Shown, begin: int, end: int, step: float, across: float) -> Iterator[_Mark]:
    """Gaps between images, brackets along segments and ticks at true boundaries of the frames `begin … end - 1`."""

    def mark(kind: str, *points: tuple[float, float]) -> _Mark:
        return _Mark(kind, [point[::-1] for point in points] if shown.kind == "rows" else list(points))

    foot = _MARGIN + across
    if shown.kind == "images":
        for t in range(1, end - begin):
            yield mark("gap", (t * step, _MARGIN), (t * step, foot))
    if shown.ends is not None:
        for first, stop in pairwise([*_starts(shown.ends), len(shown.ends)]):
            left, right = max(first, begin) - begin, min(stop, end) - begin
            if left < right:
                # A segment that continues from the line above has no tick.
                tick = [(left * step + 1, _MARGIN - 2.0)] if first >= begin else []
                last = right * step - min(4.0, 0.3 * step)
                yield mark("bracket", *tick, (left * step + 1, 5.0), (last, 5.0))
    if shown.truth is not None:
        for t in np.flatnonzero(shown.truth[begin:end]).tolist():
            yield mark("truth", ((t + 1) * step, foot + 2), ((t + 1) * step, foot + _FOOT))


# Tables


class _Score(NamedTuple):
    label: str
    value: Any
    form: str
    """The format for `%`; empty for the number as it is."""
    unit: str


class _Scores(NamedTuple):
    step: Any
    """The step at which the model was scored."""
    rows: list[_Score]
    columns: dict[str, str]
    compared: dict[str, Mapping[str, Any]] | None
    """The boundary scores of the model, then of the baselines, by name; None if the true boundaries are unknown."""


def _scores(run: Path, step: int) -> _Scores | None:
    """A run's `evaluation.json`, which is written when training ends; None before."""
    path = run / "evaluation.json"
    if not path.is_file():
        return None
    scores = read_json(path)
    if not isinstance(scores, dict):
        raise InputError(f"{path} must hold a table of scores, found {type(scores).__name__}")
    boundaries = scores.pop("boundaries", None)
    compared: dict[str, Mapping[str, Any]] | None = None
    if isinstance(boundaries, dict):
        scores |= {key: value for key, value in boundaries.items() if key not in (*_BOUNDARY_COLUMNS, "baselines")}
        baselines = boundaries.get("baselines")
        every = {"this model": boundaries} | (baselines if isinstance(baselines, dict) else {})
        compared = {name: found for name, found in every.items() if isinstance(found, dict)}
    rows = [_score(names, value) for names, value in _leaves(scores)]
    return _Scores(scores.get("step", step), rows, _BOUNDARY_COLUMNS, compared)


def _score(names: Sequence[str], value: Any) -> _Score:
    label, unit, form = _SCORES.get(names[0], (names[0], "", "%.4g"))
    return _Score(" ".join([label, *names[1:]]), value, form, unit)


def _leaves(value: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value in nested tables, with the names that lead to the value."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, (*names, name))
    else:
        yield names, value


def _settings(record: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """All entries of the checkpoint's record, one table per part."""
    parts = {name: value for name, value in record.items() if isinstance(value, dict)}
    rest = {name: value for name, value in record.items() if name not in parts}
    return {
        title: [(" ".join(names), _plain(value)) for names, value in _leaves(values)]
        for title, values in (parts | ({"other": rest} if rest else {})).items()
    }


def _noise(model: StateSpaceModel, scaling: Scaling) -> list[tuple[str, str]]:
    """Standard deviations that a Normal emission has learned, in the file's units, and how many are at their floor."""
    if not model.emission.learns_noise:
        return []
    learned = model.emission.noise(model.emission.combine.weight).detach().cpu().double().numpy()
    floor = f"{int((learned < NEAR_FLOOR * SMALLEST_NOISE).sum())} of {learned.size} entries"
    own = (learned * np.asarray(scaling.scale)).flatten()
    spread = [("least", own.min()), ("median", np.median(own)), ("largest", own.max())]
    each = [(str(number), value) for number, value in enumerate(own)] if own.size <= MOST_ENTRIES else spread
    return [*((name, f"{value:.4g}") for name, value in each), (f"near the floor of {SMALLEST_NOISE}, scaled", floor)]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Training curves


class _Curve(NamedTuple):
    place: int
    """Position among the group's curves, which determines the colour."""
    name: str
    last: float


class _Chart(NamedTuple):
    group: charts.Group
    svg: str
    curves: list[_Curve]


def _charts(rows: Sequence[Mapping[str, Any]], hierarchical: bool) -> list[_Chart]:
    """One chart per group of quantities that were logged."""
    drawn = []
    for number, group in enumerate(charts.TRAINING):
        found = {
            key: points
            for key, points in charts.curves(rows, group, POINTS).items()
            if hierarchical or key.removeprefix("held_out_") not in _HIERARCHICAL
        }
        if not found:
            continue
        steps = max(points[:, 0].max() for points in found.values())
        label = f"{group.title} in {group.unit} over {steps:.0f} training steps; last values in the list below"
        svg = drawing.svg(charts.training_chart(group, found), f"chart{number}", label, _COLOURS)
        keys = [
            _Curve(place, name, float(found[key][-1, 1]))
            for place, (key, name) in enumerate(group.names.items())
            if key in found
        ]
        drawn.append(_Chart(group, svg, keys))
    return drawn
