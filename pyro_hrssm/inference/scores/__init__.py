"""Scores of segments against the truth, of a model and of methods beside it."""

from pyro_hrssm.inference.scores.boundaries import Flags, Score, score
from pyro_hrssm.inference.scores.methods import Labelled, baselines
from pyro_hrssm.inference.scores.table import BoundaryScores

__all__ = ["BoundaryScores", "Flags", "Labelled", "Score", "baselines", "score"]
