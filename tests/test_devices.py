import pytest
import torch

from sde_gen.devices import find_device, float32_products


def precision() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.mark.parametrize(("tf32", "inside"), [(True, "tf32"), (False, "ieee")])
def test_products_have_the_precision_asked_for_and_then_that_of_before(tf32: bool, inside: str) -> None:
    before = precision()
    with pytest.raises(KeyError), float32_products(tf32):
        assert precision() == (inside, inside)
        raise KeyError
    assert precision() == before
    assert isinstance(torch.backends.cuda.matmul.allow_tf32, bool)  # the older names still answer


def test_a_device_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"^unknown device 'gpu'; try cpu, cuda or cuda:0$"):
        find_device("gpu")
