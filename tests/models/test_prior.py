"""Priors: densities against torch.distributions, draws against moments, and the matched one against exact marginals."""

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal
from toys import all_sdes

from sde_gen import Moments, ScoreModel, make_sde
from sde_gen.exact.mixtures import GaussianData, marginal
from sde_gen.models.prior import MatchedPrior, SDEPrior

SDES = all_sdes()
DATA = GaussianData.correlated()
every = pytest.mark.parametrize("name", SDES)


def normal(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@every
def test_sde_prior_is_the_sdes(name):
    prior = SDEPrior(SDES[name])
    z = normal(6, 1, 2, 2)
    x = prior.from_noise(z)
    torch.testing.assert_close(x, z * SDES[name].prior_std)
    torch.testing.assert_close(prior.log_prob(x), Normal(0.0, SDES[name].prior_std).log_prob(x).flatten(1).sum(1))


@every
def test_matched_prior_is_the_marginal_of_gaussian_data(name):
    sde = SDES[name]
    prior = DATA.model(sde).prior
    assert isinstance(prior, MatchedPrior)
    mean, covariance = DATA.moments(sde, sde.t_max)
    x = prior.from_noise(normal(20_000, 2))
    torch.testing.assert_close(prior.log_prob(x), MultivariateNormal(mean, covariance).log_prob(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(prior.log_prob(x[:9]), DATA.log_prob(x[:9], sde, sde.t_max), rtol=1e-10, atol=1e-10)
    scale = float(covariance.diagonal().max()) ** 0.5
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03 * scale)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.05 * scale**2)


def test_from_noise_is_affine_with_exactly_the_covariance():
    # At a time where the data still counts: the map's matrix times its transpose is the covariance.
    alpha, sigma = (float(v) for v in marginal(make_sde("vp"), 0.3))
    prior = MatchedPrior(Moments(DATA.mean, covariance=DATA.covariance), alpha, sigma)
    b = prior.from_noise(torch.zeros(1, 2, dtype=torch.float64))[0]
    a = (prior.from_noise(torch.eye(2, dtype=torch.float64)) - b).T
    torch.testing.assert_close(b, alpha * DATA.mean)
    torch.testing.assert_close(a @ a.T, alpha**2 * DATA.covariance + sigma**2 * torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2)])
def test_variances_for_each_element(shape):
    mean, variance = normal(*shape), normal(*shape).exp()
    prior = MatchedPrior(Moments(mean, variance=variance), 0.6, 0.8)
    z = normal(5, *shape)
    x = prior.from_noise(z)
    std = torch.sqrt(0.36 * variance + 0.64)
    torch.testing.assert_close(x, 0.6 * mean + std * z)
    torch.testing.assert_close(prior.log_prob(x), Normal(0.6 * mean, std).log_prob(x).flatten(1).sum(1))


def test_a_single_number_broadcasts():
    sde = make_sde("vp")
    model = ScoreModel(lambda x, c: x, sde, prior="matched", data_std=0.5)
    alpha, sigma = marginal(sde, sde.t_max)
    x = normal(4, 1, 3, 3)
    std = float(torch.sqrt(0.25 * alpha**2 + sigma**2))
    torch.testing.assert_close(model.prior.from_noise(x), x * std)
    torch.testing.assert_close(model.prior.log_prob(x), Normal(0.0, std).log_prob(x).flatten(1).sum(1))


def test_covariance_over_images_keeps_their_shape():
    factor = normal(4, 4)
    moments = Moments(normal(1, 2, 2), covariance=factor @ factor.T)
    prior = MatchedPrior(moments, 0.9, 0.1)
    x = prior.from_noise(normal(3, 1, 2, 2))
    exact = MultivariateNormal(0.9 * moments.mean.flatten(), 0.81 * factor @ factor.T + 0.01 * torch.eye(4, dtype=torch.float64))
    b = prior.from_noise(torch.zeros(1, 1, 2, 2, dtype=torch.float64)).flatten()
    a = (prior.from_noise(torch.eye(4, dtype=torch.float64).reshape(4, 1, 2, 2)).flatten(1) - b).T
    assert x.shape == (3, 1, 2, 2)
    torch.testing.assert_close(a @ a.T, exact.covariance_matrix)
    torch.testing.assert_close(prior.log_prob(x), exact.log_prob(x.flatten(1)))


def test_float32_stays_float32():
    prior = DATA.model(make_sde("vp")).prior
    x = prior.from_noise(normal(3, 2, dtype=torch.float32))
    assert x.dtype == torch.float32 and prior.log_prob(x).dtype == torch.float32


@pytest.mark.parametrize("shape, whole", [((2,), True), ((1, 3, 3), True), ((1, 33, 33), False)])
def test_fit_finds_the_datas_moments(shape, whole):
    data = 0.3 + 2 * normal(200, *shape, dtype=torch.float32)
    moments = Moments.fit(data)
    flat = data.flatten(1).double()
    torch.testing.assert_close(moments.mean, flat.mean(0).reshape(shape))
    assert moments.mean.dtype == torch.float64 and (moments.eigenvectors is not None) is whole
    if whole:
        covariance = moments.eigenvectors @ torch.diag(moments.eigenvalues) @ moments.eigenvectors.T
        torch.testing.assert_close(covariance, flat.T.cov(correction=0))
    else:
        torch.testing.assert_close(moments.eigenvalues, flat.var(0, correction=0).reshape(shape))


def test_fit_of_fewer_samples_than_dimensions_has_no_negative_variance():
    moments = Moments.fit(normal(5, 30))
    assert (moments.eigenvalues >= 0).all()
    assert torch.isfinite(MatchedPrior(moments, 0.5, 0.5).log_prob(normal(2, 30))).all()


@pytest.mark.parametrize(
    "settings, match",
    [
        ({}, "exactly one of variance and covariance"),
        ({"variance": torch.ones(2), "covariance": torch.eye(2)}, "exactly one of variance and covariance"),
        ({"covariance": torch.ones(2, 3)}, r"square matrix, got shape \(2, 3\)"),
        ({"covariance": torch.ones(2)}, "square matrix"),
        ({"variance": torch.tensor([1.0, -2.0])}, "negative, got -2"),
    ],
)
def test_moments_refuse(settings, match):
    with pytest.raises(ValueError, match=match):
        Moments(torch.zeros(2), **settings)
