"""Captioned pictures that are real and small: 1,594 emoji in two styles, with the words of emojibase."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sde_gen.data.captions import CAPTION, text_tensor
from sde_gen.data.dataset import Dataset

SIZE, COLUMNS = 32, 40
STYLES = ("noto", "fluent")
HELD_CONCEPTS, HELD_CELLS = 100, 300
"""Concepts that are held out in both styles, and others that are held out in one."""
TRAINING, CELL, CONCEPT = 0, 1, 2
"""Parts: training; the concept is trained on in the other style; the concept is never trained on."""
_SEED = 0
_FOLDER = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class EmojiPictures:
    """All pictures, in the order of the concepts and in each of `STYLES`: number 2 k + s is concept k in style s.

    images: (N, 3, 32, 32) uint8, RGB on white.
    part: (N,) int64: `TRAINING`, `CELL` (held out, with its concept in the other style in training) or `CONCEPT` (held out altogether).
    labels, groups, hexcodes: of each concept, emojibase's name, its group (food-drink, ...) and the code points.
    tags: of each concept, emojibase's other words for it.
    """

    images: Tensor
    part: Tensor
    labels: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    hexcodes: tuple[str, ...]

    @cached_property
    def concept(self) -> Tensor:
        """(N,) int64."""
        return torch.arange(len(self.images)) // len(STYLES)

    @cached_property
    def style(self) -> Tensor:
        """(N,) int64, an index of `STYLES`."""
        return torch.arange(len(self.images)) % len(STYLES)

    def caption(self, row: int, tags: bool = True) -> str:
        """The caption of a picture: "green heart, emotion, green, in the style of noto"; without the tags its label and style alone."""
        concept, style = divmod(row, len(STYLES))
        return ", ".join((self.labels[concept], *(self.tags[concept] if tags else ()), f"in the style of {STYLES[style]}"))

    def rows(self, part: int) -> Tensor:
        """The pictures of a part, in a random order that is the same in every run."""
        rows = torch.nonzero(self.part == part)[:, 0]
        return rows[torch.from_numpy(np.random.default_rng(_SEED).permutation(len(rows)))]


def emoji_pictures() -> EmojiPictures:
    """The pictures that the package ships: Noto (Google, Apache-2.0) and Fluent (Microsoft, MIT), words of emojibase (MIT); the notices lie
    beside them, and benchmarks/data/make_emoji.py makes them. ValueError where the files are not those."""
    with (_FOLDER / "concepts.tsv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    sheets = []
    for style in STYLES:
        with Image.open(_FOLDER / f"{style}.webp") as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
        down = -(-len(table) // COLUMNS)
        if pixels.shape != (down * SIZE, COLUMNS * SIZE, 3):
            raise ValueError(f"{style}.webp is {pixels.shape}, not {(down * SIZE, COLUMNS * SIZE, 3)}: install the package again")
        cells = pixels.reshape(down, SIZE, COLUMNS, SIZE, 3).transpose(0, 2, 4, 1, 3)
        sheets.append(cells.reshape(-1, 3, SIZE, SIZE)[: len(table)])
    images = torch.from_numpy(np.stack(sheets, axis=1).reshape(-1, 3, SIZE, SIZE))
    generator = np.random.default_rng(_SEED)
    order = generator.permutation(len(table))
    part = np.full((len(table), len(STYLES)), TRAINING)
    part[order[:HELD_CONCEPTS]] = CONCEPT
    cells = order[HELD_CONCEPTS : HELD_CONCEPTS + HELD_CELLS]
    part[cells, generator.permutation(np.arange(HELD_CELLS) % len(STYLES))] = CELL
    tags = tuple(tuple(row["tags"].split(", ")) if row["tags"] else () for row in table)
    labels, groups, hexcodes = (tuple(row[name] for row in table) for name in ("label", "group", "hexcode"))
    return EmojiPictures(images, torch.from_numpy(part.reshape(-1)), labels, tags, groups, hexcodes)


def emoji(root: Path | None = None, seed: int = 0) -> Dataset:
    """1,594 emoji in two styles, (3, 32, 32) of 0 .. 255, with the condition "caption" and the nine groups of emojibase as labels.

    2,688 are for training; 500 are held out, first 300 in one style of a concept that training knows in the other, then both styles of 100
    concepts that it never sees. The split is fixed, whatever the seed. `root` is not read. A caption is
    "label, tag, ..., in the style of noto"; `emoji_pictures` has its parts.
    """
    known = emoji_pictures()
    names = tuple(dict.fromkeys(known.groups))
    label = torch.tensor([names.index(group) for group in known.groups])[known.concept]
    captions = text_tensor(known.caption(row) for row in range(len(known.images)))
    train, test = known.rows(TRAINING), torch.cat([known.rows(CELL), known.rows(CONCEPT)])
    return Dataset(
        "emoji",
        known.images[train].float(),
        known.images[test].float(),
        label[train],
        label[test],
        classes=len(names),
        levels=256,
        value_range=(0.0, 255.0),
        label_names=names,
        cond={CAPTION: captions[train]},
        test_cond={CAPTION: captions[test]},
        texts=(CAPTION,),
        notes=(
            "drawings of Noto (Google, Apache-2.0) and Fluent (Microsoft, MIT), captions of emojibase (MIT)",
            f"condition {CAPTION!r}: captions, such as {known.caption(int(train[0]))!r}",
        ),
    )
