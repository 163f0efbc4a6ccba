"""The log of training: `metrics.jsonl`, TensorBoard and the progress bar."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from pyro_hrssm import progress
from pyro_hrssm.checkpoint import METRICS
from pyro_hrssm.files import FileError, append_line, why


class Log:
    """The log of a run's training; only the log of the first process writes.

    Arguments:
        run: the run's folder.
        bar: the progress bar, which counts steps.
        writer: TensorBoard's writer; None in the processes that write nothing.
    """

    def __init__(self, run: Path, bar: Any, writer: SummaryWriter | None) -> None:
        self._run, self.bar, self._writer = run, bar, writer

    def training(self, step: int, row: Mapping[str, float]) -> None:
        """Log the measurements of a step, and show some of them beside the bar."""
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
        """Log the scores of an evaluation on held-out sequences; the keys start with `held_out_`."""
        self._note(step, row, "held_out")

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Show PNG files in TensorBoard, by name, as they are: `add_figure` would paint each figure once more."""
        assert self._writer is not None
        assert self._writer.file_writer is not None
        for name, picture in pictures.items():
            with Image.open(io.BytesIO(picture)) as opened:
                width, height = opened.size
            encoded = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=picture)
            self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=encoded)]), step)

    def warn(self, step: int, text: str) -> None:
        """Print one line about a step above the progress bar, on the standard error."""
        self.bar.write(f"pyro-hrssm: step {step}: {text}", file=sys.stderr)

    def _note(self, step: int, row: Mapping[str, float], group: str) -> None:
        assert self._writer is not None
        append_line(self._run / METRICS, {"step": step, **row})
        for name, value in row.items():
            self._writer.add_scalar(f"{group}/{name.removeprefix('held_out_')}", value, step)


@contextlib.contextmanager
def logging(run: Path, step: int, last: int, description: str, writes: bool, shows: bool) -> Iterator[Log]:
    """The log of steps `step` to `last`.

    Arguments:
        description: the text before the bar until the first step is taken.
        writes: whether this process writes anything.
        shows: whether it shows the bar.
    """
    with (
        _event_writer(run / "tensorboard", step) if writes else contextlib.nullcontext() as writer,
        progress.bar(shows=shows, total=last, initial=step, unit="step", dynamic_ncols=True, desc=description) as bar,
    ):
        yield Log(run, bar, writer)


@contextlib.contextmanager
def _event_writer(folder: Path, step: int) -> Iterator[SummaryWriter]:
    """TensorBoard's writer from a step on; raises :class:`FileError` where the writer cannot write."""
    # The next call raises an error of the writer's thread; a traceback of the thread would bury the one line.
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        writer = SummaryWriter(str(folder), purge_step=step + 1)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                writer.close()
            raise
        writer.close()
    except OSError as error:
        raise FileError(f"cannot write {folder} ({why(error)})") from error
    finally:
        threading.excepthook = hook
