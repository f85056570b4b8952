"""Conditions of samples as the command line gives them: words, numbers, arrays and images in files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conditions import Condition, Label, Text
from ..data import archives, folders
from ..data.arrays import open_npy
from ..data.captions import decoded
from ..data.decode import FORMATS, decode
from ..data.precision import wide
from ..data.write import in_words

MOST_IMAGE = 256 << 20
MOST_MAPS = 1 << 30
"""Bytes of one image that is a condition, and of all maps of a folder or archive together."""
_PIECE = 4096
_SHOWN = 200
"""Letters of a caption that are shown and kept with the samples' settings; of a longer one its checksum says what it was."""
_OF_SPACE = ("map", "mask")


@dataclass(frozen=True, eq=False)
class Given:
    """A condition that all samples are given.

    text: as it was asked for; sha256: of the file that it names, or None.
    values: classes (R,) or numbers (R, *) of one sample, R = 1, for all, or of each, perhaps mapped from disk.
    names: of a category, the data's own words for its classes, else None.
    texts: of captions, whose values are a tokenizer's numbers, the captions themselves, else None.
    notes: what is to be said of it, a line each.
    """

    text: str
    values: np.ndarray
    names: Sequence[str | int] | None = None
    sha256: str | None = None
    texts: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def rows(self, first: int, last: int) -> np.ndarray:
        """Those of the samples first .. last - 1."""
        if len(self.values) > 1:
            return self.values[first:last]
        return np.broadcast_to(self.values, (last - first, *self.values.shape[1:]))

    def tensor(self, first: int, last: int) -> Tensor:
        """The same, as a model takes them."""
        return _tensor(self.rows(first, last)) if self.texts is None else torch.from_numpy(self.rows(first, last).copy())

    def written(self, first: int, last: int) -> np.ndarray:
        """The same, as a file has them: words, or numbers."""
        if self.texts is not None:
            every = np.array(self.texts)  # of one type, wide enough for the longest of all
            return every[first:last] if len(every) > 1 else np.repeat(every, last - first)
        return in_words(self.rows(first, last), self.names)

    @property
    def setting(self) -> str | list[str]:
        """What tells it from another."""
        return self.text if self.sha256 is None else [self.text, self.sha256]


def given_conditions(
    encoders: Mapping[str, Condition],
    texts: Sequence[str],
    samples: int,
    label_names: Sequence[str | int] | None,
    images: tuple[Path, Sequence[str]] | None = None,
) -> dict[str, Given | None]:
    """What each of "NAME=VALUE" stands for, None for "NAME=", which asks for it not to be given.

    encoders: of the network's conditions. samples: how many there will be. label_names: the data's own labels, or None. images: where the
    samples are images of files, their folder and names: a folder or archive given for a map has an image of the same name for each.

    Raises ValueError for a condition that the network does not take, and values that it cannot have.
    """
    found: dict[str, Given | None] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--cond takes NAME=VALUE, as in age=50, got {text!r}")
        if name in found:
            raise ValueError(f"--cond {text}: condition {name!r} is given twice")
        if name not in encoders:
            known = f"takes {', '.join(encoders)}" if encoders else "was trained without conditions (sde-gen run --condition, --labels)"
            raise ValueError(f"--cond {text}: no condition {name!r}; this network {known}")
        try:
            found[name] = _given(encoders[name], value, samples, label_names if name == "label" else None, images)
        except (TypeError, ValueError) as error:
            raise ValueError(f"--cond {text}: {error}") from error
    return found


def _given(
    encoder: Condition,
    text: str,
    samples: int,
    label_names: Sequence[str | int] | None,
    images: tuple[Path, Sequence[str]] | None,
) -> Given | None:
    if not text:
        return None
    if isinstance(encoder, Text):
        return _given_text(encoder, text, samples)
    names = None
    if isinstance(encoder, Label):
        names = label_names or encoder.names or list(range(encoder.classes))
        words = [str(name) for name in names]
        if text in words:
            return Given(text, np.array([words.index(text)]), names)
    sha256, ending = None, Path(text).suffix.lower()
    if ending == ".npy":
        values = condition_rows(encoder, open_npy(Path(text)), names)
        if len(values) not in (1, samples):
            raise ValueError(f"it has {len(values):,} rows for {samples:,} samples; one, or as many, are needed")
        with Path(text).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    elif names is not None:
        raise ValueError(f"no such class; choose from {_listed(names)}")
    elif images is not None and encoder.kind in _OF_SPACE and (Path(text).is_dir() or text.lower().endswith(archives.ENDINGS)):
        values = condition_rows(encoder, folders.read_maps(Path(text), *images, MOST_MAPS), names)
    elif ending in FORMATS and encoder.kind in _OF_SPACE:
        content = _content(text)
        values, sha256 = decode(content, text)[0][None], hashlib.sha256(content).hexdigest()
    else:
        values = _numbers(encoder, text)
    for first in range(0, len(values), _PIECE):
        encoder.check(_tensor(values[first : first + _PIECE]))
    return Given(text, values, names, sha256)


def _given_text(encoder: Text, text: str, samples: int) -> Given | None:
    """A caption for all samples, or the lines of a .txt file."""
    sha256, texts = None, [text]
    if text.lower().endswith(".txt"):
        texts = [line.strip() for line in decoded(Path(text)).splitlines()]
        if len(texts) not in (1, samples):
            raise ValueError(f"it has {len(texts):,} lines for {samples:,} samples; one, or as many, are needed")
        sha256 = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    tokenizer = encoder.tokenizer
    unknown = dict.fromkeys(word for each in texts for word in tokenizer.unknown(each))
    longest = max(len(tokenizer.split(each)) for each in texts)
    if longest == 0:
        return None
    notes = []
    if unknown:
        notes.append(f"{', '.join(list(unknown)[:10])}{', ...' * (len(unknown) > 10)}: in no training caption, read by their letters alone")
    if longest > tokenizer.length:
        notes.append(f"{longest:,} words, of which the first {tokenizer.length} are read")
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    digest = sha256 if sha256 is not None or shown == text else hashlib.sha256(text.encode()).hexdigest()
    return Given(shown, encoder.check(tokenizer(texts)).numpy(), None, digest, tuple(texts), tuple(notes))


def condition_rows(encoder: Condition, array: np.ndarray, names: Sequence[str | int] | None) -> np.ndarray:
    """The rows of a file's array, classes by the data's own words for them."""
    if names is not None:
        array = array.reshape(1) if array.ndim == 0 else array
        words = {str(name): place for place, name in enumerate(names)}
        if array.ndim != 1 or array.dtype.kind not in "iuU":
            raise ValueError(f"it holds {array.dtype} of shape {array.shape}; a whole number or word a sample is needed")
        strange = next((word for word in np.unique(array).tolist() if str(word) not in words), None)
        if strange is not None:
            raise ValueError(f"it holds {strange!r}; choose from {_listed(names)}")
        return np.array([words[str(word)] for word in array.tolist()])
    if array.dtype.kind not in "buif":
        raise ValueError(f"it holds {array.dtype}; numbers are needed")
    grid = tuple(encoder.options.get("grid", ()))
    if grid and encoder.options["channels"] == 1 and array.ndim <= 1 + len(grid) and array.shape[-len(grid) :] == grid:
        return array.reshape(-1, 1, *grid)  # as a file of training data may leave the axis of a single channel out
    one = {"numbers": 0 if encoder.options.get("size") == 1 else 1, "sequence": 2}.get(encoder.kind, 1 + len(grid))
    return array[None] if array.ndim == one else array


def _numbers(encoder: Condition, text: str) -> np.ndarray:
    """Numbers separated by commas, as one row."""
    short = encoder.kind == "sequence" and encoder.options["features"] == 1
    if encoder.kind != "numbers" and not short:
        what = "a .npy file or an image" if encoder.kind in _OF_SPACE else "a .npy file"
        raise ValueError(f"it is a {encoder.kind}, which {what} holds")
    try:
        row = np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise ValueError("a number, several separated by commas (nan: not known), or a .npy file is needed") from None
    return row[None, :, None] if short else row[None]


def _content(text: str) -> bytes:
    try:
        with Path(text).open("rb") as file:
            return file.read(MOST_IMAGE)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); an image is needed") from error


def _tensor(values: np.ndarray) -> Tensor:
    if values.dtype.kind in "iu" and values.ndim == 1:
        return torch.from_numpy(np.array(values, dtype=np.int64))
    return torch.from_numpy(np.array(values, dtype=np.float64 if wide(values.dtype) else np.float32))


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:20])) + (", ..." if len(names) > 20 else "")
