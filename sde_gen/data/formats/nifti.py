"""NIfTI volumes, by nibabel: a folder of them, or one file of four axes whose last one counts the items; the header goes along."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from sde_gen.data.axes import check_axes
from sde_gen.data.formats.base import MOST_ITEMS, Asked, Contents, Format, FormatError, Items, OnDisk, PerProcess, guarded, needs_file
from sde_gen.data.formats.stacks import Seen, stacked
from sde_gen.data.formats.variables import as_laid_out

WHAT = "NIfTI file"
MOST_BYTES = 1 << 34
"""Of the values of one file: what its header may claim."""
SAME = ("affine",)


def read(path: Path, asked: Asked) -> Contents:
    """One file of axes (x, y, z, item); with `axes` of others."""
    needs_file(path, f"a {WHAT}")
    with guarded(path, WHAT):
        _, shape, _, header = _opened(path)
        letters = check_axes(asked.axes) if asked.axes is not None else "DHWN" if len(shape) == 4 else None
        if letters is None:
            raise FormatError(
                f"{path.name}: one volume of shape {shape}; a folder of volumes or a file of four axes is needed, or axes that say which "
                "one counts the items (--axes HWN: slices)"
            )
        if len(letters) != len(shape):
            raise FormatError(f"{path.name}: axes {letters} for shape {shape}; one letter for each of its {len(shape)} axes is needed")
        axis = letters.index("N")
        if shape[axis] > MOST_ITEMS:
            raise FormatError(f"{path.name}: claims {shape[axis]:,} items; at most {MOST_ITEMS:,} are allowed")
        handle = PerProcess(lambda: _opened(path)[0])

        def rows(first: int, last: int) -> np.ndarray:
            index = tuple(slice(first, last) if k == axis else slice(None) for k in range(len(shape)))
            return np.moveaxis(np.asanyarray(handle().dataobj[index]), axis, 0)

        sizes = [shape[axis], *(size for k, size in enumerate(shape) if k != axis)]
        kind = np.asanyarray(rows(0, 1)).dtype
        return Contents({"train": OnDisk(sizes, kind, rows)}, {}, "N" + letters.replace("N", ""), header | {"letters": letters})


def read_folder(path: Path, names: Sequence[str], asked: Asked) -> Contents:
    """The volumes below a folder: (x, y, z), slices (x, y, 1), or (x, y, z, c) with channels last."""

    def axes(shape: tuple[int, ...]) -> str:
        ways = {3: "NHW", 4: "NHWC" if shape[3] == 1 else "NDHW", 5: "NDHWC"}
        if len(shape) not in ways:
            raise FormatError(f"{path.name}: volumes of shape {shape[1:]}; two to four axes are needed")
        return ways[len(shape)]

    return stacked(path, names, describe, load, SAME, axes, "NIfTI files")


def describe(path: Path) -> Seen:
    """Shape and type of the values, and the header with its affine."""
    with guarded(path, WHAT):
        _, shape, dtype, header = _opened(path)
        return shape, dtype, header


def load(path: Path) -> np.ndarray:
    with guarded(path, WHAT):
        return np.asanyarray(_opened(path)[0].dataobj)


def _opened(path: Path) -> tuple[Any, tuple[int, ...], np.dtype, dict[str, Any]]:
    import nibabel

    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):  # of which NIfTI-2 is one
        raise FormatError(f"{path.name}: is {type(image).__name__}; a {WHAT} is needed")
    header = image.header
    shape = tuple(map(int, image.shape))
    bytes_claimed = float(np.prod(shape, dtype=np.float64)) * header.get_data_dtype().itemsize
    if not shape or min(shape) < 1 or bytes_claimed > MOST_BYTES:
        raise FormatError(f"{path.name}: claims values of shape {shape}; at most {MOST_BYTES:,} bytes are allowed")
    slope, inter = image.dataobj.slope, image.dataobj.inter  # the header's own are forgotten when it is read
    scaled = (slope, inter) != (1.0, 0.0)
    dtype = np.dtype("float64") if scaled else header.get_data_dtype().newbyteorder("=")
    affine = np.round(image.affine, 4).tolist()
    kept = {
        "binary": base64.b64encode(header.binaryblock).decode("ascii"),
        "endian": header.endianness,
        "version": 2 if isinstance(image, nibabel.Nifti2Image) else 1,
        "scale": [float(slope), float(inter)] if scaled else None,
        "affine": affine,
        "letters": None,
    }
    return image, shape, dtype, kept


def write(path: Path, items: Items) -> None:
    """Samples as one file, with the header of the data: affine, units, type and scaling."""
    letters = items.header.get("letters") or "DHWN"
    if items.header.get("folder"):  # of one item each: here the last axis counts them
        letters = letters.replace("N", "") + "N"
    ends = np.array([(values.min(), values.max()) for values, _ in items.parts()])
    header = _header(items.header, items.dtype, float(ends[:, 0].min()), float(ends[:, 1].max()))
    sizes = dict(zip("CDHW" if len(items.shape) == 4 else "CHW", items.shape, strict=True)) | {"N": items.count}
    header.set_data_shape([sizes[letter] for letter in letters])
    with path.open("wb") as file:
        _start(file, header)
        if letters[-1] == "N":  # items lie one after the other
            for _, values, _ in items.numbered():
                file.write(_stored(as_laid_out(values, letters), header).tobytes("F"))
        else:
            whole = np.concatenate([values for values, _ in items.parts()])
            file.write(_stored(as_laid_out(whole, letters), header).tobytes("F"))


def write_gz(path: Path, items: Items) -> None:
    """As `write`, compressed."""
    plain = path.with_name(path.name + ".plain")
    try:
        write(plain, items)
        with plain.open("rb") as file, gzip.open(path, "wb") as out:
            while block := file.read(1 << 24):
                out.write(block)
    finally:
        plain.unlink(missing_ok=True)


def write_one(path: Path, values: np.ndarray, header: Mapping[str, Any]) -> None:
    """A volume (C, D, H, W) or slice (C, H, W) as a file of its own."""
    letters = header["letters"].replace("N", "")
    laid = as_laid_out(values[None], f"N{letters}")[0]
    told = _header(header, laid.dtype, float(laid.min()), float(laid.max()))
    told.set_data_shape(laid.shape)
    with cast(BinaryIO, gzip.open(path, "wb") if path.name.endswith(".gz") else path.open("wb")) as file:
        _start(file, told)
        file.write(_stored(laid, told).tobytes("F"))


def _start(file: BinaryIO, header: Any) -> None:
    """The header, up to where the values begin."""
    header["vox_offset"] = header.single_vox_offset
    header.write_to(file)
    file.write(bytes(int(header.single_vox_offset) - file.tell()))


def _header(kept: Mapping[str, Any], dtype: np.dtype, low: float, high: float) -> Any:
    """The header of the data, or else one of `dtype`. Of scaled whole numbers the data's scaling, where it reaches from low to high; else
    one that does."""
    import nibabel

    kind = nibabel.Nifti2Header if kept.get("version") == 2 else nibabel.Nifti1Header
    if "binary" not in kept:
        header: Any = kind()
        header.set_data_dtype(dtype)
        header.set_sform(np.eye(4), "scanner")
        return header
    header = kind(base64.b64decode(kept["binary"]), endianness=kept["endian"])
    slope, inter = kept["scale"] or (1.0, 0.0)
    if "stored" in kept:  # of values that the data's type does not hold
        header.set_data_dtype(np.dtype(kept["stored"]))
        return header
    stored = header.get_data_dtype()
    if kept["scale"] and stored.kind in "iu":
        ends = np.iinfo(stored)
        reach = sorted((ends.min * slope + inter, ends.max * slope + inter))
        if low < reach[0] - abs(slope) / 2 or high > reach[1] + abs(slope) / 2:
            slope = (high - low) / (float(ends.max) - ends.min) or 1.0
            inter = low - ends.min * slope
    header.set_slope_inter(slope, inter)
    return header


def _stored(values: np.ndarray, header: Any) -> np.ndarray:
    kind = header.get_data_dtype()
    slope, inter = header.get_slope_inter()
    if slope is not None and (slope, inter) != (1.0, 0.0):
        values = (values.astype(np.float64) - inter) / slope
    if kind.kind in "iu" and values.dtype.kind == "f":
        values = np.rint(values).clip(np.iinfo(kind).min, np.iinfo(kind).max)
    return values.astype(kind)


def check(shape: tuple[int, ...], dtype: np.dtype, header: Mapping[str, Any]) -> None:
    if len(shape) < 3 or (shape[0] != 1 and "C" not in (header.get("letters") or "")) or dtype.kind not in "iuf":
        raise FormatError(f"items of shape {'x'.join(map(str, shape))} and {dtype} are no volumes of one channel, which a NIfTI file holds")
    if not header and len(shape) != 4:
        raise FormatError("NIfTI holds volumes; images go to .tif, .npy or .npz")


NIFTI = Format("NIfTI", (".nii",), ("nibabel",), read, write, read_folder, write_one, check)
NIFTI_GZ = Format("NIfTI", (".nii.gz",), ("nibabel",), read, write_gz, read_folder, write_one, check)
