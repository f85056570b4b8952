"""Captions: a small bidirectional transformer from scratch, which gives the whole text as a vector and each word as a token."""

from __future__ import annotations

import warnings
from collections.abc import Sequence as Many

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.captions import texts_of
from .base import Condition
from .label import SPREAD
from .tokenizer import FIRST, LETTERS, PAD, UNKNOWN, Tokenizer


class TextTransformer(nn.Module):
    """Numbers of a `Tokenizer` (B, L, 1 + LETTERS) to vectors of the words in their context, bidirectional and pre-norm.

    A word's vector is that of its number, the mean of its trigrams', and that of its place. One learned place more stands before the first
    and is always there, so that a text without words has a vector too; it is the text's. Places where nothing is are never attended to.

    words, buckets, length: of the tokenizer.
    width, depth, heads: of the transformer; its perceptrons are four times as wide.
    hidden: the share of words whose number is hidden in training, so that the trigrams learn to stand in for it.
    """

    def __init__(
        self, words: int, buckets: int, length: int, width: int = 128, depth: int = 2, heads: int = 4, hidden: float = 0.1
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got width={width}, heads={heads}")
        self.width, self.hidden = width, hidden
        self.word = nn.Embedding(FIRST + words, width)
        self.trigram = nn.EmbeddingBag(1 + buckets, width, mode="mean", padding_idx=0)
        self.place = nn.Parameter(torch.randn(1 + length, width) * width**-0.5)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for table in (self.word, self.trigram):
            nn.init.normal_(table.weight, std=width**-0.5)

    def forward(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The words (B, L, width), which of them are there (B, L), and the text (B, width)."""
        word = numbers[:, :, 0].long()
        there = word != PAD
        if self.training and self.hidden > 0:
            word = torch.where((torch.rand(word.shape, device=word.device) < self.hidden) & there, UNKNOWN, word)
        letters = self.trigram(numbers[:, :, 1:].reshape(-1, LETTERS)).reshape(*word.shape, self.width) if word.numel() else 0.0
        h = self.word(word) + letters + self.place[1 : 1 + word.shape[1]]
        h = torch.cat([self.place[:1].expand(len(h), 1, -1).to(h.dtype), h], dim=1)
        seen = torch.cat([there.new_ones(len(h), 1), there], dim=1)
        for block in self.blocks:
            h = block(h, seen)
        h = self.norm(h)
        return h[:, 1:], there, h[:, 0]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, seen: Tensor) -> Tensor:
        before, between = self.norms
        q, k, v = self.qkv(before(h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, seen[:, None, None, :])
        h = h + self.mix(mixed.transpose(1, 2).flatten(2))
        return h + self.outer(F.gelu(self.inner(between(h)), approximate="tanh"))


class Text(Condition):
    """Captions, through a `TextTransformer`: the words are tokens that the network attends to, and the whole text joins the vector.

    Values are (B, n) uint8, UTF-8 filled up with zeros (`data.captions.text_tensor`; lists of strings become that), or what `tokenizer`
    makes of them, (B, L, 1 + LETTERS) integers. A text without words is not given: one learned token, which is always there, and the
    vector of an empty text are all that is left of it.

    words, buckets, length, pieces: of the `Tokenizer`, which is kept with the network.
    width, depth, heads, hidden: of the `TextTransformer`, whatever the network's own width.
    """

    port, kind = "tokens", "text"

    def __init__(
        self,
        name: str,
        network_width: int,
        spatial: tuple[int, ...],
        words: Many[str],
        buckets: int = 4096,
        length: int = 32,
        pieces: bool = False,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        hidden: float = 0.1,
    ) -> None:
        try:
            tokenizer = Tokenizer(words, buckets, length, pieces)
        except ValueError as error:
            raise ValueError(f"condition {name!r}: {error}") from error
        options = {"words": list(words), "buckets": buckets, "length": length, "pieces": pieces}
        super().__init__(name, options | {"width": width, "depth": depth, "heads": heads, "hidden": hidden})
        self.tokenizer = tokenizer
        self.transformer = TextTransformer(len(words), buckets, length, width, depth, heads, hidden)
        self.token = nn.Linear(width, network_width)
        self.whole = nn.Linear(width, network_width)
        self.always = nn.Parameter(torch.randn(1, network_width) * network_width**-0.5)
        with torch.no_grad():
            self.whole.weight.mul_(SPREAD)

    def fit(self, value: Tensor) -> Tensor:
        if value.dtype == torch.uint8 and value.ndim == 2:
            value = self.tokenizer(self._texts(value)).to(value.device)
        whole = not (value.is_floating_point() or value.is_complex()) and value.dtype != torch.bool
        if not whole or value.ndim != 3 or value.shape[2] != 1 + LETTERS or value.shape[1] > self.tokenizer.length:
            raise ValueError(
                f"condition {self.name!r} must be a list of strings, their UTF-8 as uint8 (B, n), or a tokenizer's integers "
                f"(B, L, {1 + LETTERS}) with L <= {self.tokenizer.length}, got {value.dtype} of shape {tuple(value.shape)}"
            )
        return value

    def check(self, value: Tensor) -> Tensor:
        if value.dtype == torch.uint8 and value.ndim == 2:
            most = self.tokenizer.length
            sizes = [len(self.tokenizer.split(text)) for text in dict.fromkeys(self._texts(value))]
            long = sum(size > most for size in sizes)
            if long:
                which = (
                    f"has {max(sizes):,} words" if len(sizes) == 1 else f"of {len(sizes):,} texts {long:,} have up to {max(sizes):,} words"
                )
                warnings.warn(f"condition {self.name!r} {which}; the first {most} are read", stacklevel=4)
        value = self.fit(value)
        for part, most in ((value[:, :, 0], FIRST + len(self.tokenizer.words) - 1), (value[:, :, 1:], self.tokenizer.buckets)):
            if part.numel() and not (int(part.min()) >= 0 and int(part.max()) <= most):
                raise ValueError(f"condition {self.name!r} must hold 0 .. {most}, got {int(part.min())} .. {int(part.max())}")
        return value

    def _texts(self, value: Tensor) -> list[str]:
        try:
            return texts_of(value)
        except ValueError as error:
            raise ValueError(f"condition {self.name!r}: {error}") from error

    def missing(self, count: int, device: torch.device) -> Tensor:
        return torch.zeros((count, 0, 1 + LETTERS), dtype=torch.int32, device=device)

    def null(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens (B, 1 + L, width of the network), which of them are there (B, 1 + L), and the vector of the whole text (B, width)."""
        words, there, text = self.transformer(self.fit(value))
        first = self.always.to(words.dtype).expand(len(words), 1, -1)
        tokens = torch.cat([first, self.token(words)], dim=1)
        return tokens, torch.cat([there.new_ones(len(words), 1), there], dim=1), self.whole(text)
