"""Items that are read from disk when they are asked for: data sets larger than memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

IN_MEMORY = 1 << 30
"""Bytes as float32 up to which a data set is read whole; a larger one stays on disk and is read batch by batch."""
MOST_SAMPLED = 50_000
"""At most so many evenly spaced items of a data set on disk are read whole, to fit the normaliser and moments and to compare with."""
_PIECE = 4096


@dataclass(frozen=True, eq=False)
class Source:
    """Items in a file, float32 in the data's own units when indexed; what a tensor (N, *item) is for data in memory.

    `source[index]` takes a tensor of item numbers (any device, any order, repeats allowed), a slice or a whole number, and
    gives float32 on the CPU, (B, *item) or, for a whole number, one item. Nothing else is kept in memory.

    Attributes:
        name: the file, for messages.
        item: shape of one item.
        read: row numbers of the file, int64 (B,), to their values, numeric (B, *item); integers stay integers on disk.
        rows: (N,) int64, the row of the file that each item is.
        then: applied to every float32 batch that was read, as a normaliser's encoding, or None.
    """

    name: str
    item: tuple[int, ...]
    read: Callable[[np.ndarray], np.ndarray]
    rows: np.ndarray
    then: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(N, *item)."""
        return torch.Size((len(self), *self.item))

    @property
    def nbytes(self) -> int:
        """What all items would take in memory as float32."""
        return 4 * self.shape.numel()

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        if isinstance(index, int):
            return self[torch.tensor([index])][0]
        rows = self.rows[index if isinstance(index, slice) else index.cpu().numpy()]
        values = np.asarray(self.read(rows))
        with np.errstate(over="ignore"):  # what overflows float32 is refused below
            items = np.ascontiguousarray(values, dtype=np.float32)
        if values.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(items.reshape(len(items), -1)).all(1))
            if len(bad):
                raise ValueError(f"data {self.name!r}: item {rows[bad[0]]} holds NaN or infinite values; finite float32 numbers are needed")
        batch = torch.from_numpy(items)
        return batch if self.then is None else self.then(batch)

    def subset(self, index: np.ndarray | slice) -> Source:
        """The items `index`, still unread."""
        return dataclasses.replace(self, rows=self.rows[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> Source:
        """The same items with `function` applied to each batch that is read."""
        first = self.then
        return dataclasses.replace(self, then=function if first is None else lambda batch: function(first(batch)))

    def tensor(self) -> Tensor:
        """All items, read whole."""
        whole = torch.empty(self.shape)
        for start in range(0, len(self), _PIECE):
            whole[start : start + _PIECE] = self[start : start + _PIECE]
        return whole

    def evenly_spaced(self, count: int) -> np.ndarray:
        """Indices of `count` evenly spaced items (all, if there are fewer), ascending."""
        count = min(count, len(self))
        return np.arange(count) * len(self) // max(1, count)


def array_source(array: np.ndarray, name: str, layout: str = "as is") -> Source:
    """The rows of an array (N, *), mapped from disk or in memory. `layout`: "as is"; "one channel", (N, H, W) to (N, 1, H, W);
    "channels last", (N, H, W, C) to (N, C, H, W)."""

    def read(rows: np.ndarray) -> np.ndarray:
        values = array[rows]
        return values[:, None] if layout == "one channel" else np.moveaxis(values, -1, 1) if layout == "channels last" else values

    shape = array.shape[1:]
    item = (1, *shape) if layout == "one channel" else (shape[-1], *shape[:-1]) if layout == "channels last" else shape
    return Source(name, tuple(item), read, np.arange(len(array)))
