"""Adams' methods: their order, tolerances that mean something, samples that know nothing of each other, gradients."""

import math
from itertools import pairwise

import pytest
import torch

from sde_gen.exact.mixtures import slope as fitted_order
from sde_gen.likelihood.adams import ORDER, integrate, running_weights

START = torch.tensor([[1.0, 0.2], [0.3, -0.7], [-0.6, 0.4], [0.1, 0.9]], dtype=torch.float64)
END = 4.0


def pendulum(y, u, rows, evaluation):
    """Nonlinear and driven, so that no method is right by accident."""
    a, b = y[:, :1], y[:, 1:]
    return torch.cat((b * torch.cos(u[:, None]), -torch.sin(a) - 0.3 * a * a * b), 1)


def per(tolerance):
    return lambda errors, y, u: (errors / tolerance).square().mean(-1).sqrt()


def weigh(errors, y, u):
    return errors.abs().sum(1)


def solve(y=START, tolerance=1e-8, cap=100_000, grid=None, slope=pendulum):
    return integrate(slope, y, (0.0, END), per(tolerance), weigh, cap, grid)


REFERENCE = solve(tolerance=1e-13).y


def ramped(steps):
    """Even steps after a start in steps that double, so that the low orders there do not rule the error."""
    h = END / steps
    start = h * 2.0 ** torch.arange(-24, 0, dtype=torch.float64)
    return torch.cat((torch.zeros(1, dtype=torch.float64), start, torch.linspace(h, END, steps, dtype=torch.float64)))


def error(found):
    assert bool(found.converged.all())
    return float((found.y.cpu() - REFERENCE).abs().max())


def test_the_order_with_fixed_steps_is_one_more_than_that_of_the_predictions(device):
    steps = [60, 90, 135, 200, 300]
    errors = [error(solve(START.to(device), grid=ramped(n))) for n in steps]
    assert fitted_order(steps, errors) == pytest.approx(ORDER + 1, abs=0.3)
    assert errors[-1] < 1e-9


def test_even_steps_begin_with_low_orders_whose_error_stays():
    # One step of order 2: its error is of third order.
    steps = [160, 320, 640]
    assert fitted_order(steps, [error(solve(grid=torch.linspace(0, END, n + 1, dtype=torch.float64))) for n in steps]) == pytest.approx(
        3, abs=0.1
    )


def test_errors_follow_the_tolerance_and_calls_their_root(device):
    tolerances = [10.0**-k for k in range(3, 11)]
    found = [solve(START.to(device), tolerance=tolerance) for tolerance in tolerances]
    errors = [error(one) for one in found]
    assert 0.75 < -fitted_order(tolerances, errors) < 1.25
    for tolerance, one, off in zip(tolerances, found, errors, strict=True):
        assert off < 50 * tolerance and bool((one.errors > 0.01 * tolerance).all())
    calls = [float(one.nfe.double().mean()) for one in found]
    assert all(b < 1.6 * a for a, b in pairwise(calls)) and calls[0] < 30 and calls[-1] < 300


def test_an_answer_does_not_depend_on_the_others(device):
    start, stiff = START.to(device), torch.tensor([[1.0, 1.0]], dtype=torch.float64, device=device)

    def slope(y, u, rows, evaluation):
        rate = torch.where(rows == 2, -100.0, 0.0)[:, None]
        return pendulum(y, u, rows, evaluation) + rate * (y - 1)

    whole = solve(torch.cat((start[:2], stiff, start[2:])), 1e-6, slope=slope)
    alone = [solve(start[k : k + 1], 1e-6) for k in range(4)]
    for k, place in enumerate((0, 1, 3, 4)):
        torch.testing.assert_close(whole.y[place], alone[k].y[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(whole.errors[place], alone[k].errors[0], rtol=1e-6, atol=1e-16)
        assert int(whole.nfe[place]) == int(alone[k].nfe[0])
    assert bool(whole.converged.all()) and int(whole.nfe[2]) > 2 * int(whole.nfe[0])


def test_the_cap_ends_a_sample_and_no_other():
    free = solve(tolerance=1e-6)
    cap = int(free.nfe.min()) + 1
    capped = solve(tolerance=1e-6, cap=cap)
    assert torch.equal(capped.converged, free.nfe - 1 <= cap) and 0 < int(capped.converged.sum()) < 4
    assert bool(torch.isnan(capped.y[~capped.converged]).all()) and torch.equal(capped.y[capped.converged], free.y[capped.converged])
    assert int(capped.nfe.max()) == cap + 1  # the attempts, and the slope at the start


def test_the_cap_does_not_count_fixed_steps():
    found = solve(cap=3, grid=ramped(60))
    assert bool(found.converged.all()) and found.nfe.tolist() == [85] * 4


@pytest.mark.parametrize("grid", [None, ramped(60)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("after", [-1.0, 2.0])
def test_a_slope_that_is_not_finite_ends_its_sample_alone(value, after, grid):
    def slope(y, u, rows, evaluation):
        bad = (rows == 1) & (u > after)
        return torch.where(bad[:, None], value, pendulum(y, u, rows, evaluation))

    found, clean = solve(slope=slope, tolerance=1e-6, grid=grid), solve(tolerance=1e-6, grid=grid)
    assert found.converged.tolist() == [True, False, True, True]
    assert bool(torch.isnan(found.y[1]).all()) and torch.equal(found.y[[0, 2, 3]], clean.y[[0, 2, 3]])
    assert torch.equal(found.nfe[[0, 2, 3]], clean.nfe[[0, 2, 3]]) and int(found.nfe[1]) < 200


@pytest.mark.parametrize("grid", [None, ramped(60)])
def test_no_sample_arrives_with_numbers_that_are_not_finite_where_size_does_not_look(grid):
    def slope(y, u, rows, evaluation):
        out = pendulum(y[:, :2], u, rows, evaluation)
        return torch.cat((out, torch.where((rows == 1) & (u > 2), math.nan, 1.0)[:, None]), 1)

    y = torch.cat((START, torch.zeros(4, 1, dtype=torch.float64)), 1)
    found = integrate(slope, y, (0.0, END), lambda errors, y, u: per(1e-6)(errors[..., :2], y, u), weigh, 1000, grid)
    assert found.converged.tolist() == [True, False, True, True] and torch.equal(torch.isfinite(found.y).all(1), found.converged)


def test_a_slope_is_called_once_for_each_sample_that_needs_it():
    calls, seen = torch.zeros(4, dtype=torch.int64), []

    def slope(y, u, rows, evaluation):
        calls[rows] += 1
        seen.append(evaluation)
        return pendulum(y, u, rows, evaluation)

    found = solve(slope=slope)
    assert torch.equal(found.nfe, calls) and seen == list(range(len(seen)))


@pytest.mark.parametrize("grid", [None, ramped(40)])
def test_gradients_are_those_of_the_steps_taken(grid):
    gain = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def slope(y, u, rows, evaluation):
        return gain * pendulum(y, u, rows, evaluation)

    y = START.clone().requires_grad_()
    found = solve(y, 1e-9, grid=grid, slope=slope)
    weights = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    by_y, by_gain = torch.autograd.grad((found.y * weights).sum(), (y, gain))

    def value(y, at):
        with torch.no_grad():
            gain.fill_(at)
            return (solve(y, 1e-9, grid=grid, slope=slope).y * weights).sum(1)

    eps = 1e-5
    for axis in range(2):
        move = torch.zeros(1, 2, dtype=torch.float64)
        move[0, axis] = eps
        numeric = (value(START + move, 0.7) - value(START - move, 0.7)) / (2 * eps)
        # Adaptive steps change with y: then the difference quotient is right to the tolerance over eps alone.
        torch.testing.assert_close(by_y[:, axis], numeric, rtol=1e-5, atol=1e-8 if grid is not None else 3e-3)
    numeric = (value(START, 0.7 + eps) - value(START, 0.7 - eps)).sum() / (2 * eps)
    torch.testing.assert_close(by_gain, numeric, rtol=1e-5, atol=1e-8 if grid is not None else 3e-3)


@pytest.mark.parametrize("after", [-1.0, 2.0])
def test_a_lost_sample_leaves_the_gradients_of_the_rest(after, device):
    gain = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)

    def slope(y, u, rows, evaluation):
        return gain * pendulum(y, u, rows, evaluation) * torch.where((rows == 1) & (u > after), math.nan, 1.0)[:, None]

    rest = torch.tensor([0, 2, 3], device=device)
    y, clean = START.clone().to(device).requires_grad_(), START.to(device)[rest].clone().requires_grad_()
    found = solve(y, 1e-6, slope=slope)
    assert found.converged.tolist() == [True, False, True, True]
    got = torch.autograd.grad(found.y[rest].sum(), (y, gain))
    expected = torch.autograd.grad(solve(clean, 1e-6, slope=lambda *a: gain * pendulum(*a)).y.sum(), (clean, gain))
    torch.testing.assert_close(got[0][rest], expected[0])
    torch.testing.assert_close(got[1], expected[1])


def test_the_start_is_not_changed_and_needs_no_gradient():
    y = START.clone()
    found = solve(y)
    assert torch.equal(y, START) and not found.y.requires_grad
    with torch.no_grad():
        assert torch.equal(solve(START.clone().requires_grad_()).y, found.y)


@pytest.mark.parametrize("count", [1, 3, ORDER + 2])
def test_weights_integrate_polynomials_exactly(count):
    generator = torch.Generator().manual_seed(count)
    gaps = 0.3 + torch.rand(5, count, dtype=torch.float64, generator=generator)
    nodes = 0.5 - gaps.cumsum(1)  # some on either side of 0, as the corrector's are
    h = 0.2 + torch.rand(5, dtype=torch.float64, generator=generator)
    weights = running_weights(nodes, h).cumsum(1)
    for known in range(1, count + 1):
        assert bool((weights[:, known - 1, known:] == 0).all())  # later nodes have no part in it
        for degree in range(known):
            exact = h ** (degree + 1) / (degree + 1)
            torch.testing.assert_close((weights[:, known - 1] * nodes**degree).sum(1), exact, rtol=1e-9, atol=1e-9)
        missed = (weights[:, known - 1] * nodes**known).sum(1) - h ** (known + 1) / (known + 1)
        assert bool((missed.abs() > 1e-6).all())


def test_weights_are_those_of_adams():
    nodes = torch.tensor([[0.0, -1.0, -2.0]], dtype=torch.float64)
    bashforth = running_weights(nodes, torch.ones(1, dtype=torch.float64)).cumsum(1)[0]
    torch.testing.assert_close(bashforth[2], torch.tensor([23.0, -16.0, 5.0], dtype=torch.float64) / 12)
    moulton = running_weights(nodes + 1, torch.ones(1, dtype=torch.float64)).cumsum(1)[0]
    torch.testing.assert_close(moulton[2], torch.tensor([5.0, 8.0, -1.0], dtype=torch.float64) / 12)
