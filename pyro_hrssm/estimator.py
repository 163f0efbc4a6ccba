"""The model as an estimator of scikit-learn's: it segments sequences, and keeps scikit-learn's conventions."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import Any, Literal, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_hrssm.config import DataConfig, HRSSMConfig, LeaveOneOut, TrainingConfig, flat_name
from pyro_hrssm.errors import found, lacking, require
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.run import segment_types
from pyro_hrssm.run.fitting import fit
from pyro_hrssm.run.segmenting import SegmentTable
from pyro_hrssm.run.trained import Run

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted
except ImportError:
    BaseEstimator, TransformerMixin = (
        lacking("HRSSMSegmenter needs scikit-learn: pip install 'pyro-hrssm[sklearn]'") for _ in range(2)
    )

PRESET = "preset"
"""What stands for a setting of the preset: None is a value that some settings have."""

_ALONE = threading.RLock()
"""Held while a model is used: Pyro's handlers and torch's random numbers are one for all threads, in which scikit-learn
may train estimators side by side."""

_NOT_SETTINGS = frozenset({"model", "frame_shape", "data", "data_root", "boundaries_mark"})
"""Fields that mean nothing here: a flat model has no segments, X has the shape and is the data, and y is not used."""


def _fields() -> dict[str, Any]:
    """The types of all settings by their names, which are those of :func:`pyro_hrssm.fit`."""
    hinted: dict[str, Any] = {}
    for kind in (HRSSMConfig, TrainingConfig, LeaveOneOut, DataConfig):
        hints = get_type_hints(kind)
        flat = flat_name if kind is LeaveOneOut else str
        hinted |= {flat(entry.name): hints[entry.name] for entry in dataclasses.fields(kind)}
    return {name: hint for name, hint in hinted.items() if name not in _NOT_SETTINGS}


SETTINGS = _fields()
"""The settings that are parameters of the estimator, with the types that configurations give them."""

# scikit-learn reads the names of the parameters from the signature, which a dataclass makes of the fields.
_Parameters: Any = dataclasses.make_dataclass(
    "HRSSMSegmenter",  # which errors name
    [
        ("preset", str, "auto"),
        ("types", int | Literal["auto"] | None, None),
        ("types_of", Literal["states", "frames"], "states"),
        ("random_state", int | np.random.RandomState | None, None),
        ("device", str, "auto"),
        ("verbose", bool, False),
        *((name, hint | Literal["preset"], PRESET) for name, hint in SETTINGS.items()),
    ],
    kw_only=True,
    eq=False,
    repr=False,
)


class HRSSMSegmenter(TransformerMixin, BaseEstimator, _Parameters):
    """Segments of sequences by an HRSSM: :func:`pyro_hrssm.fit` with the interface of scikit-learn's estimators.

    X is what `fit` takes: an array [N, T, D] of N sequences of T frames, an array [N, T, height, width, channels], or a
    list of recordings [T, D] or [T] of any lengths. A table [N, T] or [T, D] is refused, since it may mean either:
    `X[..., None]` makes N sequences of numbers of the one, and `X[None]` one recording of the other. NaN is missing. A
    fitted estimator is pickled with the arrays that it was trained on, as its run is.

    Example:
        >>> import numpy as np
        >>> import pyro_hrssm
        >>> X = np.random.default_rng(0).normal(20.0, 3.0, (40, 12, 2))  # 40 sequences of 12 frames of 2 numbers
        >>> segmenter = pyro_hrssm.HRSSMSegmenter(steps=2, hidden=8).fit(X)
        >>> segmenter
        HRSSMSegmenter(hidden=8, steps=2)
        >>> segmenter.predict(X).shape
        (40, 12)
        >>> segmenter.transform(X).shape
        (40, 12, 8)

    Arguments:
        preset: the settings that others start from, as of the command line: `auto` takes `segments`.
        types: number of types of segments, or `auto`: `predict` then gives the types of frames. None for no types.
        types_of: what types are clusters of: abstract `states`, or `frames`.
        random_state: scikit-learn's name of `seed`: a number, or a generator that draws one; None for `seed`'s own.
        device: `auto` takes a GPU where there is one.
        verbose: whether `fit` shows progress bars and prints scores.

    All other arguments are settings, under the names that they have in :class:`HRSSMConfig`, :class:`TrainingConfig`,
    :class:`LeaveOneOut` (whose `particles` are `elbo_particles`) and :class:`DataConfig`, which describe them. Each is
    `"preset"` for the value of the preset. As ever in scikit-learn, wrong values are refused by `fit`.
    """

    run_: Run
    """The trained run, which also forecasts, fills in, reports and saves."""
    n_features_in_: int
    """Entries of a frame."""

    @property
    def model_(self) -> StateSpaceModel:
        """The trained model, which takes scaled frames."""
        return self.run_.model

    def fit(self, X: Any, y: Any = None, *, mask: Any = None, lengths: Any = None, weights: Any = None) -> Any:
        """Train a model on sequences; some are held out, the share `held_out`, to choose and to score it.

        Arguments:
            y: not used.
            mask: [N, T], or [N, T, …] of entries, true where observed.
            lengths: [N] number of frames of padded sequences.
            weights: [N, T] or [N, T, …], the known relative precisions. Where X is a list, so may these be.

        Raises:
            InputError: where X or a parameter is wrong.
        """
        segment_types.asked(self.types, self.types_of)  # before a training that takes minutes
        with _ALONE:
            run = fit(
                self._array(X), mask, lengths=lengths, weights=weights,
                preset=self.preset, device=self.device, verbose=self.verbose, **self._settings(),
            )  # fmt: skip
            if self.types is not None:
                run.segment(types=self.types, types_of=self.types_of, progress=False)
        self.run_ = run
        self.n_features_in_ = math.prod(run.model.config.frame_shape)
        return self

    def predict(self, X: Any, *, mask: Any = None, lengths: Any = None, weights: Any = None) -> NDArray[np.int64]:
        """The segment of every frame, [N, T]: its type where `types` were asked for, else its number from 0.

        It is -1 past a sequence's end, and in the frames of a model's context.
        """
        table = self._table(X, mask, lengths, weights)
        return _painted(table, _numbers(table), -1) if table.types is None else table.types

    def fit_predict(
        self, X: Any, y: Any = None, *, mask: Any = None, lengths: Any = None, weights: Any = None
    ) -> NDArray[np.int64]:
        """:meth:`fit`, then :meth:`predict` on the same sequences."""
        beside = {"mask": mask, "lengths": lengths, "weights": weights}
        return self.fit(X, **beside).predict(X, **beside)

    def change_points(
        self, X: Any, *, mask: Any = None, lengths: Any = None, weights: Any = None
    ) -> list[NDArray[np.int64]]:
        """The first frames of each sequence's segments but its first one: N arrays, in ascending order."""
        table = self._table(X, mask, lengths, weights)
        opens = _numbers(table) > 0
        return [table["start"][opens & (table["sequence"] == row)] for row in range(len(table.boundaries))]

    def transform(self, X: Any, *, mask: Any = None, lengths: Any = None, weights: Any = None) -> NDArray[np.float64]:
        """The abstract state of every frame's segment, the mean of q(z | M, X): [N, T, Z], NaN where no segment is."""
        table = self._table(X, mask, lengths, weights, states=True)
        assert table.states is not None  # it was asked for
        return _painted(table, table.states, np.nan)

    def fit_transform(
        self, X: Any, y: Any = None, *, mask: Any = None, lengths: Any = None, weights: Any = None
    ) -> NDArray[np.float64]:
        """:meth:`fit`, then :meth:`transform` on the same sequences."""
        beside = {"mask": mask, "lengths": lengths, "weights": weights}
        return self.fit(X, **beside).transform(X, **beside)

    def score(self, X: Any, y: Any = None, *, mask: Any = None, lengths: Any = None, weights: Any = None) -> float:
        """Nats per sequence of the importance-weighted lower bound on log p(X): higher is better.

        As for scikit-learn's density estimators, y is not used. The bound is that of `pyro-hrssm evaluate`, of scaled
        frames, with `particles` particles and per window of long recordings: it compares settings of the same scaling,
        particles and windows.
        """
        X, particles = self._like_those_of_fit(X), self.run_.settings.training.particles
        with _ALONE:
            scores = self.run_.scores(X, mask, particles=particles, methods="none", lengths=lengths, weights=weights)
        return -scores.iwae_nats_per_sequence

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _settings(self) -> dict[str, Any]:
        """The settings that were given."""
        values = {name: getattr(self, name) for name in SETTINGS}
        given = {name: value for name, value in values.items() if not (isinstance(value, str) and value == PRESET)}
        if self.random_state is None:
            return given
        require("seed" not in given, "seed and random_state are one setting, found both")
        whole = isinstance(self.random_state, (int, np.integer))
        seed = self.random_state if whole else check_random_state(self.random_state).randint(2**31 - 1)
        return given | {"seed": seed}

    def _array(self, X: Any) -> Any:
        """X, where it is one array, checked as scikit-learn does; other forms have checks of their own."""
        if isinstance(X, (list, tuple, torch.Tensor)):
            return X
        known = hasattr(X, "__array__") or hasattr(X, "shape")
        require(known, f"X must be an array [N, T, …] or a list of recordings [T, …], found {found(X)}")
        return check_array(X, ensure_2d=False, allow_nd=True, ensure_all_finite=False, estimator=self, input_name="X")

    def _like_those_of_fit(self, X: Any) -> Any:
        check_is_fitted(self)
        X, own = self._array(X), self.n_features_in_
        entries = math.prod(X.shape[2:]) if isinstance(X, (np.ndarray, torch.Tensor)) and X.ndim > 2 else own
        name = type(self).__name__
        require(entries == own, f"X has {entries} features, but {name} is expecting {own} features as input")
        return X

    def _table(self, X: Any, mask: Any, lengths: Any, weights: Any, states: bool = False) -> SegmentTable:
        X, beside = self._like_those_of_fit(X), {"lengths": lengths, "weights": weights}
        with _ALONE:
            return self.run_.segment(X, mask, states=states, progress=False, **beside)


def _numbers(table: SegmentTable) -> NDArray[np.int64]:
    """[M] the number of each segment in its sequence, from 0."""
    sequence = table["sequence"]
    return np.arange(len(table)) - np.searchsorted(sequence, sequence)


def _painted(table: SegmentTable, values: NDArray[Any], fill: float) -> NDArray[Any]:
    """[N, T, …] the value [M, …] of every frame's segment."""
    result = np.full((*table.boundaries.shape, *values.shape[1:]), fill, values.dtype)
    for row, start, end, value in zip(table["sequence"], table["start"], table["end"], values, strict=True):
        result[row, start : end + 1] = value
    return result
