"""Any torch.utils.data.Dataset as a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from sde_gen.data.assemble import Part, assemble
from sde_gen.data.dataset import Dataset, validate
from sde_gen.data.source import IN_MEMORY, Source, array_source


def from_torch(
    dataset: TorchDataset[Any], test: TorchDataset[Any] | None = None, name: str | None = None, in_memory: int = IN_MEMORY, **options: Any
) -> Dataset:
    """A data set from a map-style PyTorch one, whose items are x or (x, label): x a tensor or an array of one shape, (D,),
    (C, L), (C, H, W) or (C, D, H, W), or a pillow image, in units of its own.

    It is stacked where it fits in `in_memory` bytes as float32; otherwise its items are asked for batch by batch, and labels are
    taken from its attribute `targets` or `labels`, if it has one. uint8 items are levels 0 .. 255.

    Args:
        dataset: with __len__ and __getitem__.
        test: its held-out part; without one a tenth is held out.
        name: for messages; its class's by default.
        in_memory: bytes.
        options: of `assemble`: levels, value_range, limit.

    Raises:
        TypeError: a data set without a length, or items that are not numbers.
        ValueError: items of different shapes, or what `validate` refuses.
    """
    name = name or type(dataset).__name__
    first = _split(name, _item(name, dataset, 0))[0]
    if first.dtype == np.uint8:
        options = {"levels": 256, "value_range": (0.0, 255.0)} | options
    held = None if test is None else _part(name, test, first.shape, in_memory)
    return validate(assemble(name, _part(name, dataset, first.shape, in_memory), held, in_memory=in_memory, **options))


def _part(name: str, dataset: TorchDataset[Any], shape: tuple[int, ...], in_memory: int) -> Part:
    count = _length(name, dataset)

    def value(index: int) -> tuple[np.ndarray, Any]:
        x, label = _split(name, _item(name, dataset, index))
        if x.shape != shape:
            raise ValueError(f"data {name!r}: item {index} has shape {x.shape}, item 0 {shape}; one shape is needed")
        return x, label

    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack([value(row)[0] for row in rows.tolist()]) if len(rows) else np.empty((0, *shape), np.float32)

    if 4 * count * int(np.prod(shape)) > in_memory:
        known = next((getattr(dataset, key) for key in ("targets", "labels") if hasattr(dataset, key)), None)
        labels = None if known is None or len(known) != count else np.asarray(known)
        return Part(Source(name, shape, read, np.arange(count)), labels)
    pairs = [value(index) for index in range(count)]
    labels = None if any(label is None for _, label in pairs) else np.array([label for _, label in pairs])
    return Part(array_source(np.stack([x for x, _ in pairs]), name), labels)


def _length(name: str, dataset: TorchDataset[Any]) -> int:
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(f"data {name!r} is {type(dataset).__name__} without a length; a map-style data set is needed") from error


def _item(name: str, dataset: TorchDataset[Any], index: int) -> Any:
    if not _length(name, dataset):
        raise ValueError(f"data {name!r} has no items; at least 2 are needed")
    return dataset[index]


def _split(name: str, item: Any) -> tuple[np.ndarray, Any]:
    """An item as (x, label or None)."""
    x, label = (item[0], item[1] if len(item) > 1 else None) if isinstance(item, tuple | list) else (item, None)
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        values = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    else:
        values = np.asarray(x)
    if isinstance(x, Image.Image):
        values = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    if values.dtype.kind not in "buif" or values.ndim < 1:
        raise TypeError(f"data {name!r}: items of type {type(x).__name__}; tensors or arrays of numbers, or (x, label), are needed")
    if isinstance(label, Tensor | np.ndarray | np.generic):
        label = label.item() if np.asarray(label).size == 1 else None
    return values, label if isinstance(label, int | str | float) else None
