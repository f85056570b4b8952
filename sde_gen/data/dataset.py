"""What every data set hands on: tensors in the data's own units, and the facts that go with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.columns.codec import Codec
from sde_gen.data.labels import check_labels, rows_in_turn
from sde_gen.data.source import Source

SIGNED = 256
"""At most so many items make up the checksum of a data set."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training set, its held-out part and what is known about them.

    The order of a registered set's items is that of its source; items of the user's own files come in a random order, the same in
    every run. A part of either is taken with `draw`, never by slicing: files are often sorted by class.

    Attributes:
        name: the name in the registry, or of the file.
        train: (N, *shape) in the data's own units, float32, or float64 where float32 would round the values too much.
        test: (M, *shape) held-out data in the same units and of the same type, or None.
        train_labels: (N,) int64 in [0, classes), or None.
        test_labels: (M,) int64, or None.
        classes: number of classes, or None where there are no labels.
        levels: number of discrete values that an entry can take (0, 1, ..., levels - 1), or None for continuous data.
        value_range: (low, high) to show the data with. For display only: nothing may clamp data to it.
        modes: (K, *shape) centres of a mixture of K equally likely, well separated modes, or None.
        source: all training items, read from disk batch by batch, where they are more than fits in memory; `train` is then a part of
            them, drawn at random, for whatever needs a tensor. None where `train` is everything.
        source_labels: (N,) int64, the labels of `source`, or None.
        notes: how the files were read, with axes and types, and what is odd about them, a line each.
        columns: names of the D columns of a table with a header, or None; where there is a `codec`, of its features.
        label_column: name (None without a header) and place among all columns of a table's column of labels, or None.
        label_names: the files' own labels, whole numbers or words, in the order of their classes; None: they are 0 .. classes - 1.
        cond: what else is known of each training item and a network can be told, by name: (N, *) beside `train`. NaN is not known.
        test_cond: the same of `test`, (M, *) each.
        source_cond: the same of `source`, tensors or sources.
        cond_names: of conditions that are categories, the files' own words for the classes 0, 1, ...; a class of their number is not known.
        cond_columns: of conditions that were columns of a table, name and place as in `label_column`.
        texts: the conditions that are texts, UTF-8 in uint8 (N, longest) (`captions.text_tensor`).
        valid: which entries of an item are data, Boolean (*shape), where some are data in none (land in fields of the sea); None: all, or
            as the condition "valid" says of each item. What lies at other entries of `train` means nothing.
        missing: of data with such entries, the number that marks them in files, NaN included; else None.
        header: of the user's own files, what has to be known to write samples as they are (`formats`), ready for JSON, or None.
        codec: of a table whose columns are of kinds of their own (words, counts, gaps, angles): `train` and `test` hold the features,
            float64, that it makes of them, and `codec.decode` gives the columns again.
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
    columns: tuple[str, ...] | None = None
    label_column: tuple[str | None, int] | None = None
    label_names: tuple[int | str, ...] | None = None
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    test_cond: Mapping[str, Tensor] = field(default_factory=dict)
    source_cond: Mapping[str, Tensor | Source] = field(default_factory=dict)
    cond_names: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    cond_columns: Mapping[str, tuple[str | None, int]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    valid: Tensor | None = None
    missing: float | None = None
    header: Mapping[str, Any] | None = None
    codec: Codec | None = None

    @property
    def training(self) -> tuple[Tensor | Source, Tensor | None]:
        """All training items and their labels: `train` and `train_labels`, or, larger than memory, `source` and `source_labels`."""
        return (self.train, self.train_labels) if self.source is None else (self.source, self.source_labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item, without the batch dimension."""
        return tuple(self.train.shape[1:])

    @property
    def classifiable(self) -> bool:
        """Whether a classifier can be fitted to `train`: its labels are of at least two classes."""
        return self.train_labels is not None and bool((self.train_labels != self.train_labels[:1]).any())

    def conditions(self, names: Iterable[str], part: str = "train") -> dict[str, Tensor | Source]:
        """The conditions `names` of the items of a part, in their order; the labels are called "label".

        part: "train" for `train`, "all" for all training items (`training`), "test" for those held out.

        Raises ValueError where the part does not have one of them.
        """
        labels = {"train": self.train_labels, "all": self.training[1], "test": self.test_labels}[part]
        known: dict[str, Tensor | Source] = {} if labels is None else {"label": labels}
        known |= {"train": self.cond, "all": self.cond if self.source is None else self.source_cond, "test": self.test_cond}[part]
        missing = [name for name in names if name not in known]
        if missing:
            has = f"has {', '.join(map(repr, known))}" if known else "has none"
            raise ValueError(f"data {self.name!r}: no condition {', '.join(map(repr, missing))} in the {part} part, which {has}")
        return {name: known[name] for name in names}

    def held_out(self, names: Iterable[str]) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The held-out items and their conditions `names`, on which a network that takes these can be measured: (None, {}) where there
        are no such items, or not all conditions of theirs are known, so that the network has no right answer."""
        try:
            return (None, {}) if self.test is None else (self.test, self.conditions(names, "test"))  # type: ignore[return-value]
        except ValueError:
            return None, {}

    def draw_conditions(self, names: Iterable[str], count: int, seed: int, alike: bool = False) -> dict[str, Tensor]:
        """The conditions `names` of `count` training items that are drawn with replacement, so that samples follow the data's own.

        With labels they stand in turn, one of each class that is left, so that the first few show every class; samples that are
        measured must not be cut at their head.

        alike: every class is there as often, for pictures; else each in its share.
        """
        found = self.conditions(names)
        rows = rows_in_turn(len(self.train), count, seed, found.get("label"), alike)  # type: ignore[arg-type]
        return {name: value[rows.to(value.device)] for name, value in found.items()}  # type: ignore[union-attr]

    def draw(self, count: int, seed: int, part: str = "train") -> tuple[Tensor, Tensor | None]:
        """A random part of the items, without repeats, and their labels.

        Nothing else is read where the items lie on disk. With one seed a smaller draw is the head of a larger one.

        Args:
            count: how many items, at least 1; where there are fewer, all of them in a random order.
            seed: of the draw, >= 0.
            part: "train", all training items, or "test", the held-out ones.

        Returns:
            items: (min(count, N), *shape) in the data's own units, of the type of `train`, on the device where they lie.
            labels: int64 (min(count, N),), or None where the part has none.

        Raises:
            ValueError: a count below 1, a negative seed, an unknown part, or "test" of data that hold nothing out.
        """
        if part not in ("train", "test") or count < 1 or seed < 0:
            raise ValueError(f"draw({count!r}, seed={seed!r}, part={part!r}); count >= 1, seed >= 0 and part 'train' or 'test' are needed")
        items, labels = self.training if part == "train" else (self.test, self.test_labels)
        if items is None:
            raise ValueError(f"data {self.name!r} has no held-out part to draw from")
        rows = subset(len(items), count, seed)
        chosen = items.subset(rows.numpy()).tensor() if isinstance(items, Source) else items[rows.to(items.device)]
        return chosen, None if labels is None else labels[rows.to(labels.device)]

    def signature(self) -> dict[str, Any]:
        """What tells these training items from others: "shape", "classes", "items" and "sha256", the checksum of evenly spaced
        items with their labels, `SIGNED` of them at most."""
        rows = torch.arange(min(SIGNED, len(self.train))) * len(self.train) // min(SIGNED, len(self.train))
        parts = [self.train] if self.train_labels is None else [self.train, self.train_labels]
        parts += [self.cond[name] for name in sorted(self.cond)]
        digest = hashlib.sha256(b"".join(part[rows].cpu().numpy().tobytes() for part in parts))
        found = {"shape": list(self.shape), "classes": self.classes, "items": len(self.training[0]), "sha256": digest.hexdigest()}
        return found | ({"conditions": sorted(self.cond)} if self.cond else {})


def subset(total: int, count: int, seed: int) -> Tensor:
    """int64 (min(count, total),): numbers below `total` in a random order, the head of one permutation for each seed."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(total)[:count])


def rows_drawn(total: int, count: int, seed: int) -> Tensor:
    """int64 (min(count, total),): a random part of the numbers below `total`, in ascending order: all of them where there are no more."""
    return subset(total, count, seed).sort().values


def validate(dataset: Dataset) -> Dataset:
    """Return the data set unchanged if a model can be trained on it.

    Raises:
        ValueError: fewer than two training items, NaN or Inf, items that are all the same, or tensors whose types,
            shapes or labels do not fit together; one line that says what was found and what is needed.
    """
    _validate_part(dataset.name, "training", dataset.train, dataset.train_labels, dataset.classes)
    for part, cond, items in (("training", dataset.cond, dataset.train), ("held-out", dataset.test_cond, dataset.test)):
        for name, value in cond.items():
            if items is None or len(value) != len(items):
                beside = "no items" if items is None else f"{len(items):,} items"
                raise ValueError(f"data {dataset.name!r}: condition {name!r} has {len(value):,} {part} entries beside {beside}")
            if value.is_floating_point() and bool(torch.isinf(value).any()):
                raise ValueError(f"data {dataset.name!r}: condition {name!r} holds infinite {part} values; NaN says that one is not known")
            if name in dataset.cond_names:
                what = f"data {dataset.name!r}: condition {name!r}"
                check_labels(value, len(value), len(dataset.cond_names[name]) + 1, f"{what} (its last class: not known)")
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
        if dataset.test.shape[1:] != dataset.train.shape[1:] or dataset.test.dtype != dataset.train.dtype:
            raise ValueError(
                f"data {dataset.name!r}: held-out items of shape {tuple(dataset.test.shape[1:])} and {dataset.test.dtype} beside training "
                f"items of shape {dataset.shape} and {dataset.train.dtype}; one shape and type is needed"
            )
    return dataset


def _validate_part(name: str, part: str, values: Tensor, labels: Tensor | None, classes: int | None) -> None:
    if values.dtype not in (torch.float32, torch.float64) or values.ndim < 2 or values.numel() == 0:
        raise ValueError(
            f"data {name!r}: {part} data is {values.dtype} of shape {tuple(values.shape)}; non-empty float32 or float64 (N, *) is needed"
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
    if labels.dtype != torch.int64:
        raise ValueError(f"data {name!r}: {part} labels are {labels.dtype}; int64 is needed")
    check_labels(labels, len(values), classes, f"data {name!r}: {part} labels")
