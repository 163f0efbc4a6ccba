"""The model as a segmenter of aeon's: it segments one series, and keeps aeon's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.errors import lacking
from pyro_hrssm.estimator import HRSSMSegmenter

try:
    from aeon.segmentation.base import BaseSegmenter
    from sklearn.base import clone
except ImportError:
    BaseSegmenter = lacking("AeonSegmenter needs aeon: pip install 'pyro-hrssm[aeon]'")


class AeonSegmenter(BaseSegmenter):
    """Change points of one series by an HRSSM: a :class:`pyro_hrssm.HRSSMSegmenter` with aeon's interface.

    `fit` trains on windows of the series, and `predict` gives the first time points of all segments but the first one,
    as aeon's other segmenters do; where the estimator has types, it gives the type of every time point instead. As
    ever in aeon, a series is an array [T], [D, T] or, with `axis=0`, [T, D]. NaN is missing.

    Arguments:
        estimator: the segmenter whose clone is trained; None for one of the preset's settings.
    """

    _tags = {
        "X_inner_type": "np.ndarray",
        "capability:missing_values": True,
        "capability:multivariate": True,
        "fit_is_empty": False,
        "returns_dense": True,
    }

    def __init__(self, estimator: HRSSMSegmenter | None = None) -> None:
        self.estimator = estimator
        super().__init__(axis=0, n_segments=None)  # the number is found
        if estimator is not None and estimator.types is not None:
            self.set_tags(returns_dense=False)

    def _fit(self, X: NDArray[Any], y: Any = None) -> AeonSegmenter:
        """Train on one series [T, D]; y is not used."""
        chosen = HRSSMSegmenter() if self.estimator is None else clone(self.estimator)
        self.estimator_ = chosen.fit(X[None])
        return self

    def _predict(self, X: NDArray[Any]) -> NDArray[np.int64]:
        """The change points of one series [T, D], or its types [T]."""
        fitted = self.estimator_
        return fitted.change_points(X[None])[0] if fitted.types is None else fitted.predict(X[None])[0]

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        """Settings that are trained within a second, for aeon's own checks."""
        tiny = {"hidden": 4, "abstract_size": 2, "observation_size": 2, "batch_size": 8, "steps": 1}
        return {"estimator": HRSSMSegmenter(**tiny, particles=2, window_length=4, max_length=8, device="cpu")}
