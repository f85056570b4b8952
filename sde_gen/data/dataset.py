"""What every data set hands on: tensors in the data's own units, and the facts that go with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen.data.source import Source

SIGNED = 256
"""At most so many items make up the checksum of a data set."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training set, its held-out part and what is known about them.

    Attributes:
        name: the name in the registry.
        train: (N, *shape) float32, in the data's own units.
        test: (M, *shape) float32 held-out data in the same units, or None.
        train_labels: (N,) int64 in [0, classes), or None.
        test_labels: (M,) int64, or None.
        classes: number of classes, or None where there are no labels.
        levels: number of discrete values that an entry can take (0, 1, ..., levels - 1), or None for continuous data.
        value_range: (low, high) to show the data with. For display only: nothing may clamp data to it.
        modes: (K, *shape) centres of a mixture of K equally likely, well separated modes, or None.
        source: all training items, read from disk batch by batch, where they are more than fits in memory; `train` is then an
            evenly spaced part of them, for whatever needs a tensor. None where `train` is everything.
        source_labels: (N,) int64, the labels of `source`, or None.
        notes: how the files were read, a line each.
    """

    name: str
    train: Tensor
    test: Tensor | None = None
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    classes: int | None = None
    levels: int | None = None
    value_range: tuple[float, float] | None = None
    modes: Tensor | None = None
    source: Source | None = None
    source_labels: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def training(self) -> tuple[Tensor | Source, Tensor | None]:
        """All training items and their labels: `train` and `train_labels`, or, larger than memory, `source` and `source_labels`."""
        return (self.train, self.train_labels) if self.source is None else (self.source, self.source_labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item, without the batch dimension."""
        return tuple(self.train.shape[1:])

    def signature(self) -> dict[str, Any]:
        """What tells these training items from others: "shape", "classes", "items" and "sha256", the checksum of evenly spaced
        items with their labels, `SIGNED` of them at most."""
        rows = torch.arange(min(SIGNED, len(self.train))) * len(self.train) // min(SIGNED, len(self.train))
        parts = [self.train] if self.train_labels is None else [self.train, self.train_labels]
        digest = hashlib.sha256(b"".join(part[rows].cpu().numpy().tobytes() for part in parts))
        return {"shape": list(self.shape), "classes": self.classes, "items": len(self.training[0]), "sha256": digest.hexdigest()}


def validate(dataset: Dataset) -> Dataset:
    """Return the data set unchanged if a model can be trained on it.

    Raises:
        ValueError: fewer than two training items, NaN or Inf, items that are all the same, or tensors whose types,
            shapes or labels do not fit together; one line that says what was found and what is needed.
    """
    _validate_part(dataset.name, "training", dataset.train, dataset.train_labels, dataset.classes)
    if len(dataset.train) < 2:
        raise ValueError(f"data {dataset.name!r}: {len(dataset.train)} training item(s); at least 2 are needed, better hundreds")
    if bool((dataset.train == dataset.train[:1]).all()):
        raise ValueError(
            f"data {dataset.name!r}: constant data, all {len(dataset.train)} training items are equal; items that differ are needed"
        )
    if dataset.test is None:
        if dataset.test_labels is not None:
            raise ValueError(f"data {dataset.name!r}: held-out labels without held-out data; give both or neither")
    else:
        _validate_part(dataset.name, "held-out", dataset.test, dataset.test_labels, dataset.classes)
        if dataset.test.shape[1:] != dataset.train.shape[1:]:
            raise ValueError(
                f"data {dataset.name!r}: held-out items of shape {tuple(dataset.test.shape[1:])} beside training items of shape "
                f"{dataset.shape}; one shape is needed"
            )
    return dataset


def _validate_part(name: str, part: str, values: Tensor, labels: Tensor | None, classes: int | None) -> None:
    if values.dtype != torch.float32 or values.ndim < 2 or values.numel() == 0:
        raise ValueError(
            f"data {name!r}: {part} data is {values.dtype} of shape {tuple(values.shape)}; non-empty float32 (N, *shape) is needed"
        )
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"data {name!r}: {part} data holds {bad} NaN or infinite value(s) among {values.numel()}; finite numbers are needed"
        )
    if labels is None:
        return
    if classes is None:
        raise ValueError(f"data {name!r}: {part} labels without a number of classes; classes must be a positive integer")
    if labels.dtype != torch.int64 or labels.shape != values.shape[:1]:
        raise ValueError(
            f"data {name!r}: {part} labels are {labels.dtype} of shape {tuple(labels.shape)}; int64 ({len(values)},) is needed"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"data {name!r}: {part} labels span {int(labels.min())}..{int(labels.max())}; 0..{classes - 1} is allowed")
