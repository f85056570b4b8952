from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, Subset, TensorDataset

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
    whole = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    where = (found.train[:, None] == whole).flatten(2).all(2).int().argmax(1)
    assert found.levels == 256 and torch.equal(whole[where], found.train) and len(where.unique()) == 12
    assert found.train_labels is not None and torch.equal(found.train_labels, where % 2)
    assert found.test is not None and torch.equal(found.test, found.train) and found.classes == 2 and found.name == "mine"


def test_a_large_one_is_read_when_it_is_asked_for() -> None:
    dataset = Items([(x, int(y)) for x, y in zip(X, Y, strict=True)], targets=Y.tolist())
    found = from_torch(dataset, in_memory=4 * 10 * 12)
    assert found.source is not None and len(found.source) == 36 and len(found.train) == 12
    assert len(set(dataset.asked)) < 40, "the sample, the held-out part and some pairs of neighbours"
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


def test_pictures_of_other_modes() -> None:
    grey = np.random.default_rng(0).integers(256, size=(12, 6, 5), dtype=np.uint8)
    colours = [Image.fromarray(x).convert("RGB").quantize(4) for x in grey]
    found = from_torch(Items(colours))
    assert found.shape == (3, 6, 5) and found.levels == 256, "a palette's colours, not its indices"
    assert torch.isin(found.train, torch.from_numpy(np.stack([np.asarray(p.convert("RGB")) for p in colours])).float()).all()
    assert from_torch(Items([Image.fromarray(x > 99) for x in grey])).levels == 2
    assert from_torch(Items([Image.fromarray(x.astype(np.uint16)) for x in grey])).levels == 65536
    assert from_torch(Items([Image.fromarray(x.astype(np.float32)) for x in grey])).levels is None
    with pytest.raises(ValueError, match="data 'Items': mode RGBA"):
        from_torch(Items([Image.fromarray(x).convert("RGBA") for x in grey]))


def test_axes_of_items() -> None:
    rng = np.random.default_rng(0)
    bytes_last = [rng.integers(256, size=(8, 9, 3), dtype=np.uint8) for _ in range(20)]
    for items in (bytes_last, [torch.from_numpy(x) for x in bytes_last]):
        found = from_torch(Items(items))
        assert found.shape == (3, 8, 9) and found.levels == 256 and "axes NHWC, channels put first" in found.notes[0]
    deep = [rng.normal(size=(16, 12, 12)).astype(np.float32) for _ in range(20)]
    with pytest.raises(ValueError, match=r"can be read in several ways: .*--axes NCHW"):
        from_torch(Items(deep))
    assert from_torch(Items(deep), axes="NDHW").shape == (1, 16, 12, 12)
    tensors = from_torch(Items([torch.from_numpy(x) for x in deep]))
    assert tensors.shape == (16, 12, 12) and "axes NCHW" in tensors.notes[0], "PyTorch's own order"
    lazy = from_torch(Items([torch.from_numpy(x) for x in bytes_last]), in_memory=216 * 4 * 8)
    assert lazy.source is not None and lazy.source.item == (3, 8, 9)
    with pytest.raises(ValueError, match="N must be first"):
        from_torch(Items(deep), axes="CHWN")


def test_one_item_of_bytes_does_not_make_a_float_set_levels() -> None:
    items: list[Any] = [np.zeros(4, np.uint8)] + [np.random.default_rng(i).random(4) for i in range(19)]
    for given in (items, items[::-1]):
        found = from_torch(Items(given))
        assert found.levels is None and found.value_range is None and "float64, uint8, continuous" in found.notes[0]
    with pytest.raises(ValueError, match="items of types uint8 and float64; one type is needed"):
        from_torch(Items(items), in_memory=4 * 4 * 8)


def test_labels_do_not_vanish_without_a_word() -> None:
    pairs = [(x, int(y)) for x, y in zip(X, Y, strict=True)]
    with pytest.raises(ValueError, match="item 7 has no label, 39 others have one; all or none"):
        from_torch(Items([*pairs[:7], pairs[7][0], *pairs[8:]]))
    found = from_torch(Items([(x, torch.eye(4)[y]) for x, y in pairs]))
    assert found.classes is None and any(r"labels are not used: they are Tensor of shape (4,)" in note for note in found.notes)
    lazy = from_torch(Items(pairs), in_memory=4 * 10 * 12)
    assert lazy.classes is None and any("no labels: they would have to be read item by item" in note for note in lazy.notes)
    for dataset in (TensorDataset(X, Y), Subset(Items(pairs, targets=Y.tolist()), list(range(39, -1, -1)))):
        lazy = from_torch(dataset, in_memory=4 * 10 * 12)
        items, labels = lazy.training
        assert lazy.classes == 4 and labels is not None
        where = (items[torch.arange(36)][:, None, 0, 0] == X[None, :, 0, 0]).int().argmax(1)
        assert torch.equal(labels, Y[where])


def test_labels_that_a_data_set_changes_are_those_of_its_items() -> None:
    class Halved(Items):
        def __getitem__(self, index: int) -> Any:
            x, label = super().__getitem__(index)
            return x, label // 2

    dataset = Halved([(x, int(y)) for x, y in zip(X, Y, strict=True)], targets=Y.tolist())
    assert from_torch(dataset).classes == 2
    lazy = from_torch(dataset, in_memory=4 * 10 * 12)
    assert lazy.classes is None and any("list of them is not what its items say" in note for note in lazy.notes)
    dataset.target_transform = lambda label: label // 2  # type: ignore[attr-defined]
    lazy = from_torch(dataset, in_memory=4 * 10 * 12)
    assert lazy.classes == 2 and lazy.source is not None and torch.equal(lazy.training[1], Y[lazy.source.rows] // 2)  # type: ignore[arg-type]


def test_masked_and_complex_items() -> None:
    masked = [np.ma.array([1.0 * i, 2.0 * i % 7], mask=[False, i == 3], fill_value=9.97e36) for i in range(20)]
    with pytest.raises(ValueError, match=r"item 3 has masked cells; missing='nan'"):
        from_torch(Items(masked))
    found = from_torch(Items(masked), missing="nan")
    assert (
        found.test is not None and len(found.train) + len(found.test) == 19 and not torch.isin(found.train[:, 0], torch.tensor(3.0)).any()
    )
    with pytest.raises(TypeError, match=r"items of complex128 values.*two channels"):
        from_torch(Items([np.array([1 + 2j, 3]) for _ in range(4)]))
