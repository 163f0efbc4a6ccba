"""The report: it holds every number and no outside address, hostile names stay text, and a browser can step."""

import html.parser
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import browser
import numpy as np
import pytest
import torch

from pyro_hrssm import data
from pyro_hrssm.checkpoint import Checkpoint
from pyro_hrssm.cli import main
from pyro_hrssm.config import DataConfig, HRSSMConfig, TrainingConfig, to_dict
from pyro_hrssm.data import Scaling, Sequences
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.reports import figures
from pyro_hrssm.reports import html as report

TINY = ["--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--batch-size", "8", "--particles", "2"]


class Case(NamedTuple):
    """Frames of one kind, and the model for them."""

    shape: tuple[int, ...]
    kind: str
    context: int = 0
    flat: bool = False
    holes: bool = False
    length: int = 12
    gaps: bool = False


CASES = {
    "rows": Case((9,), "rows"),
    "tall_rows": Case((8,), "rows", length=90),
    "vectors": Case((3,), "vectors", holes=True),
    "one_number": Case((1,), "vectors"),
    "grey_images": Case((5, 7), "images"),
    "colour_images": Case((6, 6, 3), "images", context=2, holes=True),
    "two_channels": Case((4, 4, 2), "images"),
    "flat": Case((3,), "vectors", flat=True, holes=True),
    "flat_images": Case((6, 6, 3), "images", flat=True),
    "gaps": Case((3,), "vectors", holes=True, gaps=True),
    "gaps_in_images": Case((6, 6, 3), "images", context=2, holes=True, gaps=True),
    "one_frame": Case((9,), "rows", length=1),
}
LONG = {
    "images": (Case((5, 7), "images", length=250), 240),
    "vectors": (Case((3,), "vectors", length=700), 600),
}


def sequences(case: Case, num: int = 3) -> Sequences:
    random = np.random.default_rng(0)
    frames = random.random((num, case.length, *case.shape), np.float32)
    boundaries = random.random((num, case.length)) < 0.3
    mask = np.ones((num, case.length), bool)
    if case.holes:
        mask[0, 5] = mask[1, 9:] = mask[2, 4:6] = False
    if case.gaps:
        frames[:, 3, ..., 0] = np.nan
    return Sequences(frames, mask if case.holes else None, boundaries, Scaling(0.5, 2.0))


def page_of(case: Case, run: Path, source: str = "Held-out sequences", record: dict[str, Any] | None = None) -> str:
    torch.manual_seed(3)
    kind = "rssm" if case.flat else "hrssm"
    config = HRSSMConfig(
        model=kind, frame_shape=case.shape, hidden=8, abstract_size=2, observation_size=3, context=case.context,
        likelihood="normal", max_length=4, entry_flags=case.gaps,
    )  # fmt: skip
    model = StateSpaceModel.build(config).eval()
    settings = {"model": to_dict(config), "training": to_dict(TrainingConfig()), "data": to_dict(DataConfig())}
    loaded = Checkpoint(7, {}, settings | (record or {}))
    return report.page(run, loaded, model, sequences(case), source, num=3, seed=1)


@pytest.mark.parametrize("kind", LONG)
def test_of_long_sequences_the_first_frames_are_shown(kind: str, tmp_path: Path) -> None:
    case, shown = LONG[kind]
    page = Elements(page_of(case, tmp_path))
    assert f"Of {case.length} frames, the first {shown} are shown." in " ".join(page.text.split())
    assert [len(one["error"]) for one in page.data["sequences"]] == [shown] * 3


def test_learned_noise_is_told_in_the_file_s_units(tmp_path: Path) -> None:
    config = HRSSMConfig(frame_shape=(3,), hidden=8, likelihood="normal")
    model = StateSpaceModel.build(config).eval()
    with torch.no_grad():
        model.emission.log_noise.copy_(torch.tensor([0.1, 0.005, 0.48]).log())
    data = Sequences(np.zeros((2, 6, 3), np.float32), scaling=Scaling(0.0, (1.0, 10.0, 2.0)))
    loaded = Checkpoint(7, {}, {"model": to_dict(config)})
    text = " ".join(Elements(report.page(tmp_path, loaded, model, data, "", num=1, seed=1)).text.split())
    assert "learned noise of each entry 00.12 10.25 21 near the floor of 0.02, scaled1 of 3 entries" in text


class Elements(html.parser.HTMLParser):
    """Every start tag with its attributes, the text between tags, and the content of script elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, text: str) -> None:
        if self.lasttag == "script" and self.cdata_elem == "script":
            self.scripts[-1] += text
        elif self.cdata_elem is None:
            self.text += text

    def count(self, tag: str, name: str = "class", value: str | None = None) -> int:
        return sum(found == tag and (value is None or at.get(name) == value) for found, at in self.tags)

    @property
    def data(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.scripts[0])
        return loaded


def references_nothing(page: str) -> None:
    """No address outside the file, in any attribute, style or script."""
    for tag, attributes in Elements(page).tags:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        assert (attributes.get("xlink:href") or "#").startswith("#"), (tag, attributes)
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+|sha256-[A-Za-z0-9+/=]+", "", page)
    for pattern in (r"https?:", r"//[^ ]", r"url\(", r"@import", r"\bfetch\b", r"XMLHttpRequest", r"sendBeacon"):
        assert not re.search(pattern, rest), pattern
    assert "default-src 'none'" in page


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    return [] if isinstance(value, str) else [value]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on colours, whose boundaries are known."""
    folder = tmp_path_factory.mktemp("report")
    data.save_npz(folder / "made.npz", **data.generate("colours", 40, 3, num_frames=8))
    flags = [*TINY, "--steps", "4", "--log-every", "1", "--data", str(folder / "made.npz")]
    main(["train", *flags, "--out", str(folder / "run")])
    return folder / "run"


def test_every_score_is_there_and_the_file_stands_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found" / "report.html"
    main(["report", str(run), "--num-sequences", "2", "--out", str(out)])
    said = capsys.readouterr().out.splitlines()
    assert "step 4" in said[0]
    assert str(out) in said[-1]
    page = out.read_text(encoding="utf-8")
    references_nothing(page)
    scores = json.loads((run / "evaluation.json").read_text())
    assert "boundaries" in scores
    for number in numbers(scores):
        assert f'<data value="{json.dumps(number)}">' in page, number
    elements = Elements(page)
    rows = ("frame difference", "every k", "best possible")
    for words in (*rows, "nats per sequence", "made.npz", "learning_rate", "Temperature"):
        assert words in elements.text, words
    facts = elements.data
    assert len(facts["sequences"]) == 2
    assert {len(one["posterior"]) for one in facts["sequences"]} == {8}
    assert elements.count("figure", "class", "chart") == 5
    assert elements.count("svg", "role", "img") == 5 + 2 * 2
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    main(["report", str(run), "--num-sequences", "2", "--out", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_bytes() == out.read_bytes()


def test_a_run_without_scores_or_curves_has_a_report(run: Path, tmp_path: Path) -> None:
    (file,) = (run / "checkpoints").glob("*4.safetensors")
    main(["report", str(file), "--out", str(tmp_path / "file.html")])
    page = (tmp_path / "file.html").read_text(encoding="utf-8")
    assert "Not scored yet" in page
    assert "Nothing has been logged yet" in page


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_frames_is_shown(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    page = page_of(case, tmp_path)
    assert page == page_of(case, tmp_path)
    references_nothing(page)
    elements = Elements(page)
    facts = elements.data
    assert facts["kind"] == case.kind
    assert facts["hierarchical"] == (not case.flat)
    observed = sequences(case).batch([0, 1, 2]).mask
    if case.gaps:
        assert observed is not None
        observed = observed.flatten(2).any(2)
    lengths = [case.length] * 3 if observed is None else [int(row.nonzero()[-1]) + 1 for row in observed]
    segments = 0
    for number, (one, length) in enumerate(zip(facts["sequences"], lengths, strict=True)):
        total = length - case.context
        assert len(one["seen"]) == len(one["s"]) == len(one["error"]) == len(one["truth"]) == total
        if observed is not None:
            assert one["seen"] == observed[number, case.context : length].int().tolist()
        assert ("posterior" in one) == ("prior" in one) == (one["ends"] is not None) == (not case.flat)
        assert not (one["ends"] or [0])[-1], "the last frame's boundary has no effect"
        segments += sum(one["ends"] or []) + 1
        if case.kind == "vectors":
            # Four significant digits.
            wanted = sequences(case).batch([number]).frames[0, case.context : length] * 2 + 0.5
            seen = torch.tensor(one["seen"], dtype=torch.bool)
            if case.gaps:
                assert [row[0] for row in one["original"]].index(None) == 3
                one["original"][3][0], wanted[3, 0] = 0.5, 0.5
            assert not any(None in row for row, here in zip(one["original"], one["seen"], strict=True) if here)
            np.testing.assert_allclose(np.array(one["original"], float)[seen], wanted[seen], rtol=1e-3, atol=1e-4)
    brackets = elements.count("polyline", "class", "bracket")
    if case.flat:
        assert brackets == 0
    elif case.kind != "images":  # images continue in a further line
        assert brackets == 2 * segments
    assert elements.count("svg", "role", "img") == 6
    assert all(at.get("aria-label") or at.get("alt") for tag, at in elements.tags if at.get("role") == "img")
    assert ("missing" in elements.text) == case.holes


def test_what_a_run_calls_itself_stays_text(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--"
    run = tmp_path / "<img src=x>&amp;\"'"
    run.mkdir()
    scores = {hostile: 1.5, "terms": {hostile: 2.5}, "boundaries": {"f1": 0.5, "baselines": {hostile: {"f1": 0.25}}}}
    (run / "evaluation.json").write_text(json.dumps(scores | {"tuned_on": hostile}))
    page = page_of(CASES["rows"], run, hostile, {"versions": {hostile: hostile}, hostile: {"a": 1}, "git": hostile})
    elements = Elements(page)
    assert elements.count("script") == 2
    assert elements.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)
    assert elements.text.count(hostile) == 9
    assert run.name in elements.text
    for number in (1.5, 2.5, 0.5, 0.25):
        assert f'<data value="{number}">' in page


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "]]>", "\u2028", "&lt;"])
def test_json_cannot_leave_its_element(text: str) -> None:
    written = report.script_json({text: [text]})
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == {text: [text]}


def test_long_curves_are_thinned_but_keep_their_end(tmp_path: Path) -> None:
    rows = [{"step": step, "nats_per_sequence": 1000 / step, "z": None} for step in range(1, 5001)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(CASES["rows"], tmp_path)
    (curve,) = re.findall(r'id="chart0-nats_per_sequence">\s*<path d="([^"]*)"', page)
    assert 200 < len(re.findall("[ML]", curve)) <= 300
    assert '<data value="0.2">' in page


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["nosuchrun"], "nosuchrun"),
        (["RUN", "--out", "page.txt"], ".html"),
        (["RUN", "--num-sequences", "0"], "num_sequences"),
        (["RUN", "--data", "nosuch.npz"], "nosuch"),
        (["RUN", "--out", "RUN/evaluation.json/a.html"], "cannot write"),
    ],
)
def test_what_cannot_be_reported_is_one_line_and_exit_code_2(
    run: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["report", *(flag.replace("RUN", str(run)) for flag in flags)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert words in message
    assert not list(tmp_path.iterdir())


def test_damaged_scores_are_named(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("[1]")
    with pytest.raises(report.InputError, match=r"evaluation\.json must hold a table of scores, found list"):
        page_of(CASES["rows"], tmp_path)


def test_scores_of_an_earlier_step_are_told_from_what_is_shown(tmp_path: Path) -> None:
    said = "the sequences below are of step 7"
    for step, old in ((7, False), (5, True)):
        (tmp_path / "evaluation.json").write_text(json.dumps({"step": step, "nats_per_sequence": 3.0}))
        assert (said in page_of(CASES["rows"], tmp_path)) is old


def test_a_score_in_words_may_wrap(tmp_path: Path) -> None:
    said = "pyro-hrssm segment RUN --types K gives a run types"  # in a cell of numbers it squeezed all names
    scores = {"step": 7, "nats_per_sequence": 3.0, "boundaries": {"f1": 0.5, "left_out": {"types of the model": said}}}
    (tmp_path / "evaluation.json").write_text(json.dumps(scores))
    page = page_of(CASES["rows"], tmp_path)
    assert f'<td colspan="2">{said}</td>' in page
    assert '<td class="number"><data value="3.0">' in page


def test_states_that_are_not_all_drawn_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "first 64 entries" not in page_of(CASES["rows"], tmp_path)
    monkeypatch.setattr(figures, "STATES", 2)
    assert "Of the states, the first 2 entries are drawn." in page_of(CASES["rows"], tmp_path)


PICTURE = """
[...document.querySelectorAll("#left canvas, #left .bars svg")]
  .map((node) => node.tagName === "CANVAS" ? node.toDataURL() : node.innerHTML).join()
"""
NUMBERS = '[...document.querySelectorAll("#player dd, #player output")].map((node) => node.textContent).join("|")'
DECODED = "[...pictures.values()].flat().every(ready)"
TOO_WIDE = """
[...document.querySelectorAll("body *")]
  .filter((node) => node.getClientRects().length && node.getBoundingClientRect().right > innerWidth + 0.5)
  .map((node) => node.outerHTML.slice(0, 80))
"""


def looked_at(tab: browser.Page, case: Case) -> None:
    """Step through the open page by keyboard, and look for elements that overflow."""
    tab.wait(DECODED)
    tab.run('document.querySelectorAll("details").forEach((node) => node.open = true)')
    assert tab.run("[innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    assert tab.run(TOO_WIDE) == []
    assert tab.run('document.querySelectorAll(".line.posterior").length') == (0 if case.flat else 1)
    seen = []
    tab.run('document.getElementById("frame").focus()')
    for step in ("", "ArrowRight", "ArrowRight", "End"):
        if step:
            tab.press(step, {"ArrowRight": 39, "End": 35}[step])
            tab.wait(f"{NUMBERS} !== {json.dumps(seen[-1][1])}")
        seen.append((tab.run(PICTURE), tab.run(NUMBERS)))
        assert tab.run("[innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    assert len({picture for picture, _ in seen}) == len(seen)
    assert len({said for _, said in seen}) == len(seen)
    assert tab.run('document.getElementById("frame").getAttribute("aria-valuetext")').startswith("frame 11")
    tab.run('const list = document.getElementById("sequence"); list.value = 1; list.dispatchEvent(new Event("change"))')
    tab.wait(DECODED)
    assert (tab.run(PICTURE), tab.run(NUMBERS)) not in seen
    assert int(tab.run('document.getElementById("frame").max')) == (8 if case.holes else 11) - case.context


@pytest.mark.skipif(browser.find() is None, reason="needs Chromium or Chrome, and none is on the path")
def test_a_phone_steps_through_it_without_a_network(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    with browser.page(tmp_path / "profile") as tab:
        for name in ("rows", "vectors", "colour_images", "flat"):
            case = CASES[name]
            (tmp_path / "page.html").write_text(page_of(case, tmp_path), encoding="utf-8")
            tab.resize(360, 740)
            tab.open(tmp_path / "page.html")
            looked_at(tab, case)
        light = tab.run("getComputedStyle(document.body).backgroundColor")
        tab.resize(360, 740, dark=True)
        assert tab.run("getComputedStyle(document.body).backgroundColor") != light
        bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        assert [event for event in tab.events if event.get("method") in bad] == []
        asked = [e["params"]["request"]["url"] for e in tab.events if e.get("method") == "Network.requestWillBeSent"]
        assert asked
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
