"""One HTML file about a run: its settings, its scores, its training, and held-out sequences to step through.

The file needs nothing beside it and no network: pictures are data URIs, numbers are JSON inside it, and a content
security policy forbids the browser to fetch anything. Whatever comes from a run's files is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from pyro_hrssm.checkpoint import Checkpoint
from pyro_hrssm.data import Sequences
from pyro_hrssm.errors import InputError
from pyro_hrssm.files import read_json, read_lines
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.reports import figures

POINTS = 300
"""Points of a training curve: more cannot be told apart."""

ACROSS = 10
"""Image frames on one line of a film strip: on a phone they are then about 30 pixels wide."""

_SCORES = {
    "step": ("scored after step", "", "d"),
    "nats_per_sequence": ("bound (negative ELBO)", "nats per sequence", ".2f"),
    "nats_standard_error": ("its standard error", "nats per sequence", ".2f"),
    "iwae_nats_per_sequence": ("importance-weighted bound (IWAE)", "nats per sequence", ".2f"),
    "particles": ("its particles", "", "d"),
    "nats_per_frame": ("bound per frame", "nats per frame", ".3f"),
    "terms": ("term", "nats per sequence", ".2f"),
    "boundary_rate": ("boundary rate", "per frame", ".3f"),
    "forced_rate": ("forced boundaries", "share of all", ".3f"),
    "mean_segment_length": ("mean segment length", "frames", ".2f"),
    "sequences": ("held-out sequences", "", "d"),
    "forecast_nats": ("forecast, frames ahead:", "nats", ".2f"),
    "forced_share": ("positions forced, not scored", "share of all", ".3f"),
    "tuned_on": ("baselines tuned on", "", ""),
}
"""Label, unit and format of the numbers of `evaluation.json`; one not listed is shown under its own name."""

_BOUNDARY_COLUMNS = {"f1": "F1", "f1_tolerance_1": "F1 ±1", "precision": "precision", "recall": "recall"}

_CURVES: dict[str, tuple[str, tuple[float, ...], dict[str, str]]] = {
    "Loss and held-out bound": (
        "nats per sequence",
        (),
        {
            "nats_per_sequence": "training loss",
            "emission": "its emission term",
            "held_out_nats_per_sequence": "held-out bound",
        },
    ),
    "Latent terms": ("nats per sequence", (0.0,), {"z": "z, abstract", "s": "s, observation", "m": "m, boundary"}),
    "Boundary rate": (
        "boundaries per frame",
        (0.0,),
        {"boundary_rate": "training", "held_out_boundary_rate": "held-out"},
    ),
    "Boundary score": ("F1", (0.0, 1.0), {"held_out_boundary_f1": "held-out"}),
    "Temperature of the relaxation": ("temperature", (0.0,), {"temperature": "training"}),
}
"""Training curves: title, unit, values that the axis must show, and the keys of `metrics.jsonl` with their names."""

_HIERARCHICAL = ("z", "m", "boundary_rate", "boundary_f1", "temperature")
"""What a flat model logs as a constant: it has neither segments nor an abstract state."""


def page(
    run: Path, loaded: Checkpoint, model: StateSpaceModel, sequences: Sequences, source: str, num: int, seed: int
) -> str:
    """The whole HTML file.

    Arguments:
        run: the run's folder, with its scores and its training curves where they are; or a checkpoint file.
        loaded: the checkpoint that the model is of.
        sequences: the first `num` of them are shown.
        source: what these are, for people.
        seed: of the one draw of the states that is shown.

    Raises:
        InputError: where a file of the run is damaged, or frames are of a shape that cannot be drawn.
    """
    shown = figures.first_sequences(model, sequences, num, seed)
    hierarchical = isinstance(model, HRSSM)
    rows = read_lines(run / "metrics.jsonl") if run.is_dir() else []
    template = _Template(resources.files("pyro_hrssm.reports").joinpath("report.html").read_text(encoding="utf-8"))
    start = model.config.context
    facts = {
        "kind": shown[0].kind,
        "across": ACROSS,
        "start": start,
        "hierarchical": hierarchical,
        "sequences": [sequence.numbers for sequence in shown],
    }
    return template.substitute(
        name=html.escape(run.resolve().name),
        lead=html.escape(_lead(run, loaded, model)),
        scores=_scores(run, loaded.step),
        source=html.escape(source),
        context=html.escape(f"The first {start} frames of each are given to the model, not modelled." if start else ""),
        options="".join(f'<option value="{i}">sequence {one.number}</option>' for i, one in enumerate(shown)),
        kind=shown[0].kind,
        legend=_legend(shown, max(model.config.abstract_size, model.config.observation_size)),
        strips="".join(_figure(sequence, start) for sequence in shown),
        curves=_curves(rows, hierarchical),
        settings=_settings(loaded.record),
        data=script_json(facts),
        digest=_script_digest(template.template),
    )


class _Template(string.Template):
    """Placeholders that neither style sheets nor scripts contain."""

    delimiter = "@@"


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it closes the element or opens a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _script_digest(template: str) -> str:
    """What the page's policy knows its own script by: no other one runs, even if an escape were forgotten."""
    script = template.split("<script>")[1].split("</script>")[0]
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _lead(run: Path, loaded: Checkpoint, model: StateSpaceModel) -> str:
    config = model.config
    if not isinstance(model, HRSSM):
        kind, sizes = "Recurrent state space model without segments", f"s of {config.observation_size}"
    else:
        kind = "Hierarchical recurrent state space model"
        sizes = f"z of {config.abstract_size}, s of {config.observation_size}"
    frames = "×".join(map(str, config.frame_shape))
    return f"{kind}, hidden size {config.hidden}, {sizes}, frames of {frames}. {run}, step {loaded.step}."


# Film strips


def _png(colours: NDArray[np.uint8]) -> str:
    """Pixels [height, width, 3] as a data URI."""
    packed = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(packed, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


class _Line(NamedTuple):
    """A line of a film strip: the frames `first … stop - 1`, side by side."""

    first: int
    stop: int
    picture: NDArray[np.uint8]
    """[height, width, 3]"""


def _lines(kind: str, frames: NDArray[np.uint8]) -> list[_Line]:
    """A sequence [T, X…, 3] as it is drawn: rows below each other, vectors as columns, images in lines."""
    if kind == "rows":
        return [_Line(0, len(frames), frames)]
    if kind == "vectors":
        return [_Line(0, len(frames), frames.transpose(1, 0, 2))]
    lines = []
    for first in range(0, len(frames), ACROSS):
        part = frames[first : first + ACROSS]
        film = part.transpose(1, 0, 2, 3).reshape(part.shape[1], -1, 3)
        lines.append(_Line(first, first + len(part), film))
    return lines


def _figure(shown: figures.Shown, start: int) -> str:
    """A sequence above its reconstruction, with brackets along the segments, and the same in words."""
    said = _segments_said(shown, start)
    strips = "".join(
        f'<div class="layer"><span>{label}</span>{_strip(shown, name, frames, f"{label} of sequence {shown.number}")}'
        "</div>"
        for name, label, frames in (
            ("original", "original", shown.originals),
            ("rebuilt", "reconstruction", shown.rebuilt),
        )
    )
    return (
        f'<figure class="strip {shown.kind}"><div class="layers">{strips}</div>'
        f"<figcaption><b>Sequence {shown.number}</b>{said}</figcaption></figure>"
    )


def _legend(shown: Sequence[figures.Shown], entries: int) -> str:
    """What the marks of film strips mean, and what is left out of states of so many entries."""
    said = []
    if shown[0].ends is not None:
        said.append("Each bracket is a segment of the draw; its tick stands at the segment's first frame.")
    if shown[0].truth is not None:
        said.append("Ticks after the frames are true boundaries.")
    if not all(all(sequence.numbers["seen"]) for sequence in shown):
        said.append("Frames in plain light blue are missing.")
    if entries > figures.STATES:
        said.append(f"Of the states, the first {figures.STATES} entries are drawn.")
    return html.escape(" ".join(said))


def _starts(ends: NDArray[np.bool_]) -> list[int]:
    return [0, *(np.flatnonzero(ends) + 1).tolist()]


def _segments_said(shown: figures.Shown, start: int) -> str:
    """Where segments begin, for those who see no picture."""
    said = []
    if shown.ends is not None:
        said.append(f"segments from frame {', '.join(str(start + t) for t in _starts(shown.ends))}")
    if shown.truth is not None:
        what = "true ones" if said else "true segments"
        said.append(f"{what} from {', '.join(str(start + t) for t in _starts(shown.truth))}")
    return f": {'; '.join(said)}" if said else ""


def _strip(shown: figures.Shown, name: str, frames: NDArray[np.uint8], label: str) -> str:
    """One film strip as a picture that scales with the page; the script takes its images from it by name."""
    lines = _lines(shown.kind, frames)
    parts, top, right = [], 0.0, 0.0
    for line in lines:
        drawn, width, height = _draw_line(shown, line)
        parts.append(f'<g transform="translate(0 {top:g})">{drawn}</g>')
        top, right = top + height, max(right, width)
    return (
        f'<svg viewBox="0 0 {right:g} {top:g}" role="img" aria-label="{html.escape(label)}" '
        f'data-strip="{shown.number}-{name}">{"".join(parts)}</svg>'
    )


_MARGIN, _FOOT = 13, 9
"""Room for brackets before a line of frames, and for true boundaries after it."""


def _draw_line(shown: figures.Shown, line: _Line) -> tuple[str, float, float]:
    """A line's pictures and marks, with its size in units of about a pixel."""
    count = line.stop - line.first
    if shown.kind == "rows":
        across, step = 100.0, min(max(100 / shown.originals.shape[1], 50 / count), 300 / count)
        along, place = step * count, (float(_MARGIN), 0.0)
        size, box = (across, along), (_MARGIN + across + _FOOT, along + 1)
    else:
        height, width = line.picture.shape[:2]
        step = 600 / count if shown.kind == "vectors" else 600 / min(ACROSS, len(shown.originals))
        across = 16.0 * height if shown.kind == "vectors" else step * count * height / width
        along, place = step * count, (0.0, float(_MARGIN))
        size, box = (along, across), (along + 1, _MARGIN + across + _FOOT)
    picture = (
        f'<image href="{_png(line.picture)}" x="{place[0]:g}" y="{place[1]:g}" width="{size[0]:g}" '
        f'height="{size[1]:g}" preserveAspectRatio="none"/>'
    )
    marks = "".join(_line_marks(shown, line, step, across))
    return picture + marks, *box


def _line_marks(shown: figures.Shown, line: _Line, step: float, across: float) -> Iterator[str]:
    """Gaps between images, brackets along segments, ticks at true boundaries."""

    def path(kind: str, *points: tuple[float, float]) -> str:
        turned = [point[::-1] for point in points] if shown.kind == "rows" else points
        return f'<polyline class="{kind}" points="{" ".join(f"{x:g},{y:g}" for x, y in turned)}"/>'

    foot = _MARGIN + across
    if shown.kind == "images":
        for t in range(1, line.stop - line.first):
            yield path("gap", (t * step, _MARGIN), (t * step, foot))
    if shown.ends is not None:
        for first, stop in pairwise([*_starts(shown.ends), len(shown.ends)]):
            left, right = max(first, line.first) - line.first, min(stop, line.stop) - line.first
            if left < right:
                # A segment that goes on from the line above has no tick.
                tick = [(left * step + 1, _MARGIN - 2.0)] if first >= line.first else []
                end = right * step - min(4.0, 0.3 * step)
                yield path("bracket", *tick, (left * step + 1, 5.0), (end, 5.0))
    if shown.truth is not None:
        for t in np.flatnonzero(shown.truth[line.first : line.stop]).tolist():
            yield path("truth", ((t + 1) * step, foot + 2), ((t + 1) * step, foot + _FOOT))


# Tables


def _scores(run: Path, step: int) -> str:
    """Tables of a run's `evaluation.json`, which is written when training ends; the sequences are of `step`."""
    path = run / "evaluation.json"
    if not path.is_file():
        return (
            "<p>Not scored yet: a run has its scores once its training has ended. "
            "The curves below show the held-out bound so far.</p>"
        )
    scores = read_json(path)
    if not isinstance(scores, dict):
        raise InputError(f"{path} must hold a table of scores, found {type(scores).__name__}")
    boundaries = scores.pop("boundaries", None)
    if isinstance(boundaries, dict):
        scores |= {key: value for key, value in boundaries.items() if key not in (*_BOUNDARY_COLUMNS, "baselines")}
    lines = [_score_row(*leaf) for leaf in _leaves(scores)]
    table = f"<div><table><tbody>{''.join(lines)}</tbody></table></div>"
    if scores.get("step", step) != step:
        table = f"<p>The run has gone on since: the sequences below are of step {step}.</p>" + table
    return table + (_boundary_table(boundaries) if isinstance(boundaries, dict) else "")


def _leaves(value: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of nested tables with the names that lead to it."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, (*names, name))
    else:
        yield names, value


def _score_row(names: tuple[str, ...], value: Any) -> str:
    label, unit, form = _SCORES.get(names[0], (names[0], "", ".4g"))
    label = " ".join([label, *names[1:]])
    return (
        f'<tr><th scope="row">{html.escape(label)}</th><td class="number">{_number(value, form)}</td>'
        f'<td class="unit">{html.escape(unit)}</td></tr>'
    )


def _number(value: Any, form: str = ".3f") -> str:
    """A number as people read it, which carries its exact value; anything else as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else html.escape(str(value))
    text = format(value, form) if isinstance(value, float) and form != "d" else f"{value}"
    return f'<data value="{json.dumps(value)}">{html.escape(text.replace("-", "−"))}</data>'


def _boundary_table(boundaries: Mapping[str, Any]) -> str:
    """The model's scores above those of the baselines."""
    baselines = boundaries.get("baselines")
    rows = {"this model": boundaries} | (baselines if isinstance(baselines, dict) else {})
    head = "".join(f'<th scope="col">{name}</th>' for name in _BOUNDARY_COLUMNS.values())
    body = "".join(
        f'<tr><th scope="row">{html.escape(name.replace("_", " "))}</th>'
        + "".join(f'<td class="number">{_number(row.get(key))}</td>' for key in _BOUNDARY_COLUMNS)
        + "</tr>"
        for name, row in rows.items()
        if isinstance(row, dict)
    )
    return (
        "<div><h3>Boundaries against the true ones</h3>"
        f'<table class="boundaries"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _settings(record: Mapping[str, Any]) -> str:
    """All that the checkpoint records beside the weights, one foldable table per part."""
    parts = {name: value for name, value in record.items() if isinstance(value, dict)}
    rest = {name: value for name, value in record.items() if name not in parts}
    tables = []
    for name, values in (parts | ({"other": rest} if rest else {})).items():
        lines = "".join(
            f'<tr><th scope="row">{html.escape(" ".join(names))}</th><td>{html.escape(_plain(value))}</td></tr>'
            for names, value in _leaves(values)
        )
        title = html.escape(name.replace("_", " "))
        tables.append(f"<details><summary>{title}</summary><table><tbody>{lines}</tbody></table></details>")
    return "".join(tables)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Training curves


def _curves(rows: Sequence[Mapping[str, Any]], hierarchical: bool) -> str:
    """One chart per group of quantities that were logged."""
    charts = []
    for title, (unit, least, group) in _CURVES.items():
        wanted = {key for key in group if hierarchical or key.removeprefix("held_out_") not in _HIERARCHICAL}
        drawn = {name: points for key, name in group.items() if key in wanted and (points := _points(rows, key))}
        if drawn:
            charts.append(_chart(title, unit, least, drawn))
    return "".join(charts) or "<p>Nothing has been logged yet.</p>"


def _points(rows: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """A quantity over the steps, thinned out to what can be seen."""
    found = [(row.get("step"), row.get(key)) for row in rows]
    points = [(float(x), float(y)) for x, y in found if isinstance(x, (int, float)) and isinstance(y, (int, float))]
    stride = math.ceil(len(points) / POINTS) or 1
    return points[::-1][::stride][::-1]  # the last one stays


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM = 340, 190, 46, 16, 22


def _chart(title: str, unit: str, least: Sequence[float], curves: Mapping[str, list[tuple[float, float]]]) -> str:
    """Curves over the steps with ticks, and a legend that gives each one's last value."""
    points = np.array([point for curve in curves.values() for point in curve])
    values = [*points[:, 1], *least]
    high_x, low, high = points[:, 0].max(), min(values), max(values)
    ticks = _ticks(low, high, 5)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    steps = [x for x in _ticks(0, high_x, 4) if x <= high_x]

    def x(step: float) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(high_x, 1):.1f}"

    def y(value: float) -> str:
        return f"{6 + (_HEIGHT - _BOTTOM - 6) * (high - value) / (high - low):.1f}"

    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(v)}" y2="{y(v)}"/>'
        f'<text x="{_LEFT - 6}" y="{y(v)}" text-anchor="end" dominant-baseline="middle">{_tick_text(v)}</text>'
        for v in ticks
    ]
    parts += [f'<text x="{x(v)}" y="{_HEIGHT - 6}" text-anchor="middle">{_tick_text(v)}</text>' for v in steps]
    for number, curve in enumerate(curves.values()):
        at = [f"{x(step)},{y(value)}" for step, value in curve]
        parts.append(f'<polyline class="curve c{number}" points="{" ".join(at)}"/>')
        if len(at) <= 20:
            parts += [
                f'<circle class="c{number}" r="3" cx="{place.split(",")[0]}" cy="{place.split(",")[1]}"/>'
                for place in at
            ]
    keys = "".join(
        f'<li><i class="c{number}"></i>{name} <span class="number">{_number(curve[-1][1], ".4g")}</span></li>'
        for number, (name, curve) in enumerate(curves.items())
    )
    label = html.escape(f"{title} in {unit} over {high_x:.0f} training steps; last values in the list below")
    return (
        f'<figure class="chart"><h3>{title}</h3><p class="unit">{unit}, over the training steps</p>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
        f"<ul>{keys}</ul></figure>"
    )


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers that span the range."""
    return [float(value) for value in MaxNLocator(most).tick_values(low, high if high > low else low + 1)]


def _tick_text(value: float) -> str:
    return f"{value:g}".replace("-", "−")
