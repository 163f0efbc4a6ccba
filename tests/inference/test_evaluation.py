"""A model's scores against a hand count, beside other methods at the same positions."""

import json
import math
import re

import numpy as np
import pytest
import torch

from pyro_hrssm import HRSSM, RSSM, HRSSMConfig, data
from pyro_hrssm.data import Sequences
from pyro_hrssm.data.batches import in_order
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference import bounds, evaluation
from pyro_hrssm.inference.against_truth import boundary_scores, labelled
from pyro_hrssm.inference.evaluation import agreement, evaluate, measure, random_seed
from pyro_hrssm.inference.prediction import segment
from pyro_hrssm.inference.scores import label_score
from pyro_hrssm.inference.scores.methods import markov
from pyro_hrssm.inference.surprise import surprise
from pyro_hrssm.model.given import acting


def model_of(**fields: object) -> HRSSM:
    torch.manual_seed(2)
    sizes = {"frame_shape": (3,), "hidden": 8, "abstract_size": 2, "observation_size": 2, "likelihood": "normal"}
    return HRSSM(HRSSMConfig(**(sizes | fields))).eval()  # type: ignore[arg-type]


def test_a_model_is_scored_also_where_its_limits_left_no_choice() -> None:
    made = data.generate("colours", 30, 3, num_frames=9)
    lengths = np.resize([9, 7, 2, 1], 30)
    mask = np.arange(9) < lengths[:, None]
    sequences = Sequences(made["frames"], mask, made["boundaries"])
    model = model_of(max_segments=3, max_length=3)
    scores = boundary_scores(model, in_order(sequences, torch.device("cpu")))
    batch = sequences.batch(range(30))
    found = segment(model, batch.frames, batch.mask)
    hits = wrong = missed = forced = positions = 0
    for i in range(30):
        opened, since = 1, 1
        for t in range(lengths[i] - 1):
            positions += 1
            m = bool(found.boundaries[i, t])
            forced += opened >= 3 or since >= 3
            truth = bool(made["boundaries"][i, t])
            hits, wrong, missed = hits + (m and truth), wrong + (m and not truth), missed + (truth and not m)
            opened, since = (opened + 1, 1) if m else (opened, since + 1)
    assert scores.model.f1 == pytest.approx(2 * hits / (2 * hits + wrong + missed))
    assert scores.forced_share == pytest.approx(forced / positions)
    assert scores.tuned_on == "evaluation"
    values = scores.to_dict()
    assert set(values) >= {"precision", "recall", "f1", "f1_tolerance_1", "baselines"}
    assert set(values["baselines"]) == {"always", "never", "every_k", "frame_difference", "pelt"}
    assert set(values["baselines"]["pelt"]) == {"precision", "recall", "f1", "f1_tolerance_1", "covering"}


@pytest.mark.parametrize("most", [(None, None), (3, 4)])
def test_agreement_is_that_of_pairs_of_draws(most: tuple[int | None, int | None]) -> None:
    """The share of the boundaries of one draw that an independent second one has, over draws of the guide itself."""
    model = model_of(max_segments=most[0], max_length=most[1])
    with torch.no_grad():
        model.posterior.boundary_logit.product.weight.mul_(20)
    mask = np.arange(9) < np.resize([9, 7, 2, 1], 8)[:, None]
    sequences = Sequences(data.generate("colours", 8, 3, num_frames=9)["frames"], mask)
    batch = sequences.batch(range(8))
    many = [values.repeat_interleave(2000, 0) for values in (batch.frames, batch.mask) if values is not None]
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = [model.guide(*many, temperature=0.0).boundaries.T.view(8, 2000, 8) > 0.5 for _ in range(2)]  # type: ignore[union-attr]
    acts = torch.arange(8) < torch.tensor([8, 6, 1, 0] * 2).view(8, 1, 1)
    shared = (drawn[0] & drawn[1] & acts).sum() / (drawn[0] & acts).sum()
    found = agreement(model, in_order(sequences, torch.device("cpu")))
    assert found == pytest.approx(shared.item(), abs=0.02)
    assert 0.05 < found < 0.95
    assert measure(model, sequences, particles=2).boundary_agreement == pytest.approx(found)


def test_without_boundaries_there_is_no_agreement() -> None:
    sequences = Sequences(data.generate("colours", 4, 3, num_frames=9)["frames"])
    assert agreement(model_of(max_segments=1), in_order(sequences, torch.device("cpu"))) is None
    flat = RSSM(HRSSMConfig(model="rssm", frame_shape=(3,), hidden=8, observation_size=2, likelihood="normal"))
    assert measure(flat, sequences, particles=2).boundary_agreement is None


def test_missing_frames_repeat_the_one_before() -> None:
    frames = np.arange(10, dtype=np.float32).reshape(2, 5, 1)
    mask = np.array([[1, 0, 0, 1, 1], [1, 1, 0, 1, 0]], bool)
    sequences = Sequences(frames, mask, np.zeros((2, 5), bool))
    result = labelled(in_order(sequences, torch.device("cpu")), 0)
    assert result.frames[..., 0].tolist() == [[0, 0, 0, 3, 4], [5, 6, 6, 8, 8]]
    assert result.acts.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]


def test_missing_entries_repeat_the_ones_before() -> None:
    frames = np.arange(8.0).reshape(1, 4, 2)
    frames[0, 1, 0] = frames[0, 0, 1] = frames[0, 2, 1] = frames[0, 3] = np.nan
    sequences = Sequences(frames, None, np.zeros((1, 4), bool))
    result = labelled(in_order(sequences, torch.device("cpu")), 0)
    # Before the first reading of an entry stands 0, the mean of scaled frames.
    assert result.frames[0].tolist() == [[0, 0], [0, 3], [4, 3], [4, 3]]
    assert result.acts.tolist() == [[1, 1, 0, 0]]


def test_everything_at_once_repeats_itself_and_leaves_out_what_is_unknown() -> None:
    made = data.generate("colours", 12, 3, num_frames=9)
    known, unknown = Sequences(made["frames"], None, made["boundaries"]), Sequences(made["frames"])
    model = model_of(context=2)
    one, two = (measure(model, known, known, particles=3, horizons=(1, 3), given=5).to_dict() for _ in range(2))
    assert one == two
    assert one["boundaries"]["tuned_on"] == "training"
    assert set(one["forecast_nats"]) == {"1", "3"}
    assert one["forecast_nats"]["3"] < one["forecast_nats"]["1"] + 5
    assert not {"boundaries", "forecast_nats"} & set(measure(model, unknown, unknown, particles=2).to_dict())
    assert acting(2, torch.zeros(1, 9, 3), None).shape == (1, 6)


def noise(size: int, frames: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(size, frames, 3)).astype(np.float32)


def test_sequences_that_end_within_the_context_are_not_scored() -> None:
    model, frames = model_of(context=3), noise(8, 8)
    lengths = np.array([3, 3, 4, 5, 8, 8, 2, 0])
    mask = np.arange(8) < lengths[:, None]
    every, some = Sequences(frames, mask), Sequences(frames[2:6], mask[2:6])
    found, expected = (measure(model, data, particles=2, methods="none") for data in (every, some))
    assert found == expected
    assert found.sequences == 4
    with pytest.raises(InputError, match="a sequence with frames after the context of 3, found none"):
        evaluate(model, in_order(every.subset([0, 1, 6]), torch.device("cpu")), 2)


@pytest.mark.parametrize("entries", [False, True])
def test_forecasts_are_averaged_over_the_sequences_that_go_on(entries: bool) -> None:
    frames = noise(8, 12)
    mask = np.ones((8, 12), bool)
    mask[1] = np.arange(12) < 4  # ended before the last given frame
    mask[2] = np.arange(12) < 6  # ends with it
    mask[3, 6:9] = False  # nothing within 3 frames
    mask[4, :6] = False  # nothing is given
    every = np.where(mask[..., None], frames, np.nan) if entries else frames
    every = Sequences(every, None if entries else mask)
    found = []
    for rows in (np.arange(8), [0, 3, 5, 6, 7]):
        with random_seed(torch.device("cpu"), 1):
            batches = in_order(every.subset(rows), torch.device("cpu"))
            found.append(evaluation._forecasts(model_of(), batches, 6, (1, 3, 5), 3, None))
    # The same draws of the same sequences: others are not even computed.
    assert found[0] == found[1]
    assert found[0][1] == {"1": 4, "3": 4, "5": 5}
    scores = measure(model_of(), every, particles=3, methods="none", given=6, horizons=(1, 3, 5))
    assert scores.forecast_nats_sequences == found[0][1]
    assert " nats, of 4 sequences" in scores.table()
    known = measure(model_of(), Sequences(frames[5:]), particles=3, methods="none", given=6, horizons=(5,))
    assert "of 3 sequences" not in known.table()
    assert known.forecast_nats_sequences == {"5": 3}


def test_forecasts_of_which_no_frame_is_observed_are_not_known() -> None:
    mask = np.ones((4, 12), bool)
    mask[:, 6:8] = False
    scores = measure(model_of(), Sequences(noise(4, 12), mask), particles=2, methods="none", given=6, horizons=(1, 3))
    assert scores.forecast_nats is not None
    assert math.isnan(scores.forecast_nats["1"])
    assert scores.to_dict()["forecast_nats"]["1"] is None
    assert re.search(r"forecast, next 1 +never observed", scores.table())


def test_the_past_of_all_horizons_is_estimated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, real = [], bounds.log_likelihood
    monkeypatch.setattr(
        bounds,
        "log_likelihood",
        lambda model, frames, *rest: counts.append(frames.shape[1]) or real(model, frames, *rest),
    )
    measure(model_of(), Sequences(noise(4, 12)), particles=2, methods="none", given=6, horizons=(1, 3, 6))
    assert counts == [6, 7, 9, 12]


def test_the_standard_error_of_one_sequence_is_not_known() -> None:
    scores = measure(model_of(), Sequences(noise(1, 6)), particles=2)
    assert math.isnan(scores.nats_standard_error)
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["nats_standard_error"] is None
    assert "± unknown nats per sequence" in scores.table()


def test_every_position_counts_in_tables_and_tests_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model with one segment, which its limits force: nothing is found, and chance does as well."""
    made = data.generate("colours", 10, 3, num_frames=9)
    sequences = Sequences(made["frames"], None, made["boundaries"])
    scores = boundary_scores(model_of(max_segments=1), in_order(sequences, torch.device("cpu")), margin=2)
    assert (scores.model.recall, scores.model.f1_margin, scores.forced_share) == (0, 0, 1)
    assert scores.permutation is not None
    assert (scores.permutation.p_value, scores.permutation.margin) == (1.0, 2)
    lines = scores.text().splitlines()
    assert lines[0].split() == ["boundaries", "F1", "precision", "recall", "F1", "±1", "F1", "±2", "covering"]
    assert [line.split()[0] for line in lines[1:7]] == ["model", *scores.baselines]
    assert "limits left no choice at 100.0 %" in scores.text()
    assert "within 2 frames with p = 1" in scores.text()
    values = scores.to_dict()
    assert values["permutation"] == {"p_value": 1.0, "permutations": 999, "margin": 2}
    assert values["margin"] == 2
    assert values["parameters"]["every_k"]["k"] >= 1


def test_types_are_scored_after_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markov, "STATES", (4,))
    made = data.generate("levels", 30, 3, num_frames=12, num_levels=4)
    mask = np.arange(12) < np.resize([12, 8], 30)[:, None]
    sequences = Sequences(made["frames"], mask, made["boundaries"])
    model, batches = (
        model_of(context=3, frame_shape=made["frames"].shape[2:]),
        list(in_order(sequences, torch.device("cpu"))),
    )
    types = made["labels"].copy()
    types[:, :3] = 0  # the context is not scored
    types[~mask] = 2
    scores = boundary_scores(model, batches, methods="all", labels=made["labels"], types=types)
    assert set(scores.labels) == {"model", "gaussian_hmm", "sticky_hmm"}
    assert set(scores.labels["model"].to_dict().values()) == {1.0}
    assert 0.3 < scores.labels["gaussian_hmm"].accuracy <= 1
    wrong = boundary_scores(model, batches, labels=made["labels"], types=np.zeros_like(types)).labels["model"]
    inside = mask & (np.arange(12) >= 3)
    assert wrong == label_score(np.zeros_like(types), made["labels"], inside)
    assert "types" in scores.text()
    assert set(scores.to_dict()["labels"]) == set(scores.labels)
    assert boundary_scores(model, batches, labels=np.full_like(types, -1), types=types).labels == {}
    assert "labels" not in boundary_scores(model, batches).to_dict()


def test_peaks_of_a_flat_models_surprise_are_one_more_method() -> None:
    made = data.generate("colours", 12, 3, num_frames=9)
    mask = np.arange(9) < np.resize([9, 5], 12)[:, None]
    sequences = Sequences(made["frames"], mask, made["boundaries"])
    flat = RSSM(model_of(model="rssm", context=2).config).eval()
    batches = list(in_order(sequences, torch.device("cpu")))
    with random_seed(torch.device("cpu"), 1):
        found = labelled(batches, 2, flat).surprise
    with random_seed(torch.device("cpu"), 1):
        expected = surprise(flat, batches[0].frames, batches[0].mask).numpy()
    assert found is not None
    # A boundary at frame t is as likely as frame t + 1 surprises.
    assert np.array_equal(found[:, :-1], expected[:, 1:])
    scores = boundary_scores(model_of(context=2), batches, methods="all", flat=flat)
    assert list(scores.baselines)[-1] == "surprise_peaks"
    assert scores.left_out == {}


def test_what_is_known_of_some_sequences_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame of an unknown type leaves its own sequence's boundaries unscored, and no others; types of all count."""
    monkeypatch.setattr(markov, "STATES", (2, 4))
    made = data.generate("levels", 30, 3, num_frames=12, num_levels=4)
    model = model_of(frame_shape=made["frames"].shape[2:])
    types = np.random.default_rng(0).integers(0, 3, made["labels"].shape)
    some, unknown = made["labels"].copy(), np.arange(0, 30, 3)
    some[unknown, 4] = -1
    all_known, known = (Sequences(made["frames"], labels=labels) for labels in (made["labels"], some))
    part = known.with_boundaries()
    assert part.rows.tolist() == np.setdiff1d(np.arange(30), unknown).tolist()
    whole, partly, alone = (
        measure(model, each, all_known, particles=1, methods="all", types=types[each.rows], margin=1).boundaries
        for each in (all_known, known, part)
    )
    assert whole is not None
    assert partly is not None
    assert alone is not None
    assert (partly.model, partly.baselines) == (alone.model, alone.baselines)
    assert partly.permutation is not None
    assert alone.permutation is not None
    # 999 draws each have a standard error of 0.016 at most: 6 of their difference.
    assert abs(partly.permutation.p_value - alone.permutation.p_value) < 6 * 0.016 * 2**0.5
    assert (whole.bounded_sequences, partly.bounded_sequences, alone.bounded_sequences) == (None, 20, None)
    assert "true ones are all known: 20" in partly.text()
    seen = some >= 0
    expected = label_score(types, made["labels"], seen).to_dict()
    assert partly.labels["model"].to_dict() == pytest.approx(expected, rel=1e-12)  # the order of a sum
    assert set(partly.labels) == set(whole.labels) == {"model", "gaussian_hmm", "sticky_hmm"}
    tuned_on_some = measure(model, all_known, known, particles=1, margin=1).boundaries
    tuned_on_part = measure(model, all_known, part, particles=1, margin=1).boundaries
    assert tuned_on_some is not None
    assert tuned_on_some.tuned_on == "training"
    assert tuned_on_some == tuned_on_part


def test_types_are_scored_where_no_boundary_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markov, "STATES", (2, 4))
    made = data.generate("levels", 20, 3, num_frames=12, num_levels=4)
    model, labels = model_of(frame_shape=made["frames"].shape[2:]), made["labels"].copy()
    labels[:, 5] = -1
    sequences, types = Sequences(made["frames"], labels=labels), made["labels"] + 5
    scores = measure(model, sequences, sequences, particles=1, methods="all", types=types).boundaries
    assert scores is not None
    assert (scores.model, scores.baselines, scores.permutation, scores.bounded_sequences) == (None, {}, None, 0)
    assert scores.labels["model"].accuracy == 1
    assert set(scores.labels) == {"model", "gaussian_hmm", "sticky_hmm"}
    assert scores.tuned_on == "evaluation"
    assert "f1" not in scores.to_dict()
    lines = scores.text().splitlines()
    assert lines[0].startswith("types ")
    assert "boundaries scored on the sequences whose true ones are all known: none" in lines
    nothing = Sequences(made["frames"], labels=np.full_like(labels, -1))
    assert measure(model, nothing, nothing, particles=1).boundaries is None


def test_labels_alone_are_enough_for_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markov, "STATES", (2, 4))
    made = data.generate("levels", 40, 3, num_frames=12, num_levels=4)
    known, labels = (
        Sequences(made["frames"], None, made["boundaries"], labels=made["labels"]),
        Sequences(made["frames"], labels=made["labels"]),
    )
    model = model_of(frame_shape=made["frames"].shape[2:])
    types = np.zeros_like(made["labels"])
    one, two = (
        measure(model, these, these, particles=1, methods="all", types=types).boundaries for these in (known, labels)
    )
    assert one is not None
    assert one == two, "levels never repeat, so that their boundaries are where labels change"
    assert set(one.labels) == {"model", "gaussian_hmm", "sticky_hmm"}
    assert one.parameters["gaussian_hmm"]["types_states"] == 4
    assert one.labels["model"].accuracy == (made["labels"] == np.bincount(made["labels"].ravel()).argmax()).mean()
    unlabelled = measure(
        model, Sequences(made["frames"], None, made["boundaries"]), particles=1, types=types
    ).boundaries
    assert unlabelled is not None
    assert unlabelled.labels == {}
