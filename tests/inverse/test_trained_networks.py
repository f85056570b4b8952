"""Methods by a network's Jacobian on networks that err as trained ones do: a little in the prediction, much in its derivative."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sde_gen
from sde_gen.data import Normalizer
from sde_gen.exact.mixtures import GaussianData, MixtureData
from sde_gen.inverse import MEASURED, METHODS, Gaussian, Mask, Matrix, Measurement
from sde_gen.models.moments import Moments

VP = sde_gen.make_sde("vp", lambda_max=6.0)
SCALE = torch.tensor([10.0, 12.0, 2000.0, 0.1], dtype=torch.float64)
SHIFT = torch.tensor([170.0, 70.0, 3000.0, -1.0], dtype=torch.float64)


def law() -> GaussianData:
    """Four columns with correlations of 0.6 and less, of unit variance."""
    off = torch.tensor([0.6, -0.3, 0.5, 0.0, 0.4, 0.2], dtype=torch.float64)
    covariance = torch.eye(4, dtype=torch.float64)
    covariance[tuple(torch.triu_indices(4, 4, 1))] = off
    return GaussianData(torch.zeros(4), covariance + covariance.T - torch.eye(4))


def erring(data: MixtureData, size: float = 0.03, known: bool = True) -> sde_gen.ScoreModel:
    """A network that is off by waves of its input, of at most `size` standard deviations where the noise is high, and less below."""
    waves = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def network(x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        alpha, sigma = (value[:, None].to(x.dtype) for value in VP.marginal(c))
        total = (alpha**2 + sigma**2).sqrt()
        return data.denoise_at(x, VP, c) + size * sigma / total * torch.sin(x / total @ waves.to(x.dtype))

    mean, covariance = data.moments()
    moments = Moments(mean, covariance=covariance) if known else None
    return sde_gen.ScoreModel(network, VP, "data", normalizer=Normalizer(SHIFT, SCALE), moments=moments, data_std=1.0)


def exact(data: GaussianData, y: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row given what it measures, in the data's units."""
    means, spreads = [], []
    for row in (y - SHIFT) / SCALE:
        seen = ~torch.isnan(row)
        gain = data.covariance[:, seen] @ torch.linalg.inv(data.covariance[seen][:, seen] + noise**2 * torch.eye(int(seen.sum())))
        means.append(gain @ row[seen])
        spreads.append((data.covariance - gain @ data.covariance[seen]).diagonal().clamp_min(0).sqrt())
    return SHIFT + SCALE * torch.stack(means), SCALE * torch.stack(spreads)


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("method", ["twisted", "mmps"])
def test_gaps_of_a_table_in_units_of_its_columns(method: str, noise: float) -> None:
    """Without a hold on V its eigenvalues are negative at high noise levels, and samples end hundreds of standard deviations away."""
    data = law()
    x = SHIFT + SCALE * data.sample(12, 3)
    order = torch.rand(12, 4, generator=torch.Generator().manual_seed(1)).argsort(1)
    y = torch.where(order < (torch.arange(12) % 3 + 1)[:, None], torch.nan, x)
    measurement = Measurement(Mask(), Gaussian(noise * SCALE if noise else 0.0))
    found = sde_gen.posterior(erring(data), measurement, y.float(), 32, method, steps=60, progress=False)
    mean, spread = exact(data, y, noise)
    gaps = torch.isnan(y)
    off = ((found.mean().double() - mean) / spread)[gaps]
    assert float(off.square().mean().sqrt()) < 0.35 and float(off.abs().max()) < 1.5
    assert float((found.std().double() / spread)[gaps].mean()) == pytest.approx(1, abs=0.1)
    if not noise:
        known = ~gaps[:, None].expand(found.x.shape)
        assert torch.equal(found.x[known], y.float()[:, None].expand(found.x.shape)[known])
        assert found.log_evidence is None or bool(torch.isfinite(found.log_evidence).all())


def test_the_evidence_of_a_measurement_without_noise_is_its_density() -> None:
    """In whatever units its entries are."""
    data = law()
    x = SHIFT + SCALE * data.sample(3, 5)
    measurement = Measurement(Mask(torch.tensor([True, False, True, True])), Gaussian(0.0))
    found = sde_gen.posterior(erring(data, 0.0), measurement, x, 200, steps=100, dtype=torch.float64, progress=False)
    kept = torch.tensor([0, 2, 3])
    covariance = (SCALE[:, None] * data.covariance * SCALE)[kept][:, kept]
    truth = torch.distributions.MultivariateNormal(SHIFT[kept], covariance).log_prob(x[:, kept])
    assert found.log_evidence is not None
    torch.testing.assert_close(found.log_evidence, truth, rtol=0, atol=0.15)


def test_the_network_s_own_jacobian_is_taken_where_the_data_are_not_gaussian() -> None:
    """Of a mixture the moments know little once its modes can be told apart."""
    means = torch.tensor([[2.0, 2.0, 0.0, 0.0], [-2.0, -2.0, 0.0, 0.0]], dtype=torch.float64)
    data = MixtureData(torch.ones(2), means, 0.2 * torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
    model = erring(data, 0.0)
    measurement = Measurement(Matrix(torch.tensor([[1.0, 0.0, 0.0, 0.0]]).double() / SCALE), Gaussian(0.1))
    wrapper = METHODS["mmps"](model, measurement)
    y = torch.tensor([[SHIFT[0] / SCALE[0] + 2.1]], dtype=torch.float64)
    matrix, variance = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([0.01], dtype=torch.float64)
    t = float(VP.time_of(torch.tensor(0.0, dtype=torch.float64)))  # as much noise as data
    alpha, sigma = (float(v) for v in VP.marginal(torch.tensor(t, dtype=torch.float64)))
    x = alpha * data.sample(40, 1) + sigma * data.sample(40, 2) / 4
    x = x[x[:, 0] > 1]
    found = wrapper.denoise(x, t, **{MEASURED: y.expand(len(x), -1)})
    expected = data.denoise_given(x, VP, t, matrix, y - SHIFT[0] / SCALE[0], variance)
    assert float((found - expected).abs().max()) < 0.01


def test_without_moments_the_jacobian_stands_alone() -> None:
    data = law()
    model = erring(data, 0.0, known=False)
    measurement = Measurement(Mask(torch.tensor([True, False, True, False])), Gaussian(0.1 * SCALE))
    y = SHIFT + SCALE * data.sample(4, 3)
    common: dict[str, Any] = {"method": "mmps", "steps": 20, "shape": (4,), "dtype": torch.float64, "progress": False}
    alone, held = (sde_gen.posterior(one, measurement, y, 8, **common).x for one in (model, erring(data, 0.0)))
    torch.testing.assert_close(alone, held, rtol=0, atol=1e-3 * float(SCALE.max()))
