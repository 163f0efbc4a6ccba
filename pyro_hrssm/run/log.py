"""What training shows of itself: `metrics.jsonl`, TensorBoard and the bar."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pyro_hrssm.files import FileError, append_line

METRICS = "metrics.jsonl"
"""A run's file of one JSON line per logged step."""


class Log:
    """Where a run's training writes; only the first process has one that does.

    Arguments:
        run: the run's folder.
        bar: counts steps.
        writer: TensorBoard's; None in the processes that write nothing.
    """

    def __init__(self, run: Path, bar: Any, writer: SummaryWriter | None) -> None:
        self._run, self.bar, self._writer = run, bar, writer

    def training(self, step: int, row: Mapping[str, float]) -> None:
        """Note what a step measured, and show some of it beside the bar."""
        if self._writer is None:
            return
        self._note(step, row, "train")
        if self.bar.format_dict["rate"]:
            self._writer.add_scalar("train/steps_per_second", self.bar.format_dict["rate"], step)
        self.bar.set_postfix(
            nats=f"{row['nats_per_sequence']:.1f}",
            boundary_rate=f"{row['boundary_rate']:.2f}",
            temperature=f"{row['temperature']:.2f}",
        )

    def held_out(self, step: int, row: Mapping[str, float]) -> None:
        """Note what an evaluation on held-out sequences measured; its keys start with `held_out_`."""
        self._note(step, row, "held_out")

    def figures(self, step: int, figures: Mapping[str, Figure]) -> None:
        """Show figures in TensorBoard, by name."""
        assert self._writer is not None
        for name, figure in figures.items():
            self._writer.add_figure(name, figure, step)

    def _note(self, step: int, row: Mapping[str, float], group: str) -> None:
        assert self._writer is not None
        append_line(self._run / METRICS, {"step": step, **row})
        for name, value in row.items():
            self._writer.add_scalar(f"{group}/{name.removeprefix('held_out_')}", value, step)


@contextlib.contextmanager
def logging(run: Path, step: int, last: int, description: str, writes: bool) -> Iterator[Log]:
    """The log of steps `step` to `last`.

    Arguments:
        description: stands before the bar until the first step is taken.
        writes: whether this process writes and shows anything.
    """
    # Not False where it is shown: that would overrule TQDM_DISABLE.
    hidden = {} if writes else {"disable": True}
    with (
        _event_writer(run / "tensorboard", step) if writes else contextlib.nullcontext() as writer,
        tqdm(total=last, initial=step, unit="step", dynamic_ncols=True, desc=description, **hidden) as bar,
    ):
        yield Log(run, bar, writer)


@contextlib.contextmanager
def _event_writer(folder: Path, step: int) -> Iterator[SummaryWriter]:
    """TensorBoard's writer from a step on; raises :class:`FileError` where it cannot write."""
    # Its thread leaves an error for the next call to raise; printing it too would bury the one line.
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        writer = SummaryWriter(str(folder), purge_step=step + 1)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                writer.close()
            raise
        writer.close()
    except OSError as error:
        raise FileError(f"cannot write {folder} ({error.strerror or error})") from error
    finally:
        threading.excepthook = hook
