"""Text as symbols: the characters of a file, cut into windows that never cross the border of what is held out."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

UNKNOWN = "�"
"""What a character that the alphabet lacks is read as."""
UNDERSCORE = "_"
"""Where `given` text is to be filled in."""


@dataclass(frozen=True)
class Alphabet:
    """The characters that symbols stand for, in the order of their numbers."""

    characters: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.characters)) != len(self.characters) or any(len(one) != 1 for one in self.characters) or len(self.characters) < 2:
            raise ValueError(f"an alphabet is at least two different characters, got {self.characters!r}")

    @classmethod
    def of(cls, text: str, most: int = 256) -> Alphabet:
        """That of a text, the most frequent first; where there are more than `most`, the rarest are `UNKNOWN`."""
        counts = sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))
        if len(counts) > most:
            counts = [*[one for one in counts if one[0] != UNKNOWN][: most - 1], (UNKNOWN, 0)]
        return cls(tuple(one for one, _ in counts))

    def encode(self, text: str) -> Tensor:
        """(L,) int64; a character that is not of the alphabet is `UNKNOWN` where that is. ValueError, one line, where it is not."""
        numbers = {one: k for k, one in enumerate(self.characters)}
        if UNKNOWN not in numbers:
            strange = sorted(set(text) - set(numbers))
            if strange:
                shown = ", ".join(map(repr, strange[:8]))
                raise ValueError(f"the alphabet of {len(numbers)} characters has no {shown}{' ...' if len(strange) > 8 else ''}")
        return torch.tensor([numbers.get(one, numbers.get(UNKNOWN, 0)) for one in text], dtype=torch.int64)

    def decode(self, x: Sequence[int] | Tensor) -> str:
        """The text of symbols (L,)."""
        return "".join(self.characters[int(k)] for k in x)


@dataclass(frozen=True)
class TextData:
    """A text's windows, as items (1, L) of whole numbers.

    name: the file's. train: (N, 1, L), overlapping by half. test: (M, 1, L), side by side, of the file's end.
    text, held_out: the characters of both parts.
    """

    name: str
    alphabet: Alphabet
    train: Tensor
    test: Tensor
    text: str
    held_out: str


def load_text(path: str | os.PathLike[str], length: int = 128, held_out: float = 0.1, most: int = 256) -> TextData:
    """The text of a UTF-8 file (a byte order mark and the three kinds of line ends are read alike).

    length: L, characters of a window. held_out: the share of the file, at its end, that training never sees. most: characters of the
    alphabet, which is learned from the training part.

    ValueError, one line, for a file that is missing, empty, no UTF-8, or too short for a window of each part.
    """
    path = Path(path)
    if isinstance(length, bool) or not isinstance(length, int) or length < 2:
        raise ValueError(f"length must be a whole number of at least 2, got {length!r}")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be between 0 and 1, got {held_out!r}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is no UTF-8 text: byte {raw[error.start]:#04x} in line {line}; save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path} is no text: it holds zero bytes")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    border = round(len(text) * (1 - held_out))
    parts = text[:border], text[border:]
    if min(map(len, parts)) < length:
        raise ValueError(f"{path} has {len(text)} characters: too few for windows of {length} in training and held-out part")
    alphabet = Alphabet.of(parts[0], most)
    if UNKNOWN not in alphabet.characters and set(parts[1]) - set(alphabet.characters):  # the held-out part has characters of its own
        alphabet = Alphabet((*alphabet.characters, UNKNOWN))
    train, test = (alphabet.encode(part) for part in parts)
    windows = train.unfold(0, length, max(1, length // 2)), test.unfold(0, length, length)
    return TextData(path.name, alphabet, windows[0][:, None].contiguous(), windows[1][:, None].contiguous(), *parts)


def read_given(alphabet: Alphabet, text: str, length: int, blank: str = UNDERSCORE) -> Tensor:
    """Text with `blank` where characters are to be filled in, as (1, L) symbols and -1; what is shorter than L is filled in at its end.

    ValueError where it is longer.
    """
    if len(text) > length:
        raise ValueError(f"the given text has {len(text)} characters; this model fills in windows of {length}")
    known = torch.full((length,), -1, dtype=torch.int64)
    for k, one in enumerate(text):
        if one != blank:
            known[k] = alphabet.encode(one)[0]
    return known[None]


def ngram_bits(train: str, test: str, order: int = 5) -> float:
    """Bits per character of `test` under an n-gram model of `train`: interpolated with all shorter ones (Witten and Bell 1991), the last
    of which is uniform over the characters of both."""
    counts: dict[str, Counter[str]] = {}
    for k in range(len(train)):
        for n in range(min(order - 1, k) + 1):
            counts.setdefault(train[k - n : k], Counter())[train[k]] += 1
    uniform = 1 / len(set(train) | set(test))
    total = 0.0
    for k, one in enumerate(test):
        p = uniform
        for n in range(min(order - 1, k) + 1):
            seen = counts.get(test[k - n : k])
            if seen is None:
                break
            many, kinds = seen.total(), len(seen)
            p = (seen[one] + kinds * p) / (many + kinds)
        total -= math.log2(p)
    return total / len(test)


def describe_text(data: TextData) -> dict[str, Any]:
    """What rebuilds symbols as text, JSON-able."""
    return {"kind": "text", "alphabet": "".join(data.alphabet.characters), "length": data.train.shape[-1], "name": data.name}
