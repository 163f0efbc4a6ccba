"""What a wrong input raises: one line that says what was expected and what was found."""

from __future__ import annotations

from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave is wrong: one line, what was expected and what was found."""

    def __init__(self, message: str) -> None:
        # Paths and names in it may hold anything, line breaks too.
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
    except (ValueError, RecursionError):  # a whole number of thousands of digits, lists nested as deeply
        text = f"{type(value).__name__} too large to show"
    return text if len(text) <= 200 else text[:199] + "…"


def require(condition: bool, message: str) -> None:
    """Raise :class:`InputError` with this message unless the condition holds."""
    if not condition:
        raise InputError(message)
