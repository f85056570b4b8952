import dataclasses

import pytest
import torch

from sde_gen.data import Dataset, validate

X = torch.arange(12.0).reshape(6, 2)
Y = torch.tensor([0, 1, 0, 1, 0, 1])


def test_valid_data_is_returned_as_it_is():
    dataset = Dataset("mine", X, X[:2], Y, Y[:2], classes=2)
    assert validate(dataset) is dataset
    assert dataset.shape == (2,)
    assert validate(Dataset("mine", X)).test is None


def test_a_data_set_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Dataset("mine", X).name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Dataset("mine", X[:1]), "1 training item"),
        (Dataset("mine", X[:1].repeat(5, 1)), "constant data"),
        (Dataset("mine", torch.zeros(5, 1, 3, 3)), "constant data"),
        (Dataset("mine", torch.where(X == 3, torch.nan, X)), "1 NaN or infinite"),
        (Dataset("mine", X, torch.where(X > 9, torch.inf, X)), "held-out data holds 2 NaN or infinite"),
        (Dataset("mine", X[:0]), "non-empty float32"),
        (Dataset("mine", X.half()), "torch.float16"),
        (Dataset("mine", X.double(), X), "one shape and type is needed"),
        (Dataset("mine", X[:, 0]), "shape"),
        (Dataset("mine", X, X[:, :1]), "one shape and type is needed"),
        (Dataset("mine", X, train_labels=Y), "number of classes"),
        (Dataset("mine", X, train_labels=Y, classes=1), r"0\.\.1; 0\.\.0 is allowed"),
        (Dataset("mine", X, train_labels=Y[:3], classes=2), r"\(3,\) for 6 items; \(6,\) is needed"),
        (Dataset("mine", X, train_labels=Y.float(), classes=2), "int64"),
        (Dataset("mine", X, test_labels=Y, classes=2), "without held-out data"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(dataset, message):
    with pytest.raises(ValueError, match=message) as caught:
        validate(dataset)
    assert "\n" not in str(caught.value) and "'mine'" in str(caught.value)


def test_a_draw_is_random_seeded_and_keeps_labels_with_their_items() -> None:
    x = torch.arange(400.0).reshape(200, 2)
    y = torch.arange(200) // 100
    dataset = Dataset("mine", x, x[:30] + 0.5, y, torch.arange(30) % 2, classes=2)
    items, labels = dataset.draw(60, seed=3)
    assert labels is not None and torch.equal(y[(items[:, 0] / 2).long()], labels) and len(items.unique()) == 120
    assert 15 < int(labels.sum()) < 45, "sorted by class, and yet a fair draw"
    again, _ = dataset.draw(20, seed=3)
    assert torch.equal(again, items[:20]) and not torch.equal(dataset.draw(20, seed=4)[0], again)
    held, held_labels = dataset.draw(1000, seed=0, part="test")
    assert torch.equal(held.sort(0).values, x[:30] + 0.5) and held_labels is not None
    assert torch.equal(((held[:, 0] - 0.5) / 2).long() % 2, held_labels)
    assert Dataset("mine", x).draw(5, 0)[1] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), r"draw\(0, seed=1, part='train'\)"),
        ((5, -1), "seed >= 0"),
        ((5, 1, "both"), "part 'train' or 'test'"),
        ((5, 1, "test"), "'mine' has no held-out part to draw from"),
    ],
)
def test_draws_that_cannot_be(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset("mine", X).draw(*arguments)
