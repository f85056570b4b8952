"""EDM's stochastic sampler against the paper's algorithm, written out here."""

import math

import pytest
import torch
from torch import Tensor

from sde_gen import make_sde, make_solver
from sde_gen.exact.mixtures import RingData
from sde_gen.solvers import Run, make_grid, run_updates

DATA = RingData(5, std=0.3)


class Recorded:
    """The same standard normal draws, in order, for both sides; counts them."""

    def __init__(self) -> None:
        self.draws = torch.randn(100, 16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        self.used = 0

    def draw(self) -> Tensor:
        self.used += 1
        return self.draws[self.used - 1]


def algorithm_2(denoise, x: Tensor, levels: list[float], draw, s_churn: float, s_min: float, s_max: float, s_noise: float) -> Tensor:
    """Karras et al. 2022, arXiv:2206.00364, algorithm 2: levels t_0 > ... > t_{N-1} > 0, and t_N = 0 after them; alpha = 1."""
    count = len(levels)
    for t, after in zip(levels, [*levels[1:], 0.0], strict=True):
        gamma = min(s_churn / count, math.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        hat = t + gamma * t
        if gamma:
            x = x + math.sqrt(hat**2 - t**2) * s_noise * draw()
        d = (x - denoise(x, hat)) / hat
        euler = x + (after - hat) * d
        x = euler if after == 0 else x + (after - hat) * 0.5 * (d + (euler - denoise(euler, after)) / after)
    return x


def both(steps: int, **options: float) -> tuple[Tensor, Tensor, Recorded, Recorded, int]:
    """Our samples and the paper's from the same start and draws, the draws used, and our calls with that of final="denoise"."""
    sde = make_sde("ve", sigma_min=0.01, sigma_max=20.0)
    model = DATA.model(sde)
    x = 20 * torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    times = make_grid(sde, "karras", sde.t_max, sde.t_min, steps)
    solver = make_solver("edm", **options)
    mine, theirs = Recorded(), Recorded()
    run = Run(model, mine, torch.zeros(16, dtype=torch.int64))
    ours = model.denoise(run_updates(run, x, solver.plan(sde, times)), sde.t_min)
    levels = [float(sde.marginal(t)[1]) for t in times]
    settings = {name: getattr(solver, name) for name in ("s_churn", "s_min", "s_max", "s_noise")}
    paper = algorithm_2(lambda x, level: DATA.denoise_at(x, sde, sde.time_of(-math.log(level))), x, levels, theirs.draw, **settings)
    return ours, paper, mine, theirs, int(run.nfe[0]) + 1


@pytest.mark.parametrize("options", [{}, {"s_churn": 3.0, "s_max": 5.0, "s_noise": 1.1}, {"s_churn": 0.0}])
def test_it_is_the_papers_algorithm(options):
    # The levels below t_max, so that none is raised above what the model knows; the default s_min lies above t_min's level.
    ours, paper, mine, theirs, calls = both(12, **({"s_max": 10.0} | options))
    assert mine.used == theirs.used and (mine.used > 0) == (options.get("s_churn") != 0)
    torch.testing.assert_close(ours, paper, rtol=1e-9, atol=1e-9)
    assert calls == 2 * 12 + 1  # the paper's 2 N - 1 of N = steps + 1


def test_the_last_step_is_churned_where_s_min_lies_below_it():
    # One Euler step from the raised level to t_min stands for the paper's, from there to 0 at once: equal to second order in the level.
    ours, paper, mine, theirs, calls = both(12, s_min=0.0, s_max=10.0)
    assert mine.used == theirs.used == both(12, s_max=10.0)[2].used + sum_below(12, 0.05)
    assert calls == 2 * 12 + 2
    assert float((ours - paper).norm() / paper.norm()) < 3e-4
    assert float((ours - both(12, s_min=0.011, s_max=10.0)[1]).norm() / paper.norm()) > 1e-3  # the paper's without it


def sum_below(steps: int, level: float) -> int:
    sde = make_sde("ve", sigma_min=0.01, sigma_max=20.0)
    return int((sde.marginal(make_grid(sde, "karras", sde.t_max, sde.t_min, steps))[1] < level).sum())


def test_the_end_of_a_part_of_the_way_is_not_churned():
    sde = make_sde("ve")
    plan = make_solver("edm", s_min=0.0).plan(sde, make_grid(sde, "karras", 0.9, 0.5, 4))
    assert plan[-1].s == 0.5 and sum(update.t is not None for update in plan) == 8
