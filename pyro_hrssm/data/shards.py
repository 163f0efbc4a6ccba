"""Several arrays read as one, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.errors import InputError

CHUNK_BYTES = 2**22
"""Most bytes that :meth:`Shards.chunks` reads at once, unless a single row is larger."""


def alike(one: NDArray[Any] | Shards, other: NDArray[Any] | Shards) -> bool:
    """Whether two arrays hold sequences [N, T, X…] of the same dtype and X…, of any lengths, or equal rows else."""
    first = 2 if len(one.shape) > 2 else 1
    return (
        0 < len(one.shape) == len(other.shape) and one.shape[first:] == other.shape[first:] and one.dtype == other.dtype
    )


class Shards:
    """Arrays [N_i, …] of one dtype, concatenated along their rows without being joined in memory.

    The arrays may be memory-mapped; only the requested rows are read. Sequences [N_i, T_i, X…] may be of different
    lengths: the shorter ones are read with zeros after their last frame.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        if not arrays:
            raise InputError("frames must be at least one array, found none")
        first = arrays[0]
        for position, array in enumerate(arrays):
            if not alike(array, first):
                raise InputError(
                    f"every shard must hold rows of {first.dtype} {list(first.shape[1:])} as the first does, "
                    f"found {array.dtype} {list(array.shape[1:])} in shard {position}"
                )
        self._arrays = tuple(arrays)
        self._longest = max(array.shape[1:2] for array in arrays)  # () for rows that are no sequences
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
        return (len(self), *self._longest, *self._arrays[0].shape[2:])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] number of frames of each sequence, as it is stored."""
        return np.repeat([array.shape[1] for array in self._arrays], np.diff(self._starts))

    def within(self, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """A mask [N, T], False also after the last frame of shorter sequences; None if it is True everywhere."""
        if (self.lengths == self.shape[1]).all():
            return mask
        within = np.arange(self.shape[1]) < self.lengths[:, None]
        return within if mask is None else mask & within

    def stretch(self, row: int, start: int, stop: int) -> NDArray[Any]:
        """The frames from `start` to `stop - 1` of one sequence, as a view where the array allows."""
        owner = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._arrays[owner][row - self._starts[owner], start:stop]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The arrays' common dtype."""
        return self._arrays[0].dtype

    def rows(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """A copy [len(indices), …] of these rows, in this order; indices [M] lie in [0, N)."""
        if len(self._arrays) == 1:
            return self._arrays[0][indices]
        joined = np.zeros((len(indices), *self.shape[1:]), self.dtype)
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        for owner in np.unique(owners):
            places = owners == owner
            found = self._arrays[owner][indices[places] - self._starts[owner]]
            joined[(places, *map(slice, found.shape[1:2]))] = found
        return joined

    def chunks(self, indices: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Copies of these rows, :data:`CHUNK_BYTES` at a time, each with the slice of `indices` it holds."""
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        step = max(1, CHUNK_BYTES // max(1, row_bytes))
        for start in range(0, len(indices), step):
            part = slice(start, min(start + step, len(indices)))
            yield part, self.rows(indices[part])
