"""TIFF files of many pages, of floats or of 16-bit colour, by tifffile: one file whose pages are items, or a folder of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sde_gen.data.axes import check_axes
from sde_gen.data.formats.base import MOST_ITEMS, Asked, Contents, Format, FormatError, Items, OnDisk, guarded, needs_file
from sde_gen.data.formats.stacks import Seen, stacked
from sde_gen.data.formats.variables import as_laid_out
from sde_gen.data.source import IN_MEMORY

WHAT = "TIFF file"
OF_TIFF = {"X": "W", "Y": "H", "Z": "D", "C": "C", "S": "C"}
"""tifffile's letters of axes; all others count items."""
MOST_BYTES = 1 << 34
SAME = ("axes",)
_MOST_CLASSIC = (1 << 32) - (1 << 25)  # bytes; more have no place in a TIFF file but a BigTIFF


def read(path: Path, asked: Asked) -> Contents:
    """The pages of one file; `axes` where the file does not say which one counts the items."""
    needs_file(path, f"a {WHAT}")
    with guarded(path, WHAT):
        shape, dtype, header = describe(path)
        own = header["axes"]
        letters = check_axes(asked.axes) if asked.axes is not None else _letters(own)
        if letters is None or len(letters) != len(shape):
            raise FormatError(
                f"{path.name}: one image or volume of shape {shape} (axes {own}); a file of many pages, a folder of images, or axes that "
                f"say which one counts the items are needed (--axes {'NHW' if len(shape) == 3 else 'NHWC'})"
            )
        axis = letters.index("N")
        if shape[axis] > MOST_ITEMS:
            raise FormatError(f"{path.name}: claims {shape[axis]:,} items; at most {MOST_ITEMS:,} are allowed")
        whole = _whole(path, shape, dtype)

        def some(first: int, last: int) -> np.ndarray:
            return whole(first, last) if axis == 0 else np.moveaxis(whole(0, shape[0]), axis, 0)[first:last]

        rows = OnDisk([shape[axis], *(size for k, size in enumerate(shape) if k != axis)], dtype, some)
        return Contents({"train": rows}, {}, "N" + letters.replace("N", ""), header | {"letters": letters})


def _whole(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """A function of (first, last) that gives these entries of the first axis: mapped from disk where they lie there as they are, else page
    by page, or of a small file all at once."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        pages, plain = len(series.pages), series.dataoffset is not None
    if plain:
        mapped: Any = tifffile.memmap(path, mode="r")
        return lambda first, last: np.asarray(mapped.reshape(shape)[first:last])
    if pages % shape[0] == 0 and np.prod(shape, dtype=np.float64) * dtype.itemsize > IN_MEMORY:
        each = pages // shape[0]

        def some(first: int, last: int) -> np.ndarray:
            return tifffile.imread(path, key=range(first * each, last * each)).reshape(last - first, *shape[1:])

        return some
    values = tifffile.imread(path, series=0).reshape(shape)
    return lambda first, last: values[first:last]


def _letters(own: str) -> str | None:
    """Our letters for tifffile's, None where not exactly one axis counts items or none is of space."""
    found = "".join(OF_TIFF.get(letter, "N") for letter in own)
    right = len(set(found)) == len(found) and "N" in found and "H" in found and "W" in found
    return found if right else None


def read_folder(path: Path, names: Sequence[str], asked: Asked) -> Contents:
    """The images or volumes below a folder, one a file."""
    axes = "N" + "".join(OF_TIFF.get(letter, "?") for letter in describe(path / names[0])[2]["axes"])
    if asked.axes is not None:
        axes = check_axes(asked.axes)
    if "?" in axes or len(set(axes)) < len(axes):
        raise FormatError(f"{path.name}/{names[0]}: pages that may be items or slices; say which with axes (--axes NDHW: slices)")
    return stacked(path, names, describe, load, SAME, lambda shape: axes, "TIFF files")


def describe(path: Path) -> Seen:
    """Shape and type of the first series, and what files of the kind need: axes, colours, resolution."""
    import tifffile

    with guarded(path, WHAT), tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise FormatError(f"{path.name}: {len(file.series)} series of pages; one is needed")
        series = file.series[0]
        page: Any = series.keyframe
        axes, shape = series.axes, tuple(map(int, series.shape))
        dtype = np.dtype(series.dtype).newbyteorder("=")
        if np.prod(shape, dtype=np.float64) * dtype.itemsize > MOST_BYTES:
            raise FormatError(f"{path.name}: claims values of shape {shape}; at most {MOST_BYTES:,} bytes are allowed")
        if page.photometric.name not in ("MINISBLACK", "RGB"):
            raise FormatError(f"{path.name}: {page.photometric.name} colours; grey values (black is 0) and RGB are allowed")
        header = {
            "axes": axes,
            "photometric": page.photometric.name.lower(),
            "planar": page.planarconfig.name.lower() if page.samplesperpixel > 1 else None,
            "resolution": [list(map(int, page.tags[key].value)) for key in ("XResolution", "YResolution") if key in page.tags] or None,
            "unit": int(page.tags["ResolutionUnit"].value) if "ResolutionUnit" in page.tags else None,
            "endian": file.byteorder,
            "letters": None,
        }
        return shape, dtype, header


def load(path: Path) -> np.ndarray:
    import tifffile

    with guarded(path, WHAT):
        return tifffile.imread(path)


def write(path: Path, items: Items) -> None:
    """Samples as the pages of one file, in the axes of the data."""
    letters = items.header.get("letters") or {2: "NHW", 3: "NHW" if items.shape[0] == 1 else "NHWC", 4: "NDHW"}[len(items.shape)]
    if len(items.shape) == 4 and items.shape[0] > 1 and "C" not in letters:
        letters = "NCDHW"

    def pages() -> Iterator[np.ndarray]:
        for _, values, _ in items.numbered():
            for item in as_laid_out(values, f"N{letters.replace('N', '')}"):
                flat = item if item.ndim < 3 or (letters.endswith("C") and item.ndim == 3) else item.reshape(-1, *item.shape[-2:])
                yield from [flat] if flat is item else flat

    sizes = dict(zip("C" + {3: "HW", 4: "DHW"}[len(items.shape)], items.shape, strict=True)) | {"N": items.count}
    if letters[0] != "N":
        whole = as_laid_out(np.concatenate([values for _, values, _ in items.numbered()]), letters)
        return _save(path, whole, whole.shape, items.dtype, letters, items.header)
    _save(path, pages(), tuple(sizes[letter] for letter in letters), items.dtype, letters, items.header)


def write_one(path: Path, values: np.ndarray, header: Mapping[str, Any]) -> None:
    """An image (C, H, W) or volume (C, D, H, W) as a file of its own."""
    letters = header["letters"].replace("N", "")
    laid = as_laid_out(values[None], f"N{letters}")[0]
    _save(path, laid, laid.shape, laid.dtype, letters, header)


def _save(path: Path, data: Any, shape: tuple[int, ...], dtype: np.dtype, letters: str, header: Mapping[str, Any]) -> None:
    import tifffile

    colour = letters.endswith("C") and shape[-1] in (3, 4) and header.get("photometric", "rgb") == "rgb" and dtype.kind == "u"
    names = {"N": "Q", "C": "S" if letters.endswith("C") else "C", "H": "Y", "W": "X", "D": "Z"}
    options: dict[str, Any] = {"photometric": "rgb" if colour else "minisblack", "metadata": {"axes": "".join(names[k] for k in letters)}}
    if letters.endswith("C"):
        options["planarconfig"] = "contig"
    if header.get("resolution"):
        options |= {"resolution": [tuple(each) for each in header["resolution"]], "resolutionunit": header.get("unit") or 1}
    kind = dtype.newbyteorder(header.get("endian", "<"))
    large = float(np.prod(shape, dtype=np.float64)) * dtype.itemsize > _MOST_CLASSIC
    with tifffile.TiffWriter(path, byteorder=header.get("endian", "<"), bigtiff=large) as file:
        if isinstance(data, np.ndarray):
            file.write(np.ascontiguousarray(data).astype(kind), **options)
        else:
            file.write((np.ascontiguousarray(page).astype(kind) for page in data), shape=shape, dtype=kind, **options)


def check(shape: tuple[int, ...], dtype: np.dtype, header: Mapping[str, Any]) -> None:
    if len(shape) not in (3, 4):
        raise FormatError(f"items of shape {'x'.join(map(str, shape))} are no images or volumes, which a TIFF file holds")


TIFF = Format("TIFF", (".tif", ".tiff"), ("tifffile",), read, write, read_folder, write_one, check)
