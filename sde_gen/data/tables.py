"""Tables of numbers in text files."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
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


def load_table(path: Path, label_column: str | None = None, **options: Any) -> Dataset:
    """A data set (N, D) from a text table, one item a line; `options` go to `assemble`.

    Cells are separated by tabs in .tsv, otherwise by whichever of , ; tab is in the first line, or by spaces if none is. A
    first line with a cell that is no number is the header. Empty lines and lines that start with # are left out.

    Args:
        path: a UTF-8 file.
        label_column: the column of class labels (whole numbers or words), by its name in the header or its number from 0.

    Raises:
        ValueError: a cell that is no finite number, lines of different lengths, no such column, not a text file.
    """
    if not path.is_file():
        raise ValueError(f"{path.name}: {'a directory' if path.is_dir() else 'no such file'}; a table ({', '.join(ENDINGS)}) is needed")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.name}: {path.stat().st_size:,} bytes; tables of at most {MOST_BYTES:,} are allowed, save it as .npy")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            values, labels, names = _parse(path, file, label_column)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name}: cannot be read as a text table ({one_line(error)}); UTF-8 text is needed") from error
    notes = []
    if names is not None:
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        notes.append(f"{len(names)} columns: {shown}")
    train = Part(array_source(values, path.name), None if labels is None else _as_labels(labels))
    return assemble(path.name, train, notes=notes, **options)


def _parse(path: Path, file: TextIO, label_column: str | None) -> tuple[np.ndarray, list[str] | None, list[str] | None]:
    lines = _rows(path, file)
    first_line, first = next(lines, (0, []))
    if not first:
        raise ValueError(f"{path.name}: empty; a table of numbers is needed")
    header = not all(_is_number(cell) or not cell for i, cell in enumerate(first) if str(i) != label_column)
    names = first if header else [str(i) for i in range(len(first))]
    column = None
    if label_column is not None:
        numbered = {str(i): i for i in range(len(names))}
        if label_column not in names and label_column not in numbered:
            listed = ", ".join(names[:_SHOWN])
            raise ValueError(f"{path.name}: no column {label_column!r} for the labels; its columns are {listed}")
        column = names.index(label_column) if label_column in names else numbered[label_column]
    cells, labels = array("d"), []
    for number, row in lines if header else _chain((first_line, first), lines):
        if len(row) != len(first):
            raise ValueError(
                f"{path.name}: line {number} has {len(row)} cells, line {first_line} has {len(first)}; equal lengths are needed"
            )
        for i, cell in enumerate(row):
            if i == column:
                labels.append(cell)
                continue
            value = _number(cell)
            if value is None or not abs(value) < np.inf:
                found = repr(cell[:40]) if cell else "nothing"
                raise ValueError(
                    f"{path.name}: line {number}, column {names[i]!r} holds {found}; finite numbers are needed"
                    + ("" if value is not None or column is not None else " (words are allowed in the label column alone)")
                )
            cells.append(value)
    width = len(first) - (column is not None)
    if not len(cells):
        raise ValueError(f"{path.name}: a header but no numbers" if width else f"{path.name}: no column beside the labels")
    values = np.frombuffer(cells, dtype=np.float64).reshape(-1, width)
    shown = [name for i, name in enumerate(names) if i != column] if header else None
    return values, labels if column is not None else None, shown


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
