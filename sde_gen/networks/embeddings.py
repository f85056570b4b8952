"""Embeddings of what a network is conditioned on: the noise level and, optionally, a class label."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the noise level, `[cos(w_i c), sin(w_i c)]`, after Vaswani et al. 2017 (arXiv:1706.03762).

    The noise level `c` is half the log signal-to-noise ratio, lambda = log(alpha / sigma), which runs from about -7 to 9.
    The angular frequencies w_i are geometric between `w_min` and `w_max`: the slowest turns by less than half a circle over
    that range, so that no two levels look alike, and the fastest tells apart levels a tenth of a nat away from each other.
    Faster ones (DDPM's reach a thousand per unit after its scaling) would let the network treat neighbouring levels as unrelated.

    Args:
        features: number of outputs, even.
        w_min, w_max: angular frequencies in radians for each unit of `c`.
    """

    frequencies: Tensor

    def __init__(self, features: int, w_min: float = 0.15, w_max: float = 5.0) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"features must be an even number of at least 2, got {features!r}")
        if not 0 < w_min < w_max < math.inf:
            raise ValueError(f"frequencies must satisfy 0 < w_min < w_max, got w_min={w_min!r}, w_max={w_max!r}")
        # on the CPU: a network of sizes alone, on the meta device, costs nothing then
        exponents = torch.linspace(math.log(w_min), math.log(w_max), features // 2, dtype=torch.float64, device="cpu")
        frequencies = exponents.exp().to(torch.get_default_device(), torch.get_default_dtype())
        # not in the state_dict: a constant of the class, rebuilt with it
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SinusoidalEmbedding:
        # In a dtype narrower than float32 neighbouring levels would look alike: the numbers stay, whatever the network's weights become.
        def wide(value: Tensor) -> Tensor:
            other = fn(value)
            return value.to(other.device) if other.dtype.itemsize < 4 else other

        return super()._apply(wide, recurse)

    def forward(self, c: Tensor) -> Tensor:
        """c: (B,) -> (B, features), in float32 or wider."""
        angles = c[:, None].to(self.frequencies.dtype) * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class LabelEmbedding(nn.Module):
    """A learned vector for each class and one more, at index `classes`, for "no label".

    In training mode each label is replaced by the null label with probability `dropout`, so that one network learns the
    conditional and the unconditional score (Ho and Salimans 2022, arXiv:2207.12598). Like `nn.Dropout` it draws from the
    generator of the device it runs on; in evaluation mode it draws nothing.

    Args:
        classes: number of classes; labels are 0 .. classes - 1, and `classes` itself is the null label.
        width: number of outputs.
        dropout: probability of the null label in training, in [0, 1].
    """

    def __init__(self, classes: int, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.classes = classes
        self.dropout = dropout
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)

    def forward(self, label: Tensor | None, batch: int) -> Tensor:
        """label: (B,) integers in 0 .. classes, or None (the null label for all) -> (B, width).

        Raises:
            ValueError: the label has another shape; TypeError: it is not of an integer type.
        """
        if label is None:
            label = torch.full((batch,), self.classes, device=self.table.weight.device)
        if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
            raise TypeError(f"label must hold integers in 0..{self.classes} ({self.classes} means none), got {label.dtype}")
        if label.shape != (batch,):
            raise ValueError(f"label must have shape ({batch},), one for each sample, got {tuple(label.shape)}")
        label = label.long()
        if self.training and self.dropout > 0:
            dropped = torch.rand(batch, device=label.device) < self.dropout
            label = label.masked_fill(dropped, self.classes)
        return self.table(label)


class ConditionEmbedding(nn.Module):
    """Noise level and label as one vector: `SiLU(W_2 SiLU(W_1 sinusoids(c)) + table[label])`, (B,) and (B,) -> (B, width).

    Args:
        width: number of outputs.
        classes: number of classes, or None for a network without labels.
        label_dropout: see `LabelEmbedding`.
        features: number of sines and cosines.
    """

    def __init__(self, width: int, classes: int | None, label_dropout: float, features: int = 64) -> None:
        super().__init__()
        self.level = nn.Sequential(SinusoidalEmbedding(features), nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.label = None if classes is None else LabelEmbedding(classes, width, label_dropout)

    def forward(self, c: Tensor, label: Tensor | None) -> Tensor:
        sinusoids, first, *rest = self.level
        embedding = first(sinusoids(c).to(first.weight.dtype))
        for layer in rest:
            embedding = layer(embedding)
        if self.label is not None:
            embedding = embedding + self.label(label, len(c))
        elif label is not None:
            raise ValueError("this network was made without classes and takes no label; give make_network(classes=...)")
        return nn.functional.silu(embedding)
