"""Class labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Condition

FADE = 3.0
"""Where the noise is a twentieth of the data's standard deviation, an item shows its class itself. What a network learns of labels below
is noise: on digits it cost the conditional branch half a nat."""
SPREAD = 0.3
"""Of the vectors before training, over those of unit length: small, so that both branches begin alike, yet told apart at once."""


class Label(Condition):
    """A learned vector for each of `classes` classes and one more, at index `classes`, for "not given".

    Values are (B,) integers in 0 .. classes - 1, or `classes`. Dropped in training, one network learns the conditional and the
    unconditional score (Ho and Salimans 2022, arXiv:2207.12598). As the noise vanishes the label fades: classes tell finitely much, and
    the branches with and without it become one.

    names: the data's own words or numbers for the classes, or None.
    fade: see `Condition`; None where classes differ by less than the noise at which others fade.
    """

    port, kind = "vector", "label"

    def __init__(
        self,
        name: str,
        width: int,
        spatial: tuple[int, ...],
        classes: int,
        names: list[str | int] | None = None,
        fade: float | None = None,
    ) -> None:
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
            raise ValueError(f"classes must be an integer of at least 1, got {classes!r}")
        if names is not None and len(names) != classes:
            raise ValueError(f"condition {name!r} has {classes} classes and {len(names)} names; as many are needed")
        super().__init__(name, {"classes": classes, "fade": fade} | ({} if names is None else {"names": list(names)}))
        self.classes, self.names, self.fade = classes, None if names is None else list(names), fade
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=SPREAD * width**-0.5)

    def fit(self, value: Tensor) -> Tensor:
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"condition {self.name!r} must hold integers in 0 .. {self.classes - 1}, got {value.dtype}")
        if value.ndim != 1:
            raise ValueError(f"condition {self.name!r} must have shape (B,), one class for each sample, got {tuple(value.shape)}")
        return value.long()  # the null is one more than the last class, which a narrow type may not hold

    def check(self, value: Tensor) -> Tensor:
        value = self.fit(value)
        if value.numel() and not (int(value.min()) >= 0 and int(value.max()) <= self.classes):
            span = f"{int(value.min())} .. {int(value.max())}"
            raise ValueError(f"condition {self.name!r} must be in 0 .. {self.classes - 1} ({self.classes}: not given), got {span}")
        return value

    def word(self, value: int) -> str:
        """The data's own word for a class; "?" where none is given."""
        return "?" if value == self.classes else str(value if self.names is None else self.names[value])

    def missing(self, count: int, device: torch.device) -> Tensor:
        return torch.full((count,), self.classes, device=device)

    def null(self, value: Tensor) -> Tensor:
        return torch.full_like(value, self.classes, dtype=torch.int64)

    def forward(self, value: Tensor) -> Tensor:
        return self.table(self.fit(value))
