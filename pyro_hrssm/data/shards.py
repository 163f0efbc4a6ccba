"""Several arrays read as one, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.errors import InputError

CHUNK_BYTES = 2**22
"""Most bytes that :meth:`Shards.chunks` reads at once, unless a single row is larger."""


class Shards:
    """Arrays [N_i, …] of one dtype, concatenated along their rows without being joined in memory.

    The arrays may be memory-mapped; only the requested rows are read.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        if not arrays:
            raise InputError("frames must be at least one array, found none")
        first = arrays[0]
        for position, array in enumerate(arrays):
            if array.ndim == 0 or array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
                raise InputError(
                    f"every shard must hold rows of {first.dtype} {list(first.shape[1:])} as the first does, "
                    f"found {array.dtype} {list(array.shape[1:])} in shard {position}"
                )
        self._arrays = tuple(arrays)
        self._starts = np.cumsum([0, *(len(array) for array in arrays)])

    @classmethod
    def joined(cls, *parts: Shards) -> Shards:
        """The arrays of several, one after the other."""
        return cls([array for part in parts for array in part._arrays])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape [N, …] of the joined arrays."""
        return (len(self), *self._arrays[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The arrays' common dtype."""
        return self._arrays[0].dtype

    def rows(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """A copy [len(indices), …] of these rows, in this order; indices [M] lie in [0, N)."""
        if len(self._arrays) == 1:
            return self._arrays[0][indices]
        joined = np.empty((len(indices), *self.shape[1:]), self.dtype)
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        for owner in np.unique(owners):
            places = owners == owner
            joined[places] = self._arrays[owner][indices[places] - self._starts[owner]]
        return joined

    def chunks(self, indices: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Copies of these rows, :data:`CHUNK_BYTES` at a time, each with the slice of `indices` it holds."""
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        step = max(1, CHUNK_BYTES // max(1, row_bytes))
        for start in range(0, len(indices), step):
            part = slice(start, min(start + step, len(indices)))
            yield part, self.rows(indices[part])
