"""Arrays in .npy and .npz files, mapped from disk rather than read, and never unpickled."""

from __future__ import annotations

import tokenize
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sde_gen.data import conditions as of_items
from sde_gen.data.assemble import Part, assemble
from sde_gen.data.axes import Layout, check_axes, levels_of, read_layout
from sde_gen.data.dataset import Dataset
from sde_gen.data.errors import one_line
from sde_gen.data.source import Source
from sde_gen.data.splits import GROUP

KEYS = {
    "train": ("train", "x", "images", "data", "arr_0"),
    "labels": ("labels", "y", "train_labels"),
    "test": ("test", "x_test", "test_images"),
    "test_labels": ("test_labels", "y_test"),
}
"""Under which names an .npz file's arrays are looked for; the first that is there counts."""
MOST_UNPACKED = 8 << 30
"""Bytes that the compressed arrays of an .npz file may unpack to."""
_SHAPES = "(N, D), (N, C, L), (N, C, H, W) or (N, C, D, H, W)"


def load_npy(path: Path, axes: str | None = None, **options: Any) -> Dataset:
    """A data set from one .npy file; `options` go to `assemble`.

    `axes`: a letter for each axis of the array, such as NCHW or NHWC; without them see `axes.read_layout` for what a shape says.

    Raises:
        ValueError: no such file or not an .npy file, truncated, objects, text or complex numbers, or a shape that is not allowed.
    """
    return dataset_of(path, {"train": checked_array(path.name, open_npy(path))}, (), axes, **options)


def load_npz(path: Path, axes: str | None = None, conditions: Sequence[str] = (), **options: Any) -> Dataset:
    """A data set from the arrays of an .npz file, by their names (`KEYS`); stored (not compressed) arrays are mapped from disk.

    axes: those of the items' arrays, as in `load_npy`; a condition of as many axes is read the same way.
    conditions: "KEY" or "NAME=KEY" of arrays (N, *) that are conditions of the items; of those held out the array KEY_test. Whole numbers,
        Booleans and words (N,) are classes, other arrays numbers with NaN where one is not known, in the shapes of
        `sde_gen.conditions.fit_condition`; an array of the data's grid without channels is a map of one.

    Raises:
        ValueError: as `load_npy`, or no array for the training part or for a condition, or arrays that unpack to more than
            `MOST_UNPACKED` bytes.
    """
    members = npz_members(path)
    keys_of_conditions = _keys_of_conditions(path, conditions)
    for name, key in keys_of_conditions.items():
        if key not in members:
            what = "the groups" if name == GROUP else "a condition"
            raise ValueError(f"{path.name}: no array {key!r} for {what}; its arrays are {', '.join(sorted(members))}")
    keys = {("train", name): key for name, key in keys_of_conditions.items()}
    keys |= {("test", name): f"{key}_test" for name, key in keys_of_conditions.items() if f"{key}_test" in members}
    found = _chosen(path, members, set(keys.values()))
    arrays = {part: open_member(path, members[key]) for part, key in found.items()}
    of_cond = {place: open_member(path, members[key]) for place, key in keys.items()}
    unused = sorted(set(members) - {*found.values(), *keys.values()})
    return dataset_of(path, arrays, [f"arrays not used: {', '.join(unused)}"] if unused else (), axes, of_cond, **options)


def _keys_of_conditions(path: Path, conditions: Sequence[str]) -> dict[str, str]:
    """The array of each condition by its name."""
    pairs = [(key if name is None else name, key) for name, key in of_items.asked(path.name, conditions)]
    of_items.check_names(path.name, [name for name, _ in pairs])
    return dict(pairs)


def item_shape(path: Path, axes: str | None = None, conditions: Sequence[str] = (), series: bool = False) -> tuple[int, ...]:
    """Shape of one item, from the file's header alone; `series`: of a row. ValueError as the loaders'."""
    if path.suffix.lower() == ".npy":
        array = open_npy(path)
    else:
        members = npz_members(path)
        array = open_member(path, members[_chosen(path, members, _keys_of_conditions(path, conditions).values())["train"]])
    return arrange(path.name, checked_array(path.name, _rows(array) if series else array), axes)[1].item


def arrange(name: str, array: Any, axes: str | None = None) -> tuple[Source, Layout]:
    """The rows of an array as a `Source` (N, D) or (N, C, *spatial), and how its axes were read (see `axes.read_layout`)."""
    if axes is not None:
        axes = check_axes(axes)
        first = axes.index("N")
        if first < array.ndim:
            array = np.moveaxis(array, first, 0) if first else array
            axes = "N" + axes.replace("N", "")
    elif array.ndim == 1:
        raise ValueError(f"{name}: shape {array.shape}; {_SHAPES} is needed (reshape to (N, 1) for single numbers)")
    layout = read_layout(name, array.shape, array.dtype, axes)
    return Source(name, layout.item, lambda rows: layout.apply(array[rows]), np.arange(len(array))), layout


def dataset_of(
    path: Path,
    arrays: Mapping[str, Any],
    notes: Any,
    axes: str | None,
    cond: Mapping[tuple[str, str], np.ndarray] | None = None,
    **options: Any,
) -> Dataset:
    """A data set of arrays by the names of `KEYS`, numpy's or what is indexed like one (`formats.base.OnDisk`), and conditions by part and
    name. ValueError where they do not fit together."""
    notes, parts = list(notes), {}
    if options.get("window") is not None:
        arrays = {part: _rows(array) for part, array in arrays.items()}
    train = arrays["train"]
    levels = levels_of(train.dtype)
    if "test" in arrays and levels_of(arrays["test"].dtype) != levels:
        raise ValueError(
            f"{path.name}: training items of type {train.dtype} and held-out items of type {arrays['test'].dtype} are in different units; "
            "one type is needed"
        )
    for part in ("train", "test"):
        if part not in arrays:
            continue
        source, layout = arrange(path.name, arrays[part], axes)
        labels = arrays.get("labels" if part == "train" else "test_labels")
        if labels is not None and labels.shape != (len(source),):
            raise ValueError(f"{path.name}: labels of shape {labels.shape} for {len(source)} {part} items; ({len(source)},) is needed")
        values = {
            name: _condition(path, name, value, arrays[part].ndim, axes, layout) for (p, name), value in (cond or {}).items() if p == part
        }
        parts[part] = Part(source, None if labels is None else np.array(labels), values)
        if part == "train":
            notes.insert(0, layout.note)
    if levels is None and train.dtype.kind in "iu":
        notes.append(f"{train.dtype} values are taken as continuous; save them as uint8 or uint16 where they are levels 0 .. 255 or 65535")
    shown = None if levels is None else (0.0, float(levels - 1))
    return assemble(path.name, parts["train"], parts.get("test"), levels=levels, value_range=shown, notes=notes, **options)


def _rows(array: np.ndarray) -> np.ndarray:
    """A series of single numbers (T,) as rows of one."""
    return array[:, None] if array.ndim == 1 else array


def _condition(path: Path, name: str, array: np.ndarray, rank: int, axes: str | None, layout: Layout) -> of_items.Values:
    alike = array.ndim == rank > 2
    source = arrange(f"{path.name}: condition {name!r}", array, layout.axes if axes is None else axes)[0] if alike else None
    return of_items.of_array(path.name, array, layout, source)


def open_items(path: Path) -> tuple[str | None, np.ndarray]:
    """The array of items of an .npy or .npz file, and its name in the latter."""
    if path.suffix.lower() == ".npy":
        return None, checked_array(path.name, open_npy(path))
    members = npz_members(path)
    key = _chosen(path, members)["train"]
    return key, checked_array(path.name, open_member(path, members[key]))


def checked_array(name: str, array: Any) -> Any:
    """The array, of numbers, of one to five axes and not empty; ValueError for another."""
    if array.dtype.kind not in "buif":
        what = "Python objects, which would have to be unpickled" if array.dtype.hasobject else str(array.dtype)
        cure = ", for example real and imaginary part as two channels" if array.dtype.kind == "c" else ""
        raise ValueError(f"{name}: holds {what}; numbers (Boolean, integer or floating) are allowed{cure}")
    if not 1 <= array.ndim <= 5 or array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}; non-empty {_SHAPES} is needed")
    return array


_BROKEN = (
    *(OSError, EOFError, ValueError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile),
    *(NotImplementedError, RuntimeError, MemoryError, OverflowError),
)


def _guarded(path: Path, member: str, action: Callable[[], np.ndarray]) -> np.ndarray:
    where = f"{path.name}: {member}" if member else path.name
    try:
        return action()
    except _BROKEN as error:
        raise ValueError(f"{where} cannot be read ({one_line(error)}); a complete .npy array of numbers is needed") from error


def open_npy(path: Path) -> np.ndarray:
    """The array of an .npy file, mapped from disk and never unpickled. ValueError where it cannot be read."""
    _needs_file(path, b"\x93NUMPY", ".npy")
    return _guarded(path, "", lambda: _mapped(path, 0))


def _mapped(path: Path, start: int) -> np.ndarray:
    """The array whose .npy header stands at byte `start` of a file, mapped from disk; ValueError for objects."""
    with path.open("rb") as file:
        file.seek(start)
        shape, fortran, dtype = _header(file)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled")
    if 0 in shape or dtype.itemsize == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, order="F" if fortran else "C")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version} of the format; 1.0 and 2.0 hold arrays of numbers")


def _needs_file(path: Path, magic: bytes, ending: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path.name}: {'a directory' if path.is_dir() else 'no such file'}; an {ending} file is needed")
    try:
        with path.open("rb") as file:
            start = file.read(len(magic))
    except OSError as error:
        raise ValueError(f"{path.name}: cannot be read ({one_line(error)})") from error
    if start != magic:
        raise ValueError(
            f"{path.name}: {'empty' if not start else 'its content is not that of an ' + ending + ' file'}; numpy writes these"
        )


def npz_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an .npz file by name. ValueError where it is none."""
    _needs_file(path, b"PK", ".npz")
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path.name}: cannot be read ({one_line(error)}); a complete .npz file is needed") from error


def _chosen(path: Path, members: dict[str, zipfile.ZipInfo], keys_of_conditions: Iterable[str] = ()) -> dict[str, str]:
    """The arrays of items and labels among those that are no conditions, `keys_of_conditions`."""
    keys_of_conditions = [key for key in keys_of_conditions if key in members]
    left = [key for key in members if key not in keys_of_conditions]
    found = {part: next((key for key in keys if key in left), None) for part, keys in KEYS.items()}
    if found["train"] is None and len(left) == 1:
        found["train"] = left[0]
    if found["train"] is None:
        raise ValueError(
            f"{path.name}: holds arrays {', '.join(sorted(members)) or 'none'}; one named {', '.join(KEYS['train'])} is needed"
        )
    opened = [key for key in (*found.values(), *keys_of_conditions) if key is not None]
    unpacked = sum(members[key].file_size for key in opened if members[key].compress_type != zipfile.ZIP_STORED)
    if unpacked > MOST_UNPACKED:
        raise ValueError(f"{path.name}: its arrays unpack to {unpacked:,} bytes; at most {MOST_UNPACKED:,} are allowed, save them as .npy")
    return {part: key for part, key in found.items() if key is not None}


def open_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """An array of an .npz file, mapped from disk where it is not compressed. ValueError where it is broken."""
    member = info.filename.removesuffix(".npy")

    def unpacked() -> np.ndarray:
        with zipfile.ZipFile(path) as archive, archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def stored() -> np.ndarray:
        with path.open("rb") as file:
            file.seek(info.header_offset)
            head = file.read(30)  # the local header: the lengths of its name and extra field are its last four bytes
            if head[:4] != b"PK\x03\x04" or info.flag_bits & 1:
                raise ValueError("encrypted, or its header is damaged")
            start = info.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        array = _mapped(path, start)
        if array.nbytes > info.file_size:
            raise ValueError(f"its header claims {array.nbytes} bytes, {info.file_size} are there")
        return array

    array = _guarded(path, member, stored if info.compress_type == zipfile.ZIP_STORED else unpacked)
    where = f"{path.name}: {member}"
    if array.dtype.kind == "U" and array.ndim == 1:  # words as labels
        return array
    return checked_array(where, array)
