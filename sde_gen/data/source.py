"""Items that are read from disk when they are asked for: data sets larger than memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.precision import wide

IN_MEMORY = 1 << 30
"""Bytes as float32 up to which a data set is read whole; a larger one stays on disk and is read batch by batch."""
MOST_SAMPLED = 50_000
"""At most so many drawn items of a data set on disk are read whole, to fit the normaliser and moments and to compare with."""
_PIECE = 4096
_CURE = "missing='nan' (--missing nan) leaves such items out"


@dataclass(frozen=True, eq=False)
class Source:
    """Items in a file, in the data's own units when indexed; what a tensor (N, *item) is for data in memory.

    `source[index]` takes a tensor of item numbers (any device, any order, repeats allowed), a slice or a whole number, and
    gives `dtype` on the CPU, (B, *item) or, for a whole number, one item. Nothing else is kept in memory.

    Attributes:
        name: the file, for messages.
        item: shape of one item.
        read: row numbers of the file, int64 (B,), to their values, numeric (B, *item); integers stay integers on disk.
        rows: (N,) int64, the row of the file that each item is.
        then: applied to every batch that was read, as a normaliser's encoding, or None.
        dtype: float32, or float64 for values that float32 would round too much (`precision.needs_float64`).
        gap: of conditions, the number that says that a value is not known, as NaN and a masked cell do: all three are read as NaN. None:
            they are refused.
    """

    name: str
    item: tuple[int, ...]
    read: Callable[[np.ndarray], np.ndarray]
    rows: np.ndarray
    then: Callable[[Tensor], Tensor] | None = None
    dtype: torch.dtype = torch.float32
    gap: float | None = None

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

    @property
    def wide(self) -> bool:
        """Whether the file's numbers have more digits than float32, by the type of its first item."""
        return bool(len(self)) and wide(np.asanyarray(self.read(self.rows[:1])).dtype)

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        if isinstance(index, int):
            return self[torch.tensor([index])][0]
        rows = self.rows[index if isinstance(index, slice) else index.cpu().numpy()]
        values = np.asanyarray(self.read(rows))
        if self.gap is not None:
            return self._with_gaps(values, self.gap, rows)
        masked = _first(np.ma.getmaskarray(values)) if isinstance(values, np.ma.MaskedArray) else None
        if masked is not None:
            raise ValueError(f"data {self.name!r}: item {rows[masked]} has masked cells; {_CURE}")
        with np.errstate(over="ignore"):  # what overflows float32 is refused below
            items = np.ascontiguousarray(values, dtype=np.float64 if self.dtype == torch.float64 else np.float32)
        bad = _first(~(np.abs(items) <= np.finfo(np.float32).max)) if values.dtype.kind == "f" else None
        if bad is not None:
            cure = f" ({_CURE})" if np.isnan(values[bad]).any() else ""
            raise ValueError(f"data {self.name!r}: item {rows[bad]} holds NaN or infinite values; finite float32 numbers are needed{cure}")
        batch = torch.from_numpy(items)
        return batch if self.then is None else self.then(batch)

    def _with_gaps(self, values: np.ndarray, gap: float, rows: np.ndarray) -> Tensor:
        holes = holes_in(values, gap)
        with np.errstate(over="ignore"):
            items = np.ascontiguousarray(np.ma.getdata(values), dtype=np.float64 if self.dtype == torch.float64 else np.float32)
        items = items.copy() if np.shares_memory(items, values) else items
        items[holes] = np.nan
        bad = _first(np.isinf(items))
        if bad is not None:
            raise ValueError(
                f"data {self.name!r}: item {rows[bad]} holds infinite values; numbers, or NaN for what is not known, are needed"
            )
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
        """All items, read whole, in the order of their rows so that a disk reads forwards."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        for index, values in self.pieces():
            whole[index] = values
        return whole

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All items, some thousand at a time, in the order of their rows: their numbers int64 (B,) and the items (B, *item)."""
        order = torch.from_numpy(np.argsort(self.rows, kind="stable"))
        for index in order.split(_PIECE):
            yield index, self[index]

    def complete(self, missing: float) -> np.ndarray:
        """(N,) Boolean: the items without a cell that is masked or equal to `missing`, compared in the file's own type (NaN: not a
        number). Every item is read once."""
        whole = np.ones(len(self), bool)
        for start in range(0, len(self), _PIECE):
            holes = holes_in(np.asanyarray(self.read(self.rows[start : start + _PIECE])), missing)
            whole[start : start + _PIECE] = ~holes.reshape(len(holes), -1).any(1)
        return whole


def array_source(array: np.ndarray, name: str) -> Source:
    """The rows of an array (N, *item), mapped from disk or in memory."""
    return Source(name, tuple(array.shape[1:]), lambda rows: array[rows], np.arange(len(array)))


def holes_in(values: np.ndarray, missing: float) -> np.ndarray:
    """Which cells are masked or equal to `missing`, compared in the type of the values (NaN: not a number)."""
    holes = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else np.zeros(values.shape, bool)
    plain = np.ma.getdata(values)
    if plain.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return holes | (np.isnan(plain) if np.isnan(missing) else plain == plain.dtype.type(missing))
    if missing == missing // 1 and abs(missing) < 2**63:
        return holes | (plain == int(missing))
    return holes


def _first(bad: np.ndarray) -> int | None:
    """The first item of (B, *) in which a value is True."""
    found = np.flatnonzero(bad.reshape(len(bad), -1).any(1))
    return int(found[0]) if len(found) else None
