"""Every registered SDE, and one that is not, against its defining equations."""

import math

import pytest
import torch
import torchsde
from torch.distributions import Normal
from toys import LinearPath, all_sdes

from sde_gen import SDE, VESDE, VPSDE, CosineVPSDE, SubVPSDE, make_sde
from sde_gen.sdes import SDES

VARIANTS = {
    **all_sdes(),
    "vp constant": make_sde("vp", beta_min=5.0, beta_max=5.0),
    "vp small": make_sde("vp", beta_min=1e-4, beta_max=12.0, lambda_max=9.0),
    "subvp constant": make_sde("subvp", beta_min=5.0, beta_max=5.0),
    "ve wide": make_sde("ve", sigma_min=1e-3, sigma_max=1000.0),
    "ddpm cosine": make_sde("ddpm", betas="cosine", steps=60, beta_max=0.99),
    "cosine wide": make_sde("cosine", lambda_min=-9.0, lambda_max=8.0),
}
every = pytest.mark.parametrize("name", VARIANTS)


def times(sde: SDE, count: int = 101, inside: float = 0.0) -> torch.Tensor:
    """Even in t, and even in lambda where small times matter; `inside` keeps off the ends."""
    width = sde.t_max - sde.t_min
    even = torch.linspace(sde.t_min + inside * width, sde.t_max - inside * width, count, dtype=torch.float64)
    return torch.cat((even, sde.t_min + width * 10 ** torch.linspace(-5, -1, 20, dtype=torch.float64)))


@every
def test_drift_and_diffusion_are_those_of_the_marginal(name):
    sde = VARIANTS[name]
    t = times(sde).requires_grad_()
    alpha, sigma = sde.marginal(t)
    (alpha_slope,) = torch.autograd.grad((alpha + 0 * t).sum(), t, retain_graph=True)
    (variance_slope,) = torch.autograd.grad((sigma**2).sum(), t)
    f, g = sde.f(t.detach()), sde.diffusion(t.detach())
    torch.testing.assert_close(alpha_slope, f * alpha.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(variance_slope, 2 * f * sigma.detach() ** 2 + g**2, rtol=1e-9, atol=1e-10)


@every
def test_slopes_are_finite_differences(name):
    sde = VARIANTS[name]
    t = times(sde, 41, inside=0.05)[:41]
    h = 1e-6
    log_alpha = (torch.log(sde.marginal(t + h)[0]) - torch.log(sde.marginal(t - h)[0])) / (2 * h)
    lambda_ = (sde.half_log_snr(t + h) - sde.half_log_snr(t - h)) / (2 * h)
    f, slope = sde.slopes(t)
    torch.testing.assert_close(f, log_alpha, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(slope, lambda_, rtol=1e-6, atol=1e-7)
    assert (slope < 0).all()


@every
def test_closed_forms_equal_what_the_base_class_derives(name):
    sde = VARIANTS[name]
    t = times(sde)
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(sde.half_log_snr(t), SDE.half_log_snr(sde, t), **close)
    for own, derived in zip(sde.slopes(t), SDE.slopes(sde, t), strict=True):
        torch.testing.assert_close(own, derived, **close)
    torch.testing.assert_close(sde.f(t), SDE.slopes(sde, t)[0], **close)
    torch.testing.assert_close(sde.diffusion(t), sde.marginal(t)[1] * torch.sqrt(-2 * SDE.slopes(sde, t)[1]), **close)
    lambda_ = sde.half_log_snr(times(sde, inside=1e-3)[:101])
    torch.testing.assert_close(sde.time_of(lambda_), SDE.time_of(sde, lambda_), **close)


@every
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_time_of_inverts_half_log_snr(name, dtype, tolerance):
    sde = VARIANTS[name]
    t = times(sde).to(dtype)
    back = sde.time_of(sde.half_log_snr(t))
    assert back.dtype == dtype
    torch.testing.assert_close(back, t, rtol=tolerance, atol=tolerance)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_half_log_snr_strictly_falls(name, dtype):
    sde = VARIANTS[name]
    t = torch.linspace(sde.t_min, sde.t_max, 1001, dtype=torch.float64).to(dtype)
    assert (sde.half_log_snr(t).diff() < 0).all()


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_everything_is_finite_at_both_ends(name, dtype):
    sde = VARIANTS[name]
    assert 0 <= sde.t_min < sde.t_max <= 1
    t = torch.tensor([sde.t_min, sde.t_max], dtype=dtype)
    for values in (*sde.marginal(t), sde.half_log_snr(t), *sde.slopes(t), sde.diffusion(t)):
        assert torch.isfinite(values).all()
    assert all((values > 0).all() for values in sde.marginal(t))
    assert sde.t_min == 0 or float(sde.half_log_snr(sde.t_min)) == pytest.approx(sde.lambda_max, abs=1e-6)


@every
def test_dtype_and_shape_are_kept(name):
    sde = VARIANTS[name]
    for dtype in (torch.float32, torch.float64):
        for shape in ((), (3,), (2, 1, 3)):
            t = torch.full(shape, 0.3, dtype=dtype)
            results = (*sde.marginal(t), sde.half_log_snr(t), sde.time_of(t), *sde.slopes(t), sde.f(t), sde.diffusion(t))
            assert all(result.shape == shape and result.dtype == dtype for result in results)
    assert torch.equal(sde.half_log_snr(0.3), sde.half_log_snr(torch.tensor(0.3, dtype=torch.float64)))


@every
def test_float32_agrees_with_float64(name):
    sde = VARIANTS[name]
    t = times(sde).to(torch.float32)
    for single, double in zip(sde.marginal(t), sde.marginal(t.double()), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=2e-7)


def test_sigma_of_vp_and_subvp_near_zero_in_float32():
    t = torch.tensor([1e-5, 1e-4, 1e-3], dtype=torch.float32)
    integral = t.double() * 0.1 + 0.5 * t.double() ** 2 * 19.9  # int_0^t beta
    exact = torch.sqrt(-torch.expm1(-integral))
    sigma = make_sde("vp").marginal(t)[1].double()
    assert ((sigma / exact - 1).abs() < 1e-6).all()
    assert float(sigma[0]) == pytest.approx(1.0004971e-3, rel=1e-6)
    assert ((make_sde("subvp").marginal(t)[1].double() / exact**2 - 1).abs() < 1e-6).all()


def test_published_forms():
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    vp, subvp, ve, cosine = VPSDE(0.1, 20.0), SubVPSDE(0.1, 20.0), VESDE(0.01, 50.0), CosineVPSDE()
    beta = 0.1 + 19.9 * t
    alpha = torch.exp(-(t**2) * 19.9 / 4 - t * 0.1 / 2)
    torch.testing.assert_close(vp.marginal(t), (alpha, torch.sqrt(1 - alpha**2)))
    torch.testing.assert_close(vp.diffusion(t), torch.sqrt(beta))
    assert float(vp.marginal(torch.tensor(1.0, dtype=torch.float64))[0] ** 2) == pytest.approx(4.32e-5, rel=1e-3)
    torch.testing.assert_close(subvp.marginal(t), (alpha, 1 - alpha**2))
    torch.testing.assert_close(subvp.diffusion(t) ** 2, beta * (1 - alpha**4))
    sigma = 0.01 * 5000.0**t
    torch.testing.assert_close(ve.marginal(t), (torch.ones_like(t), sigma))
    torch.testing.assert_close(ve.diffusion(t), sigma * math.sqrt(2 * math.log(5000.0)))
    torch.testing.assert_close(sum(value**2 for value in cosine.marginal(t)), torch.ones_like(t))
    angle = torch.acos(cosine.marginal(t)[0])
    torch.testing.assert_close(angle.diff(), (angle[-1] - angle[0]).expand(49) / 49)
    assert float(cosine.half_log_snr(0.0)) == pytest.approx(6.0) and float(cosine.half_log_snr(1.0)) == pytest.approx(-5.0)


@every
def test_drift_broadcasts_over_any_rank(name):
    sde = VARIANTS[name]
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    for shape in ((3, 2), (3, 1, 4, 4), (3, 2, 2, 2, 2)):
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        expected = torch.stack([float(sde.f(float(t[i]))) * x[i] for i in range(3)])
        torch.testing.assert_close(sde.drift(x, t), expected)
        torch.testing.assert_close(sde.drift(x, 0.5), float(sde.f(0.5)) * x)
    assert sde.drift(torch.ones(3, 2), 0.5).dtype == torch.float32
    for wrong in (torch.full((2,), 0.5), torch.full((3, 1), 0.5)):
        with pytest.raises(ValueError, match="one number for each of the 3"):
            sde.drift(torch.ones(3, 2), wrong)


@every
def test_prior(name):
    sde = VARIANTS[name]
    alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(sde.t_max, dtype=torch.float64)))
    if name != "subvp constant" and name != "vp constant":
        assert sde.prior_std == pytest.approx(math.hypot(alpha, sigma), rel=0.01)  # data of unit variance
    x = sde.prior_sample((2000, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert x.shape == (2000, 2, 3) and x.dtype == torch.float64
    assert float(x.std()) == pytest.approx(sde.prior_std, rel=0.03) and abs(float(x.mean())) < 0.05 * sde.prior_std
    assert torch.equal(x, sde.prior_sample((2000, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    expected = Normal(0.0, sde.prior_std).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(sde.prior_log_prob(x), expected)


@pytest.mark.parametrize("name", SDES)
def test_rebuilt_from_its_settings(name):
    for sde in (make_sde(name), *(variant for key, variant in VARIANTS.items() if key.startswith(name + " "))):
        again = make_sde(name, **sde.settings)
        assert type(again) is SDES[name] and again.settings == sde.settings and repr(again) == repr(sde)
        assert (again.t_min, again.t_max) == (sde.t_min, sde.t_max)
        t = times(sde)
        torch.testing.assert_close(again.marginal(t), sde.marginal(t), rtol=0, atol=0)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True, None])
def test_every_setting_refuses_what_is_not_a_finite_number(name, value):
    error = ValueError if isinstance(value, float) else TypeError
    for key in (key for key, default in make_sde(name).settings.items() if isinstance(default, float)):
        with pytest.raises(error, match=key) as caught:
            make_sde(name, **{key: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, settings, match",
    [
        ("vq", {}, "unknown SDE 'vq'; choose from .*vp, .*ve"),
        ("vp", {"sigma_max": 5.0}, "no setting sigma_max; it takes beta_min"),
        ("vp", {"beta_min": -0.1}, "beta_min must be positive and finite, got -0.1"),
        ("vp", {"beta_min": 3.0, "beta_max": 2.0}, "beta_min must not exceed"),
        ("subvp", {"beta_max": 0.0}, "beta_max"),
        ("subvp", {"lambda_max": -1.0}, "lambda_max"),
        ("ve", {"sigma_min": 0.0}, "sigma_min"),
        ("ve", {"sigma_min": 2.0, "sigma_max": 2.0}, "sigma_min must be below sigma_max, got 2.0 >= 2.0"),
        ("ve", {"sigma_min": -1.0}, "sigma_min"),
        ("cosine", {"lambda_max": 2.0, "lambda_min": 3.0}, "lambda_min must be finite and below"),
        ("cosine", {"lambda_max": 0.0}, "lambda_max"),
    ],
)
def test_make_sde_says_what_is_wrong(name, settings, match):
    with pytest.raises(ValueError, match=match) as caught:
        make_sde(name, **settings)
    assert "\n" not in str(caught.value)


def test_settings_of_one_sde_do_not_leak_into_another():
    make_sde("vp", beta_max=7.0)
    assert make_sde("vp").settings["beta_max"] == 20.0 and SDE.settings == {}


class Forward:
    """dx = f x dt + g dw for torchsde."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def f(self, t, x):
        return self.sde.drift(x, t)

    def g(self, t, x):
        return self.sde.diffusion(t).to(x).expand_as(x)


@pytest.mark.parametrize("name", all_sdes())
def test_forward_paths_have_the_marginal(name):
    sde = all_sdes()[name]
    start, end, count = 0.2, 0.7, 20_000
    alpha_s, sigma_s = (float(v) for v in sde.marginal(torch.tensor(start, dtype=torch.float64)))
    alpha_t, sigma_t = (float(v) for v in sde.marginal(torch.tensor(end, dtype=torch.float64)))
    noise = torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_0 = 1.5
    motion = torchsde.BrownianInterval(start, end, size=(count, 1), dtype=torch.float64, entropy=1)
    times_ = torch.tensor([start, end], dtype=torch.float64)
    x = torchsde.sdeint(Forward(sde), alpha_s * x_0 + sigma_s * noise, times_, bm=motion, dt=0.005, method="euler")[-1]
    assert float(x.mean()) == pytest.approx(alpha_t * x_0, abs=0.04 * sigma_t)
    assert float(x.std()) == pytest.approx(sigma_t, rel=0.04)


def test_toy_gives_marginal_alone():
    own = {key for key in vars(LinearPath) if not key.startswith("_")}
    assert own == {"marginal"} and LinearPath not in SDES.values()
    sde = LinearPath()
    t = torch.linspace(sde.t_min, sde.t_max, 50, dtype=torch.float64)
    torch.testing.assert_close(sde.f(t), -1 / (1 - t))
    torch.testing.assert_close(sde.diffusion(t) ** 2, 2 * t / (1 - t))
    torch.testing.assert_close(sde.time_of(sde.half_log_snr(t)), t)
