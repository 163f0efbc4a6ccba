"""Public names of the pictures in :mod:`pyro_hrssm.reports`."""

from pyro_hrssm.reports.animation import animate
from pyro_hrssm.reports.charts import (
    abstract_states,
    boundary_probabilities,
    boundary_raster,
    segment_lengths,
    training_curves,
)
from pyro_hrssm.reports.drawing import save
from pyro_hrssm.reports.strips import Pixels, film_strip, pixels, reconstructions

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
