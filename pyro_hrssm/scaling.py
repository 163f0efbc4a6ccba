"""The scaling of frames: an affine map from the units of a data set to those of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_hrssm.config import is_finite
from pyro_hrssm.errors import InputError, one_line
from pyro_hrssm.host import on_host


@dataclass(frozen=True)
class Scaling:
    """The affine map `(frames - shift) / scale` from a file's units to a model's.

    It is fitted on the training split, but one to [0, 1] for a Bernoulli emission on all sequences, since a held-out
    frame outside would have no likelihood; a run stores it in its checkpoints.
    """

    shift: float | tuple[float, ...] = 0.0
    """One number, or one per entry of the frames' last axis."""
    scale: float | tuple[float, ...] = 1.0
    """One positive number, or one per entry of the frames' last axis."""

    def __post_init__(self) -> None:
        for name, lowest in (("shift", -math.inf), ("scale", 0.0)):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not (numbers and all(is_finite(number) and number > lowest for number in numbers)):
                wanted = "positive finite numbers" if name == "scale" else "finite numbers"
                raise InputError(f"scaling's {name} must hold {wanted}, found {one_line(value)}")
        if len({size for size in self._sizes() if size > 1}) > 1:
            raise InputError(f"scaling's shift and scale must be equally long, found {self._sizes()}")

    def apply(self, array: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Map frames […, X] from a file's units to a model's, in float32."""
        values = on_host(array)
        # Small types fit float32 exactly; in wider ones the shift may cancel most of the digits.
        work = np.dtype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
        scaled: NDArray[np.floating[Any]] = values.astype(work)
        scaled -= np.asarray(self.shift, work)
        scaled /= np.asarray(self.scale, work)
        return scaled.astype(np.float32, copy=False)

    def invert(self, array: ArrayLike | Tensor) -> NDArray[np.float64]:
        """Map frames […, X] from a model's units to the file's, in float64."""
        return np.asarray(on_host(array), np.float64) * np.asarray(self.scale) + np.asarray(self.shift)

    def nats_if_raw(self, frames: Tensor) -> Tensor:
        """How much better frames […, X] fit a file's units than a model's, in nats per entry, on average.

        Entries of scaled frames have about the mean 0 and the deviation 1, and raw ones `shift` and `scale`. The result
        is the difference of their log densities under the two Normals: positive where the raw units fit better.
        Entries that are NaN are left out.
        """
        shift, scale = frames.new_tensor(self.shift), frames.new_tensor(self.scale)
        return (0.5 * (frames.square() - ((frames - shift) / scale).square()) - scale.log()).nanmean()

    def check(self, frame_shape: tuple[int, ...]) -> None:
        """Raise :class:`InputError` where frames of this shape cannot be scaled."""
        for size in self._sizes():
            if size not in (1, frame_shape[-1]):
                raise InputError(f"scaling is for frames whose last axis is {size}, found {list(frame_shape)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = {"shift": self.shift, "scale": self.scale}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Any) -> Scaling:
        """Rebuild from :meth:`to_dict`'s values; anything else raises :class:`InputError`."""
        if not isinstance(values, dict) or set(values) != {"shift", "scale"}:
            raise InputError(f"scaling must be a table of shift and scale, found {one_line(values)}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def _sizes(self) -> tuple[int, int]:
        return int(np.size(self.shift)), int(np.size(self.scale))
