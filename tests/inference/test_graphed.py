"""The recorder of CUDA graphs, with stand-ins for what torch has of a GPU: the order in which it asks for things."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.graphed import REHEARSALS, CudaGraphs


class Stream:
    def __init__(self, name: str, events: list[Any]) -> None:
        self.name, self.events = name, events

    def wait_stream(self, other: Stream) -> None:
        self.events.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happened, with stand-ins for torch's streams and graphs that note it."""
    found: list[Any] = []
    outer = Stream("outer", found)

    class Graph:
        def pool(self) -> str:
            return "pool"

        def replay(self) -> None:
            found.append("replay")

    @contextlib.contextmanager
    def stream(given: Stream) -> Iterator[None]:
        found.append(f"on {given.name}")
        yield
        found.append(f"off {given.name}")

    @contextlib.contextmanager
    def graph(_: Graph, pool: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        found.append(f"capture on {stream.name}, pool {pool}")
        yield
        found.append("captured")

    monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream("side", found))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: outer)
    for name, value in {"stream": stream, "graph": graph, "CUDAGraph": Graph}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return found


def test_a_step_is_rehearsed_and_captured_on_one_stream_and_then_replayed(events: list[Any]) -> None:
    @contextlib.contextmanager
    def rehearsing() -> Iterator[None]:
        events.append("rehearsing")
        yield
        events.append("rehearsed")

    step = CudaGraphs()(lambda: events.append("step"), rehearsing)
    assert events == [
        *("rehearsing", "side waits for outer", "on side"),
        *(["step"] * REHEARSALS),
        *("off side", "outer waits for side", "rehearsed"),
        *("capture on side, pool None", "step", "captured"),
    ]
    events.clear()
    step()
    step()
    assert events == ["replay"] * 2


def test_graphs_share_memory_as_long_as_one_of_them_lives(events: list[Any]) -> None:
    recorder = CudaGraphs()
    kept = [recorder(lambda: None, contextlib.nullcontext) for _ in range(2)]
    assert [event for event in events if "capture on" in event] == [
        "capture on side, pool None",
        "capture on side, pool pool",
    ]
    kept.clear()
    recorder(lambda: None, contextlib.nullcontext)
    assert events[-2:] == ["capture on side, pool None", "captured"]


def test_a_step_that_cannot_be_captured_is_refused_in_one_line(events: list[Any]) -> None:
    calls: list[int] = []

    def waits() -> None:
        calls.append(1)
        if len(calls) > REHEARSALS:
            raise RuntimeError("operation not permitted when stream is capturing\nadvice")

    with pytest.raises(InputError, match=r"cannot be captured, use --no-graph: operation not permitted when .*ing$"):
        CudaGraphs()(waits, contextlib.nullcontext)


def test_what_fails_in_a_rehearsal_is_no_matter_of_graphs(events: list[Any]) -> None:
    def fails() -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        CudaGraphs()(fails, contextlib.nullcontext)
