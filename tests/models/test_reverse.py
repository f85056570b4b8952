"""The reverse-time family keeps the forward process's marginals for every eta."""

import pytest
import torch
import torchsde
from toys import all_sdes

from sde_gen import ReverseSDE, make_sde
from sde_gen.exact.mixtures import GaussianData, RingData, column, marginal
from sde_gen.models.reverse import coefficients

SDES = all_sdes()
every = pytest.mark.parametrize("name", SDES)
etas = pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.7])


@every
@etas
def test_drift_and_diffusion_by_definition(name, eta):
    sde, data = SDES[name], RingData()
    process = ReverseSDE(data.model(sde), eta)
    t = sde.t_min + (sde.t_max - sde.t_min) * torch.linspace(0.01, 0.99, 12, dtype=torch.float64)
    alpha, sigma = (column(value, 1) for value in marginal(sde, t))
    x = alpha * data.sample(12) + sigma * torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f, g = column(sde.f(t), 1), column(sde.diffusion(t), 1)
    exact = f * x - (1 + eta**2) / 2 * g**2 * data.score_at(x, sde, t)
    torch.testing.assert_close(process.drift(x, t), exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))
    torch.testing.assert_close(process.drift(x[:1], float(t[0])), exact[:1], rtol=1e-9, atol=1e-9 * float(exact.abs().max()))
    torch.testing.assert_close(process.diffusion(t), eta * g[:, 0])


@every
@etas
def test_marginals_are_kept(name, eta):
    # For Gaussian data the drift is A x + b: run forward in time, V' = A V + V A^T - eta^2 g^2 I and m' = A m + b.
    sde, data, h = SDES[name], GaussianData.correlated(), 1e-5
    for t in (0.1004, 0.5004, 0.9004):  # away from the points of `ddpm`, where the second derivative jumps
        a, b, c = (float(value) for value in coefficients(sde, t, eta))
        gain, offset = data.affine(sde, t)
        push = a * torch.eye(2, dtype=torch.float64) + b * gain
        mean, variance = data.moments(sde, t)
        (mean_1, variance_1), (mean_0, variance_0) = data.moments(sde, t + h), data.moments(sde, t - h)
        close = {"rtol": 1e-5, "atol": 1e-6 * float(variance.max())}
        torch.testing.assert_close(push @ mean + b * offset, (mean_1 - mean_0) / (2 * h), **close)
        torch.testing.assert_close(
            push @ variance + variance @ push.T - c**2 * torch.eye(2, dtype=torch.float64), (variance_1 - variance_0) / (2 * h), **close
        )


@every
def test_eta_zero_is_the_flow(name):
    model = GaussianData.correlated().model(SDES[name])
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ReverseSDE(model, 0.0).drift(x, 0.4), model.velocity(x, 0.4), rtol=1e-10, atol=1e-10)
    assert float(ReverseSDE(model, 0.0).diffusion(0.4)) == 0


class Backwards:
    """A ReverseSDE in the time tau = start - t, for torchsde."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, process: ReverseSDE, start: float) -> None:
        self.process, self.start = process, start

    def f(self, tau, x):
        return -self.process.drift(x, self.start - tau)

    def g(self, tau, x):
        return self.process.diffusion(self.start - tau).to(x).expand_as(x)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_torchsde_draws_gaussian_data_from_it(eta):
    sde, data, count = make_sde("cosine"), GaussianData.correlated(), 3000
    model = data.model(sde)
    start, end = 0.9, 0.2
    mean, covariance = data.moments(sde, start)
    z = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = mean + z @ torch.linalg.cholesky(covariance).T
    motion = torchsde.BrownianInterval(0.0, start - end, size=(count, 2), dtype=torch.float64, entropy=2)
    times = torch.tensor([0.0, start - end], dtype=torch.float64)
    with torch.no_grad():
        x = torchsde.sdeint(Backwards(ReverseSDE(model, eta), start), x, times, bm=motion, dt=0.01, method="euler")[-1]
    mean, covariance = data.moments(sde, end)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.06)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.08, atol=0.04)


def test_conditions_are_passed_and_dtype_kept():
    seen = {}
    data, sde = GaussianData.correlated(), make_sde("vp")
    model = data.model(sde)
    inner = model.network
    model.network = lambda x, c, **cond: seen.update(cond) or inner(x, c)
    label = torch.arange(3)
    assert ReverseSDE(model, label=label).drift(torch.ones(3, 2), 0.5).dtype == torch.float32
    assert seen["label"] is label


@pytest.mark.parametrize("eta", [-0.1, float("nan")])
def test_bad_eta(eta):
    with pytest.raises(ValueError, match="eta must not be negative, got"):
        ReverseSDE(GaussianData.correlated().model(make_sde("vp")), eta)
