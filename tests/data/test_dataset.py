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
        (Dataset("mine", X.double()), "torch.float64"),
        (Dataset("mine", X[:, 0]), "shape"),
        (Dataset("mine", X, X[:, :1]), "one shape is needed"),
        (Dataset("mine", X, train_labels=Y), "number of classes"),
        (Dataset("mine", X, train_labels=Y, classes=1), r"0\.\.1; 0\.\.0 is allowed"),
        (Dataset("mine", X, train_labels=Y[:3], classes=2), r"int64 \(6,\)"),
        (Dataset("mine", X, train_labels=Y.float(), classes=2), "int64"),
        (Dataset("mine", X, test_labels=Y, classes=2), "without held-out data"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(dataset, message):
    with pytest.raises(ValueError, match=message) as caught:
        validate(dataset)
    assert "\n" not in str(caught.value) and "'mine'" in str(caught.value)
