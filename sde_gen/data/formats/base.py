"""What a format of files is: how it is read, item by item, and how samples are written in it with the header that the data came with."""

from __future__ import annotations

import base64
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sde_gen.data.errors import one_line

MOST_ITEMS = 1 << 28
"""Items that a file may claim to hold."""


class FormatError(ValueError):
    """A file of a format that cannot be used, in one line that names it."""


@dataclass(frozen=True)
class Asked:
    """What a caller says of a file: the variables that are the data (none: what the file leaves in no doubt), the arrays that are
    conditions as (name, variable), a letter for each axis as in `axes.check_axes`, or None, and whether it is a series, (T,) or (T, C),
    of which windows are cut. if_there: of the conditions those that the file has,
    the first one of each name; a single tensor is the data, whatever it is called."""

    variables: tuple[str, ...] = ()
    conditions: tuple[tuple[str, str], ...] = ()
    axes: str | None = None
    series: bool = False
    if_there: bool = False


class OnDisk:
    """An array in a file, of which no more than the rows that are asked for is read: what a memory map is of an .npy file.

    shape, dtype: of the whole. read(first, last): rows first .. last - 1 along its first axis.
    """

    def __init__(self, shape: Sequence[int], dtype: np.dtype, read: Callable[[int, int], np.ndarray]) -> None:
        self.shape, self.dtype = tuple(int(size) for size in shape), np.dtype(dtype)
        self._read = read
        self.where: tuple[Path, str] | None = None
        """The file and what it has to be, for what its library says of it in the midst of it."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.float64))

    def __len__(self) -> int:
        return self.shape[0]

    def as_columns(self) -> OnDisk:
        """Single numbers (N,) as rows of one."""
        return OnDisk((*self.shape, 1), self.dtype, lambda first, last: self._read(first, last)[:, None])

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """The rows of these numbers, in any order and repeated or not; read forwards, neighbours together."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        wanted, back = np.unique(rows, return_inverse=True)
        if not len(wanted):
            return np.empty((0, *self.shape[1:]), self.dtype)
        breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
        with nullcontext() if self.where is None else guarded(*self.where):
            parts = [self._read(int(run[0]), int(run[-1]) + 1) for run in np.split(wanted, breaks)]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole if len(rows) == len(wanted) and bool((back == np.arange(len(back))).all()) else whole[back]


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    arrays: by the names of `arrays.KEYS`: "train" and, where they are there, "labels", "test" and "test_labels"; items first.
    cond: conditions by part ("train", "test") and name, (N, *).
    axes: a letter for each axis of the items' arrays, N first; None: as their shape says.
    header: what `Format.write` needs to write samples as the file was, ready for JSON.
    notes: how the file was read, a line each.
    """

    arrays: Mapping[str, Any]
    cond: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    axes: str | None = None
    header: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Items:
    """Samples to be written.

    count, dtype: how many, and the type of their values. shape: (C, *spatial) or (D,) of one.
    parts: gives, each time that it is called, the values (B, *shape) part by part with their labels (B,) or None.
    header: of the data that they are samples of; {} where those came in another format.
    beside: of each condition that is given its values for the samples first .. last - 1.
    """

    count: int
    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterator[tuple[np.ndarray, np.ndarray | None]]]
    header: Mapping[str, Any]
    labelled: bool = False
    beside: Mapping[str, Callable[[int, int], np.ndarray]] = field(default_factory=dict)

    def numbered(self) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """The parts, each with the number of its first sample."""
        first = 0
        for values, labels in self.parts():
            yield first, values, labels
            first += len(values)

    def known(self) -> dict[str, np.ndarray]:
        """What is known of all samples, (N, *) by name: the conditions `beside`, and "label" where they have labels."""
        found = {name: column(0, self.count) for name, column in self.beside.items()}
        if self.labelled:
            found["label"] = np.concatenate([labels for _, labels in self.parts() if labels is not None])
        return found


@dataclass(frozen=True)
class Format:
    """A format of files.

    name: what people call it. endings: of its files. packages: that read and write it, beside those that are always there.
    read: a file's contents. read_folder: those of a folder of such files, one item each; None: a folder of them is no data set.
    write: samples as one file (or as a folder that the format takes for one). write_one: one sample as a file of its own.
    check: FormatError for samples that the format cannot hold, before any are drawn; is given the shape of one, the type of its values and
    the header.
    """

    name: str
    endings: tuple[str, ...]
    packages: tuple[str, ...]
    read: Callable[[Path, Asked], Contents]
    write: Callable[[Path, Items], None] | None = None
    read_folder: Callable[[Path, Sequence[str], Asked], Contents] | None = None
    write_one: Callable[[Path, np.ndarray, Mapping[str, Any]], None] | None = None
    check: Callable[[tuple[int, ...], np.dtype, Mapping[str, Any]], None] | None = None
    is_folder: bool = False

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        found = []
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError:
                found.append(package)
        return found

    @property
    def installed(self) -> bool:
        """Whether all packages are there."""
        return not self.missing

    def require(self, where: str) -> None:
        """FormatError where a package that it needs is not installed, with the command that installs it."""
        missing = self.missing
        if missing:
            are = "are" if len(missing) > 1 else "is"
            raise FormatError(
                f"{where}: {self.name} needs {' and '.join(missing)}, which {are} not installed: pip install {' '.join(missing)}"
            )


@contextmanager
def guarded(path: Path, what: str) -> Iterator[None]:
    """Whatever a reader of foreign files trips over, as one line: the file is what is wrong."""
    try:
        yield
    except FormatError:
        raise
    except Exception as error:
        raise FormatError(f"{path.name}: cannot be read ({one_line(error)}); a complete {what} is needed") from error


def needs_file(path: Path, what: str, folder: bool = False) -> None:
    """FormatError unless a file (or, of a format of folders, a folder) is there that is not empty."""
    if not path.exists():
        raise FormatError(f"{path.name}: no such file; {what} is needed")
    if path.is_dir() != folder:
        raise FormatError(f"{path.name}: a {'file' if folder else 'directory'}; {what} is needed")
    if not folder and not path.stat().st_size:
        raise FormatError(f"{path.name}: empty; {what} is needed")


class PerProcess:
    """A handle of a library's that must not be shared by processes: opened where it is first used, again in each fork."""

    def __init__(self, opening: Callable[[], Any]) -> None:
        self.opening, self._owner, self._handle = opening, -1, None

    def __call__(self) -> Any:
        if self._owner != os.getpid():
            self._owner, self._handle = os.getpid(), self.opening()
        return self._handle


# ---------------------------------------------------------------- headers as JSON: every bit of an array is kept


def packed(value: Any) -> Any:
    """A value of a header, ready for JSON: numbers and arrays of them bit by bit; None for what is neither those nor text."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "OTU":
        texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in array.ravel().tolist()]
        return {"texts": texts, "shape": list(array.shape)} if all(isinstance(text, str) for text in texts) else None
    if array.dtype.kind not in "buifcSmM":
        return None
    return {
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "base64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii"),
    }


def unpacked(value: Any) -> Any:
    """What `packed` was given, numbers as arrays and those of no axis as numpy's scalars."""
    if not isinstance(value, Mapping):
        return value
    shape = tuple(value["shape"])
    if "texts" in value:
        return np.array(value["texts"], dtype=object).reshape(shape)
    array = np.frombuffer(base64.b64decode(value["base64"]), dtype=np.dtype(value["dtype"])).reshape(shape)
    return array[()] if not shape else array.copy()


def packed_all(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a header that can be kept."""
    found = {str(name): packed(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


def unpacked_all(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: unpacked(value) for name, value in values.items()}
