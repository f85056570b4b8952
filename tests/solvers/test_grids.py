"""Every grid, on every SDE, in both directions."""

import pytest
import torch
from toys import all_sdes

from sde_gen import make_sde
from sde_gen.exact.mixtures import marginal
from sde_gen.solvers import GRIDS, make_grid
from sde_gen.solvers.grids import KARRAS_RHO

SDES = all_sdes()


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 37])
def test_exact_ends_and_monotone_in_both_directions(name, grid, steps):
    sde = SDES[name]
    middle = 0.5 * (sde.t_min + sde.t_max)
    for start, end in ((sde.t_max, sde.t_min), (sde.t_max, middle), (middle, sde.t_min)):
        down, up = make_grid(sde, grid, start, end, steps), make_grid(sde, grid, end, start, steps)
        for times, first, last in ((down, start, end), (up, end, start)):
            assert times.shape == (steps + 1,) and times.dtype == torch.float64 and times.device.type == "cpu"
            assert float(times[0]) == first and float(times[-1]) == last
            assert (times.diff().sign() == (1 if last > first else -1)).all()
        torch.testing.assert_close(down.flip(0), up, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SDES)
def test_each_grid_is_even_in_its_variable(name):
    sde = SDES[name]

    def even(values: torch.Tensor) -> None:
        steps = values.diff()
        torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-7, atol=1e-10)

    times = {grid: make_grid(sde, grid, sde.t_max, sde.t_min, 20) for grid in GRIDS}
    even(times["time"])
    even(times["quadratic"].sqrt())
    even(sde.half_log_snr(times["half_log_snr"]))
    alpha, sigma = marginal(sde, times["karras"])
    even((sigma / alpha) ** (1 / KARRAS_RHO))


def test_bad_arguments():
    sde = make_sde("vp")
    with pytest.raises(ValueError, match="unknown grid 'linear'; choose from time, half_log_snr, karras, quadratic"):
        make_grid(sde, "linear", 1.0, 0.1, 5)
    for steps in (0, -1, 2.0, True, None):
        with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
            make_grid(sde, "time", 1.0, 0.1, steps)
