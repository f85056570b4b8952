from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

from sde_gen.data import from_torch

X = torch.randn(40, 2, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 4


class Items(TorchDataset[Any]):
    def __init__(self, items: list[Any], targets: list[int] | None = None) -> None:
        self.items = items
        self.asked: list[int] = []
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.items[index]


@pytest.mark.parametrize("form", ["tensor", "pair", "array", "bfloat16", "one-tuple"])
def test_items_are_stacked(form: str) -> None:
    if form in ("pair", "one-tuple"):
        dataset: TorchDataset[Any] = TensorDataset(X, Y) if form == "pair" else TensorDataset(X)
    else:
        dataset = Items([x.numpy() if form == "array" else x.to(torch.bfloat16) if form == "bfloat16" else x for x in X])
    found = from_torch(dataset, limit=30, value_range=(-3.0, 3.0))
    assert found.train.shape == (30, 2, 5) and found.test is not None and len(found.test) == 4 and found.value_range == (-3.0, 3.0)
    assert found.name == type(dataset).__name__
    expected = X.to(torch.bfloat16).float() if form == "bfloat16" else X
    assert torch.isin(found.train[:, 0, 0], expected[:, 0, 0]).all()
    if form == "pair":
        assert found.classes == 4 and found.train_labels is not None
        where = (found.train[:, None, 0, 0] == X[None, :, 0, 0]).int().argmax(1)
        assert torch.equal(found.train_labels, Y[where])
    else:
        assert found.train_labels is None


def test_a_held_out_part_of_its_own_and_pictures() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(12, 6, 5, 3), dtype=np.uint8)
    pictures = Items([(Image.fromarray(p), i % 2) for i, p in enumerate(pixels)])
    found = from_torch(pictures, test=pictures, name="mine")
    assert torch.equal(found.train, torch.from_numpy(pixels).permute(0, 3, 1, 2).float()) and found.levels == 256
    assert found.test is not None and torch.equal(found.test, found.train) and found.classes == 2 and found.name == "mine"


def test_a_large_one_is_read_when_it_is_asked_for() -> None:
    dataset = Items([(x, int(y)) for x, y in zip(X, Y, strict=True)], targets=Y.tolist())
    found = from_torch(dataset, in_memory=4 * 10 * 12)
    assert found.source is not None and len(found.source) == 36 and len(found.train) == 12
    assert len(set(dataset.asked)) == 12 + 4, "the sample and the held-out part"
    items, labels = found.training
    assert (
        labels is not None
        and torch.equal(labels, Y[found.source.rows])
        and torch.equal(items[torch.tensor([5])], X[found.source.rows[[5]]])
    )


def test_what_cannot_be_used() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(TypeError, match="Endless without a length; a map-style data set is needed"):
        from_torch(Endless())
    with pytest.raises(TypeError, match="items of type str"):
        from_torch(Items(["a", "b"]))
    with pytest.raises(ValueError, match="no items"):
        from_torch(Items([]))
    with pytest.raises(ValueError, match=r"item 1 has shape \(4,\), item 0 \(3,\)"):
        from_torch(Items([torch.zeros(3), torch.ones(4)]))
    with pytest.raises(ValueError, match="'Items': item 3 holds NaN"):
        from_torch(Items([torch.full((2,), float(i if i != 3 else "nan")) for i in range(8)]))
