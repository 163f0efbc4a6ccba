"""`--data` has one meaning however a path is spelt, and every command says what it scored and what was trained on."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_hrssm import checkpoint, data
from pyro_hrssm.cli import main
from pyro_hrssm.config import DataConfig
from pyro_hrssm.data.sequences import Sequences
from pyro_hrssm.data.shards import Shards
from pyro_hrssm.data.splitting import split_indices
from pyro_hrssm.run.sources import choose

NUM, FRAMES, CONTEXT = 30, 6, 2
TINY = [
    *("--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--batch-size", "8", "--particles", "1"),
    *("--steps", "1", "--evaluate-every", "0", "--context", str(CONTEXT), "--device", "cpu"),
]
NAMES = np.array([f"recording, {number}" for number in range(NUM)])
LENGTHS = np.array([CONTEXT, 1, *[FRAMES - number % 3 for number in range(NUM - 2)]])
SCORED = NUM - 2  # two end within the context
"""The first two sequences end within the context."""
TRAINED, HELD_OUT = split_indices(NUM, DataConfig())


class Run:
    """A run on its own archive, `mine.npz`, named by a relative path as a user would."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.file = folder, folder / "run", folder / "mine.npz"
        rng = np.random.default_rng(0)
        self.frames = 5 + rng.random((NUM, FRAMES, 3))
        self.content: dict[str, Any] = {"lengths": LENGTHS, "boundaries": rng.random((NUM, FRAMES)) < 0.3}
        self.content |= {"names": NAMES}
        data.save_npz(self.file, self.frames, **self.content)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run(tmp_path_factory.mktemp("sources"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        patch.setattr("pyro_hrssm.run.training.paint", lambda *_: {})
        main(["train", *TINY, "--data", "mine.npz", "--out", "run"])
    return made


@pytest.fixture(autouse=True)
def _there(mine: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.folder)
    monkeypatch.setattr("pyro_hrssm.run.training.paint", lambda *_: {})


@pytest.fixture
def changed(mine: Run) -> Any:
    """The run's file with other sequences, until the test ends."""
    before = mine.file.read_bytes()
    data.save_npz(mine.file, mine.frames + 1, **mine.content)
    yield mine
    mine.file.write_bytes(before)


def spellings(mine: Run) -> list[str]:
    link, copied = mine.folder / "link.npz", mine.folder / "copy.npz"
    if not link.exists():
        link.symlink_to("mine.npz")
        copied.write_bytes(mine.file.read_bytes())
    return ["mine.npz", "./mine.npz", "run/../mine.npz", str(mine.file), "link.npz", "copy.npz"]


def scored(capsys: pytest.CaptureFixture[str], *flags: str, run: str = "run") -> dict[str, Any]:
    capsys.readouterr()
    main(["evaluate", run, "--particles", "1", "--json", *flags])
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert printed.count("\n") == 1
    return printed


def test_a_file_is_all_of_its_rows_however_it_is_spelt(mine: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = [scored(capsys, "--data", name) for name in spellings(mine)]
    for scores, name in zip(found, spellings(mine), strict=True):
        assert (scores["sequences"], scores["trained_on"]) == (SCORED, len(TRAINED))
        assert scores.pop("source") == f"Sequences of {name}"
    assert all(scores == found[0] for scores in found)


def test_without_a_file_the_held_out_sequences_are_scored(capsys: pytest.CaptureFixture[str]) -> None:
    scores = scored(capsys)
    assert (scores["sequences"], scores["trained_on"]) == (len(HELD_OUT), 0)
    assert scores["source"] == "Held-out sequences of mine.npz"
    assert scores["boundaries"]["tuned_on"] == "training"


def test_other_sequences_are_not_said_to_be_new(mine: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that has grown holds sequences that were trained on, though its digest is another one."""
    content = {name: np.concatenate([values, values[:3]]) for name, values in mine.content.items()}
    data.save_npz("grown.npz", np.concatenate([mine.frames, mine.frames[:3]]), **content)
    scores = scored(capsys, "--data", "grown.npz")
    assert (scores["sequences"], scores["trained_on"]) == (SCORED + 1, None)
    np.save("one.npy", mine.frames[:1])
    scores = scored(capsys, "--data", "one.npy")
    assert (scores["sequences"], scores["trained_on"]) == (1, None)


def test_every_command_says_what_it_scored(capsys: pytest.CaptureFixture[str]) -> None:
    within, trained = "2 of them end within the context of 2 frames", int(np.isin(range(5), TRAINED).sum())
    for flags, said in (
        (["evaluate", "--particles", "1"], f"Held-out sequences of mine.npz: {len(HELD_OUT)}, none of them trained on"),
        (
            ["evaluate", "--particles", "1", "--data", "./mine.npz"],
            f"Sequences of ./mine.npz: {NUM}, {len(TRAINED)} of them trained on; {within}",
        ),
        (["segment"], f"Held-out sequences of mine.npz: {len(HELD_OUT)}, none of them trained on"),
        (
            ["segment", "--data", "mine.npz"],
            f"Sequences of mine.npz: {NUM}, {len(TRAINED)} of them trained on; {within}",
        ),
        (
            ["predict", "--mode", "reconstruct", "--data", "mine.npz", "--num-sequences", "5"],
            f"Sequences of mine.npz: 5 of {NUM}, {trained} of them trained on; {within}",
        ),
    ):
        capsys.readouterr()
        main([flags[0], "run", *flags[1:]])
        printed = capsys.readouterr().out.splitlines()
        assert printed[0] == said
        assert not any("held-out sequences  " in line for line in printed)
    main(["report", "run", "--data", "mine.npz", "--num-sequences", "5", "--out", "report.html"])
    assert f"Sequences of mine.npz: 5 of {NUM}, {trained} of them trained on" in Path("report.html").read_text()


def test_as_many_sequences_are_used_as_asked_for_whatever_a_batch_holds(
    mine: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyro_hrssm.data.batches.SEQUENCES_AT_ONCE", 4)
    few = ["--data", "mine.npz", "--num-sequences", "9"]
    main(["predict", "run", *few, "--num-samples", "1", "--out", "p.npz"])
    with np.load("p.npz") as arrays:
        assert arrays["frames"].shape[1] == len(arrays["rows"]) == 9
    main(["report", "run", *few, "--out", "report.html"])
    assert Path("report.html").read_text().count("<b>Sequence ") == 9
    capsys.readouterr()
    main(["predict", "run", "--num-sequences", "650", "--num-samples", "1", "--out", "p.npz"])
    total = len(HELD_OUT)
    assert f": {total}, which is all, and fewer than --num-sequences 650, none of" in capsys.readouterr().out
    with np.load("p.npz") as arrays:
        assert arrays["frames"].shape[1] == total


def test_training_says_what_it_cannot_model(mine: Run, capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", *TINY, "--data", "mine.npz", "--out", "again"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pyro-hrssm: 2 of 30 sequences")]
    assert said == ["pyro-hrssm: 2 of 30 sequences end within the context of 2 frames: they say nothing"]


def test_segments_name_the_row_in_the_file(mine: Run) -> None:
    for flags, rows in (([], HELD_OUT), (["--data", "mine.npz"], np.arange(NUM))):
        main(["segment", "run", *flags, "--out", "segments.csv"])
        found = table("segments.csv")
        assert list(found[0]) == ["sequence", "row", "name", "start", "end", "probability"]
        for row in found:
            assert int(row["row"]) == rows[int(row["sequence"])]
            assert row["name"] == NAMES[int(row["row"])]
            assert CONTEXT <= int(row["start"]) <= int(row["end"])
        # A sequence that ends within the context has no segment; every other one is covered to its end.
        ends = {int(row["row"]): int(row["end"]) for row in found}
        assert ends == {row: LENGTHS[row] - 1 for row in rows.tolist() if LENGTHS[row] > CONTEXT}


def test_a_file_of_sequences_that_all_end_within_the_context_has_no_segments(mine: Run) -> None:
    data.save_npz("short.npz", mine.frames[:2], lengths=[1, 2])
    main(["segment", "run", "--data", "short.npz", "--out", "segments.csv"])
    assert Path("segments.csv").read_text() == "sequence,row,start,end,probability\n"


def test_a_context_as_long_as_the_sequences_is_refused(mine: Run, capsys: pytest.CaptureFixture[str]) -> None:
    data.save_npz("cut.npz", mine.frames[:, :CONTEXT])
    for command in ("segment", "evaluate", "predict", "report"):
        said = refused(capsys, command, "run", "--data", "cut.npz")
        assert "the run's context of 2 frames leaves none of 2 to model: Sequences of cut.npz" in said


def test_predictions_hold_rows_names_and_mask_and_zeros_where_nothing_is(mine: Run) -> None:
    frames = mine.frames.copy()
    frames[5, 4] = np.nan
    data.save_npz("holes.npz", frames, lengths=LENGTHS, names=NAMES.astype("S"))
    main(["predict", "run", "--data", "holes.npz", "--mode", "reconstruct", "--num-sequences", "7", "--out", "p.npz"])
    with np.load("p.npz") as arrays:
        assert arrays["rows"].tolist() == list(range(7))
        assert arrays["names"].tolist() == NAMES[:7].tolist()
        seen = np.arange(FRAMES) < LENGTHS[:7, None]
        seen[5, 4] = False
        assert np.array_equal(arrays["mask"], seen)
        np.testing.assert_allclose(arrays["original"][seen], frames[:7][seen], rtol=1e-6)  # float32
        assert (arrays["original"][~seen] == 0).all()
        past = np.arange(FRAMES - CONTEXT) >= arrays["lengths"][:, None]
        assert past.any()
        assert (past.sum(1) == np.minimum(FRAMES - LENGTHS[:7], FRAMES - CONTEXT)).all()
        for name in ("frames", "boundaries", "prior", "posterior", "abstract", "observation"):
            assert (arrays[name][:, past] == 0).all(), name
        # The data's mean is near 5.5: a reconstruction is a frame, also where the original is missing.
        assert (arrays["frames"][:, ~past] > 1).all()
    main(["predict", "run", "--num-sequences", "2", "--out", "p.npz"])
    with np.load("p.npz") as arrays:
        assert arrays["rows"].tolist() == HELD_OUT[:2].tolist()
        assert arrays["names"].tolist() == NAMES[HELD_OUT[:2]].tolist()


@pytest.mark.parametrize(
    ("mode", "flags"), [("forecast", ["--context", "4"]), ("jump", ["--context", "4"]), ("infill", []), ("sample", [])]
)
def test_every_prediction_is_zero_past_its_end(mine: Run, mode: str, flags: list[str]) -> None:
    lengths = np.maximum(LENGTHS, CONTEXT + 1)
    data.save_npz("ends.npz", mine.frames, lengths=lengths)
    main(["predict", "run", "--data", "ends.npz", "--mode", mode, *flags, "--num-sequences", "9", "--out", "p.npz"])
    with np.load("p.npz") as arrays:
        total = arrays["frames"].shape[2]
        past = np.arange(total) >= arrays["lengths"][:, None]
        assert (arrays["frames"][:, past] == 0).all()
        assert (arrays["frames"][:, ~past] > 1).all()
        assert past.any() == (mode != "sample")


def test_a_changed_file_is_refused_wherever_the_run_reads_it_again(
    changed: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("evaluate", "predict", "segment", "report"):
        assert refused(capsys, command, "run") == (
            "pyro-hrssm: mine.npz no longer holds the sequences on which run was trained and scored; --data mine.npz "
            "takes all of its sequences as they are now\n"
        )
    scores = scored(capsys, "--data", "mine.npz")
    assert (scores["sequences"], scores["trained_on"]) == (SCORED, None)


def test_a_changed_data_set_is_refused_but_by_its_name(monkeypatch: pytest.MonkeyPatch, mine: Run) -> None:
    record = dict(checkpoint.load(mine.run).record)
    monkeypatch.setitem(data.DATA_SETS, "levels", lambda config, scaling, _: data.load(DataConfig("mine.npz"), scaling))
    record["data"] = record["data"] | {"data": "levels"}
    own = choose(mine.run, record, None)
    assert own.told() == f"Held-out sequences of levels: {len(HELD_OUT)}, none of them trained on"
    assert choose(mine.run, record, "levels").trained_on() == 0
    record["data_sha256"] = record["data_sha256"] | {"train": "0" * 64}
    with pytest.raises(ValueError, match=r"^levels no longer holds .* --data levels takes its held-out sequences as"):
        choose(mine.run, record, None)
    assert choose(mine.run, record, "levels").trained_on() is None


def test_a_record_without_digests_is_read_as_it_was(mine: Run) -> None:
    record = {name: value for name, value in checkpoint.load(mine.run).record.items() if name != "data_sha256"}
    assert choose(mine.run, record, None).trained_on() is None
    assert choose(mine.run, record, "mine.npz").trained_on() is None


def test_a_digest_is_computed_once_in_a_process(mine: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    digest = Sequences._digest
    monkeypatch.setattr(Sequences, "_digest", lambda self: computed.append(len(self)) or digest(self))
    main(["train", *TINY, "--data", "mine.npz", "--out", "twice"])
    assert sorted(computed) == [len(HELD_OUT), len(TRAINED)]


def test_a_labelled_test_set_beside_unlabelled_training_data_is_scored(
    mine: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boundaries = mine.content["boundaries"][20:]
    np.savez(tmp_path / "my.npz", train=mine.frames[:20], test=mine.frames[20:], test_boundaries=boundaries)
    main(["train", *TINY, "--data", str(tmp_path / "my.npz"), "--out", str(tmp_path / "my")])
    assert "; to train on: no segments known; held out: true boundaries known; " in capsys.readouterr().out
    for scores in (json.loads((tmp_path / "my/evaluation.json").read_text()), scored(capsys, run=str(tmp_path / "my"))):
        assert scores["boundaries"]["tuned_on"] == "evaluation"
        assert scores["boundaries"]["baselines"]["always"]["recall"] == 1
    main(["segment", str(tmp_path / "my")])
    assert "\nboundaries: F1 " in capsys.readouterr().out


def test_a_frame_of_unknown_type_switches_no_score_off(
    mine: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (NUM, FRAMES))
    labels[HELD_OUT[0], 3] = labels[TRAINED[:5], 3] = -1
    data.save_npz(tmp_path / "my.npz", mine.frames, labels=labels)
    main(["train", *TINY, "--data", str(tmp_path / "my.npz"), "--out", str(tmp_path / "my")])
    said = capsys.readouterr().out
    assert "to train on: true boundaries known of 22 of 27 sequences, true types known of 157 of 162 frames; " in said
    assert "held out: true boundaries known of 2 of 3 sequences, true types known of 17 of 18 frames; " in said
    assert "boundaries scored on the sequences whose true ones are all known: 2" in said
    scores = json.loads((tmp_path / "my/evaluation.json").read_text())["boundaries"]
    assert (scores["tuned_on"], scores["bounded_sequences"]) == ("training", 2)
    main(["segment", str(tmp_path / "my"), "--data", str(tmp_path / "my.npz")])
    assert "\nboundaries of 24 of 30 sequences: F1 " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["own", "file", "other"])
def test_a_file_is_read_once_beside_the_digests(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over all frames for each of the questions about a file took seven for a run on windows."""
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    np.save("long.npy", rng.normal(size=(4, 300, 2)))
    np.save("other.npy", rng.normal(size=(4, 300, 2)))
    main(["train", *TINY, "--window-length", "20", "--data", "long.npy", "--out", "run"])
    frames: list[int] = []
    chunks = Shards.chunks

    def counted(self: Shards, indices: Any) -> Any:
        frames.append(len(indices) * self.shape[1])
        return chunks(self, indices)

    monkeypatch.setattr(Shards, "chunks", counted)
    name = {"own": None, "file": "long.npy", "other": "other.npy"}[kind]
    source = choose(Path("run"), checkpoint.load(Path("run")).record, name)
    assert (source.trained is None) == (kind == "other")
    assert frames[0] == 1200, "all frames are checked"
    # Windows to train on overlap by half; of another file, only those held out are read.
    assert sum(frames[1:]) <= (1200 if kind == "other" else 2 * 1200)
    assert len(frames) == (2 if kind == "other" else 3)


def test_a_recording_too_short_to_be_trained_on_in_windows_is_used(tmp_path: Path) -> None:
    """It holds less than two of the run's windows, so that none could be held out."""
    frames = np.random.default_rng(0).normal(size=(1, 300, 2))
    np.save("long.npy", frames)
    flags = ["--window-length", "20", "--data", "long.npy", "--out", str(tmp_path / "cut")]
    main(["train", *TINY, *flags])
    np.save("short.npy", frames[:, :30])
    main(["segment", str(tmp_path / "cut"), "--data", "short.npy", "--out", str(tmp_path / "segments.csv")])
    rows = list(csv.DictReader((tmp_path / "segments.csv").read_text().splitlines()))
    assert int(rows[-1]["end"]) == 29
