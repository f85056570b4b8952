"""Operators on tensors of any rank, and their noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_gen.inverse import (
    Blur,
    Crop,
    Downsample,
    FourierMask,
    Function,
    Gaussian,
    Grey,
    Mask,
    Matrix,
    Measurement,
    Noise,
    Operator,
    Poisson,
    Quantised,
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FREQUENCIES = torch.zeros(6, 8, dtype=torch.bool)
FREQUENCIES[:2, :3] = True
LINEAR: dict[str, tuple[Operator, tuple[int, ...], tuple[int, ...]]] = {
    "matrix": (Matrix(numbers(5, 12)), (12,), (5,)),
    "matrix of images": (Matrix(numbers(5, 12), (3, 2, 2)), (3, 2, 2), (5,)),
    "mask": (Mask(numbers(3, 4) > 0), (3, 4), (3, 4)),
    "box": (Mask.box((3, 6, 8), (2, 4)), (3, 6, 8), (3, 6, 8)),
    "outside": (Mask.box((3, 6, 8), 3, outside=True), (3, 6, 8), (3, 6, 8)),
    "random mask": (Mask.random((3, 6, 8), 0.3), (3, 6, 8), (3, 6, 8)),
    "grey": (Grey(), (3, 4, 5), (1, 4, 5)),
    "weighted grey": (Grey((0.3, 0.6, 0.1)), (3, 4), (1, 4)),
    "downsample": (Downsample(2), (2, 4, 6, 8), (2, 2, 3, 4)),
    "blur": (Blur(1.5), (2, 5, 7), (2, 5, 7)),
    "frequencies": (FourierMask(FREQUENCIES), (2, 6, 8), (2, 6, 8, 2)),
    "crop": (Crop((2, 6)), (3, 9), (3, 4)),
    "crop of images": (Crop((1, 3), (0, 4)), (2, 5, 6), (2, 2, 4)),
    "function": (Function(lambda x: x.cumsum(-1), linear=True), (2, 6), (2, 6)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_the_adjoint_and_the_matrix_are_the_operator_s(name: str) -> None:
    operator, shape, measured = LINEAR[name]
    x = numbers(4, *shape, seed=1)
    clean = Measurement(operator, Gaussian(0.1)).clean(x)
    assert tuple(clean.shape[1:]) == measured
    y = numbers(4, *measured, seed=2)
    torch.testing.assert_close((clean * y).flatten(1).sum(1), (x * operator.adjoint(y, shape)).flatten(1).sum(1))
    torch.testing.assert_close(clean.flatten(1), x.flatten(1) @ operator.matrix(shape).T)
    assert operator.data_shape(measured) in (None, shape)
    narrow = operator(x.float())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), clean, rtol=1e-5, atol=1e-5)


def test_what_operators_mean() -> None:
    x = torch.arange(48.0).reshape(1, 1, 6, 8)
    assert Downsample(2)(x)[0, 0, 0].tolist() == [4.5, 6.5, 8.5, 10.5]
    torch.testing.assert_close(Blur(2.0)(torch.ones(1, 2, 5, 6)), torch.ones(1, 2, 5, 6))
    impulse = torch.zeros(1, 1, 31)
    impulse[0, 0, 15] = 1
    spread = Blur(2.0)(impulse)[0, 0]
    assert float((spread * (torch.arange(31) - 15) ** 2).sum()) == pytest.approx(4.0, rel=0.01)
    assert Grey((1.0, 2.0))(torch.ones(1, 2, 3)).tolist() == [[[3.0, 3.0, 3.0]]]
    assert FourierMask(torch.ones(6, 8, dtype=torch.bool))(x).square().sum() == pytest.approx(float(x.square().sum()))
    hidden = Mask.box((1, 6, 8), 2).mask
    assert int((~hidden).sum()) == 4 and not bool(hidden[0, 2:4, 3:5].any())
    assert int(Mask.random((3, 6, 8), 0.25).mask.sum()) == 3 * 36
    assert Crop((2, 5))(torch.arange(9.0)[None]).tolist() == [[2.0, 3.0, 4.0]]


NOISES: dict[str, tuple[Noise, Callable[[Tensor], Tensor]]] = {
    "gaussian": (Gaussian(0.7), lambda m: torch.full_like(m, 0.49)),
    "gaussian by entry": (Gaussian(torch.tensor([0.5, 2.0])), lambda m: torch.tensor([0.25, 4.0]).expand(m.shape)),
    "poisson": (Poisson(4.0), lambda m: m / 4),
    "quantised": (Quantised(0.5, 0.4), lambda m: torch.full_like(m, 0.16 + 0.25 / 12)),
}


@pytest.mark.parametrize("name", NOISES)
def test_noise_has_the_variance_that_it_says(name: str) -> None:
    noise, variance = NOISES[name]
    clean = torch.tensor([3.0, 5.25]).expand(20000, 2)
    y = Measurement(Mask(), noise).simulate(clean, seed=3)
    torch.testing.assert_close(y.mean(0), clean[0], rtol=0, atol=0.06)
    torch.testing.assert_close(y.var(0), variance(clean[0]), rtol=0.05, atol=0)
    torch.testing.assert_close(noise.variance(y).expand(y.shape).mean(0), variance(clean[0]), rtol=0.05, atol=0)
    part = Measurement(Mask(), noise).simulate(clean[5:9], seed=3, index_offset=5)
    assert torch.equal(part, y[5:9])


@pytest.mark.parametrize(
    ("noise", "values"),
    [
        (Poisson(2.0), torch.arange(400.0) / 2),
        (Quantised(0.5, 0.4), 0.5 * torch.arange(-100.0, 100.0)),
        (Quantised(2.0, 0.4, -1.0, 1.0), torch.tensor([-1.0, 1.0])),
        (Quantised(0.25, 2.0, 0.0, 0.75), 0.25 * torch.arange(4.0)),
    ],
)
def test_probabilities_sum_to_one_and_are_those_of_the_simulation(noise: Noise, values: Tensor) -> None:
    clean = torch.tensor([0.3, 1.7, 6.0], dtype=torch.float64)
    y = values.double()[:, None].expand(len(values), 3)
    measurement = Measurement(Mask(), noise)
    probability = torch.stack([measurement.log_prob(y[:, k : k + 1], clean[k].expand(len(y), 1)).exp() for k in range(3)])
    torch.testing.assert_close(probability.sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-9, atol=0)
    drawn = measurement.simulate(clean[:2].expand(50000, 2), seed=1)
    for k in range(2):
        share = (drawn[:, k, None] == values).double().mean(0)
        torch.testing.assert_close(share, probability[k], rtol=0, atol=0.01)


def test_the_likelihood_of_a_far_bin_is_finite_and_has_a_gradient() -> None:
    x = torch.tensor([[40.0], [-40.0], [0.1]], requires_grad=True)
    found = Measurement(Mask(), Quantised(2.0, 1.0, -1.0, 1.0)).log_prob(torch.tensor([[-1.0], [1.0], [1.0]]), x)
    gradient = torch.autograd.grad(found.sum(), x)[0]
    found = found.detach()
    assert bool(torch.isfinite(found).all()) and float(found[0]) == pytest.approx(-(40**2) / 2, rel=0.01)
    assert float(gradient[0]) == pytest.approx(-40, rel=0.01) and float(gradient[1]) == pytest.approx(40, rel=0.01)


def test_gaps_count_nowhere() -> None:
    measurement = Measurement(Mask(torch.tensor([True, True, False])), Gaussian(0.5))
    x = numbers(4, 3).requires_grad_()
    y = measurement.simulate(x, seed=2)
    assert bool(torch.isnan(y[:, 2]).all()) and not bool(torch.isnan(y[:, :2]).any())
    y[1, 0] = math.nan
    found = measurement.log_prob(y, x)
    normal = torch.distributions.Normal(x.detach(), 0.5).log_prob(torch.nan_to_num(y))
    normal[:, 2] = 0
    normal[1, 0] = 0
    torch.testing.assert_close(found.detach(), normal.sum(1))
    gradient = torch.autograd.grad(found.sum(), x)[0]
    assert bool(torch.isfinite(gradient).all()) and float(gradient[:, 2].abs().max()) == 0 == float(gradient[1, 0])


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "negative std": (lambda: Gaussian(-0.1), ValueError, "must be finite and not negative, got -0.1"),
    "some 0": (lambda: Gaussian(torch.tensor([0.0, 1.0])), ValueError, "or 0 for all"),
    "no density": (lambda: Measurement(Mask(), Gaussian(0.0)).log_prob(numbers(2, 3), numbers(2, 3)), ValueError, "no density"),
    "gain": (lambda: Poisson(0.0), ValueError, "gain must be"),
    "float mask": (lambda: Mask(torch.ones(3)), TypeError, "mask must be bool.*got torch.float32"),
    "empty mask": (lambda: Mask(torch.zeros(3, dtype=torch.bool)), ValueError, "nothing is measured"),
    "mask of another shape": (lambda: Mask(torch.ones(3) > 0)(numbers(2, 4)), ValueError, r"mask of shape \(3,\) does not fit.*\(4,\)"),
    "large box": (lambda: Mask.box((1, 8, 8), 8), ValueError, r"smaller than the spatial axes \(8, 8\)"),
    "matrix": (lambda: Matrix(numbers(3)), ValueError, r"must be a floating-point tensor \(M, D\), got \(3,\)"),
    "matrix and data": (lambda: Matrix(numbers(2, 5))(numbers(2, 4)), ValueError, r"samples of shape \(5,\), got \(4,\)"),
    "factor": (lambda: Downsample(3)(numbers(2, 1, 8)), ValueError, r"axes that it divides, got \(1, 8\)"),
    "crop": (lambda: Crop((2, 9))(numbers(2, 1, 8)), ValueError, "do not lie inside"),
    "operator": (lambda: Measurement(torch.nn.Linear(2, 2), Gaussian(1.0)), TypeError, "operator must be an Operator"),  # type: ignore[arg-type]
    "noise": (lambda: Measurement(Mask(), 0.1), TypeError, "noise must be a Noise"),  # type: ignore[arg-type]
    "dtype": (
        lambda: Measurement(Function(lambda x: x.long()), Gaussian(1.0)).clean(numbers(2, 3)),
        TypeError,
        "dtype, torch.float64, got torch.int64",
    ),
    "batch": (lambda: Measurement(Function(lambda x: x[:1]), Gaussian(1.0)).clean(numbers(2, 3)), ValueError, r"B = 2, got \(1, 3\)"),
    "y": (lambda: Measurement(Mask(), Gaussian(1.0)).log_prob(numbers(2, 4), numbers(2, 3)), ValueError, r"shape \(2, 3\).*got \(2, 4\)"),
    "not linear": (lambda: Function(lambda x: x**2).matrix((3,)), ValueError, "has no matrix"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line(name: str) -> None:
    make, error, message = WRONG[name]
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
