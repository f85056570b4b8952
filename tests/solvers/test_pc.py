"""Predictor-corrector: the Langevin step's stationary law, and any fixed-step predictor."""

import itertools
import math

import pytest
import torch
from toys import ToyDDIM, ToyEuler, all_sdes

from sde_gen import make_sde, make_solver, sample
from sde_gen.exact.mixtures import GaussianData, marginal
from sde_gen.solvers import PredictorCorrector, Run, make_grid, run_updates
from sde_gen.solvers.pc import LEAST_DIMENSIONS

SDES = all_sdes()
DATA = GaussianData.correlated()


def corrector(sde, t: float, snr: float, count: int):
    """The Langevin updates alone, at time t."""
    times = torch.tensor([t, 0.5 * (t + sde.t_min)], dtype=torch.float64)
    updates = PredictorCorrector("em", snr=snr, corrections=count).plan(sde, times)[:-1]
    assert len(updates) == count and all(update.t == t and update.s is None for update in updates)
    return updates


@pytest.mark.parametrize("name, snr", zip(SDES, itertools.cycle((0.1, 0.16)), strict=False))
def test_many_corrections_leave_the_marginal(name, snr):
    """From wrong moments the corrector alone comes to p_t: each variance v to v/(1 - e/(2v)), e = 2 (snr sigma)^2."""
    sde = SDES[name]
    for t in (0.5, 0.9):  # lower down, the data's wide directions take long to forget
        mean, covariance = DATA.moments(sde, t)
        got_mean, got = DATA.run_moments(corrector(sde, t, snr, 3500), sde, 0 * mean, 2 * covariance + torch.eye(2, dtype=torch.float64))
        alpha, sigma = marginal(sde, t)
        variance = alpha**2 * DATA.e + sigma**2
        biased = DATA.v @ torch.diag(variance / (1 - (snr * sigma) ** 2 / variance)) @ DATA.v.T
        scale = float(variance.max())
        torch.testing.assert_close(got, biased, rtol=1e-6, atol=1e-6 * scale)
        torch.testing.assert_close(got_mean, mean, rtol=1e-6, atol=1e-6 * scale**0.5)
        torch.testing.assert_close(got, covariance, rtol=0, atol=0.03 * scale)


@pytest.mark.parametrize("name", SDES)
def test_a_correction_is_a_langevin_step(name):
    sde, t, snr = SDES[name], 0.4, 0.2
    (update,) = corrector(sde, t, snr, 1)
    x = DATA.sample(5)
    e = 2 * (snr * marginal(sde, t)[1]) ** 2
    exact = x + e * DATA.score_at(x, sde, t)
    torch.testing.assert_close(update.a * x + update.b[0] * DATA.denoise_at(x, sde, t), exact, rtol=1e-10, atol=1e-10)
    assert update.c == pytest.approx(float(torch.sqrt(2 * e)))


@pytest.mark.parametrize(
    "predictor", ["em", "ancestral", make_solver("em", eta=0.5), make_solver("ancestral", variance="fixed_large"), ToyDDIM()]
)
@pytest.mark.parametrize("corrections", [0, 1, 3])
def test_any_fixed_step_predictor(predictor, corrections):
    sde = make_sde("vp")
    times = make_grid(sde, "half_log_snr", sde.t_max, sde.t_min, 6)
    solver = PredictorCorrector(predictor, corrections=corrections)
    plain = (make_solver(predictor) if isinstance(predictor, str) else predictor).plan(sde, times)
    updates = solver.plan(sde, times)
    assert solver.calls == 1 + corrections and len(updates) == 6 * (1 + corrections)
    assert updates[corrections :: 1 + corrections] == plain
    for step in range(6):  # the corrections come first and at the time of their step
        assert {u.t for u in updates[step * (1 + corrections) : (step + 1) * (1 + corrections)]} == {plain[step].t}


@pytest.mark.parametrize("predictor", ["em", "ancestral"])
def test_corrections_repair_a_coarse_predictor(predictor):
    # 12 steps of the predictor alone miss the covariance by more than with three corrections at each.
    sde = make_sde("vp")
    exact = DATA.moments(sde, sde.t_min)[1]
    errors = []
    for corrections in (0, 3):
        updates = PredictorCorrector(predictor, corrections=corrections).plan(sde, make_grid(sde, "half_log_snr", sde.t_max, sde.t_min, 12))
        errors.append(float((DATA.run_moments(updates, sde, *DATA.moments(sde, sde.t_max))[1] - exact).norm()))
    assert errors[1] < 0.95 * errors[0]


def test_options_by_name_reach_it():
    model = DATA.model(make_sde("ve"))
    settings = {"steps": 10, "progress": False}
    by_name = sample(model, (4, 2), "pc", predictor="ancestral", snr=0.1, corrections=2, **settings)
    by_object = sample(model, (4, 2), PredictorCorrector("ancestral", snr=0.1, corrections=2), **settings)
    assert torch.equal(by_name.x, by_object.x) and by_name.nfe.tolist() == [31] * 4
    assert not torch.equal(by_name.x, sample(model, (4, 2), "pc", predictor="ancestral", snr=0.2, corrections=2, **settings).x)


@pytest.mark.parametrize("predictor", [PredictorCorrector(), "pc", "ode", make_solver("ode"), ToyEuler(), 3, None])
def test_what_cannot_predict_is_refused(predictor):
    with pytest.raises(ValueError, match="predictor must be a fixed-step solver other than pc, got"):
        PredictorCorrector(predictor)


@pytest.mark.parametrize("name", SDES)
def test_the_normed_corrector_by_hand(name, device):
    """One step from t with corrector "langevin" and a predictor that leaves the state alone."""
    sde, data, snr = SDES[name], DATA.to(device), 0.2
    model, t = data.model(sde), 0.4
    times = torch.tensor([t, 0.5 * (t + sde.t_min)], dtype=torch.float64)
    (update, *_) = PredictorCorrector("em", snr=snr, corrector="langevin").plan(sde, times)
    x = data.sample(6) + 1.0
    z = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(device)
    noise = type("Given", (), {"draw": lambda self: z})()
    out = run_updates(Run(model, noise, torch.zeros(6, dtype=torch.int64, device=device)), x, [update])
    score = data.score_at(x, sde, t)
    e = 2 * (snr * z.norm(dim=1) / score.norm(dim=1)) ** 2
    exact = x + e[:, None] * score + torch.sqrt(2 * e)[:, None] * z
    torch.testing.assert_close(out, exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_all_correctors_sample_the_data(name, device):
    # In many dimensions, where |z|/|score| varies little from sample to sample: its bias of the variance is 4/D + snr^2.
    data = GaussianData(torch.full((256,), 0.3), 0.5 * torch.eye(256)).to(device)
    model = data.model(SDES[name])
    mean, covariance = data.moments(SDES[name], SDES[name].t_min)
    for corrector in ("ald", "langevin", "none"):
        options = {"corrector": corrector, "dtype": torch.float64, "device": device, "progress": False, "final": "state"}
        out = sample(model, (60, 256), "pc", steps=150, **options)
        assert float((out.x.mean(0) - mean).square().mean().sqrt()) < 0.11
        assert float(out.x.var(0).mean()) == pytest.approx(float(covariance.diagonal().mean()), rel=0.07)
        assert (out.nfe == (150 if corrector == "none" else 300)).all()


def test_the_normed_corrector_knows_no_neighbours(device):
    data = GaussianData(torch.full((LEAST_DIMENSIONS,), 0.3), torch.eye(LEAST_DIMENSIONS)).to(device)
    settings = {"steps": 20, "corrector": "langevin", "dtype": torch.float64, "progress": False, "device": device}
    model, shape = data.model(make_sde("vp")), (LEAST_DIMENSIONS,)
    whole = sample(model, (7, *shape), "pc", **settings).x
    torch.testing.assert_close(sample(model, (7, *shape), "pc", batch_size=2, **settings).x, whole, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(sample(model, (7, *shape), "pc", **settings | {"corrector": "ald"}).x, whole, atol=1e-3)


@pytest.mark.parametrize("shape", [(1,), (2,), (4, 4), (63,)])
def test_the_normed_corrector_takes_the_planned_step_in_few_dimensions(shape):
    # Its own would have variances of 1e4, 10, 1.3 and 1.1 for 1.
    size = math.prod(shape)
    data = GaussianData(torch.zeros(shape), torch.eye(size))
    model, settings = data.model(make_sde("vp")), {"steps": 100, "dtype": torch.float64, "progress": False}
    count = 8000 // size
    found = sample(model, (count, *shape), "pc", corrector="langevin", **settings)
    assert torch.equal(found.x, sample(model, (count, *shape), "pc", corrector="ald", **settings).x)
    assert float(found.x.var()) == pytest.approx(1, abs=0.07)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("corrector", ["ald", "langevin"])
def test_the_alpha_factor_is_that_of_the_authors(name, corrector):
    """Their step is e alpha_i with alpha_i = 1 - beta_i, which is 1 for VE."""
    sde, snr, steps = SDES[name], 0.2, 1000
    times = make_grid(sde, "time", sde.t_max, sde.t_min, steps)
    plans = [PredictorCorrector("em", snr=snr, corrector=corrector, alpha_factor=factor).plan(sde, times)[::2] for factor in (False, True)]
    sizes = [[1 - update.a if corrector == "ald" else 2 * update.snr**2 for update in plan] for plan in plans]
    found = torch.tensor(sizes[1], dtype=torch.float64) / torch.tensor(sizes[0], dtype=torch.float64)
    beta = -2 * sde.drift(torch.ones(steps, 1, dtype=torch.float64), times[:-1])[:, 0] * (times[:-1] - times[1:])  # f = -beta/2
    torch.testing.assert_close(found, 1 - beta, rtol=0, atol=float(0.6 * beta.max() ** 2) + 2e-3 * float(beta.max()) + 1e-12)
    assert (float(found.min()) == 1.0) == (name == "ve")


def test_an_unknown_corrector_is_refused():
    with pytest.raises(ValueError, match="unknown corrector 'mala'; choose from ald, langevin, none"):
        PredictorCorrector(corrector="mala")
