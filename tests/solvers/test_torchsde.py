"""torchsde on the reverse SDE: our Euler-Maruyama sample for sample, its own path end to end, its orders, failures that stay put."""

import itertools
import math
from itertools import pairwise

import pytest
import torch
import torchsde
from toys import CountingNetwork, FailingNetwork, all_sdes

from sde_gen import ReverseSDE, ScoreModel, SolverError, make_sde, make_solver, sample
from sde_gen.exact.mixtures import GaussianData, MixtureData, slope
from sde_gen.solvers import GRIDS, Run, make_grid

SDES = all_sdes()
DATA = GaussianData.correlated()
MIXTURE = MixtureData(
    torch.tensor([0.3, 0.7]), torch.tensor([[0.8, 0.3], [-0.6, -0.4]]), torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.1]]])
)
START, END = 0.75, 0.25


def draw(model, shape, solver="torchsde", **options):
    return sample(model, shape, solver, **{"dtype": torch.float64, "progress": False, "final": "state", **options})


def states(sde, count: int) -> torch.Tensor:
    alpha, sigma = sde.marginal(torch.tensor(START, dtype=torch.float64))
    return alpha * MIXTURE.sample(count) + sigma * torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name, grid", zip(SDES, itertools.cycle(GRIDS), strict=False))
def test_euler_is_em_sample_for_sample(name, grid, device):
    model = MIXTURE.to(device).model(SDES[name])
    ours = draw(model, (8, 2), "em", steps=40, grid=grid, trajectory="states", seed=3, device=device)
    for method in ("euler", "milstein"):  # the noise is additive
        theirs = draw(model, (8, 2), method=method, steps=40, grid=grid, trajectory="states", seed=3, device=device)
        scale = float(ours.trajectory.abs().max())
        torch.testing.assert_close(theirs.trajectory, ours.trajectory, rtol=1e-9, atol=1e-9 * scale)
        assert torch.equal(theirs.times, ours.times) and torch.equal(theirs.nfe, ours.nfe)


class Scripted:
    """Noise that is given, row by row of `draws`."""

    def __init__(self, draws: torch.Tensor) -> None:
        self.rows = iter(draws)

    def draw(self) -> torch.Tensor:
        return next(self.rows)


def run_of(model, draws: torch.Tensor) -> Run:
    return Run(model, Scripted(draws), torch.zeros(draws.shape[1], dtype=torch.int64))


def draws_along(motion, times: torch.Tensor) -> torch.Tensor:
    """What srk is to draw at each step for its path to be `motion`: increments and space-time Levy areas in unit variance."""
    found = []
    for a, b in pairwise((START - times).tolist()):
        w, u = motion(a, b, return_U=True)
        found += [w / (b - a) ** 0.5, (u / (b - a) - w / 2) * (12 / (b - a)) ** 0.5]
    return torch.stack(found)


def motion_of(count: int) -> torchsde.BrownianInterval:
    size, area = (count, 2), "space-time"
    return torchsde.BrownianInterval(0.0, START - END, size=size, dtype=torch.float64, entropy=7, levy_area_approximation=area)


class Backwards:
    """The reverse SDE in tau = START - t with its noise as a matrix, for torchsde."""

    noise_type, sde_type = "additive", "ito"

    def __init__(self, process: ReverseSDE) -> None:
        self.process = process

    def f(self, tau, x):
        return -self.process.drift(x, START - tau)

    def g(self, tau, x):
        return self.process.diffusion(START - tau).to(x) * torch.eye(2, dtype=x.dtype).expand(len(x), 2, 2)


@pytest.mark.parametrize("name", SDES)
def test_srk_is_one_run_of_sdeint_in_time(name):
    sde, count, steps = SDES[name], 16, 32
    model, x, motion = MIXTURE.model(sde), states(SDES[name], 16), motion_of(16)
    times = make_grid(sde, "time", START, END, steps)  # steps of 2^-6: exact in both
    draws = draws_along(motion, times)
    with torch.no_grad():
        theirs = torchsde.sdeint(Backwards(ReverseSDE(model)), x, [0.0, START - END], bm=motion, dt=2.0**-6, method="srk")[-1]
        ours = make_solver("torchsde", method="srk").solve(run_of(model, draws), x, START, END, steps, "time")
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(x.abs().max()))
    assert len(draws) == 2 * steps and count == len(x)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_strong_order_of_srk(name):
    sde, count, finest = SDES[name], 300, 256
    model, x, motion = MIXTURE.model(sde), states(sde, count), motion_of(count)
    solver, counts, ends = make_solver("torchsde", method="srk"), [16, 32, 64], []
    for steps in (finest, *counts):
        draws = draws_along(motion, make_grid(sde, "time", START, END, steps))
        with torch.no_grad():
            ends.append(solver.solve(run_of(model, draws), x, START, END, steps, "time"))
    errors = [float((end - ends[0]).norm(dim=1).mean()) for end in ends[1:]]
    assert slope(counts, errors) >= solver.strong_order - 0.15


@pytest.mark.parametrize("name", SDES)
def test_weak_order_of_srk(name):
    """The method is linear on Gaussian data, so that its moments are exact: rows probe the start and every draw."""
    sde, solver = SDES[name], make_solver("torchsde", method="srk")
    start, end = 0.7, 0.35
    start_mean, start_covariance = DATA.moments(sde, start)
    exact = torch.cat([part.flatten() for part in DATA.moments(sde, end)])
    counts, errors = [25, 50, 100], []
    for steps in counts:
        rows = 3 + 4 * steps
        x = torch.zeros(rows, 2, dtype=torch.float64)
        x[1:3] = torch.eye(2)
        draws = torch.zeros(2 * steps, rows, 2, dtype=torch.float64)
        index = torch.arange(4 * steps)
        draws[index // 2, 3 + index, index % 2] = 1
        with torch.no_grad():
            out = solver.solve(run_of(DATA.model(sde), draws), x, start, end, steps, "half_log_snr")
        push, noise = (out[1:3] - out[0]).T, out[3:] - out[0]
        moments = out[0] + push @ start_mean, push @ start_covariance @ push.T + noise.T @ noise
        errors.append(float((torch.cat([part.flatten() for part in moments]) - exact).norm()))
    assert slope(counts, errors) == pytest.approx(solver.weak_order, abs=0.1)


@pytest.mark.parametrize(
    "options, calls", [({"method": "milstein"}, 1), ({"method": "srk"}, 2), ({"adaptive": True, "rtol": 0.1, "atol": 0.1}, None)]
)
@pytest.mark.parametrize("watched", [False, True])
def test_calls_are_as_declared_and_counted(options, calls, watched):
    count, steps = 3, 200 if calls is None else 7
    network = CountingNetwork(MIXTURE.score(make_sde("vp")), count)
    model = ScoreModel(network, make_sde("vp"), prediction="score")
    assert make_solver("torchsde", **options).calls == calls
    hook = {"step_hook": lambda step, t, x: None} if watched else {}
    out = draw(model, (count, 2), steps=steps, cond={"index": torch.arange(count)}, **options, **hook)
    assert torch.equal(out.nfe, network.calls)
    if calls is not None:
        assert (out.nfe == calls * steps).all()


WIDE = 400
UNIT = ScoreModel(
    lambda x, c: -x / (SDES["vp"].marginal(c)[0] ** 2 * 0.25 + SDES["vp"].marginal(c)[1] ** 2)[:, None], SDES["vp"], prediction="score"
)
"""Data N(0, 0.25) in every element."""


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_adaptive_steps_have_the_law_and_follow_the_tolerance(method):
    calls = []
    for tolerance in (0.2, 0.05):
        out = draw(UNIT, (2, WIDE), method=method, adaptive=True, rtol=tolerance, atol=tolerance)
        calls.append(int(out.nfe.sum()))
        assert float(out.x.mean()) == pytest.approx(0, abs=4 * 0.5 / (2 * WIDE) ** 0.5)
        assert float(out.x.std()) == pytest.approx(0.5, rel=4 / (4 * WIDE) ** 0.5)
    assert calls[0] < calls[1]


def test_adaptive_samples_are_their_own_and_watching_changes_nothing():
    model = MIXTURE.model(make_sde("vp"))
    options = {"adaptive": True, "rtol": 0.2, "atol": 0.2}
    whole = draw(model, (3, 2), **options)
    alone = draw(model, (1, 2), index_offset=2, **options)
    torch.testing.assert_close(alone.x[0], whole.x[2], rtol=1e-9, atol=1e-9)
    assert len(whole.nfe.unique()) > 1 and alone.nfe[0] == whole.nfe[2]
    watched = draw(model, (3, 2), trajectory="states", **options)
    assert torch.equal(watched.x, whole.x) and torch.equal(watched.trajectory[-1], whole.x)
    seen = []
    stopped = draw(model, (3, 2), step_hook=lambda step, t, x: seen.append(x) or step == 5, **options)
    assert len(seen) == 5 and torch.equal(stopped.x, watched.trajectory[4])


@pytest.mark.parametrize("options", [{}, {"method": "srk"}, {"adaptive": True, "rtol": 0.1, "atol": 0.1}])
@pytest.mark.parametrize("value, below", [(math.nan, 0.5), (math.inf, 1.0), (1e300, 0.5), (1e18, 0.9)])
def test_a_field_that_breaks_ends_and_spares_the_others(options, value, below):
    sde = make_sde("vp")
    options = {"cond": {"index": torch.arange(3)}, "on_failure": "mask", "steps": 200 if "adaptive" in options else 20} | options
    good, out = (
        draw(ScoreModel(FailingNetwork(MIXTURE.score(sde), bad, below, value), sde, prediction="score"), (3, 2), **options)
        for bad in (-1, 1)
    )
    healthy = [0, 2]
    assert torch.equal(out.x[healthy], good.x[healthy]) and not out.failed[healthy].any()
    # Steps that nobody controls may carry a huge field to the end.
    assert bool(out.failed[1]) or (value == 1e18 and "adaptive" not in options)


def test_the_step_cap_of_adaptive_steps():
    model = MIXTURE.model(make_sde("vp"))
    with pytest.raises(SolverError, match="step cap") as caught:
        draw(model, (2, 2), adaptive=True, steps=5)
    assert caught.value.failed.tolist() == [0, 1]


def test_no_global_generator_is_used():
    states = torch.get_rng_state()
    for options in ({}, {"method": "srk"}, {"adaptive": True, "rtol": 0.3, "atol": 0.3}):
        draw(MIXTURE.model(make_sde("vp")), (1, 2), steps=None if "adaptive" in options else 5, **options)
    assert torch.equal(torch.get_rng_state(), states)


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"method": "heun"}, ValueError, "unknown method 'heun'; choose from euler, milstein, srk"),
        ({"adaptive": 1}, TypeError, "adaptive must be True or False, got 1"),
        ({"rtol": 0.0}, ValueError, "rtol must be positive and finite"),
    ],
)
def test_options_are_checked(options, error, match):
    with pytest.raises(error, match=match) as caught:
        make_solver("torchsde", **options)
    assert "\n" not in str(caught.value)
