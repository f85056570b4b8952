"""Reader for IDX files of unsigned bytes, the format of MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from sde_gen.data.errors import one_line

_UBYTE = 0x08
# A header is 4 bytes a dimension and can claim anything: refuse a claim beyond this before reading (and unpacking) that much.
_MAX_BYTES = 1 << 30
_CHUNK = 1 << 20


def read_idx(path: Path, item_shape: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or gzip (by its name's ending, `.gz`).

    The header is big-endian: two zero bytes, the type (0x08, unsigned byte), the number of dimensions, then one 32-bit size
    for each dimension; the values follow in C order.

    Args:
        path: the file.
        item_shape: the shape that one item must have: (28, 28) for MNIST's images, () for labels.

    Returns:
        uint8 array (N, *item_shape).

    Raises:
        ValueError: the file cannot be read or unpacked, or its magic number, dimensions or length are not as they should be.
    """
    try:
        with cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse(path, file, item_shape)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)}); a complete IDX file, plain or gzip, is needed") from error


def _parse(path: Path, file: BinaryIO, item_shape: tuple[int, ...]) -> np.ndarray:
    magic = file.read(4)
    expected = bytes([0, 0, _UBYTE, 1 + len(item_shape)])
    if magic != expected:
        found = f"0x{magic.hex()}" if magic else "absent, the file is empty"
        raise ValueError(f"{path}: magic number {found}; 0x{expected.hex()} (unsigned bytes, {expected[3]} dimensions) is needed")
    header = file.read(4 * expected[3])
    if len(header) < 4 * expected[3]:
        raise ValueError(f"{path}: the file ends inside its header; {4 + 4 * expected[3]} header bytes are needed")
    shape = struct.unpack(f">{expected[3]}I", header)
    if shape[0] == 0 or shape[1:] != item_shape:
        raise ValueError(f"{path}: dimensions {shape}; (N, {', '.join(map(str, item_shape))}) with N >= 1 is needed")
    size = math.prod(shape)
    if size > _MAX_BYTES:
        raise ValueError(f"{path}: the header claims {size} bytes; at most {_MAX_BYTES} are allowed")
    # In pieces, and one byte too many: memory follows what is there, not what the header claims, and a file too long is seen.
    content = bytearray()
    while len(content) <= size and (piece := file.read(min(_CHUNK, size + 1 - len(content)))):
        content += piece
    if len(content) != size:
        found = f"{len(content)}" if len(content) < size else f"more than {size}"
        raise ValueError(f"{path}: {found} bytes of values after the header; {size} are needed for dimensions {shape}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
