"""Samples as the lines of a text table, with the header and the order of columns of the table that was trained on."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from sde_gen.data.cell_text import condition_text_of, text_of
from sde_gen.data.columns import frames
from sde_gen.data.columns.codec import Codec

TABLE_FORMS = ("csv", "tsv", "parquet")
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
    def codec(self) -> Mapping[str, Any] | None: ...

    @property
    def places_beside(self) -> list[int]: ...

    def labels_of(self, classes: np.ndarray) -> np.ndarray: ...


def check_table(form: str, shape: tuple[int, ...]) -> None:
    """ValueError for items that are no rows of a table, and for a parquet file without the packages that write it."""
    if len(shape) != 1:
        images = ", or a folder of PNGs," * (len(shape) == 3)
        raise ValueError(f"items of shape {'x'.join(map(str, shape))} are no rows of a table; .npy or .npz{images} holds them")
    if form == "parquet":
        frames.needed("a .parquet file", "pandas", "pyarrow")


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
    codec = None if about.codec is None else Codec.from_config(about.codec)
    names = about.columns if codec is None else codec.names
    name, place = about.label_column or (None, (about.shape[0] if codec is None else len(codec.names)) + len(told))
    if names is not None:
        headers: dict[int, str] = {place: header or name for name, header, place in about.cond_columns}
        writer.writerow(_in_places(names, headers | ({place: name or "label"} if labelled else {}), about.places_beside))
    first = 0
    for values, classes in parts:
        last = first + len(values)
        others: dict[int, Sequence[str]] = {}
        for at, known in told.items():
            others[at] = condition_text_of(beside[known](first, last)) if known in beside else [""] * len(values)
        if labelled and classes is not None:
            others[place] = about.labels_of(classes).astype(str).tolist()
        cells = [text_of(values[:, i], whole) for i, whole in enumerate(about.whole)] if codec is None else codec.cells(values)
        columns = _in_places(cells, others, about.places_beside)
        writer.writerows(zip(*columns, strict=True))
        first = last


def _in_places(columns: Sequence[T], others: Mapping[int, T], places: Sequence[int]) -> list[T]:
    """The data's columns with `others` where they stood; `places`: of all columns that are no data, written or not."""
    left, taken = iter(columns), {*others, *places}
    total = len(columns) + len(taken)
    return [others[place] if place in others else next(left) for place in range(total) if place in others or place not in taken]


def write_parquet(
    path: Path,
    about: TableDescription,
    parts: Iterable[tuple[np.ndarray, np.ndarray | None]],
    labelled: bool,
    beside: Mapping[str, Column],
) -> None:
    """Samples as a parquet file of the columns that `write_table` writes, in their own types; held in memory as a whole.

    Raises ValueError where pandas or pyarrow is not installed.
    """
    pandas = frames.needed(path.name, "pandas", "pyarrow")
    told = {place: name for name, _, place in about.cond_columns}
    codec = None if about.codec is None else Codec.from_config(about.codec)
    names = codec.names if codec is not None else about.columns or tuple(map(str, range(about.shape[0])))
    name, place = about.label_column or (None, len(names) + len(told))
    pieces, first = [], 0
    for values, classes in parts:
        last = first + len(values)
        whole = [values[:, i] for i in range(values.shape[1])] if codec is None else []
        columns: list[Any] = [
            pandas.Series(v.astype(np.int64) if w and v.dtype.kind == "f" and bool((np.abs(v) < 2.0**53).all()) else v)
            for v, w in zip(whole, about.whole, strict=False)
        ]
        if codec is not None:
            columns = [frames.series(pandas, column) for column in codec.decode(values)]
        others: dict[int, tuple[str, Any]] = {}
        for at, known in told.items():
            if known in beside:
                header = next(header or key for key, header, where in about.cond_columns if where == at)
                others[at] = (header, pandas.Series(beside[known](first, last)))
        if labelled and classes is not None:
            others[place] = (name or "label", pandas.Series(about.labels_of(classes)))
        pieces.append(pandas.DataFrame(dict(_in_places(list(zip(names, columns, strict=True)), others, about.places_beside))))
        first = last
    pandas.concat(pieces, ignore_index=True).to_parquet(path, engine="pyarrow", index=False)
