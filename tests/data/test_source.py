import numpy as np
import pytest
import torch

from sde_gen.data.assemble import Part, assemble
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


@pytest.mark.parametrize(("layout", "item"), [("one channel", (1, 4, 5)), ("channels last", (5, 4)), ("as is", (4, 5))])
def test_layouts(layout: str, item: tuple[int, ...]) -> None:
    source = array_source(ARRAY, "x", layout)
    assert source.item == item and source[:3].shape == (3, *item)
    expected = {"one channel": ARRAY[:, None], "channels last": ARRAY.transpose(0, 2, 1), "as is": ARRAY}[layout]
    assert torch.equal(source.tensor(), torch.from_numpy(expected.copy()).float())


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
    assert len(set(touched)) == 50, "only the sample and the held-out part have been read"
    items, classes = dataset.training
    assert isinstance(items, Source) and classes is not None and len(items) == len(classes) == 90
    assert set(items.rows.tolist()) | {row for row in range(100) if row not in items.rows} == set(range(100))
    assert torch.equal(classes, torch.from_numpy(labels)[items.rows])
    spaced = items.evenly_spaced(40)
    assert torch.equal(dataset.train, items[torch.from_numpy(spaced)]) and np.diff(spaced).max() <= 3
    assert dataset.train_labels is not None and torch.equal(dataset.train_labels, classes[spaced])
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
    assert dataset.train_labels is not None and dataset.train_labels.tolist() == [1, 0, 1] and dataset.classes == 2
    assert dataset.test_labels is not None and dataset.test_labels.tolist() == [0, 0, 1]
    assert any("2 classes, numbered from 0: -7, 40" in note for note in dataset.notes)
    plain = assemble("x", Part(x, np.array([2, 0, 1])), Part(x))
    assert plain.notes == () and plain.train_labels is not None and plain.train_labels.tolist() == [2, 0, 1]


def test_options_of_other_data_are_refused() -> None:
    for arguments, message in [
        ({"name": "digits", "size": 16}, "takes no size"),
        ({"name": "x.npy", "size": 16}, "size=16 is for images"),
        ({"name": "x.npy", "label_column": "a"}, "label_column='a' is for tables"),
        ({"name": "pictures/", "size": 0}, "size 0"),
        ({"name": "x.csv", "limit": 0}, "limit 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_dataset(**arguments)  # type: ignore[arg-type]
