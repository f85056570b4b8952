"""The loop that all solvers share, and what every registered solver must do: found by looping over the registry."""

from functools import cache

import pytest
import torch
from toys import CountingNetwork, ToyDDIM, ToyEuler, all_sdes

from sde_gen import ScoreModel, make_sde, make_solver, sample
from sde_gen.exact.mixtures import GaussianData, RingData, slope
from sde_gen.randomness import NoiseStream
from sde_gen.solvers import GRIDS, SOLVERS, FixedStepSolver, Run, Update, make_grid, run_updates
from sde_gen.solvers.base import rows, seen_as

SDES = all_sdes()
DATA = GaussianData.correlated()
CPU = torch.device("cpu")

# Every registered solver with its defaults, the variants that change the equations, and a toy.
METHODS = {
    **{name: make_solver(name) for name in SOLVERS},
    "em eta=0": make_solver("em", eta=0.0),
    "em eta=0.5": make_solver("em", eta=0.5),
    "ancestral large": make_solver("ancestral", variance="fixed_large"),
    "pc ancestral": make_solver("pc", predictor="ancestral"),
    "pc dpm": make_solver("pc", predictor="dpm"),
    "ddim eta=0.5": make_solver("ddim", eta=0.5),
    **{f"{name} {order}": make_solver(name, order=order) for name in ("ab", "dpm", "unipc") for order in (1, 2, 4)},
    **{f"dpm_sde {order}": make_solver("dpm_sde", order=order) for order in (1, 3)},
    "dpm noise": make_solver("dpm", prediction="noise"),
    "dpm noise 2": make_solver("dpm", prediction="noise", order=2),
    "dpm 2 integral": make_solver("dpm", order=2, form="integral"),
    "dpm_sde integral": make_solver("dpm_sde", form="integral"),
    "ab time": make_solver("ab", variable="time"),
    "toy ddim": ToyDDIM(),
}
TABLES = {name: method for name, method in METHODS.items() if isinstance(method, FixedStepSolver)}
WEAK = [name for name, method in TABLES.items() if method.weak_order is not None]
VARIANT_SDES = ("vp", "ve", "toy")
FLOWS = [name for name, method in TABLES.items() if method.order is not None and (not method.stochastic or getattr(method, "eta", 1) == 0)]


def pairs(names):
    """Registered solvers on every SDE; variants of their equations on those of `VARIANT_SDES`."""
    return [(method, name) for method in names for name in (SDES if method in SOLVERS else VARIANT_SDES)]


def tolerance(solver) -> float:
    # A Langevin step of fixed snr has a bias of its own, at most snr^2 of the variance (2.6 %), which no grid removes.
    return 0.025 if (solver.order or solver.weak_order) is not None else 0.04


def run_of(model, count: int, shape=(2,), dtype=torch.float64, device=CPU, **kwargs) -> Run:
    return Run(model, NoiseStream(0, 0, count, shape, dtype, device), torch.zeros(count, dtype=torch.int64, device=device), **kwargs)


# Annealed Langevin dynamics of fixed snr does not converge to the data as the grid is refined: see test_langevin.py.
CONSISTENT = [name for name in TABLES if name != "langevin"]


@pytest.mark.parametrize("method, name", pairs(CONSISTENT))
def test_gaussian_data_keep_mean_and_covariance(name, method):
    """The moments of the samples themselves, carried exactly through the plan: no Monte Carlo."""
    sde, solver = SDES[name], TABLES[method]
    steps = 1600 if 1 in (solver.order, solver.weak_order) else 300
    updates = solver.plan(sde, make_grid(sde, "half_log_snr", sde.t_max, sde.t_min, steps))
    mean, covariance = DATA.run_moments(updates, sde, *DATA.moments(sde, sde.t_max))
    exact_mean, exact_covariance = DATA.moments(sde, sde.t_min)
    torch.testing.assert_close(mean, exact_mean, rtol=0, atol=0.01)
    torch.testing.assert_close(covariance, exact_covariance, rtol=0, atol=tolerance(solver))


@pytest.mark.parametrize("method", TABLES)
def test_the_loop_does_what_the_table_says(method, device):
    """Samples of the real loop have the moments of the recursion, coarse grid and all; deterministic ones to rounding."""
    sde, count, steps = make_sde("vp"), 8000, 12
    model, solver = DATA.to(device).model(sde), TABLES[method]
    out = sample(model, (count, 2), solver, steps=steps, final="state", dtype=torch.float64, progress=False, device=device)
    x = out.x.cpu()
    updates = solver.plan(sde, make_grid(sde, solver.default_grid, sde.t_max, sde.t_min, steps))
    mean, covariance = DATA.run_moments(updates, sde, *DATA.moments(sde, sde.t_max))
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=4 * float(covariance.max()) ** 0.5 / count**0.5)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=6 * float(covariance.max()) / count**0.5)


@pytest.mark.parametrize("method, name", pairs(WEAK))
@pytest.mark.parametrize("grid", ["time", "half_log_snr"])
def test_weak_order(name, grid, method):
    """Slope of the error of the exact mean and covariance as the steps are quartered, away from the ends."""
    sde, solver = SDES[name], TABLES[method]
    start, end = 0.7, 0.35
    exact = torch.cat([part.flatten() for part in DATA.moments(sde, end)])
    counts, errors = [200, 800] if solver.weak_order == 1 else [400, 1600], []
    for steps in counts:
        updates = solver.plan(sde, make_grid(sde, grid, start, end, steps))
        moments = DATA.run_moments(updates, sde, *DATA.moments(sde, start))
        errors.append(float((torch.cat([part.flatten() for part in moments]) - exact).norm()))
    assert slope(counts, errors) == pytest.approx(solver.weak_order, abs=0.1)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("method", ["dpm", "dpm_sde"])
def test_the_midpoint_form_holds_the_prediction_of_the_middle(name, method):
    """The second-order step that k-diffusion and diffusers call midpoint, in closed form."""
    sde = SDES[name]
    times = make_grid(sde, "karras", START, END, 6)
    (alpha, _), h = sde.marginal(times), sde.half_log_snr(times).diff()
    rate = 2 if method == "dpm_sde" else 1
    whole = -alpha[1:] * torch.expm1(-rate * h)
    slope_weight = 0.5 * whole[1:] * h[1:] / h[:-1]
    first, *others = make_solver(method, order=2).plan(sde, times)
    assert first.b == pytest.approx((float(whole[0]), 0.0), rel=1e-9)
    found = torch.tensor([update.b for update in others], dtype=torch.float64)
    torch.testing.assert_close(found, torch.stack((whole[1:] + slope_weight, -slope_weight), 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["vp", "ve", "cosine"])
@pytest.mark.parametrize("method, most", [("dpm", 0.65), ("dpm_sde", 0.5)])
def test_the_midpoint_form_is_the_better_second_order_form(name, method, most):
    sde, steps = SDES[name], 50
    times = make_grid(sde, "half_log_snr", sde.t_max, sde.t_min, steps)
    exact = torch.cat([part.flatten() for part in DATA.moments(sde, sde.t_min)])
    errors = []
    for form in ("midpoint", "integral"):
        moments = DATA.run_moments(make_solver(method, order=2, form=form).plan(sde, times), sde, *DATA.moments(sde, sde.t_max))
        errors.append(float((torch.cat([part.flatten() for part in moments]) - exact).norm()))
    assert errors[0] < most * errors[1]


START, END = 0.7, 0.35
RING = RingData(3, std=0.4)


@pytest.mark.parametrize("method, name", pairs(FLOWS))
def test_order_of_deterministic_solvers(name, method):
    """Slope of the error of the flow of a mixture, against a run of many more steps of the same start."""
    sde, solver = SDES[name], TABLES[method]
    model = RING.model(sde)
    x, exact = on_the_flow(name, 1, 0), on_the_flow(name, 1, 1)
    counts = [64, 256]
    warm = [float((from_exact_history(solver, name, steps) - exact).norm()) for steps in counts]
    assert slope(counts, warm) >= solver.order - (0.15 if solver.order < 5 else 0.2)  # float64 ends the range of the fifth order
    if not looked_back(plan_of(solver, name, 64), 64):
        return  # it would be the same run again
    cold = [float((solver.solve(run_of(model, 64), x, START, END, steps, "half_log_snr") - exact).norm()) for steps in counts]
    assert slope(counts, cold) >= min(solver.order, 2) - 0.15


@cache
def on_the_flow(name, steps, k):
    """States of the ring's flow at the k-th of the times of a grid from START to END: all methods start from them."""
    sde = SDES[name]
    if k == 0:
        (alpha,), (sigma,) = (value[None] for value in sde.marginal(torch.tensor(START, dtype=torch.float64)))
        return alpha * RING.sample(64) + sigma * torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    times = make_grid(sde, "half_log_snr", START, END, steps).tolist()
    solver = make_solver("ode", rtol=1e-11, atol=1e-11)
    return solver.solve(run_of(RING.model(sde), 64), on_the_flow(name, steps, k - 1), times[k - 1], times[k], 10_000, "time")


def plan_of(solver, name, steps):
    return solver.plan(SDES[name], make_grid(SDES[name], "half_log_snr", START, END, steps))


def looked_back(updates, steps) -> int:
    """Predictions of earlier steps that a step of a multistep method uses."""
    return max(len(update.b) for update in updates) - 1 if len(updates) == steps else 0


def from_exact_history(solver, name, steps):
    """The solver from the first step at which it has all the predictions that it looks back to, these taken on the flow."""
    model, updates = RING.model(SDES[name]), plan_of(solver, name, steps)
    known, history = looked_back(updates, steps), ()
    for k, update in enumerate(updates[:known]):
        x = on_the_flow(name, steps, k)
        denoised = model.denoise(x, update.t)
        history = (denoised if update.view is None else seen_as(x, denoised, *update.view), *history)
    return run_updates(run_of(model, 64), on_the_flow(name, steps, known), updates[known:], history)


@pytest.mark.parametrize("method", METHODS)
def test_declarations(method):
    solver = METHODS[method]
    assert solver.default_steps >= 1 and isinstance(solver.stochastic, bool)
    assert solver.default_grid in GRIDS
    assert solver.calls is None or solver.calls >= 1
    if solver.weak_order is not None or solver.strong_order is not None:
        assert solver.stochastic


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1,), (2, 3), (1, 4, 4), (1, 2, 2, 3)])
def test_calls_are_as_declared_for_any_shape(method, shape):
    solver, sde, count, steps = METHODS[method], make_sde("vp"), 3, 5
    network = CountingNetwork(lambda x, c: 0.5 * x, count)
    out = sample(
        ScoreModel(network, sde),
        (count, *shape),
        solver,
        steps=200 if solver.adaptive else steps,
        final="state",
        progress=False,
        cond={"index": torch.arange(count)},
    )
    assert out.x.shape == (count, *shape) and torch.isfinite(out.x).all()
    assert torch.equal(out.nfe, network.calls)
    if solver.calls is not None:
        assert network.calls.tolist() == [solver.calls * steps] * count


@pytest.mark.parametrize("method", TABLES)
def test_a_plan_ends_its_steps_at_the_grid(method):
    sde = make_sde("cosine")
    times = make_grid(sde, "karras", sde.t_max, sde.t_min, 9)
    updates = TABLES[method].plan(sde, times)
    assert [update.s for update in updates if update.s is not None] == times[1:].tolist()
    assert all(isinstance(value, float) for update in updates for value in (update.a, update.c, *update.b))


@pytest.mark.parametrize("solver", [ToyDDIM(), ToyEuler()])
@pytest.mark.parametrize("name", SDES)
def test_unregistered_solvers_follow_the_flow(name, solver):
    sde = SDES[name]
    model = DATA.model(sde)
    start, end = 0.6, 0.3
    x = DATA.flow_map(DATA.sample(32), sde, sde.t_min, start)
    out = sample(model, (32, 2), solver, steps=200, x_init=x, t_start=start, t_end=end, grid="time", progress=False)
    exact = DATA.flow_map(x, sde, start, end)
    torch.testing.assert_close(out.x, exact, rtol=0, atol=0.02 * float(exact.abs().max()))
    assert (out.nfe == 200).all()


class Scripted:
    """Noise that is 1, 2, 3, ... and counts its draws."""

    def __init__(self, device: torch.device) -> None:
        self.draws, self.device = 0, device

    def draw(self) -> torch.Tensor:
        self.draws += 1
        return torch.full((2, 1), float(self.draws), dtype=torch.float64, device=self.device)


def scripted_run(observer=None, device=CPU) -> tuple[Run, Scripted]:
    """D(x, t) = x + t."""
    model = ScoreModel(lambda x, c: x + c[:, None], make_sde("vp"), prediction="data")
    noise = Scripted(device)
    return Run(model, noise, torch.zeros(2, dtype=torch.int64, device=device), observer=observer), noise


def test_updates_by_hand(device):
    run, noise = scripted_run(device=device)
    x = torch.tensor([[1.0], [10.0]], dtype=torch.float64, device=device)
    before = x.clone()
    updates = [
        Update(t=0.5, a=2.0, b=(3.0,), c=0.1, s=0.4),  # D = x + .5
        Update(t=0.4, a=1.0, b=(1.0, -1.0), s=0.3),  # D_0 = x + .4 and the one before it; no draw
        Update(t=None, a=0.5, b=(2.0, 0.0), c=1.0),  # D_0 is still the last one; second draw
    ]
    out = run_updates(run, x, updates)
    first = 2 * before + 3 * (before + 0.5) + 0.1
    second = first + (first + 0.4) - (before + 0.5)
    third = 0.5 * second + 2 * (first + 0.4) + 2
    torch.testing.assert_close(out, third)
    assert torch.equal(x, before), "the caller's tensor is not touched"
    assert noise.draws == 2 and run.nfe.tolist() == [2, 2]


def test_history_keeps_only_what_is_asked_for():
    run, _ = scripted_run()
    x = torch.zeros(2, 1, dtype=torch.float64)
    updates = [Update(t=0.1 * k, a=1.0, b=(0.0, 0.0, 0.0)) for k in range(1, 6)] + [Update(t=None, a=0.0, b=(100.0, 10.0, 1.0))]
    torch.testing.assert_close(run_updates(run, x, updates), torch.full((2, 1), 50 + 4 + 0.3, dtype=torch.float64))


def test_an_observer_sees_each_step_and_stops():
    seen = []

    def observer(s, x, denoised):
        seen.append((s, x.clone(), denoised.clone()))
        return s == 0.3

    run, _ = scripted_run(observer)
    x = torch.ones(2, 1, dtype=torch.float64)
    updates = [
        Update(t=0.5, a=1.0, b=(1.0,), s=0.4),
        Update(t=0.4, a=0.0, b=(1.0,)),  # within a step: not shown
        Update(t=0.4, a=0.0, b=(1.0,), s=0.3),
        Update(t=0.3, a=0.0, b=(1.0,), s=0.2),
    ]
    out = run_updates(run, x, updates)
    assert [s for s, _, _ in seen] == [0.4, 0.3]
    torch.testing.assert_close(seen[0][1], torch.full((2, 1), 2.5, dtype=torch.float64))
    torch.testing.assert_close(seen[0][2], torch.full((2, 1), 1.5, dtype=torch.float64))
    torch.testing.assert_close(out, seen[1][1])
    assert run.nfe.tolist() == [3, 3]


def test_rows_are_python_numbers():
    table = rows(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert table == [(1.0, 3.0), (2.0, 4.0)] and all(type(value) is float for row in table for value in row)


def test_the_recursion_of_moments_knows_multistep_tables():
    # The judge again: a two-step table on samples, all of which go through the real loop.
    sde, steps = make_sde("vp"), 8
    times = make_grid(sde, "half_log_snr", sde.t_max, sde.t_min, steps)
    first = ToyDDIM().plan(sde, times)
    table = [first[0]] + [Update(t=u.t, a=u.a, b=(1.5 * u.b[0], -0.5 * u.b[0]), c=0.1, s=u.s) for u in first[1:]]
    count = 20_000
    mean, covariance = DATA.moments(sde, sde.t_max)
    x = mean + torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) @ torch.linalg.cholesky(covariance).T
    out = run_updates(run_of(DATA.model(sde), count), x, table)
    mean, covariance = DATA.run_moments(table, sde, mean, covariance)
    torch.testing.assert_close(out.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(out.T.cov(), covariance, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "name, options, error, match",
    [
        ("heun9", {}, ValueError, "unknown solver 'heun9'; choose from .*em, .*pc"),
        ("em", {"snr": 0.1}, ValueError, "solver 'em' has no setting snr; it takes eta"),
        ("em", {"eta": -1.0}, ValueError, "eta must not be negative, got -1.0"),
        ("em", {"eta": float("nan")}, ValueError, "eta must not be negative"),
        ("pc", {"snr": 0.0}, ValueError, "snr must be positive and finite, got 0.0"),
        ("pc", {"snr": "0.1"}, TypeError, "snr must be a number"),
        ("pc", {"corrections": -1}, ValueError, "corrections must be a whole number of at least 0, got -1"),
        ("pc", {"corrections": 1.5}, ValueError, "corrections must be a whole number"),
        ("pc", {"predictor": "pc"}, ValueError, "predictor must be a fixed-step solver other than pc"),
        ("pc", {"predictor": "ode"}, ValueError, "predictor must be a fixed-step solver other than pc, got 'ode'"),
        ("pc", {"predictor": "nope"}, ValueError, "unknown solver 'nope'"),
        ("ode", {"rtol": 0.0}, ValueError, "rtol must be positive and finite"),
        ("ode", {"atol": float("inf")}, ValueError, "atol must be positive and finite"),
        ("pc", {"alpha_factor": 1}, ValueError, "alpha_factor must be True or False, got 1"),
        ("dpm", {"form": "heun"}, ValueError, "unknown form 'heun'; choose from midpoint, integral"),
        ("dpm", {"form": "midpoint"}, ValueError, "form 'midpoint' is of order 2, got order 3"),
        ("dpm_sde", {"order": 1, "form": "midpoint"}, ValueError, "form 'midpoint' is of order 2, got order 1"),
        ("ancestral", {"variance": "medium"}, ValueError, "unknown variance 'medium'; choose from fixed_large, fixed_small, learned"),
    ],
)
def test_make_solver_says_what_is_wrong(name, options, error, match):
    with pytest.raises(error, match=match) as caught:
        make_solver(name, **options)
    assert "\n" not in str(caught.value)
