from typing import Any

import numpy as np
import pytest
import torch

from sde_gen.data import check_labels


@pytest.mark.parametrize("kind", ["list", "int8", "uint8", "int64", "bool", "tensor int32", "tensor uint8", "masked"])
def test_whole_numbers_of_any_type_are_taken(kind: str) -> None:
    plain = [0, 1, 1]
    labels: Any = plain
    if kind.startswith("tensor"):
        labels = torch.tensor(plain, dtype=getattr(torch, kind.split()[1]))
    elif kind == "masked":
        labels = np.ma.array(plain, mask=[False] * 3)
    elif kind != "list":
        labels = np.array(plain, dtype=kind)
    found = check_labels(labels, 3, 2)
    assert found.dtype == torch.int64 and found.tolist() == plain
    assert check_labels(labels, 3).tolist() == plain


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.zeros(900, int), ValueError, r"labels have shape \(900,\) for 300 items; \(300,\) is needed"),
        (torch.zeros(300, 1, dtype=torch.long), ValueError, r"shape \(300, 1\) for 300 items"),
        (torch.tensor([0, -1] * 150), ValueError, r"labels span -1\.\.0; 0\.\.9 is allowed"),
        (np.array([0, 10] * 150), ValueError, r"labels span 0\.\.10; 0\.\.9 is allowed"),
        (torch.zeros(300), TypeError, "labels are of type torch.float32; whole numbers"),
        (np.zeros(300), TypeError, "labels are of type float64; whole numbers"),
        (["cat"] * 300, TypeError, "labels are of type <U3; whole numbers"),
        ([[0], [0, 1]], ValueError, "lists of different lengths"),
        (np.ma.array([0] * 300, mask=[True] + [False] * 299), TypeError, "1 masked entries"),
        (5, ValueError, r"shape \(\) for 300"),
    ],
)
def test_bad_labels_are_one_clear_line(labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        check_labels(labels, 300, 10)
    assert "\n" not in str(caught.value)


def test_the_message_names_what_was_checked() -> None:
    with pytest.raises(ValueError, match=r"held-out labels span -1\.\.-1; 0 and more is allowed"):
        check_labels([-1], 1, what="held-out labels")
