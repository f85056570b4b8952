"""Operators that are not linear, of more measured entries than the Jacobian is looked along, against integrals over one entry at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_gen
from sde_gen.data import Normalizer
from sde_gen.exact.mixtures import MixtureData, marginal
from sde_gen.inverse import METHODS, Function, Gaussian, Mask, Measurement, Poisson
from sde_gen.inverse.average import AverageCovariance, averaged, tilted
from sde_gen.inverse.conditioned import Observed
from sde_gen.inverse.daps import langevin
from sde_gen.models.moments import Moments
from sde_gen.randomness import NoiseStream

SHAPE, DIM, STD, VARIANCE = (1, 8, 8), 64, 0.5, 0.4
SHIFT, SCALE = 3.0, 2.0
VP = sde_gen.make_sde("vp", lambda_max=6.0)
KEPT = torch.randperm(DIM, generator=torch.Generator().manual_seed(1))[:52].sort().values


class Round(MixtureData):
    """Two round modes of one variance, in which entries are independent."""

    def __init__(self) -> None:
        means = 0.8 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        super().__init__(torch.tensor([0.3, 0.7]), means, VARIANCE * torch.eye(DIM).expand(2, DIM, DIM))

    def denoise_at(self, x: Tensor, sde: sde_gen.SDE, t: Tensor | float) -> Tensor:
        """As the base class gives it, in two products."""
        alpha, sigma = (value.reshape(-1, 1)[:1] for value in marginal(sde, t))
        z, variance = x.double().flatten(1), alpha**2 * VARIANCE + sigma**2
        logits = self.log_weights + alpha / variance * (z @ self.means.T - 0.5 * alpha * self.means.square().sum(1))
        mean = logits.softmax(1) @ self.means
        return (mean + alpha * VARIANCE / variance * (z - alpha * mean)).reshape(x.shape).to(x.dtype)


def law() -> MixtureData:
    return Round()


def model_of(data: MixtureData) -> sde_gen.ScoreModel:
    mean, covariance = data.moments()
    moments, normalizer = (
        Moments(mean.reshape(SHAPE), covariance=covariance),
        Normalizer(torch.full((1, 1, 1), SHIFT), torch.full((1, 1, 1), SCALE)),
    )
    return sde_gen.ScoreModel(lambda x, c: data.denoise_at(x, VP, c), VP, "data", prior="matched", moments=moments, normalizer=normalizer)


def of_entries(function: Callable[[Tensor], Tensor]) -> Function:
    return Function(lambda x: function(x.flatten(1)[:, KEPT]), shape=SHAPE)


def log_evidence(data: MixtureData, function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """log p(y): of each mode the product over entries of integrals over that entry."""
    u = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    spread = data.covariances.diagonal(dim1=1, dim2=2).sqrt()
    clean = function(SHIFT + SCALE * (data.means[..., None] + spread[..., None] * u)[:, KEPT])
    log_joint = -0.5 * ((y[:, None, :, None] - clean) / STD) ** 2 - 0.5 * u**2 - math.log(2 * math.pi * STD / (u[1] - u[0]))
    return torch.logsumexp(data.log_weights + log_joint.logsumexp(3).sum(2), 1)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cube": lambda x: x + 0.05 * x**3,
    "saturated": lambda x: 6 * torch.tanh(0.3 * x),
    "linear": lambda x: 1.5 * x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_evidence_is_the_integral(name: str) -> None:
    data, operator = law(), of_entries(FUNCTIONS[name])
    measurement = Measurement(operator, Gaussian(STD))
    y = measurement.simulate(SHIFT + SCALE * data.sample(2, 5), 0)
    found = sde_gen.posterior(model_of(data), measurement, y, 48, steps=50, dtype=torch.float64, progress=False)
    assert found.log_evidence is not None and found.log_evidence_error is not None and found.lineages is not None
    off = (found.log_evidence - log_evidence(data, FUNCTIONS[name], y)).abs()
    assert bool((off < 1.5).all()) and float(found.log_evidence_error.max()) < 0.7
    assert float(found.lineages.min()) > 2


def test_a_linear_function_that_is_not_said_to_be_one_gives_the_same() -> None:
    data = law()
    model, y = model_of(data), SHIFT + SCALE * data.sample(3, 5).flatten(1)[:, KEPT] + 0.3
    y[1] = y[0]  # equal measurements, not next to each other
    y = y[[0, 2, 1]]
    runs = []
    for linear in (True, False):
        operator = Function(lambda x: x.flatten(1)[:, KEPT], linear, SHAPE)
        runs.append(sde_gen.posterior(model, Measurement(operator, Gaussian(STD)), y, 6, steps=15, dtype=torch.float64, progress=False))
    torch.testing.assert_close(runs[0].x, runs[1].x, rtol=0, atol=1e-6)
    torch.testing.assert_close(runs[0].log_weights, runs[1].log_weights, rtol=0, atol=1e-5)


def test_the_twist_is_the_likelihood_integrated_about_the_prediction() -> None:
    """Laplace's approximation of the integral over N(D, V), for states that are some standard deviations of the noise away from y."""
    data, function = law(), FUNCTIONS["cube"]
    measurement, model = Measurement(of_entries(function), Gaussian(STD)), model_of(data)
    truth = data.sample(4, 5)
    y = measurement.simulate(SHIFT + SCALE * truth, 0)
    z, alpha, sigma = truth + 0.2 * data.sample(4, 6), 1.0, 0.1
    average, observed = AverageCovariance(model.moments), Observed(METHODS["twisted"](model, measurement), y, z)  # type: ignore[arg-type]
    found = averaged(sde_gen.Prediction(z), observed, average, alpha, sigma)
    # V is all but sigma^2 I, so that entries are apart.
    u = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    clean = function(SHIFT + SCALE * (z.flatten(1)[:, KEPT, None] + sigma * u))
    log_joint = -0.5 * ((y[..., None] - clean) / STD) ** 2 - 0.5 * u**2 - math.log(2 * math.pi * STD / (u[1] - u[0]))
    exact = log_joint.logsumexp(2).sum(1)
    assert float((measurement.log_prob(y, SHIFT + SCALE * z) - exact).abs().min()) > 30
    assert float((found.log_evidence - exact).abs().max()) < 3


def test_results_do_not_depend_on_the_batch() -> None:
    data = law()
    measurement, model = Measurement(of_entries(lambda x: torch.nn.functional.softplus(x)), Poisson(3.0)), model_of(data)
    y = measurement.simulate(SHIFT + SCALE * data.sample(2, 5), 0)
    common: dict[str, Any] = {"count": 3, "steps": 5, "dtype": torch.float64, "progress": False}
    whole = sde_gen.posterior(model, measurement, y, **common)
    alone = sde_gen.posterior(model, measurement, y[1:2], index_offset=1, **common)
    assert bool(torch.isfinite(whole.x).all())
    torch.testing.assert_close(alone.x[0], whole.x[1], rtol=0, atol=1e-5)


def test_a_tilt_leaves_the_evidence_of_gaussian_data_as_it_is() -> None:
    """Of a linear function that is not known to be one, with states in blocks and not."""
    mean, covariance = law().moments()
    data = MixtureData(torch.ones(1), mean.reshape(1, *SHAPE), covariance[None])
    model, measurement = model_of(data), Measurement(of_entries(FUNCTIONS["linear"]), Gaussian(STD))
    y = measurement.simulate(SHIFT + SCALE * data.sample(2, 5), 0)
    t = float(VP.time_of(torch.tensor(0.3, dtype=torch.float64)))
    alpha, sigma = (float(value) for value in VP.marginal(torch.tensor(t, dtype=torch.float64)))
    x = alpha * data.sample(6, 2) + sigma * torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for rows in ([0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 1, 1]):
        observed = Observed(METHODS["twisted"](model, measurement), y[rows], x)
        average = AverageCovariance(model.moments)  # type: ignore[arg-type]
        plain = averaged(model.predict(x, t), observed, average, alpha, sigma)
        lifted = tilted(model, x, t, {}, plain, observed, average, alpha, sigma)
        assert lifted.lead is not None and float(lifted.lead.abs().max()) > 1e-3
        torch.testing.assert_close(plain.log_evidence, lifted.log_evidence, rtol=0, atol=1e-7)
        torch.testing.assert_close(plain.shift, lifted.shift, rtol=0, atol=1e-7)


def test_a_normaliser_that_is_not_affine_makes_a_mask_one() -> None:
    """Its measurement is linear in the data and not in what the model sees."""

    class Exponential:
        affine = False

        def decode(self, z: Tensor) -> Tensor:
            return torch.exp(0.4 * z)

        def encode(self, x: Tensor) -> Tensor:
            return torch.log(x) / 0.4

    data = law()
    mean, covariance = data.moments()
    normalizer: Any = Exponential()
    moments = Moments(mean.reshape(SHAPE), covariance=covariance)
    model = sde_gen.ScoreModel(lambda x, c: data.denoise_at(x, VP, c), VP, "data", moments=moments, normalizer=normalizer)
    y = normalizer.decode(data.sample(2, 5)) + 0.05
    found = sde_gen.posterior(model, Measurement(Mask(), Gaussian(0.05)), y, 16, steps=40, dtype=torch.float64, progress=False)
    assert float((found.mean() - y).abs().mean()) < 0.05


def test_langevin_steps_draw_from_prior_times_likelihood() -> None:
    """With entries that are measured and entries that are not, against integrals over one entry; the step makes spreads a little large."""
    data, measurement = law(), Measurement(of_entries(FUNCTIONS["saturated"]), Gaussian(STD))
    wrapper, centre, rho = METHODS["daps"](model_of(data), measurement), data.sample(1, 6), 0.3
    y = measurement.simulate(SHIFT + SCALE * (centre + 0.2 * data.sample(1, 8)), 0)
    observed = Observed(wrapper, y.expand(600, -1), centre.expand(600, *SHAPE))
    run: Any = SimpleNamespace(noise=NoiseStream(0, 0, 600, SHAPE, torch.float64, torch.device("cpu")))
    drawn = langevin(run, observed, centre.expand(600, *SHAPE), rho, 100).flatten(1)
    u = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    x = centre.flatten()[:, None] + rho * u
    log_joint = -0.5 * u.square().expand_as(x)
    log_joint = log_joint.index_add(0, KEPT, -0.5 * ((y[0][:, None] - FUNCTIONS["saturated"](SHIFT + SCALE * x[KEPT])) / STD) ** 2)
    weights = log_joint.softmax(1)
    mean = (weights * x).sum(1)
    spread = (weights * (x - mean[:, None]) ** 2).sum(1).sqrt()
    assert float(((drawn.mean(0) - mean) / spread).abs().max()) < 0.2
    ratio = drawn.std(0) / spread
    assert float(ratio.mean()) == pytest.approx(1.02, abs=0.05) and float((ratio - 1).abs().max()) < 0.2


def test_daps_takes_any_operator_with_noise() -> None:
    data, operator = law(), of_entries(FUNCTIONS["cube"])
    model, x = model_of(data), SHIFT + SCALE * data.sample(2, 5)
    y = Measurement(operator, Gaussian(STD)).simulate(x, 0)
    found = sde_gen.posterior(
        model, Measurement(operator, Gaussian(STD)), y, 2, "daps", steps=12, inner=2, dtype=torch.float64, progress=False
    )
    off = (found.x - x[:, None]).flatten(2).abs()
    hidden = torch.ones(DIM, dtype=torch.bool)
    hidden[KEPT] = False
    assert float(off[:, :, KEPT].mean()) < 0.5 < float(off[:, :, hidden].mean())
    with pytest.raises(ValueError, match="DAPS needs noise where the operator is not linear: std must be positive, got 0"):
        METHODS["daps"](model, Measurement(operator, Gaussian(0.0)))
    with pytest.raises(ValueError, match="Gibbs takes linear operators, got Function"):
        METHODS["gibbs"](model, Measurement(operator, Gaussian(STD)))
    with pytest.raises(ValueError, match="langevin must be a whole number of at least 1, got 0"):
        METHODS["daps"](model, Measurement(operator, Gaussian(STD)), langevin=0)
