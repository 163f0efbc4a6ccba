"""Segments as a table, their abstract states, and the mixture over these."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from pyro import poutine

from pyro_hrssm import HRSSM, HRSSMConfig
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference import prediction, segments, types
from pyro_hrssm.inference.prediction import segment
from pyro_hrssm.inference.segments import Segments, find_segments
from pyro_hrssm.model.given import Call, Given, encode


def model_of(context: int = 0) -> HRSSM:
    torch.manual_seed(7)
    config = HRSSMConfig(
        frame_shape=(2,), hidden=8, abstract_size=3, observation_size=1, max_segments=None, max_length=None,
        context=context,
    )  # fmt: skip
    model = HRSSM(config).eval()
    with torch.no_grad():
        model.posterior.boundary_logit.product.weight.mul_(20)  # so that boundaries are neither sure nor even
    return model


def states(centres: np.ndarray, each: int, spread: float, seed: int = 0) -> Segments:
    """Segments, one sequence each, whose states lie around centres [K, Z] in turn; q's standard deviation is 1."""
    values = np.repeat(centres, each, 0)
    values = values + spread * np.random.default_rng(seed).standard_normal(values.shape)
    count = len(values)
    return Segments(
        np.arange(count), np.zeros(count, int), np.full(count, 4), np.full(count, np.nan), values, np.ones_like(values)
    )


CORNERS = 8.0 * np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize("context", [0, 2])
def test_segments_are_those_of_the_most_probable_path(context: int) -> None:
    model, frames = model_of(context), torch.rand(5, 9, 2)
    mask = torch.ones(5, 9, dtype=torch.bool)
    mask[1, 6:] = mask[2, 3:] = mask[3, 4] = False
    found = find_segments(model, [(frames[:2], mask[:2]), (frames[2:], mask[2:])])
    ends = [9, 6, 3, 9, 9]
    path = segment(model, frames, mask)
    rows = []
    for number, last in enumerate(ends):
        stops = [context + t for t in path.boundaries[number].nonzero().squeeze(1).tolist()] + [last - 1]
        starts = [context, *(stop + 1 for stop in stops[:-1])]
        rows += [(number, *pair) for pair in zip(starts, stops, strict=True)]
    assert list(zip(*(part.tolist() for part in found[:3]), strict=True)) == rows
    assert len(rows) > 5
    for number, _, end, chance in zip(*found[:4], strict=True):
        if end == ends[number] - 1:
            assert np.isnan(chance)
        else:
            assert chance == pytest.approx(path.probabilities[number, end - context].item(), rel=1e-6)


def test_sequences_that_end_within_the_context_have_no_segment() -> None:
    model, frames = model_of(context=3), torch.rand(3, 9, 2)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, 3:] = mask[2, 1:] = False
    assert set(find_segments(model, [(frames, mask)]).sequence.tolist()) == {1}


def test_a_small_memory_changes_no_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    model, frames = model_of(), torch.rand(5, 9, 2)
    mask = torch.ones(5, 9, dtype=torch.bool)
    mask[1, 6:] = mask[3, 4] = False
    every = find_segments(model, [(frames, mask)])
    passes = []

    def two(model: HRSSM, length: int) -> int:
        passes.append(length)
        return 2

    monkeypatch.setattr(segments, "rows_at_once", two)
    for left, right in zip(every, find_segments(model, [(frames.numpy(), mask.numpy())]), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    assert passes == [9]


@pytest.mark.parametrize("context", [0, 2])
def test_states_are_the_means_of_the_guide_s_own_sites(context: int) -> None:
    """The guide, its boundaries held at the most probable ones, has Normals at z_t with these means and deviations."""
    model, frames = model_of(context), torch.rand(4, 8, 2)
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[2, 5:] = mask[3, 4] = False
    found = find_segments(model, [(frames, mask)])
    path = segment(model, frames, mask).boundaries
    held = {f"m_{t}": path[:, t].float() for t in range(path.shape[1] - 1)}
    trace = poutine.trace(poutine.condition(model.guide, data=held)).get_trace(frames, mask, temperature=0.0)
    for number, start, mean, deviation in zip(found.sequence, found.start, found.states, found.deviations, strict=True):
        site = trace.nodes[f"z_{start - context}"]["fn"]
        np.testing.assert_allclose(mean, site.mean[number].detach(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(deviation, site.plain.stddev[number].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_states_of_a_recording_read_in_pieces_are_those_of_one_pass(context: int, masked: bool) -> None:
    """No piece starts afresh at a seam, forwards or backwards: masks, ends and a context count as in one pass."""
    model, frames = model_of(context).double(), torch.rand(3, 50, 2, dtype=torch.float64)
    mask = torch.ones(3, 50, dtype=torch.bool)
    mask[0, 20:24] = mask[1, 17:] = False
    boundaries = torch.rand(3, 50 - context) < 0.1
    with torch.no_grad():
        given = Given.of(model.config, frames, mask if masked else None, Call(), model.like)
        m = boundaries.T[:-1].double()
        m = torch.where(given.acts, m, 1.0) if given.acts is not None else m
        posterior = model.posterior
        expected = posterior.abstract_parameters(posterior.summaries(encode(posterior, given), m))
    for at_once in (1, 7, 16, 50, 1000):
        found = model.abstract_posterior(frames, mask if masked else None, boundaries, at_once)
        for left, right in zip(found, expected, strict=True):
            # Products of other shapes round differently, in double.
            torch.testing.assert_close(left, right.transpose(0, 1), rtol=0, atol=1e-10)


def test_the_networks_read_few_frames_of_a_recording_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "frames_at_once", lambda model, rows: 64)
    monkeypatch.setattr(prediction, "frames_at_once", lambda model, rows: 64)
    model, sizes = model_of(), []
    encode_some = model.posterior.encode
    monkeypatch.setattr(
        model.posterior, "encode", lambda frames, *rest: sizes.append(len(frames)) or encode_some(frames, *rest)
    )
    find_segments(model, [(torch.rand(1, 1000, 2), None)])
    assert max(sizes) <= 64 + 2 * model.posterior.boundary_reach


def test_one_segment_has_no_types() -> None:
    every = states(CORNERS, 1, 1.0)
    one = every.at(np.arange(len(every.start)) == 0)
    for number in ("auto", 1):
        with pytest.raises(InputError, match="types need at least 2 training segments, found 1"):
            types.fit(one, number)


def test_no_sequence_has_no_segment() -> None:
    found = find_segments(model_of(), [])
    assert found.states.shape == (0, 3)
    with pytest.raises(InputError, match="at least 2 training segments, found 0"):
        types.fit(found, "auto")


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("number", [5, "auto"])
def test_clusters_are_found_however_narrow_they_are(number: int, spread: float) -> None:
    """Clusters narrower than q's own deviation are not split: BIC would otherwise ask for ever more types."""
    fitted = types.fit(states(CORNERS, 60, spread), number)  # type: ignore[arg-type]
    assert fitted.number == 5
    chosen, probability = types.assign(fitted, states(CORNERS, 20, spread, seed=1).states)
    assert len({tuple(np.unique(chosen[20 * k : 20 * k + 20])) for k in range(5)}) == 5
    assert (probability > 0.99).all()
    assert fitted.entries.tolist() == ([0, 1, 2] if spread < 1 else [0, 1, 2, 3])
    assert len(fitted.bic) == (0 if number == 5 else types.MOST_TYPES)


def test_clusters_a_few_deviations_apart_are_told_apart() -> None:
    """The six levels of a trained model's z: with q's whole variance, two of them were one."""
    centres = np.array([[-1.7, 3.5], [0.6, 11.0], [0.4, -3.4], [1.1, 0.0], [1.7, 3.6], [0.3, -9.2]])
    fitted = types.fit(states(centres, 200, 0.5), 6)
    chosen, _ = types.assign(fitted, centres)
    assert sorted(chosen) == list(range(6))


def test_types_are_numbered_by_frequency_and_the_same_for_the_same_seed() -> None:
    values = states(CORNERS, 40, 0.5)
    keep = np.concatenate([np.arange(40 * k, 40 * k + size) for k, size in enumerate((10, 40, 20, 30, 25))])
    fewer = Segments(*(part[keep] for part in values))
    fitted, again = types.fit(fewer, 5), types.fit(fewer, 5)
    for one, other in zip(fitted, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (np.diff(fitted.weights) <= 0).all()
    chosen, _ = types.assign(fitted, CORNERS)
    assert chosen.tolist() == [4, 0, 3, 1, 2]


def test_probabilities_are_bayes_rule() -> None:
    """Two Normals on a line, worked out by hand."""
    fitted = types.SegmentTypes(
        np.array([0.75, 0.25]), np.array([[0.0], [2.0]]), np.array([[[1.0]], [[4.0]]]), np.array([1]), np.zeros(0)
    )
    chosen, probability = types.assign(fitted, np.array([[9.0, 0.0], [-9.0, 2.0]]))
    first = 0.75 * 1.0, 0.25 * 0.5 * np.exp(-0.5)
    second = 0.75 * np.exp(-2.0), 0.25 * 0.5
    assert chosen.tolist() == [0, 1]
    np.testing.assert_allclose(probability, [first[0] / sum(first), second[1] / sum(second)], rtol=1e-12)


def test_units_of_z_do_not_matter() -> None:
    """Entries of z in other units, their deviations with them, give the same types."""
    values, units = states(CORNERS, 30, 1.0), np.array([100.0, 0.01, 3.0, 1.0])
    moved = values._replace(states=values.states * units, deviations=values.deviations * units)
    one, other = types.fit(values, 5), types.fit(moved, 5)
    np.testing.assert_array_equal(types.assign(one, values.states)[0], types.assign(other, moved.states)[0])


def test_wrong_numbers_of_types(monkeypatch: pytest.MonkeyPatch) -> None:
    few = states(CORNERS, 1, 0.0)
    assert types.fit(few, "auto").number <= 5
    with pytest.raises(InputError, match="at least 1 or auto, found 0"):
        types.fit(few, 0)
    with pytest.raises(InputError, match="at most the 5 training segments, found 6"):
        types.fit(few, 6)
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(InputError, match="types need scikit-learn: pip install"):
        types.fit(few, 2)


def test_counts_worked_out_by_hand() -> None:
    """Two sequences: types 0 1 0 in frames 2-3, 4, 5-7, and 1 1 in frames 2, 3-4, after a context of 2."""
    found = Segments(
        sequence=np.array([0, 0, 0, 1, 1]), start=np.array([2, 4, 5, 2, 3]), end=np.array([3, 4, 7, 2, 4]),
        probability=np.full(5, 0.5), states=np.zeros((5, 1)), deviations=np.ones((5, 1)),
    )  # fmt: skip
    chosen = np.array([0, 1, 0, 1, 1])
    assert types.per_frame(found, chosen, (3, 8)).tolist() == [
        [-1, -1, 0, 0, 1, 0, 0, 0],
        [-1, -1, 1, 1, 1, -1, -1, -1],
        [-1] * 8,
    ]
    summary = types.summarise(found, chosen, 3)
    assert summary.segments.tolist() == [2, 3, 0]
    assert summary.frames.tolist() == [5, 4, 0]
    assert [part.tolist() for part in summary.lengths] == [[2, 3], [1, 1, 2], []]
    assert summary.transitions.tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]
