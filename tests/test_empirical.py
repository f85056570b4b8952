import math

import pytest
import torch
from toys import all_sdes

from sde_gen import Normalizer, ScoreModel, empirical, make_sde, sample
from sde_gen.empirical import best_loss, empirical_score, gaussian_gap, reverse_kernel


def points(count: int = 40, shape: tuple[int, ...] = (3,)) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1


@pytest.mark.parametrize("name", all_sdes())
def test_the_score_is_that_of_a_mixture_of_points(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sde = all_sdes()[name]
    data = points()
    model = empirical_score(data, sde)
    monkeypatch.setattr(empirical, "CHUNK", 5 * 7)  # in pieces of 7
    z = model.normalizer.encode(data)
    for share in (0.05, 0.5, 0.95):
        t = sde.t_min + share * (sde.t_max - sde.t_min)
        alpha, sigma = (float(v) for v in sde.marginal(torch.tensor(t, dtype=torch.float64)))
        x = (alpha * z[:5] + sigma * torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).requires_grad_()
        density = torch.logsumexp(-((x[:, None] - alpha * z) ** 2).sum(2) / (2 * sigma**2), dim=1)
        (expected,) = torch.autograd.grad(density.sum(), x)
        torch.testing.assert_close(model.score(x, t).detach(), expected, rtol=1e-6, atol=1e-6 / sigma)


def test_samples_are_the_data_points() -> None:
    data = points(20, (1, 2, 2)).float()
    out = sample(empirical_score(data, make_sde("vp")), (64, 1, 2, 2), "ode", rtol=1e-5, atol=1e-5, progress=False)
    nearest = torch.cdist(out.x.flatten(1), data.flatten(1)).amin(1)
    assert float(nearest.quantile(0.95)) < 0.02
    assert len(torch.cdist(out.x.flatten(1), data.flatten(1)).argmin(1).unique()) > 12


def test_the_reverse_kernel_obeys_bayes_rule() -> None:
    sde = make_sde("subvp")
    model = empirical_score(points(), sde, Normalizer(torch.zeros(3), torch.ones(3)))
    x_t = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x_s = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    s, t = 0.3, 0.5
    (alpha_s, alpha_t), (sigma_s, sigma_t) = sde.marginal(torch.tensor([s, t], dtype=torch.float64))
    ratio = alpha_t / alpha_s
    z = points()

    def log_normal(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        return -0.5 * ((x - mean) ** 2).sum(-1) / variance - 1.5 * torch.log(2 * math.pi * variance)

    def log_marginal(x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(log_normal(x[..., None, :], alpha * z, sigma**2), dim=-1) - math.log(len(z))

    step = log_normal(x_t[:, None], ratio * x_s, sigma_t**2 - ratio**2 * sigma_s**2)
    expected = log_marginal(x_s, alpha_s, sigma_s) + step - log_marginal(x_t, alpha_t, sigma_t)[:, None]
    torch.testing.assert_close(reverse_kernel(model, x_t, t, s).log_prob(x_s), expected, rtol=1e-9, atol=1e-9)


def test_the_moments_are_those_of_the_draws_and_short_steps_are_gaussian() -> None:
    sde = make_sde("vp")
    data = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    model = empirical_score(data, sde, Normalizer(torch.zeros(1), torch.ones(1)))
    x_t = torch.tensor([[0.1], [-0.4]], dtype=torch.float64)
    long = reverse_kernel(model, x_t, 0.5, 0.1)
    draws = long.sample(40_000, torch.Generator().manual_seed(0))
    mean, covariance = long.moments()
    torch.testing.assert_close(draws.mean(1), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(draws.var(1), covariance[:, 0], rtol=0.03, atol=0)
    gaps = [gaussian_gap(reverse_kernel(model, x_t, 0.5, 0.5 - step))[0] for step in (0.4, 0.2, 0.1, 0.05)]
    assert gaps[0] > 0.3 and gaps[-1] < 0.01 and gaps == sorted(gaps, reverse=True)


def test_the_best_loss_is_zero_in_clear_data_and_the_datas_variance_in_noise() -> None:
    sde = make_sde("vp")
    data = points(30, (4,)).float()
    model = empirical_score(data, sde)
    losses = best_loss(model, data, torch.tensor([sde.t_min, 0.5, sde.t_max]))
    assert float(losses[0]) < 1e-6 < float(losses[1])
    snr = math.exp(2 * float(sde.half_log_snr(sde.t_max)))  # times the variance, 1 in normalised units, where x_t says nothing
    assert float(losses[2]) == pytest.approx(snr, rel=0.2)
    broken = empirical_score(data + 1, sde, model.normalizer)  # no other denoiser has a smaller one
    assert float(best_loss(broken, data, torch.tensor([0.5]))) > float(losses[1])


def test_bad_input() -> None:
    sde = make_sde("vp")
    with pytest.raises(ValueError, match="at least one point"):
        empirical_score(torch.zeros(0, 3), sde)
    with pytest.raises(ValueError, match="finite"):
        empirical_score(torch.tensor([[1.0], [math.nan]]), sde)
    model = empirical_score(points(), sde)
    with pytest.raises(ValueError, match="s < t"):
        reverse_kernel(model, torch.zeros(1, 3), 0.2, 0.5)
    with pytest.raises(TypeError, match="empirical_score"):
        reverse_kernel(ScoreModel(lambda x, t: x, sde), torch.zeros(1, 3), 0.5, 0.2)
