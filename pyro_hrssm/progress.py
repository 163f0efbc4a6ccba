"""Progress bars: text in a terminal, the notebook's own in a notebook, none where TQDM_DISABLE is set."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def bar(over: Iterable[Any] | None = None, shows: bool = True, **settings: Any) -> tqdm[Any]:
    """A bar over these things, or one that is moved by hand; tqdm's notebook bar itself does not heed the variable.

    Arguments:
        shows: whether there is a bar at all.
        settings: those of tqdm.
    """
    off = not shows or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return tqdm(over, disable=off, **settings)
