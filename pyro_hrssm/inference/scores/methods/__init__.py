"""Methods that find boundaries without a hierarchical model, their parameters chosen on sequences with known truth."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Literal, TypeAlias

from pyro_hrssm.inference.scores.methods import changes, markov, peaks, simple
from pyro_hrssm.inference.scores.methods.tuning import Labelled, Method

Which: TypeAlias = Literal["all", "quick", "none"]

QUICK = ("always", "never", "every_k", "frame_difference", "pelt")
"""The methods of `quick`, which take a second or two."""

_FRAMES = 200_000
"""Frames on which parameters are chosen, a bound on time."""

NEEDS = {
    "pelt": ("ruptures",),
    "kernel_rbf": ("ruptures",),
    "gaussian_hmm": ("hmmlearn", "sklearn"),
    "sticky_hmm": ("hmmlearn", "sklearn"),
    "surprise_peaks": ("scipy",),
}
"""Packages of the extra `scores` that a method is computed with."""


def left_out(which: Which, surprise: bool) -> dict[str, str]:
    """The methods of `which` that cannot run here, and what each of them needs."""
    asked = () if which == "none" else QUICK if which == "quick" else tuple(dict.fromkeys((*QUICK, *NEEDS)))
    missing = {name: [package for package in NEEDS.get(name, ()) if find_spec(package) is None] for name in asked}
    reasons = {
        name: f"needs {' and '.join(packages)}: pip install 'pyro-hrssm[scores]'"
        for name, packages in missing.items()
        if packages
    }
    if "surprise_peaks" in asked and not surprise:
        reasons["surprise_peaks"] = "needs a flat run: --flat RSSM_RUN"
    return reasons


def tuned(tuning: Labelled, which: Which = "all", margin: int = 0) -> Iterator[Method]:
    """Every method of `which`, with the parameters that have the largest F1 on `tuning`; where no true boundary is
    known there, only those that give types.

    Arguments:
        which: `quick` for those that take seconds, `all` to add rbf kernel, hidden Markov models and, where `tuning`
            has the surprise, its peaks. Methods whose packages are not installed are left out: :func:`left_out`.
        margin: number of frames that a boundary may be off in that F1.
    """
    if which == "none":
        return
    # Sequences of thousands of frames would take minutes.
    tuning = tuning.within(len(tuning.truth), _FRAMES)
    without = left_out(which, tuning.surprise is not None)
    finds = bool(tuning.counted().any())  # without a true boundary to find, methods that give types are left
    for method in (simple.always, simple.never, simple.every_k, simple.frame_difference, changes.pelt):
        if finds and method.__name__ not in without:
            yield method(tuning, margin)
    if which == "quick":
        return
    if finds and "kernel_rbf" not in without:
        yield changes.kernel_rbf(tuning, margin)
    if "gaussian_hmm" not in without:
        yield from markov.hidden_markov(tuning, margin)
    if finds and "surprise_peaks" not in without:
        yield peaks.surprise_peaks(tuning, margin)
