import pytest
import torch
from toys import all_sdes

from sde_gen import make_solver
from sde_gen.exact.mixtures import GaussianData
from sde_gen.solvers.langevin import langevin_steps

SDES = all_sdes()
DATA = GaussianData.correlated()


@pytest.mark.parametrize("name", SDES)
def test_many_corrections_at_a_level_leave_its_marginal(name):
    """Langevin's stationary law is p_t, to within the bias of a step of fixed snr, from a start that is far from it."""
    sde, t = SDES[name], 0.6
    (update,) = langevin_steps(sde, torch.tensor([t], dtype=torch.float64), snr=0.16)
    mean, covariance = DATA.run_moments([update] * 2000, sde, torch.full((2,), 9.0, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    exact_mean, exact_covariance = DATA.moments(sde, t)
    torch.testing.assert_close(mean, exact_mean, rtol=0, atol=1e-3)
    assert float((covariance - exact_covariance).norm() / exact_covariance.norm()) < 0.03


def test_the_plan_is_levels_times_corrections():
    sde = SDES["ve"]
    times = torch.linspace(1.0, 0.0, 5, dtype=torch.float64)
    updates = make_solver("langevin", corrections=3).plan(sde, times)
    assert [update.t for update in updates] == [t for t in times[1:].tolist() for _ in range(3)]
    assert [update.s for update in updates if update.s is not None] == times[1:].tolist()


@pytest.mark.parametrize(("options", "message"), [({"snr": -1.0}, "snr must be positive"), ({"corrections": 0}, "corrections must be")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_solver("langevin", **options)
