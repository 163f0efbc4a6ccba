"""What a run says: printed by the command line, and warned of or left unsaid where Python asks for it."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple


class Voice(NamedTuple):
    """Where sentences go."""

    say: Callable[[str], None]
    warn: Callable[[str], None]


def _on_standard_output(text: str) -> None:
    print(text)


def _on_standard_error(text: str) -> None:
    print(f"pyro-hrssm: {text}", file=sys.stderr)


def _as_warning(text: str) -> None:
    """Warn of the user's own line, as which Python shows the same warning again where another line asks for it."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and f"{frame.f_globals.get('__name__')}.".startswith("pyro_hrssm."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)


PRINTED = Voice(_on_standard_output, _on_standard_error)
"""The command line's."""


def in_python(verbose: bool) -> Voice:
    """Python's: warnings are Python's own, and all else is printed, or left unsaid."""
    return Voice(_on_standard_output if verbose else lambda _: None, _as_warning)
