"""The data of a run of tokens: text, or images of whole numbers."""

from __future__ import annotations

import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data import DATASETS, Dataset, load_dataset
from ..data.text import TextData, load_text
from ..data.write import DataDescription
from .config import ConfigError

MOST_SYMBOLS = 256


class TokenData:
    """Text or images as whole numbers: what both kinds of data give to a run of tokens."""

    def __init__(self, name: str, length: int, labels: bool, seed: int) -> None:
        self.text: TextData | None = None
        self.images: Dataset | None = None
        path = Path(name)
        try:
            if name not in DATASETS and path.is_file() and path.suffix.lower() in ("", ".txt", ".md", ".text", ".tex", ".py"):
                if labels:
                    raise ValueError("--labels is for images: text has no classes")
                self.text = load_text(path, length)
                self.train, self.test, self.symbols = self.text.train, self.text.test, len(self.text.alphabet.characters)
                return
            if name not in DATASETS and not path.exists():
                raise ValueError(f"--data {name}: it is not there, and no data set is called so ({', '.join(DATASETS)})")
            self.images = data = load_dataset(name, seed=seed)
            if data.levels is None or len(data.shape) < 2:
                raise ValueError(f"{data.name} holds no images of whole numbers; tokens are text files and images of whole numbers")
            if data.levels > MOST_SYMBOLS:
                raise ValueError(f"{data.name} has {data.levels} levels; at most {MOST_SYMBOLS} symbols can be told apart")
            if labels and data.train_labels is None:
                raise ValueError(f"data {data.name!r} has no labels to train on")
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.train, self.symbols = data.train.round().long(), data.levels
        held_out = data.test if data.test is not None else data.train
        self.test = held_out.round().long()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train.shape[1:])

    @cached_property
    def about(self) -> dict[str, Any]:
        """What a checkpoint keeps to write samples."""
        if self.text is not None:
            return {"alphabet": "".join(self.text.alphabet.characters), "length": self.shape[-1]}
        assert self.images is not None
        return {"data_description": DataDescription.of(self.images).to_config()}

    @cached_property
    def signature(self) -> str:
        """Changes with the items."""
        return f"{zlib.crc32(self.train.numpy().tobytes()):08x}"
