"""Guards against waiting for a GPU, and against tensors of the host among its own."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """A context in which torch raises an error wherever the host would wait for the GPU."""
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # As an error, this warning would leave the mode on for all tests that follow.
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)


class OnlyOn(TorchDispatchMode):
    """Raise an error where an operation makes, reads or mixes in a tensor of another device.

    The index of Pyro's plate, `arange(size)` on the host, is allowed, since no operation here reads it.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.excepted = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        others = [tensor for tensor in tensors if tensor.device.type != self.device]
        if others and not _called_from("pyro.poutine.subsample_messenger"):
            raise AssertionError(f"{func} has a tensor {list(others[0].shape)} on {others[0].device}")
        self.excepted += bool(others)
        return result


def _called_from(module: str) -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
