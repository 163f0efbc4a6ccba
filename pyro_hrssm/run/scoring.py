"""The scores of a trained run on the sequences that it was opened on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyro_hrssm.errors import require
from pyro_hrssm.inference.evaluation import Evaluation, measure
from pyro_hrssm.inference.scores.methods import Which
from pyro_hrssm.model.rssm import RSSM
from pyro_hrssm.run import segmenting
from pyro_hrssm.run.use import Opened, most_rows


def check(particles: int, margin: int | None) -> None:
    """Raise :class:`InputError` where these cannot be asked for."""
    require(particles >= 1, f"particles must be at least 1, found {particles}")
    require(margin is None or margin >= 0, f"margin must be at least 0, found {margin}")


def check_flat(opened: Opened, horizons: Sequence[int], methods: Which) -> None:
    """Raise :class:`InputError` where a flat model would have no score to stand beside."""
    finds = methods == "all" and bool(opened.source.sequences.bounded.any())
    require(len(horizons) > 0 or finds, "flat needs --horizons, or true boundaries and --methods all: found neither")


def scores(
    opened: Opened,
    *,
    particles: int,
    seed: int,
    given: int | None,
    horizons: Sequence[int],
    margin: int | None,
    methods: Which,
    flat: Callable[[], RSSM] | None,
    num_samples: int,
) -> Evaluation:
    """All scores that :func:`pyro_hrssm.inference.evaluation.measure` takes, whose arguments these are.

    Arguments:
        flat: opens the flat model to stand beside the run's; None for none.
    """
    sequences = opened.source.sequences
    return measure(
        opened.model,
        sequences,
        opened.source.tuning,
        particles=particles,
        seed=seed,
        given=given,
        horizons=horizons,
        margin=margin,
        methods=methods,
        flat=None if flat is None else flat(),
        num_samples=num_samples,
        types=None if sequences.labels is None else segmenting.types_per_frame(opened),
        most=most_rows(opened.loaded),
    )
