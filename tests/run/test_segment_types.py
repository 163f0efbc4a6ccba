"""Types of segments from the command line: fitted once, kept in the run, the same for new sequences."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_hrssm import HRSSM, HRSSMConfig, data
from pyro_hrssm.cli import main
from pyro_hrssm.config import DataConfig
from pyro_hrssm.data.batches import Batch, in_order
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference import types
from pyro_hrssm.inference.segments import Segments
from pyro_hrssm.inference.types import SegmentTypes
from pyro_hrssm.run import segment_types, segmenting
from pyro_hrssm.run.segment_types import Wanted
from pyro_hrssm.run.use import open_run

SIZES = ["--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--batch-size", "8", "--particles", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the archives `own.npz` and `new.npz`, and a run of a few steps on the first; nobody changes it."""
    folder = tmp_path_factory.mktemp("types")
    for name, seed in (("own", 0), ("new", 1)):
        made = data.generate("colours", 30, seed, num_frames=8, noise=0.0)
        lengths = np.full(30, 8)
        lengths[3] = 5
        data.save_npz(folder / f"{name}.npz", **made, lengths=lengths)
        data.save_npz(folder / f"{name}_named.npz", **made, lengths=lengths, names=[f"{name}, {i}" for i in range(30)])
    main(["train", "--data", str(folder / "own.npz"), *SIZES, "--steps", "3", "--out", str(folder / "run")])
    shutil.copytree(folder / "run", folder / "typed")
    main(["segment", str(folder / "typed"), "--types", "2", "--out", str(folder / "typed.csv")])
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_types_are_given_to_new_sequences(trained: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, again, new = (run.parent / f"{name}.csv" for name in ("own", "again", "new"))
    main(["segment", str(run), "--types", "2", "--out", str(out)])
    assert "2 types of segments, fitted on training sequences" in capsys.readouterr().out
    kept = (run / "types.npz").read_bytes()
    main(["segment", str(run), "--out", str(again)])
    assert again.read_text() == out.read_text()
    main(["segment", str(run), "--types", "2", "--data", str(trained / "new.npz"), "--out", str(new)])
    assert "the run's 2 types" in capsys.readouterr().out
    assert (run / "types.npz").read_bytes() == kept
    rows = table(new)
    assert rows[0] == ["sequence", "row", "start", "end", "probability", "type", "type_probability"]
    assert {row[5] for row in rows[1:]} <= {"0", "1"}
    assert all(0.5 <= float(row[6]) <= 1 for row in rows[1:])
    for path in (out, new):
        for picture in ("types", "examples"):
            assert path.with_name(f"{path.stem}_{picture}.png").stat().st_size > 1000
    opened = open_run(run, str(trained / "new.npz"), torch.device("cpu"))
    frames = segmenting.types_per_frame(opened)
    assert frames is not None
    assert frames.shape == (30, 8)
    for number, _, start, end, _, kind, _ in rows[1:]:
        assert (frames[int(number), int(start) : int(end) + 1] == int(kind)).all()
    assert frames[3, 5:].tolist() == [-1] * 3
    assert (frames[[0, 1, 2]] >= 0).all()


def test_types_come_from_training_sequences_alone(trained: Path, run: Path) -> None:
    """The same types whatever sequences are segmented when they are fitted, and another number is fitted anew."""
    main(["segment", str(run), "--types", "3", "--data", str(trained / "new.npz"), "--out", str(run.parent / "a.csv")])
    first = (run / "types.npz").read_bytes()
    (run / "types.npz").unlink()
    main(["segment", str(run), "--types", "3", "--out", str(run.parent / "b.csv")])
    assert (run / "types.npz").read_bytes() == first
    main(["segment", str(run), "--types", "auto", "--out", str(run.parent / "b.csv")])
    opened = open_run(run, None, torch.device("cpu"))
    assert opened.types is not None
    assert opened.types.wanted == ("auto", "states")
    assert isinstance(opened.types.types, SegmentTypes)
    assert len(opened.types.types.bic) == 20
    assert opened.types.types.number == np.argmin(opened.types.types.bic) + 1


def test_rows_and_names_are_those_of_the_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out sequences of the run's own data, and all sequences of a file with names, one of them with a comma."""
    opened = open_run(trained / "typed", None, torch.device("cpu"))
    for number, row in [line[:2] for line in table(trained / "typed.csv")[1:]]:
        assert int(row) == opened.source.sequences.rows[int(number)]
    main(
        ["segment", str(trained / "typed"), "--data", str(trained / "new_named.npz"), "--out", str(tmp_path / "a.csv")]
    )
    assert "Sequences of" in capsys.readouterr().out.splitlines()[0]
    head, *lines = table(tmp_path / "a.csv")
    assert head == ["sequence", "row", "name", "start", "end", "probability", "type", "type_probability"]
    assert [line[1:3] for line in lines] == [[line[0], f"new, {line[0]}"] for line in lines]
    assert {line[0] for line in lines} == set(map(str, range(30)))


def test_types_are_not_fitted_on_other_data_than_the_run_s_own(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training sequences of a data set that is named are not the run's; nor are the run's own once they changed."""
    shutil.copy(trained / "own.npz", tmp_path / "own.npz")
    main(["train", "--data", str(tmp_path / "own.npz"), *SIZES, "--steps", "1", "--out", str(tmp_path / "run")])
    kept = []
    for more in ([], ["--data", "colours"], ["--data", str(trained / "new.npz")]):
        main(["segment", str(tmp_path / "run"), "--types", "2", *more, "--out", str(tmp_path / "a.csv")])
        kept.append((tmp_path / "run" / "types.npz").read_bytes())
        (tmp_path / "run" / "types.npz").unlink()
    assert kept[1:] == kept[:1] * 2
    shutil.copy(trained / "new.npz", tmp_path / "own.npz")
    with pytest.raises(SystemExit) as stop:
        main([
            "segment", str(tmp_path / "run"), "--types", "2", "--data", str(trained / "new.npz"),
            "--out", str(tmp_path / "a.csv"),
        ])  # fmt: skip
    assert stop.value.code == 2
    assert "types are fitted on the run's own training sequences: " in capsys.readouterr().err
    assert not (tmp_path / "run" / "types.npz").exists()


def test_types_of_frames(trained: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are kept, given to new sequences and shown as those of states are."""
    out, new = run.parent / "a.csv", run.parent / "new.csv"
    main(["segment", str(run), "--types", "3", "--types-of", "frames", "--out", str(out)])
    main(["segment", str(run), "--data", str(trained / "own.npz"), "--out", str(new)])
    assert {row[5] for row in table(new)[1:]} <= {"0", "1", "2"}
    capsys.readouterr()
    main(["segment", str(run), "--types", "3", "--out", str(out)])  # those of states are others
    assert "fitted on training sequences" in capsys.readouterr().out
    assert open_run(run, None, torch.device("cpu")).types.wanted == (3, "states")  # type: ignore[union-attr]


def test_types_that_run_into_each_other_are_told(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenting, "DISTINCT", 1.1)
    main(["segment", str(run), "--types", "2", "--out", str(run.parent / "a.csv")])
    assert "types run into each other: a segment's type has a mean probability of" in capsys.readouterr().out


def test_without_types_nothing_changes(run: Path) -> None:
    main(["segment", str(run), "--out", str(run.parent / "plain.csv")])
    assert table(run.parent / "plain.csv")[0] == ["sequence", "row", "start", "end", "probability"]
    assert [path.name for path in run.parent.iterdir() if path.suffix == ".png"] == []
    assert segmenting.types_per_frame(open_run(run, None, torch.device("cpu"))) is None


@pytest.mark.usefixtures("no_figures")
def test_types_of_other_weights_are_not_used(trained: Path, run: Path) -> None:
    shutil.copy(trained / "typed" / "types.npz", run)
    main(["train", "--resume", str(run), "--steps", "5"])
    with pytest.warns(UserWarning, match=r"passed over: .*types.npz belongs to other weights; --types fits new ones"):
        main(["segment", str(run), "--out", str(run.parent / "b.csv")])
    assert len(table(run.parent / "b.csv")[0]) == 5
    with pytest.warns(UserWarning, match="passed over"):
        main(["segment", str(run), "--types", "2", "--out", str(run.parent / "b.csv")])
    main(["segment", str(run), "--out", str(run.parent / "b.csv")])
    assert len(table(run.parent / "b.csv")[0]) == 7


def test_types_of_a_checkpoint_file_lie_beside_it(run: Path) -> None:
    (file,) = (run / "checkpoints").glob("*.safetensors")
    main(["segment", str(file), "--types", "2", "--out", str(run.parent / "a.csv")])
    assert file.with_suffix(".types.npz").is_file()
    assert not (run / "types.npz").exists()


def test_the_report_shows_types(trained: Path, tmp_path: Path) -> None:
    main(["report", str(trained / "run"), "--num-sequences", "2", "--out", str(tmp_path / "bare.html")])
    assert "Segment types" not in (tmp_path / "bare.html").read_text()
    main(["report", str(trained / "typed"), "--num-sequences", "2", "--out", str(tmp_path / "typed.html")])
    page = (tmp_path / "typed.html").read_text()
    rows = table(trained / "typed.csv")[1:]
    count = sum(row[5] == "0" for row in rows)
    assert f'<tr><th scope="row">0</th><td class="number">{count}</td>' in page
    assert page.count('<img class="figure" src="data:image/png;base64,') == 2
    assert "Held-out sequences of" in page
    assert "none of them trained on" in page


@pytest.mark.parametrize(
    "flags",
    [
        ["--types", "0"], ["--types", "-3"], ["--types", "many"], ["--types", "1.5"], ["--types", "1000000"],
        ["--types-of", "frames"], ["--types-of", "frames", "--types", "auto"],
        ["--types-of", "frames", "--types", "1000000"],
    ],
)  # fmt: skip
def test_wrong_numbers_are_one_line(flags: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["segment", str(run), *flags, "--out", str(run.parent / "a.csv")])
    assert stop.value.code == 2
    assert "types" in capsys.readouterr().err
    assert not (run / "types.npz").exists()


def states_in_frames(model: HRSSM, windows: Iterable[Batch]) -> Segments:
    """Segments that end where the frames change, whose states are these frames, which q knows to 0.3."""
    rows = []
    for batch in windows:
        lasts = [batch.frames.shape[1]] * len(batch.frames) if batch.mask is None else batch.mask.sum(1).tolist()
        for frames, last in zip(batch.frames.numpy(), lasts, strict=True):
            starts = np.flatnonzero(np.append(True, (np.diff(frames[:last], axis=0) != 0).any(1)))
            rows += [(frames[start], start, stop) for start, stop in pairwise([*starts, last])]
    states = np.array([row[0] for row in rows], np.float64)
    numbers = np.array([row[1:] for row in rows])
    nothing = np.arange(len(rows))
    return Segments(
        nothing, numbers[:, 0], numbers[:, 1] - 1, np.full(len(rows), np.nan), states, np.full_like(states, 0.3)
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_windows_that_overlap_ask_for_no_further_types(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every segment counts once, and those at a window's edge are not cut."""
    random = np.random.default_rng(seed)
    centres = 4 * random.standard_normal((3, 4))
    kinds = random.integers(3, size=(4, 150))
    states = centres[kinds] + 0.6 * random.standard_t(4, (4, 150, 4))
    np.save(tmp_path / "own.npy", states.repeat(10, axis=1))
    monkeypatch.setattr(segment_types, "find_segments", states_in_frames)
    model = HRSSM(HRSSMConfig(frame_shape=(4,), hidden=8))
    found = []
    for overlap in (0.0, 0.5, 0.75):
        named = {"window_length": 75, "window_overlap": overlap, "scaling": "none", "held_out": 0.2}
        train = data.load(DataConfig(str(tmp_path / "own.npy"), **named)).train
        found.append(segment_types.fit(model, train, Wanted("auto", "states")).types)
    once = types.fit(states_in_frames(model, in_order(train.stretches(), torch.device("cpu"))))
    assert [each.number for each in found] == [once.number] * 3
    for each in found:
        np.testing.assert_array_equal(each.bic, once.bic)


def spoiled(content: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    number = len(content["weights"])
    changed = {
        "nan": {"means": np.full_like(content["means"], np.nan)},
        "another size": {"means": content["means"][:, :-1]},
        "no type": {name: content[name][:0] for name in ("weights", "means", "covariances")},
        "not positive": {"covariances": -content["covariances"]},
        "beyond z": {"entries": content["entries"] + 99},
        "objects": {"number": np.array([{}] * number, object)},
        "number": {"number": np.array("0")},
        "source": {"source": np.array("frames")},
        "further": {"more": np.zeros(1)},
    }
    return content | changed[case]


@pytest.mark.parametrize(
    "case",
    ["nan", "another size", "no type", "not positive", "beyond z", "objects", "number", "source", "further", "cut"],
)
def test_a_damaged_file_is_one_line(case: str, trained: Path, run: Path) -> None:
    path = segment_types.path_of(run)
    shutil.copy(trained / "typed" / "types.npz", path)
    if case == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        with np.load(path) as archive:
            content = {name: archive[name] for name in archive.files}
        np.savez(path, allow_pickle=True, **spoiled(content, case))
    with pytest.raises(InputError, match=r"types\.npz.*remove the file"):
        open_run(run, None, torch.device("cpu"))
