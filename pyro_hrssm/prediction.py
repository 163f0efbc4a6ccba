"""Public names of :mod:`pyro_hrssm.inference.prediction`."""

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
    "forecast",
    "infill",
    "jump",
    "reconstruct",
    "sample",
    "segment",
]
