"""Tables of numbers in text files."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from sde_gen.data.assemble import Part, assemble
from sde_gen.data.dataset import Dataset
from sde_gen.data.errors import one_line
from sde_gen.data.source import array_source

ENDINGS = (".csv", ".tsv", ".txt")
MOST_BYTES = 4 << 30
"""A larger table should be an .npy file, which need not be read whole."""
_SHOWN = 8
_NOT_THERE = ("", "na", "n/a", "nan", "null", "none")
_LIKELY_LABELS = ("label", "labels", "class", "classes", "target", "category", "species")


def load_table(path: Path, label_column: str | None = None, missing: float | str | None = None, **options: Any) -> Dataset:
    """A data set (N, D) from a text table, one item a line; `options` go to `assemble`.

    Cells are separated by tabs in .tsv, otherwise by whichever of , ; tab is in the first line, or by spaces if none is. A
    first line with a cell that is no number is the header, and so is 0, 1, 2, ... as pandas numbers columns without names. Empty
    lines and lines that start with # are left out, and so is a first column that has no name in the header and tells the lines apart
    by whole numbers or words, as pandas and R write their index.

    Args:
        path: a UTF-8 file.
        label_column: the column of class labels (whole numbers or words), by its name in the header or its number from 0.
        missing: what marks a missing cell: a number, a word, or "nan" for nothing, NaN, NA, N/A, null and None. Lines with such a
            cell, the label included, are left out and counted in the notes.
        options: of `assemble`.

    Raises:
        ValueError: a cell that is no finite number, a line without a label, lines of different lengths, no such column, not a text file.
    """
    if not path.is_file():
        raise ValueError(f"{path.name}: {'a directory' if path.is_dir() else 'no such file'}; a table ({', '.join(ENDINGS)}) is needed")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.name}: {path.stat().st_size:,} bytes; tables of at most {MOST_BYTES:,} are allowed, save it as .npy")
    mark = None if missing is None else str(missing).strip()
    value = None if mark is None else _number(mark)
    if value is not None and math.isfinite(value):
        mark = None  # a number is read as any other and found in the array
    elif mark is not None:
        missing = "nan"  # as what such cells are read
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = _parse(path, file, label_column, mark)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name}: cannot be read as a text table ({one_line(error)}); UTF-8 text is needed") from error
    notes, count = [], table.values.shape[1]
    names = table.names
    listed = "" if names is None else ": " + ", ".join(names[:_SHOWN]) + (", ..." if count > _SHOWN else "")
    notes.append(f"read as {len(table.values):,} rows of {count} column{'s' * (count != 1)}{listed} (axes NC; float64, continuous)")
    if table.index is not None:
        notes.append(f"the first column ({table.index}) is left out: it has no name and only tells the lines apart")
    likely = next((name for name in names or () if name.lower() in _LIKELY_LABELS), None)
    if label_column is None and likely is not None:
        notes.append(f"column {likely!r} is read as a number; label_column={likely!r} (--label-column {likely}) makes it the label")
    train = Part(array_source(table.values, path.name), None if table.labels is None else _as_labels(table.labels))
    return assemble(path.name, train, notes=notes, missing=missing, columns=names, label_column=table.label_column, **options)


@dataclass
class _Table:
    """Numbers (N, D) float64, the labels as they stand, the names of the D columns, what the left-out index is called, and the name of
    the column of labels with its place among the columns but the index."""

    values: np.ndarray
    labels: list[str] | None
    names: list[str] | None
    index: str | None
    label_column: tuple[str | None, int] | None = None


def _parse(path: Path, file: TextIO, label_column: str | None, missing: str | None) -> _Table:
    lines = _rows(path, file)
    first_line, first = next(lines, (0, []))
    if not first:
        raise ValueError(f"{path.name}: empty; a table of numbers is needed")
    header = not all(_is_number(cell) or _absent(cell, missing) or not cell for i, cell in enumerate(first) if str(i) != label_column)
    header = header or _counts(first)
    names = first if header else [str(i) for i in range(len(first))]
    column = None
    if label_column is not None:
        numbered = {str(i): i for i in range(len(names))}
        if label_column not in names and label_column not in numbered:
            listed = ", ".join(names[:_SHOWN])
            raise ValueError(f"{path.name}: no column {label_column!r} for the labels; its columns are {listed}")
        column = names.index(label_column) if label_column in names else numbered[label_column]
    nameless = header and column != 0 and len(first) > 1 and first[0] in ("", "Unnamed: 0")
    cells, labels, index = array("d"), [], []
    for number, row in lines if header else _chain((first_line, first), lines):
        if len(row) != len(first):
            raise ValueError(
                f"{path.name}: line {number} has {len(row)} cells, line {first_line} has {len(first)}; equal lengths are needed"
            )
        hole = False
        for i, cell in enumerate(row):
            if i == column:
                labels.append(cell)
                hole = _absent(cell, missing)
                if not cell and not hole:
                    raise ValueError(
                        f"{path.name}: line {number}, column {names[i]!r} holds no label; one each is needed, or missing='nan' "
                        "(--missing nan) to leave such lines out"
                    )
            elif i == 0 and nameless:
                index.append(cell)
            else:
                cells.append(_cell(path, number, names[i], cell, missing, column is not None))
        if hole and len(cells):
            cells[-1] = math.nan  # a line without a label is left out like any other with a hole
    width = len(first) - (column is not None) - nameless
    if not len(cells):
        raise ValueError(f"{path.name}: a header but no numbers" if width else f"{path.name}: no column beside the labels")
    values = np.frombuffer(cells, dtype=np.float64).reshape(-1, width)
    shown = [name for i, name in enumerate(names) if i != column] if header else None
    about = None if column is None else (names[column] if header else None, column)
    words = labels if column is not None else None
    if nameless and not _tells_apart(index):  # a column of data after all
        extra = [_cell(path, number, names[0], cell, missing, column is not None) for number, cell in enumerate(index, first_line + 1)]
        values = np.column_stack((extra, values))
    elif nameless and shown is not None:
        left_out = f"{index[0]}, {index[1]}, ..." if len(index) > 1 else index[0]
        return _Table(values, words, shown[1:], left_out, None if about is None else (about[0], about[1] - 1))
    return _Table(values, words, shown, None, about)


def _counts(first: list[str]) -> bool:
    """Whether a first line is 0, 1, 2, ... for at least three columns, or nothing and then these: the header that pandas gives to an
    array without names."""
    names = first[1:] if not first[0] else first
    return names == [str(i) for i in range(len(names))] and len(names) >= (1 if not first[0] else 3)


def _tells_apart(index: list[str]) -> bool:
    """Whether the cells are all different, and whole numbers or words."""
    numbers = [_number(cell) for cell in index]
    kind = all(number is None or number == round(number) for number in numbers if number is None or abs(number) < np.inf)
    return kind and len(set(index)) == len(index)


def _cell(path: Path, line: int, name: str, cell: str, missing: str | None, labelled: bool) -> float:
    if _absent(cell, missing):
        return math.nan
    value = _number(cell)
    if value is not None and abs(value) < np.inf:
        return value
    found = repr(cell[:40]) if cell else "nothing"
    cure = ""
    if cell.lower() in _NOT_THERE:
        cure = "; missing='nan' (--missing nan) leaves such lines out"
    elif value is None and not labelled:
        cure = " (words are allowed in the label column alone: --label-column)"
    raise ValueError(f"{path.name}: line {line}, column {name!r} holds {found}; finite numbers are needed{cure}")


def _absent(cell: str, missing: str | None) -> bool:
    if missing is None:
        return False
    return cell == missing if missing.lower() != "nan" else cell.lower() in _NOT_THERE


def _rows(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """The lines that hold cells, with their numbers."""
    first = ""
    while not first.strip() or first.startswith("#"):
        first = file.readline(1 << 20)
        if not first:
            return
    counts = {mark: first.count(mark) for mark in (",", ";", "\t")}
    mark = "\t" if path.suffix.lower() == ".tsv" else max(counts, key=lambda key: counts[key])
    file.seek(0)
    if not counts[mark] and path.suffix.lower() != ".tsv":
        for number, line in enumerate(file, 1):
            if line.strip() and not line.startswith("#"):
                yield number, line.split()
        return
    reader = csv.reader(file, delimiter=mark)
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells) and not cells[0].startswith("#"):
            yield reader.line_num, cells


def _chain(first: tuple[int, list[str]], rest: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from rest


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # float("1_0") is 10
    except ValueError:
        return None


def _is_number(cell: str) -> bool:
    return _number(cell) is not None


def _as_labels(labels: list[str]) -> np.ndarray:
    """Whole numbers where all are, so that they sort as numbers; otherwise words."""
    numbers = [_number(label) for label in labels]
    whole = [int(number) for number in numbers if number is not None and abs(number) < 1e15 and number == round(number)]
    return np.array(whole if len(whole) == len(labels) else labels)
