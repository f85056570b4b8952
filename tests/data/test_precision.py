import numpy as np
import pytest
import torch

import sde_gen
from sde_gen.data import as_items, needs_float64


@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor])
def test_plain_data_become_float32(kind) -> None:  # type: ignore[no-untyped-def]
    values = [[1.5, 2.0], [3.0, 4.25], [5.0, 7.0]]
    found = as_items(kind(values))
    assert found.dtype == torch.float32 and found.tolist() == values
    assert as_items(kind([[1, 2], [3, 4]])).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert as_items(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_values_that_float32_would_lose_stay_float64(kind) -> None:  # type: ignore[no-untyped-def]
    far = -234567 + 0.02 * np.random.default_rng(0).normal(size=(50, 2))
    assert as_items(kind(far)).dtype == torch.float64 and len(as_items(kind(far)).unique()) == 100
    whole = (1 << 40) + np.arange(20).reshape(10, 2)
    assert as_items(kind(whole)).dtype == torch.float64 and as_items(kind(whole))[3, 1] == whole[3, 1]
    images = np.random.default_rng(0).normal(size=(10, 2, 3, 3))
    images[:, 1] += 1e6
    assert as_items(kind(images)).dtype == torch.float64


def test_what_does_not_need_float64() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    assert not needs_float64(torch.from_numpy(5000 + x)) and needs_float64(torch.from_numpy(50_000 + x))
    assert not needs_float64(torch.from_numpy(50_000 + x).float()), "the digits are gone already"
    assert not needs_float64(torch.full((5, 2), 1e9 + 0.1, dtype=torch.float64)), "nothing varies"
    assert not needs_float64(torch.from_numpy(3e7 + 1e7 * x)) and needs_float64(torch.from_numpy((3e7 + 1e7 * x).round()))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.ma.array([[1.0, 2.0], [3.0, 9.97e36]], mask=[[0, 0], [0, 1]]), ValueError, "data: 1 of 4 cells are masked"),
        (np.ones((3, 2)) * 1j, TypeError, "data: complex128 values; real numbers are needed"),
        (torch.ones(3, 2, dtype=torch.complex64), TypeError, "data: torch.complex64 values"),
        ([["a", "b"]], TypeError, "data: values of type <U1; numbers"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(values, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message) as caught:
        as_items(values)
    assert "\n" not in str(caught.value)


def test_a_mask_that_hides_nothing_is_no_fault() -> None:
    assert as_items(np.ma.array([[1.0, 2.0]], mask=False)).tolist() == [[1.0, 2.0]]


def test_columns_far_from_zero_are_trained_on_and_sampled_with_all_their_values() -> None:
    far = -234567 + 0.02 * np.random.default_rng(0).normal(size=(200, 2))
    model = sde_gen.train(far, network="mlp", steps=3, batch=32, network_options={"width": 8, "depth": 1}, progress=False, device="cpu")
    x = sde_gen.sample(model, (50, 2), "ddim", steps=3, progress=False).x
    assert x.dtype == torch.float64 and len(x.unique()) > 90 and float((x + 234567).abs().max()) < 1
    assert {value.dtype for value in model.parameters()} == {torch.float32}
