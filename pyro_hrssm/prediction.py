"""Public names of :mod:`pyro_hrssm.inference.prediction` and :mod:`pyro_hrssm.inference.forecasts`."""

from pyro_hrssm.inference.forecasts import crps, quantiles
from pyro_hrssm.inference.prediction import (
    Prediction,
    Segmentation,
    Settings,
    forecast,
    infill,
    jump,
    reconstruct,
    sample,
    segment,
)

__all__ = [
    "Prediction",
    "Segmentation",
    "Settings",
    "crps",
    "forecast",
    "infill",
    "jump",
    "quantiles",
    "reconstruct",
    "sample",
    "segment",
]
