"""Settings of one process of a run: signals that wait for the step under way, random states, freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_hrssm.config import LARGEST_COUNT


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended training; the step reached is saved, unless a second signal came before.

    Arguments:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def between_steps() -> Iterator[list[int]]:
    """Note Ctrl-C and SIGTERM in the list, so that no step is interrupted, and raise them at the end of the context.

    A second signal is raised at once.
    """
    noted: list[int] = []

    def note(number: int, _: Any) -> None:
        noted.append(number)
        if len(noted) > 1:
            raise Interrupted(number)

    # Only the main thread may handle signals. A shell starts a job behind `&` with Ctrl-C ignored; that is kept.
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    previous = {n: signal.signal(n, note) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if noted:
        raise Interrupted(noted[0])


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of the generators that noise is drawn from, under the names `cpu` and `cuda`."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Set the generators to the states of :func:`random_states`."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextlib.contextmanager
def reproducible_convolutions() -> Iterator[None]:
    """A context in which a GPU adds up the gradients of convolutions in the same order at every run."""
    before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def reuse_freed_memory() -> None:
    """Let the C library, where it is glibc, keep freed memory for the next allocation.

    Every step allocates and frees the same large blocks. If glibc returns them to the system in between, the system
    maps them again page by page at the first touch, which took a fifteenth of a step.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, another system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, LARGEST_COUNT)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""The largest threshold that glibc accepts, in bytes."""
