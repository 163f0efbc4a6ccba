"""Public names of the pictures in :mod:`pyro_hrssm.reports`."""

from pyro_hrssm.reports.drawing import save
from pyro_hrssm.reports.plotting import (
    Pixels,
    abstract_states,
    animate,
    boundary_probabilities,
    boundary_raster,
    film_strip,
    pixels,
    reconstructions,
    segment_lengths,
    training_curves,
)

__all__ = [
    "Pixels",
    "abstract_states",
    "animate",
    "boundary_probabilities",
    "boundary_raster",
    "film_strip",
    "pixels",
    "reconstructions",
    "save",
    "segment_lengths",
    "training_curves",
]
