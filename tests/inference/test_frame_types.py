"""Types of segments by their frames, against likelihoods worked out frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from pyro_hrssm import HRSSM, HRSSMConfig
from pyro_hrssm.data import Scaling, Sequences, batches, generate
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference import frame_types
from pyro_hrssm.inference.frame_types import FrameTypes
from pyro_hrssm.inference.segments import Segments
from pyro_hrssm.inference.types import per_frame


def model_of(shape: tuple[int, ...], noise: float = 0.03) -> HRSSM:
    config = HRSSMConfig(
        frame_shape=shape, hidden=8, abstract_size=1, observation_size=1, likelihood="normal", noise_scale=noise
    )
    return HRSSM(config).eval()


def true_segments(boundaries: np.ndarray) -> Segments:
    """The segments of boundaries [N, T], with states of no meaning."""
    rows = []
    for number, row in enumerate(boundaries):
        stops = [*np.flatnonzero(row[:-1]), len(row) - 1]
        rows += [(number, start, stop) for start, stop in zip([0, *(np.array(stops[:-1]) + 1)], stops, strict=True)]
    sequence, start, end = np.array(rows).T
    nothing = np.zeros((len(rows), 1))
    return Segments(sequence, start, end, np.full(len(rows), np.nan), nothing, nothing + 1)


def purity(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of frames whose true type is the most frequent one of their type."""
    return float(sum(np.bincount(truth[found == kind]).max() for kind in np.unique(found)) / found.size)


@pytest.mark.parametrize(("name", "number"), [("modes", 3), ("bounce", 2), ("levels", 6), ("colours", 8)])
def test_true_segments_get_their_true_types(name: str, number: int) -> None:
    """Oscillations of any phase, flights by their direction, levels and colours; new sequences get the same types."""
    made = generate(name, 200, 0)
    sequences = Sequences(
        made["frames"], boundaries=made["boundaries"], scaling=Scaling(0.0, float(made["frames"].std()))
    )
    model, segments = model_of(made["frames"].shape[2:]), true_segments(made["boundaries"])
    fitted = frame_types.fit(model, segments, sequences, number)
    assert fitted.number == number
    assert (np.diff(fitted.weights) <= 0).all()
    new = generate(name, 100, 1)
    held_out = Sequences(new["frames"], scaling=sequences.scaling)
    own = true_segments(new["boundaries"])
    chosen, probability = frame_types.assign(fitted, own, held_out)
    found = per_frame(own, chosen, new["labels"].shape)
    assert purity(found.ravel(), new["labels"].ravel()) > 0.97
    assert 0.95 < probability.mean() <= 1


def test_probabilities_are_bayes_rule_over_all_frames_of_a_segment() -> None:
    random = np.random.default_rng(0)
    frames, mask = random.standard_normal((3, 6, 2)).astype(np.float32), np.ones((3, 6), bool)
    mask[1, 1] = mask[2, 4:] = False
    segments = Segments(
        sequence=np.array([0, 0, 1, 2]), start=np.array([0, 4, 0, 0]), end=np.array([3, 5, 5, 3]),
        probability=np.full(4, np.nan), states=np.zeros((4, 1)), deviations=np.ones((4, 1)),
    )  # fmt: skip
    root = random.standard_normal((2, 4, 4))
    covariances = root @ root.transpose(0, 2, 1) + np.eye(4)
    means, weights = random.standard_normal((2, 4)), np.array([0.7, 0.3])
    types = FrameTypes(weights, means, covariances, np.array([0.5, -0.5]), np.eye(2))
    chosen, probability = frame_types.assign(types, segments, Sequences(frames, mask))
    centred = frames - np.array([0.5, -0.5])
    centred[1, 1] = centred[1, 0]  # a missing frame repeats the one before it, and does not count itself
    for place, (row, start, end) in enumerate(zip(*segments[:3], strict=True)):
        part = centred[row, start : end + 1]
        change = np.diff(part, axis=0)
        values = np.concatenate([part, np.concatenate([change[:1], change])], 1)[mask[row, start : end + 1]]
        fits = [multivariate_normal(means[k], covariances[k]).logpdf(values).sum() for k in range(2)]
        joint = np.log(weights) + fits
        expected = np.exp(joint - np.logaddexp(*joint))
        assert chosen[place] == expected.argmax()
        assert probability[place] == pytest.approx(expected.max(), rel=1e-9)


@pytest.mark.parametrize("kind", [bool, np.float32])
def test_a_missing_entry_repeats_the_one_before_it_in_its_segment_or_the_centre(kind: type) -> None:
    """A frame that is observed in part counts; nothing is carried over from the segment before."""
    random = np.random.default_rng(0)
    frames, weights = random.standard_normal((1, 6, 2)).astype(np.float32), np.full((1, 6, 2), 2).astype(kind)
    weights[0, [2, 3, 4], [1, 1, 0]] = 0
    segments = true_segments(np.array([[False, False, False, True, False, True]]))
    centre = np.array([0.5, -0.5])
    filled = frames.copy()
    filled[0, 2:4, 1] = frames[0, 1, 1]
    filled[0, 4, 0] = centre[0]
    root = random.standard_normal((2, 4, 4))
    types = FrameTypes(
        np.array([0.7, 0.3]), random.standard_normal((2, 4)), root @ root.transpose(0, 2, 1) + np.eye(4), centre,
        np.eye(2),
    )  # fmt: skip
    found = frame_types.assign(types, segments, Sequences(frames, weights=weights))
    expected = frame_types.assign(types, segments, Sequences(filled))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)  # float32
    model, random_segments = model_of((2,)), true_segments(np.ones((1, 6), bool))
    fitted = frame_types.fit(model, random_segments, Sequences(frames, weights=weights), 1)
    known = np.where(weights > 0, frames, np.nan)
    np.testing.assert_allclose(fitted.centre, np.nanmean(known, axis=(0, 1)), rtol=1e-6)


def test_images_are_seen_along_their_principal_axes_and_single_frames_count() -> None:
    """Segments of one frame have no change; two patterns of 36 pixels are told apart, the same way every time."""
    random = np.random.default_rng(0)
    patterns, labels = random.standard_normal((2, 6, 6, 1)), random.integers(2, size=(60, 5))
    frames = (patterns[labels] + 0.3 * random.standard_normal((60, 5, 6, 6, 1))).astype(np.float32)
    sequences, segments = Sequences(frames), true_segments(np.ones((60, 5), bool))
    model = model_of((6, 6, 1))
    fitted, again = (frame_types.fit(model, segments, sequences, 2) for _ in range(2))
    for one, other in zip(fitted, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert fitted.axes.shape == (36, 8)
    np.testing.assert_allclose(fitted.axes.T @ fitted.axes, np.eye(8), atol=1e-6)
    chosen, _ = frame_types.assign(fitted, segments, sequences)
    found = per_frame(segments, chosen, labels.shape)
    assert purity(found.ravel(), labels.ravel()) == 1


@pytest.mark.parametrize("seen", [1, 5, 7])
def test_fewer_frames_than_axes_have_as_many_axes(seen: int) -> None:
    frames = np.random.default_rng(0).standard_normal((1, 8, 20)).astype(np.float32)
    mask = np.arange(8)[None] < seen
    ends = np.zeros((1, 8), bool)
    segments = true_segments(ends)._replace(end=np.array([seen - 1]))
    fitted = frame_types.fit(model_of((20,)), segments, Sequences(frames, mask), 1)
    assert fitted.axes.shape == (20, seen)
    np.testing.assert_allclose(fitted.axes.T @ fitted.axes, np.eye(seen), atol=1e-6)  # float64 of a random start
    assert frame_types.assign(fitted, segments, Sequences(frames, mask))[0].tolist() == [0]


def test_axes_are_those_of_a_batch_that_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SEQUENCES_AT_ONCE", 1)
    frames, mask = np.random.default_rng(0).standard_normal((2, 30, 20)).astype(np.float32), np.ones((2, 30), bool)
    mask[0] = False
    segments = true_segments(np.zeros((2, 30), bool)).at(np.array([False, True]))
    assert frame_types.fit(model_of((20,)), segments, Sequences(frames, mask), 1).axes.shape == (20, 8)


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
def test_noise_free_frames_have_types(likelihood: str) -> None:
    """Equal frames have covariance 0: the emission's noise, or a tenth of the range, is the floor."""
    frames = np.repeat([[0.0], [0.5], [1.0]], 20, 0)[:, None] * np.ones((60, 4, 1), np.float32)
    config = HRSSMConfig(frame_shape=(1,), hidden=8, abstract_size=1, observation_size=1, likelihood=likelihood)  # type: ignore[arg-type]
    model, segments = HRSSM(config).eval(), true_segments(np.zeros((60, 4), bool))
    if likelihood == "normal":
        torch.nn.init.constant_(model.emission.log_noise, -3.0)
    fitted = frame_types.fit(model, segments, Sequences(frames.astype(np.float32)), 3)
    np.testing.assert_allclose(sorted(fitted.means[:, 0] + fitted.centre[0]), [0, 0.5, 1], atol=0.01)
    floor = model.emission.noise(torch.zeros(1)).item() if likelihood == "normal" else frame_types.NOISE
    np.testing.assert_allclose(fitted.covariances, floor**2 * np.eye(2)[None].repeat(3, 0), rtol=1e-5, atol=1e-9)


def test_wrong_numbers_of_types() -> None:
    segments, sequences = true_segments(np.zeros((3, 4), bool)), Sequences(np.random.default_rng(0).random((3, 4, 1)))
    for number in (0, 4):
        with pytest.raises(InputError, match=f"from 1 to the 3 training segments, found {number}"):
            frame_types.fit(model_of((1,)), segments, sequences, number)
    assert frame_types.fit(model_of((1,)), segments, sequences, 3).number == 3
