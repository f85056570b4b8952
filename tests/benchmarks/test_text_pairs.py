"""The table of text_pairs.py on embeddings whose answers are known."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sde_gen.data.emoji import STYLES, EmojiPictures, emoji_pictures

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "text_pairs.py"
spec = importlib.util.spec_from_file_location("benchmark_text_pairs", SCRIPT)
assert spec is not None and spec.loader is not None
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


@pytest.fixture(scope="module")
def known() -> EmojiPictures:
    return emoji_pictures()


class Told:
    """A CLIP that knows each picture by its number: embeddings of concept and style, `noise` on those of pictures."""

    def __init__(self, known: EmojiPictures, noise: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.known, self.numbers = known, {}
        concepts, styles = torch.randn(len(known.labels), 64, generator=generator), 8 * torch.randn(2, 64, generator=generator)
        self.table = F.normalize(concepts[known.concept] * 8 + styles[known.style], dim=1)
        self.noisy = self.table + noise * torch.randn(self.table.shape, generator=generator)
        for tags in (True, False):
            self.numbers |= {known.caption(row, tags): row for row in range(len(self.table))}
        self.styles = styles

    def embed_images(self, images: Tensor) -> Tensor:
        assert torch.equal(images.byte(), self.known.images)
        return self.noisy

    def embed_texts(self, texts: list[str]) -> Tensor:
        if len(texts) == len(STYLES):
            return self.styles
        return self.table[[self.numbers[text] for text in texts]]


def of(rows: list[dict[str, Any]], what: str) -> list[float]:
    return [row["R@1"]["value"] for row in rows if what in row["what"]]


def test_a_perfect_space_finds_everything_and_a_noisy_one_as_much_as_chance(known: EmojiPictures) -> None:
    rows = bench.measure(Told(known, 0.0), known)  # type: ignore[arg-type]
    assert len(rows) == 9 and all(row["R@1"]["value"] == 1 for row in rows)
    assert rows[0]["style_of_the_nearest_right"] == 1
    chances = {row["what"]: row["chance"] for row in rows}
    assert chances["300 held-out cells, among all 3,188 captions"] == pytest.approx(1 / 3188)
    assert chances["100 unseen concepts, among their captions"] == pytest.approx(0.01) and rows[-1]["chance"] == 0.5
    blind = bench.measure(Told(known, 1e3), known)  # type: ignore[arg-type]
    assert max(of(blind, "cells")) < 0.02 and max(of(blind, "unseen")) < 0.06 and abs(of(blind, "style of")[0] - 0.5) < 0.1
    assert [row["R@1"]["queries"] for row in rows] == [300, 200, 300, 200] * 2 + [500]


def test_styles_that_are_mixed_up_are_no_hits_among_all(known: EmojiPictures) -> None:
    told = Told(known, 0.0)
    told.noisy = told.noisy[torch.arange(len(told.noisy)) ^ 1]  # each picture looks like its concept in the other style
    rows = bench.measure(told, known)  # type: ignore[arg-type]
    assert of(rows, "held-out cells") == [0, 0] and rows[0]["style_of_the_nearest_right"] == 0
    assert of(rows, "style of") == [0]
