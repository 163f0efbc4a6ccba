"""A training step as one CUDA graph: its kernels are captured once, and then replayed without Python.

Python, Pyro's handlers included, runs while a step is captured. What Python decides there holds for every replay; what
differs from step to step must be a tensor.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from pyro_hrssm.errors import InputError, one_line

REHEARSALS = 3
"""Runs of a step before its capture: libraries choose their algorithms in the first, and Adam makes its moments."""

Step = Callable[[], None]


class Recorder(Protocol):
    """Makes of a step's function one that does the same whenever it is called."""

    def __call__(self, function: Step, rehearsing: Callable[[], contextlib.AbstractContextManager[None]]) -> Step:
        """The recorded function.

        Arguments:
            function: a step on tensors that stay where they are.
            rehearsing: makes a context in which the function may be called without a trace.
        """
        ...


class CudaGraphs:
    """Records functions as CUDA graphs, which share one pool of memory: no two of them may run at the same time.

    Raises :class:`InputError` where a function cannot be captured, because it waits for the device.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._last: Callable[[], torch.cuda.CUDAGraph | None] = lambda: None

    def __call__(self, function: Step, rehearsing: Callable[[], contextlib.AbstractContextManager[None]]) -> Step:
        outer = torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        with rehearsing():
            self._stream.wait_stream(outer)
            with torch.cuda.stream(self._stream), _adam_may_run_before_capture():
                for _ in range(REHEARSALS):
                    function()
            outer.wait_stream(self._stream)
        graph, last = torch.cuda.CUDAGraph(), self._last()
        # A pool lives as long as a graph that uses it.
        pool = None if last is None else last.pool()
        try:
            # Other threads may go on: one that reads ahead allocates pinned memory, by which it would end a capture.
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                function()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = one_line(str(error).split("\n")[0])
            raise InputError(f"graph: the training step cannot be captured, use --no-graph: {reason}") from error
        self._last = weakref.ref(graph)
        return graph.replay


@contextlib.contextmanager
def _adam_may_run_before_capture() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True", UserWarning)
        yield


class DeviceSVI(SVI):
    """`SVI` whose step leaves the loss on the device, where the host does not wait for it."""

    def step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step; returns the loss []."""
        with poutine.trace(param_only=True) as captured:
            loss: Tensor = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        sites: Any = captured.trace.nodes.values()
        self.optim({site["value"].unconstrained() for site in sites})
        return loss
