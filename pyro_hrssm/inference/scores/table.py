"""The score of a model beside those of methods that need no model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pyro_hrssm.inference.scores.boundaries import Score


@dataclass(frozen=True)
class BoundaryScores:
    """A model's score beside those of baselines at the same positions."""

    model: Score
    baselines: dict[str, Score]
    """`always`, `never`, `every_k`, `frame_difference`, `pelt` where ruptures is installed, and `best_possible` where
    the process that drew the sequences is known."""
    forced_share: float
    """Share of positions where the model's limits left no choice; they are scored as all others are."""
    tuned_on: str
    """Data that the baselines' parameters were chosen on: `training`, or `evaluation` if training has no truth."""

    def to_dict(self) -> dict[str, Any]:
        """The model's score and, under `baselines`, those of the baselines, ready for JSON."""
        baselines = {name: asdict(score) for name, score in self.baselines.items()}
        rest = {"forced_share": self.forced_share, "tuned_on": self.tuned_on}
        return asdict(self.model) | rest | {"baselines": baselines}

    def rows(self) -> list[tuple[str, str]]:
        """Names and values as text to read."""
        listed = [("boundaries: model", self.model), *((f"  {name}", score) for name, score in self.baselines.items())]
        return [(name, score.text()) for name, score in listed]
