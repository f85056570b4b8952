"""Tables in memory, pandas frames and dicts of columns, and parquet files: in, and samples out as they came."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.data import conditions as of_items
from sde_gen.data.assemble import Part, assemble
from sde_gen.data.columns.codec import DROP, VALID, Asked, Codec, Column
from sde_gen.data.columns.gaps import GAPS, gaps_asked
from sde_gen.data.columns.text import INFER, told
from sde_gen.data.dataset import Dataset
from sde_gen.data.errors import one_line
from sde_gen.data.source import array_source

ENDINGS = (".parquet",)
_SHOWN = 8
_WORDS = ("str", "string", "object", "category")


def of_columns(
    name: str,
    columns: Sequence[Column],
    asked: Asked,
    notes: Sequence[str] = (),
    labels: np.ndarray | None = None,
    cond: Mapping[str, of_items.Values] | None = None,
    gaps: str | None = None,
    **options: Any,
) -> Dataset:
    """The data set of columns of kinds; `options` go to `assemble`.

    asked: what the user says of columns by name; those with {"kind": "drop"} are not among `columns`.
    gaps: what missing values are where `asked` does not say it, one of `gaps.GAPS` (None: the first).

    Where gaps are a condition it is called "valid", Boolean (N, D): which features of a row are there. In the place of others stands the
    median of the known ones, at which nobody looks.
    """
    dropped = [key for key, value in asked.items() if value.get("kind") == DROP]
    if not columns:
        raise ValueError(f"{name}: columns drops all of {', '.join(dropped[:_SHOWN])}; at least one must be left")
    try:
        codec, lines = Codec.fit(columns, asked, gaps or GAPS[0])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    shown = ", ".join(codec.names[:_SHOWN]) + (", ..." if len(codec.names) > _SHOWN else "")
    count, wide = len(columns[0].values), len(columns)
    read = f"read as {count:,} rows of {wide} column{'s' * (wide != 1)}: {shown}; {codec.width} feature{'s' * (codec.width != 1)}"
    lines += [f"column    {key}: dropped, as asked" for key in dropped]
    features = codec.encode(columns)
    there, known = ~np.isnan(features), dict(cond or {})
    if any(codec.masked):
        if VALID in known:
            raise ValueError(f"{name}: a condition is called {VALID!r}, as what says where gaps are; give it another name")
        if not there.any(1).all():
            raise ValueError(f"{name}: row {int((~there.any(1)).argmax())} has nothing but gaps; leave such rows out of the table")
        features = np.where(there, features, np.nanmedian(features, 0))
        known[VALID] = array_source(there, name)
        share = 100 * (1 - there.all(1).mean())
        lines.append(f"gaps are a condition, {VALID!r}, of {share:.3g} % of the rows: they are left out of loss, statistics and likelihood")
    train = Part(array_source(features, name), labels, known)
    return assemble(name, train, notes=[read, *notes, *lines], columns=codec.labels, codec=codec, **options)


def load_frame(
    frame: Any,
    label_column: str | None = None,
    missing: float | str | None = None,
    conditions: Sequence[str] = (),
    columns: Any = None,
    name: str = "frame",
    **options: Any,
) -> Dataset:
    """A data set of a pandas frame, or of a dict of columns (N,) by name; the arguments are those of `tables.load_table`.

    Numbers and Booleans are numbers, all else words; NaN, None and NA are missing, and so is what `missing` says.

    Raises TypeError for anything else, ValueError for columns of different lengths or of values that are neither numbers nor words.
    """
    if not isinstance(frame, Mapping) and not (hasattr(frame, "columns") and hasattr(frame, "dtypes")):
        raise TypeError(f"a path, a registered name, a pandas frame or a dict of columns is needed, got {type(frame).__name__}")
    gaps, missing = gaps_asked(missing)
    columns = INFER if columns is None and gaps is not None else columns
    names = [str(key) for key in (frame if isinstance(frame, Mapping) else frame.columns)]
    if len(set(names)) != len(names):
        raise ValueError(f"{name}: two columns are called {next(key for key in names if names.count(key) > 1)!r}; names must differ")
    series = list(frame.values()) if isinstance(frame, Mapping) else [frame.iloc[:, k] for k in range(len(names))]
    found = {key: _column(name, key, values, missing) for key, values in zip(names, series, strict=True)}
    lengths = {key: len(column.values) for key, column in found.items()}
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"{key} {length:,}" for key, length in list(lengths.items())[:_SHOWN])
        raise ValueError(f"{name}: columns of one length are needed, got {listed or 'none'}")
    asked_cond = of_items.asked(name, conditions)
    beside = [*([] if label_column is None else [(None, label_column)]), *asked_cond]
    for _, key in beside:
        if key not in found:
            raise ValueError(f"{name}: no column {key!r}; its columns are {', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}")
    places = {key: names.index(key) for _, key in beside}
    asked = {} if columns is None else told(name, columns)([key for key in names if key not in places])
    dropped = {key for key, value in asked.items() if value.get("kind") == DROP}
    kept = [column for key, column in found.items() if key not in places and key not in dropped]
    left = [names.index(key) for key in dropped]

    def place(key: str) -> tuple[str, int]:
        return key, places[key] - sum(at < places[key] for at in left)

    labels = None
    if label_column is not None:
        column = found[label_column]
        if column.missing.any():
            raise ValueError(f"{name}: column {label_column!r} holds no label in row {int(column.missing.argmax())}; one each is needed")
        labels = column.values.astype(np.int64) if _whole(column.values) else column.values
    cond: dict[str, of_items.Values] = {}
    for new, key in asked_cond:
        column = found[key]
        words = column.values.dtype.kind != "f"
        cond[new or key] = np.ma.array(column.values, mask=column.missing) if words else array_source(column.values, name)
    options |= {"label_column": None if label_column is None else place(label_column)}
    options |= {"cond_columns": {new or key: place(key) for new, key in asked_cond}}
    return of_columns(name, kept, asked, (), labels, cond, gaps, **options)


def load_parquet(
    path: Path,
    label_column: str | None = None,
    missing: float | str | None = None,
    conditions: Sequence[str] = (),
    columns: Any = None,
    **options: Any,
) -> Dataset:
    """A data set of a parquet file, as of a frame."""
    frame = read_parquet(path)
    return load_frame(frame, label_column, missing, conditions, columns, path.name, **options)


def read_parquet(path: Path) -> Any:
    """The pandas frame of a parquet file; ValueError, one line, where there is none."""
    if not path.is_file():
        raise ValueError(f"{path.name}: {'a directory' if path.is_dir() else 'no such file'}; a parquet file is needed")
    pandas = needed(path.name, "pandas", "pyarrow")
    try:
        return pandas.read_parquet(path, engine="pyarrow")
    except Exception as error:  # pyarrow has errors of its own
        raise ValueError(f"{path.name}: cannot be read as a parquet file ({one_line(error)})") from error


def needed(name: str, *packages: str) -> Any:
    """The first of these packages, imported with the others; ValueError with the command that installs them where one is not there."""
    try:
        modules = [import_module(package) for package in packages]
    except ImportError as error:
        raise ValueError(f"{name}: {' and '.join(packages)} are needed ({one_line(error)}): pip install {' '.join(packages)}") from error
    return modules[0]


def to_frame(codec: Codec, features: Tensor | np.ndarray, valid: Tensor | np.ndarray | None = None) -> Any:
    """Samples (N, D) of a table's features as a pandas frame of its columns, of the types that they had; missing values are missing, and
    so are those whose features are not `valid`, Boolean (N, D).

    Raises ValueError where pandas is not installed.
    """
    pandas = needed("a frame", "pandas")
    x = features.detach().cpu().numpy() if isinstance(features, torch.Tensor) else np.asarray(features)
    if x.ndim != 2 or x.shape[1] != codec.width:
        raise ValueError(f"features of shape {tuple(x.shape)}; (N, {codec.width}) is needed")
    there = None if valid is None else torch.as_tensor(valid).cpu().numpy().astype(bool)
    return pandas.DataFrame({column.name: series(pandas, column) for column in codec.decode(x, there)})


def series(pandas: Any, column: Column) -> Any:
    """A column as pandas has it."""
    dtype, values = column.dtype, column.values
    if values.dtype.kind == "U":
        words = pandas.Series(values).astype(object)
        words[column.missing] = None
        if dtype == "bool":
            return words.map({"False": False, "True": True})
        return words.astype("category" if dtype == "category" else "str" if dtype in (None, "str", "object") else dtype)
    if not column.missing.any():
        kept = pandas.Series(values)
        return kept if dtype is None else kept.astype(bool if dtype == "bool" else dtype)
    floats = pandas.Series(np.where(column.missing, np.nan, values.astype(np.float64)))
    return floats.astype(dtype) if dtype is not None and (dtype.startswith(("float", "Float", "Int", "UInt"))) else floats


def _column(table: str, name: str, values: Any, missing: float | str | None) -> Column:
    """A column of a frame or of a dict."""
    dtype = str(values.dtype) if hasattr(values, "dtype") else None
    if isinstance(values, Tensor):
        values, dtype = values.detach().cpu().numpy(), str(values.dtype).removeprefix("torch.")
    if dtype is not None and dtype.startswith("<U"):
        dtype = "str"
    array = np.asarray(values, dtype=object) if dtype is None or dtype in _WORDS or dtype[:1].isupper() else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{table}: column {name!r} has shape {array.shape}; one value for each row is needed")
    if array.dtype.kind in "bui":
        array = array.astype(np.float64)
    if array.dtype.kind == "f":
        numbers = array.astype(np.float64)
        return _numbers(table, name, numbers, np.isnan(numbers), missing, dtype)
    if array.dtype.kind not in "OU":
        raise ValueError(f"{table}: column {name!r} is of type {array.dtype}; numbers or words are needed ({{{name}: drop}} leaves it out)")
    gone = np.array([value is None or str(value) in ("<NA>", "NaT", "nan") for value in array.tolist()], dtype=bool)
    known = array[~gone].tolist()
    if known and all(isinstance(value, int | float | np.number) for value in known):
        numbers = np.full(len(array), np.nan)
        numbers[~gone] = [float(value) for value in known]
        return _numbers(table, name, numbers, gone, missing, dtype if dtype and dtype[:1].isupper() else None)
    strange = next((value for value in known if not isinstance(value, str)), None)
    if strange is not None:
        raise ValueError(f"{table}: column {name!r} holds {strange!r} beside words; numbers or words are needed")
    gone |= np.array([value == "" or (missing is not None and str(value) == str(missing)) for value in array.tolist()], dtype=bool)
    return Column(name, np.array(["" if out else value for value, out in zip(array.tolist(), gone, strict=True)], dtype=str), gone, dtype)


def _numbers(table: str, name: str, numbers: np.ndarray, gone: np.ndarray, missing: float | str | None, dtype: str | None) -> Column:
    if np.isinf(numbers).any():
        raise ValueError(f"{table}: column {name!r} holds infinite values; finite numbers are needed")
    if missing is not None:
        with contextlib.suppress(ValueError):  # a word marks nothing in a column of numbers
            gone = gone | (numbers == float(missing))
    return Column(name, np.where(gone, np.nan, numbers), gone, dtype)


def _whole(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and bool((values == np.round(values)).all())
