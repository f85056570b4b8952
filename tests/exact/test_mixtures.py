"""The judge is judged too: the closed forms against automatic differentiation, torch.distributions and each other."""

import pytest
import torch
from toys import all_sdes

from sde_gen.exact.mixtures import GaussianData, MixtureData, RingData, marginal

SDES = all_sdes()
EYE = torch.eye(2, dtype=torch.float64)
MIXTURE = MixtureData(
    torch.tensor([0.2, 0.5, 0.3]),
    torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.2, -1.5]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.4]], [[0.1, -0.05], [-0.05, 0.1]]]),
)


def states(sde, t: float, device: torch.device, count: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    alpha, sigma = marginal(sde, t)
    return (alpha * MIXTURE.sample(count) + sigma * torch.randn(count, 2, dtype=torch.float64, generator=generator)).to(device)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_mixture_against_distributions_and_autograd(name, share, device):
    sde, data = SDES[name], MIXTURE.to(device)
    t = sde.t_min + share * (sde.t_max - sde.t_min)
    x = states(sde, t, device).requires_grad_()
    alpha, sigma = marginal(sde, t)
    modes = torch.distributions.MultivariateNormal(alpha * data.means, alpha**2 * data.covariances + sigma**2 * EYE.to(device))
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=data.log_weights), modes)
    log_prob = data.log_prob(x, sde, t)
    torch.testing.assert_close(log_prob, mixture.log_prob(x), rtol=1e-12, atol=1e-12)
    (score,) = torch.autograd.grad(mixture.log_prob(x).sum(), x)
    torch.testing.assert_close(data.score_at(x, sde, t), score, rtol=1e-10, atol=1e-12)
    tweedie = (x + sigma**2 * score) / alpha
    torch.testing.assert_close(data.denoise_at(x, sde, t), tweedie, rtol=1e-8, atol=1e-8)


def test_per_sample_times_equal_one_time_after_another(device):
    sde, data = SDES["vp"], MIXTURE.to(device)
    t = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64, device=device)
    x = states(sde, 0.5, device, 3)
    for function in (data.score_at, data.denoise_at, data.log_prob):
        together = function(x, sde=sde, t=t)
        alone = torch.cat([function(x[i : i + 1], sde=sde, t=float(t[i])) for i in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_moments_are_those_of_draws(device):
    data = MIXTURE.to(device)
    x = data.sample(40_000)
    mean, covariance = data.moments()
    torch.testing.assert_close(x, MIXTURE.sample(40_000).to(device), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", SDES)
def test_gaussian_flow_map_carries_marginals_and_inverts(name, device):
    sde, data = SDES[name], GaussianData.correlated().to(device)
    x = data.sample(5)
    up = data.flow_map(x, sde, sde.t_min, sde.t_max)
    torch.testing.assert_close(data.flow_map(up, sde, sde.t_max, sde.t_min), x, rtol=1e-10, atol=1e-10)
    half = data.flow_map(x, sde, sde.t_min, 0.5)
    torch.testing.assert_close(data.flow_map(half, sde, 0.5, sde.t_max), up, rtol=1e-10, atol=1e-10)
    # An affine map x -> A x + b takes N(m, V) to N(A m + b, A V A^T).
    b = data.flow_map(torch.zeros(1, 2, dtype=torch.float64, device=device), sde, sde.t_min, 0.5)[0]
    a = (data.flow_map(torch.eye(2, dtype=torch.float64, device=device), sde, sde.t_min, 0.5) - b).T
    (m_t, v_t), (m_s, v_s) = data.moments(sde, sde.t_min), data.moments(sde, 0.5)
    torch.testing.assert_close(a @ m_t + b, m_s)
    torch.testing.assert_close(a @ v_t @ a.T, v_s)


@pytest.mark.parametrize("name", SDES)
def test_the_affine_denoiser_is_the_denoiser_whose_error_is_the_posterior_variance(name, device):
    sde, data = SDES[name], GaussianData.correlated().to(device)
    times = torch.tensor([sde.t_min, 0.4], dtype=torch.float64)
    x = data.sample(20_000)
    for t, gain, offset, variance in zip(times.tolist(), *data.affine(sde, times), data.posterior_variance(sde, times), strict=True):
        alpha, sigma = marginal(sde, t)
        noise = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
        denoised = data.denoise_at(alpha * x + sigma * noise, sde, t)
        torch.testing.assert_close(denoised, (alpha * x + sigma * noise) @ gain.T + offset, rtol=1e-9, atol=1e-9)
        assert float((denoised - x).square().mean() / variance) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", SDES)
def test_the_rings_short_forms_equal_the_general_ones(name, device):
    sde, ring = SDES[name], RingData(5, std=0.3).to(device)
    t = torch.tensor([sde.t_min + 0.01, 0.3, 0.9], dtype=torch.float64, device=device)
    x = marginal(sde, t)[0][:, None] * ring.sample(3) + marginal(sde, t)[1][:, None] * ring.sample(3, seed=1)
    torch.testing.assert_close(ring.denoise_at(x, sde, t), MixtureData.denoise_at(ring, x, sde, t), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ring.score_at(x, sde, t), MixtureData.score_at(ring, x, sde, t), rtol=1e-8, atol=1e-8)
    assert ring.denoise_at(x.float(), sde, 0.4).dtype == torch.float32
