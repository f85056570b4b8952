"""Muon against the singular value decomposition, and AdamW beside it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sde_gen.training.optimizers import (
    LEAST,
    LEAST_SIDE,
    MOMENTUM,
    OPTIMIZERS,
    SIZE,
    Muon,
    is_matrix,
    make_optimizer,
    orthogonalised,
    polynomials,
)


def through(x: np.ndarray) -> np.ndarray:
    for a, b, c in polynomials():
        x = a * x + b * x**3 + c * x**5
    return x


def test_the_polynomials_are_the_best_of_their_degree() -> None:
    """Each errs by as much, with alternating signs, at four points of its interval: no other odd quintic errs by less (Chebyshev)."""
    low, high = LEAST, 1.0
    for a, b, c in polynomials():
        x = np.linspace(low, high, 200_001)
        error = 1 - (a * x + b * x**3 + c * x**5)
        most = np.abs(error).max()
        peaks = np.flatnonzero(np.abs(error) > most * (1 - 1e-6))
        signs = np.sign(error[peaks[np.append(True, np.diff(peaks) > 1)]])
        assert signs.tolist() == [1, -1, 1, -1]
        low, high = 1 - most, 1 + most
    assert low > 0.87 and high < 1.13
    below = through(np.geomspace(1e-9, LEAST, 50))
    assert (np.diff(below) > 0).all() and below[-1] < 1


@pytest.mark.parametrize("shape", [(32, 288), (64, 64), (100, 33), (40, 40)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = 1e-4 * torch.randn(3, *shape, generator=generator)
    u, values, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values[:, :1] * torch.logspace(
        0, math.log10(LEAST) + 0.5, values.shape[1], dtype=torch.float64
    )  # all of them within what is promised
    matrices = u * values[:, None] @ v
    found = orthogonalised(matrices.float()).double()
    size = torch.linalg.svdvals(found)
    assert float(size.min()) > 0.87 and float(size.max()) < 1.13
    assert float((found - u @ v).abs().max()) < 0.12, "their singular vectors are those of the matrices"
    flat = torch.diagonal(u.mT @ found @ v.mT, dim1=1, dim2=2)
    torch.testing.assert_close(flat, size.sort(1).values.gather(1, flat.argsort(1).argsort(1)), rtol=1e-3, atol=1e-3)
    assert not orthogonalised(torch.zeros(1, *shape)).any(), "a layer without gradients stays"


@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-3])
def test_gradients_of_low_rank_and_of_any_size_are_no_trouble(noise: float, size: float) -> None:
    """As those behind a layer whose weights are 0, or all but 0, are."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(2, 32, 3, generator=generator) @ torch.randn(2, 3, 90, generator=generator)
    matrices += noise * torch.randn(2, 32, 90, generator=generator)
    values = torch.linalg.svdvals(orthogonalised(size * matrices).double())
    assert float(values.max()) < 1.13 and float(values[:, :3].min()) > 0.87


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def made(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator))

        self.enter, self.inner, self.convolution, self.bias, self.leave = (
            made(32, 3),
            made(24, 40),
            made(20, 16, 3, 3),
            made(32),
            made(3, 64),
        )


def gradients(layers: Layers, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in layers.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def test_two_steps_are_the_formula_and_the_rest_is_adamw() -> None:
    layers, plain = Layers(), Layers()
    ours = make_optimizer("muon", layers.parameters(), 0.1, 0.5)
    theirs = make_optimizer("adamw", plain.parameters(), 0.1, 0.5)
    expected = {name: p.detach().double().clone() for name, p in layers.named_parameters()}
    momenta = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in range(2):
        for one in (layers, plain):
            gradients(one, step)
        for name, p in layers.named_parameters():
            assert p.grad is not None
            momenta[name] = MOMENTUM * momenta[name] + (1 - MOMENTUM) * p.grad.double()
            seen = ((1 - MOMENTUM) * p.grad.double() + MOMENTUM * momenta[name]).flatten(1) if p.ndim > 1 else None
            if seen is not None:
                u, _, v = torch.linalg.svd(seen, full_matrices=False)
                update = SIZE * math.sqrt(max(seen.shape)) * (u @ v)
                expected[name] = expected[name] * (1 - 0.1 * 0.5) - 0.1 * update.reshape(p.shape)
        ours.step()
        theirs.step()
        assert all(p.grad is not None for p in layers.parameters())
    taken = {name for name, p in layers.named_parameters() if is_matrix(p)}
    assert taken == {"inner", "convolution"} and LEAST_SIDE == 16
    for name, p in layers.named_parameters():
        if name in taken:  # singular values within a tenth of one
            assert float((p.detach() - expected[name]).norm() / (0.1 * SIZE * math.sqrt(p.flatten(1).shape[1] * p.shape[0]))) < 0.2
            assert (
                set(ours.state[p]) == {"step", "momentum"}
                and float(ours.state[p]["step"]) == 2
                and ours.state[p]["momentum"].shape == p.shape
            )
        else:
            assert torch.equal(p, dict(plain.named_parameters())[name])


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    layers = Layers()
    optimizer = make_optimizer("muon", layers.parameters(), 0.1, 0.1)
    gradients(layers, 0)
    optimizer.step()
    before = {name: p.detach().clone() for name, p in layers.named_parameters()}
    momentum = optimizer.state[layers.inner]["momentum"].clone()
    gradients(layers, 1)
    for p in layers.parameters():
        assert p.grad is not None
        p.grad.fill_(torch.nan)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in layers.named_parameters())
    assert torch.equal(momentum, optimizer.state[layers.inner]["momentum"]) and float(optimizer.state[layers.inner]["step"]) == 1


def test_names() -> None:
    assert list(OPTIMIZERS) == ["adamw", "muon"] and OPTIMIZERS["muon"] is Muon
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'; choose from adamw, muon"):
        make_optimizer("sgd", [nn.Parameter(torch.zeros(2))], 0.1, 0.0)
