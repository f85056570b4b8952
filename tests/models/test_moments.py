"""The data's moments: the largest axes where the whole covariance is too large or too little is known, and what a model says of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_gen import Moments, ScoreModel, encode, fit_grid, load, make_sde, sample, save
from sde_gen.exact.mixtures import RingData
from sde_gen.models.measured_moments import LARGEST, measure_moments, moments_of
from sde_gen.models.moments import MAX_COVARIANCE
from sde_gen.networks import make_network
from sde_gen.solvers import SOLVERS

VP = make_sde("vp")
WIDE = MAX_COVARIANCE + 276
STDS = torch.tensor([30.4, 10.0, 3.0], dtype=torch.float64)
REST = 0.3


def axes(dim: int) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q


def drawn(dim: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    along = torch.randn(count, 3, dtype=torch.float64, generator=generator) * STDS
    return along @ axes(dim).T + REST * torch.randn(count, dim, dtype=torch.float64, generator=generator)


def gaussian(dim: int, moments: Moments | None = None, std: float = 1.0) -> ScoreModel:
    """The exact model of data with three large axes."""
    u, variances = axes(dim), STDS**2 + REST**2

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (value[:, None] for value in VP.marginal(t.double()))
        along = alpha * variances / (alpha**2 * variances + sigma**2)
        beside = alpha * REST**2 / (alpha**2 * REST**2 + sigma**2)
        return (((x.double() @ u) * (along - beside)) @ u.T + beside * x).to(x)

    return ScoreModel(network, VP, "data", moments=moments, data_std=std)


def test_the_largest_axes_of_wide_data() -> None:
    moments = Moments.fit(drawn(WIDE, 3000))
    assert moments.eigenvectors is None and moments.axis_values is not None and moments.axis_vectors is not None and moments.has_axes
    torch.testing.assert_close(moments.axis_values[:3].sqrt(), (STDS**2 + REST**2).sqrt(), rtol=0.05, atol=0)
    torch.testing.assert_close((axes(WIDE).T @ moments.axis_vectors[:, :3]).abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.05)
    torch.testing.assert_close(moments.axis_values[-1].sqrt(), torch.tensor(REST, dtype=torch.float64), rtol=0.05, atol=0)
    assert moments.axis_values[4:-1].max().sqrt() < 1.2 * REST  # no axis looks larger for having been chosen
    x, alpha, sigma = drawn(WIDE, 5), 0.3, 0.8
    direct = alpha * (STDS**2 + REST**2) / (alpha**2 * (STDS**2 + REST**2) + sigma**2)
    along = moments.denoise(x, alpha, sigma) @ axes(WIDE)
    torch.testing.assert_close(along, (x @ axes(WIDE)) * direct, rtol=0.05, atol=0.3)
    restored = Moments.from_state(moments.state_dict())
    assert torch.equal(restored.denoise(x, alpha, sigma), moments.denoise(x, alpha, sigma)) and restored.spread() == moments.spread()


def test_the_axes_lead_the_flow_and_its_spread() -> None:
    moments = Moments.fit(drawn(WIDE, 3000))
    x = drawn(WIDE, 4)
    ends = VP.marginal(torch.tensor([VP.t_max, 0.2], dtype=torch.float64))
    moved = moments.flow(x, *ends)
    (alpha_t, alpha_s), (sigma_t, sigma_s) = ends
    stretch = torch.sqrt((alpha_s**2 * STDS**2 + sigma_s**2) / (alpha_t**2 * STDS**2 + sigma_t**2))
    torch.testing.assert_close(moved @ axes(WIDE), (x @ axes(WIDE)) * stretch, rtol=0.1, atol=12.0)
    largest, overall = moments.spread()
    variances = torch.cat((STDS**2 + REST**2, torch.full((WIDE - 3,), REST**2, dtype=torch.float64)))
    assert largest == pytest.approx(float(((variances**2).sum() / variances.sum()).sqrt()), rel=0.05)
    assert overall == pytest.approx(float(variances.mean().sqrt()), rel=0.05)


def test_few_items_know_few_axes() -> None:
    """The best linear denoiser fitted to fewer items than dimensions is no worse on others than scaling alone."""
    data = drawn(200, 60)
    moments = Moments.fit(data[:40])
    assert moments.axis_values is not None
    x_0 = data[40:]
    x = x_0 + 2.0 * torch.randn(x_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scaled = Moments(moments.mean, variance=x_0.var())
    errors = [(each.denoise(x, 1.0, 2.0) - x_0).square().mean() for each in (moments, scaled)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("solver", ["angle", "dpm"])
def test_wide_data_are_sampled_along_their_axes(solver: str) -> None:
    moments = Moments.fit(drawn(WIDE, 2000))
    model = gaussian(WIDE, moments, std=float(drawn(WIDE, 500).std()))
    out = sample(model, (48, WIDE), solver, 20, progress=False, dtype=torch.float64)
    exact = sample(model, (48, WIDE), "ode", progress=False, dtype=torch.float64)
    torch.testing.assert_close((out.x @ axes(WIDE)).std(0), (exact.x @ axes(WIDE)).std(0), rtol=0.06, atol=0)


def test_variances_of_many_elements_are_no_axes() -> None:
    """angle starts from them as from nothing: at low order, without skipping, as the other methods do."""
    alone = Moments(torch.zeros(WIDE), variance=drawn(WIDE, 500).var(0))
    assert not alone.has_axes and Moments(torch.zeros(3), variance=torch.ones(3)).has_axes
    model = gaussian(WIDE, alone)
    seen: list[float] = []
    watched = model.with_network(lambda x, c: seen.append(float(c[0])) or model.network(x, c))  # type: ignore[func-returns-value]
    sample(watched, (2, WIDE), "angle", 6, progress=False, final="state")
    assert seen[0] == pytest.approx(VP.t_max) and len(seen) == 6


def test_a_wide_models_largest_axes_are_measured() -> None:
    dim = LARGEST + 100
    found = measure_moments(gaussian(dim), (dim,), torch.float64)
    assert found is not None and found.axis_values is not None and found.axis_vectors is not None
    top = found.axis_values[:-1].sort(descending=True).values[:3]
    torch.testing.assert_close(top, STDS**2 + REST**2, rtol=0.05, atol=0.5)
    assert float(found.axis_values[-1]) == pytest.approx(REST**2, rel=0.3)
    assert measure_moments(ScoreModel(lambda x, c: x * float("nan"), VP), (dim,)) is None


def test_measured_moments_are_of_the_weights_that_were_measured() -> None:
    torch.manual_seed(0)
    network = make_network("mlp", (3,), width=16, depth=1)
    model = ScoreModel(network, VP, "edm", "half_log_snr", data_std=1.0)
    x = torch.zeros(1, 3)
    first = moments_of(model, x)
    assert moments_of(model, x) is first
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3)
    second = moments_of(model, x)
    assert second is not first and not torch.equal(second.mean, first.mean)
    network.load_state_dict({key: value + 0.1 for key, value in network.state_dict().items()})
    assert moments_of(model, x) is not second


def test_largest_axes_are_kept_with_a_checkpoint(tmp_path) -> None:
    torch.manual_seed(0)
    data = drawn(40, 50)
    network = make_network("mlp", (40,), width=16, depth=1)
    model = ScoreModel(network, VP, "edm", "half_log_snr", data_std=1.0, moments=Moments.fit(data.float()))
    again = load(save(model, tmp_path / "checkpoint"))
    assert again.moments.axis_values is not None
    assert torch.equal(again.moments.denoise(data, 0.5, 1.0), model.moments.denoise(data, 0.5, 1.0))


@pytest.mark.parametrize("solver", [name for name, kind in SOLVERS.items() if not kind.stochastic and not kind.adaptive])
def test_towards_noise_a_method_is_stable(solver: str) -> None:
    """From data between which the flow parts, at few steps, the latents stay latents."""
    model = RingData(8, std=0.02).model(VP)
    x = RingData(8, std=0.02).sample(100)
    for steps in (10, 20):
        z = encode(model, x, solver, steps=steps, progress=False)
        assert float(z.std()) < 2.5, (solver, steps, float(z.std()))


def test_a_fit_is_judged_by_the_converged_flow_and_not_by_the_solver_fitted() -> None:
    """The default error of a method that cannot know the data's axes is as large as it is."""
    alone = Moments(torch.zeros(WIDE), variance=drawn(WIDE, 500).var(0))
    model = gaussian(WIDE, alone, std=0.6)
    fitted = fit_grid(model, "angle", 6, (WIDE,), samples=4, batch_size=1, iterations=1)
    noise_free = sample(model, (24, WIDE), "angle", 6, grid="angle", progress=False, dtype=torch.float64, final="state")
    exact = sample(model, (24, WIDE), "ode", progress=False, dtype=torch.float64, final="state")
    true = float((noise_free.x - exact.x).square().mean(1).sqrt().log().mean().exp())
    assert 0.3 * true < fitted.default_error < 3 * true
