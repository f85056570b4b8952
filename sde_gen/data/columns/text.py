"""Columns of text tables, and what the user says of them in a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sde_gen.data.cell_text import NOT_THERE, number_of
from sde_gen.data.columns.codec import Column, read_asked
from sde_gen.data.errors import one_line

INFER = "infer"
MOST_BYTES = 1 << 20
Told = Callable[[Sequence[str]], dict[str, dict[str, Any]]]
"""Of the names of a table's columns, what is said of them, checked."""


def told(name: str, columns: str | os.PathLike[str] | Mapping[str, Any]) -> Told:
    """What is said of the columns of the table `name`: "infer" says nothing; a dict, or the path of a YAML file that holds one, see
    `read_asked`. ValueError where there is no such file, or nothing of the kind in it."""
    if columns == INFER:
        return lambda names: {}
    said = columns if isinstance(columns, Mapping) else _read(name, Path(columns))
    return lambda names: read_asked(name, said, names)


def _read(name: str, path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{name}: columns={str(path)!r}: no such file; 'infer', or a YAML file of {{COLUMN: KIND}}, is needed")
    import yaml  # here, as few tables have such a file

    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        needed = "a YAML file of {COLUMN: KIND} is needed"
        raise ValueError(f"{name}: columns={str(path)!r} cannot be read ({one_line(error)}); {needed}") from error


def columns_of(
    name: str,
    names: Sequence[str],
    texts: Sequence[Sequence[str]],
    lines: Sequence[int],
    missing: str | None,
    asked: Mapping[str, Mapping[str, Any]],
    strange: ValueError | None = None,
) -> list[Column]:
    """Columns of cells (N,) of text: of numbers where all known cells are, else of words.

    missing: what marks a missing cell beside nothing, NaN, NA, N/A, null and None.
    asked: of columns by name, what the user says; "category" makes words of numbers.
    strange: what is raised for a column of numbers with a few words, or None for a message of its own.

    Raises ValueError for a column of which most known cells are numbers and some are words: it is neither.
    """
    return [_column(name, *pair, lines, missing, asked.get(pair[0], {}).get("kind"), strange) for pair in zip(names, texts, strict=True)]


def _column(
    table: str, name: str, cells: Sequence[str], lines: Sequence[int], missing: str | None, kind: str | None, strange: ValueError | None
) -> Column:
    number = None if missing is None else number_of(missing)
    marks = {*NOT_THERE, *([] if missing is None else [missing.lower()])}
    numbers = [number_of(cell) for cell in cells]
    gone = np.array([cell.lower() in marks or (number is not None and x == number) for cell, x in zip(cells, numbers, strict=True)])
    gaps, counts = np.unique(np.array(cells)[gone], return_counts=True)
    gap = str(gaps[counts.argmax()]) if len(gaps) else ""
    known = int((~gone).sum())
    words = [k for k, (x, there) in enumerate(zip(numbers, ~gone, strict=True)) if there and (x is None or not np.isfinite(x))]
    if kind == "category" or (words and 2 * len(words) > known):
        plain = all(x is not None and np.isfinite(x) and x == round(x) for x, there in zip(numbers, ~gone, strict=True) if there)
        if not plain:
            return Column(name, np.where(gone, "", np.array(cells, dtype=str)), gone, gap=gap)
    elif words:
        if strange is not None:
            raise strange
        first = words[0]
        share = f"{known - len(words):,} of {known:,} cells are numbers"
        cure = f"{{{name}: category}} in columns makes words of all"
        raise ValueError(
            f"{table}: line {lines[first]}, column {name!r} holds {cells[first][:40]!r} where {share}; finite numbers are needed, or {cure}"
        )
    return Column(name, np.array([np.nan if there else x for x, there in zip(numbers, gone, strict=True)], dtype=np.float64), gone, gap=gap)
