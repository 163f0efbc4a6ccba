"""Bounds with hard boundaries: importance weights of draws from q, and the terms that they are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TERMS = ("emission", "z", "s", "m")
"""What a bound is made of: the frames, and the sites of the three latent variables."""


def terms(model_trace: Any, guide_trace: Any) -> dict[str, Tensor]:
    """Every sequence's negative ELBO by terms, [B] each, in nats: `emission`, and log q - log p of z, s and m."""
    parts: dict[str, list[Tensor]] = {name: [] for name in TERMS}
    for trace, sign in ((guide_trace, 1.0), (model_trace, -1.0)):
        trace.compute_log_prob()
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and (name == "x" or name[:2] in ("z_", "s_", "m_")):
                parts["emission" if name == "x" else name[0]].append(sign * site["log_prob"])
    nothing = torch.zeros_like(parts["s"][0])
    return {name: torch.stack(values).sum(0) if values else nothing for name, values in parts.items()}
