from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data.anomalies import PAIRS
from sde_gen.data.assemble import Part, assemble
from sde_gen.data.dataset import Dataset
from sde_gen.data.registry import load_dataset
from sde_gen.data.source import Source, array_source

ARRAY = np.random.default_rng(0).integers(256, size=(100, 4, 5), dtype=np.uint8)


def test_indexing_is_that_of_the_tensor() -> None:
    source, whole = array_source(ARRAY, "x"), torch.from_numpy(ARRAY).float()
    assert source.shape == whole.shape and len(source) == 100 and source.nbytes == 8000
    index = torch.tensor([7, 3, 3, 99])
    for key in (index, slice(10, 40), 5, torch.empty(0, dtype=torch.int64)):
        assert torch.equal(source[key], whole[key]) and source[key].dtype == torch.float32
    assert torch.equal(source.tensor(), whole)
    assert torch.equal(source.subset(np.array([9, 2])).subset(slice(1, None)).tensor(), whole[[2]])
    doubled = source.map(lambda x: 2 * x).map(lambda x: x + 1)
    assert torch.equal(doubled[index], 2 * whole[index] + 1) and torch.equal(source[index], whole[index])


def test_a_bad_item_is_named_by_its_row() -> None:
    values = np.ones((20, 2))
    values[13, 1] = np.inf
    source = array_source(values, "file.npy").subset(np.arange(10, 20))
    with pytest.raises(ValueError, match=r"'file.npy': item 13 holds NaN"):
        source[torch.tensor([0, 3])]


def test_larger_than_memory_is_read_row_by_row_and_trains_on_everything() -> None:
    touched: list[int] = []

    def read(rows: np.ndarray) -> np.ndarray:
        touched.extend(rows.tolist())
        return ARRAY[rows]

    labels = np.arange(100) % 3
    dataset = assemble("x", Part(Source("x", (4, 5), read, np.arange(100)), labels), levels=256, in_memory=40 * 80)
    assert dataset.source is not None and len(dataset.source) == 90 and len(dataset.train) == 40
    assert dataset.test is not None and len(dataset.test) == 10
    assert 50 <= len(set(touched)) <= 50 + 2 * PAIRS, "only the sample, the held-out part and some pairs of neighbours have been read"
    items, classes = dataset.training
    assert isinstance(items, Source) and classes is not None and len(items) == len(classes) == 90
    assert set(items.rows.tolist()) | {row for row in range(100) if row not in items.rows} == set(range(100))
    assert torch.equal(classes, torch.from_numpy(labels)[items.rows])
    assert torch.equal(dataset.train, items[:40]), "a random part, as all are in a random order"
    assert dataset.train_labels is not None and torch.equal(dataset.train_labels, classes[:40])
    assert not np.array_equal(items.rows, np.sort(items.rows)) and items.rows[:40].max() > 60
    touched.clear()
    drawn, labelled = dataset.draw(5, seed=1)
    assert labelled is not None and len(touched) == 5 and drawn.shape == (5, 4, 5), "nothing else is read"
    for x, y in zip(drawn, labelled.tolist(), strict=True):
        assert y in (labels[(torch.from_numpy(ARRAY).float() == x).flatten(1).all(1).numpy()]).tolist()
    assert any("read batch by batch" in note for note in dataset.notes)
    small = assemble("x", Part(array_source(ARRAY, "x"), labels))
    assert small.source is None and small.training[0] is small.train
    assert torch.equal(small.train, items.tensor()), "the same split"


def test_the_split_is_fixed_disjoint_and_a_tenth_of_at_most_ten_thousand() -> None:
    column = np.arange(200_000.0)[:, None]
    dataset, again = (assemble("x", Part(array_source(column, "x")), limit=limit) for limit in (None, 50))
    assert dataset.test is not None and again.test is not None
    assert len(dataset.test) == 10_000 and torch.equal(dataset.test, again.test)
    assert torch.equal(torch.cat((dataset.train, dataset.test)).sort(0).values, torch.from_numpy(column).float())
    assert len(again.train) == 50 and torch.equal(again.train, dataset.train[:50])
    few = assemble("x", Part(array_source(column[:9], "x")))
    assert few.test is None and any("nothing held out" in note for note in few.notes)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (np.array([0.5, 1.0]), None, "label 0.5; labels must be whole numbers or words"),
        (np.array([[0], [1]]), None, "one whole number or word an item"),
        (np.array([0, 1]), np.array([2, 0]), "held-out label 2 is not among"),
        (np.array(["a", "b"]), np.array(["b", "c"]), "held-out label c is not among"),
    ],
)
def test_labels_that_are_none(train: np.ndarray, test: np.ndarray | None, message: str) -> None:
    x = array_source(np.arange(4.0).reshape(2, 2), "x")
    with pytest.raises(ValueError, match=message):
        assemble("x", Part(x, train), Part(x, test))


def test_labels_are_numbered_in_the_order_of_their_values() -> None:
    x = array_source(np.arange(6.0).reshape(3, 2), "x")
    dataset = assemble("x", Part(x, np.array([40, -7, 40])), Part(x, np.array([-7, -7, 40])))
    by_value = dict(zip(dataset.train[:, 0].tolist(), dataset.train_labels.tolist(), strict=True))  # type: ignore[union-attr]
    assert by_value == {0.0: 1, 2.0: 0, 4.0: 1} and dataset.classes == 2
    assert dataset.test is not None and dataset.test_labels is not None
    assert dict(zip(dataset.test[:, 0].tolist(), dataset.test_labels.tolist(), strict=True)) == {0.0: 0, 2.0: 0, 4.0: 1}
    assert any("2 classes, numbered from 0: -7, 40" in note for note in dataset.notes)
    plain = assemble("x", Part(x, np.array([2, 0, 1])), Part(x))
    assert len(plain.notes) == 1 and "the held-out part has no labels" in plain.notes[0] and plain.train_labels is not None
    assert dict(zip(plain.train[:, 0].tolist(), plain.train_labels.tolist(), strict=True)) == {0.0: 2, 2.0: 0, 4.0: 1}


def test_classes_without_a_training_item_are_said(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(100, 3)).astype("f4"), np.repeat(np.array([f"k{k}" for k in range(10)]), 10)
    np.savez(tmp_path / "s.npz", x=x, y=y)
    absent = "have no training item, so that a network learns nothing of them: "
    tail = load_dataset(tmp_path / "s.npz", split="tail")
    assert sum(f"1 of 10 classes {absent}k9" in note for note in tail.notes) == 1
    few = load_dataset(tmp_path / "s.npz", limit=2)
    assert any(f"8 of 10 classes {absent}k" in note for note in few.notes) and few.classifiable
    assert not any(absent in note for note in load_dataset(tmp_path / "s.npz").notes)
    digits = load_dataset("digits", limit=2)
    assert any(" of 10 classes have no training item" in note for note in digits.notes)


def test_a_network_with_labels_is_not_measured_on_items_without() -> None:
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    data = Dataset("x", x, x, torch.arange(6) % 2, None, classes=2)
    assert data.held_out(["label"]) == (None, {}) and data.held_out([])[0] is x and data.classifiable
    assert not Dataset("x", x, x).classifiable


def test_options_of_other_data_are_refused() -> None:
    for arguments, message in [
        ({"name": "digits", "size": 16}, "takes no size"),
        ({"name": "digits", "split": "tail"}, "takes no split: for the user's own files"),
        ({"name": "x.csv", "axes": "NC"}, "axes='NC' is for arrays"),
        ({"name": "x.npy", "size": 16}, "size=16 is for images"),
        ({"name": "x.npy", "label_column": "a"}, "label_column='a' is for tables"),
        ({"name": "pictures/", "size": 0}, "size 0"),
        ({"name": "x.csv", "limit": 0}, "limit 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_dataset(**arguments)  # type: ignore[arg-type]


def test_masked_cells_are_refused_or_left_out_but_never_read() -> None:
    values = np.ma.array(np.arange(40.0).reshape(20, 2), mask=np.zeros((20, 2), bool), fill_value=9.97e36)
    values[3, 1] = values[11, 0] = np.ma.masked
    values.data[3, 1] = 9.97e36
    with pytest.raises(ValueError, match=r"item 3 has masked cells; missing='nan' \(--missing nan\) leaves such items out"):
        assemble("x", Part(array_source(values, "x")))
    dataset = assemble("x", Part(array_source(values, "x")), missing="nan")
    assert len(dataset.train) == 17 and float(dataset.train.max()) < 40
    assert any("2 of 20 items are left out" in note for note in dataset.notes)


def test_float64_is_kept_where_float32_would_lose_the_values() -> None:
    rng = np.random.default_rng(0)
    columns = {
        "metres": (-234567 + 0.02 * rng.normal(size=(400, 1)), torch.float64),
        "counts": (1e8 + np.arange(400.0)[:, None], torch.float64),
        "identifiers": (rng.integers(1 << 25, 1 << 40, size=(400, 1)), torch.float64),
        "plain": (5 + 2 * rng.normal(size=(400, 1)), torch.float32),
        "years": (rng.integers(1990, 2020, size=(400, 1)), torch.float32),
        "single": ((1000 + 1e-3 * rng.normal(size=(400, 1))).astype(np.float32), torch.float32),
    }
    for name, (values, dtype) in columns.items():
        dataset = assemble(name, Part(array_source(values, name)))
        lazy = assemble(name, Part(array_source(values, name)), in_memory=4 * 100)
        assert dataset.test is not None and dataset.train.dtype == dataset.test.dtype == lazy.train.dtype == dtype, name
        assert lazy.source is not None and lazy.source[:3].dtype == dtype and lazy.draw(7, 0)[0].dtype == dtype
        both = torch.cat((dataset.train, dataset.test)).double().flatten().sort().values
        whole = torch.from_numpy(np.sort(values.astype(np.float64).flatten()))
        assert torch.equal(both, whole if dtype == torch.float64 else whole.float().double()), name
        assert any("kept in float64" in note for note in dataset.notes) == (dtype == torch.float64), name
