"""Ratios of the time of one SVI training step to the time of its networks alone, measured in one process.

The two run in turn, so that other work on the machine affects both; times are medians over the steps::

    python -m benchmarks.train_step
    python -m benchmarks.train_step --json
    python -m benchmarks.train_step --device cuda --json

- `rows_b128`, `rows_b16`: 28 frames of 28 pixels, H 128, z and s of 8, over `bare_networks`;
- `video_32`, `video_128`: 20 frames of 32x32x3 after 5 of context, batch 16, that many channels, over a forward and a
  backward pass of its convolutions alone;
- `compiled_b128`, `compiled_b16`, `compiled_video_32`: the same with `--compile`; `first_step_seconds` is
  the time to the end of the first step, which compiles, or reads the compiler's cache of an earlier run;
- `growth_280_28`: rows of 280 frames over rows of 28, batch 16; 10 is linear. `memory` lists peaks for every length.

On a GPU, `benchmarks.cuda_step` takes the same ratios, of the step as one CUDA graph, and some more.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch

from benchmarks import cuda_step
from benchmarks.bare_networks import bare_networks
from pyro_hrssm import HRSSM, HRSSMConfig, TrainingConfig
from pyro_hrssm.model.networks import ConvDecoder, ConvEncoder
from pyro_hrssm.run.training import Trainer

ROWS = HRSSMConfig(frame_shape=(28,), hidden=128, abstract_size=8, observation_size=8, window=28)
CONTEXT, VIDEO_FRAMES, VIDEO_BATCH = 5, 20, 16
LENGTHS = (28, 56, 112, 280)


def svi_step(config: HRSSMConfig, batch_size: int, frames: int, compile: bool = False) -> Callable[[], float]:
    """One training step as the trainer takes it: clip, Adam and the check for NaN included."""
    torch.manual_seed(0)
    training = TrainingConfig(batch_size=batch_size, compile=compile)
    trainer = Trainer(HRSSM(config), training, Path(tempfile.gettempdir()), {})
    x = torch.rand(batch_size, frames, *config.frame_shape)
    return lambda: trainer.update(x, None)


def alternate(
    steps: int, *functions: Callable[[], object], settled: Callable[[], object] = lambda: None
) -> list[float]:
    """Median seconds of each function, run in turn; the first three rounds warm up and do not count.

    Arguments:
        settled: waits until a function's work is done, where this is not when the function returns.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(steps + 3):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            settled()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[3:]) for times in seconds]


def rows(batch_size: int, steps: int, compile: bool = False) -> dict[str, float]:
    """The rows setting: 28 frames of 28 pixels, H 128, z and s of 8."""
    return _over(svi_step(ROWS, batch_size, 28, compile), bare_networks(batch=batch_size), steps)


def _over(training: Callable[[], float], networks: Callable[[], None], steps: int) -> dict[str, float]:
    """Seconds of a training step, of the networks alone, and the ratio of the two."""
    start = time.perf_counter()
    training()
    first = time.perf_counter() - start
    svi, alone = alternate(steps, training, networks)
    return {"ratio": svi / alone, "svi_seconds": svi, "networks_seconds": alone, "first_step_seconds": first}


def video_config(channels: int) -> HRSSMConfig:
    """The model of the video setting."""
    return HRSSMConfig(frame_shape=(32, 32, 3), channels=channels, context=CONTEXT, max_length=8, window=VIDEO_FRAMES)


def video(channels: int, steps: int, compile: bool = False) -> dict[str, float]:
    """The video setting with `channels` channels, over its convolutions alone."""
    config = video_config(channels)
    return _over(svi_step(config, VIDEO_BATCH, CONTEXT + VIDEO_FRAMES, compile), convolutions(config), steps)


def convolutions(config: HRSSMConfig, device: str = "cpu") -> Callable[[], None]:
    """One forward and one backward pass of encoder and decoder over the frames that a step takes through them."""
    encoder = ConvEncoder(config.frame_shape, config.hidden, config.channels).to(device)
    decoder = ConvDecoder(config.frame_shape, config.hidden, config.channels).to(device)
    frames = torch.rand(CONTEXT + VIDEO_FRAMES, VIDEO_BATCH, *config.frame_shape, device=device)
    features = torch.rand(VIDEO_FRAMES, VIDEO_BATCH, config.hidden, device=device, requires_grad=True)

    def step() -> None:
        for network in (encoder, decoder):
            network.zero_grad()
        (encoder(frames).sum() + decoder(features).sum()).backward()

    return step


def growth(steps: int) -> dict[str, Any]:
    """Step time of rows at several lengths, in turn, and peak memory, each length in its own process."""
    seconds = alternate(steps, *(svi_step(ROWS, 16, length) for length in LENGTHS))
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = [pool.apply(peak_megabytes, (length,)) for length in LENGTHS]
    return {
        "ratio": seconds[-1] / seconds[0],
        "svi_seconds": dict(zip(LENGTHS, seconds, strict=True)),
        "memory_mib": dict(zip(LENGTHS, peaks, strict=True)),
    }


def peak_megabytes(length: int) -> float:
    """MiB by which three steps raise a new process's peak memory, after one warm-up step."""
    step = svi_step(ROWS, 16, length)
    with pyro.validation_enabled(False):
        step()
        gc.collect()
        before = _megabytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        for _ in range(3):
            step()
    return _megabytes("VmHWM") - before


def _megabytes(name: str) -> float:
    """A line of Linux's status of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def measures(steps: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """All measurements, by name."""
    return {
        "rows_b128": lambda: rows(128, steps),
        "rows_b16": lambda: rows(16, steps),
        "video_32": lambda: video(32, steps),
        "video_128": lambda: video(128, steps),
        "compiled_b128": lambda: rows(128, steps, compile=True),
        "compiled_b16": lambda: rows(16, steps, compile=True),
        "compiled_video_32": lambda: video(32, steps, compile=True),
        "growth_280_28": lambda: growth(steps),
    }


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--steps", type=int, default=20, help="steps counted of each (default 20)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default cpu)")
    known = sorted({*measures(0), *cuda_step.measures(0)})
    parser.add_argument("--only", nargs="*", choices=known, help="ratios to take")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} finds no GPU here")
    every = (cuda_step.measures if on_gpu else measures)(arguments.steps)
    missing = [name for name in arguments.only or () if name not in every]
    if missing:
        parser.error(f"--only: not measured on {arguments.device}: {', '.join(missing)}")
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    results = {}
    with pyro.validation_enabled(False):
        for name in arguments.only or every:
            results[name] = every[name]()
            if not arguments.json:
                ratio = results[name]["ratio"]
                said = f"{name}: {'none' if ratio is None else format(ratio, '.2f')} ({where})"
                print(said, *([cuda_step.details(results[name])] if on_gpu else []), flush=True)
    if arguments.json:
        details = {"device": where, "threads": torch.get_num_threads(), "torch": torch.__version__, "details": results}
        print(json.dumps({name: result["ratio"] for name, result in results.items()} | details))


if __name__ == "__main__":
    main()
