"""Samples as the lines of a text table, with the header and the order of columns of the table that was trained on."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from sde_gen.data.cell_text import condition_text_of, text_of

T = TypeVar("T")
Column = Callable[[int, int], np.ndarray]
"""Of a condition: its values (last - first, *) for the samples first .. last - 1, as a file of the data would have them."""


class TableDescription(Protocol):
    """What is known of a table, as `write.DataDescription` has it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def whole(self) -> tuple[bool, ...]: ...

    @property
    def columns(self) -> tuple[str, ...] | None: ...

    @property
    def label_column(self) -> tuple[str | None, int] | None: ...

    @property
    def cond_columns(self) -> tuple[tuple[str, str | None, int], ...]: ...

    @property
    def places_beside(self) -> list[int]: ...

    def labels_of(self, classes: np.ndarray) -> np.ndarray: ...


def write_table(
    file: Any,
    mark: str,
    about: TableDescription,
    parts: Iterable[tuple[np.ndarray, np.ndarray | None]],
    labelled: bool,
    beside: Mapping[str, Column],
) -> None:
    writer = csv.writer(file, delimiter=mark, lineterminator="\n")
    told = {place: name for name, _, place in about.cond_columns}
    name, place = about.label_column or (None, about.shape[0] + len(told))
    if about.columns is not None:
        headers: dict[int, str] = {place: header or name for name, header, place in about.cond_columns}
        writer.writerow(_in_places(about.columns, headers | ({place: name or "label"} if labelled else {}), about.places_beside))
    first = 0
    for values, classes in parts:
        last = first + len(values)
        others: dict[int, Sequence[str]] = {}
        for at, known in told.items():
            others[at] = condition_text_of(beside[known](first, last)) if known in beside else [""] * len(values)
        if labelled and classes is not None:
            others[place] = about.labels_of(classes).astype(str).tolist()
        columns = _in_places([text_of(values[:, i], whole) for i, whole in enumerate(about.whole)], others, about.places_beside)
        writer.writerows(zip(*columns, strict=True))
        first = last


def _in_places(columns: Sequence[T], others: Mapping[int, T], places: Sequence[int]) -> list[T]:
    """The data's columns with `others` where they stood; `places`: of all columns that are no data, written or not."""
    left, taken = iter(columns), {*others, *places}
    total = len(columns) + len(taken)
    return [others[place] if place in others else next(left) for place in range(total) if place in others or place not in taken]
