import math

import pytest
import torch
from toys import all_sdes

from sde_gen import Moments, Normalizer, ScoreModel, make_sde, sample
from sde_gen.exact import empirical
from sde_gen.exact.empirical import affordable_states, best_level_loss, best_loss, empirical_score, gaussian_gap, reverse_kernel
from sde_gen.training.validation import Validation

CPU = torch.device("cpu")


def normal(*shape: int, seed: int, device: torch.device = CPU) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def points(count: int = 40, shape: tuple[int, ...] = (3,), device: torch.device = CPU) -> torch.Tensor:
    return normal(count, *shape, seed=0, device=device) * 2 + 1


@pytest.mark.parametrize("name", all_sdes())
def test_the_score_is_that_of_a_mixture_of_points(name: str, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    sde = all_sdes()[name]
    data = points(device=device)
    model = empirical_score(data, sde)
    monkeypatch.setattr(empirical, "CHUNK", 5 * 7)  # in pieces of 7
    z = model.normalizer.encode(data)
    for share in (0.05, 0.5, 0.95):
        t = sde.t_min + share * (sde.t_max - sde.t_min)
        alpha, sigma = (float(v) for v in sde.marginal(torch.tensor(t, dtype=torch.float64)))
        x = (alpha * z[:5] + sigma * normal(5, 3, seed=1, device=device)).requires_grad_()
        density = torch.logsumexp(-((x[:, None] - alpha * z) ** 2).sum(2) / (2 * sigma**2), dim=1)
        (expected,) = torch.autograd.grad(density.sum(), x)
        torch.testing.assert_close(model.score(x, t).detach(), expected, rtol=1e-6, atol=1e-6 / sigma)


def test_samples_are_the_data_points(device: torch.device) -> None:
    data = points(20, (1, 2, 2), device).float()
    out = sample(empirical_score(data, make_sde("vp")), (64, 1, 2, 2), "ode", rtol=1e-5, atol=1e-5, progress=False, device=device)
    nearest = torch.cdist(out.x.flatten(1), data.flatten(1)).amin(1)
    assert float(nearest.quantile(0.95)) < 0.02
    assert len(torch.cdist(out.x.flatten(1), data.flatten(1)).argmin(1).unique()) > 12


def test_the_reverse_kernel_obeys_bayes_rule(device: torch.device) -> None:
    sde = make_sde("subvp")
    model = empirical_score(points(device=device), sde, Normalizer(torch.zeros(3), torch.ones(3)).to(device))
    x_t, x_s = normal(4, 3, seed=2, device=device), normal(4, 6, 3, seed=3, device=device)
    s, t = 0.3, 0.5
    (alpha_s, alpha_t), (sigma_s, sigma_t) = sde.marginal(torch.tensor([s, t], dtype=torch.float64))
    ratio = alpha_t / alpha_s
    z = points(device=device)

    def log_normal(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        return -0.5 * ((x - mean) ** 2).sum(-1) / variance - 1.5 * torch.log(2 * math.pi * variance)

    def log_marginal(x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(log_normal(x[..., None, :], alpha * z, sigma**2), dim=-1) - math.log(len(z))

    step = log_normal(x_t[:, None], ratio * x_s, sigma_t**2 - ratio**2 * sigma_s**2)
    expected = log_marginal(x_s, alpha_s, sigma_s) + step - log_marginal(x_t, alpha_t, sigma_t)[:, None]
    torch.testing.assert_close(reverse_kernel(model, x_t, t, s).log_prob(x_s), expected, rtol=1e-9, atol=1e-9)


def test_the_moments_are_those_of_the_draws_and_short_steps_are_gaussian(device: torch.device) -> None:
    sde = make_sde("vp")
    data = torch.tensor([[-1.0], [1.0]], dtype=torch.float64, device=device)
    model = empirical_score(data, sde, Normalizer(torch.zeros(1), torch.ones(1)).to(device))
    x_t = torch.tensor([[0.1], [-0.4]], dtype=torch.float64, device=device)
    long = reverse_kernel(model, x_t, 0.5, 0.1)
    draws = long.sample(40_000, torch.Generator().manual_seed(0))
    mean, covariance = long.moments()
    torch.testing.assert_close(draws.mean(1), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(draws.var(1), covariance[:, 0], rtol=0.03, atol=0)
    gaps = [gaussian_gap(reverse_kernel(model, x_t, 0.5, 0.5 - step))[0] for step in (0.4, 0.2, 0.1, 0.05)]
    assert gaps[0] > 0.3 and gaps[-1] < 0.01 and gaps == sorted(gaps, reverse=True)


def test_the_best_loss_is_zero_in_clear_data_and_the_datas_variance_in_noise(device: torch.device) -> None:
    sde = make_sde("vp")
    data = points(30, (4,), device).float()
    model = empirical_score(data, sde)
    losses = best_loss(model, data, torch.tensor([sde.t_min, 0.5, sde.t_max]))
    assert float(losses[0]) < 1e-6 < float(losses[1])
    snr = math.exp(2 * float(sde.half_log_snr(sde.t_max)))  # times the variance, 1 in normalised units, where x_t says nothing
    assert float(losses[2]) == pytest.approx(snr, rel=0.2)
    broken = empirical_score(data + 1, sde, model.normalizer)  # no other denoiser has a smaller one
    assert float(best_loss(broken, data, torch.tensor([0.5]))) > float(losses[1])


LEVELS = [-3.0, -0.5, 0.7, 2.0]


@pytest.mark.parametrize("name", ["vp", "ve", "subvp"])
@pytest.mark.parametrize("prediction", ["noise", "edm"])
def test_the_best_loss_by_level_is_that_of_the_validation_on_the_training_data(name: str, prediction: str) -> None:
    sde, data = make_sde(name), points(30, (2, 3))
    best = empirical_score(data, sde)
    normalizer = best.normalizer
    assert normalizer is not None
    model = ScoreModel(lambda x, t: 0 * x, sde, prediction=prediction, normalizer=normalizer, data_std=0.9)
    found = best_level_loss(model, data, LEVELS, samples=6000)
    # the validation's own zero network and levels, and the exact denoiser of the data in the network's place
    z = normalizer.encode(data).repeat(200, 1, 1)
    times = sde.time_of(torch.tensor(LEVELS, dtype=torch.float64)).tolist()
    start = Validation(z, times, LEVELS, [], [], {})
    zero = [
        float((float(model.scales(torch.tensor(t, dtype=torch.float64)).skip) * x - z).square().mean())
        for t, x, _, _ in start._noised(model)
    ]
    validation = Validation(z, times, LEVELS, zero, [], {})
    assert found == pytest.approx(validation.measure(best), rel=0.1, abs=0.003)
    if prediction == "noise":  # over the zero network's E[eps^2] = 1, the error of the noise
        assert found == pytest.approx(best_loss(best, data, torch.tensor(times), draws=6000).tolist(), rel=0.1, abs=0.003)
    else:
        assert found[0] > 0.5 and found[-1] < 1e-3
    assert validation.measure(model) == pytest.approx([1.0] * 4)


def test_the_best_loss_by_level_against_a_sum_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    sde, data = make_sde("vp"), points(7, (3,))
    model = ScoreModel(lambda x, t: x, sde, prediction="data", normalizer=Normalizer(torch.zeros(3), torch.ones(3)))
    found = best_level_loss(model, data, LEVELS, samples=5, seed=4)
    monkeypatch.setattr(empirical, "CHUNK", 40)  # in pieces of 2
    assert best_level_loss(model, data, LEVELS, samples=5, seed=4) == pytest.approx(found, rel=1e-9, abs=1e-12)
    generator = torch.Generator().manual_seed(4)
    chosen = torch.randint(7, (5,), generator=generator).tolist()
    noise = torch.randn(4, 5, 3, generator=generator)
    for k, level in enumerate(LEVELS):
        alpha, sigma = (float(v) for v in sde.marginal(sde.time_of(torch.tensor(level, dtype=torch.float64))))
        error = zero = 0.0
        for j, one in enumerate(chosen):
            x = alpha * data[one] + sigma * noise[k, j].double()
            weights = torch.exp(-((x - alpha * data) ** 2).sum(1) / (2 * sigma**2))
            error += float(((weights / weights.sum()) @ data - data[one]).square().sum())
            zero += float(data[one].square().sum())
        assert found[k] == pytest.approx(error / zero, rel=1e-6, abs=1e-12)


def test_no_network_is_better_than_the_best_and_a_class_helps(device: torch.device) -> None:
    sde, data = make_sde("vp"), points(60, (4,), device)
    labels = (data[:, 0] > 1).long()
    best = empirical_score(data, sde)
    assert best.normalizer is not None
    model = ScoreModel(lambda x, t: 0 * x, sde, prediction="noise", normalizer=best.normalizer)
    found = best_level_loss(model, data, LEVELS, samples=3000)
    z = best.normalizer.encode(data).repeat(50, 1)
    moments = Moments.fit(z)
    start = Validation(z, sde.time_of(torch.tensor(LEVELS, dtype=torch.float64)).tolist(), LEVELS, [], [], {})
    for mine, (t, x, alpha, sigma) in zip(found, start._noised(model), strict=True):
        skip = float(model.scales(torch.tensor(t, dtype=torch.float64)).skip)
        linear = float((moments.denoise(x, alpha, sigma) - z).square().mean() / (skip * x - z).square().mean())
        assert mine < 1.02 * linear
    knowing = best_level_loss(model, data, LEVELS, labels, samples=3000)
    assert knowing[0] < 0.97 * found[0]
    alone = best_level_loss(model, data, LEVELS, torch.arange(60), samples=50)  # each its own class: nothing is left to know
    assert max(alone) < 1e-12
    assert len(best_level_loss(model, data, LEVELS)) == 4


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


def test_states_are_as_many_as_the_numbers_of_the_data_allow() -> None:
    """Digits keep 256 draws, and large items need not wait minutes for them: 4,000 volumes of 16 x 16 x 16."""
    with torch.device("meta"):
        assert affordable_states(torch.empty(1437, 1, 8, 8), 16) == 256
        assert affordable_states(torch.empty(120_000, 2), 16) == 34, "pairs of a state and an item are bounded too"
        volumes, spectrograms = torch.empty(4000, 1, 16, 16, 16), torch.empty(1000, 1, 128, 256)
        assert affordable_states(volumes, 16) == 65 and affordable_states(volumes, 32) == 32
        assert affordable_states(spectrograms, 16) == 32, "the least"
