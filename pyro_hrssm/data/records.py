"""The record in an archive of synthetic sequences: JSON text that names the generator and all its parameters."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import numpy as np

RECORD = "generator"
"""The array of an archive that holds it: a text."""


def write(name: str, function: Callable[..., Any], **given: Any) -> str:
    """The record of the call `function(**given)`, with the defaults of the parameters that are not given."""
    parameters = inspect.signature(function).parameters
    defaults = {key: value.default for key, value in parameters.items() if value.default is not value.empty}
    return json.dumps({"name": name, "parameters": defaults | given}, default=_plain)


def read(text: str) -> tuple[str, dict[str, Any]] | None:
    """The name and the parameters of :func:`write`; None for any other text."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or set(values) != {"name", "parameters"}:
        return None
    name, parameters = values["name"], values["parameters"]
    return (name, parameters) if isinstance(name, str) and isinstance(parameters, dict) else None


def _plain(value: Any) -> Any:
    """A number or an array of numpy's, or anything that numpy reads as one, in plain values."""
    return np.asarray(value).tolist()
