"""Documents are made from records: every figure has one, and the documents in the repository are what they give."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import documents, experiments, pictures, records, results
from pyro_hrssm.cli import parse
from pyro_hrssm.files import write_json


def run_record(variant: str, seed: int, value: float) -> dict[str, Any]:
    score = dict.fromkeys(documents.BOUNDARIES.values(), value)
    return {
        "variant": variant,
        "seed": seed,
        "steps": 100,
        "commands": [{"command": "pyro-hrssm train --data levels.npz", "seconds": 120.0}],
        "machine": {"processor": "a processor", "gpu": None},
        "versions": {"torch": "2.14.1"},
        "scores": {
            "nats_per_sequence": value,
            "iwae_nats_per_sequence": value,
            "forecast_nats": {"1": value},
            "boundary_rate": value,
            "boundaries": score | {"labels": {"model": {"accuracy": value}}},
        },
    }


def test_documents_are_what_the_records_give() -> None:
    for path, text in documents.made():
        assert path.read_text() == text, f"{path.name}: run `make documents`"


@pytest.fixture
def figures(tmp_path: Path) -> documents.Figures:
    for seed, value in ((1, 0.111), (2, 0.222)):
        write_json(tmp_path / "levels" / f"hrssm_{seed}.json", run_record("hrssm", seed, value))
    write_json(tmp_path / "levels" / "hrssm_mean_1.json", run_record("hrssm_mean", 1, 0.9))
    methods = {"pelt": {"f1": 0.5}, "every_k": {"f1": 0.25}, "best_possible": {"f1": 0.75}}
    write_json(tmp_path / "levels" / "methods.json", {"scores": {"boundaries": {"baselines": methods}}})
    return documents.Figures(tmp_path)


def test_scores_are_mean_and_deviation_over_seeds(figures: documents.Figures) -> None:
    assert figures.mean("levels", "hrssm", "boundaries.f1") == "0.167 ± 0.078"  # not those of `hrssm_mean`
    assert "| **HRSSM** | 0.167 ± 0.078 |" in figures.boundaries("levels")


def test_what_was_not_measured_is_said(figures: documents.Figures) -> None:
    assert figures.mean("levels", "hrssm", "boundaries.f1_margin") == "not run"
    assert "| RSSM | not run | not run | not run | not run | not run | not run | not run | not run |" in figures.bounds(
        "levels"
    )
    assert figures.value("levels/none", "scores.f1") == "not run"
    with pytest.raises(LookupError, match="no record levels/none"):
        figures.record("levels/none")


def test_the_best_method_is_no_model_and_not_the_best_possible(figures: documents.Figures) -> None:
    assert figures.best_method("levels") == "0.500 (change points (PELT, linear kernel))"
    assert figures.method("levels", "best_possible") == "0.750"


def test_templates_hold_no_measured_number() -> None:
    """Digits in a paragraph come from records, or are settings: those stand in backticks, or are listed here."""
    for template in (documents.TEMPLATES / "results").glob("*.jinja"):
        text = re.sub(r"\{\{.*?\}\}|`[^`]*`|\(\d{4}\)|\b(19|20)\d\d\b", "", template.read_text(), flags=re.DOTALL)
        assert not re.findall(r"\d+\.\d+", text), template.name


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_the_commands_of_the_document_parse(name: str) -> None:
    lines = documents.Figures().commands(name).splitlines()[1:-1]
    for line in lines:
        words = line.replace(" S ", " 1 ").split()
        assert words[0] == "pyro-hrssm"
        parse(words[1:])
    variants = experiments.EXPERIMENTS[name].variants
    assert sum(line.startswith("pyro-hrssm train") for line in lines) == len(variants)
    assert {"hrssm", "rssm"} <= variants.keys()


def test_a_record_of_a_command(tmp_path: Path) -> None:
    records.measure("speed/one", ["python", "-c", "print('{\"ratio\": 1.5}')"], tmp_path)
    record = json.loads((tmp_path / "speed" / "one.json").read_text())
    assert record["measured"] == {"ratio": 1.5}
    assert record["command"].startswith("python -c")
    assert record["seconds"] > 0
    assert {"commit", "versions", "machine", "date"} <= record.keys()


def test_pictures_are_those_of_the_first_seed(tmp_path: Path) -> None:
    picture = experiments.Picture("figures/segments.png", "Segments.")
    for seed in experiments.SEEDS:
        (tmp_path / f"levels_hrssm_{seed}" / "figures").mkdir(parents=True)
        (tmp_path / f"levels_hrssm_{seed}" / picture.file).write_bytes(bytes([seed]))
    pictures.keep("levels", picture, tmp_path, tmp_path)
    assert (tmp_path / "levels_segments.png").read_bytes() == bytes([experiments.SEEDS[0]])


def test_every_picture_of_the_document_is_kept() -> None:
    shown = re.findall(r"\]\(pictures/(\S+)\)", (documents.ROOT / "docs" / "RESULTS.md").read_text())
    assert not [name for name in shown if not (pictures.FOLDER / name).exists()]


@pytest.mark.slow
def test_an_experiment_is_run_cut_off_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = experiments.Experiment(
        "Small", "", "levels --num 20 --num-frames 20", "--steps 3 --hidden 8", 10,
        {"hrssm": experiments.HRSSM, "rssm": experiments.FLAT}, types="--types 2",
        pictures=(experiments.Picture("jump_sequences.png", "Jumps.", "--mode jump --context 10 --horizon 2"),),
    )  # fmt: skip
    monkeypatch.setitem(experiments.EXPERIMENTS, "small", small)
    runs, out = tmp_path / "runs", tmp_path / "records"
    runs.mkdir()
    study = results.Study("small", runs, out, "cpu")
    study.generate()
    for variant in small.variants:
        study.run(variant, 1)
    study.methods()
    record = json.loads((out / "small" / "hrssm_1.json").read_text())
    assert record["steps"] == 3
    assert record["scores"]["boundaries"]["labels"]["model"]
    assert [step["command"].split()[1] for step in record["commands"]] == ["train", "segment", "evaluate"]
    assert (
        "surprise_peaks"
        in json.loads((out / "small" / "methods.json").read_text())["scores"]["boundaries"]["baselines"]
    )
    pictures.keep("small", small.pictures[0], runs, tmp_path)
    assert (tmp_path / "small_jump_sequences.png").stat().st_size > 0
    before = (out / "small" / "hrssm_1.json").stat().st_mtime_ns
    study.run("hrssm", 1)
    assert (out / "small" / "hrssm_1.json").stat().st_mtime_ns == before
    (out / "small" / "hrssm_1.json").unlink()
    (runs / "small_hrssm_1" / "evaluation.json").unlink()  # as if training had been cut off
    study.run("hrssm", 1)
    again = json.loads((out / "small" / "hrssm_1.json").read_text())
    assert again["scores"] == record["scores"]
    assert again["commands"][0]["command"].startswith("pyro-hrssm train --resume")
