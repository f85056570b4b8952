"""Denoising score matching: at the exact denoiser the expected loss is known for each weighting and time sampler."""

import functools
import itertools
import math

import pytest
import torch
from scipy import stats
from toys import all_sdes

from sde_gen import ScoreModel, dsm_loss, make_sde
from sde_gen.exact.mixtures import GaussianData, marginal
from sde_gen.training import TrainSettings, build_model
from sde_gen.training.batches import batch_order
from sde_gen.training.losses import BROAD_SHARE, LOG_NORMAL_MEAN, LOG_NORMAL_STD, LOSSES, TIME_SAMPLERS, WEIGHTINGS
from sde_gen.training.trainer import Trainer

SDES = all_sdes()
DATA = GaussianData.correlated()
STD = 0.8
COUNT = 5_000


def exact_model(sde, shift: float = 0.0) -> ScoreModel:
    """The exact denoiser, plus a constant error."""
    return ScoreModel(lambda x, c: DATA.denoise_at(x, sde, c) + shift, sde, prediction="data", data_std=STD)


def weight(name: str, sde, t: torch.Tensor) -> torch.Tensor:
    """The weightings on |E[x_0|x_t] - x_0|^2 as the papers have them, from alpha and sigma."""
    alpha, sigma = marginal(sde, t)
    snr = (alpha / sigma) ** 2
    if name == "likelihood":  # g^2/2 |score error|^2, and a score is alpha/sigma^2 of a denoised
        return sde.diffusion(t) ** 2 / 2 * (alpha / sigma**2) ** 2
    return {"simple": snr, "edm": snr + 1 / STD**2, "min_snr": torch.minimum(snr, torch.full_like(snr, 5.0))}[name]


@functools.cache
def expected(name: str, sde, excess: float = 0.0) -> float:
    """The mean over t, uniform on [t_min, t_max], of w(t) (Var[x_0 | x_t] + excess), by the midpoint rule in log(t - t_min)."""
    width, count = sde.t_max - sde.t_min, 100_000
    share = torch.exp(-30 * (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    t = sde.t_min + width * share
    return 30 * float((weight(name, sde, t) * (DATA.posterior_variance(sde, t) + excess) * share).mean())


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_loss_at_given_times_is_weight_times_posterior_variance(name, weighting):
    sde = SDES[name]
    for share in (0.05, 0.4, 0.95):
        t = torch.full((COUNT,), sde.t_min + share * (sde.t_max - sde.t_min), dtype=torch.float64)
        loss = dsm_loss(exact_model(sde), DATA.sample(COUNT), weighting=weighting, times=t, seed=0)
        closed = float(weight(weighting, sde, t[0]) * DATA.posterior_variance(sde, t[0]))
        assert loss.shape == (COUNT,)
        assert float(loss.mean()) == pytest.approx(closed, abs=4 * float(loss.std()) / COUNT**0.5)


_OVER_TIME = list(itertools.product(WEIGHTINGS, ("uniform", "stratified", "importance")))


@pytest.mark.parametrize(("weighting", "times", "name"), [(*pair, list(SDES)[k % len(SDES)]) for k, pair in enumerate(_OVER_TIME)])
def test_expected_loss_over_time(weighting, times, name):
    sde = SDES[name]
    loss = dsm_loss(exact_model(sde), DATA.sample(COUNT), weighting=weighting, times=times, seed=1)
    error = float(loss.std()) / COUNT**0.5
    assert float(loss.mean()) == pytest.approx(expected(weighting, sde), abs=4 * error)
    assert error < 0.2 * float(loss.mean())


@pytest.mark.parametrize("name", ["vp", "toy"])
def test_a_wrong_denoiser_costs_its_squared_error(name):
    sde = SDES[name]
    loss = dsm_loss(exact_model(sde, shift=0.5), DATA.sample(COUNT), weighting="min_snr", times="stratified", seed=2)
    assert float(loss.mean()) == pytest.approx(expected("min_snr", sde, excess=0.25), abs=4 * float(loss.std()) / COUNT**0.5)
    assert float(loss.mean()) > expected("min_snr", sde) + 10 * float(loss.std()) / COUNT**0.5


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_importance_estimates_the_likelihood_objective_with_less_variance(name):
    sde, x_0 = SDES[name], DATA.sample(COUNT)
    uniform, importance = (dsm_loss(exact_model(sde), x_0, "likelihood", times, seed=3) for times in ("uniform", "importance"))
    errors = [float(loss.std()) / COUNT**0.5 for loss in (uniform, importance)]
    assert float(uniform.mean() - importance.mean()) == pytest.approx(0, abs=4 * math.hypot(*errors))
    # VE's lambda is linear in t: its importance density is the uniform one.
    assert errors[1] < errors[0] * (1.05 if name == "ve" else 0.9)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("times", TIME_SAMPLERS)
def test_times_are_inside_and_reproducible(name, times):
    sde, count = SDES[name], {"uniform": 1, "stratified": 7}.get(times, 4096)
    t, correction = TIME_SAMPLERS[times](sde, count, torch.Generator().manual_seed(0), STD)
    again, _ = TIME_SAMPLERS[times](sde, count, torch.Generator().manual_seed(0), STD)
    other, _ = TIME_SAMPLERS[times](sde, count, torch.Generator().manual_seed(1), STD)
    assert t.shape == correction.shape == (count,) and t.dtype == torch.float64
    assert (t >= sde.t_min).all() and (t <= sde.t_max).all() and (correction > 0).all() and torch.isfinite(correction).all()
    assert torch.equal(t, again) and not torch.equal(t, other)


@pytest.mark.parametrize("name", SDES)
def test_time_samplers_have_their_densities(name):
    sde, n = SDES[name], 4096
    width = sde.t_max - sde.t_min
    draws = {key: sampler(sde, n, torch.Generator().manual_seed(0), STD)[0] for key, sampler in TIME_SAMPLERS.items()}
    assert stats.kstest(((draws["uniform"] - sde.t_min) / width).numpy(), "uniform").pvalue > 1e-3
    high, low = float(sde.half_log_snr(sde.t_min)), float(sde.half_log_snr(sde.t_max))
    in_lambda = (high - sde.half_log_snr(draws["importance"])) / (high - low)
    for evenly in ((draws["stratified"] - sde.t_min) / width, in_lambda):  # one draw in each of n cells
        assert ((evenly * n).sort().values - torch.arange(n)).sub(0.5).abs().max() < 0.5 + 1e-6
    log_level = -sde.half_log_snr(draws["lognormal"]) - math.log(STD)  # log(sigma/(alpha std))
    inside = (log_level > -high - math.log(STD) + 1e-6) & (log_level < -low - math.log(STD) - 1e-6)
    quantiles = ((log_level - LOG_NORMAL_MEAN) / LOG_NORMAL_STD)[inside]
    assert inside.double().mean() > 0.98
    evenly = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    torch.testing.assert_close(torch.special.ndtr(quantiles).sort().values, evenly[-len(quantiles) :], rtol=0, atol=0.02)


@pytest.mark.parametrize("name", SDES)
def test_broad_times_are_a_tenth_uniform_in_lambda_and_the_log_normal_ones(name):
    sde, n = SDES[name], 4096
    high, low = (float(sde.half_log_snr(t)) for t in (sde.t_min, sde.t_max))
    t, _ = TIME_SAMPLERS["broad"](sde, n, torch.Generator().manual_seed(0), STD)
    even = round(BROAD_SHARE * n)
    assert even == 410
    cells = (high - sde.half_log_snr(t[:even])) / (high - low) * even
    assert (cells.sort().values - torch.arange(even)).sub(0.5).abs().max() < 0.5 + 1e-6
    generator = torch.Generator().manual_seed(0)
    torch.rand(even, generator=generator, dtype=torch.float64)
    assert torch.equal(t[even:], TIME_SAMPLERS["lognormal"](sde, n - even, generator, STD)[0])
    assert TIME_SAMPLERS["broad"](sde, 1, None, STD)[0].shape == (1,)


@pytest.mark.parametrize("name", SDES)
def test_corrections_have_mean_one(name):
    # E_importance[p_uniform/p_importance] = 1.
    _, correction = TIME_SAMPLERS["importance"](SDES[name], 10_000, torch.Generator().manual_seed(0), 1.0)
    assert float(correction.mean()) == pytest.approx(1.0, rel=1e-3)


def test_seeds_and_generators():
    model, x_0 = exact_model(make_sde("vp")), DATA.sample(16)
    a = dsm_loss(model, x_0, seed=5)
    assert torch.equal(a, dsm_loss(model, x_0, seed=5)) and not torch.equal(a, dsm_loss(model, x_0, seed=6))
    assert torch.equal(a, dsm_loss(model, x_0, generator=torch.Generator().manual_seed(5)))
    state = torch.get_rng_state()
    dsm_loss(model, x_0, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(0)
    drawn = dsm_loss(model, x_0)
    torch.manual_seed(0)
    assert torch.equal(drawn, dsm_loss(model, x_0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (2, 2, 2, 2)])
def test_shape_dtype_conditions_and_gradient(shape, dtype):
    seen = []
    scale = torch.ones((), dtype=dtype, requires_grad=True)
    model = ScoreModel(lambda x, c, label: seen.append(label) or scale * x, make_sde("ve"))
    label = torch.arange(6)
    loss = dsm_loss(model, torch.ones(6, *shape, dtype=dtype), seed=0, label=label)
    assert loss.shape == (6,) and loss.dtype == dtype and seen[0] is label
    loss.mean().backward()
    assert torch.isfinite(scale.grad)


@pytest.mark.parametrize("settings", [{}, {"weighting": "likelihood", "times": "importance"}])
def test_without_arguments_it_is_what_training_minimises(settings):
    torch.manual_seed(0)
    data = torch.randn(64, 3)
    model = build_model(data, "vp", "mlp", network_options={"width": 8, "depth": 1})
    trainer = Trainer(model, data, TrainSettings(steps=1, batch=16, seed=7, **settings), None, None, None, "cpu")
    x_0 = model.normalizer.encode(data[next(batch_order(64, 16, seed=7))])
    wanted = dsm_loss(model, x_0, seed=7, **settings).mean()
    with trainer.running():
        entry = trainer.advance()
    assert entry["loss"] == pytest.approx(float(wanted.detach()), rel=1e-6)


# 0.7 P(0) + 0.3 P(1) under weight 4, residuals 2 (D - x_0). Huber's mean is 0.7 (2 D)^2 + 0.3 (4 (1 - D) - 1) below D = 1/2.
LEAST_AT = {"l2": 0.3, "l1": 0.0, "huber": 3 / 14}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_each_loss_estimates_of_data_of_two_values(loss):
    """A denoiser that knows nothing of x_0: the mean, the median and Huber's location between them."""
    sde, x_0 = make_sde("vp"), torch.tensor([0.0] * 7 + [1.0] * 3).repeat(30)[:, None, None].expand(300, 2, 6).contiguous()
    t = torch.full((300,), sde.t_max, dtype=torch.float64)

    def mean_loss(value: float) -> float:
        model = ScoreModel(lambda x, c: torch.full_like(x, value), sde, prediction="data", data_std=STD)
        return float(dsm_loss(model, x_0, lambda s, t, std: torch.full_like(t, 4.0), t, seed=0, loss=loss).double().mean())

    candidates = [k / 28 for k in range(-2, 29)] + [0.3]
    assert min(candidates, key=mean_loss) == pytest.approx(LEAST_AT[loss])
    closed = {"l2": 4 * (0.7 * 0.25**2 + 0.3 * 0.75**2), "l1": 2 * (0.7 * 0.25 + 0.3 * 0.75), "huber": 0.7 * 0.5**2 + 0.3 * (2 * 1.5 - 1)}
    assert mean_loss(0.25) == pytest.approx(closed[loss], rel=1e-5)


def test_a_target_stands_in_the_place_of_the_items():
    sde, x_0 = make_sde("vp"), DATA.sample(64)
    model = exact_model(sde)
    t = torch.full((64,), 0.4, dtype=torch.float64)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    alpha, sigma = (float(value) for value in marginal(sde, t[0]))
    denoised = model.denoise(alpha * x_0 + sigma * noise, t)
    loss = dsm_loss(model, x_0, "min_snr", t, noise=noise, target=denoised + 0.5)
    torch.testing.assert_close(loss, 0.25 * weight("min_snr", sde, t), rtol=1e-5, atol=1e-6)


def test_own_weighting_and_sampler():
    sde, x_0 = make_sde("vp"), DATA.sample(8)
    t = torch.full((8,), 0.3, dtype=torch.float64)
    plain = dsm_loss(exact_model(sde), x_0, "simple", t, seed=0)

    def doubled(sde, times, data_std):
        assert data_std == STD
        return 2 * torch.exp(2 * sde.half_log_snr(times))

    torch.testing.assert_close(dsm_loss(exact_model(sde), x_0, doubled, t, seed=0), 2 * plain)
    sampled = dsm_loss(exact_model(sde), x_0, "simple", lambda sde, n, generator, std: (t, torch.full_like(t, 3.0)), seed=0)
    torch.testing.assert_close(sampled, 3 * plain)


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"weighting": "snr"}, "unknown weighting 'snr'; choose from simple, likelihood, edm, min_snr"),
        ({"times": "random"}, "unknown time sampler 'random'; choose from uniform, stratified, importance, lognormal, broad"),
        ({"loss": "l3"}, "unknown loss 'l3'; choose from l2, l1, huber"),
        ({"seed": 0, "generator": torch.Generator()}, "seed or generator, not both"),
        ({"times": torch.full((3,), 0.5)}, "one number for each of the 4 samples"),
        ({"times": torch.full((4, 1), 0.5)}, "one number for each of the 4 samples"),
    ],
)
def test_bad_arguments(settings, match):
    with pytest.raises(ValueError, match=match):
        dsm_loss(exact_model(make_sde("vp")), torch.zeros(4, 2), **settings)
