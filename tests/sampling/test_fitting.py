"""Fitted grids: better than the default on samples that the fit has not seen, kept with the model, used where they match."""

import functools
import json
from dataclasses import asdict

import pytest
import torch
from toys import all_sdes

from sde_gen import FittedGrid, ScoreModel, fit_grid, guide, load, make_network, make_sde, make_solver, sample, save
from sde_gen.exact.mixtures import RingData
from sde_gen.models.denoiser import Wrapper
from sde_gen.randomness import NoiseStream
from sde_gen.sampling.calibration import apply_table
from sde_gen.sampling.descent import time_of
from sde_gen.sampling.fitted import law_of
from sde_gen.sampling.regression import fit_row
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
    assert model.fitted == {("angle", 6, (), law_of(model)): fitted}
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
    torch.testing.assert_close(apply_table(run, *table), run_updates(run, *table), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SDES)
def test_times_are_differentiable(name):
    sde = SDES[name]
    lambdas = torch.tensor([-3.0, 0.0, 2.0, float(sde.half_log_snr(sde.t_min))], dtype=torch.float64, requires_grad=True)
    times = time_of(sde, lambdas, sde.t_max, sde.t_min)
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
    assert again.fitted == {("angle", 3, (), law_of(model)): fitted}
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
        ({"samples": 2}, "samples must be a whole number of at least 4, got 2"),
        ({"method": "nope"}, "unknown method 'nope'; choose from regression, descent, best"),
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


@pytest.mark.parametrize("solver", ["angle", "unipc", "heun", "ab"])
def test_the_regression_is_better_on_other_samples_and_the_best_no_worse(solver):
    before = error(RING.model(SDES["vp"]), "vp", solver, 8)[0]
    found = {}
    for method in ("regression", "best"):
        model = RING.model(SDES["vp"])
        found[method] = fit_grid(model, solver, 8, samples=200, iterations=20, method=method)
        after, out = error(model, "vp", solver, 8)
        assert out.fitted and after < 0.6 * before
        assert found[method].default_error == pytest.approx(before, rel=0.5)
        assert after == pytest.approx(found[method].error, rel=0.8)
    assert found["best"].error <= found["regression"].error and found["regression"].method == "regression"
    assert found["best"].method == ("regression" if found["best"].error == found["regression"].error else "descent")


def test_a_row_is_the_one_that_the_states_were_made_of():
    """Where one row is exact for most samples, the geometric mean finds it, whatever the others are."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(60, 7, 4, dtype=torch.float64, generator=generator) * torch.tensor([80.0, 1.0, 1e-3, 5.0])
    row = torch.tensor([0.1, -2.0, 300.0, 0.5], dtype=torch.float64)
    left = columns @ row
    left[:10] += torch.randn(10, 7, dtype=torch.float64, generator=generator)
    found = fit_row(columns, left)
    torch.testing.assert_close(found.start, row, rtol=1e-4, atol=0)
    moves = (columns @ found.basis).square().mean((0, 1)).sqrt()
    torch.testing.assert_close(moves, torch.ones(4, dtype=torch.float64))


def test_every_network_evaluation_is_counted():
    model = RING.model(make_sde("vp"))
    seen = 0

    class Counted(Wrapper):
        same_law = True

        def predict(self, x, t, **cond):
            nonlocal seen
            seen += len(x)
            return self.model.predict(x, t, **cond)

    for method in ("regression", "descent", "best"):
        seen = 0
        fitted = fit_grid(Counted(model), "angle", 4, samples=8, iterations=3, method=method)
        assert fitted.nfe == seen > 0


def network_of(seed=0):
    torch.manual_seed(seed)
    network = make_network("mlp", (2,))
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return ScoreModel(network, make_sde("vp"), prediction="edm", clock="half_log_snr", data_std=1.0).eval()


def test_a_table_is_for_the_model_that_it_was_fitted_to(tmp_path):
    model = network_of()
    fit_grid(model, "angle", 3, shape=(2,), samples=6, method="regression")
    settings = {"solver": "angle", "steps": 3, "progress": False, "grid": "fitted"}
    with torch.no_grad():
        next(model.network.parameters()).mul_(1.001)
    assert not sample(model, (2, 2), "angle", 3, progress=False).fitted, "other weights: the solver's own grid"
    with pytest.raises(ValueError, match=r"at 3 steps: the one that is kept was fitted to other weights, guidance or process"):
        sample(model, (2, 2), **settings)
    with torch.no_grad():
        next(model.network.parameters()).div_(1.001)
    fit_grid(model, "angle", 3, shape=(2,), samples=6, method="regression")
    other = ScoreModel(model.network, make_sde("vp", beta_max=19.0), prediction="edm", clock="half_log_snr", data_std=1.0)
    other.fitted = model.fitted
    with pytest.raises(ValueError, match="other weights, guidance or process"):
        sample(other, (2, 2), **settings)
    for ends in ({"t_start": 0.5}, {"t_end": 0.1}):
        with pytest.raises(ValueError, match=r"runs from t_max to t_min, .*: leave out t_start and t_end, got "):
            sample(model, (2, 2), **settings, **ends)
    with pytest.raises(ValueError, match="options of its own: leave out order"):
        sample(model, (2, 2), **settings, order=3)
    assert sample(model, (2, 2), **settings).fitted and sample(model.double(), (2, 2), **settings).fitted, "a cast is no other model"


class Scaled(torch.nn.Module):
    """A network of the user's own, which is a number that no state_dict holds."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, c):
        return x * self.factor


@pytest.mark.parametrize("kind", ["function", "attribute", "tensor", "data"])
def test_networks_of_the_users_own_are_told_apart(kind):
    def shrinks(x, c):
        return 0.5 * x

    def model_of(network):
        return ScoreModel(network, make_sde("vp"))

    def used(drawn):
        return sample(drawn, (2, 2), "angle", 3, progress=False).fitted

    values = {"function": (shrinks, lambda x, c: 0.1 * x), "attribute": (Scaled(0.5), Scaled(0.1))}
    values["tensor"] = (Scaled(torch.tensor(0.5)), Scaled(torch.tensor(0.1)))
    values["data"] = (network_of().network, network_of(1).network)
    mine, other = map(model_of, values[kind])
    fit_grid(mine, "angle", 3, (2,), 6)
    other.fitted = dict(mine.fitted)
    assert used(mine) and not used(other)
    assert used(model_of(values[kind][0])) is False  # a model of its own: nothing was fitted to it yet
    again = model_of(values[kind][0])
    again.fitted = dict(mine.fitted)
    assert used(again), "around the same network it is the same law"
    if kind == "attribute":
        mine.network.factor = 0.4
    elif kind == "data":
        next(mine.network.parameters()).data.mul_(1.01)  # which the tensor's version does not count
    else:
        return
    assert not used(mine)


def test_a_guided_model_has_a_table_of_its_own_in_the_checkpoint_of_the_model(tmp_path):
    torch.manual_seed(0)
    network = make_network("mlp", (2,), conditions={"label": {"kind": "label", "classes": 3}})
    model = ScoreModel(network, make_sde("vp"), prediction="edm", clock="half_log_snr", data_std=1.0).eval()
    cond = {"label": torch.arange(6) % 3}
    fit_grid(guide(model, 2.0), "angle", 3, (2,), 6, cond=cond, method="regression")
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")

    def used(drawn, given=cond):
        return sample(drawn, (6, 2), "angle", 3, cond=given, progress=False).fitted

    assert used(guide(model, 2.0)) and used(guide(again, 2.0))
    assert not used(again) and not used(guide(again, 2.5)) and not used(guide(again, 2.0, rule="apg"))
    assert not used(guide(again, 2.0, interval=(-2.0, 3.0)))
    with pytest.raises(ValueError, match=r"was fitted with other conditions \(label\)"):
        sample(guide(again, 2.0), (6, 2), "angle", 3, grid="fitted", progress=False)
