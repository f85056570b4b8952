"""Fitted grids: better than the default on samples that the fit has not seen, kept with the model, used where they match."""

import functools
import json
from dataclasses import asdict

import pytest
import torch
from toys import all_sdes

from sde_gen import FittedGrid, ScoreModel, fit_grid, load, make_network, make_sde, make_solver, sample, save
from sde_gen.exact.mixtures import RingData
from sde_gen.randomness import NoiseStream
from sde_gen.sampling.fitting import _apply, _time_of
from sde_gen.solvers import Run, run_updates

SDES = all_sdes()
RING = RingData(5, std=0.2)
QUICK = {"samples": 72, "iterations": 30}


def start_of(model, count=64, seed=11):
    return model.prior.from_noise(NoiseStream(seed, 0, count, (2,), torch.float64, torch.device("cpu")).draw())


def run_of(model, x):
    noise = NoiseStream(0, 0, len(x), tuple(x.shape[1:]), x.dtype, torch.device("cpu"))
    return Run(model, noise, torch.zeros(len(x), dtype=torch.int64))


@functools.cache
def by_the_flow(name):
    """States at the start of an SDE, and where the flow takes them."""
    model = RING.model(SDES[name])
    x = start_of(model)
    return x, make_solver("ode", rtol=1e-7, atol=1e-7).solve(run_of(model, x), x, model.sde.t_max, model.sde.t_min, 10_000, "time")


def error(model, name, solver, steps):
    x, exact = by_the_flow(name)
    out = sample(model, tuple(x.shape), solver, steps=steps, x_init=x, final="state", progress=False)
    return float((out.x - exact).square().mean(1).sqrt().log().mean().exp()), out


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_a_fitted_grid_is_better_on_other_samples(name):
    model = RING.model(SDES[name])
    before, plain = error(model, name, "angle", 8)
    fitted = fit_grid(model, "angle", 8, **QUICK)
    after, out = error(model, name, "angle", 8)
    assert after < 0.8 * before and not plain.fitted and out.fitted and (out.nfe == 8).all()
    assert fitted.error < 0.8 * fitted.default_error
    assert after == pytest.approx(fitted.error, rel=0.8), "what the fit says of samples that it has not fitted"


@pytest.mark.parametrize("solver", ["dpm", "unipc", "ab", "ddim", "heun"])
def test_every_deterministic_solver_can_be_fitted(solver):
    model = RING.model(SDES["vp"])
    before = error(model, "vp", solver, 8)[0]
    fit_grid(model, solver, 8, **QUICK)
    assert error(model, "vp", solver, 8)[0] < 0.8 * before


def test_where_it_is_used():
    model = RING.model(make_sde("vp"))
    fitted = fit_grid(model, "angle", 6, samples=6, iterations=10)
    x = start_of(model, 4)

    def used(**settings):
        return sample(model, (4, 2), x_init=x, progress=False, **({"solver": "angle", "steps": 6} | settings)).fitted

    assert used() and used(grid="fitted")
    assert not used(steps=7) and not used(solver="dpm") and not used(grid="angle") and not used(order=3)
    assert not used(t_end=0.5) and not used(t_start=model.sde.t_max)
    assert model.fitted == {("angle", 6, ()): fitted}
    with pytest.raises(ValueError, match=r"no grid is fitted for solver 'angle' at 7 steps .*\(fitted: angle at 6\); see fit_grid"):
        used(steps=7, grid="fitted")


def test_repeats_are_equal_and_the_seed_counts():
    fits = [fit_grid(RING.model(make_sde("vp")), "angle", 5, samples=9, iterations=8, seed=seed) for seed in (1, 1, 2)]
    assert fits[0] == fits[1] and fits[0] != fits[2]


@pytest.mark.parametrize("solver", ["angle", "unipc", "heun", "ab"])
def test_the_differentiable_loop_is_the_loop(solver):
    model, method = RING.model(make_sde("vp")), make_solver(solver)
    x = start_of(model, 8)
    run = run_of(model, x)
    times = method.times(run, x, model.sde.t_max, model.sde.t_min, 7, method.default_grid)
    table = method.table(run, x, model.sde.t_max, times)
    torch.testing.assert_close(_apply(run, *table), run_updates(run, *table), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SDES)
def test_times_are_differentiable(name):
    sde = SDES[name]
    lambdas = torch.tensor([-3.0, 0.0, 2.0, float(sde.half_log_snr(sde.t_min))], dtype=torch.float64, requires_grad=True)
    times = _time_of(sde, lambdas, sde.t_max, sde.t_min)
    torch.testing.assert_close(times[:3], sde.time_of(lambdas.detach())[:3])
    (slope,) = torch.autograd.grad(times.sum(), lambdas)
    torch.testing.assert_close(slope[:3], 1 / sde.slopes(times.detach())[1][:3])


def test_it_is_kept_with_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    network = make_network("mlp", (2,))
    model = ScoreModel(network, make_sde("vp"), prediction="edm", clock="half_log_snr", data_std=1.0)
    fitted = fit_grid(model, "angle", 3, shape=(2,), samples=6, iterations=3)
    assert FittedGrid.from_config(json.loads(json.dumps(asdict(fitted)))) == fitted
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.fitted == {("angle", 3, ()): fitted}
    ours, theirs = (sample(m, (5, 2), "angle", steps=3, progress=False) for m in (model, again))
    assert theirs.fitted and torch.equal(ours.x, theirs.x)


def test_a_network_keeps_its_mode_and_its_weights():
    network = make_network("mlp", (2,))
    model = ScoreModel(network, make_sde("vp"), prediction="edm", clock="half_log_snr", data_std=1.0).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fit_grid(model, "angle", 3, shape=(2,), samples=6, iterations=3)
    assert all(module.training for module in model.modules()) and all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_network_in_evaluation_mode_stays_there():
    network = make_network("mlp", (2,)).eval()
    model = ScoreModel(network, make_sde("vp"), prediction="edm", clock="half_log_snr", data_std=1.0)
    assert model.training  # a fresh module is
    fit_grid(model, "angle", 3, shape=(2,), samples=6, iterations=2)
    assert model.training and not any(module.training for module in network.modules())


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"solver": "em"}, "deterministic fixed-step solvers only, got 'em'"),
        ({"solver": "ode"}, "deterministic fixed-step solvers only, got 'ode'"),
        ({"solver": "nope"}, "unknown solver 'nope'"),
        ({"steps": 1}, "2 steps or more, got 1"),
        ({"samples": 2}, "samples must be a whole number of at least 3, got 2"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments(settings, match):
    with pytest.raises(ValueError, match=match):
        fit_grid(RING.model(make_sde("vp")), **({"solver": "angle", "steps": 4} | settings))


def test_models_that_cannot_be_fitted():
    sde = make_sde("vp")
    with pytest.raises(ValueError, match="does not know the shape of a sample: give shape"):
        fit_grid(ScoreModel(lambda x, c: x, sde))
    with pytest.raises(ValueError, match="the converged answer is not finite for 72 of 72 calibration samples"):
        fit_grid(ScoreModel(lambda x, c: x * float("inf"), sde), "angle", 3, (2,), **QUICK)


def test_times_by_hand():
    model = RING.model(make_sde("vp"))
    times = torch.linspace(0.9, 0.2, 5, dtype=torch.float64)
    by_hand = sample(model, (3, 2), "ddim", steps=4, grid=times, x_init=torch.ones(3, 2), progress=False)
    even = sample(model, (3, 2), "ddim", steps=4, grid="time", t_start=0.9, t_end=0.2, x_init=torch.ones(3, 2), progress=False)
    torch.testing.assert_close(by_hand.x, RING.model(make_sde("vp")).denoise(even.x, 0.2))  # times by hand lead to data
    for wrong in (times[:-1], times.flip(0).roll(1), torch.arange(5)):
        with pytest.raises(ValueError, match="times must be 5 numbers that only rise or only fall"):
            sample(model, (3, 2), "ddim", steps=4, grid=wrong, progress=False)
    with pytest.raises(ValueError, match="leave them out"):
        sample(model, (3, 2), "ddim", steps=4, grid=times, t_end=0.2, progress=False)
