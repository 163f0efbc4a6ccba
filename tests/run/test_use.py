"""Commands on a run, for the kinds of data that are easily forgotten."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_hrssm import HRSSM, data, files
from pyro_hrssm.cli import main
from pyro_hrssm.inference.evaluation import random_seed
from pyro_hrssm.inference.prediction import Settings, sample

TINY = [
    *("--hidden", "8", "--abstract-size", "2", "--observation-size", "2", "--batch-size", "8", "--particles", "1"),
    *("--steps", "1", "--evaluate-every", "0", "--device", "cpu"),
]


@pytest.mark.parametrize("channels", [2, 4, 9])
def test_images_of_any_number_of_channels_are_trained_on_predicted_and_reported(channels: int, tmp_path: Path) -> None:
    file, run, out = tmp_path / "images.npy", tmp_path / "run", tmp_path / "p.npz"
    np.save(file, np.random.default_rng(0).random((12, 5, 8, 6, channels), dtype=np.float32))
    main(["train", *TINY, "--data", str(file), "--out", str(run)])
    assert (run / "figures/reconstructions.png").exists()
    main(["predict", str(run), "--num-sequences", "1", "--num-samples", "1", "--out", str(out)])
    with np.load(out) as arrays:
        assert arrays["frames"].shape == (1, 1, 5, 8, 6, channels)
    with Image.open(out.with_suffix(".gif")) as film:
        assert film.size == (16 * 6 * (channels if channels < 9 else 1), 16 * 8)  # enlarged to 128 pixels of height
    assert out.with_name("p_samples.png").exists()
    main(["report", str(run), "--num-sequences", "1", "--out", str(tmp_path / "report.html")])
    said = f"{channels} channels side by side" if channels < 9 else "mean of 9 channels"
    assert f"; an image shows {said}. Shown is" in (tmp_path / "report.html").read_text()


def test_samples_do_not_read_a_missing_frame_of_the_context(tmp_path: Path) -> None:
    frames = 5 + np.random.default_rng(0).random((10, 6, 3))
    frames[:, 1] = np.nan
    file, run, out = tmp_path / "own.npy", tmp_path / "run", tmp_path / "p.npz"
    np.save(file, frames)
    main(["train", *TINY, "--context", "2", "--data", str(file), "--out", str(run)])
    predict = ["predict", str(run), "--data", str(file), "--mode", "sample", "--num-samples", "2", "--seed", "4"]
    main([*predict, "--out", str(out)])
    model = HRSSM.load(run)
    assert model.scaling is not None
    scaled = torch.from_numpy(model.scaling.apply(frames[:8, :2]))
    with random_seed(torch.device("cpu"), 4):
        how = Settings(num_samples=2)
        expected = sample(model, 8, 4, scaled, how, mask=torch.tensor([[True, False]] * 8)).frames
    with np.load(out) as arrays:
        np.testing.assert_allclose(arrays["frames"], model.scaling.invert(expected.numpy()), rtol=1e-6)  # float32


@pytest.mark.parametrize("weighted", [False, True])
def test_data_that_lack_entries_are_trained_on_and_used(
    weighted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    frames, boundaries = 5 + rng.random((20, 6, 3)), rng.random((20, 6)) < 0.3
    frames[rng.random(frames.shape) < 0.2] = np.nan
    frames[:, 5] = 5.5
    frames[0, 2, :2] = frames[1, 3] = np.nan
    beside = {"weights": rng.integers(1, 5, frames.shape[:2])} if weighted else {}
    file, run, out = tmp_path / "own.npz", tmp_path / "run", tmp_path / "p.npz"
    data.save_npz(file, frames, boundaries=boundaries, **beside)
    main(["train", *TINY, "--data", str(file), "--out", str(run)])
    said = capsys.readouterr()
    assert "entries missing from the others" in said.out
    assert ("entries weighted" in said.out) == weighted
    assert "per observed entry" in said.out
    assert "its encoder takes" not in said.err
    assert files.read_json(run / "config.json")["model"]["entry_flags"]
    assert (run / "figures/reconstructions.png").exists()
    main(["train", "--resume", str(run), "--steps", "2"])
    for mode in ("infill", "reconstruct", "forecast"):
        main(["predict", str(run), "--data", str(file), "--mode", mode, "--num-samples", "2", "--out", str(out)])
        with np.load(out) as arrays:
            assert arrays["mask"].dtype == bool
            np.testing.assert_array_equal(arrays["mask"], ~np.isnan(frames[:8]))
            np.testing.assert_allclose(arrays["original"], np.nan_to_num(frames[:8]), rtol=1e-6)  # float32
            assert ("weights" in arrays) == weighted
            if weighted:
                np.testing.assert_array_equal(arrays["weights"], beside["weights"][:8, :, None] * arrays["mask"])
            if mode == "infill":
                known = arrays["mask"]
                np.testing.assert_allclose(arrays["frames"][:, known], np.tile(frames[:8][known], (2, 1)), rtol=1e-6)
                assert (np.abs(arrays["frames"][:, ~known] - 5.5) < 2).all()
    main(["evaluate", str(run), "--data", str(file), "--horizons", "1", "2"])
    main(["segment", str(run), "--data", str(file), "--out", str(tmp_path / "s.csv")])
    main(["report", str(run), "--data", str(file), "--num-sequences", "2", "--out", str(tmp_path / "report.html")])
    assert "Plain light blue is missing." in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("no_figures")
def test_a_run_on_complete_data_reads_data_that_lack_entries_and_says_what_it_cannot_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames, run, out = np.random.default_rng(0).random((20, 6, 3)), tmp_path / "run", tmp_path / "p.npz"
    np.save(tmp_path / "whole.npy", frames)
    main(["train", *TINY, "--data", str(tmp_path / "whole.npy"), "--out", str(run)])
    assert not files.read_json(run / "config.json")["model"]["entry_flags"]
    frames[:, 2, 1] = frames[0, :, 2] = np.nan
    np.save(tmp_path / "gaps.npy", frames)
    capsys.readouterr()
    main(["predict", str(run), "--data", str(tmp_path / "gaps.npy"), "--mode", "infill", "--out", str(out)])
    assert "its encoder takes a missing entry for one that reads 0 once scaled" in capsys.readouterr().out
    with np.load(out) as arrays:
        assert np.isfinite(arrays["frames"]).all()
        np.testing.assert_allclose(arrays["frames"][0][arrays["mask"]], frames[:8][arrays["mask"]], rtol=1e-5)
    np.save(tmp_path / "whole.npy", frames)
    main(["train", "--resume", str(run), "--steps", "2"])
    assert "its encoder takes a missing entry" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_a_run_whose_folder_is_a_link_and_whose_records_windows_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "own.npy", np.random.default_rng(0).random((20, 6, 3)))
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    real.parent.mkdir()
    link.symlink_to(real)  # to a folder that the run makes
    real.mkdir()
    flags = ["--data", str(tmp_path / "own.npy"), "--log-every", "1"]
    main(["train", *TINY, *flags, "--out", str(link)])
    assert (real / "checkpoints/00000001.safetensors").exists()
    for name in ("config.json", "metrics.jsonl", "evaluation.json"):
        text = (real / name).read_bytes()
        assert b"\r" not in text
        (real / name).write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    logged = files.read_lines(real / "metrics.jsonl")
    assert [row["step"] for row in logged] == [1, 1]
    # The checkpoint is hidden, so that the run starts over from its config.json.
    (real / "checkpoints").rename(real / "hidden")
    main(["train", "--resume", str(link), "--steps", "1"])
    (real / "checkpoints/00000001.safetensors").unlink()
    (real / "checkpoints").rmdir()
    (real / "checkpoints").symlink_to("hidden")
    main(["train", "--resume", str(link), "--steps", "2"])
    assert (real / "hidden/00000002.safetensors").exists()
    assert [row["step"] for row in files.read_lines(real / "metrics.jsonl")] == [1, 1, 2, 2]
    (real / "evaluation.json").write_bytes((real / "evaluation.json").read_bytes().replace(b"\n", b"\r\n"))
    one = tmp_path / "best.safetensors"
    one.symlink_to(real / "hidden/00000002.safetensors")
    for run in (link, one):
        main(["evaluate", str(run), "--particles", "1"])
        main(["segment", str(run), "--out", str(tmp_path / "segments.csv")])
        main(["predict", str(run), "--num-sequences", "1", "--num-samples", "1", "--out", str(tmp_path / "p.npz")])
        main(["report", str(run), "--num-sequences", "1", "--out", str(tmp_path / "report.html")])
    assert "Warning" not in capsys.readouterr().err


def test_links_that_lead_nowhere_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop, dangling = tmp_path / "loop", tmp_path / "dangling"
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "absent")
    for run in (loop, dangling):
        for arguments in (
            ["evaluate", str(run)],
            ["segment", str(run)],
            ["train", "--resume", str(run)],
            ["train", "--out", str(run), *TINY],
        ):
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            printed = capsys.readouterr().err
            assert stop.value.code == 2, arguments
            assert printed.count("\n") == 1
            assert str(run) in printed


@pytest.mark.usefixtures("no_figures")
def test_predict_writes_quantiles_of_every_frame_in_the_datas_units(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(50, 20, (20, 10, 3)).astype(np.float32)
    values[0, 6:] = values[1, 3] = np.nan  # the first sequence ends early, the second lacks a frame
    file, run, out = tmp_path / "own.npy", tmp_path / "run", tmp_path / "q.npz"
    np.save(file, values)
    main(["train", *TINY, "--data", str(file), "--out", str(run)])
    command = ["predict", str(run), "--data", str(file), "--num-sequences", "2", "--out", str(out)]
    for mode, total in (("forecast", 10), ("infill", 10), ("jump", 7), ("sample", 10)):
        flags = ["--quantiles", "0.9", "0.1", "0.5", "--mode", mode, "--context", "4"]
        main([*command, *flags, *(["--horizon", "3"] if mode == "jump" else [])])
        with np.load(out) as arrays:
            found, frames = arrays["quantiles"], arrays["frames"]
            assert arrays["quantile_levels"].tolist() == [0.1, 0.5, 0.9]
            assert frames.shape == (100, 2, total, 3), "as many samples as quantiles want"
            assert found.shape == (3, 2, total, 3)
            expected = np.quantile(frames, [0.1, 0.5, 0.9], axis=0, method="weibull")
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            within = np.arange(total) < arrays["lengths"][:, None]
            assert (found[:, ~within] == 0).all()
            spread = (found[2] - found[0])[within]
            if mode == "infill":  # observed frames stay as they are
                seen = arrays["mask"][within]
                assert (spread[seen] == 0).all()
                spread = spread[~seen]
            assert (spread > 5).all(), "the noise of observations, in the file's units, belongs to a forecast"
        assert out.with_name("q_quantiles.png").stat().st_size > 1000
        out.with_name("q_quantiles.png").unlink()


@pytest.mark.usefixtures("no_figures")
def test_images_have_quantiles_and_no_fan(tmp_path: Path) -> None:
    file, run, out = tmp_path / "images.npy", tmp_path / "run", tmp_path / "q.npz"
    np.save(file, np.random.default_rng(0).random((12, 5, 8, 6, 1), dtype=np.float32))
    main(["train", *TINY, "--data", str(file), "--out", str(run)])
    main(["predict", str(run), "--num-sequences", "1", "--quantiles", "0.5", "--num-samples", "2", "--out", str(out)])
    with np.load(out) as arrays:
        assert arrays["quantiles"].shape == (1, 1, 5, 8, 6, 1)
    assert sorted(path.name for path in tmp_path.glob("q*")) == ["q.gif", "q.npz", "q_samples.png", "q_sequences.png"]


@pytest.mark.usefixtures("no_figures")
def test_forecasts_stand_beside_those_of_a_flat_run_on_the_same_sequences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = np.random.default_rng(0).normal(0, 30, (20, 8, 2)).astype(np.float32)
    np.save(tmp_path / "own.npy", frames)
    np.save(tmp_path / "other.npy", frames[::-1])
    runs = {"own": [], "flat": ["rssm"], "other": ["rssm"], "units": ["rssm", "--scaling", "none"]}
    for name, kind in runs.items():
        data = tmp_path / ("other.npy" if name == "other" else "own.npy")
        flags = ["--model", *kind] if kind else []
        main(["train", *TINY, *flags, "--data", str(data), "--out", str(tmp_path / name)])
    capsys.readouterr()
    own, ask = str(tmp_path / "own"), ["--particles", "1", "--horizons", "2", "--num-samples", "9"]
    main(["evaluate", own, *ask, "--flat", str(tmp_path / "flat"), "--json"])
    beside = json.loads(capsys.readouterr().out)["forecasts"]["horizons"]["2"]
    main(["evaluate", str(tmp_path / "flat"), *ask, "--json"])
    alone = json.loads(capsys.readouterr().out)["forecasts"]["horizons"]["2"]
    assert beside["persistence"] == alone["persistence"]
    assert beside["flat"]["crps"] == pytest.approx(alone["model"]["crps"], rel=0.5)  # of other draws
    for name, message in (("own", "an RSSM, found an HRSSM"), ("other", "own sequences"), ("units", "the run's units")):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", own, *ask, "--flat", str(tmp_path / name)])
        printed = capsys.readouterr().err
        assert stop.value.code == 2
        assert printed.startswith("pyro-hrssm: flat must ")
        assert message in printed
        assert printed.count("\n") == 1
