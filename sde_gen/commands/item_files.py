"""Items of a user's own to be looked at one by one: read in the file's order with their conditions, and columns written beside them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conditions import Condition, Label, Text
from ..data import arrays, conditions, folders, tables
from ..data.captions import text_tensor
from ..data.cell_text import NOT_THERE, number_of
from ..data.columns import Codec, Column, frames
from ..data.columns.known import impossible, read_cells, read_known
from ..data.degraded import Degraded, read_degraded
from ..data.masks import mask_mark
from ..data.write import DataDescription
from ..report.files import atomic_path
from .given_conditions import condition_rows

LABELS = ("label", *arrays.KEYS["labels"])
"""Names of the labels in an .npz file."""
ENDINGS = (".csv", ".tsv", ".npz", *frames.ENDINGS)


@dataclass(frozen=True, eq=False)
class Items:
    """Items of a file in its order.

    path: the file or folder. x: (N, *shape) in the data's units, float64; an item with a gap holds NaN.
    cond: conditions of the items by name, (N, *) each; names: of images, their files; absent: conditions that the file does not have.
    rows: of a table of kinds its columns, of which x is features with one draw in each cell. strange: (N,) Boolean, rows with a value that
    the table cannot hold, so that their probability is 0 (x is NaN there), and `seen`, by column, the first of these values.
    """

    path: Path
    x: Tensor
    cond: dict[str, Tensor]
    names: list[str] | None = None
    absent: list[str] = field(default_factory=list)
    rows: list[Column] | None = None
    strange: np.ndarray | None = None
    seen: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> tuple[Path, list[str]] | None:
        """The folder of the items and their names in it, where they are images of files."""
        return None if self.names is None else (self.path if self.path.is_dir() else self.path.parent, self.names)


def read_items(
    path: Path,
    about: DataDescription,
    encoders: Mapping[str, Condition],
    asked: Sequence[str] = (),
    missing: float | str | None = None,
) -> Items:
    """The items of a table, .npy or .npz file, image or folder of images, in the form that the data had (`data.degraded.read_degraded`),
    and those conditions of theirs that a network with these `encoders` takes and the file holds.

    asked: "COLUMN" or "NAME=COLUMN", as the data's conditions were asked for; an array called NAME in a file of arrays (.npz, NetCDF,
    HDF5, zarr, tensors) comes first. Labels are the table's column of that name, the images' folders, or the array label, labels or y.
    missing: what marks a missing value in the data's files: of a table of kinds a word beside the usual ones, elsewhere a number, or
    "mask=NUMBER".

    Raises ValueError, one line, for what is not like the data.
    """
    ending = path.suffix.lower()
    columns = {(column if name is None else name): column for name, column in conditions.asked(path.name, asked)}
    mark = _mark(missing if missing is not None else about.missing)
    table = about.codec is not None and path.is_file() and ending in tables.ENDINGS
    if about.codec is not None:
        codec = Codec.from_config(about.codec)
        of_kinds = read_known(path, codec, missing) if table else _decoded(path, about, codec)
        strange, gaps, seen = impossible(codec, of_kinds)
        x = np.full((len(gaps), codec.width), np.nan)
        fine = ~(strange | gaps)
        x[fine] = codec.encode([column.subset(fine) for column in of_kinds])
        found = Degraded(path.name, torch.from_numpy(x), None, lambda place, values, whole: place)
    else:
        of_kinds, strange, seen = None, None, {}
        wanted = [f"{name}={key}" for name in encoders if name != "label" for key in dict.fromkeys((name, columns.get(name, name)))]
        found = read_degraded(path, about, about.shape, wanted)
        if mark is not None:
            found = replace(found, y=torch.from_numpy(_without(found.y.numpy(), mark)))
    if not len(found.y):
        raise ValueError(f"{found.name}: holds no items; at least one is needed")
    if about.levels is not None:
        whole, top = found.y.round(), about.levels - 1
        close = 0.5 * top / 255 + 1e-6 if path.is_dir() or folders.is_image(path.name) else 0.0  # a picture's own levels are rounded too
        bad = ~torch.isnan(found.y) & (((found.y - whole).abs() > close) | (whole < 0) | (whole > top))
        if bool(bad.any()):
            first = float(found.y[bad][0])
            raise ValueError(f"{found.name}: holds {first:g}; whole numbers 0 .. {top}, as {about.name} has, are needed")
        found = replace(found, y=whole)
    raw: dict[str, np.ndarray] = dict(found.cond)
    if found.labels is not None and any(label is not None for label in found.labels):
        raw["label"] = np.array(["" if label is None else label for label in found.labels])
    if path.is_file() and ending in tables.ENDINGS:
        if table and about.label_column is not None and about.label_column[0] is not None:
            columns["label"] = about.label_column[0]
        raw |= _of_table(path, about, {name: column for name, column in columns.items() if name in encoders})
    elif path.is_file() and ending == ".npz":
        raw |= _of_npz(path, encoders, columns)
    count = len(found.y)
    cond = {name: _values(path, name, encoders[name], value, about, count, mark) for name, value in raw.items() if name in encoders}
    names = None
    if path.is_dir():
        names = sorted(folders.image_names(path))
    elif folders.is_image(path.name):
        names = [path.name]
    return Items(path, found.y, cond, names, [name for name in encoders if name not in cond], of_kinds, strange, seen)


def _decoded(path: Path, about: DataDescription, codec: Codec) -> list[Column]:
    """The columns of a file of their features, as `sde-gen sample` writes to .npy and .npz; a row with NaN is missing in all of them, but
    for features of columns whose gaps are a condition, where it is a gap."""
    features = read_degraded(path, about, about.shape).y.numpy()
    told = np.zeros(codec.width, dtype=bool)
    for place, masked in zip(codec.places, codec.masked, strict=True):
        told[place] = masked
    gone = np.isnan(features[:, ~told]).any(1)
    found = []
    for column in codec.decode(np.where(gone[:, None] & ~told, 0.5, features)):
        values = np.where(gone, "" if column.values.dtype.kind == "U" else np.nan, column.values)
        found.append(Column(column.name, values, column.missing | gone))
    return found


def _of_table(path: Path, about: DataDescription, columns: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The cells of the columns of conditions that the table has."""
    header, below = read_cells(path)
    names = header if about.columns is not None else [str(place) for place in range(len(header))]
    rows = [cells for _, cells in below] if about.columns is not None else [header, *(cells for _, cells in below)]
    places = {name: names.index(column) for name, column in columns.items() if column in names}
    if about.columns is None and len(names) == len(about.whole):
        return {}
    return {name: np.array(["" if row[k].lower() in NOT_THERE else row[k] for row in rows]) for name, k in places.items()}


def _of_npz(path: Path, encoders: Mapping[str, Condition], columns: Mapping[str, str]) -> dict[str, np.ndarray]:
    members, found = arrays.npz_members(path), {}
    for name in encoders:
        wanted = LABELS if name == "label" else (name, columns.get(name, name))
        key = next((key for key in wanted if key in members), None)
        if key is not None:
            found[name] = np.array(arrays.open_member(path, members[key]))
    return found


def _values(path: Path, name: str, encoder: Condition, raw: np.ndarray, about: DataDescription, count: int, mark: float | None) -> Tensor:
    """A condition of `count` items as the network takes it, its null where a cell or word is empty; the number `mark` is not known."""
    where = f"{path.name}: condition {name!r}"
    try:
        if not raw.ndim or len(raw) != count:
            raise ValueError(f"it has shape {tuple(raw.shape)} for {count} items; ({count}, ...) is needed")
        if isinstance(encoder, Text):
            return encoder.check(text_tensor(raw.astype(str).tolist()))
        empty = raw == "" if raw.dtype.kind == "U" else np.zeros(len(raw), bool)
        if isinstance(encoder, Label):
            words = about.label_names if name == "label" else encoder.names
            names = list(words or range(encoder.classes))
            value = torch.from_numpy(condition_rows(encoder, raw[~empty], names).astype(np.int64))
        else:
            numbers = raw if raw.dtype.kind != "U" else np.array([_number(word) for word in raw[~empty].tolist()])
            known = np.array(condition_rows(encoder, numbers, None), dtype=np.float64)
            value = torch.from_numpy(known if mark is None else _without(known, mark))
        null = encoder.missing(len(raw), torch.device("cpu"))
        value = value.reshape(len(value), *null.shape[1:]) if value.numel() == value.shape[:1].numel() * null[:1].numel() else value
        if value.shape[1:] != null.shape[1:]:
            raise ValueError(f"it has shape {tuple(raw.shape)}; ({len(raw)}, {', '.join(map(str, null.shape[1:]))}) is needed")
        whole = null.to(value.dtype)
        whole[torch.from_numpy(~empty)] = value
        return encoder.check(whole)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error


def _mark(missing: float | str | None) -> float | None:
    """The number that marks what is not there, of `missing` as the data's files were read with it."""
    return number_of(str(mask_mark(missing) or missing))


def _without(values: np.ndarray, mark: float) -> np.ndarray:
    """float64 values with NaN where they are the number `mark`, or what float32 makes of it."""
    with np.errstate(over="ignore"):
        return np.where(np.isin(values, (mark, float(np.float32(mark)))), np.nan, values)


def _number(word: str) -> float:
    value = number_of(word)
    if value is None:
        raise ValueError(f"it holds {word[:40]!r}; numbers are needed")
    return value


def check_out(out: Path, overwrite: bool, path: Path) -> None:
    """ValueError for an output that is there already or of another kind, for items of the file `path`."""
    allowed = ENDINGS if path.suffix.lower() in frames.ENDINGS else ENDINGS[: -len(frames.ENDINGS)]
    if out.suffix.lower() not in allowed:
        raise ValueError(f"--out {out}: {', '.join(allowed[:-1])} or {allowed[-1]} is needed")
    if out.is_dir() or (out.exists() and not overwrite):
        raise ValueError(f"{out} is there already; --overwrite replaces a file, another --out leaves it")


def write_beside(out: Path, items: Items, columns: Mapping[str, np.ndarray]) -> Path:
    """Write `columns` (N,) beside the items: a table's own lines with more cells, files' names or numbers of items with cells, or, as an
    .npz file, the items' own arrays and one for each column. A column that the file has already gets a number behind its name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        if out.suffix.lower() in frames.ENDINGS:
            frame = frames.read_parquet(items.path)
            taken = [str(name) for name in frame.columns]
            frame.assign(**{_new(name, taken): value for name, value in columns.items()}).to_parquet(temporary, engine="pyarrow")
        elif out.suffix.lower() == ".npz":
            own = _own_arrays(items)
            with temporary.open("wb") as file:
                named: dict[str, Any] = own | {_new(name, own): value for name, value in columns.items()}
                np.savez(file, **named)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as text:
                writer = csv.writer(text, delimiter="\t" if out.suffix.lower() == ".tsv" else ",", lineterminator="\n")
                header, lines = _own_lines(items)
                if header is not None:
                    writer.writerow([*header, *(_new(name, header) for name in columns)])
                for row, line in enumerate(lines):
                    writer.writerow([*line, *("" if np.isnan(value[row]) else f"{value[row]:.9g}" for value in columns.values())])
    return out


def _own_arrays(items: Items) -> dict[str, np.ndarray]:
    if items.path.is_file() and items.path.suffix.lower() == ".npz":
        return {key: np.array(arrays.open_member(items.path, info)) for key, info in arrays.npz_members(items.path).items()}
    own = {"x": items.x.numpy()} if items.rows is None else {column.name: column.values for column in items.rows}
    return own | {name: value.numpy() for name, value in items.cond.items()}


def _own_lines(items: Items) -> tuple[list[str] | None, list[list[str]]]:
    """The header and the lines of a table; of other files the name or number of each item."""
    path = items.path
    if path.is_file() and path.suffix.lower() in tables.ENDINGS:
        header, below = read_cells(path)
        lines = [cells for _, cells in below]
        return (header, lines) if len(lines) == len(items.x) else (None, [header, *lines])
    if items.names is not None:
        return ["file"], [[name] for name in items.names]
    return ["item"], [[str(k)] for k in range(len(items.x))]


def _new(name: str, taken: Sequence[str] | Mapping[str, Any]) -> str:
    """The name, with the first number behind it that makes it new where it is taken."""
    number = 2
    found = name
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found
