import pytest
import torch

from sde_gen.shapes import expand_as


@pytest.mark.parametrize("shape", [(4, 2), (4,), (4, 1, 8, 8), (4, 3, 2, 2, 2)])
def test_one_number_for_each_sample(shape):
    x, t = torch.ones(shape), torch.arange(4.0)
    product = expand_as(t, x) * x
    assert product.shape == shape
    for i in range(4):
        assert (product[i] == i).all()


def test_scalar_and_single():
    x = torch.ones(3, 2)
    assert expand_as(torch.tensor(2.0), x).shape == ()
    assert (expand_as(torch.tensor([2.0]), x) * x).shape == (3, 2)


@pytest.mark.parametrize("shape", [(2,), (3, 1), (3, 2), (0,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="scalar or one number for each of the 3 samples"):
        expand_as(torch.zeros(shape), torch.ones(3, 2))
