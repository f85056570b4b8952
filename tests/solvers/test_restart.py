"""Restart sampling against the paper's algorithm, written out here."""

import math

import pytest
import torch
from torch import Tensor

from sde_gen import make_sde, make_solver
from sde_gen.exact.mixtures import RingData
from sde_gen.solvers import Run, make_grid, run_updates

DATA = RingData(5, std=0.3)
SDE = make_sde("ve", sigma_min=0.01, sigma_max=20.0)


def recorded(device: torch.device):
    """A source of draws that gives the same ones each time it is made."""
    generator = torch.Generator().manual_seed(4)
    return lambda: torch.randn(16, 2, dtype=torch.float64, generator=generator).to(device)


def levels_of(count: int, first: float, last: float) -> list[float]:
    """`count` levels even in level^(1/7), the paper's `get_steps`."""
    return [(first ** (1 / 7) + k / (count - 1) * (last ** (1 / 7) - first ** (1 / 7))) ** 7 for k in range(count)]


def algorithm_1(denoise, x: Tensor, levels: list[float], draw, n_restart: int, rounds: int, t_min: float, t_max: float) -> Tensor:
    """Xu et al. 2023, arXiv:2306.14878, algorithm 1 with Heun's steps; n_restart levels, both ends counted; alpha = 1."""

    def heun(x: Tensor, t: float, after: float) -> Tensor:
        d = (x - denoise(x, t)) / t
        euler = x + (after - t) * d
        return x + (after - t) * 0.5 * (d + (euler - denoise(euler, after)) / after)

    turn = min(range(len(levels)), key=lambda k: abs(levels[k] - t_min))
    for k in range(1, len(levels)):
        x = heun(x, levels[k - 1], levels[k])
        for _ in range(rounds if k == turn else 0):
            x = x + math.sqrt(t_max**2 - levels[k] ** 2) * draw()
            inner = levels_of(n_restart, t_max, levels[k])
            for j in range(1, n_restart):
                x = heun(x, inner[j - 1], inner[j])
    return x


@pytest.mark.parametrize("rho_min", [0.05, 0.1, 0.13, 0.2])
def test_it_is_the_papers_algorithm(rho_min, device):
    data = DATA.to(device)
    x = 20 * torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(device)
    solver = make_solver("restart", rho_min=rho_min, rho_max=1.5, rounds=2, inner=3)
    noise = type("Given", (), {"draw": staticmethod(recorded(device))})()
    run = Run(data.model(SDE), noise, torch.zeros(16, dtype=torch.int64, device=device))
    ours = run_updates(run, x, solver.plan(SDE, make_grid(SDE, "karras", SDE.t_max, SDE.t_min, 14)))

    def denoise(x: Tensor, level: float) -> Tensor:
        return data.denoise_at(x, SDE, SDE.time_of(-math.log(level)))

    paper = algorithm_1(denoise, x, levels_of(15, 20.0, 0.01), recorded(device), 4, 2, rho_min, 1.5)
    torch.testing.assert_close(ours, paper, rtol=1e-9, atol=1e-9)
    assert run.nfe[0] == 2 * (14 + 2 * 3)


def test_rho_min_is_the_nearest_level_on_either_side():
    levels = levels_of(15, 20.0, 0.01)
    below, above = next((levels[k + 1], levels[k]) for k in range(14) if levels[k] > 0.1 >= levels[k + 1])
    for share, expected in ((0.4, below), (0.6, above)):  # of the way up from the one below
        plan = make_solver("restart", rho_min=below + share * (above - below)).plan(SDE, make_grid(SDE, "karras", SDE.t_max, SDE.t_min, 14))
        (place,) = {plan[k - 1].t for k in range(len(plan)) if plan[k].t is None}
        assert float(SDE.marginal(torch.tensor(place, dtype=torch.float64))[1]) == pytest.approx(expected)


def test_there_is_no_restart_where_no_level_lies_below_rho_max():
    times = make_grid(SDE, "karras", SDE.t_max, 0.9, 3)
    plan = make_solver("restart").plan(SDE, times)
    assert len(plan) == 6 and all(update.t is not None for update in plan)
