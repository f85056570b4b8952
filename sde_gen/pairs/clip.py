"""CLIP: pictures and captions in one space, with or without noise on the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions.tokenizer import PAD
from ..data import Normalizer
from ..data.captions import CAPTION, is_texts, text_tensor, texts_of
from ..sdes import SDE
from ..sdes.base import as_time
from .contrast import scale_of, similarities
from .towers import ImageTower, TextTower, initial_log_scale

Texts = Sequence[str] | Tensor


class CLIP(nn.Module):
    """Two towers whose embeddings of a picture and of its caption are close (Radford et al. 2021, arXiv:2103.00020).

    exp(log_scale) image . text estimates log p(image, text)/(p(image) p(text)) up to a function of one of the two: what a caption says of a
    picture. Told an SDE it is CLIP for guidance: the same of states x_t with a caption of their x_0, at every noise level (Nichol et al.
    2021, arXiv:2112.10741, section 2.4).

    image, text: the towers.
    normalizer: from the data's units to normalised ones, in which the states of an SDE lie: that of the score model.
    sde: the process whose states the image tower has seen, or None: pictures without noise alone.
    data_std: the data's standard deviation in normalised units.

    Raises ValueError for a tower that is told the noise level without an sde, or the other way round.
    """

    def __init__(self, image: ImageTower, text: TextTower, normalizer: Normalizer, sde: SDE | None = None, data_std: float = 1.0) -> None:
        super().__init__()
        if (sde is not None) != (image.level is not None):
            raise ValueError("an sde and a tower that is told the noise level (noisy=True) go together, and neither goes alone")
        self.image, self.text, self.normalizer, self.sde, self.data_std = image, text, normalizer, sde, data_std
        self.log_scale = nn.Parameter(initial_log_scale())

    @property
    def device(self) -> torch.device:
        return self.log_scale.device

    def embed_images(self, x: Tensor) -> Tensor:
        """Pictures (B, C, *spatial) in the data's own units as (B, dims), of unit length."""
        return self.image(self.normalizer.encode(x.to(self.device)).float() / self.data_std)

    def embed_states(self, x: Tensor, t: Tensor | float) -> Tensor:
        """States (B, *) of the SDE at times t, a number or (B,), in normalised units, as (B, dims). ValueError without an sde."""
        if self.sde is None:
            raise ValueError("this CLIP has seen pictures without noise alone: train_clip(..., sde=...) trains one of noisy states")
        times = as_time(t).expand(len(x))
        alpha, sigma = self.sde.marginal(times)
        scale = 1 / torch.sqrt((alpha * self.data_std) ** 2 + sigma**2)
        scaled = x.float() * scale.to(x.device, torch.float32).reshape(-1, *[1] * (x.ndim - 1))
        return self.image(scaled, self.sde.half_log_snr(times).to(x.device, torch.float32))

    def numbers(self, texts: Texts) -> Tensor:
        """Texts as the text tower takes them: strings, a tensor of them (`data.captions.text_tensor`), or a tokenizer's numbers.

        A caption of no words says nothing that could be compared, and is refused with a ValueError."""
        if is_texts(texts):
            texts = text_tensor(texts)
        if not isinstance(texts, Tensor):
            raise TypeError(f"texts must be a list of strings or a tensor of them, got {type(texts).__name__}")
        if texts.dtype == torch.uint8 and texts.ndim == 2:
            strings = texts_of(texts)
            texts = self.text.tokenizer(strings)
            empty = (texts[:, :, 0] == PAD).all(1) if texts.shape[1] else torch.ones(len(texts), dtype=torch.bool)
            if bool(empty.any()):
                raise ValueError(
                    f"text {int(empty.int().argmax())} has no words, {strings[int(empty.int().argmax())]!r}; a caption is needed"
                )
        return texts.to(self.device)

    def embed_texts(self, texts: Texts) -> Tensor:
        """Captions as (B, dims), of unit length."""
        return self.text(self.numbers(texts))

    @torch.no_grad()
    def classify(self, x: Tensor, texts: Texts) -> Tensor:
        """The share (B, K) that each of K captions has of each picture (B, *), in the data's units: softmax of the similarities, which is
        zero-shot classification for captions that are names of classes."""
        return similarities(self.embed_images(x), self.embed_texts(texts), self.log_scale).softmax(1)

    def check(self, cond: Mapping[str, Any]) -> None:
        """ValueError unless `cond` holds a caption of a word or more for each sample, by the name "caption"; called before a guided run."""
        if CAPTION not in cond:
            raise ValueError(f"this CLIP is asked for condition {CAPTION!r}, and was given {', '.join(map(repr, cond)) or 'none'}")
        self.numbers(cond[CAPTION])

    def forward(self, x: Tensor, t: Tensor | float, caption: Texts, **others: Tensor) -> Tensor:
        """exp(log_scale) image . text of each state and its caption, (B,): log p_t(caption | x) up to a function of the caption, with its
        gradient, for `guidance.Classifier`. Other conditions are the model's, and say nothing here."""
        image, text = self.embed_states(x, t), self.embed_texts(caption)
        return (scale_of(self.log_scale) * (image * text).sum(1)).to(x.dtype)

    def settings(self) -> dict[str, Any]:
        """What rebuilds it, but its numbers."""
        return {"shape": list(self.image.shape), "image": self.image.options, "text": self.text.options, "data_std": self.data_std}
