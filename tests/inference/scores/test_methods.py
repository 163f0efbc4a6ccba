"""Methods beside the model on data whose answer is known, and against every segmentation spelled out."""

import itertools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from pyro_hrssm import data
from pyro_hrssm.inference.scores import label_score, methods, score, tuned
from pyro_hrssm.inference.scores.methods import changes, markov, peaks, simple
from pyro_hrssm.inference.scores.methods.tuning import Candidate, Labelled, Segmentation, choose


def colours(num: int = 60, length: int = 3, noise: float = 0.0, seed: int = 1) -> Labelled:
    """Sequences of 13 frames whose segments have one length."""
    made = data.generate("colours", num, seed, num_frames=13, min_length=length, max_length=length, noise=noise)
    return Labelled(made["frames"], made["boundaries"], np.broadcast_to(np.arange(13) < 12, (num, 13)))


def levels(num: int = 80, seed: int = 1) -> tuple[Labelled, np.ndarray]:
    made = data.generate("levels", num, seed, num_frames=30, num_levels=4, min_length=4, max_length=10)
    acts = np.broadcast_to(np.arange(30) < 29, (num, 30))
    return Labelled(made["frames"], made["boundaries"], acts), made["labels"]


def f1_of(found: Any, both: Labelled) -> float:
    return score(found.boundaries, both.truth, both.acts).f1


def test_methods_find_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed lengths are every third frame; without noise or repeats every change can be seen."""
    monkeypatch.setattr(markov, "STATES", (3, 8))
    both = colours()
    results = {method.name: f1_of(method.find(both), both) for method in tuned(both)}
    rate = both.truth.sum() / both.acts.sum()
    assert results == {
        "always": pytest.approx(2 * rate / (1 + rate)),
        "never": 0.0,
        "every_k": 1.0,
        "frame_difference": 1.0,
        "pelt": 1.0,
        "kernel_rbf": 1.0,
        "gaussian_hmm": 1.0,
        "sticky_hmm": 1.0,
    }


def test_which_methods_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markov, "STATES", (2,))
    both = colours(10)
    assert tuple(method.name for method in tuned(both, "quick")) == methods.QUICK
    assert list(tuned(both, "none")) == []
    surprised = both._replace(surprise=np.zeros(both.truth.shape, np.float32))
    assert [method.name for method in tuned(surprised)][-1] == "surprise_peaks"
    assert methods.left_out("all", surprise=True) == methods.left_out("quick", surprise=False) == {}
    assert methods.left_out("all", surprise=False) == {"surprise_peaks": "needs a flat run: --flat RSSM_RUN"}


def test_a_method_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "find_spec", lambda name: None if name == "ruptures" else find_spec(name))
    assert [method.name for method in tuned(colours(10), "quick")] == list(methods.QUICK[:-1])
    missing = methods.left_out("all", surprise=True)
    assert set(missing) == {"pelt", "kernel_rbf"}
    assert missing["pelt"] == "needs ruptures: pip install 'pyro-hrssm[scores]'"


def test_parameters_are_chosen_on_the_tuning_data_alone() -> None:
    every_k = simple.every_k(colours(20))
    assert every_k.parameters == {"k": 3}
    assert every_k.find(colours(20, length=4)).boundaries[0].nonzero()[0].tolist() == [2, 5, 8, 11]


def test_parameters_are_chosen_within_the_margin() -> None:
    """Every fifth frame hits half of the true boundaries exactly; with a wide margin, fewer boundaries hit them all."""
    truth = np.zeros((2, 41), bool)
    truth[0, 4::10] = truth[1, 6::10] = True
    both = Labelled(np.zeros((2, 41, 1), np.float32), truth, np.broadcast_to(np.arange(41) < 40, truth.shape))
    assert simple.every_k(both).parameters == {"k": 5}
    method = simple.every_k(both, margin=4)
    assert method.parameters["k"] > 5
    assert score(method.find(both).boundaries, both.truth, both.acts, 4).f1_margin == 1.0


def test_types_are_chosen_by_accuracy_and_boundaries_by_f1() -> None:
    """One candidate has every boundary and no type that lasts; the other has the types of most frames."""
    labels = np.array([[0, 0, 0, 1, 1, 1, 0, 0]])
    truth = np.array([[0, 0, 1, 0, 0, 1, 0, 0]], bool)
    both = Labelled(np.zeros((1, 8, 1), np.float32), truth, np.arange(8)[None] < 7)
    exact = Segmentation(truth, np.array([[0, 0, 0, 1, 1, 1, 2, 2]]))
    lasting = Segmentation(np.roll(truth, 1, 1), np.array([[5, 5, 5, 5, 4, 4, 5, 5]]))
    candidates = [Candidate({"states": 3}, lambda data: exact), Candidate({"states": 2}, lambda data: lasting)]
    method = choose("made", both._replace(labels=labels), candidates)
    assert method.parameters == {"states": 3}
    assert method.types is candidates[1]
    assert choose("made", both, candidates).types is candidates[0], "unknown types choose nothing"
    assert choose("made", both._replace(labels=np.full_like(labels, -1)), candidates).types is candidates[0]
    assert simple.every_k(both).types is None


@pytest.mark.parametrize(
    ("kernel", "cost"),
    [
        ({"kernel": "linear"}, lambda part: ((part - part.mean(0)) ** 2).sum()),
        (
            {"kernel": "rbf", "params": {"gamma": 0.5}},
            lambda part: len(part) - np.exp(-0.5 * ((part[:, None] - part) ** 2).sum(-1)).sum() / len(part),
        ),
    ],
)
def test_change_points_are_the_least_cost_segmentation(
    kernel: dict[str, Any], cost: Callable[[np.ndarray], float]
) -> None:
    """Against every segmentation of a short sequence."""
    rng = np.random.default_rng(0)
    frames = np.cumsum(rng.normal(size=(6, 7, 2)) * (rng.random((6, 7, 1)) < 0.5), 1).astype(np.float32)
    acts = np.broadcast_to(np.arange(7) < 6, (6, 7))
    found = changes.change_points(0.7, **kernel)(Labelled(frames, np.zeros((6, 7), bool), acts)).boundaries
    for sequence, boundaries in zip(frames.astype(np.float64), found, strict=True):
        costs = {}
        for path in itertools.product((False, True), repeat=6):
            parts = np.split(sequence, np.flatnonzero(path) + 1)
            costs[path] = sum(cost(part) + 0.7 for part in parts)
        # ruptures takes exp(-d) for d below 0.01 as exp(-0.01).
        assert costs[tuple(boundaries[:6])] == pytest.approx(
            min(costs.values()), abs=1e-9 if "params" not in kernel else 0.08
        )


@pytest.fixture
def few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markov, "STATES", (2, 4))
    monkeypatch.setattr(markov, "STARTS", 2)


@pytest.mark.usefixtures("few_states")
def test_hidden_markov_models_find_levels_and_their_types() -> None:
    (tuning, _), (scored, labels) = levels(seed=1), levels(seed=2)
    for method in markov.hidden_markov(tuning):
        assert method.parameters["states"] == 4
        found = method.find(scored)
        assert f1_of(found, scored) > 0.95
        assert label_score(found.labels, labels, np.ones(labels.shape, bool)).nmi > 0.95
        changed = found.labels[:, 1:] != found.labels[:, :-1]
        assert np.array_equal(found.boundaries[:, :-1], changed)


def test_a_sticky_model_stays_longer() -> None:
    tuning, _ = levels()
    frames, lengths = markov._shortened(tuning, lambda values: values.astype(np.float64))
    plain = markov._plain(frames, lengths, 6, 0)
    sticky = markov._sticky(frames, lengths, plain, 10.0)
    assert np.diag(sticky.transmat_).min() > 10 / 11
    assert np.diag(sticky.transmat_).mean() > np.diag(plain.transmat_).mean()


@pytest.mark.usefixtures("few_states")
def test_hidden_markov_models_see_no_frame_past_the_end() -> None:
    tuning, _ = levels(40)
    acts = np.arange(30) < np.resize([29, 20, 0], 40)[:, None]
    inside = np.arange(30) <= acts.sum(1)[:, None]
    cut = tuning._replace(acts=acts, frames=np.where(inside[..., None], tuning.frames, np.float32(1e9)))
    for method in markov.hidden_markov(cut):
        found = method.find(cut)
        assert found.labels is not None
        assert np.array_equal(found.labels >= 0, inside)
        assert not (found.boundaries & ~acts).any()
        assert f1_of(found, cut) > 0.8


@pytest.mark.usefixtures("few_states")
def test_wide_frames_are_reduced_for_hidden_markov_models() -> None:
    """The same levels, spread over 300 entries, most directions of which are constant."""
    tuning, _ = levels(40)
    spread = np.random.default_rng(0).normal(size=(tuning.frames.shape[-1], 300)).astype(np.float32)
    wide = tuning._replace(frames=tuning.frames @ spread)
    assert markov._reduction(wide)(wide.frames[0]).shape == (30, 16)
    for method, narrow in zip(markov.hidden_markov(wide), markov.hidden_markov(tuning), strict=True):
        assert method.parameters == narrow.parameters
        assert f1_of(method.find(wide), wide) == pytest.approx(f1_of(narrow.find(tuning), tuning), abs=0.01)


def test_hidden_markov_models_are_fitted_on_pieces_from_anywhere_in_a_sequence() -> None:
    """Of each of 10 long sequences one piece, in order, within the sequence; of short ones all frames."""
    frames = np.arange(10 * 2000, dtype=np.float32).reshape(10, 2000, 1)
    acts = np.arange(2000) < np.resize([1999, 1499, 99], 10)[:, None]
    pieces, lengths = markov._shortened(Labelled(frames, acts, acts), lambda values: values)
    assert lengths == np.resize([500, 500, 100], 10).tolist()
    starts = []
    for n, piece in enumerate(np.split(pieces[:, 0], np.cumsum(lengths)[:-1])):
        assert np.array_equal(piece, np.arange(piece[0], piece[0] + len(piece)))
        assert frames[n, 0, 0] <= piece[0]
        assert piece[-1] <= frames[n, acts[n].sum(), 0]
        starts.append(piece[0] - frames[n, 0, 0])
    assert len(set(starts)) == 8, "the three short sequences alone begin at their first frame"


@pytest.mark.usefixtures("few_states")
def test_a_constant_sequence_needs_one_state() -> None:
    both = Labelled(np.ones((3, 8, 2), np.float32), np.zeros((3, 8), bool), np.broadcast_to(np.arange(8) < 7, (3, 8)))
    for method in tuned(both):
        method.find(both)
    assert markov.hidden_markov(both)[1].parameters["states"] == 1


def test_peaks_are_maxima_of_surprise_with_their_prominence() -> None:
    values = np.array([[1, 5, 2, 4, 3, 9, 9.5, 0], [2, 1, 3, 0, 7, 0, 0, 0]], np.float32)
    acts = np.arange(8) < np.array([[7], [3]])
    both = Labelled(np.zeros((2, 8, 1), np.float32), np.zeros((2, 8), bool), acts, values)
    heights, prominences = peaks.heights(both), peaks.prominences(both)
    # Positions that no frame follows are no peaks; those at either end may be.
    assert {(n, t): heights[n, t] for n, t in zip(*np.nonzero(np.isfinite(heights)), strict=True)} == {
        (0, 1): 5, (0, 3): 4, (0, 6): 9.5, (1, 0): 2, (1, 2): 3,
    }  # fmt: skip
    assert np.array_equal(np.isfinite(heights), np.isfinite(prominences))
    # 4 stands 2 above the dip before it, but only 1 above the one after it; 5 stands 3 above the dip before 9.
    assert prominences[0, [1, 3]].tolist() == [3, 1]


def test_surprise_that_peaks_at_the_boundaries_finds_them_all() -> None:
    tuning = colours(40)
    rng = np.random.default_rng(0)
    surprise = (rng.normal(size=tuning.truth.shape) + 20 * tuning.truth).astype(np.float32)
    both = tuning._replace(surprise=surprise)
    assert f1_of(peaks.surprise_peaks(both).find(both), both) == 1.0
