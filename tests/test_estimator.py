"""The estimator: scikit-learn's own checks, its tools around it, and the run of `pyro_hrssm.fit` within it."""

import dataclasses
import doctest
import gc
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import pyro_hrssm
from pyro_hrssm import DataConfig, HRSSMConfig, InputError, LeaveOneOut, TrainingConfig, aeon, estimator, fit
from pyro_hrssm.config import flat_name
from pyro_hrssm.estimator import HRSSMSegmenter
from pyro_hrssm.model.hrssm import HRSSM

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

TINY: dict[str, Any] = {
    "hidden": 4, "abstract_size": 2, "observation_size": 2, "batch_size": 8, "particles": 2, "steps": 1,
    "device": "cpu",
}  # fmt: skip
LENGTHS = [9, 6, 9, 4, 7, 9, 5, 9, 3, 9, 8, 9]


def sequences() -> np.ndarray:
    return 100 + 7 * np.random.default_rng(0).normal(size=(12, 9, 3))


def recordings() -> list[np.ndarray]:
    return [frames[:length] for frames, length in zip(sequences(), LENGTHS, strict=True)]


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """What is there already is no garbage: a new model beside a living one has it collected, a second each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def fitted() -> HRSSMSegmenter:
    """With segments of at most 4 frames, so that there are several."""
    return HRSSMSegmenter(**TINY, max_length=4).fit(recordings())


# scikit-learn's own checks.


def repeated(X: Any) -> Any:
    """A table [N, D], as scikit-learn's checks have it, as sequences [N, 4, D] that repeat its rows."""
    if hasattr(X, "toarray") or np.asarray(X).ndim != 2:
        return X
    return np.repeat(np.asarray(X)[:, None], 4, axis=1)


class OfRows(HRSSMSegmenter):
    """The estimator as one of tables, on which alone scikit-learn has checks of behaviour."""

    def fit(self, X: Any, y: Any = None) -> Any:
        return super().fit(repeated(X), y)

    def predict(self, X: Any) -> Any:
        return super().predict(repeated(X))

    def transform(self, X: Any) -> Any:
        return super().transform(repeated(X))

    def fit_predict(self, X: Any, y: Any = None) -> Any:
        return self.fit(X, y).predict(X)

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        return self.fit(X, y).transform(X)

    def score(self, X: Any, y: Any = None) -> Any:
        return super().score(repeated(X), y)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


OWN_WORDS = {
    "check_estimators_empty_data_messages": "wants words of a table's columns; ours are 'must not be empty'",
    "check_fit2d_1sample": "wants '1 sample'; ours are 'a split needs at least 2 sequences, found 1'",
    "check_fit2d_predict1d": "wants 'Reshape your data'; ours name the shapes that frames may have",
}
"""Checks that fail for the words of an error alone."""

QUICK = (
    "check_no_attributes_set_in_init", "check_parameters_default_constructible", "check_get_params_invariance",
    "check_set_params", "check_estimator_repr", "check_estimators_unfitted", "check_mixin_order",
    "check_valid_tag_types", "check_do_not_raise_errors_in_init_or_set_params", "check_estimator_sparse_array",
    "check_complex_data", "check_n_features_in_after_fitting", "check_methods_subset_invariance",
    "check_dict_unchanged", *OWN_WORDS,
)  # fmt: skip
"""Those that need at most one training."""


def checks() -> Iterator[Any]:
    for numbered, (made, check) in enumerate(estimator_checks_generator(OfRows(**TINY))):
        name = check.func.__name__ if hasattr(check.func, "__name__") else check.func.func.__name__
        marks = [] if name in QUICK else [pytest.mark.slow]
        if name in OWN_WORDS:
            marks.append(pytest.mark.xfail(reason=OWN_WORDS[name], raises=AssertionError))
        yield pytest.param(made, check, marks=marks, id=f"{numbered}-{name}")


@pytest.mark.usefixtures("no_figures")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("made", "check"), list(checks()))
def test_checks_of_scikit_learn(made: Any, check: Any) -> None:
    check(made)


def test_scikit_learn_knows_that_input_has_three_dimensions() -> None:
    with pytest.warns(SkipTestWarning, match="three_d_array=True"):
        check_estimator(HRSSMSegmenter(**TINY))


# Parameters.


def test_every_setting_is_a_parameter_whose_default_is_the_presets() -> None:
    fields = [entry.name for kind in (HRSSMConfig, TrainingConfig, DataConfig) for entry in dataclasses.fields(kind)]
    fields += [flat_name(entry.name) for entry in dataclasses.fields(LeaveOneOut)]
    own = {"preset", "types", "types_of", "random_state", "device", "verbose"}
    without = {"model", "frame_shape", "data", "data_root", "boundaries_mark"}
    parameters = inspect.signature(HRSSMSegmenter).parameters
    assert set(parameters) == set(HRSSMSegmenter().get_params()) == {*fields, *own} - without
    assert {parameters[name].default for name in parameters.keys() - own} == {"preset"}
    assert repr(HRSSMSegmenter(max_segments=None, hidden=8)) == "HRSSMSegmenter(hidden=8, max_segments=None)"
    with pytest.raises(TypeError, match=r"HRSSMSegmenter.*unexpected keyword argument 'hiden'"):
        HRSSMSegmenter(hiden=8)


@pytest.mark.usefixtures("no_figures")
def test_it_trains_the_run_of_fit() -> None:
    settings = {"max_segments": None, "max_length": 3, "credit": np.float64(0.5), "window_length": None, "seed": 5}
    whole = fit(recordings(), verbose=False, **TINY, **settings)
    made = HRSSMSegmenter(**TINY, **settings).fit(recordings())
    for one in (made, clone(made).fit(recordings()), pickle.loads(pickle.dumps(made))):
        assert one.run_.settings == whole.settings
        assert one.run_.evaluation == whole.evaluation
        assert all(torch.equal(one.run_.loaded.tensors[key], value) for key, value in whole.loaded.tensors.items())
    assert made.n_features_in_ == 3
    assert isinstance(made.model_, HRSSM)


@pytest.mark.usefixtures("no_figures")
def test_none_is_a_value_and_not_the_presets() -> None:
    def limit(**given: Any) -> Any:
        return HRSSMSegmenter(**TINY, preset="rows", **given).fit(sequences()).model_.config.max_segments

    assert (limit(), limit(max_segments=None), limit(max_segments=2, max_length=9)) == (5, None, 2)


@pytest.mark.usefixtures("no_figures")
def test_random_state_is_the_seed() -> None:
    def seed(**given: Any) -> int:
        return HRSSMSegmenter(**TINY, **given).fit(sequences()).run_.settings.training.seed

    assert (seed(), seed(seed=3), seed(random_state=3), seed(random_state=np.int64(3))) == (1, 3, 3, 3)
    drawn = [seed(random_state=np.random.RandomState(0)) for _ in range(2)]
    assert drawn[0] == drawn[1] == np.random.RandomState(0).randint(2**31 - 1)


# What it finds.


def test_predictions_are_the_runs_segments(fitted: HRSSMSegmenter) -> None:
    table = fitted.run_.segment(recordings(), progress=False)
    found, points = fitted.predict(recordings()), fitted.change_points(recordings())
    assert (found.dtype, found.shape) == (np.int64, (12, 9))
    assert found.max() > 0
    for row, length in enumerate(LENGTHS):
        opened = np.r_[False, table.boundaries[row, : length - 1]]
        np.testing.assert_array_equal(found[row, :length], opened.cumsum())
        np.testing.assert_array_equal(found[row, length:], -1)
        np.testing.assert_array_equal(points[row], np.flatnonzero(opened))


def test_the_context_belongs_to_no_segment() -> None:
    made = HRSSMSegmenter(**TINY, context=2, max_length=3).fit(sequences())
    found = made.predict(sequences())
    assert (found[:, :2] == -1).all()
    assert (found[:, 2] == 0).all()
    assert all(points.min() > 2 for points in made.change_points(sequences()))
    assert np.isnan(made.transform(sequences())).any(axis=2).tolist() == (found == -1).tolist()


def test_states_are_those_that_q_infers_at_first_frames(fitted: HRSSMSegmenter) -> None:
    X = sequences()
    states, found = fitted.transform(X), fitted.predict(X)
    assert states.shape == (12, 9, 2)
    run = fitted.run_
    scaled = torch.as_tensor(run.scaling.apply(X), dtype=torch.float32)
    boundaries = torch.from_numpy(run.segment(X, progress=False).boundaries)
    with torch.no_grad():
        means = run.model.abstract_posterior(scaled, None, boundaries)[0].double().numpy()
    for row in range(len(X)):
        for number in range(found[row].max() + 1):
            (places,) = np.nonzero(found[row] == number)
            np.testing.assert_allclose(states[row, places], means[row, [places[0]] * len(places)], rtol=1e-5, atol=1e-6)
    assert np.isnan(fitted.transform(recordings())[8, 3:]).all()


@pytest.mark.usefixtures("no_figures")
def test_types_are_predicted_where_they_were_asked_for() -> None:
    made = HRSSMSegmenter(**TINY, max_length=3, types=2, types_of="frames").fit(recordings())
    found = made.predict(recordings())
    np.testing.assert_array_equal(found, made.run_.segment(recordings(), progress=False).types)
    assert set(np.unique(found)) == {-1, 0, 1}
    assert made.run_.types.wanted == (2, "frames")


def test_the_score_is_the_bound_of_evaluate(fitted: HRSSMSegmenter) -> None:
    scores = fitted.run_.scores(recordings(), particles=2, methods="none")
    assert fitted.score(recordings()) == fitted.score(recordings(), np.zeros(12)) == -scores.iwae_nats_per_sequence


@pytest.mark.usefixtures("no_figures")
def test_arrays_beside_x_go_with_every_call() -> None:
    X, mask = sequences(), np.random.default_rng(1).random((12, 9)) < 0.8
    mask[:, 0] = True
    gaps = np.where(mask[..., None], X, np.nan)
    made = HRSSMSegmenter(**TINY, max_length=4)
    expected = made.fit(gaps)
    predicted, states, score = expected.predict(gaps), expected.transform(gaps), expected.score(gaps)
    other = clone(made)
    np.testing.assert_array_equal(other.fit_predict(X, mask=mask), predicted)
    np.testing.assert_array_equal(other.transform(X, mask=mask), states)
    np.testing.assert_array_equal(other.fit_transform(X, mask=mask), states)
    assert other.score(X, mask=mask) == score != other.score(X)
    ends = [points.tolist() for points in other.change_points(X, lengths=np.array(LENGTHS))]
    assert ends == [points.tolist() for points in other.change_points(recordings())]


# scikit-learn's tools around it.


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("X", [sequences(), recordings()], ids=["array", "list"])
def test_a_grid_is_searched_by_the_bound(X: Any) -> None:
    mask = np.ones((12, 9))
    made = HRSSMSegmenter(**TINY, learning_rate=0.05, warmup_steps=0)
    search = GridSearchCV(made, {"steps": np.array([1, 8]), "hidden": [4]}, cv=2)
    search.fit(X, **({} if isinstance(X, list) else {"mask": mask}))
    assert search.best_params_["steps"] == 8
    scores = search.cv_results_["mean_test_score"]
    assert scores[1] > scores[0]
    assert search.score(X) == search.best_estimator_.score(X)


@pytest.mark.usefixtures("no_figures")
def test_estimators_train_in_threads_as_one_after_the_other() -> None:
    def score(steps: int) -> float:
        return HRSSMSegmenter(**(TINY | {"steps": steps})).fit(sequences()).score(sequences())

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(score, (3, 4))) == [score(3), score(4)]


# What is wrong.


@pytest.mark.parametrize(
    ("X", "given", "message"),
    [
        (sequences()[0], {}, r"frames may mean two things, found shape \[9, 3\]"),
        (None, {}, "X must be an array .* found None"),
        ("levels", {}, "X must be an array .* found 'levels'"),
        ({"frames": sequences()}, {}, "X must be an array"),
        (sequences(), {"hidden": 0}, "hidden must be at least 1, found 0"),
        (sequences(), {"preset": "own"}, "preset must be one of"),
        (sequences(), {"types": 0}, "types must be at least 1 or auto, found 0"),
        (sequences(), {"types": "auto", "types_of": "frames"}, "types_of frames needs a number"),
        (sequences(), {"types_of": "frames"}, "types_of frames needs a number of types, found none"),
        (sequences(), {"seed": 1, "random_state": 1}, "seed and random_state are one setting, found both"),
        (sequences(), {"boundary_rate": 0.2, "elbo": "trace"}, "boundary_rate needs elbo leave_one_out"),
    ],
)
@pytest.mark.usefixtures("no_figures")
def test_fit_refuses_in_one_line(X: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HRSSMSegmenter(**(TINY | given)).fit(X)


@pytest.mark.parametrize("method", ["predict", "transform", "change_points", "score"])
def test_every_method_needs_fit_and_frames_like_those_of_fit(fitted: HRSSMSegmenter, method: str) -> None:
    with pytest.raises(NotFittedError):
        getattr(HRSSMSegmenter(), method)(sequences())
    with pytest.raises(InputError, match="X has 2 features, but HRSSMSegmenter is expecting 3 features as input"):
        getattr(fitted, method)(sequences()[..., :2])
    with pytest.raises(InputError, match="X must be an array"):
        getattr(fitted, method)(None)


@pytest.mark.parametrize(
    ("module", "name", "missing", "message"),
    [(estimator, "HRSSMSegmenter", "sklearn.base", r"scikit-learn: pip install 'pyro-hrssm\[sklearn\]'"),
     (aeon, "AeonSegmenter", "aeon.segmentation.base", r"aeon: pip install 'pyro-hrssm\[aeon\]'")],
    ids=["sklearn", "aeon"],
)  # fmt: skip
def test_without_the_package_it_can_be_imported_and_says_what_to_install(
    module: Any, name: str, missing: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing.partition(".")[0], None)
    monkeypatch.setitem(sys.modules, missing, None)
    spec = importlib.util.spec_from_file_location("without", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    with pytest.raises(InputError, match=message):
        getattr(again, name)()


def test_the_example_runs() -> None:
    found = doctest.testmod(estimator)
    assert found.attempted > 4
    assert found.failed == 0
    assert pyro_hrssm.HRSSMSegmenter is HRSSMSegmenter
