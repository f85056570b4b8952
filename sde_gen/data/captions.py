"""Captions: texts as tensors, and the captions of images as they lie beside them."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.dataset import Dataset
from sde_gen.data.errors import one_line
from sde_gen.data.source import Source

CAPTION = "caption"
"""The condition that captions are."""
MOST_TEXT = 4096
"""Bytes of a text beyond which it is not kept: some 700 words."""
MOST_FILE = 1 << 30
_FILES = ("file", "file_name", "filename", "image", "path", "name")
_CAPTIONS = ("caption", "text", "prompt", "description")
_MARKS = ((b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_NAMED = 50
"""So many of the files that a message is about are named in it, then counted."""


def is_texts(value: Any) -> bool:
    """Whether a condition's value is a list, a tuple or an array of strings."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "UO" and value.ndim == 1 and all(isinstance(text, str) for text in value.tolist())
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(text, str) for text in value)


def text_tensor(texts: Iterable[str]) -> Tensor:
    """Texts as a tensor, so that they go wherever a batch goes: uint8 (N, longest), UTF-8 filled up with zeros, which are in no text.

    Of a text longer than `MOST_TEXT` bytes the first ones are kept, whole characters. `texts_of` is the inverse."""
    coded = [text.replace("\0", " ").encode("utf-8", "replace")[:MOST_TEXT].decode("utf-8", "ignore").encode() for text in texts]
    found = np.zeros((len(coded), max(map(len, coded), default=0) or 1), np.uint8)
    for row, content in zip(found, coded, strict=True):
        row[: len(content)] = np.frombuffer(content, np.uint8)
    return torch.from_numpy(found)


def texts_of(value: Tensor) -> list[str]:
    """The texts of a tensor that `text_tensor` made. ValueError for one that holds no UTF-8."""
    if value.dtype != torch.uint8 or value.ndim != 2:
        raise ValueError(f"texts are uint8 (N, longest), UTF-8 filled up with zeros, got {value.dtype} of shape {tuple(value.shape)}")
    rows = value.cpu().numpy()
    try:
        return [row.tobytes().partition(b"\0")[0].decode("utf-8") for row in rows]
    except UnicodeDecodeError as error:
        raise ValueError(f"texts are UTF-8 filled up with zeros, got bytes that are not: {one_line(error)}") from error


def read_captions(path: str | os.PathLike[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The caption of each image, "" where none is known, and what is to be said of them.

    path: a table of two columns or more (.csv, or .tsv with tabs), with a header that names one of file, file_name, image, path or name,
        and one of caption, text, prompt or description, or without a header, file and caption first; or a folder of text files (.txt),
        each called like its image. UTF-8, or UTF-16 with its mark.
    names: of the images, with / between folders. A table may leave the ending out, and the folders where the name says it all.

    An empty caption is not known. Raises ValueError in one line that names all offenders: another encoding, a table without these columns,
    images without a row or file, rows or files without an image, an image with two captions.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(
            f"captions {path}: no such file or folder; a .csv or .tsv of file and caption, or a folder of .txt files, is needed"
        )
    given = _of_folder(path) if path.is_dir() else _of_table(path)
    keys = _keys(names)
    texts: dict[int, str] = {}
    strange, twice = [], []
    for name, text in given:
        row = keys.get(name, keys.get(PurePosixPath(name).with_suffix("").as_posix()))
        if row is None:
            strange.append(name)
        elif row in texts:
            twice.append(name)
        else:
            texts[row] = " ".join(text.split())
    absent = [name for row, name in enumerate(names) if row not in texts]
    faults = ((absent, "no caption for"), (strange, "captions of no image:"), (twice, "more than one caption of"))
    found = [f"{what} {_listed(offenders)}" for offenders, what in faults if offenders]
    if found:
        raise ValueError(f"captions {path.name}: {'; '.join(found)}; one caption for each of the {len(names):,} images is needed")
    captions = [texts[row] for row in range(len(names))]
    gaps, long = sum(not text for text in captions), sum(len(text.encode()) > MOST_TEXT for text in captions)
    if gaps == len(captions):
        raise ValueError(f"captions {path.name}: all {gaps:,} are empty; at least one caption is needed")
    example = max(captions[:9], key=len)[:60]
    about = f"condition {CAPTION!r}: captions of {path.name}, {len(set(captions) - {''}):,} different ones, such as {example!r}"
    notes = [about + (f"; not known of {gaps:,} of {len(captions):,} images" if gaps else "")]
    notes += [f"of {long:,} captions longer than {MOST_TEXT} bytes the first ones are kept"] if long else []
    return captions, notes


def _keys(names: Sequence[str]) -> dict[str, int]:
    """How a caption may name each image: its whole path, without its ending, and the last part of these where no other image has it."""
    paths = [PurePosixPath(name) for name in names]
    keys: dict[str, int] = {}
    for shorter in ([path.stem for path in paths], [path.name for path in paths], [path.with_suffix("").as_posix() for path in paths]):
        counts = Counter(shorter)
        keys |= {key: row for row, key in enumerate(shorter) if counts[key] == 1}
    return keys | {path.as_posix(): row for row, path in enumerate(paths)}


def _of_folder(path: Path) -> list[tuple[str, str]]:
    files = sorted(file for file in path.rglob("*.txt") if not any(part.startswith(".") for part in file.relative_to(path).parts))
    if not files:
        raise ValueError(f"captions {path.name}: no .txt file in this folder; one called like each image is needed, or a .csv file")
    return [(file.relative_to(path).with_suffix("").as_posix(), decoded(file)) for file in files]


def _of_table(path: Path) -> list[tuple[str, str]]:
    text = decoded(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        rows = [row for row in csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True) if any(row)]
    except csv.Error as error:
        raise ValueError(f"captions {path.name}: cannot be read as a table ({one_line(error)})") from error
    if not rows:
        raise ValueError(f"captions {path.name}: it is empty; a line for each image is needed, file and caption")
    head = [cell.strip().lower() for cell in rows[0]]
    file = next((head.index(name) for name in _FILES if name in head), None)
    caption = next((head.index(name) for name in _CAPTIONS if name in head), None)
    if (file is None) != (caption is None):
        needed = f"a column of {', '.join(_FILES)} and one of {', '.join(_CAPTIONS)} are needed"
        raise ValueError(f"captions {path.name}: its header is {', '.join(rows[0])}; {needed}")
    body = rows if file is None else rows[1:]
    place = (0, 1) if file is None or caption is None else (file, caption)
    short = [str(number + 1) for number, row in enumerate(rows) if len(row) <= place[0] or (file is None and len(row) < 2)]
    if short:
        raise ValueError(f"captions {path.name}: too few columns in line {_listed(short)}; file and caption are needed")
    return [(row[place[0]].strip().removeprefix("./"), row[place[1]] if len(row) > place[1] else "") for row in body]


def decoded(file: Path) -> str:
    """The text of a file, UTF-8 or with the mark of UTF-16 or UTF-32; ValueError, one line, for another encoding or no file."""
    try:
        if file.stat().st_size > MOST_FILE:
            raise ValueError(f"{file.name}: {file.stat().st_size:,} bytes; texts of at most {MOST_FILE:,} are read")
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file.name}: cannot be read ({one_line(error)}); a text file is needed") from error
    coding = next((coding for mark, coding in _MARKS if content.startswith(mark)), "utf-8-sig")
    try:
        return content.decode(coding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        seen = f"byte 0x{content[error.start]:02x} in line {line}" if error.start < len(content) else one_line(error)
        raise ValueError(f"{file.name}: it is not {coding.removesuffix('-sig').upper()} ({seen}); save it as UTF-8") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f", ... ({len(names):,} in all)" if len(names) > _NAMED else "")


def with_captions(dataset: Dataset, captions: Sequence[str]) -> Dataset:
    """The data set whose condition `CAPTION` are numbers of captions, with the captions themselves and without remarks on the numbers."""
    every = text_tensor(captions)

    def told(cond: Mapping[str, Tensor | Source]) -> dict[str, Any]:
        return {name: every[tensor_of(value).long()] if name == CAPTION else value for name, value in cond.items()}

    notes = tuple(note for note in dataset.notes if not note.startswith(f"condition {CAPTION!r}"))
    parts = (told(part) for part in (dataset.cond, dataset.test_cond, dataset.source_cond))
    cond, test_cond, source_cond = parts
    return replace(dataset, cond=cond, test_cond=test_cond, source_cond=source_cond, texts=(CAPTION,), notes=notes)


def tensor_of(value: Tensor | Source) -> Tensor:
    """A condition, read whole."""
    return value.tensor() if isinstance(value, Source) else value
