"""Commands on one long recording: it is cut to train on it and to score it, and segmented from end to end."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_hrssm import HRSSM, data
from pyro_hrssm.cli import main
from pyro_hrssm.config import DataConfig, from_dict, to_dict
from pyro_hrssm.data import batches
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.segments import Segments
from pyro_hrssm.run import segmenting
from pyro_hrssm.run.segmenting import write_segments
from pyro_hrssm.run.use import open_run

FRAMES, CONTEXT, WINDOW = 1100, 2, 110
TINY = [
    *("--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--batch-size", "8", "--particles", "1"),
    *("--steps", "2", "--evaluate-every", "0", "--context", str(CONTEXT), "--device", "cpu"),
    *("--max-length", "9", "--min-length", "2"),
]


class Run:
    """A run on `mine.npz`, one recording with a gap in it, whose boundaries are known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        self.truth = rng.random((1, FRAMES)) < 0.2
        levels = rng.standard_normal((FRAMES, 3))[self.truth[0].cumsum()]
        self.frames = 7 + (levels + 0.2 * rng.standard_normal((FRAMES, 3)))[None].astype(np.float32)
        self.frames[0, 500:520] = np.nan
        data.save_npz(folder / "mine.npz", self.frames, boundaries=self.truth)
        self.said: list[str] = []


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run(tmp_path_factory.mktemp("recordings"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        patch.setattr("pyro_hrssm.run.training.paint", lambda *_: {})
        patch.setattr("builtins.print", lambda *text, **_: made.said.append(" ".join(map(str, text))))
        main(["train", *TINY, "--data", "mine.npz", "--out", "run"])
    return made


@pytest.fixture(autouse=True)
def _there(mine: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.folder)
    monkeypatch.setattr("pyro_hrssm.run.training.paint", lambda *_: {})


def table() -> list[dict[str, str]]:
    with open("segments.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_whole_recordings_are_scored_as_segment_scores_them(mine: Run, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--json", "--particles", "1", "--methods", "none", "--device", "cpu"]
    main(["segment", "run", "--device", "cpu"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("boundaries: "))
    main(["evaluate", "run", *flags, "--whole"])
    whole = json.loads(capsys.readouterr().out)
    main(["evaluate", "run", *flags])
    cut = json.loads(capsys.readouterr().out)
    assert f"F1 {whole['boundaries']['f1']:.3f}" in line
    assert (whole["sequences"], whole["source"]) == (1, "Recordings with held-out frames of mine.npz")
    assert whole["nats_per_sequence"] > 5 * cut["nats_per_sequence"]  # 1,098 frames, and a window of them


def test_the_first_line_says_how_a_recording_is_cut(mine: Run) -> None:
    assert mine.said[0].startswith(
        "run: 16 sequences to train on, 1 held out, on cpu; one recording of 1100 frames cut into windows of 110 "
        "frames, overlapping by 55 (--window-length, --window-overlap); frames 110 to 219 held out; 110 frames of 3"
    )
    record = json.loads(Path("run/config.json").read_text())
    assert record["data"]["window_length"] == WINDOW
    assert record["model"]["window"] == WINDOW - CONTEXT


@pytest.mark.parametrize("flags", [[], ["--data", "mine.npz"]])
def test_segments_of_a_recording_are_those_of_one_pass(
    mine: Run, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although the networks read it in pieces: no boundary appears or is lost at a seam."""
    monkeypatch.setattr("pyro_hrssm.inference.prediction.frames_at_once", lambda *_: 64)
    main(["segment", "run", *flags])
    printed = capsys.readouterr()
    model = HRSSM.load("run")
    assert model.scaling is not None
    observed = ~np.isnan(mine.frames[..., 0])
    scaled = model.scaling.apply(np.nan_to_num(mine.frames))
    found = model.decode_boundaries(torch.from_numpy(scaled), torch.from_numpy(observed), frames_at_once=FRAMES)
    ends = (CONTEXT + found.boundaries[0].nonzero().squeeze(1)).tolist()
    assert len(ends) > 1
    rows = table()
    assert [int(row["end"]) for row in rows] == [*ends, FRAMES - 1]
    assert [int(row["start"]) for row in rows] == [CONTEXT, *(end + 1 for end in ends)]
    assert {(row["sequence"], row["row"]) for row in rows} == {("0", "0")}
    chances = found.probabilities[0][found.boundaries[0]].tolist()
    assert [float(row["probability"]) for row in rows[:-1]] == pytest.approx(chances, abs=2e-6)  # six digits
    hits = mine.truth[0, ends].sum()
    f1 = 2 * hits / (len(ends) + mine.truth[0, CONTEXT:-1].sum())
    lines = printed.out.splitlines()
    assert lines[0].endswith("of mine.npz: 1, 1 of them trained on in part")
    assert lines[1].startswith(f"boundaries: F1 {f1:.3f}")
    assert "windows" not in printed.out + printed.err


def test_windows_are_scored_and_predicted(mine: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def scored(*flags: str) -> dict[str, Any]:
        capsys.readouterr()
        main(["evaluate", "run", "--particles", "1", "--json", *flags])
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    own = scored()
    assert (own["source"], own["sequences"], own["trained_on"]) == ("Held-out windows of 110 frames of mine.npz", 1, 0)
    every = scored("--data", "mine.npz")
    assert (every["source"], every["sequences"]) == ("Windows of 110 frames of mine.npz", 10)
    assert every["trained_on"] == 9  # all but the held-out one
    np.save("other.npy", mine.frames[:, :400] + 1)
    assert (scored("--data", "other.npy")["sequences"], scored("--data", "other.npy")["trained_on"]) == (3, None)
    main(["predict", "run", "--data", "mine.npz", "--num-sequences", "4", "--num-samples", "1", "--out", "p.npz"])
    with np.load("p.npz") as arrays:
        assert arrays["starts"].tolist() == [0, 110, 220, 330]
        assert arrays["rows"].tolist() == [0] * 4
        np.testing.assert_allclose(arrays["original"][1], mine.frames[0, 110:220], rtol=1e-5)  # float32


def test_a_run_goes_on_with_the_same_windows(mine: Run, capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--resume", "run", "--steps", "3"])
    printed = capsys.readouterr()
    assert "began with other sequences" not in printed.err
    assert "16 sequences to train on, 1 held out" in printed.out


def test_a_number_of_segments_that_a_recording_outlasts_is_told(
    mine: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_run(Path("run"), "mine.npz", torch.device("cpu"))
    for most, said in ((None, False), (5, True)):
        monkeypatch.setattr(opened.model, "config", replace(opened.model.config, max_segments=most))
        write_segments(opened.whole(), Path("segments.csv"))
        told = "; max_segments 5 limits the segments of their first 108 frames alone"
        assert capsys.readouterr().out.splitlines()[0].endswith(told) == said
    write_segments(opened, Path("segments.csv"))  # windows that are no longer than this
    assert "max_segments" not in capsys.readouterr().out


def test_recordings_of_several_lengths_are_segmented_to_their_ends(mine: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, lengths = Path("folder"), [1500, 30, 700]
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    for row, length in enumerate(lengths):
        np.save(folder / f"{row}.npy", 7 + rng.standard_normal((1, length, 3)).astype(np.float32))
    together = []
    for entries in (batches.ENTRIES_AT_ONCE, 1):  # all at once, and each by itself
        monkeypatch.setattr(batches, "ENTRIES_AT_ONCE", entries)
        main(["segment", "run", "--data", "folder"])
        together.append(table())
    assert together[0] == together[1]
    ends = {int(row["row"]): int(row["end"]) for row in together[0]}
    assert ends == {row: length - 1 for row, length in enumerate(lengths)}


@pytest.mark.parametrize("kind", ["nan", "weights"])
def test_a_recording_that_lacks_entries(mine: Run, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is cut, trained on, scored, segmented in types of frames and reported like any other."""
    rng = np.random.default_rng(1)
    frames, weights = mine.frames.copy(), rng.integers(0, 3, mine.frames.shape).astype(np.float32)
    if kind == "nan":
        frames[weights == 0] = np.nan
    beside = {"weights": weights} if kind == "weights" else {}
    data.save_npz("holes.npz", frames, boundaries=mine.truth, **beside)  # type: ignore[arg-type]
    main(["train", *TINY, "--data", "holes.npz", "--out", f"holes_{kind}"])
    assert "entries missing from the others" in capsys.readouterr().out
    assert json.loads(Path(f"holes_{kind}/config.json").read_text())["model"]["entry_flags"]
    main(["evaluate", f"holes_{kind}", "--particles", "1", "--data", "holes.npz"])
    main(["segment", f"holes_{kind}", "--types", "2", "--types-of", "frames"])
    assert len({row["type"] for row in table()}) == 2
    main(["report", f"holes_{kind}", "--out", "holes.html"])
    main(["predict", f"holes_{kind}", "--num-samples", "9", "--quantiles", "0.1", "0.9", "--out", "holes_p.npz"])
    with np.load("holes_p.npz") as arrays:
        start, end = arrays["starts"][0], arrays["starts"][0] + WINDOW
        observed = (weights[0, start:end] > 0) & ~np.isnan(mine.frames[0, start:end])
        np.testing.assert_array_equal(arrays["mask"][0], observed)
        expected = np.where(observed, mine.frames[0, start:end], 0)
        np.testing.assert_allclose(arrays["original"][0], expected, rtol=1e-5)  # float32
        assert ("weights" in arrays) == (kind == "weights")
    opened = open_run(Path(f"holes_{kind}"), None, torch.device("cpu")).whole()
    first = Segments(*(np.array([value]) for value in (0, 5, 40)), np.zeros(1), np.zeros((1, 2)), np.ones((1, 2)))
    seen = weights[0, 5:41] > 0
    expected = np.where(seen, mine.frames[0, 5:41], np.nan)
    np.testing.assert_allclose(segmenting._frames(opened, first, 0), expected, rtol=1e-5)  # float32


def test_old_runs_cut_nothing() -> None:
    record = to_dict(DataConfig())
    del record["window_length"], record["window_overlap"]
    assert from_dict(DataConfig, record).window_length is None


def test_data_sets_are_not_cut() -> None:
    with pytest.raises(InputError, match="window_length is for your own arrays, found it with the data set levels"):
        data.load(DataConfig("levels", window_length=20))
