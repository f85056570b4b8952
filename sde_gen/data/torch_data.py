"""Any torch.utils.data.Dataset as a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset, TensorDataset

from sde_gen.data import conditions
from sde_gen.data.assemble import Part, assemble
from sde_gen.data.axes import Layout, check_axes, levels_of, read_layout
from sde_gen.data.dataset import Dataset, validate
from sde_gen.data.decode import pixels
from sde_gen.data.source import IN_MEMORY, Source, array_source

CHECKED = 16
"""The list of labels of a data set too large to be read is compared with those of so many items."""


def from_torch(
    dataset: TorchDataset[Any],
    test: TorchDataset[Any] | None = None,
    name: str | None = None,
    in_memory: int = IN_MEMORY,
    axes: str | None = None,
    **options: Any,
) -> Dataset:
    """A data set from a map-style PyTorch one, whose items are x, (x, label), (x, conditions) or (x, label, conditions): x a tensor or an
    array of one shape, or a pillow image, in units of its own; conditions a dict of what else is known of the item, by name.

    It is stacked where it fits in `in_memory` bytes as float32; otherwise its items are asked for batch by batch, and labels are
    taken from its attribute `targets` or `labels` (through a `Subset`, and through its `target_transform`) or from a `TensorDataset`'s
    second tensor, if they are those of `CHECKED` items that are asked for. Items that are all
    uint8, uint16 or Boolean are levels 0 .. 255, 65535 or 1. A label that is no whole number or word is not used, and the notes say so.
    A condition that is a whole number, a Boolean or a word is a class; floats, and tensors or arrays of one shape, are numbers, NaN where
    one is not known. None is a condition that is not known at all. Of items that are asked for batch by batch so are the conditions,
    which then can be numbers alone.

    Args:
        dataset: with __len__ and __getitem__.
        test: its held-out part; without one a tenth is held out.
        name: for messages; its class's by default.
        in_memory: bytes.
        axes: a letter for each axis of a batch of items, such as NCHW or NHWC; None: as `axes.read_layout` says, and where the shape
            leaves a doubt, tensors are (C, *spatial), as PyTorch's layers take them, and arrays are refused.
        options: of `assemble`: levels, value_range, limit, split, missing.

    Raises:
        TypeError: a data set without a length, or items that are not real numbers.
        ValueError: items of different shapes, some items with a label and some without, conditions of different names, kinds or shapes,
            masked cells without `missing`, axes that are needed, or what `validate` refuses.
    """
    name = name or type(dataset).__name__
    x = _item(name, dataset, 0)[0]
    first = _values(name, x)
    letters = None if axes is None else check_axes(axes)
    if letters is not None and not letters.startswith("N"):
        raise ValueError(f"axes {axes!r}; N must be first here: items are stacked along a new first axis")
    if isinstance(x, Image.Image):
        letters = "NCHW"
    layout = read_layout(name, (_length(name, dataset), *first.shape), first.dtype, letters, isinstance(x, Tensor))
    notes = [layout.note]
    train, types = _part(name, dataset, layout, first, in_memory, notes)
    held = None
    if test is not None:
        held, types_held = _part(name, test, layout, first, in_memory, [])
        types |= types_held
    if len(types) > 1:
        listed = ", ".join(sorted(str(kind) for kind in types))
        notes[0] = notes[0][: notes[0].rindex("; ")] + f"; {listed}, continuous)"
    elif (levels := levels_of(first.dtype)) is not None:
        options = {"levels": levels, "value_range": (0.0, levels - 1.0)} | options
    return validate(assemble(name, train, held, notes=notes, in_memory=in_memory, **options))


def _part(
    name: str, dataset: TorchDataset[Any], layout: Layout, first: np.ndarray, in_memory: int, notes: list[str]
) -> tuple[Part, set[np.dtype]]:
    """The items with their labels, and the types of those that were looked at."""
    count = _length(name, dataset)

    def value(index: int) -> tuple[np.ndarray, Any, Mapping[str, Any]]:
        x, label, cond = _item(name, dataset, index)
        found = _values(name, x)
        if found.shape != first.shape:
            raise ValueError(f"data {name!r}: item {index} has shape {found.shape}, item 0 {first.shape}; one shape is needed")
        return found, label, cond

    if 4 * count * first.size > in_memory:
        asked: tuple[list[int], list[tuple[np.ndarray, Any, Mapping[str, Any]]]] = [], []

        def conditions_of(rows: np.ndarray) -> list[Mapping[str, Any]]:
            last, read_last = asked  # those of a batch are asked for right after it, and are of the same reading
            return [cond for _, _, cond in read_last] if last == rows.tolist() else [value(row)[2] for row in rows.tolist()]

        def read(rows: np.ndarray) -> np.ndarray:
            nonlocal asked
            asked = rows.tolist(), [value(row) for row in rows.tolist()]
            found = [x for x, _, _ in asked[1]]
            odd = next((x.dtype for x in found if levels_of(x.dtype) != levels_of(first.dtype)), None)
            if odd is not None:
                raise ValueError(f"data {name!r}: items of types {first.dtype} and {odd}; one type is needed")
            return layout.apply(_stacked(found)) if found else np.empty((0, *layout.item), np.float32)

        known = _known_labels(dataset)
        if known is not None and not _are_of_items(known, [(row, value(row)[1]) for row in range(0, count, -(-count // CHECKED))]):
            known = None
            notes.append("no labels: the data set's own list of them is not what its items say, which would have to be read one by one")
        elif known is None and value(0)[1] is not None:
            notes.append("no labels: they would have to be read item by item; give the data set an attribute targets or labels")
        of_first = value(0)[2]
        on_disk = {key: _condition_on_disk(name, key, of_first, conditions_of, count) for key in of_first}
        return Part(Source(name, layout.item, read, np.arange(count)), known, on_disk), {first.dtype}
    triples = [value(index) for index in range(count)]
    whole = layout.apply(_stacked([x for x, _, _ in triples]))
    source = Source(name, layout.item, lambda rows: whole[rows], np.arange(count))
    of_items = [cond for _, _, cond in triples]
    cond = {key: _condition(name, key, [_of_item(name, each, key) for each in of_items]) for key in of_items[0]}
    strange = next((key for each in of_items for key in each if key not in cond), None)
    if strange is not None:
        raise ValueError(f"data {name!r}: some items have a condition {strange!r} and item 0 has none; None says that one is not known")
    return Part(source, _labels(name, [label for _, label, _ in triples], notes), cond), {x.dtype for x, _, _ in triples}


def _of_item(name: str, cond: Mapping[str, Any], key: str) -> Any:
    """A condition of an item: a word, a number, an array, or None."""
    if key not in cond:
        raise ValueError(f"data {name!r}: an item has no condition {key!r}, which item 0 has; None says that one is not known")
    value = cond[key]
    if value is None or isinstance(value, str):
        return value
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "buif":
        raise TypeError(f"data {name!r}: condition {key!r} is {type(value).__name__}; a number, a word, an array or None is needed")
    return array


def _condition(name: str, key: str, values: list[Any]) -> conditions.Values:
    """A condition of all items: classes, or numbers (N, *)."""
    known = np.array([value is not None for value in values])
    there = [value for value in values if value is not None]
    words = [isinstance(value, str) for value in there]
    shapes = {() if word else value.shape for word, value in zip(words, there, strict=True)}
    if not there or len(shapes) > 1 or any(words) != all(words):
        seen = f"of shapes {' and '.join(map(str, sorted(shapes)[:2]))}" if len(shapes) > 1 else "words and numbers" if there else "None"
        cure = "; sequences of unlike length are filled up with NaN" if len(shapes) > 1 else ""
        raise ValueError(f"data {name!r}: condition {key!r} is {seen}; one kind and shape for all items is needed{cure}")
    if words[0]:
        return np.ma.array(["" if value is None else value for value in values], mask=~known)
    if shapes == {()} and all(value.dtype.kind in "bui" for value in there):
        return np.ma.array([0 if value is None else int(value) for value in values], mask=~known)
    if known.all():
        return array_source(np.stack(there), name)
    hole = np.full(there[0].shape, np.nan)
    return array_source(np.stack([hole if value is None else value for value in values]), name)


def _condition_on_disk(
    name: str, key: str, first: Mapping[str, Any], conditions_of: Callable[[np.ndarray], list[Mapping[str, Any]]], count: int
) -> Source:
    """A condition of items that are asked for batch by batch."""
    like = _of_item(name, first, key)
    if like is None or isinstance(like, str) or (like.ndim == 0 and like.dtype.kind in "bui"):
        raise ValueError(
            f"data {name!r}: condition {key!r} of item 0 is {first[key]!r}; of items that are read batch by batch they must be floats or "
            "arrays, since all would have to be read to know the classes"
        )

    def read(rows: np.ndarray) -> np.ndarray:
        found = [_of_item(name, cond, key) for cond in conditions_of(rows)]
        filled = [np.full(like.shape, np.nan) if value is None else value for value in found]
        odd = next((value.shape for value in filled if value.shape != like.shape), None)
        if odd is not None:
            raise ValueError(f"data {name!r}: condition {key!r} has shape {odd} and, of item 0, {like.shape}; one shape is needed")
        return np.stack(filled) if filled else np.empty((0, *like.shape), like.dtype)

    return Source(name, like.shape, read, np.arange(count))


def _labels(name: str, labels: list[Any], notes: list[str]) -> np.ndarray | None:
    """One label an item, or None where they are not whole numbers or words, which is said."""
    absent = [label is None for label in labels]
    if all(absent):
        return None
    if any(absent):
        raise ValueError(
            f"data {name!r}: item {absent.index(True)} has no label, {len(labels) - sum(absent)} others have one; all or none is needed"
        )
    plain = [
        label.item() if isinstance(label, Tensor | np.ndarray | np.generic) and np.asarray(label).size == 1 else label for label in labels
    ]
    odd = next((label for label in plain if not isinstance(label, int | str | float)), None)
    if odd is not None:
        shape = f" of shape {tuple(odd.shape)}" if isinstance(odd, Tensor | np.ndarray) else ""
        notes.append(f"labels are not used: they are {type(odd).__name__}{shape}, where one whole number or word an item is needed")
        return None
    return np.array(plain)


def _known_labels(dataset: TorchDataset[Any]) -> np.ndarray | None:
    """The labels of a data set whose items are not read, where it has them."""
    if isinstance(dataset, Subset):
        inner = _known_labels(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices)]
    if isinstance(dataset, TensorDataset):
        found: Any = dataset.tensors[1] if len(dataset.tensors) > 1 and dataset.tensors[1].ndim == 1 else None
    else:
        found = next((getattr(dataset, key) for key in ("targets", "labels") if hasattr(dataset, key)), None)
        change = getattr(dataset, "target_transform", None)
        if found is not None and change is not None:
            found = [change(label) for label in (found.tolist() if isinstance(found, Tensor | np.ndarray) else found)]
    return None if found is None or len(found) != len(dataset) else np.asarray(found)  # type: ignore[arg-type]


def _are_of_items(known: np.ndarray, asked: list[tuple[int, Any]]) -> bool:
    """Whether the list of labels is what these items, (number, label), say."""
    try:
        return all(label is not None and bool(known[row] == np.asarray(label)) for row, label in asked)
    except ValueError:  # a label of several numbers
        return False


def _stacked(items: list[np.ndarray]) -> np.ndarray:
    return np.ma.stack(items) if any(isinstance(x, np.ma.MaskedArray) for x in items) else np.stack(items)


def _length(name: str, dataset: TorchDataset[Any]) -> int:
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(f"data {name!r} is {type(dataset).__name__} without a length; a map-style data set is needed") from error


def _item(name: str, dataset: TorchDataset[Any], index: int) -> tuple[Any, Any, Mapping[str, Any]]:
    """An item as (x, label or None, conditions by name)."""
    if not _length(name, dataset):
        raise ValueError(f"data {name!r} has no items; at least 2 are needed")
    item = dataset[index]
    if not isinstance(item, tuple | list):
        return item, None, {}
    cond = item[-1] if len(item) > 1 and isinstance(item[-1], Mapping) else {}
    return item[0], item[1] if len(item) > 1 and item[1] is not cond else None, cond


def _values(name: str, x: Any) -> np.ndarray:
    """A tensor, an array or a pillow image as an array, masks kept."""
    if isinstance(x, Image.Image):
        return pixels(x, f"data {name!r}")
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    values = np.asanyarray(x)
    if values.dtype.kind not in "buif" or values.ndim < 1:
        what = f"{values.dtype} values" if values.dtype.kind == "c" else f"type {type(x).__name__}"
        cure = ": real and imaginary part can be two channels" if values.dtype.kind == "c" else ""
        raise TypeError(f"data {name!r}: items of {what}; tensors or arrays of real numbers, or (x, label), are needed{cure}")
    return values
