"""The document of results: every seed appears, and no value that was not measured."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import results
from pyro_hrssm.cli import parse
from pyro_hrssm.files import write_json


def measured(value: float) -> dict[str, Any]:
    score = dict.fromkeys(("f1", "precision", "recall", "f1_tolerance_1"), value)
    return {
        "nats_per_sequence": value,
        "iwae_nats_per_sequence": value,
        "forecast_nats": dict.fromkeys(("1", "5", "10"), value),
        "boundaries": score | {"baselines": {"pelt": dict.fromkeys(score, 0.5)}},
        "steps": 100,
        "train_seconds": 50.0,
    }


def test_every_seed_appears_and_what_is_missing_is_said(tmp_path: Path) -> None:
    for seed, value in ((1, 0.111), (2, 0.222)):
        write_json(tmp_path / f"colours_clear_hrssm_{seed}" / "result.json", measured(value))
    text = results.section("colours_clear", results.results(tmp_path)["colours_clear"])
    assert "0.111, 0.222" in text
    assert "| pelt | 0.500, 0.500 |" in text
    assert text.count("not run") == len(results.MEASURES) * 2  # the flat model and the other estimator
    assert results.EXPERIMENTS["colours_clear"].about in text


@pytest.mark.parametrize("name", results.EXPERIMENTS)
def test_the_commands_of_the_document_parse(name: str) -> None:
    experiment = results.EXPERIMENTS[name]
    for variant in experiment.variants:
        command = parse(["train", "--data", "x.npz", *results.flags(experiment, variant).split()])
        assert command.model.model == ("rssm" if variant == "rssm" else "hrssm")  # type: ignore[union-attr]
        assert (command.training.elbo == "trace") == (variant == "straight_through")  # type: ignore[union-attr]
    parse(["data", *experiment.data.split()])
