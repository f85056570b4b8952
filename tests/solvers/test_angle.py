"""The angle method: its variable, its closed-form start, and what these are for."""

import functools

import pytest
import torch
from toys import all_sdes

from sde_gen import ScoreModel, make_sde, make_solver, sample
from sde_gen.exact.mixtures import GaussianData, RingData, slope
from sde_gen.models.measured_moments import measure_moments, moments_of
from sde_gen.randomness import NoiseStream
from sde_gen.solvers import Run, make_grid
from sde_gen.solvers.angle import mirror, signal_fraction

SDES = all_sdes()
GAUSSIAN = GaussianData.correlated()
RING = RingData(3, std=0.4)


def draw(model, count, steps, solver="angle", **settings):
    return sample(model, (count, 2), solver, steps=steps, final="state", dtype=torch.float64, progress=False, **settings)


def exact(model, x):
    run = Run(model, NoiseStream(0, 0, 1, (2,), torch.float64, torch.device("cpu")), torch.zeros(len(x), dtype=torch.int64))
    return make_solver("ode", rtol=1e-11, atol=1e-11).solve(run, x, model.sde.t_max, model.sde.t_min, 10_000, "time")


def test_the_signal_fraction_is_the_cosine_of_the_angle():
    lambdas = torch.linspace(-12, 8, 50, dtype=torch.float64)
    for scale in (0.3, 1.0, 4.0):
        angle = torch.atan(torch.exp(-lambdas) / scale)
        torch.testing.assert_close(signal_fraction(lambdas, scale), torch.cos(angle), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_isotropic_gaussian_data_are_exact_at_any_number_of_steps(name, steps, device):
    # The prediction is linear in the signal fraction of the data's own standard deviation.
    data, sde = GaussianData(torch.tensor([0.3, -0.2]), 0.49 * torch.eye(2)).to(device), SDES[name]
    model = data.model(sde)
    out = draw(model, 32, steps, scale=1.0, device=device)
    x = model.prior.from_noise(NoiseStream(0, 0, 32, (2,), torch.float64, device).draw())
    torch.testing.assert_close(out.x, data.flow_map(x, sde, sde.t_max, sde.t_min), rtol=0, atol=1e-6)
    assert out.nfe.tolist() == [steps] * 32


@functools.cache
def ring_at(name):
    """States at the start of an SDE, and where the ring's flow takes them."""
    model = RING.model(SDES[name])
    x = model.prior.from_noise(NoiseStream(1, 0, 64, (2,), torch.float64, torch.device("cpu")).draw())
    return x, exact(model, x)


@pytest.mark.parametrize("order, counts, slack", [(2, [40, 80, 160], 0.3), (None, [80, 110, 150], 0.45), (5, [60, 80, 110], 0.8)])
@pytest.mark.parametrize("name", SDES)
def test_the_start_keeps_the_full_order(name, order, counts, slack):
    """From pure noise with the closed-form start, no call taken on a reference solution: slope of the error on a mixture."""
    model, solver = RING.model(SDES[name]), make_solver("angle", order=order)
    x, answer = ring_at(name)
    errors = [float((draw(model, 64, steps, solver, x_init=x).x - answer).square().mean().sqrt()) for steps in counts]
    assert slope(counts, errors) >= solver.order - slack, errors


@pytest.mark.parametrize("steps", [5, 10, 20, 50])
def test_it_beats_the_textbook_methods(steps):
    sde = make_sde("ve", sigma_min=0.001, sigma_max=80.0)
    model = RING.model(sde)
    x = model.prior.from_noise(NoiseStream(2, 0, 64, (2,), torch.float64, torch.device("cpu")).draw())
    answer = exact(model, x)

    def error(solver):
        return float((draw(model, 64, steps, solver, x_init=x).x - answer).square().mean(1).sqrt().log().mean().exp())

    assert error("angle") < 0.5 * min(error(make_solver("dpm", order=2)), error("dpm"), error("unipc"), error("ab"), error("ddim"))


@pytest.mark.parametrize("name", SDES)
def test_moments_are_measured_where_the_model_has_none(name, device):
    sde, ring = SDES[name], RING.to(device)
    known = ring.model(sde)
    bare = ScoreModel(known.network, sde, prediction="score")
    found = moments_of(bare, torch.zeros(3, 2, dtype=torch.float64, device=device))
    mean, covariance = ring.moments()
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=0.01)
    matrix = found.eigenvectors @ torch.diag(found.eigenvalues) @ found.eigenvectors.T
    torch.testing.assert_close(matrix, covariance, rtol=0, atol=0.02 * float(covariance.diagonal().mean()))
    assert moments_of(bare, torch.zeros(9, 2, dtype=torch.float64, device=device)) is found, "once for a model"
    x = known.prior.from_noise(NoiseStream(3, 0, 32, (2,), torch.float64, device).draw())
    torch.testing.assert_close(draw(bare, 32, 40, x_init=x).x, draw(known, 32, 40, x_init=x).x, rtol=0, atol=2e-3)


def test_moments_of_other_units_and_what_cannot_be_measured():
    sde = make_sde("vp")
    far = GaussianData(torch.tensor([40.0, -10.0]), 25.0 * torch.eye(2))
    found = measure_moments(ScoreModel(far.score(sde), sde, prediction="score"), (2,))
    torch.testing.assert_close(found.mean, far.moments(sde, 0.0)[0].new_tensor([40.0, -10.0]), rtol=0.01, atol=0)
    broken = ScoreModel(lambda x, c: x * float("nan"), sde)
    assert measure_moments(broken, (2,)) is None and moments_of(broken, torch.zeros(1, 2)) is None


def test_a_condition_changes_the_start_by_its_own_call_only():
    """With a condition the data's moments may be another class's: nothing is skipped, and wrong moments do not spoil the answer."""
    sde = make_sde("vp")
    shifted = GaussianData(torch.tensor([3.0, 0.0]), GAUSSIAN.covariance if hasattr(GAUSSIAN, "covariance") else 0.5 * torch.eye(2))
    wrong = GAUSSIAN.model(sde).moments
    model = ScoreModel(lambda x, c, index: shifted.score_at(x, sde, c), sde, prediction="score", moments=wrong)
    cond = {"index": torch.arange(16)}
    out = draw(model, 16, 60, cond=cond)
    x = model.prior.from_noise(NoiseStream(0, 0, 16, (2,), torch.float64, torch.device("cpu")).draw())
    torch.testing.assert_close(out.x, shifted.flow_map(x, sde, sde.t_max, sde.t_min), rtol=0, atol=5e-3)
    assert (out.nfe == 60).all()


@pytest.mark.parametrize("steps, points", [(10, 4), (15, 5), (24, 5), (25, 4)])
def test_the_order_and_the_grid_are_chosen_by_the_number_of_steps(steps, points):
    sde = make_sde("vp")
    model = RING.model(sde)
    own, plain = draw(model, 4, steps).x, draw(model, 4, steps, order=points).x
    assert torch.equal(own, plain) and not torch.equal(own, draw(model, 4, steps, order=9 - points).x)
    assert torch.equal(own, draw(model, 4, steps, grid="angle").x), "the name of the grid is the default"
    x = torch.zeros(1, 2, dtype=torch.float64)
    run = Run(model, NoiseStream(0, 0, 1, (2,), torch.float64, torch.device("cpu")), torch.zeros(1, dtype=torch.int64))
    method = make_solver("angle")
    times = method.times(run, x, sde.t_max, sde.t_min, steps, "angle")
    plain = make_grid(sde, "angle", sde.t_max, sde.t_min, steps, run.spread(x), method.skipped(run, x, sde.t_max, sde.t_min, steps))
    lambdas = sde.half_log_snr(times)
    assert torch.equal(times, plain) == (steps < 25)
    if steps >= 25:  # shorter in lambda near the data
        assert float(lambdas[-1] - lambdas[-2]) < 0.8 * float(sde.half_log_snr(plain).diff()[-1])


def test_mirrored_places_are_before_the_start():
    sde = make_sde("vp")
    times = make_grid(sde, "angle", sde.t_max, sde.t_min, 6)
    ratio = torch.exp(sde.half_log_snr(times))
    torch.testing.assert_close(mirror(sde, times, 3).flip(0), 2 * ratio[0] - ratio[1:4])
    assert len(mirror(sde, times[:2], 3)) == 1


@pytest.mark.parametrize("name", SDES)
def test_the_grid_is_even_in_its_angles(name):
    from sde_gen.solvers.grids import COARSE, FINE

    sde, spread = SDES[name], (1.7, 0.6)
    times = make_grid(sde, "angle", sde.t_max, sde.t_min, 12, spread)
    ratio = torch.exp(sde.half_log_snr(times))
    angle = torch.atan(COARSE * spread[0] * ratio) + torch.atan(FINE * spread[1] * ratio)
    torch.testing.assert_close(angle.diff(), angle.diff().mean().expand(12), rtol=1e-6, atol=1e-9)
    late = make_grid(sde, "angle", sde.t_max, sde.t_min, 12, spread, skip=0.5)
    assert float(late[0]) < sde.t_max and float(late[-1]) == sde.t_min


def test_both_directions():
    sde = make_sde("cosine")
    model = RING.model(sde)
    x = draw(model, 16, 200).x
    up = draw(model, 16, 200, x_init=x, t_start=sde.t_min, t_end=sde.t_max).x
    down = draw(model, 16, 200, x_init=up, t_start=sde.t_max, t_end=sde.t_min).x
    torch.testing.assert_close(down, x, rtol=0, atol=5e-3)
