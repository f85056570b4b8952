"""The bound: its terms against independent forms, its value where that is known exactly, its errors against the true spread."""

import copy
import functools
import math

import pytest
import torch
from toys import all_sdes

from sde_gen import Denoiser, Normalizer, ScoreModel, make_sde
from sde_gen.discrete import DiscreteChain, elbo, elbo_continuous, make_chain, prior_kl, step_kl
from sde_gen.exact.mixtures import GaussianData, slope
from sde_gen.models.denoiser import Prediction

SDES = all_sdes()
DATA = GaussianData.correlated()
VP = make_sde("vp")
every_sde = pytest.mark.parametrize("name", SDES)
VARIANCES = ("fixed_small", "fixed_large", "learned")


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Gaussian data with the exact denoiser: all is known


def exact_continuous(sde, t_min):
    """The whole bound in nats/dim, with the matched prior and the Gaussian decoder of std sigma/alpha."""
    snr = torch.exp(2 * sde.half_log_snr(torch.tensor([t_min, sde.t_max], dtype=torch.float64)))
    integral = 0.5 * (torch.log1p(DATA.e * snr[0]) - torch.log1p(DATA.e * snr[1])).mean()
    return exact_ends(sde, t_min) + float(integral)


def exact_ends(sde, t_min):
    alpha, sigma = sde.marginal(torch.tensor([t_min, sde.t_max], dtype=torch.float64))
    spread = DATA.posterior_variance(sde, torch.tensor([t_min], dtype=torch.float64))[0]
    decoder = 0.5 * math.log(2 * math.pi) + torch.log(sigma[0] / alpha[0]) + 0.5 * spread * (alpha[0] / sigma[0]) ** 2
    # The mean over data of KL(q(x_T | x_0) || p(x_T)): the information that x_T has of x_0.
    prior = 0.5 * torch.log1p(DATA.e * (alpha[1] / sigma[1]) ** 2).mean()
    return float(decoder + prior)


def exact_chain(sde, chain, variance="fixed_small"):
    """The expected bound of a chain, from signal-to-noise ratios and posterior variances alone."""
    alpha, sigma = chain.alpha, chain.sigma
    spread = DATA.posterior_variance(sde, chain.times)
    a, b = alpha[1:] / alpha[:-1], (sigma[1:] ** 2 - (alpha[1:] / alpha[:-1]) ** 2 * sigma[:-1] ** 2).sqrt()
    posterior = 1 / (1 / sigma[:-1] ** 2 + a**2 / b**2)
    model = posterior if variance == "fixed_small" else b**2
    error = (posterior * alpha[:-1] / sigma[:-1] ** 2) ** 2 * spread[1:]
    steps = 0.5 * (torch.log(model / posterior) + (posterior + error) / model - 1)
    return exact_ends(sde, float(chain.times[0])) + float(steps.sum())


@every_sde
@pytest.mark.parametrize("terms", ["all", 4])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_bound_of_gaussian_data(name, terms, variance, device):
    sde = SDES[name]
    for grid in ("time", "half_log_snr"):
        chain = DiscreteChain.from_sde(sde, 25, grid)
        data = DATA.to(device)
        found = elbo(data.model(sde), data.sample(1500), chain, variance=variance, terms=terms)
        assert abs(found.value - exact_chain(sde, chain, variance)) < 4 * found.std_error < 1.0
        assert found.unit == "nats/dim" and found.nfe == (25 if terms == "all" else 5)


@every_sde
def test_the_continuous_bound_of_gaussian_data(name, device):
    sde, data = SDES[name], DATA.to(device)
    for t_min in (None, 0.3):
        found = elbo_continuous(data.model(sde), data.sample(1500), t_min=t_min, samples=16)
        assert abs(found.value - exact_continuous(sde, sde.t_min if t_min is None else t_min)) < 4 * found.std_error < 0.5
        assert found.nfe == 17


def test_the_expected_bound_falls_to_the_continuous_one_as_one_over_the_steps():
    # x_0 and the noise are jointly Gaussian and every term is quadratic in them: the points sqrt(n) (+-) e_j give the expectation.
    sde, t_min, steps = VP, 0.02, (200, 800)
    model, dim = DATA.model(sde), 2
    points = torch.cat((torch.eye(2 * dim), -torch.eye(2 * dim))).double() * math.sqrt(2 * dim)
    x_0 = DATA.mean + points[:, :dim] @ torch.linalg.cholesky(DATA.covariance).T
    for grid in ("time", "half_log_snr"):
        gaps = []
        for count in steps:
            chain = DiscreteChain.from_sde(sde, count, grid, t_min=t_min)
            terms = []
            for i in range(1, count):
                alpha, sigma = chain.marginal(i)
                denoised = model.denoise(alpha * x_0 + sigma * points[:, dim:], float(chain.times[i]))
                terms.append(float(step_kl(chain, x_0, denoised, i).mean()) / dim)
            total = exact_ends(sde, t_min) + sum(terms)
            assert total == pytest.approx(exact_chain(sde, chain), abs=1e-9)
            gaps.append(total - exact_continuous(sde, t_min))
        assert gaps[-1] > 0
        assert slope(steps, gaps) == pytest.approx(1.0, abs=0.06)


# discrete data with the exact denoiser: the continuous bound is the entropy, and every chain is above it


class Coins:
    """Independent values 0 .. 3 with these probabilities, their denoiser in normalised units."""

    probabilities = torch.tensor([0.5, 0.1, 0.15, 0.25], dtype=torch.float64)
    entropy = float(-(probabilities * torch.log2(probabilities)).sum())
    normalizer = Normalizer(torch.tensor([[[1.2]], [[1.0]]]), torch.tensor([[[1.3]], [[0.7]]]))

    @classmethod
    def sample(cls, count):
        drawn = torch.multinomial(cls.probabilities, count * 6, replacement=True, generator=torch.Generator().manual_seed(3))
        return drawn.reshape(count, 2, 3, 1)

    @classmethod
    def model(cls, sde, device="cpu", **options):
        levels = torch.stack([cls.normalizer.encode(torch.full((2, 1, 1), float(v), dtype=torch.float64)) for v in range(4)], -1).to(device)
        log_probabilities = torch.log(cls.probabilities).to(device)

        def network(x, t):
            alpha, sigma = (value.reshape(-1, 1, 1, 1, 1) for value in sde.marginal(t.double()))
            logits = log_probabilities - 0.5 * ((x.double()[..., None] - alpha * levels) / sigma) ** 2
            return (logits.softmax(-1) * levels).sum(-1).to(x.dtype)

        return ScoreModel(network, sde, prediction="data", normalizer=copy.deepcopy(cls.normalizer), **options).to(device)


@pytest.mark.parametrize("name", ["vp", "cosine", "subvp"])
def test_the_continuous_bound_of_discrete_data_is_its_entropy(name, device):
    found = elbo_continuous(Coins.model(SDES[name], device), Coins.sample(400).to(device), 4, samples=100)
    assert found.unit == "bits/dim" and found.std_error < 0.03
    # I(x_0; x_t_min) by the I-MMSE relation, and the value is read off x at t_min without error: nothing else is lost. The images'
    # own share is -log2 of their probability, in expectation over the noise: what is left is the noise of the estimate.
    own = -torch.log2(Coins.probabilities[Coins.sample(400)]).flatten(1).mean(1)
    rest = found.each - found.prior.value - own
    assert abs(float(rest.mean())) < 4 * float(rest.std()) / 20 < 0.1
    assert abs(found.value - found.prior.value - Coins.entropy) < 4 * found.std_error


def test_chains_are_above_the_entropy_and_fall_to_it():
    model, x = Coins.model(VP), Coins.sample(600)
    found = [elbo(model, x, DiscreteChain.from_sde(VP, n, "half_log_snr"), 4) for n in (8, 32, 128)]
    assert found[0].value > found[1].value > found[2].value > Coins.entropy
    assert found[2].value < Coins.entropy + 0.15


def test_the_units_do_not_matter():
    x = Coins.sample(5)
    chain = DiscreteChain.from_sde(VP, 10)
    model = Coins.model(VP)
    plain = elbo(model, x, chain, 4)
    model.normalizer = Normalizer(Coins.normalizer.shift * 0.25 - 1, Coins.normalizer.scale * 0.25)
    torch.testing.assert_close(elbo(model, x, chain, 4, scale=0.25, shift=-1.0).each, plain.each, rtol=1e-6, atol=1e-6)


def test_bytes_need_no_levels():
    model = Coins.model(VP)
    x = Coins.sample(3)
    found = elbo(model, x.to(torch.uint8), DiscreteChain.from_sde(VP, 5))
    assert torch.equal(found.each, elbo(model, x, DiscreteChain.from_sde(VP, 5), 256).each)


# the accounts


def test_the_terms_add_up():
    chain = DiscreteChain.from_sde(VP, 12)
    found = elbo(Coins.model(VP), Coins.sample(9), chain, 4, draws=3)
    assert found.terms.shape == found.term_errors.shape == (12,) and torch.equal(found.times, chain.times)
    assert float(found.terms[0]) == pytest.approx(found.decoder.value)
    assert float(found.terms[1:].sum()) == pytest.approx(found.diffusion.value)
    assert found.value == pytest.approx(found.decoder.value + found.diffusion.value + found.prior.value)
    assert found.value == pytest.approx(float(found.each.mean()))
    assert float(found.term_errors[0]) == pytest.approx(found.decoder.std_error)
    assert found.std_error**2 == pytest.approx(found.noise**2 + found.test_set**2)
    limit = elbo_continuous(Coins.model(VP), Coins.sample(9), 4, samples=7)
    assert limit.terms.shape == limit.times.shape == (8,) and bool((limit.times.diff() > 0).all())
    torch.testing.assert_close(found.edges, chain.lambda_)
    assert found.counts.tolist() == [9] * 12 and limit.counts.tolist() == [9] * 8
    ends = VP.half_log_snr(torch.tensor([VP.t_min, VP.t_max], dtype=torch.float64))
    torch.testing.assert_close(limit.edges[[0, -1]], ends)
    middles = VP.half_log_snr(limit.times[1:])
    assert bool((limit.edges[1:] < middles).all()) and bool((middles < limit.edges[:-1]).all())
    some = elbo(Coins.model(VP), Coins.sample(9), chain, 4, terms=3)
    assert int(some.counts[0]) == 9 and int(some.counts[1:].sum()) == 27
    assert float(limit.terms[1:].sum()) == pytest.approx(limit.diffusion.value)


@pytest.mark.parametrize(("variance", "grid"), [*((variance, "time") for variance in VARIANCES), ("learned", "half_log_snr")])
def test_sampled_terms_are_unbiased(variance, grid):
    chain = DiscreteChain.from_sde(VP, 30, grid)
    model = learned(0.3)
    x = DATA.sample(200)
    whole = elbo(model, x, chain, variance=variance, draws=20)
    some = elbo(model, x, chain, variance=variance, terms=3, draws=100, seed=1)
    assert abs(some.value - whole.value) < 4 * math.hypot(some.noise, whole.noise) < 0.12 * whole.value
    seen = torch.isfinite(some.term_errors)
    assert int(seen.sum()) == 30
    assert bool(((some.terms - whole.terms).abs() < 5 * torch.hypot(some.term_errors, whole.term_errors)).all())


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("terms", ["all", 4])
def test_without_rao_blackwell_the_mean_is_the_same_and_the_noise_larger(terms, variance):
    chain, model, x = DiscreteChain.from_sde(VP, 12, "half_log_snr", t_min=0.01), learned(0.3), DATA.sample(100)
    options = {"variance": variance, "terms": terms, "draws": 60}
    closed, drawn = (elbo(model, x, chain, rao_blackwell=on, **options) for on in (True, False))
    # At the same x_i: the difference is the drawn steps' own noise.
    rest = drawn.each - closed.each
    assert abs(float(rest.mean())) < 4 * float(rest.std()) / 10 < 0.1 * closed.value
    error = torch.hypot(drawn.term_errors, closed.term_errors)
    assert bool(((drawn.terms - closed.terms).abs() <= 4.5 * error).all()) and float(drawn.terms[0]) == float(closed.terms[0])
    assert drawn.decoder == closed.decoder and drawn.prior == closed.prior
    assert drawn.noise > 1.3 * closed.noise


def test_what_rao_blackwell_saves_is_twice_the_bound():
    # Fixed-small: the variance of a drawn step is twice its KL, whatever the network, so that of all steps is twice their sum in nats.
    chain, x = DiscreteChain.from_sde(VP, 15, "half_log_snr", t_min=0.01), DATA.sample(100)
    closed, drawn = (elbo(DATA.model(VP), x, chain, draws=100, rao_blackwell=on) for on in (True, False))
    count, dim = 100 * 100, 2
    saved = (drawn.noise**2 - closed.noise**2) * count * dim**2
    assert saved == pytest.approx(2 * closed.diffusion.value * dim, rel=0.1)


def test_what_the_variance_alone_costs_is_not_sampled():
    # A network that knows the answer: only the fixed variance's own terms are left, and they are the same in every draw.
    x = torch.full((3, 2), 0.5, dtype=torch.float64)
    model = ScoreModel(lambda x, c: torch.full_like(x, 0.5), VP, prediction="data")
    chain = DiscreteChain.from_sde(VP, 40)
    whole, some = (elbo(model, x, chain, variance="fixed_large", terms=terms, draws=2) for terms in ("all", 2))
    assert some.value == pytest.approx(whole.value, rel=1e-12) and whole.diffusion.value > 0.1
    assert some.noise < 1e-12


def test_the_errors_are_the_true_spread():
    model, chain, x = DATA.model(VP), DiscreteChain.from_sde(VP, 10), DATA.sample(50)
    found = [elbo(model, x, chain, terms=2, draws=2, seed=seed) for seed in range(120)]
    spread = float(torch.tensor([f.value for f in found]).std())
    reported = math.sqrt(sum(f.noise**2 for f in found) / len(found))
    assert reported == pytest.approx(spread, rel=0.2)
    fresh = [elbo(model, DATA.sample(50, seed=seed), chain, seed=seed) for seed in range(120)]
    spread = float(torch.tensor([f.value for f in fresh]).std())
    assert math.sqrt(sum(f.std_error**2 for f in fresh) / len(fresh)) == pytest.approx(spread, rel=0.2)
    assert math.isnan(fresh[0].noise)


def chain_bound(*arguments, **options):
    return elbo(*arguments, DiscreteChain.from_sde(VP, 8), 4, draws=2, **options)


@pytest.mark.parametrize("bound", [chain_bound, functools.partial(chain_bound, rao_blackwell=False), None])
@pytest.mark.parametrize("terms", ["all", 2])
def test_an_image_has_its_own_noise(bound, terms, device):
    x, model = Coins.sample(7).to(device), Coins.model(VP, device)

    def run(images, **options):
        if bound is None:
            return elbo_continuous(model, images, 4, samples=3, draws=2, **options).each
        return bound(model, images, terms=terms, **options).each

    whole = run(x)
    torch.testing.assert_close(run(x, batch_size=3), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(run(x[4:], index_offset=4), whole[4:], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(run(x, seed=1), whole)


def test_conditions_reach_the_network():
    def network(x, c, *, shift):
        return x * 0 + shift.reshape(-1, 1)

    model = ScoreModel(network, VP, prediction="data")
    x = DATA.sample(6)
    found = [
        elbo(model, x, DiscreteChain.from_sde(VP, 4), cond={"shift": torch.arange(6.0)}, batch_size=size, dtype=torch.float64).each
        for size in (6, 4)
    ]
    torch.testing.assert_close(found[0], found[1])
    assert float(found[0][5]) > float(found[0][0])


class Plain(Denoiser):
    """A Denoiser that is no ScoreModel and has no parameters: the exact one of `DATA`, and a fraction of the variance."""

    def __init__(self, fraction=None):
        super().__init__(VP, None, DATA.model(VP).moments, prior="matched")
        self.fraction = fraction

    def predict(self, x, t, **cond):
        return Prediction(DATA.model(VP).denoise(x, t), None if self.fraction is None else torch.full_like(x, self.fraction))


def test_any_denoiser_has_a_bound():
    x, chain = DATA.sample(20), DiscreteChain.from_sde(VP, 8)
    torch.testing.assert_close(elbo(Plain(), x, chain).each, elbo(DATA.model(VP), x, chain).each, rtol=1e-12, atol=0)
    found = elbo(Plain(0.3), x, chain, variance="learned").each
    torch.testing.assert_close(found, elbo(learned(0.3), x, chain, variance="learned").each, rtol=1e-9, atol=0)
    found = elbo_continuous(Plain(), x, samples=4).each
    torch.testing.assert_close(found, elbo_continuous(DATA.model(VP), x, samples=4).each, rtol=1e-12, atol=0)


def learned(fraction):
    exact = DATA.model(VP)

    def network(x, c):
        return torch.cat((exact.network(x, c), torch.full_like(x, 2 * fraction - 1)), dim=1)

    return ScoreModel(network, VP, prediction="score", variance="learned_range", prior="matched", moments=exact.moments)


def test_learned_variance_lies_between_the_fixed_ones():
    x, chain = DATA.sample(50), DiscreteChain.from_sde(VP, 10, "half_log_snr", t_min=0.02)
    found = {fraction: elbo(learned(fraction), x, chain, variance="learned") for fraction in (0.0, 0.85, 1.0)}
    for fraction, kind in ((0.0, "fixed_small"), (1.0, "fixed_large")):
        torch.testing.assert_close(found[fraction].each, elbo(DATA.model(VP), x, chain, variance=kind).each)
    # The reverse step's true variance is the posterior's and that of the posterior's mean: the best lies in between.
    assert found[0.85].value < min(found[0.0].value, found[1.0].value)


def test_the_two_decoders():
    chain = DiscreteChain.from_sde(VP, 20)
    x = DATA.sample(40)
    noise, step = (elbo(DATA.model(VP), x, chain, decoder=decoder) for decoder in ("noise", "step"))
    assert noise.diffusion == step.diffusion and noise.prior == step.prior
    # From the same draws: the squared error is the same, its scale is not.
    scale = float(chain.sigma[0] / chain.alpha[0])
    other = float(chain.variance(1, "fixed_small")) ** 0.5
    constant = 0.5 * math.log(2 * math.pi)
    error = (noise.decoder.value - constant - math.log(scale)) * scale**2
    assert step.decoder.value == pytest.approx(constant + math.log(other) + error / other**2, rel=1e-9)
    own = elbo(learned(1.0), x, chain, variance="learned", decoder="step")
    large = float(chain.variance(0, "fixed_large")) ** 0.5
    assert own.decoder.value == pytest.approx(constant + math.log(large) + error / large**2, rel=1e-9)


def test_a_chain_of_betas_and_a_chain_of_one_step():
    chain = make_chain("linear", 100)
    found = elbo(DATA.model(chain.to_sde()), DATA.sample(50), chain)
    assert math.isfinite(found.value)
    alone = elbo(DATA.model(VP), DATA.sample(50), DiscreteChain.from_sde(VP, 1), terms=5)
    assert alone.diffusion.value == 0.0 and alone.nfe == 1


def test_one_line():
    x = Coins.sample(20)
    chain = DiscreteChain.from_sde(VP, 12, "half_log_snr")
    found = elbo(Coins.model(VP), x, chain, 4, draws=2)
    value, parts = str(found).split(" bits/dim (")
    assert value == f"{found.value:.3f} +- {found.std_error:.3f}"
    assert parts.startswith("L_0 0.000, L_t ") and "; noise 0." in parts and "L_T < 0.001; " in parts and ", test set 0." in parts
    assert "noise unknown" in str(elbo(Coins.model(VP), x, chain, 4)) and "\n" not in parts


def test_bad_arguments():
    model, chain, x = Coins.model(VP), DiscreteChain.from_sde(VP, 5), Coins.sample(2)
    for options, message in (
        ({"variance": "small"}, "unknown variance 'small'; choose from fixed_large, fixed_small, learned"),
        ({"variance": "learned"}, "predicts no variance"),
        ({"decoder": "ho"}, "unknown decoder 'ho'; choose from noise, step"),
        ({"terms": 0}, "terms must be 'all' or a whole number of at least 1, got 0"),
        ({"draws": 0}, "draws must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"levels": 3}, r"values must be in 0 \.\. 2, got 0 \.\. 3"),
        ({"levels": None}, "levels must be given for torch.int64"),
        ({"cond": {"label": torch.zeros(3)}}, "'label' must have first dimension 2"),
    ):
        with pytest.raises(ValueError, match=message):
            elbo(model, x, chain, **{"levels": 4, **options})
    with pytest.raises(TypeError, match="levels are for integer data"):
        elbo(model, x.double(), chain, 4)
    with pytest.raises(ValueError, match="marginals must be those of the model's SDE"):
        elbo(model, x, make_chain("linear", 1000), 4)
    with pytest.raises(ValueError, match="samples must be"):
        elbo_continuous(model, x, 4, samples=0)
    with pytest.raises(ValueError, match="t_min must be in"):
        elbo_continuous(model, x, 4, t_min=1.0)
    with pytest.raises(TypeError, match="model must be a Denoiser such as ScoreModel, got function"):
        elbo(model.network, x, chain, 4)
    with pytest.raises(TypeError, match="model must be a Denoiser such as ScoreModel, got function"):
        elbo_continuous(model.network, x, 4)
    with pytest.raises(TypeError, match="SDEPrior or MatchedPrior, got int"):
        prior_kl(3, normal(2, 2), 1.0)
