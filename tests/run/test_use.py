"""Commands on a run, for the kinds of data that are easily forgotten."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyro_hrssm import files
from pyro_hrssm.cli import main

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
