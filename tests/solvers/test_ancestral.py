"""The ancestral step against Bayes' rule, and against DDPM's and NCSN's own formulas."""

import pytest
import torch
from toys import all_sdes

from sde_gen import make_sde, make_solver
from sde_gen.exact.mixtures import GaussianData, marginal
from sde_gen.solvers import make_grid

SDES = all_sdes()


def pair(sde) -> tuple[float, float]:
    return sde.t_min + 0.6 * (sde.t_max - sde.t_min), sde.t_min + 0.45 * (sde.t_max - sde.t_min)


def step(sde, t: float, s: float, variance: str):
    (update,) = make_solver("ancestral", variance=variance).plan(sde, torch.tensor([t, s], dtype=torch.float64))
    return update


@pytest.mark.parametrize("name", SDES)
def test_small_is_the_posterior(name):
    """q(x_s | x_t, x_0) from the joint Gaussian of (x_s, x_t) given x_0."""
    sde = SDES[name]
    t, s = pair(sde)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (tuple(map(float, marginal(sde, time))) for time in (t, s))
    update = step(sde, t, s, "fixed_small")
    covariance = alpha_t / alpha_s * sigma_s**2  # x_t = (alpha_t/alpha_s) x_s + noise
    gain = covariance / sigma_t**2
    assert update.a == pytest.approx(gain) and update.b[0] == pytest.approx(alpha_s - gain * alpha_t)
    assert update.c**2 == pytest.approx(sigma_s**2 - gain * covariance)
    assert (update.t, update.s) == (t, s)


@pytest.mark.parametrize("name", SDES)
def test_large_is_the_forward_steps_variance(name):
    sde = SDES[name]
    t, s = pair(sde)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (tuple(map(float, marginal(sde, time))) for time in (t, s))
    small, large = step(sde, t, s, "fixed_small"), step(sde, t, s, "fixed_large")
    assert (small.a, small.b) == (large.a, large.b)
    assert large.c**2 == pytest.approx(sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)


@pytest.mark.parametrize("name", SDES)
def test_one_known_image_is_reached_exactly_at_any_number_of_steps(name):
    """Where the denoiser is constant (data at one point) the posterior is exact: moments of q(x_s | x_0) at every step."""
    sde = SDES[name]
    data = GaussianData(torch.tensor([0.7, -0.3]), torch.zeros(2, 2))
    for steps in (1, 3, 20):
        updates = make_solver("ancestral").plan(sde, make_grid(sde, "time", sde.t_max, sde.t_min, steps))
        mean, covariance = data.run_moments(updates, sde, *data.moments(sde, sde.t_max))
        for got, exact in zip((mean, covariance), data.moments(sde, sde.t_min), strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(variance):
    """Ho et al. 2020 with beta_i = 1 - abar_i/abar_(i-1): x = (x - beta_i/sqrt(1 - abar_i) eps)/sqrt(alpha_i) + sqrt(var_i) z."""
    sde = make_sde("vp")
    times = torch.linspace(1.0, 0.01, 30, dtype=torch.float64)
    abar = sde.marginal(times)[0] ** 2
    x, x_0 = torch.tensor(0.8, dtype=torch.float64), torch.tensor(-0.3, dtype=torch.float64)
    for i, update in enumerate(make_solver("ancestral", variance=variance).plan(sde, times)):
        now, before = abar[i], abar[i + 1]
        alpha_i = now / before
        beta_i = 1 - alpha_i
        noise = (x - now.sqrt() * x_0) / (1 - now).sqrt()
        mean = (x - beta_i / (1 - now).sqrt() * noise) / alpha_i.sqrt()
        torch.testing.assert_close(update.a * x + update.b[0] * x_0, mean)
        assert update.c**2 == pytest.approx(float(beta_i * (1 - before) / (1 - now) if variance == "fixed_small" else beta_i))


def test_ncsn():
    """Song et al. 2021, appendix F: x + (sigma_i^2 - sigma_(i-1)^2) score + sigma_(i-1)/sigma_i sqrt(sigma_i^2 - sigma_(i-1)^2) z."""
    sde = make_sde("ve")
    times = torch.linspace(1.0, 0.0, 20, dtype=torch.float64)
    sigma = sde.marginal(times)[1]
    x, x_0 = torch.tensor(3.0, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    for i, update in enumerate(make_solver("ancestral").plan(sde, times)):
        gap = sigma[i] ** 2 - sigma[i + 1] ** 2
        torch.testing.assert_close(update.a * x + update.b[0] * x_0, x + gap * (x_0 - x) / sigma[i] ** 2)
        assert update.c == pytest.approx(float(sigma[i + 1] / sigma[i] * gap.sqrt()))


@pytest.mark.parametrize("name", SDES)
def test_towards_noise_is_refused(name):
    with pytest.raises(ValueError, match="t_end must be below t_start"):
        make_solver("ancestral").plan(SDES[name], torch.tensor([0.3, 0.6], dtype=torch.float64))
