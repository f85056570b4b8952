"""Tables in text files: of numbers, or of columns of kinds of their own."""

from __future__ import annotations

import csv
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from sde_gen.data import conditions as of_items
from sde_gen.data.assemble import Part, assemble
from sde_gen.data.cell_text import NOT_THERE, number_of, rows_of
from sde_gen.data.columns import frames
from sde_gen.data.columns.codec import DROP
from sde_gen.data.columns.gaps import gaps_asked
from sde_gen.data.columns.text import INFER, Told, columns_of, told
from sde_gen.data.dataset import Dataset
from sde_gen.data.errors import one_line
from sde_gen.data.masks import mask_mark
from sde_gen.data.source import array_source
from sde_gen.data.splits import GROUP

TEXT = (".csv", ".tsv", ".txt")
ENDINGS = (*TEXT, *frames.ENDINGS)
MOST_BYTES = 4 << 30
"""A larger table should be an .npy file, which need not be read whole."""
_SHOWN = 8
LEAST_LINES = 20
"""Of a table with words or gaps of which nothing is said, so that its columns' kinds are inferred."""
_LIKELY_LABELS = ("label", "labels", "class", "classes", "target", "category", "species")


def load_table(
    path: Path,
    label_column: str | None = None,
    missing: float | str | None = None,
    conditions: Sequence[str] = (),
    columns: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    **options: Any,
) -> Dataset:
    """A data set (N, D) from a text table, one item a line; `options` go to `assemble`.

    Cells are separated by tabs in .tsv, otherwise by whichever of , ; tab is in the first line, or by spaces if none is. A
    first line with a cell that is no number is the header, and so is 0, 1, 2, ... as pandas numbers columns without names. Empty
    lines and lines that start with # are left out, and so is a first column that has no name in the header and tells the lines apart
    by whole numbers or words, as pandas and R write their index.

    Args:
        path: a UTF-8 file.
        label_column: the column of class labels (whole numbers or words), by its name in the header or its number from 0.
        missing: what marks a missing cell: a number, a word, or "nan" for nothing, NaN, NA, N/A, null and None. Lines with such a
            cell, the label included, are left out and counted in the notes; in a column of `conditions` it says that one is not known.
            "sample" or "condition" ("condition=VALUE"), of a table of kinds: no line is left out, and gaps are values that are sampled
            (as they are by themselves), or a condition that tells the network where they are (`gaps.gaps_asked`).
        conditions: columns that are conditions and leave the data, each "COLUMN" or "NAME=COLUMN", by name or number as `label_column`.
            A column of numbers is one number an item, any other a category. Cells of nothing, NaN, NA, N/A, null and None are not known.
        columns: "infer", or what columns are by their names ({COLUMN: KIND}, see `columns.codec.read_asked`), the others inferred: the
            items are then the features of `Dataset.codec`, and a missing cell is a value. None: numbers as they are; a table with words or
            gaps, which cannot be read so, is inferred, and the notes say so.
        options: of `assemble`.

    Raises:
        ValueError: a cell that is no finite number, a line without a label, lines of different lengths, no such column, not a text file.
    """
    if not path.is_file():
        raise ValueError(f"{path.name}: {'a directory' if path.is_dir() else 'no such file'}; a table ({', '.join(ENDINGS)}) is needed")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.name}: {path.stat().st_size:,} bytes; tables of at most {MOST_BYTES:,} are allowed, save it as .npy")
    gaps, missing = gaps_asked(missing)
    columns = INFER if columns is None and gaps is not None else columns
    of_mask = mask_mark(missing)
    if of_mask is not None and options.get("window") is None:
        raise ValueError(f"{path.name}: missing={missing!r} is for fields and signals (a table's rows are some with window=N)")
    mark = None if missing is None else str(missing if of_mask is None else of_mask).strip()
    value = None if mark is None else number_of(mark)
    if value is not None and math.isfinite(value):
        mark = None  # a number is read as any other and found in the array
    elif mark is not None:
        missing = "nan" if of_mask is None else "mask"  # as what such cells are read
    asked = of_items.asked(path.name, conditions)
    kinds = None if columns is None else told(path.name, columns)
    strange: _StrangeCell | None = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            try:
                table = _parse(path, file, label_column, mark, asked, kinds is not None)
            except _StrangeCell as error:
                if of_mask is not None or options.get("window") is not None:
                    raise
                file.seek(0)
                table, strange, kinds = _parse(path, file, label_column, mark, asked, True), error, told(path.name, INFER)
                if len(table.lines) < LEAST_LINES:
                    raise strange from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name}: cannot be read as a text table ({one_line(error)}); UTF-8 text is needed") from error
    if kinds is not None:
        if options.get("window") is not None:
            raise ValueError(f"{path.name}: columns of kinds are no series; window={options['window']!r} takes tables of numbers")
        gap = str(missing).strip() if missing is not None and missing != "nan" else None
        marked = mark if gap is None or mark is not None else gap
        return _of_kinds(path, table, kinds, marked, strange, options | {"gaps": gaps})
    notes, count = [], table.values.shape[1]
    names = table.names
    listed = "" if names is None else ": " + ", ".join(names[:_SHOWN]) + (", ..." if count > _SHOWN else "")
    notes.append(f"read as {len(table.values):,} rows of {count} column{'s' * (count != 1)}{listed} (axes NC; float64, continuous)")
    if table.index is not None:
        notes.append(f"the first column ({table.index}) is left out: it has no name and only tells the lines apart")
    likely = next((name for name in names or () if name.lower() in _LIKELY_LABELS), None)
    if label_column is None and likely is not None:
        notes.append(f"column {likely!r} is read as a number; label_column={likely!r} (--label-column {likely}) makes it the label")
    found = _conditions_of(path, table, mark, notes)
    train = Part(array_source(table.values, path.name), None if table.labels is None else _as_labels(table.labels), found)
    told_of: dict[str, Any] = {"columns": names, "label_column": table.label_column, "cond_columns": table.cond_columns}
    return assemble(path.name, train, notes=notes, missing=missing, **told_of, **options)


def _conditions_of(path: Path, table: _Table, mark: str | None, notes: list[str]) -> dict[str, of_items.Values]:
    found: dict[str, of_items.Values] = {}
    for name, cells in table.cond.items():
        found[name], odd = _condition(path, name, cells, mark)
        if odd is not None:
            notes.append(f"condition {name!r} is read as classes though most of its cells are numbers: it holds {odd!r}")
    return found


def _of_kinds(path: Path, table: _Table, kinds: Told, mark: str | None, strange: _StrangeCell | None, options: dict[str, Any]) -> Dataset:
    """The data set of a table of kinds. strange: what kept it from being read as numbers where nothing was asked."""
    names = table.names or [str(i) for i in range(len(table.texts))]
    wanted = kinds(names)
    kept = [k for k, name in enumerate(names) if wanted.get(name, {}).get("kind") != DROP]
    found = columns_of(path.name, [names[k] for k in kept], [table.texts[k] for k in kept], table.lines, mark, wanted, strange)
    notes = []
    if strange is not None:
        notes.append(f"no table of numbers alone ({strange.where}): the kinds of its columns are inferred; --columns FILE.yaml says them")
    if table.index is not None:
        notes.append(f"the first column ({table.index}) is left out: it has no name and only tells the lines apart")
    likely = next((name for name in names if name.lower() in _LIKELY_LABELS), None)
    if table.labels is None and likely is not None:
        notes.append(f"column {likely!r} is part of the data; label_column={likely!r} (--label-column {likely}) makes it the label")
    cond = _conditions_of(path, table, mark, notes)
    labels = None if table.labels is None else _as_labels(table.labels)
    left = [place for k, place in enumerate(table.places) if k not in kept]

    def moved(column: tuple[str | None, int]) -> tuple[str | None, int]:
        return column[0], column[1] - sum(place < column[1] for place in left)  # without the columns that are dropped

    label = None if table.label_column is None else moved(table.label_column)
    of_cond = {name: moved(column) for name, column in table.cond_columns.items()}
    told_of: dict[str, Any] = {"label_column": label, "cond_columns": of_cond, "missing": None if mark is None else "nan", **options}
    return frames.of_columns(path.name, found, wanted, notes, labels, cond, **told_of)


@dataclass
class _Table:
    """Numbers (N, D) float64, the labels as they stand, the names of the D columns, what the left-out index is called, and the name of
    the column of labels with its place among the columns but the index; of conditions by name the cells (line, text) and the same. Where
    the cells are asked for as text, `texts` holds those of the D columns, `lines` the number of each line, and values are empty."""

    values: np.ndarray
    labels: list[str] | None
    names: list[str] | None
    index: str | None
    label_column: tuple[str | None, int] | None = None
    cond: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    cond_columns: dict[str, tuple[str | None, int]] = field(default_factory=dict)
    texts: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    @property
    def places(self) -> list[int]:
        """Of the D columns, where each stands among all columns but the index."""
        beside = {place for _, place in (*self.cond_columns.values(), *([self.label_column] if self.label_column else []))}
        return [place for place in range(len(self.texts) + len(beside)) if place not in beside]


class _StrangeCell(ValueError):
    """A cell that is no number, in a column of numbers; where: the line, the column and the cell."""

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where


def _parse(
    path: Path,
    file: TextIO,
    label_column: str | None,
    missing: str | None,
    conditions: Sequence[tuple[str | None, str]] = (),
    as_text: bool = False,
) -> _Table:
    lines = rows_of(path, file)
    first_line, first = next(lines, (0, []))
    if not first:
        raise ValueError(f"{path.name}: empty; a table of numbers is needed")
    apart = {label_column, *(column for _, column in conditions)}  # columns by number may hold words where there is no header
    header = not all(_is_number(cell) or _absent(cell, missing) or not cell for i, cell in enumerate(first) if str(i) not in apart)
    header = header or _counts(first)
    names = first if header else [str(i) for i in range(len(first))]
    column = None if label_column is None else _place(path, names, label_column, "the labels")
    told = _conditions(path, names, header, conditions)
    if column in told:
        raise ValueError(f"{path.name}: column {names[column]!r} is asked for as the labels and as a condition; one of them is needed")
    nameless = header and column != 0 and 0 not in told and len(first) > 1 and first[0] in ("", "Unnamed: 0")
    cells, labels, index = array("d"), [], []
    texts: list[list[str]] = []
    line_numbers: list[int] = []
    cond: dict[str, list[tuple[int, str]]] = {name: [] for name in told.values()}
    for number, row in lines if header else _chain((first_line, first), lines):
        if len(row) != len(first):
            raise ValueError(
                f"{path.name}: line {number} has {len(row)} cells, line {first_line} has {len(first)}; equal lengths are needed"
            )
        hole = False
        if as_text:
            if column is not None and _absent(row[column], missing):
                continue  # a line without a label is left out
            texts.append([cell for i, cell in enumerate(row) if i != column and i not in told and not (i == 0 and nameless)])
            line_numbers.append(number)
        for i, cell in enumerate(row):
            if i == column:
                labels.append(cell)
                hole = _absent(cell, missing)
                if not cell and not hole:
                    raise ValueError(
                        f"{path.name}: line {number}, column {names[i]!r} holds no label; one each is needed, or missing='nan' "
                        "(--missing nan) to leave such lines out"
                    )
            elif i in told:
                cond[told[i]].append((number, cell))
            elif i == 0 and nameless:
                index.append(cell)
            elif not as_text:
                cells.append(_cell(path, number, names[i], cell, missing, column is not None))
        if hole and len(cells):
            cells[-1] = math.nan  # a line without a label is left out like any other with a hole
    width = len(first) - (column is not None) - len(told) - nameless
    if not len(cells) and not (as_text and texts and width):
        beside = "labels and conditions" if told else "labels"
        raise ValueError(f"{path.name}: a header but no numbers" if width else f"{path.name}: no column beside the {beside}")
    values = np.frombuffer(cells, dtype=np.float64).reshape(-1, width)
    by_column = [list(column_cells) for column_cells in zip(*texts, strict=True)]
    shown = [name for i, name in enumerate(names) if i != column and i not in told] if header else None
    left = bool(nameless and shown is not None and _tells_apart(index))
    about = None if column is None else (names[column] if header else None, column - left)
    of_cond = {name: (names[i] if header else None, i - left) for i, name in told.items()}
    words = labels if column is not None else None
    if nameless and not left and as_text:
        return _Table(values, words, shown, None, about, cond, of_cond, [index, *by_column], line_numbers)
    if nameless and not left:  # a column of data after all
        extra = [_cell(path, number, names[0], cell, missing, column is not None) for number, cell in enumerate(index, first_line + 1)]
        values = np.column_stack((extra, values))
    elif left and shown is not None:
        left_out = f"{index[0]}, {index[1]}, ..." if len(index) > 1 else index[0]
        return _Table(values, words, shown[1:], left_out, about, cond, of_cond, by_column, line_numbers)
    return _Table(values, words, shown, None, about, cond, of_cond, by_column, line_numbers)


def _place(path: Path, names: list[str], column: str, what: str) -> int:
    """The number of a column that is given by its name or number; ValueError where there is none."""
    numbered = {str(i): i for i in range(len(names))}
    if column not in names and column not in numbered:
        listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        raise ValueError(f"{path.name}: no column {column!r} for {what}; its columns are {listed}")
    return names.index(column) if column in names else numbered[column]


def _conditions(path: Path, names: list[str], header: bool, conditions: Sequence[tuple[str | None, str]]) -> dict[int, str]:
    """The condition's name of each column that is one."""
    found: dict[int, str] = {}
    for name, column in conditions:
        place = _place(path, names, column, "the groups" if name == GROUP else "a condition")
        name = (names[place] if header else column) if name is None else name
        if place in found:
            twice = "the groups and a condition" if GROUP in (name, found[place]) else f"two conditions, {found[place]!r} and {name!r}"
            raise ValueError(f"{path.name}: column {names[place]!r} is asked for as {twice}")
        found[place] = name
    of_items.check_names(path.name, list(found.values()))
    return found


def _condition(path: Path, name: str, cells: list[tuple[int, str]], missing: str | None) -> tuple[of_items.Values, str | None]:
    """The column of a condition, and what `conditions.of_cells` says of it."""
    texts = [cell for _, cell in cells]
    known = np.array([not (cell.lower() in NOT_THERE or _absent(cell, missing)) for cell in texts])
    numbers = [number_of(cell) if there else None for cell, there in zip(texts, known, strict=True)]
    for (line, cell), number in zip(cells, numbers, strict=True):
        if number is not None and math.isinf(number):
            raise ValueError(f"{path.name}: line {line}, condition {name!r} holds {cell[:40]!r}; finite numbers or words are needed")
    return of_items.of_cells(path.name, known, texts, numbers)


def _counts(first: list[str]) -> bool:
    """Whether a first line is 0, 1, 2, ... for at least three columns, or nothing and then these: the header that pandas gives to an
    array without names."""
    names = first[1:] if not first[0] else first
    return names == [str(i) for i in range(len(names))] and len(names) >= (1 if not first[0] else 3)


def _tells_apart(index: list[str]) -> bool:
    """Whether the cells are all different, and whole numbers or words."""
    numbers = [number_of(cell) for cell in index]
    kind = all(number is None or number == round(number) for number in numbers if number is None or abs(number) < np.inf)
    return kind and len(set(index)) == len(index)


def _cell(path: Path, line: int, name: str, cell: str, missing: str | None, labelled: bool) -> float:
    if _absent(cell, missing):
        return math.nan
    value = number_of(cell)
    if value is not None and abs(value) < np.inf:
        return value
    found = repr(cell[:40]) if cell else "nothing"
    cure = ""
    if cell.lower() in NOT_THERE:
        cure = "; missing='nan' (--missing nan) leaves such lines out"
    elif value is None and not labelled:
        cure = " (words are allowed in columns of labels and conditions alone: --label-column, --condition)"
    where = f"line {line}, column {name!r} holds {found}"
    raise _StrangeCell(f"{path.name}: {where}; finite numbers are needed{cure}", where)


def _absent(cell: str, missing: str | None) -> bool:
    if missing is None:
        return False
    return cell == missing if missing.lower() != "nan" else cell.lower() in NOT_THERE


def _chain(first: tuple[int, list[str]], rest: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from rest


def _is_number(cell: str) -> bool:
    return number_of(cell) is not None


def _as_labels(labels: list[str]) -> np.ndarray:
    """Whole numbers where all are, so that they sort as numbers; otherwise words."""
    numbers = [number_of(label) for label in labels]
    whole = [int(number) for number in numbers if number is not None and abs(number) < 1e15 and number == round(number)]
    return np.array(whole if len(whole) == len(labels) else labels)
