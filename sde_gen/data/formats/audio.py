"""Sound files, by soundfile: clips of one length and rate in a folder, or one long recording of which windows are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sde_gen.data.formats.base import Asked, Contents, Format, FormatError, OnDisk, PerProcess, guarded, needs_file
from sde_gen.data.formats.stacks import Seen, stacked

WHAT = "WAV or FLAC file"
BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
"""Of integer encodings."""
SAME = ("rate", "subtype")


def read(path: Path, asked: Asked) -> Contents:
    """A recording as a series of frames (T, C), of which windows are cut."""
    import soundfile

    needs_file(path, f"a {WHAT}")
    (frames, channels), dtype, header = describe(path)
    if not asked.series:
        raise FormatError(
            f"{path.name}: one recording of {frames:,} frames, {channels} channel(s), {header['rate']} Hz; a folder of clips of one "
            "length, or window=N (--window N), which cuts it into clips, is needed"
        )
    handle = PerProcess(lambda: soundfile.SoundFile(str(path)))

    def rows(first: int, last: int) -> np.ndarray:
        handle().seek(first)
        return handle().read(last - first, dtype=str(dtype), always_2d=True)

    return Contents(
        {"train": OnDisk((frames, channels), dtype, rows)}, {}, "NC", header | {"letters": "NLC", "folder": path.suffix.lower()}
    )


def read_folder(path: Path, names: Sequence[str], asked: Asked) -> Contents:
    """The clips below a folder, (N, C, L) in -1 .. 1."""
    return stacked(path, names, describe, load, SAME, lambda shape: "NLC", "clips")


def describe(path: Path) -> Seen:
    """(frames, channels), type, and what a file of the kind needs: rate, encoding, container and the range of its values."""
    import soundfile

    with guarded(path, WHAT):
        info = soundfile.info(str(path))
        shape = (int(info.frames), int(info.channels))
        if not shape[0]:
            raise FormatError(f"{path.name}: no frames; a {WHAT} with sound is needed")
        header: dict[str, Any] = {"rate": int(info.samplerate), "subtype": info.subtype, "container": info.format, "endian": info.endian}
        bits = BITS.get(info.subtype)
        if bits is not None:
            header["range"] = [-1.0, 1.0 - 2.0 ** (1 - bits)]
        wide = info.subtype in ("DOUBLE", "PCM_32")
        return shape, np.dtype("float64" if wide else "float32"), header


def load(path: Path) -> np.ndarray:
    """The frames (L, C) of a file, of integer encodings in -1 .. 1, exactly."""
    import soundfile

    with guarded(path, WHAT), soundfile.SoundFile(str(path)) as file:
        wide = file.subtype in ("DOUBLE", "PCM_32")
        return file.read(dtype="float64" if wide else "float32", always_2d=True)


def write_one(path: Path, values: np.ndarray, header: Mapping[str, Any]) -> None:
    """A clip (C, L) as a file of the rate and encoding that the data had."""
    import soundfile

    soundfile.write(str(path), values.T, header["rate"], subtype=header["subtype"], endian=header.get("endian"), format=header["container"])


def check(shape: tuple[int, ...], dtype: np.dtype, header: Mapping[str, Any]) -> None:
    if "rate" not in header or len(shape) != 2:
        raise FormatError("sound needs a rate, which only runs on sound files have; .npy or .npz holds signals")


AUDIO = Format("WAV and FLAC", (".wav", ".flac"), ("soundfile",), read, None, read_folder, write_one, check)
