"""A trained run in Python: in the data's own units, and the same as the commands on its folder."""

import csv
import dataclasses
import doctest
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_hrssm import InputError, Run, checkpoint, data, fit
from pyro_hrssm.cli import main
from pyro_hrssm.run import fitting, trained
from pyro_hrssm.run.predicting import Predicted
from pyro_hrssm.run.training import Trainer

TINY: dict[str, Any] = {
    "hidden": 8, "abstract_size": 2, "observation_size": 2, "batch_size": 8, "particles": 2, "steps": 2, "log_every": 1,
    "verbose": False, "device": "cpu",
}  # fmt: skip


def waves() -> tuple[np.ndarray, np.ndarray]:
    """Frames [16, 10, 2] around 100 with a deviation of about 7, and true boundaries."""
    arrays = data.generate("colours", 16, 0, num_frames=10)
    frames = arrays["frames"].astype(np.float64)[..., :2]
    return 100 + 7 * frames, arrays["boundaries"]


@pytest.fixture(scope="module")
def run() -> Run:
    return fit(waves()[0], boundaries=waves()[1], **TINY)


def read(file: Path) -> dict[str, list[str]]:
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_a_saved_run_does_as_the_commands_do(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "saved"
    run.save(folder)
    again = Run.load(folder, device="cpu")
    assert again.metrics == run.metrics
    assert again.evaluation == run.evaluation
    assert (again.folder, again.step) == (folder, 2)
    config = json.loads((folder / "config.json").read_text())
    assert (config["command"], config["device"]) == (["pyro_hrssm.fit"], "cpu")
    assert {name: config[name] for name in run.loaded.record} == json.loads(json.dumps(run.loaded.record))
    main(["evaluate", str(folder), "--particles", "3", "--methods", "quick", "--json"])
    printed = json.loads(capsys.readouterr().out)
    for each in (run, again):
        scores = each.scores(particles=3, methods="quick")
        assert scores.boundaries is not None
        assert scores.to_dict() == {name: printed[name] for name in scores.to_dict()}
    main(["segment", str(folder), "--out", str(tmp_path / "told.csv")])
    for each in (run, again):
        table = each.segment(progress=False)
        table.to_csv(tmp_path / "own.csv")
        assert (tmp_path / "own.csv").read_bytes() == (tmp_path / "told.csv").read_bytes()
        assert table.score is not None
    assert f"boundaries: {table.score.text()}" in capsys.readouterr().out
    data.save_npz(tmp_path / "given.npz", waves()[0][:3])
    flags = ["--data", str(tmp_path / "given.npz"), "--num-samples", "9", "--quantiles", "0.1", "0.9"]
    out = ["--out", str(tmp_path / "predicted.npz")]
    main(["predict", str(folder), *flags, *out, "--mode", "forecast", "--context", "10", "--horizon", "4"])
    predicted = again.forecast(waves()[0][:3], 4, num_samples=9, quantiles=(0.9, 0.1), progress=False)
    with np.load(tmp_path / "predicted.npz") as arrays:
        for name in Predicted._fields:
            np.testing.assert_array_equal(arrays[name], getattr(predicted, name), err_msg=name)
    with pytest.raises(InputError, match="already holds a run"):
        run.save(folder)


def test_everything_is_in_the_datas_own_units(run: Run) -> None:
    frames = waves()[0]
    assert run.scaling.invert(np.zeros(2)) == pytest.approx(frames.mean((0, 1)), abs=2)
    assert run.segment(frames, progress=False).boundaries.shape == (16, 10)
    again = run.segment(torch.from_numpy(frames), progress=False)
    np.testing.assert_array_equal(again.boundaries, run.segment(frames, progress=False).boundaries)
    assert run.segment(frames, progress=False).types is None
    ahead = run.forecast(frames, 3, num_samples=4, progress=False)
    assert ahead.future.shape == (4, 16, 3, 2)
    np.testing.assert_array_equal(ahead.future, ahead.frames[:, :, 10:])
    jumps, fresh = run.jump(frames, 3, num_samples=2, progress=False), run.sample(5, 7, progress=False)
    assert jumps.future.shape == (2, 16, 3, 2)
    assert fresh.frames.shape == (1, 5, 7, 2)
    rebuilt = run.reconstruct(frames, num_samples=1, progress=False)
    for values in (ahead.future, jumps.future, fresh.frames, rebuilt.frames):
        assert (np.abs(values - 103) < 30).all(), "far from 0, around which a model's frames lie"
    gaps = frames.copy()
    gaps[:, 4, 0] = np.nan
    filled = run.infill(gaps, num_samples=1, progress=False).frames[0]
    np.testing.assert_allclose(filled[~np.isnan(gaps)], frames[~np.isnan(gaps)], rtol=1e-6)  # float32
    with pytest.raises(InputError, match="infill needs data with missing"):
        run.infill(frames, progress=False)


def test_recordings_of_several_lengths_go_on_at_their_own_ends(run: Run) -> None:
    frames = [waves()[0][number, :length] for number, length in enumerate((10, 4, 7))]
    table = run.segment(frames, progress=False)
    assert table.boundaries.shape == (3, 10)
    last = [int(table["end"][table["sequence"] == number].max()) for number in range(3)]
    assert last == [9, 3, 6]
    assert (table.probabilities[1, 3:] == 0).all()
    assert (table.probabilities[0, :9] > 0).all()
    ends = {(s, e) for s, e, p in zip(table["sequence"], table["end"], table["probability"], strict=True) if p == p}
    assert ends == set(zip(*np.nonzero(table.boundaries), strict=True))
    predicted = run.forecast(frames, 2, num_samples=9, quantiles=(0.5,), progress=False)
    assert predicted.given.tolist() == [10, 4, 7]
    np.testing.assert_array_equal(predicted.future[:, 1], predicted.frames[:, 1, 4:6])
    assert predicted.future_quantiles is not None
    np.testing.assert_allclose(predicted.future_quantiles[0], np.median(predicted.future, 0), rtol=1e-6)
    alone = run.segment([frames[1]], progress=False)
    np.testing.assert_array_equal(alone.boundaries[0], table.boundaries[1, :4])


def test_scores_are_those_of_the_sequences_given(run: Run) -> None:
    frames, boundaries = waves()
    known = run.scores(frames, boundaries=boundaries, particles=2, methods="none", margin=1)
    assert known.boundaries is not None
    assert known.boundaries.margin == 1
    unknown = run.scores(frames, particles=2, methods="none")
    assert unknown.boundaries is None
    assert unknown.nats_per_sequence == known.nats_per_sequence
    assert unknown.sequences == 16
    flat = fit(waves()[0], boundaries=boundaries, model="rssm", **TINY)
    beside = run.scores(particles=2, methods="none", horizons=[2], num_samples=9, flat=flat)
    assert beside.forecasts is not None
    with pytest.raises(InputError, match="flat needs --horizons"):
        run.scores(methods="none", flat=flat)
    with pytest.raises(InputError, match="kind HRSSM is needed, found rssm"):
        flat.segment()
    assert "RSSM" in repr(flat)


def test_types_are_kept_in_memory_and_with_the_folder(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run = pickle.loads(pickle.dumps(run))
    typed = run.segment(types=2, progress=False)
    assert set(typed["type"]) <= {0, 1}
    assert typed.types is not None
    assert typed.types[typed["sequence"], typed["start"]].tolist() == typed["type"].tolist()
    assert (typed.types >= 0).all()
    later = run.segment(waves()[0][:4], progress=False)
    assert set(later["type"]) <= {0, 1}
    run.save(tmp_path / "saved")
    again = Run.load(tmp_path / "saved").segment(waves()[0][:4], progress=False)
    np.testing.assert_array_equal(again["type"], later["type"])
    main(["segment", str(tmp_path / "saved"), "--out", str(tmp_path / "told.csv")])
    assert [int(kind) for kind in read(tmp_path / "told.csv")["type"]] == run.segment(progress=False)["type"].tolist()
    Run.load(tmp_path / "saved").segment(types=3, progress=False)
    kept = Run.load(tmp_path / "saved").types
    assert kept is not None
    assert kept.types.number == 3
    run.report(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    with pytest.raises(InputError, match="types_of frames needs a number of types"):
        run.segment(types_of="frames")


def test_a_pickled_run_has_its_arrays_and_outlives_the_callers(run: Run) -> None:
    copy = pickle.loads(pickle.dumps(run))
    assert copy.scores(particles=2, methods="none") == run.scores(particles=2, methods="none")
    frames = waves()[0]
    own = fit(frames, **TINY)
    before = own.scores(particles=2)
    del frames
    assert own.scores(particles=2) == before


def test_arrays_that_were_written_over_are_refused() -> None:
    frames = waves()[0]
    own = fit(frames, **TINY)
    frames += 1
    with pytest.raises(InputError, match="the arrays are no longer those on which the run was trained"):
        own.scores(particles=2)
    assert len(own.segment(frames, progress=False)) > 0


def test_a_run_without_its_arrays_says_so(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "bare", data=False)
    bare = Run.load(tmp_path / "bare")
    assert bare.segment(waves()[0], progress=False).boundaries.shape == (16, 10)
    with pytest.raises(InputError, match="the run's own arrays are not there"):
        bare.scores()
    run.save(tmp_path / "whole")
    Run.load(tmp_path / "whole").save(tmp_path / "copied")
    copied = Run.load(tmp_path / "copied").scores(particles=2, methods="none")
    assert copied == run.scores(particles=2, methods="none")


def test_runs_of_the_command_line_are_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.save_npz(tmp_path / "own.npz", waves()[0])
    sizes = ["--hidden", "8", "--batch-size", "8", "--particles", "2", "--steps", "2", "--checkpoint-every", "1"]
    main(["train", *sizes, "--data", str(tmp_path / "own.npz"), "--out", str(tmp_path / "run"), "--log-every", "1"])
    run = Run.load(tmp_path / "run")
    assert run.scores(particles=2).sequences == 2
    assert run.evaluation is not None
    early = Run.load(tmp_path / "run/checkpoints/00000001.safetensors")
    assert (early.step, early.evaluation) == (1, None)
    assert [row["step"] for row in early.metrics] == [1]
    assert early.scores(tmp_path / "own.npz", particles=2).sequences == 16
    early.save(tmp_path / "early")
    main(["evaluate", str(tmp_path / "early"), "--particles", "1"])
    with pytest.raises(InputError, match="must lie beside frames in memory"):
        run.scores(tmp_path / "own.npz", mask=np.ones((16, 10)))


def test_a_run_of_an_earlier_version_is_opened(tmp_path: Path) -> None:
    """Its record lacks the settings that came later, and its folder what a run need not have."""
    run = fit(waves()[0], smoothing=False, **TINY)
    data.save_npz(tmp_path / "own.npz", waves()[0])
    record = json.loads(json.dumps(run.loaded.record))
    record["data"] = {"data": str(tmp_path / "own.npz"), "data_root": "data", "held_out": 0.1, "split_seed": 0}
    for name in ("smoothing", "min_length", "entry_flags"):
        del record["model"][name]
    del record["data_sha256"]
    checkpoint.save(tmp_path / "old", run.loaded._replace(record=record), keep=1)
    old = Run.load(tmp_path / "old")
    assert (old.metrics, old.evaluation, old.settings.dataset.window_length) == ([], None, None)
    assert not old.settings.model.smoothing
    assert old.scores(particles=2).sequences == 2
    old.save(tmp_path / "saved")
    assert Run.load(tmp_path / "saved").scores(particles=2) == old.scores(particles=2)
    main(["evaluate", str(tmp_path / "saved"), "--particles", "1"])


def test_the_best_checkpoint_goes_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = iter([5.0, 3.0, 4.0, 6.0])

    def bound(self: Trainer, sequences: Any, *most: int) -> Any:
        found = real(self, sequences, *most)  # at the end also that of training sequences, which is left as it is
        return found if most else dataclasses.replace(found, nats_per_sequence=next(bounds))

    real = Trainer.bound
    monkeypatch.setattr(Trainer, "bound", bound)
    asked = TINY | {"steps": 4, "evaluate_every": 1, "elbo": "trace", "keep_checkpoints": 1}
    run = fit(waves()[0], **asked)
    assert run.best is not None
    assert (run.step, run.best.step, run.best.evaluation) == (4, 2, None)
    assert {row["step"] for row in run.best.metrics} == {1, 2}
    run.save(tmp_path / "saved")
    again = Run.load(tmp_path / "saved")
    for best in (again.best, pickle.loads(pickle.dumps(run)).best):
        assert best is not None
        assert best.scores(particles=2) == run.best.scores(particles=2) != run.scores(particles=2)
    main(["evaluate", str(tmp_path / "saved"), "--best", "--particles", "2", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["nats_per_sequence"] == run.best.scores(particles=2).nats_per_sequence
    bounds = iter([5.0, 3.0, 4.0, 6.0])
    assert fit(waves()[0], **asked, keep_best=False).best is None


def test_segments_have_their_states_where_these_are_asked_for(run: Run) -> None:
    table = run.segment(waves()[0], states=True, progress=False)
    assert table.states is not None
    assert table.states.shape == (len(table), 2)
    assert np.isfinite(table.states).all()
    assert run.segment(waves()[0], progress=False).states is None


def test_figures_are_those_of_training(run: Run) -> None:
    made = run.figures(waves()[0][:3])
    assert {"reconstructions", "samples", "boundaries", "segments", "segment_lengths", "training"} == set(made)


@pytest.mark.parametrize("module", [fitting, trained], ids=lambda module: module.__name__)
def test_examples_run(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(module)
    assert found.attempted > 4
    assert found.failed == 0


def test_a_missing_frame_of_a_context_is_not_an_observed_one() -> None:
    run = fit(waves()[0], **(TINY | {"context": 3}))
    shape = (4, 3, *run.model.config.frame_shape)
    context = np.full(shape, 5.0) + np.arange(3)[:, None]
    missing, observed = context.copy(), context.copy()
    missing[:, 1] = np.nan
    observed[:, 1] = run.scaling.invert(np.zeros(shape[2:]))  # what a missing frame is filled with
    drawn = [run.sample(4, 5, these, num_samples=2).future for these in (context, missing, observed)]
    assert all(np.isfinite(frames).all() for frames in drawn)
    assert not np.array_equal(drawn[1], drawn[2])


def test_frames_that_were_scaled_before_are_told() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 10, 4), dtype=np.uint8)
    run = fit(pixels, **TINY)
    with pytest.warns(UserWarning, match="frames from 0 to 1 are divided by 255"):
        run.segment(pixels / 255, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.segment(pixels, progress=False)
        run.segment(pixels.astype(float), progress=False)
