"""Texts as numbers, without a download: words by their place in a list, and by hashes of their letters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.captions import decoded

PAD, UNKNOWN, FIRST = 0, 1, 2
"""Of the first number of a place: nothing is there; a word that is not in the list; the first word of the list."""
LETTERS = 16
"""Trigrams of a word that count: those of its first letters."""
MOST_WORDS = 1 << 16
"""Words of a list, so that a checkpoint that claims more is refused."""
_JOINERS = {"\u200d", *map(chr, range(0xFE00, 0xFE10))}
_APOSTROPHES = "'\u2019"


def words_of(text: str) -> list[str]:
    """The words of a text, in order: runs of letters, marks and digits in lower case, and each symbol (an emoji, +, a sign of a currency)
    alone; punctuation and what only joins or varies a symbol is left out."""
    found, word = [], ""
    for character in unicodedata.normalize("NFKC", text).casefold():
        kind = unicodedata.category(character)[0]
        if character in _JOINERS or (word and character in _APOSTROPHES):
            continue
        if kind in "LNM":
            word += character
            continue
        found += [word] * bool(word) + [character] * (kind == "S")
        word = ""
    return found + [word] * bool(word)


class Tokenizer:
    """Texts as int32 (B, L, 1 + LETTERS): of each place the word's number, `PAD` where nothing is, and the hashes of its letter trigrams.

    A word that is not in the list is `UNKNOWN`, and its trigrams still say what it is like: "greenish" has most of those of "green".

    words: the list; word k has the number `FIRST` + k.
    buckets: trigrams are hashed to 1 .. buckets; 0 is none.
    length: so many words of a text are read, the first ones.
    pieces: the list is a BERT vocabulary: words outside of it are cut into its longest pieces, of which all but the first begin with ##.

    Raises ValueError for a list that is empty, too long or has an entry twice, and for sizes below 1.
    """

    def __init__(self, words: Sequence[str], buckets: int = 4096, length: int = 32, pieces: bool = False) -> None:
        self.words, self.buckets, self.length, self.pieces = list(words), buckets, length, pieces
        for name, value, most in (("buckets", buckets, MOST_WORDS), ("length", length, 1 << 10)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name} must be a whole number in 1 .. {most:,}, got {value!r}")
        if not self.words or len(self.words) > MOST_WORDS or not all(isinstance(word, str) and word for word in self.words):
            raise ValueError(
                f"a list of 1 .. {MOST_WORDS:,} words is needed, got {len(self.words):,} entries, or entries that are no words"
            )
        self.numbers = {word: FIRST + place for place, word in enumerate(self.words)}
        if len(self.numbers) < len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ValueError(f"the list has {twice!r} more than once")
        self._cased = pieces and any(word != word.lower() for word in self.words)
        self._known: dict[str, np.ndarray] = {}

    @classmethod
    def fit(cls, texts: Iterable[str], most: int = 20_000, buckets: int = 4096, length: int | None = None) -> Tokenizer:
        """That of training captions: their words, the commonest first, `most` of them.

        length: None: that of the longest caption, at least 16 and at most 64. Raises ValueError for captions without a word."""
        found = [words_of(text) for text in texts]
        counts = Counter(word for words in found for word in words)
        if not counts:
            raise ValueError(f"{len(found):,} captions have not a single word; at least one is needed")
        ordered = sorted(counts, key=lambda word: (-counts[word], word))[: min(most, MOST_WORDS)]
        longest = max(map(len, found))
        return cls(ordered, buckets, min(64, max(16, longest)) if length is None else length)

    @staticmethod
    def read_vocabulary(path: str | Path) -> list[str]:
        """The entries of a BERT vocab.txt, one a line, but for those in brackets ([PAD], [UNK], [CLS], [unused0]).

        ValueError, one line, for a file that is none."""
        lines = [line.strip() for line in decoded(Path(path)).splitlines()]
        if "[UNK]" not in lines:
            raise ValueError(f"{Path(path).name}: no line [UNK]; a BERT vocab.txt, an entry a line, is needed")
        return list(dict.fromkeys(line for line in lines if line and not (line.startswith("[") and line.endswith("]"))))

    def split(self, text: str) -> list[str]:
        """The words, or pieces of words, of a text, all of them."""
        if not self.pieces:
            return words_of(text)
        plain = unicodedata.normalize("NFC", text)
        if not self._cased:
            plain = unicodedata.normalize("NFD", plain.lower())
            plain = "".join(character for character in plain if unicodedata.category(character) != "Mn")
        parts = "".join(f" {c} " if unicodedata.category(c)[0] in "PS" else c for c in plain).split()
        return [piece for part in parts for piece in self._pieces(part)]

    def _pieces(self, word: str) -> list[str]:
        found, start = [], 0
        while start < len(word):
            heads = (("##" if start else "") + word[start:end] for end in range(len(word), start, -1))
            piece = next((head for head in heads if head in self.numbers), None)
            if piece is None:
                return [word]
            found.append(piece)
            start += len(piece) - 2 * bool(start)
        return found

    def unknown(self, text: str) -> list[str]:
        """The words of a text that are not in the list, in order."""
        return [word for word in dict.fromkeys(self.split(text)) if word not in self.numbers]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The texts (B,) as int32 (B, L, 1 + LETTERS), L that of the longest, at most `length`; a text without words is `PAD` all along."""
        found = [self.split(text)[: self.length] for text in texts]
        rows = np.zeros((len(found), max(map(len, found), default=0), 1 + LETTERS), np.int32)
        for row, words in zip(rows, found, strict=True):
            for place, word in enumerate(words):
                if word not in self._known:
                    self._known[word] = self._numbered(word)
                row[place] = self._known[word]
        return torch.from_numpy(rows)

    def _numbered(self, word: str) -> np.ndarray:
        framed = f"^{word.removeprefix('##')}$"
        hashes = [1 + _fnv(framed[place : place + 3]) % self.buckets for place in range(max(1, len(framed) - 2))][:LETTERS]
        return np.array([self.numbers.get(word, UNKNOWN), *hashes, *[0] * (LETTERS - len(hashes))], np.int32)


def _fnv(text: str) -> int:
    """The 32-bit FNV-1a hash of a text's UTF-8, which is the same everywhere, unlike Python's own."""
    found = 0x811C9DC5
    for byte in text.encode("utf-8", "replace"):
        found = ((found ^ byte) * 0x01000193) & 0xFFFFFFFF
    return found
