"""Samples as files that read like the data: in their units, whole numbers where those were, a table with its own header."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.data import formats
from sde_gen.data.columns.codec import VALID, Codec
from sde_gen.data.columns.patterns import patterns_of
from sde_gen.data.dataset import Dataset
from sde_gen.data.integers import whole_numbers
from sde_gen.data.write_arrays import write_array, write_arrays
from sde_gen.data.write_folders import write_folder
from sde_gen.data.write_tables import TABLE_FORMS, Column, check_table, write_parquet, write_table

FORMATS = {".npy": "npy", ".npz": "npz", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"} | {
    ending: form for form, each in formats.FORMATS.items() if each.write is not None for ending in each.endings
}
"""By the ending of a file; what has none is a folder of PNGs, "png", or of the files that the data came in, "files"."""
_FAMILIES = {"nifti_gz": "nifti"} | dict.fromkeys(formats.NAMED, "arrays by name")
"""Formats that can write one another's headers."""
FOLDERS = ("png", "files", *(form for form, each in formats.FORMATS.items() if each.is_folder))
"""Forms that are a folder."""
_AXES = {1: "NC", 2: "NCL", 3: "NCHW", 4: "NCDHW"}
_EXACT = 2.0**53  # whole numbers up to here are exact in float64, and far from the end of int64
_BYTE, _WORD = 256, 65_536

MEMBERS = ("x", "label", "guidance", "rule")
"""Arrays of an .npz of samples that are no condition of theirs."""
Parts = Callable[[], Iterator[tuple[np.ndarray, np.ndarray | None]]]
"""Gives, each time that it is called, all samples part by part: values (B, *shape) of `DataDescription.finish` and classes (B,) or None."""


@dataclass(frozen=True)
class DataDescription:
    """What has to be known of a training set to write samples in its form.

    name, shape: of the data set and of one item.
    dtype: "float32" or "float64", that of its items.
    levels: as in `Dataset`.
    whole: whether the training items are whole numbers: one answer for each column of vectors, else one for all entries.
    value_range: (low, high) to show the data with, that of `Dataset` or else the smallest and largest value.
    columns, label_column: as in `Dataset`.
    label_names: the data's own label of each class, or None without labels.
    label_counts: training items of each class, or None.
    missing: of data with a mask, what marks entries that are no data in their files, a number or "nan"; else None.
    cond_columns: of each condition that was a column of the table, its own name, and name and place of the column as in `label_column`.
    header: as in `Dataset`.
    codec: the configuration of `Dataset.codec`, with its rows' patterns of gaps where they are a condition, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    levels: int | None
    whole: tuple[bool, ...]
    value_range: tuple[float, float]
    columns: tuple[str, ...] | None = None
    label_column: tuple[str | None, int] | None = None
    label_names: tuple[int | str, ...] | None = None
    label_counts: tuple[int, ...] | None = None
    cond_columns: tuple[tuple[str, str | None, int], ...] = ()
    missing: float | str | None = None
    header: Mapping[str, Any] | None = None
    codec: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, data: Dataset) -> DataDescription:
        """That of a data set; of one that lies on disk the items in memory are looked at, and all labels."""
        low, high = data.value_range or (float(data.train.min()), float(data.train.max()))
        labels = data.training[1]
        classes = data.classes if labels is not None else None
        return cls(
            data.name,
            data.shape,
            "float64" if data.train.dtype == torch.float64 else "float32",
            data.levels,
            whole_numbers(data.train) if data.levels is None else (True,) * (data.shape[0] if len(data.shape) == 1 else 1),
            (float(low), float(high)),
            data.columns,
            data.label_column,
            None if classes is None else data.label_names or tuple(range(classes)),
            None if labels is None or classes is None else tuple(torch.bincount(labels, minlength=classes).tolist()),
            tuple((name, *column) for name, column in data.cond_columns.items()),
            None if data.missing is None else "nan" if math.isnan(data.missing) else data.missing,
            None if data.header is None else dict(data.header),
            None if data.codec is None else data.codec.to_config() | patterns_of(data.codec, data.cond.get(VALID)),
        )

    def to_config(self) -> dict[str, Any]:
        """What `from_config` needs, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: Any) -> DataDescription:
        """The description that `to_config` gave. ValueError where it is none."""
        try:
            lists: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
            found = cls(**lists)
            columns = tuple((str(name), header, int(place)) for name, header, place in found.cond_columns)
            found = replace(found, cond_columns=columns)
            beside = len(columns) + (found.label_column is not None)
            wide = found.shape[0] if len(found.shape) == 1 else 1
            table = wide if found.codec is None else len(Codec.from_config(found.codec).names)
            names, counts = found.label_names, found.label_counts
            right = (
                all(type(size) is int and size > 0 for size in found.shape)
                and 1 <= len(found.shape) <= 4
                and found.dtype in ("float32", "float64")
                and (found.levels is None or (type(found.levels) is int and found.levels >= 2))
                and len(found.whole) == wide
                and all(math.isfinite(end) for end in found.value_range)
                and len(found.value_range) == 2
                and (found.columns is None or (len(found.columns) == wide and all(isinstance(name, str) for name in found.columns)))
                and (names is None) == (counts is None)
                and (counts is None or names is None or (len(names) == len(counts) and min(counts) >= 0 and sum(counts) > 0))
                and (found.label_column is None or len(found.label_column) == 2)
                and all(0 <= place < table + beside for place in found.places_beside)
                and len(set(found.places_beside)) == beside
            )
        except (AttributeError, TypeError, ValueError, LookupError):
            right = False
        if not right:
            raise ValueError(f"{str(config)[:80]!r} describes no data; what DataDescription.to_config gives is needed")
        return found

    @property
    def places_beside(self) -> list[int]:
        """Places of the columns of the table that are no data."""
        return [place for _, _, place in self.cond_columns] + ([] if self.label_column is None else [self.label_column[1]])

    @property
    def axes(self) -> str:
        """A letter for each axis of a batch: N items, C columns or channels, L, H and W or D, H and W space."""
        return _AXES[len(self.shape)]

    def axes_of(self, form: str) -> str:
        """A letter for each axis of what is written in this form."""
        return str(self._header(form).get("letters") or self.axes)

    def form(self, out: str) -> str:
        """The form that a path asks for: "npy", "npz", "csv", "tsv", a key of `formats.FORMATS`, or of a folder "files" where the data were
        a folder of files in one of these, else "png". ValueError for any other ending, and where the package for it is not installed."""
        form = form_of(out)
        header = self.header or {}
        if form == "png" and header.get("folder"):
            form = "files"
            if header.get("plain") and not formats.FORMATS[header["format"]].installed:
                return "png"  # which such files, that were read without it, can be as well
        if form in formats.FORMATS or form == "files":
            formats.FORMATS[header["format"] if form == "files" else form].require(out)
        return form

    def check(self, form: str) -> None:
        """ValueError where data of this shape have no such form: a table of anything but vectors, PNGs of anything but images."""
        shape = "x".join(map(str, self.shape))
        if form in TABLE_FORMS:
            check_table(form, self.shape)
        chosen = self._format(form)
        if chosen is not None and chosen.check is not None:
            chosen.check(self.shape, self.file_dtype(form), self._header(form))
        if form != "png":
            return
        if len(self.shape) != 3:
            others = ".npy, .npz, .csv or .tsv" if len(self.shape) == 1 else ".npy or .npz"
            raise ValueError(f"items of shape {shape} are no images, which a folder of PNGs holds; a file that ends in {others} holds them")
        channels = (1, 3, 4) if (self.header or {}).get("mode") == "RGBA" else (1, 3)
        if self.shape[0] not in channels or (self.shape[0] > 1 and self._depth > _BYTE):
            deep = " of 16 bits" * (self._depth > _BYTE)
            raise ValueError(f"PNG has 1 or 3 channels (3 of 8 bits), these images have {self.shape[0]}{deep}; .npy or .npz holds them")

    def _format(self, form: str) -> formats.Format | None:
        """Of a form in one of `formats.FORMATS`, that format."""
        key = (self.header or {}).get("format") if form == "files" else form
        return formats.FORMATS.get(str(key))

    def _header(self, form: str) -> dict[str, Any]:
        """The data's header, where they came in the format of this form; else nothing."""
        header = dict(self.header or {})
        of_data, asked = (_FAMILIES.get(str(key), key) for key in (header.get("format"), form))
        return header if form == "files" or of_data == asked else {}

    def _limits(self, form: str) -> tuple[float, float] | None:
        """The smallest and largest value of this form, where it or the data have such."""
        if self.levels is not None:
            return 0.0, self.levels - 1.0
        if form == "png":
            return 0.0, _BYTE - 1.0
        dtype = self.file_dtype(form)
        if dtype.kind in "iu":
            within = np.iinfo(dtype)
            return max(float(within.min), -_EXACT), min(float(within.max), _EXACT)
        ends = self._header(form).get("range")
        return None if ends is None else (float(ends[0]), float(ends[1]))

    @property
    def _depth(self) -> int:
        """How many values a PNG's entries have."""
        if self.levels is not None:
            return 2 if self.levels == 2 and self.shape[0] == 1 else _BYTE if self.levels <= _BYTE else _WORD
        return _BYTE

    @property
    def _bytes(self) -> bool:
        """Whether continuous data are whole numbers in 0 .. 255."""
        return self.levels is None and all(self.whole) and self.value_range[0] >= 0 and self.value_range[1] <= _BYTE - 1

    def finish(self, x: Tensor | np.ndarray, form: str = "npz", valid: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Samples (B, *shape) in the data's units as the numbers that a file holds, and how many of them were rounded and clipped.

        Levels are rounded and clipped to 0 .. levels - 1; other whole numbers are rounded, and clipped to +-2^53 where data that are
        all whole numbers lie within these bounds; what else there is stays.
        For PNGs, values are brought from the data's range to the picture's by a linear map, then rounded and clipped: levels and whole
        numbers in 0 .. 255 that a picture holds as they are, are not mapped.
        Entries that are not `valid` (Boolean, broadcast to x) get the number that marks them in the data's files, but in PNGs.

        Returns:
            values: (B, *shape) of uint8, uint16 (levels), int64 (whole, within +-2^53), float32 or float64; in a PNG bool, uint8 or uint16.
            touched: int64 (2,), values that rounding and that clipping changed.
        """
        values = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        values = np.ascontiguousarray(values, dtype=self.dtype)
        if self.codec is not None:  # features, of which writing makes the table's columns, with gaps where they are NaN
            values = values if valid is None else np.where(valid, values, np.nan)
            return values, np.zeros(2, dtype=np.int64)
        top = None if self.levels is None else self.levels - 1
        if top is None and form == "png":
            top, mapped = _BYTE - 1, not self._bytes
            low, high = self.value_range
            values = (values - low) * (top / ((high - low) or 1.0)) if mapped else values
        columns = np.array(self.whole) if len(self.whole) == values.shape[-1] and values.ndim == 2 else np.array(self.whole[0])
        if top is not None or self.file_dtype(form).kind in "iu":
            columns = np.array(True)
        rounded = np.where(columns, np.rint(values), values)
        touched = [int(np.count_nonzero(rounded != values)), 0]
        limits = self._limits(form)
        if limits is not None:  # a sample may have gone astray further than the type reaches
            kept = rounded.clip(*limits)
            touched[1] = int(np.count_nonzero(kept != rounded))
            rounded = kept
        if form == "png" and self.levels is not None and self._depth > 2:
            rounded = np.rint(rounded * ((self._depth - 1) / (self.levels - 1)))
        finished = rounded.astype(self.file_dtype(form))
        if valid is not None and self.missing is not None and form != "png":
            finished = np.where(valid, finished, np.array(float(self.missing)).astype(finished.dtype))
        return finished, np.array(touched)

    def of_picture(self, picture: np.ndarray, depth: int) -> np.ndarray:
        """A picture's values 0 .. depth - 1 in the data's units: the inverse of how `finish` makes pictures."""
        if self.levels is not None:
            return picture * ((self.levels - 1) / (self._depth - 1))
        low, high = self.value_range
        return picture if self._bytes else low + picture * ((high - low) / (depth - 1))

    def file_dtype(self, form: str = "npz") -> np.dtype:
        """The type of the numbers that `finish` gives."""
        if form == "png":
            return np.dtype({2: "bool", _BYTE: "uint8", _WORD: "uint16"}[self._depth])
        if self.codec is not None:
            return np.dtype(self.dtype)
        own = self._header(form).get("dtype")
        if own is not None and (self.missing != "nan" or np.dtype(own).kind == "f"):
            return np.dtype(own)
        if self.missing == "nan":
            return np.dtype(self.dtype)  # which has a NaN
        if self.levels is not None and self.levels <= _WORD:
            return np.dtype("uint8" if self.levels <= _BYTE else "uint16")
        within = max(abs(end) for end in self.value_range) <= _EXACT
        return np.dtype("int64" if all(self.whole) and within else self.dtype)

    def touched_line(self, touched: Sequence[int], count: int, form: str = "npz") -> str:
        """What `finish` did to `count` samples, with the share of values that it touched; "" for nothing."""
        if self.codec is not None:
            return "" if form in TABLE_FORMS else "are the features of the table's columns; .csv, .tsv, .parquet hold the table"
        total = count * math.prod(self.shape)
        shares = [f"{100 * number / total:.3g} % of the values" for number in touched]
        if form == "png" and self.levels is None and not self._bytes:
            low, high = self.value_range
            return f"the data's range {low:.4g} .. {high:.4g} is 0 .. 255 of the pictures, rounded; {shares[1]} lay outside and are clipped"
        mapped = ""
        if form == "png" and self.levels is not None and self.levels != self._depth:
            mapped = f"; levels 0 .. {self.levels - 1} are 0 .. {self._depth - 1} of the pictures"
        if self.levels is not None or form == "png":
            top = (self.levels or _BYTE) - 1
            return f"rounded to whole numbers, as the data are ({shares[0]}), and clipped to 0 .. {top} ({shares[1]}){mapped}"
        limits = self._limits(form)
        ends = "" if limits is None else "+-2^53" if limits == (-_EXACT, _EXACT) else f"{limits[0]:.7g} .. {limits[1]:.7g}"
        clipped = f"clipped to {ends} ({shares[1]})" if touched[1] else ""
        if self.file_dtype(form).kind in "iu" and not all(self.whole):
            return f"rounded to whole numbers, which the file holds ({shares[0]})" + f", and {clipped}" * bool(clipped)
        if not any(self.whole):
            return clipped
        which = "whole numbers, as the data are"
        if not all(self.whole):
            places = [place for place, whole in enumerate(self.whole) if whole]
            named = [str(place) if self.columns is None else self.columns[place] for place in places]
            which = f"whole numbers in the columns that hold such: {', '.join(named[:8])}{', ...' * (len(named) > 8)}"
        return f"rounded to {which} ({shares[0]})" + f", and {clipped}" * bool(clipped)

    def labels_of(self, classes: np.ndarray) -> np.ndarray:
        """The data's own labels (B,), whole numbers or words, of class indices (B,)."""
        return np.array(self.label_names)[classes] if self.label_names is not None else classes


def form_of(out: str) -> str:
    """The form that a path asks for: "npy", "npz", "csv", "tsv", "parquet", a key of `formats.FORMATS`, or "png" for a folder.
    ValueError for any other ending."""
    known, ending = formats.format_of(out), Path(out).suffix.lower()
    if known in FORMATS.values():
        return str(known)
    if out.endswith("/") or not ending:
        return "png"
    if known is not None:
        name = formats.FORMATS[known].name
        raise ValueError(f"a {ending} file holds one item; give a folder (no ending), which a run on {name} files fills with such")
    if ending not in FORMATS:
        raise ValueError(f"cannot write {ending} files; {', '.join(FORMATS)}, or a folder (no ending) for PNGs, are allowed")
    return FORMATS[ending]


def in_words(values: Tensor | np.ndarray, names: Sequence[int | str] | None = None) -> np.ndarray:
    """Values (N, *) of a condition as a file has them: of a category, whose classes are called `names`, its words, and nothing for a class
    that is not known; other values as they are."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    if names is None:
        return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    words = np.array(names)
    return words[array] if not len(array) or array.max() < len(names) else np.array([*map(str, names), ""])[array]


def write_npz(
    path: Path,
    x: Tensor | np.ndarray,
    classes: Tensor | np.ndarray | None,
    about: DataDescription,
    beside: Mapping[str, np.ndarray] | None = None,
    valid: np.ndarray | None = None,
) -> None:
    """Write samples (N, *shape) in the data's units as an .npz file: x, label where `classes` (N,) are given, and the arrays `beside`;
    entries that are not `valid` as the data's files mark them."""
    values, _ = about.finish(x, valid=valid)
    indices = classes.cpu().numpy() if isinstance(classes, Tensor) else classes
    columns: dict[str, Column] = {name: lambda first, last, own=own: own[first:last] for name, own in (beside or {}).items()}  # type: ignore[misc]
    write_samples(path, "npz", about, len(values), lambda: iter([(values, indices)]), indices is not None, columns)


def write_samples(
    path: Path,
    form: str,
    about: DataDescription,
    count: int,
    parts: Parts,
    labelled: bool,
    beside: Mapping[str, Column] | None = None,
    facts: Mapping[str, float | str] | None = None,
) -> None:
    """Write `count` samples, given part by part as `about.finish` made them for this form; memory holds one part at a time.

    npy: the values alone. npz: arrays x and, where `labelled`, label with the data's own labels; those of the conditions `beside`, and
    the single values `facts`. csv, tsv: the training table's header
    and order of columns, the labels in their place or, where the data had no such column, last; conditions that were columns in theirs,
    with empty cells where they are not `beside`. png, files: a folder of PNGs, or of files as the data were, named by number, in a
    subfolder for each label where `labelled`. Other formats: as their writers say, with the data's own header.
    """
    beside, chosen = beside or {}, about._format(form)

    def named() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for values, classes in parts():
            yield values, about.labels_of(classes) if labelled and classes is not None else None

    items = formats.Items(count, about.shape, about.file_dtype(form), named, about._header(form), labelled, beside)
    if form == "npy":
        write_array(path, items)
    elif form == "npz":
        write_arrays(path, items, facts or {})
    elif form == "parquet":
        write_parquet(path, about, parts(), labelled, beside)
    elif form in ("csv", "tsv"):
        with path.open("w", encoding="utf-8", newline="") as text:
            write_table(text, "," if form == "csv" else "\t", about, parts(), labelled, beside)
    elif chosen is not None and form != "files" and chosen.write is not None:
        chosen.write(path, items)
    else:
        write_folder(path, items, None if chosen is None else chosen.write_one)
