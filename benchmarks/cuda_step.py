"""Times of one training step on a GPU: eager, as a CUDA graph and compiled, over its networks alone.

`python -m benchmarks.train_step --device cuda` prints them. The sides of a ratio run in turn, each until the GPU is
done; times are medians. `kernels` and `waits` count, per step, what torch's profiler sees on the GPU and where the host
waits for it; the graph's figures are of the steps between two readings.

- `rows_b128`, `rows_b16`, `rows_b1024`, `video_32`, `video_128`: the graph over the networks; `eager_over_graph` is the
  gain;
- `compiled_b128`: with `--compile`, or the reason why that cannot be;
- `bf16_b1024`, `leave_one_out_b128`: the same with `--precision bf16`, with `--elbo leave_one_out`;
- `growth_280_28`: the graph at 280 frames over 28, batch 16, with peak memory;
- `seeds_8`: eight graphs on eight streams, milliseconds per model and step.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import train_step
from pyro_hrssm import HRSSM, HRSSMConfig, TrainingConfig
from pyro_hrssm.data import Sequences
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.graphed import CudaGraphs, Recorder
from pyro_hrssm.run.ahead import ahead
from pyro_hrssm.run.together import Lane
from pyro_hrssm.run.training import Trainer, pyro_for_training

SEEDS = 8
PROFILED = 3
"""Steps that are profiled."""


@dataclass(frozen=True)
class Place:
    """Where the benchmark runs: a GPU; the tests put a CPU in its place."""

    device: str = "cuda"
    recorder: Callable[[], Recorder] = field(default=CudaGraphs)

    def settle(self) -> None:
        """Wait until the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_mebibytes(self, work: Callable[[], object]) -> float:
        """Peak memory of a piece of work beyond what is taken before; 0 on a CPU."""
        if self.device != "cuda":
            work()
            return 0.0
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        self.settle()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def trainer(config: HRSSMConfig, batch_size: int, place: Place, **settings: Any) -> Trainer:
    """A trainer of the benchmark, on the device."""
    torch.manual_seed(0)
    training = TrainingConfig(batch_size=batch_size, **settings)
    return Trainer(HRSSM(config).to(place.device), training, Path(tempfile.gettempdir()), {})


def frames_of(config: HRSSMConfig, batch_size: int, length: int) -> torch.Tensor:
    """Frames of noise for one batch."""
    return torch.rand(batch_size, length, *config.frame_shape)


@contextlib.contextmanager
def graphed(made: Trainer, frames: torch.Tensor, recorder: Recorder) -> Iterator[Callable[[], None]]:
    """A function that takes a training step as the loop does on a GPU: a reading after every `log_every` steps."""
    data = Sequences(frames.numpy())
    with pyro_for_training(), ahead(made, data, recorder, made.config.steps, None) as steps:

        def step() -> None:
            steps.take()
            made.step += 1
            if made.step % made.config.log_every == 0:
                steps.row()

        yield step


def counts(step: Callable[[], object], place: Place) -> dict[str, float]:
    """Kernels and waits per step, over steps between two readings."""
    if place.device != "cuda":
        return {"kernels": 0.0, "waits": 0.0}
    place.settle()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED):
            step()
        with torch.profiler.record_function("settled"):
            place.settle()
    events = profiled.events()
    assert events is not None
    end = min(event.time_range.start for event in events if event.name == "settled")
    kernels = [event for event in events if "CUDA" in str(event.device_type) and event.name != "settled"]
    waits = [event for event in events if "Synchronize" in event.name and event.time_range.start < end]
    return {"kernels": len(kernels) / PROFILED, "waits": len(waits) / PROFILED}


def over(
    config: HRSSMConfig,
    batch_size: int,
    length: int,
    networks: Callable[[], object],
    steps: int,
    place: Place,
    **settings: Any,
) -> dict[str, Any]:
    """The graph's step and the eager step over the networks alone."""
    frames = frames_of(config, batch_size, length)
    eager_trainer, graph_trainer = (trainer(config, batch_size, place, **settings) for _ in range(2))
    on_device = frames.to(place.device)

    def eager() -> None:
        eager_trainer.update(on_device, None)

    with graphed(graph_trainer, frames, place.recorder()) as graph:
        start = time.perf_counter()
        graph()
        place.settle()
        first = time.perf_counter() - start
        seconds = train_step.alternate(steps, eager, graph, networks, settled=place.settle)
        while graph_trainer.step % graph_trainer.config.log_every > graph_trainer.config.log_every - 1 - PROFILED:
            graph()  # a reading does not fall among the profiled steps
        found = {
            "ratio": seconds[1] / seconds[2],
            "eager_over_graph": seconds[0] / seconds[1],
            "eager_seconds": seconds[0],
            "graph_seconds": seconds[1],
            "networks_seconds": seconds[2],
            "first_step_seconds": first,
            "graph": counts(graph, place),
        }
    return found | {"eager": counts(eager, place)}


def compiled(batch_size: int, steps: int, place: Place) -> dict[str, Any]:
    """A compiled step of rows over the networks, or the reason why there is none."""
    made = trainer(train_step.ROWS, batch_size, place, compile=True)
    frames = frames_of(train_step.ROWS, batch_size, 28).to(place.device)
    networks = train_step.bare_networks(batch=batch_size, device=place.device)
    try:
        start = time.perf_counter()
        made.update(frames, None)
        first = time.perf_counter() - start
        step, alone = train_step.alternate(steps, lambda: made.update(frames, None), networks, settled=place.settle)
    except (InputError, RuntimeError) as error:
        return {"ratio": None, "refused": " ".join(str(error).split())[:200]}
    times = {"compiled_seconds": step, "networks_seconds": alone, "first_step_seconds": first}
    return {"ratio": step / alone} | times


def rows(batch_size: int, steps: int, place: Place, **settings: Any) -> dict[str, Any]:
    """The rows setting."""
    networks = train_step.bare_networks(batch=batch_size, device=place.device)
    return over(train_step.ROWS, batch_size, 28, networks, steps, place, **settings)


def video(channels: int, steps: int, place: Place) -> dict[str, Any]:
    """The video setting."""
    config, length = train_step.video_config(channels), train_step.CONTEXT + train_step.VIDEO_FRAMES
    networks = train_step.convolutions(config, place.device)
    return over(config, train_step.VIDEO_BATCH, length, networks, steps, place)


def growth(steps: int, place: Place) -> dict[str, Any]:
    """The graph's step at several lengths of rows, and its peak memory."""
    seconds, peaks = {}, {}
    for length in train_step.LENGTHS:
        with contextlib.ExitStack() as stack:
            made = trainer(train_step.ROWS, 16, place)
            step = stack.enter_context(graphed(made, frames_of(train_step.ROWS, 16, length), place.recorder()))
            peaks[length] = place.peak_mebibytes(step)
            (seconds[length],) = train_step.alternate(steps, step, settled=place.settle)
    ends = train_step.LENGTHS[0], train_step.LENGTHS[-1]
    return {"ratio": seconds[ends[1]] / seconds[ends[0]], "graph_seconds": seconds, "memory_mib": peaks}


def seeds(steps: int, place: Place) -> dict[str, Any]:
    """Milliseconds per model and step of several models side by side, each with its own stream and noise."""
    frames = frames_of(train_step.ROWS, 128, 28)
    with contextlib.ExitStack() as stack:
        lanes = [Lane(torch.device(place.device)) for _ in range(SEEDS)]
        each = []
        for lane in lanes:
            with lane.active():
                made = trainer(train_step.ROWS, 128, place)
                each.append((lane, stack.enter_context(graphed(made, frames, place.recorder()))))

        def rounds() -> None:
            for lane, step in each:
                with lane.active():
                    step()

        for _ in range(3):
            rounds()
        place.settle()
        start = time.perf_counter()
        # Not one by one: the host goes ahead, as it does in training.
        for _ in range(2 * steps):
            rounds()
        place.settle()
        seconds = (time.perf_counter() - start) / (2 * steps * SEEDS)
    return {"ratio": 1e3 * seconds, "model_and_step_seconds": seconds}


def measures(steps: int, place: Place | None = None) -> dict[str, Callable[[], dict[str, Any]]]:
    """All measurements, by name."""
    where = Place() if place is None else place
    return {
        "rows_b128": lambda: rows(128, steps, where),
        "rows_b16": lambda: rows(16, steps, where),
        "rows_b1024": lambda: rows(1024, steps, where),
        "bf16_b1024": lambda: rows(1024, steps, where, precision="bf16"),
        "leave_one_out_b128": lambda: rows(128, steps, where, elbo="leave_one_out"),
        "video_32": lambda: video(32, steps, where),
        "video_128": lambda: video(128, steps, where),
        "growth_280_28": lambda: growth(steps, where),
        "seeds_8": lambda: seeds(steps, where),
        "compiled_b128": lambda: compiled(128, steps, where),
    }


def details(found: dict[str, Any]) -> str:
    """The times of one measurement on a line."""
    named = {name.removesuffix("_seconds"): value for name, value in found.items() if name.endswith("_seconds")}
    times = (f"{name} {1e3 * value:.1f} ms" for name, value in named.items() if isinstance(value, float))
    sides = (
        f"{side}: {found[side]['kernels']:.0f} kernels, {found[side]['waits']:.1f} waits"
        for side in ("eager", "graph")
        if side in found
    )
    refused = (found["refused"],) if "refused" in found else ()
    return "; ".join(itertools.chain(times, sides, refused))


def unvalidated(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A measurement without Pyro's checks, as in training."""
    with pyro.validation_enabled(False):
        return measure()
