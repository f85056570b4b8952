"""Rows of a table whose columns are known already: read as the kinds that a run's table had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sde_gen.data.cell_text import NOT_THERE, lines_of, number_of
from sde_gen.data.columns import frames
from sde_gen.data.columns.codec import Codec, Column
from sde_gen.data.columns.gaps import Gaps, gaps_asked
from sde_gen.data.columns.kinds import Category, Kind, word_of


def read_known(path: Path, codec: Codec, missing: float | str | None = None) -> list[Column]:
    """The columns of `codec` in a text table or a parquet file, by their names, in any order and beside others.

    missing: what marks a missing value beside nothing, NaN, NA, N/A, null and None.

    Raises ValueError, one line, for a file that cannot be read, a column that is not there and a word in a column of numbers. What the
    kind of a column cannot hold is kept (`impossible`).
    """
    _, missing = gaps_asked(missing)
    if path.suffix.lower() in frames.ENDINGS:
        table = frames.read_parquet(path)
        names = [str(name) for name in table.columns]
        places = _places(path, names, codec)
        found = [frames._column(path.name, name, table.iloc[:, place], missing) for name, place in zip(codec.names, places, strict=True)]
        return [_of_frame(path, column, kind) for column, kind in zip(found, codec.kinds, strict=True)]
    header, lines = read_cells(path)
    numbered = [str(k) for k in range(len(codec.names))]
    if list(codec.names) == numbered and set(header) != set(numbered) and len(header) == len(numbered):
        header, lines = numbered, [(1, header), *lines]  # neither table has a header
    places = _places(path, header, codec)
    if not lines:
        raise ValueError(f"{path.name}: a header but no rows")
    columns = []
    for name, place, kind, gap in zip(codec.names, places, codec.kinds, codec.gaps, strict=True):
        marks = {*NOT_THERE, gap.lower(), *([] if missing is None else [str(missing).lower()])}
        columns.append(_of_cells(path, name, [(number, cells[place]) for number, cells in lines], kind, marks))
    return columns


def read_cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a text table or parquet file, and its rows with the numbers of their lines, cells of text ("": missing)."""
    if path.suffix.lower() in frames.ENDINGS:
        table = frames.read_parquet(path)
        columns = [[_text(value) for value in table.iloc[:, k].astype(object).tolist()] for k in range(table.shape[1])]
        return [str(name) for name in table.columns], [(k, list(row)) for k, row in enumerate(zip(*columns, strict=True))]
    lines = lines_of(path)
    if not lines:
        raise ValueError(f"{path.name}: empty; a table with a header is needed")
    wide = len(lines[0][1])
    odd = next(((number, cells) for number, cells in lines if len(cells) != wide), None)
    if odd is not None:
        raise ValueError(f"{path.name}: line {odd[0]} has {len(odd[1])} cells, the first has {wide}; equal lengths are needed")
    return lines[0][1], lines[1:]


def impossible(codec: Codec, columns: Sequence[Column]) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Which rows (N,) hold a value that the kind of its column cannot, so that their probability is 0; which have a gap where the table
    has none; and by column the first such value."""
    strange, gaps = (np.zeros(len(columns[0].values), dtype=bool) for _ in range(2))
    seen = {}
    for column, kind, masked in zip(columns, codec.kinds, codec.masked, strict=True):
        known = ~column.missing
        bad = np.zeros(len(known), dtype=bool)
        bad[known] = kind.strange(column.values[known])
        if bad.any():
            seen[column.name] = word_of(column.values[bad][0].item())
        strange |= bad
        if masked:
            continue
        if column.values.dtype.kind != "f":
            gaps |= column.missing & kind.strange(column.values)
        elif not isinstance(kind, Gaps):
            gaps |= column.missing
    return strange & ~gaps, gaps, seen


def _places(path: Path, names: Sequence[str], codec: Codec) -> list[int]:
    odd = [name for name in codec.names if list(names).count(name) != 1]
    if odd:
        needed = ", ".join(odd[:8]) + (", ..." if len(odd) > 8 else "")
        raise ValueError(f"{path.name}: column {needed} of the run's table is not there, or twice; its columns are {', '.join(names[:8])}")
    return [list(names).index(name) for name in codec.names]


def _of_words(kind: Kind) -> bool:
    """Whether the values of a kind are words."""
    inner = kind.inner if isinstance(kind, Gaps) else kind
    return isinstance(inner, Category) and not all(isinstance(word, int) for word in inner.words)


def _of_cells(path: Path, name: str, cells: Sequence[tuple[int, str]], kind: Kind, marks: set[str]) -> Column:
    numbers = [number_of(cell) for _, cell in cells]
    gone = np.array([cell.lower() in marks for _, cell in cells])
    if _of_words(kind):
        return Column(name, np.where(gone, "", np.array([cell for _, cell in cells], dtype=str)), gone)
    marked = [number for number in map(number_of, marks) if number is not None]
    gone |= np.array([number in marked for number in numbers])
    for (line, cell), number, there in zip(cells, numbers, ~gone, strict=True):
        if there and (number is None or not np.isfinite(number)):
            raise ValueError(f"{path.name}: line {line}, column {name!r} holds {cell[:40]!r}; a finite number or a gap is needed")
    return Column(name, np.array([np.nan if out else x for x, out in zip(numbers, gone, strict=True)], dtype=np.float64), gone)


def _of_frame(path: Path, column: Column, kind: Kind) -> Column:
    words = column.values.dtype.kind != "f"
    if words and not _of_words(kind):
        if column.missing.all():  # pandas has no type for a column of nothing
            return Column(column.name, np.full(len(column.values), np.nan), column.missing)
        raise ValueError(f"{path.name}: column {column.name!r} holds {column.values[~column.missing][0]!r}; finite numbers are needed")
    if not words and _of_words(kind):
        values = ["" if out else word_of(value) for value, out in zip(column.values.tolist(), column.missing.tolist(), strict=True)]
        return Column(column.name, np.array(values, dtype=str), column.missing)
    return column


def _text(value: object) -> str:
    return "" if value is None or str(value) in ("<NA>", "NaT", "nan") else word_of(value)
