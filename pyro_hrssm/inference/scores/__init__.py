"""Scores of segments against the truth, of a model and of methods beside it."""

from pyro_hrssm.inference.scores.boundaries import Flags, Score, score
from pyro_hrssm.inference.scores.labels import LabelScore, label_score
from pyro_hrssm.inference.scores.methods import tuned
from pyro_hrssm.inference.scores.methods.tuning import Labelled
from pyro_hrssm.inference.scores.permutation import permutation_test
from pyro_hrssm.inference.scores.table import BoundaryScores

__all__ = [
    "BoundaryScores", "Flags", "LabelScore", "Labelled", "Score", "label_score", "permutation_test", "score", "tuned",
]  # fmt: skip
