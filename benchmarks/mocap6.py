"""An archive of mocap6: six recordings of exercises whose actions are annotated, a real set of segments with types.

Fox, Hughes, Sudderth and Jordan (2014, *Joint modeling of multiple time series via the beta process*) chose six
recordings of CMU's motion capture, 205 to 446 frames at 10 Hz with 12 channels, and annotated 12 exercises. The data is
no part of this project: https://github.com/michaelchughes/mocap6dataset releases it under the BSD licence, and the
source package of bnpy on PyPI holds a copy::

    pip download --no-deps --no-binary bnpy bnpy==0.1.7
    python -m benchmarks.mocap6 bnpy-0.1.7.tar.gz mocap6.npz
    pyro-hrssm train --data mocap6.npz
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm import data
from pyro_hrssm.errors import InputError, require

MEMBER = "datasets/mocap6/dataset.npz"


def archive(content: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays of an archive, from those of bnpy's file: recordings one after the other become rows of equal length.

    Arguments:
        content: `X` [frames, channels], `TrueZ` [frames], the action from 1 on, `doc_range` [N + 1], each recording's
            first frame, and the names `true_state_names` and `column_names`.

    Returns:
        `frames` float32 [N, T, channels], `lengths` [N], `boundaries` [N, T], where the next frame shows another
        action, `labels` [N, T], the action from 0 on and -1 past the end, `label_names` and `channel_names`.
    """
    starts, actions = content["doc_range"], content["TrueZ"].astype(np.int64) - 1
    lengths = np.diff(starts)
    frames = np.zeros((len(lengths), lengths.max(), content["X"].shape[1]), np.float32)
    labels = np.full(frames.shape[:2], -1)
    boundaries = np.zeros(frames.shape[:2], bool)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        frames[row, :length] = content["X"][start : start + length]
        labels[row, :length] = actions[start : start + length]
        boundaries[row, : length - 1] = np.diff(labels[row, :length]) != 0
    names = {name: content[key].astype(str) for name, key in _NAMES.items()}
    return {"frames": frames, "lengths": lengths, "boundaries": boundaries, "labels": labels} | names


_NAMES = {"label_names": "true_state_names", "channel_names": "column_names"}


def read(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of bnpy's `dataset.npz`, or of the one in bnpy's source package (.tar.gz); nothing is extracted."""
    if path.suffix == ".npz":
        return _arrays(io.BytesIO(path.read_bytes()))
    with tarfile.open(path) as package:
        names = [name for name in package.getnames() if name.endswith(MEMBER)]
        require(len(names) == 1, f"{path} must hold one {MEMBER}, found {len(names)}")
        file = package.extractfile(names[0])
        assert file is not None  # a member that is no file
        return _arrays(io.BytesIO(file.read()))


def _arrays(file: io.BytesIO) -> dict[str, NDArray[Any]]:
    wanted = {"X", "TrueZ", "doc_range", *_NAMES.values()}
    with np.load(file, allow_pickle=False) as content:
        missing = sorted(wanted - set(content.files))
        require(not missing, f"bnpy's dataset must hold {', '.join(sorted(wanted))}, found no {', '.join(missing)}")
        return {name: content[name] for name in wanted}


def main() -> None:
    """Read bnpy's file, write the archive."""
    parser = argparse.ArgumentParser(description="Turn bnpy's copy of mocap6 into an archive to train on.")
    parser.add_argument("source", type=Path, help="bnpy-0.1.7.tar.gz, or the dataset.npz in it")
    parser.add_argument("out", type=Path, nargs="?", default=Path("mocap6.npz"), help="the archive to write")
    given = parser.parse_args()
    try:
        made = archive(read(given.source))
        data.save_npz(given.out, **made)
    except (InputError, OSError, tarfile.TarError) as error:
        raise SystemExit(f"mocap6: {error}") from error
    print(f"{given.out}: frames {list(made['frames'].shape)}, {made['boundaries'].sum()} boundaries")


if __name__ == "__main__":
    main()
