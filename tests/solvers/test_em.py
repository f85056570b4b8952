"""Euler-Maruyama: strong order on a mixture, torchsde as the independent oracle on the same Brownian path."""

import itertools
from functools import cache
from itertools import pairwise

import pytest
import torch
import torchsde
from toys import all_sdes

from sde_gen import ReverseSDE, make_sde, make_solver, sample
from sde_gen.exact.mixtures import MixtureData, RingData, slope
from sde_gen.solvers import Run, make_grid

SDES = all_sdes()
MIXTURE = MixtureData(
    torch.tensor([0.3, 0.7]), torch.tensor([[0.8, 0.3], [-0.6, -0.4]]), torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.1]]])
)
START, END = 0.75, 0.25


class Increments:
    """Noise that is given: the Brownian increments of a path, scaled to unit variance."""

    def __init__(self, increments: torch.Tensor, times: torch.Tensor) -> None:
        self.rows = iter(increments / times.diff().abs().sqrt()[:, None, None])

    def draw(self) -> torch.Tensor:
        return next(self.rows)


def states(sde, count: int, data=MIXTURE) -> torch.Tensor:
    alpha, sigma = sde.marginal(torch.tensor(START, dtype=torch.float64))
    return alpha * data.sample(count) + sigma * torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@cache
def brownian_path(count: int, steps: int, entropy: int) -> tuple[torch.Tensor, torchsde.BrownianInterval, torch.Tensor]:
    """`steps` + 1 even times from START to END (the same for every SDE), a motion, and W at these times from its increments."""
    motion = torchsde.BrownianInterval(0.0, START - END, size=(count, 2), dtype=torch.float64, entropy=entropy)
    times = make_grid(SDES["vp"], "time", START, END, steps)
    increments = torch.stack([motion(a, b) for a, b in pairwise((START - times).tolist())])
    return times, motion, torch.cat((torch.zeros_like(increments[:1]), increments.cumsum(0)))


def walk(model, x: torch.Tensor, path: torch.Tensor, times: torch.Tensor, eta: float) -> torch.Tensor:
    """em along `times` with the Brownian `path` (steps + 1, *x.shape) at those times."""
    run = Run(model, Increments(path.diff(dim=0), times), torch.zeros(len(x), dtype=torch.int64))
    solver = make_solver("em", eta=eta)
    assert torch.equal(times, make_grid(model.sde, "time", float(times[0]), float(times[-1]), len(times) - 1))
    return solver.solve(run, x, float(times[0]), float(times[-1]), len(times) - 1, "time")


@pytest.mark.parametrize("name, eta", [*((name, 1.0) for name in SDES), ("vp", 0.6)])
def test_strong_order(name, eta):
    """E|x_h - x| with shared Brownian increments, 1,000 paths: order 1, since the noise is additive."""
    sde, count, finest = SDES[name], 1000, 512
    model = MIXTURE.model(sde)
    times, _, path = brownian_path(count, finest, 7)
    x = states(sde, count)
    exact = walk(model, x, path, times, eta)
    counts = [16, 64]
    errors = []
    for steps in counts:
        coarse = slice(None, None, finest // steps)
        errors.append(float((walk(model, x, path[coarse], times[coarse], eta) - exact).norm(dim=1).mean()))
    assert slope(counts, errors) == pytest.approx(make_solver("em").strong_order, abs=0.15)


class Backwards:
    """The reverse SDE in tau = START - t, for torchsde."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, process: ReverseSDE) -> None:
        self.process = process

    def f(self, tau, x):
        return -self.process.drift(x, START - tau)

    def g(self, tau, x):
        return self.process.diffusion(START - tau).to(x).expand_as(x)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_torchsde_takes_the_same_steps(name, eta):
    sde, count, steps = SDES[name], 32, 32
    model = MIXTURE.model(sde)
    times, motion, path = brownian_path(count, steps, 11)  # steps of 2^-6: exact in both
    x = states(sde, count)
    with torch.no_grad():
        theirs = torchsde.sdeint(Backwards(ReverseSDE(model, eta)), x, START - times, bm=motion, dt=2.0**-6, method="euler")[-1]
    torch.testing.assert_close(walk(model, x, path, times, eta), theirs, rtol=1e-9, atol=1e-9 * float(x.abs().max()))


def test_eta_zero_is_explicit_euler_and_draws_no_noise():
    sde = make_sde("vp")
    model = MIXTURE.model(sde)
    x = states(sde, 8)
    options = {"steps": 10, "eta": 0.0, "x_init": x, "t_start": START, "t_end": END, "grid": "time", "progress": False}
    out = [sample(model, (8, 2), "em", seed=seed, **options).x for seed in (0, 1)]
    assert torch.equal(*out)
    times = make_grid(sde, "time", START, END, 10).tolist()
    for t, s in pairwise(times):
        x = x + (s - t) * model.velocity(x, t)
    torch.testing.assert_close(out[0], x, rtol=1e-10, atol=1e-10)


_PAIRS = list(itertools.product(("em", "pc", "ode", "ancestral"), SDES))
_PAIRS = [pair for k, pair in enumerate(_PAIRS) if k % 5 in (0, 2)]  # every SDE, and every solver on several


@pytest.mark.parametrize("solver, name", _PAIRS)
def test_eight_gaussians(solver, name, device):
    """4,000 samples: every mode gets its eighth, and has its own width and place."""
    sde, data, count = SDES[name], RingData().to(device), 4000
    steps = {"em": 100, "ode": None}.get(solver, 60)
    x = sample(data.model(sde, prior="sde"), (count, 2), solver, steps=steps, seed=1, progress=False, device=device).x.double()
    distance, mode = torch.cdist(x, data.means).min(1)
    share = torch.bincount(mode, minlength=8) / count
    assert ((share - 0.125).abs() < 0.02).all(), share
    assert (distance < 6 * data.std).double().mean() > 0.999
    for k in range(8):
        inside = x[mode == k] - data.means[k]
        assert inside.mean(0).abs().max() < 0.02
        assert float(inside.std()) == pytest.approx(data.std, rel=0.15)
