"""Doubts about a trained model that its own scores raise: segments that mean little, sequences known by heart."""

from __future__ import annotations

import math

from pyro_hrssm.inference.evaluation import Evaluation

ALWAYS = 0.8
"""A boundary rate above which segments say no more than frames."""

NEVER = 0.001
"""A boundary rate below which segments say no more than sequences, unless these have thousands of frames."""

UNSURE = 0.5
"""Share of a draw's boundaries that another draw has too, below which q hardly knows where segments end."""

OVERFIT = 1.0
"""Nats that a held-out frame may cost more than one trained on before it is said."""

MANY_PASSES = 10
"""Passes over the training sequences before which no model knows them by heart."""


def collapse(scores: Evaluation) -> str | None:
    """One line about segments that cannot mean anything, because nearly all frames end one or none does; or None."""
    if scores.boundary_rate > ALWAYS:
        return (
            f"a segment ends with {100 * scores.boundary_rate:.0f} % of the frames: segments say nothing here; with "
            "--elbo leave_one_out, give boundaries a larger --boundary-price, or name their --boundary-rate"
        )
    if scores.boundary_rate < NEVER:
        return (
            "hardly any sequence has a second segment: segments say nothing here; with --elbo leave_one_out, give "
            "boundaries a smaller --boundary-price, s a larger --state-weight, or name their --boundary-rate; "
            "--prior-from 1, if they closed late"
        )
    return None


def unsure(scores: Evaluation) -> str | None:
    """One line about boundaries that q(M | X) itself is not sure of; or None."""
    if scores.boundary_agreement is None or scores.boundary_agreement >= UNSURE:
        return None
    return (
        f"two draws of boundaries share {100 * scores.boundary_agreement:.0f} % of them: the model is not sure at "
        "which frames segments end, and they may mean little; the bound of --model rssm tells whether they explain "
        "anything, and --min-length or --boundary-rate say what you know of them"
    )


def overfit(scores: Evaluation, passes: float) -> str | None:
    """One line about a bound that is far better on training sequences than on held-out ones; or None.

    Arguments:
        passes: how often training has taken each sequence.
    """
    seen, unseen = scores.training_nats_per_sequence, scores.nats_per_sequence
    if seen is None or unseen == 0 or passes < MANY_PASSES:
        return None
    gap, error = unseen - seen, scores.nats_standard_error
    # By frames, since nats per sequence grow with them; a nat per frame is a factor of e in a frame's density.
    per_frame = gap * scores.nats_per_frame / unseen
    if per_frame <= OVERFIT or (math.isfinite(error) and gap <= 2 * error):
        return None
    return (
        f"a held-out frame costs {per_frame:.1f} nats more than one trained on: the model knows the training sequences "
        "by heart, or the held-out ones are of another kind; more data, fewer --steps or a smaller --hidden may help"
    )


def doubts(scores: Evaluation, has_segments: bool, passes: float) -> list[str]:
    """Lines about what is wrong with a trained model, by its scores; `passes` as of :func:`overfit`."""
    found = [(collapse(scores) or unsure(scores)) if has_segments else None, overfit(scores, passes)]
    return [text for text in found if text is not None]
