"""Search for the site of a training step that is not finite, and the error that names the site in every process."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_hrssm.run.parallel import Processes


class TrainingError(RuntimeError):
    """Training met a NaN, an infinity or processes that drifted apart: one line with the step and the fault."""


class AgreedError(FloatingPointError):
    """A gradient is not finite, and every process knows this."""


def not_finite(step: int, what: str) -> TrainingError:
    """The error that names a step and the value that is not finite there."""
    return TrainingError(f"step {step}: {what} is not finite; the last checkpoint is whole")


def agreed_error(step: int, site: str | None, error: ArithmeticError | ValueError, processes: Processes) -> Exception:
    """The error that ends the run, agreed on by all processes.

    It names the bad site that the first process with such a site found; without a bad site it is the `ValueError` of a
    process, if there is one.

    Arguments:
        site: the bad site that this process found; None if all of its sites are finite.
        error: the error that this process met.
    """
    met = processes.gather((site, error if isinstance(error, ValueError) else None))
    sites = [named for named, _ in met if named is not None]
    if sites or all(other is None for _, other in met):
        return not_finite(step, f"site {sites[0] if sites else 'x (the sum over sites)'}")
    return error if isinstance(error, ValueError) else next(other for _, other in met if other is not None)


def first_bad_site(traces: tuple[Any, Any], parameters: Sequence[Tensor]) -> str | None:
    """The first site whose value, density or gradient is not finite; None if all are.

    Arguments:
        traces: the traces of model and guide from one step, with densities computed.
        parameters: the parameters whose gradients are checked.
    """
    sites = [
        (name, site)
        for trace in reversed(traces)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and "log_prob_sum" in site
    ]
    for name, site in sites:
        if not (torch.isfinite(site["value"]).all() and torch.isfinite(site["log_prob_sum"])):
            return name
    differentiable = [(name, site["log_prob_sum"]) for name, site in sites if site["log_prob_sum"].requires_grad]

    def spoilt(number: int) -> bool:
        """Whether the gradient of the first `number` sites together is not finite."""
        total = torch.stack([value for _, value in differentiable[:number]]).sum()
        gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        return not all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)

    # No later site mends a spoilt gradient, so that bisection finds the first bad site among many.
    first = bisect.bisect_left(range(1, len(differentiable) + 1), True, key=spoilt)
    return f"{differentiable[first][0]} (its gradient)" if first < len(differentiable) else None
