"""How many rows one pass takes: a bound by the sizes of a model and its frames, and by the memory that is free."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.decoding import FRAMES_AT_ONCE
from pyro_hrssm.model.limits import SegmentLimits
from pyro_hrssm.model.paths import Grid

ROWS_AT_ONCE = 8192
"""The most sequences times particles in one pass."""

ROWS_PER_SEQUENCE = 64
"""The most rows in one pass by sequences in a training batch: whoever trains with fewer sequences has less memory."""

NUMBERS_AT_ONCE = 2**29
"""The most numbers that one pass holds on a CPU, 2 GiB of float32; a GPU takes four times as many."""

PER_BELIEF, PER_STATE, PER_ENTRY = 40, 7, 14
"""Numbers that a pass holds at its peak by numbers in beliefs, in the grids of paths and in frames: measured on a CPU,
and rounded up."""

BYTES_PER_NUMBER = 4
"""Models compute in float32."""

SHARE = 0.5
"""Share of the free memory that one pass may take."""

_CGROUPS = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_NAMES = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
"""Files of a group's limit and use, by the controllers that a process's groups list: of version 2, and of version 1."""


def rows_for_batches_of(batch_size: int) -> int:
    """The most rows in one pass of a model that was trained on batches of this size."""
    return min(ROWS_AT_ONCE, ROWS_PER_SEQUENCE * batch_size)


def rows_at_once(model: StateSpaceModel, frames: int, most: int | None = None) -> int:
    """Number of rows, sequences times samples, that one pass without gradients takes.

    It depends on the machine only where its free memory is small: elsewhere one seed gives the same draws.

    Arguments:
        frames: number of frames of a row, given and predicted ones.
        most: a further bound on the rows; None for `ROWS_AT_ONCE`.
    """
    numbers, on_cpu = numbers_per_row(model.config, frames), model.device.type == "cpu"
    rows = min(ROWS_AT_ONCE if most is None else most, (1 if on_cpu else 4) * NUMBERS_AT_ONCE // numbers)
    free = available(model.device)
    fitting = rows if free is None else int(SHARE * free) // (BYTES_PER_NUMBER * numbers)
    if fitting < rows:
        rows = 2 ** (max(1, fitting).bit_length() - 1)  # coarse, so that small changes of free memory change no draw
    return max(1, rows)


def frames_at_once(model: StateSpaceModel, rows: int) -> int:
    """Number of frames that the networks read at once where each frame depends on few others."""
    fitting = NUMBERS_AT_ONCE // (rows * numbers_per_row(model.config, 1))
    return max(FRAMES_AT_ONCE // 16, min(FRAMES_AT_ONCE, fitting))


def blocks(frames: Tensor, mask: Tensor | None, rows: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Frames [B, T, X…] and their mask, so many sequences at a time."""
    masks = [None] * len(frames) if mask is None else mask.split(rows)
    yield from zip(frames.split(rows), masks, strict=False)


def numbers_per_row(config: HRSSMConfig, frames: int) -> int:
    """Numbers that one row of a pass holds at its peak."""
    # A mask of entries is as large as the frames, and so is what the encoder is told of them.
    entries = math.prod(config.frame_shape) * (2 if config.entry_flags else 1)
    return max(1, frames) * (PER_BELIEF * config.hidden + PER_STATE * _states(config, frames) + PER_ENTRY * entries)


def _states(config: HRSSMConfig, frames: int) -> int:
    """Size of the grid of a path's states, as :class:`Grid` makes it; 1 for a model without segments."""
    if config.model == "rssm" or config.boundary_posterior == "factorised":
        return 1
    limits = SegmentLimits(config.max_segments, config.max_length, min_length=config.min_length)
    grid = Grid.of(limits, frames, torch.device("cpu"))
    return grid.segments * grid.lengths


def available(device: torch.device) -> int | None:
    """Bytes that are free for this process on the device; None where the system does not say."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reusable
    found = [free for free in (_free_on_machine(), *_free_in_groups()) if free is not None]
    return min(found, default=None)


def _free_on_machine() -> int | None:
    with contextlib.suppress(OSError, ValueError):  # not Linux
        sizes = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        if "MemAvailable" in sizes:
            return 1024 * int(sizes["MemAvailable"].split()[0])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # not POSIX
        return None


def _free_in_groups() -> list[int]:
    """What the control groups leave of their limits, of version 1 and 2, from this process's group to the root."""
    found = []
    try:
        lines = [line.split(":", 2) for line in _PROCESS.read_text().splitlines()]
    except OSError:
        return []
    for _, controllers, path in lines:
        if controllers not in _NAMES:
            continue
        root, names = _CGROUPS / controllers, _NAMES[controllers]
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder == root.parent:
                break
            free = _free_in(folder, *names)
            found += [] if free is None else [free]
    return found


def _free_in(folder: Path, limit: str, used: str) -> int | None:
    """Bytes between a group's limit and its use, apart from files that the system would drop; None without a limit."""
    try:
        most, taken = int((folder / limit).read_text()), int((folder / used).read_text())
        kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group here, or `max`
        return None
    return max(0, most - taken + int(kept.get("total_inactive_file", kept.get("inactive_file", 0))))
