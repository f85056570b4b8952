"""The terms of the bound against independent forms."""

import math

import pytest
import torch
from scipy.special import log_ndtr
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from toys import all_sdes

from sde_gen import Moments, make_sde
from sde_gen.discrete import DiscreteChain, discretized_log_prob, make_chain, prior_kl, step_kl, step_log_ratio
from sde_gen.models.prior import MatchedPrior, SDEPrior

SDES = all_sdes()
VP = make_sde("vp")
every_sde = pytest.mark.parametrize("name", SDES)
VARIANCES = ("fixed_small", "fixed_large", "learned")


def normal(*shape, seed=0, device="cpu"):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(device)


def test_bins_hold_all_the_mass():
    values = torch.arange(17)
    mean, std = torch.tensor([[0.3], [-40.0], [8.5], [16.0], [300.0]], dtype=torch.float64), 0.7
    mass = torch.exp(discretized_log_prob(values, mean, std, 17))
    torch.testing.assert_close(mass.sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-13)
    bins = Normal(0.3, 0.7)
    assert float(mass[0, 2]) == pytest.approx(float(bins.cdf(torch.tensor(2.5)) - bins.cdf(torch.tensor(1.5))), rel=1e-5)
    assert float(mass[0, 0]) == pytest.approx(float(bins.cdf(torch.tensor(0.5))), rel=1e-6)
    in_other_units = discretized_log_prob(values, mean / 8 - 1, std / 8, 17, scale=1 / 8, shift=-1.0)
    shown = torch.log(mass) > -600
    torch.testing.assert_close(in_other_units[shown], torch.log(mass)[shown], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bins_in_the_tails(dtype):
    values = torch.tensor([3, 3, 0, 9])
    mean = torch.tensor([30.0, -24.0, 30.0, -21.0], dtype=dtype, requires_grad=True)
    found = discretized_log_prob(values, mean, 0.5, 10)
    # The nearer edge of the bin rules: log Phi(-53) and, for the outer bins, log Phi(-59).
    wanted = [log_ndtr(-53.0), log_ndtr(-53.0), log_ndtr(-59.0), log_ndtr(-59.0)]
    torch.testing.assert_close(found.detach().double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=0)
    found.sum().backward()
    assert bool(torch.isfinite(mean.grad).all()) and mean.grad.sign().tolist() == [-1, 1, -1, 1]


@every_sde
@pytest.mark.parametrize("variance", VARIANCES)
def test_a_step_is_the_kl_of_its_gaussians(name, variance, device):
    chain = DiscreteChain.from_sde(SDES[name], 20)
    x_0, guess, x_i = (normal(6, 2, 3, seed=seed, device=device) for seed in range(3))
    fraction = torch.special.ndtr(normal(6, 2, 3, seed=3, device=device)) if variance == "learned" else None
    i = torch.tensor([1, 2, 5, 11, 18, 19], device=device)
    mean_q, of_q = chain.posterior(x_0, x_i, i)
    mean_p, _ = chain.posterior(guess, x_i, i)
    of_p = chain.variance(i, variance, fraction)
    of_p = of_p if variance == "learned" else of_p.reshape(6, 1, 1).to(device)
    wanted = kl_divergence(Normal(mean_q, of_q.sqrt().expand_as(mean_q)), Normal(mean_p, of_p.sqrt().expand_as(mean_p))).flatten(1).sum(1)
    torch.testing.assert_close(step_kl(chain, x_0, guess, i, variance, fraction), wanted, rtol=1e-9, atol=1e-10)


@every_sde
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_log_ratio_of_a_step_is_that_of_its_gaussians(name, variance):
    chain = DiscreteChain.from_sde(SDES[name], 20)
    x_0, guess, x_i, noise = (normal(6, 2, 3, seed=seed) for seed in range(4))
    fraction = torch.rand(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) if variance == "learned" else None
    i = torch.tensor([1, 2, 5, 11, 18, 19])
    mean_q, of_q = chain.posterior(x_0, x_i, i)
    mean_p, _ = chain.posterior(guess, x_i, i)
    of_p = chain.variance(i, variance, fraction)
    of_p = of_p if variance == "learned" else of_p.reshape(6, 1, 1)
    previous = mean_q + of_q.sqrt() * noise
    wanted = Normal(mean_q, of_q.sqrt()).log_prob(previous) - Normal(mean_p, of_p.sqrt()).log_prob(previous)
    found = step_log_ratio(chain, x_0, guess, noise, i, variance, fraction)
    torch.testing.assert_close(found, wanted.flatten(1).sum(1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_step_is_the_mean_of_its_log_ratio(variance):
    chain, count = DiscreteChain.from_sde(VP, 20), 40_000
    x_0, guess = normal(1, 3).expand(count, 3), normal(1, 3, seed=1).expand(count, 3)
    for i in (1, 7, 19):
        drawn = step_log_ratio(chain, x_0, guess, normal(count, 3, seed=2), i, variance)
        kl = float(step_kl(chain, x_0[:1], guess[:1], i, variance))
        assert abs(float(drawn.mean()) - kl) < 4 * float(drawn.std()) / math.sqrt(count)
        # By hand: eps^2 (v/w - 1)/2 + sqrt(v) m d eps/w, of variances (v/w - 1)^2/2 and v (m d/w)^2; with w = v that is twice the KL.
        of_data, _, v = (float(value) for value in chain.posterior_coefficients(i))
        w = float(chain.variance(i, variance))
        spread = 3 * (v / w - 1) ** 2 / 2 + v * float(((of_data * (x_0 - guess)[0] / w) ** 2).sum())
        assert float(drawn.var()) == pytest.approx(spread, rel=0.05)
        if variance == "fixed_small":
            assert spread == pytest.approx(2 * kl, rel=1e-9)


def test_a_fixed_small_step_is_the_loss_of_signal_to_noise():
    chain = make_chain("cosine", 30)
    x_0, guess = normal(2, 5), normal(2, 5, seed=1)
    snr = torch.exp(2 * chain.lambda_)
    wanted = 0.5 * (snr[6] - snr[7]) * (x_0 - guess).square().sum(1)
    torch.testing.assert_close(step_kl(chain, x_0, guess, 7), wanted, rtol=1e-10, atol=0)


def test_kl_to_the_prior():
    mean, std = normal(4, 2), 0.9
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    centre = torch.tensor([0.2, -1.0], dtype=torch.float64)
    q = MultivariateNormal(mean, std**2 * torch.eye(2, dtype=torch.float64))
    matched = MatchedPrior(Moments(centre, covariance=covariance), 0.6, 0.8)
    exact = MultivariateNormal(0.6 * centre, 0.36 * covariance + 0.64 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(prior_kl(matched, mean, std), kl_divergence(q, exact))
    apart = MatchedPrior(Moments(centre, variance=torch.tensor([1.0, 0.5])), 0.6, 0.8)
    exact = Independent(Normal(0.6 * centre, torch.tensor([1.0, (0.18 + 0.64) ** 0.5], dtype=torch.float64)), 1)
    torch.testing.assert_close(prior_kl(apart, mean, std), kl_divergence(Independent(Normal(mean, std), 1), exact))
    ve = make_sde("ve", sigma_max=3.0)
    torch.testing.assert_close(prior_kl(SDEPrior(ve), mean, std), kl_divergence(Normal(mean, std), Normal(0.0, 3.0)).sum(1))
