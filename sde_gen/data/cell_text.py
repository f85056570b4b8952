"""The cells of text tables: how lines are cut into them, which are numbers or gaps, and numbers as cells."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from sde_gen.data.errors import one_line

NOT_THERE = ("", "na", "n/a", "nan", "null", "none")
"""Cells that say that nothing is known, in lower case."""


def rows_of(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
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


def lines_of(path: Path) -> list[tuple[int, list[str]]]:
    """The lines of a text table that hold cells, with their numbers; ValueError, one line, for a file that is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(rows_of(path, file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name}: cannot be read as a text table ({one_line(error)}); UTF-8 text is needed") from error


def number_of(cell: str) -> float | None:
    """The number that a cell holds, NaN and infinity among them; None for what is none."""
    try:
        return None if "_" in cell else float(cell)  # float("1_0") is 10
    except ValueError:
        return None


def text_of(values: np.ndarray, whole: bool) -> list[str]:
    """As few digits as give the number again."""
    if whole and values.dtype.kind == "f" and bool((np.abs(values) < 2.0**53).all()):
        values = values.astype(np.int64)
    return [str(value) for value in (values.tolist() if values.dtype.kind != "f" or values.dtype == np.float64 else values)]


def condition_text_of(values: np.ndarray) -> list[str]:
    """Words as they are, whole numbers without a point, nothing for NaN."""
    if values.dtype.kind not in "fc":
        return [str(value) for value in values.tolist()]
    return ["" if math.isnan(value) else str(int(value) if value.is_integer() else value) for value in values.tolist()]


def separator_of(path: Path) -> str:
    """What stands between the cells of a table, as it was read."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip() and not line.startswith("#")), "")
    counts = {mark: first.count(mark) for mark in (",", ";", "\t")}
    return max(counts, key=lambda mark: counts[mark]) if any(counts.values()) else " "
