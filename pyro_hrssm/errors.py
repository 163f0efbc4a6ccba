"""The error for a wrong input: one line that states the expected value and the value found."""

from __future__ import annotations

import re
from collections.abc import Callable


class InputError(ValueError):
    """The user's input is wrong: one line that states the expected value and the value found."""

    def __init__(self, message: str) -> None:
        # To an error within a program, Pyro appends a table of all sites so far.
        message = re.split(r"\n\s*Trace Shapes:", message)[0]
        # Paths and names in a message may contain any character, line breaks too.
        super().__init__(" ".join(message.split()))


def one_line(value: object) -> str:
    """A value's text on one line, short enough for a message."""
    return _short(str, value)


def found(value: object) -> str:
    """A value as Python writes it, on one line, short enough for a message."""
    return _short(repr, value)


def _short(write: Callable[[object], str], value: object) -> str:
    try:
        text = " ".join(write(value).split())
    except (ValueError, RecursionError):  # an integer of thousands of digits, or thousands of nested lists
        text = f"{type(value).__name__} too large to show"
    return text if len(text) <= 200 else text[:199] + "…"


def require(condition: bool, message: str) -> None:
    """Raise :class:`InputError` with this message unless the condition holds."""
    if not condition:
        raise InputError(message)


def lacking(message: str) -> type:
    """A base class in place of one whose package is not installed: a class of it can be imported, but has no instance.

    To make one raises :class:`InputError` with the message.
    """

    def refuse(*_: object, **__: object) -> None:
        raise InputError(message)

    return type("Lacking", (), {"__new__": refuse})
