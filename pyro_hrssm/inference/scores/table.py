"""The scores of a model beside those of methods that need no hierarchical model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyro_hrssm.inference.scores.boundaries import Score
from pyro_hrssm.inference.scores.labels import OVERLAPS, LabelScore
from pyro_hrssm.inference.scores.permutation import Permutation


@dataclass(frozen=True)
class BoundaryScores:
    """A model's score beside those of other methods at the same positions."""

    model: Score | None
    """None where no sequence's true boundaries are known, but types are."""
    baselines: dict[str, Score]
    """The methods of :func:`pyro_hrssm.inference.scores.methods.tuned` by name, and `best_possible` where the process
    that drew the sequences is known."""
    forced_share: float
    """Share of positions where the model's limits left no choice; they are scored as all others are."""
    tuned_on: str
    """Data that the methods' parameters were chosen on: `training`, or `evaluation` if training has no truth."""
    margin: int | None = None
    """Number of frames that a boundary may be off in `f1_margin`, in the choice of parameters, and in the permutation
    test; None for exact F1 there."""
    permutation: Permutation | None = None
    """The permutation test of the model's boundaries; None for a model without segments."""
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was chosen for each method, by its name."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Methods that could not run, each with what it needs."""
    labels: dict[str, LabelScore] = field(default_factory=dict)
    """Scores of types where the true ones are known: `model`, and the methods that give types."""
    bounded_sequences: int | None = None
    """Number of sequences whose true boundaries are known, on which alone boundaries are scored; None if all are."""

    def to_dict(self) -> dict[str, Any]:
        """The model's score and, under `baselines`, those of the other methods, ready for JSON."""
        return {
            **({} if self.model is None else self.model.to_dict()),
            "forced_share": self.forced_share,
            "tuned_on": self.tuned_on,
            **({} if self.margin is None else {"margin": self.margin}),
            **({} if self.bounded_sequences is None else {"bounded_sequences": self.bounded_sequences}),
            **({} if self.permutation is None else {"permutation": self.permutation.to_dict()}),
            "baselines": {name: score.to_dict() for name, score in self.baselines.items()},
            "parameters": self.parameters,
            "left_out": self.left_out,
            **({"labels": {name: score.to_dict() for name, score in self.labels.items()}} if self.labels else {}),
        }

    def text(self) -> str:
        """The scores as tables to read, one row per method."""
        scores = {} if self.model is None else {"model": self.model, **self.baselines}
        columns = {"f1": "F1", "precision": "precision", "recall": "recall", "f1_tolerance_1": "F1 ±1"}
        columns |= {} if self.margin is None else {"f1_margin": f"F1 ±{self.margin}"}
        columns |= {"covering": "covering"}
        parts = (
            [_table("boundaries", columns, {name: score.to_dict() for name, score in scores.items()})] if scores else []
        )
        if self.labels:
            parts.append(_table("types", _LABEL_COLUMNS, {name: one.to_dict() for name, one in self.labels.items()}))
        return "\n".join([*parts, *self._remarks()])

    def _remarks(self) -> list[str]:
        remarks = [] if not self.parameters else [f"parameters of the methods chosen on {self.tuned_on} sequences"]
        if self.bounded_sequences is not None:
            count = self.bounded_sequences or "none"
            remarks.append(f"boundaries scored on the sequences whose true ones are all known: {count}")
        if self.forced_share > 0:
            remarks.append(f"limits left no choice at {100 * self.forced_share:.1f} % of all positions, which count")
        if self.permutation is not None:
            within = "" if self.permutation.margin == 0 else f" within {self.permutation.margin} frames"
            number = self.permutation.permutations
            remarks.append(
                f"as many boundaries at random reach the model's F1{within} with p = {self.permutation.p_value:.3g} "
                f"({number} permutations)"
            )
        return [*remarks, *(f"without {name}: {reason}" for name, reason in self.left_out.items())]


_LABEL_COLUMNS = {
    "accuracy": "accuracy", "nmi": "NMI", "ari": "ARI", "edit": "edit",
    **{f"f1_overlap_{percent}": f"F1@{percent}" for percent in OVERLAPS},
}  # fmt: skip


def _table(title: str, columns: dict[str, str], scores: dict[str, dict[str, float]]) -> str:
    width = max(len(title), *(len(name) + 2 for name in scores))
    head = f"{title:<{width}}" + "".join(f"  {name:>9}" for name in columns.values())
    rows = [
        f"{'  ' + name:<{width}}" + "".join(f"  {values[key]:>9.3f}" for key in columns)
        for name, values in scores.items()
    ]
    return "\n".join([head, *rows])
