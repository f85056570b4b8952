"""`bits_per_dim`: the accounting alone, bounds against exact discrete probabilities, and error bars made of their parts."""

import math
import re
import warnings

import pytest
import torch
from toys import all_sdes

from sde_gen import BitsPerDim, Moments, Normalizer, ScoreModel, bits_per_dim, log_likelihood
from sde_gen.exact.mixtures import MixtureData, marginal

SDES = all_sdes()
VP = SDES["vp"]


def images(levels, count=50, shape=(1, 2, 2), seed=0, dtype=torch.uint8):
    return torch.randint(0, levels, (count, *shape), generator=torch.Generator().manual_seed(seed)).to(dtype)


def log_normal(z):
    return -0.5 * z**2 - 0.5 * math.log(2 * math.pi)


def log_mass(low, high):
    """log(Phi(high) - Phi(low)), from the side on which it is a difference of small numbers."""
    low, high = torch.where(low + high > 0, -high, low), torch.where(low + high > 0, -low, high)
    outer = torch.special.log_ndtr(high)
    return outer + torch.log(-torch.expm1(torch.special.log_ndtr(low) - outer))


class Box:
    """Every element uniform on [-1, 1], blurred by sigma: density and score."""

    def log_prob(self, x, sigma):
        return (log_mass((-1 - x) / sigma, (1 - x) / sigma) - math.log(2)).flatten(1).sum(1)

    def score(self, x, sigma):
        low, high = (-1 - x) / sigma, (1 - x) / sigma
        mass = log_mass(low, high)
        return (torch.exp(log_normal(low) - mass) - torch.exp(log_normal(high) - mass)) / sigma

    def model(self, sde, shape, normalizer=None, device="cpu"):
        def network(x, t):
            alpha, sigma = (value.reshape(-1, *[1] * len(shape)).to(x) for value in marginal(sde, t))
            return self.score(x / alpha, sigma / alpha) / alpha

        moments = Moments(torch.zeros(shape), variance=torch.full(shape, 1 / 3))
        return ScoreModel(network, sde, prediction="score", prior="matched", moments=moments, normalizer=normalizer).to(device)


def atoms(weights, shape=(), spread=1e-3):
    """Data that sits on the integers 0, 1, ..., each with its weight: (K,) or (K, K) over two elements."""
    places = torch.cartesian_prod(*[torch.arange(float(k)) for k in weights.shape]).reshape(weights.numel(), -1)
    dim = places.shape[1]
    return MixtureData(weights.flatten(), places, (spread**2 * torch.eye(dim)).expand(len(places), dim, dim))


def log_probability(data, values, sde, t):
    """log of the integral of the blurred density over the bins of half a unit around `values` (B, D), for axes-aligned modes."""
    alpha, sigma = marginal(sde, t)
    std = torch.sqrt(data.covariances.diagonal(dim1=1, dim2=2) + (sigma / alpha) ** 2)
    z = values.double()[:, None] - data.means
    mass = log_mass((z - 0.5) / std, (z + 0.5) / std)
    return torch.logsumexp(data.log_weights + mass.sum(2), 1)


# The accounting alone.


@pytest.mark.parametrize("draws, importance", [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize(
    "low, high", [(0.0, 1.0), (-1.0, 1.0), (-127.5 / 73.9, 128.5 / 73.9), (-0.5, 255.5)], ids=["unit", "symmetric", "z-scored", "values"]
)
def test_a_uniform_density_has_eight_bits(low, high, draws, importance):
    width = (high - low) / 256

    def density(u):
        inside = ((u > low) & (u < high)).flatten(1).all(1)
        return torch.where(inside, -u[0].numel() * math.log(high - low), -math.inf)

    found = bits_per_dim(density, images(256), scale=width, shift=low + width / 2, draws=draws, importance=importance)
    assert found.value == pytest.approx(8, abs=1e-6) and bool(((found.each - 8).abs() < 1e-6).all())
    assert found.converged == 1.0 and found.nfe == 0.0 and found.solver == 0.0


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_any_number_of_levels(levels):
    shown = images(levels, dtype=torch.int64)
    assert bits_per_dim(lambda u: 0 * u.flatten(1).sum(1) - 4 * math.log(levels), shown, levels).value == pytest.approx(math.log2(levels))


def test_every_bin_is_filled_evenly():
    seen = []
    bits_per_dim(lambda u: seen.append(u) or u.flatten(1).sum(1), images(5, 2000, (3,)), draws=2)
    parts = torch.stack(seen) - images(5, 2000, (3,)).double()
    assert float(parts.min()) > -0.5 and float(parts.max()) < 0.5 and not torch.equal(seen[0], seen[1])
    counts = torch.histc(parts, 10, -0.5, 0.5)
    assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 30  # chi squared with 9 degrees of freedom
    assert abs(float(torch.corrcoef(parts.reshape(-1, 3).T)[0, 1])) < 0.08


# Through the flow.


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("levels", [17, 256])
def test_uniform_data_is_the_blurred_box(levels, name, device):
    sde, shape = SDES[name], (2, 1, 2)
    half = levels / 2
    normalizer = Normalizer(torch.full((2, 1, 1), half - 0.5), torch.full((2, 1, 1), half))
    shown, box = images(levels, 40, shape, dtype=torch.int64).to(device), Box()
    found = bits_per_dim(box.model(sde, shape, normalizer, device), shown, levels)
    alpha, sigma = marginal(sde, sde.t_min)

    def density(u):
        return box.log_prob((u - half + 0.5) / half, sigma / alpha) - 4 * math.log(half)

    expected = bits_per_dim(density, shown, levels)  # the same seed, so the same places in the bins
    assert float((found.each - expected.each).abs().mean()) < 1e-3 and found.value == pytest.approx(expected.value, abs=3e-4)
    assert found.value == pytest.approx(math.log2(levels), abs=0.05) and found.value > math.log2(levels)
    assert found.trace == 0.0 and 0 < found.solver < 5e-3 and found.nfe > 10


@pytest.mark.parametrize("kind", ["standard", "range", "identity"])
def test_the_offset_is_right_for_every_normalizer(kind):
    values = (torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 30.0, 30.0]) + 128).round()
    normalizer = Normalizer.fit(values, kind)
    z = normalizer.encode(values.double())
    data = MixtureData(torch.ones(1), z.mean(0)[None], torch.diag(z.var(0))[None])
    model = ScoreModel(
        data.score(VP), VP, prediction="score", prior="matched", normalizer=normalizer, moments=Moments(*_mean_and_variance(z))
    )
    found = bits_per_dim(model, values.to(torch.uint8))
    entropy = (0.5 * torch.log2(2 * math.pi * math.e * (values.double().var(0) + 1 / 12))).mean()
    assert found.value == pytest.approx(float(entropy), abs=4 * found.std_error + 0.01)


def _mean_and_variance(z):
    return z.mean(0), z.var(0)


# Bounds.

ONE = torch.tensor([0.1, 0.2, 0.3, 0.4])
TWO = torch.tensor([[0.1, 0.3], [0.15, 0.05], [0.25, 0.15]])


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("weights", [ONE, TWO], ids=["1-D", "2-D"])
def test_truncated_normal_noise_bounds_the_discrete_probability_tightly(weights, name, device):
    sde, data = SDES[name], atoms(weights)
    shown = torch.cartesian_prod(*[torch.arange(k) for k in weights.shape]).reshape(weights.numel(), -1).repeat(6, 1)
    found = bits_per_dim(data.to(device).model(sde), shown.to(device), max(weights.shape), "truncated_normal")
    t = float(sde.time_of(math.log(3 / 0.5)))
    exact = -log_probability(data, shown, sde, t) / (data.dim * math.log(2))
    # The density at that time is the noise's own shape in each bin, so that nothing is lost but what solver and neighbours make.
    gaps = found.each - exact
    assert float(gaps.mean()) > -1e-3 and float(gaps.abs().mean()) < 5e-3
    torch.testing.assert_close(exact[: weights.numel()], -torch.log2(weights.flatten().double()) / data.dim, rtol=0, atol=0.01)


@pytest.mark.parametrize("dequantization", ["uniform", "truncated_normal"])
def test_bounds_are_bounds_and_more_draws_tighten_the_weighted_one(dequantization):
    data = atoms(TWO, spread=0.25)
    shown = torch.cartesian_prod(torch.arange(3), torch.arange(2)).repeat(30, 1)
    t = VP.t_min if dequantization == "uniform" else float(VP.time_of(math.log(3 / 0.5)))
    exact = -log_probability(data, shown, VP, t) / (2 * math.log(2))

    def gap(**options):
        found = bits_per_dim(data.model(VP), shown, 3, dequantization, rtol=1e-3, atol=1e-3, **options)
        excess = found.each - exact
        return float(excess.mean()), float(excess.std()) / math.sqrt(len(shown)), found

    plain, noise, found = gap(draws=4)
    weighted, weighted_noise, tight = gap(draws=4, importance=True)
    assert plain > 3 * noise and weighted > -3 * weighted_noise
    assert weighted < plain and bool((tight.each < found.each).all())  # Jensen, draw by draw
    many, _, _ = gap(draws=8, importance=True)
    assert many < weighted + weighted_noise and many == pytest.approx(0, abs=0.5 * plain)
    assert (found.bound, tight.bound) == ("variational", "importance-weighted")


def test_truncated_normal_noise_follows_scale_and_normalizer(device):
    """The same data in other units and in other bins has the same bits."""
    data = atoms(ONE).to(device)
    plain = data.model(VP)
    shown = torch.arange(4, device=device)[:, None].repeat(10, 1)
    expected = bits_per_dim(plain, shown, 4, "truncated_normal").each
    normalizer = Normalizer(torch.tensor([-3.0]), torch.tensor([5.0])).to(device)  # x = 5 z - 3: value v is x = 5 v - 3
    moved = ScoreModel(plain.network, VP, prediction="score", prior="matched", moments=plain.moments, normalizer=normalizer)
    found = bits_per_dim(moved, shown, 4, "truncated_normal", scale=5.0, shift=-3.0).each
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_truncated_normal_noise_where_the_model_has_no_such_time():
    """Bins far below the noise at t_min: normal noise cut at less than three standard deviations."""
    data = MixtureData(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1))
    shown, width = images(256, 200, (1,)), 2e-3
    found = bits_per_dim(data.model(VP), shown, None, "truncated_normal", scale=width, shift=-128 * width)
    exact = -data.log_prob(width * (shown.double() - 128)) / math.log(2) - math.log2(width)
    # A normal cut at 0.4 standard deviations is flat to 8 %, and so nearly as good as even noise in a bin where p is flat.
    torch.testing.assert_close(found.each, exact, rtol=0, atol=0.12)
    assert found.value == pytest.approx(float(exact.mean()), abs=0.01)


def test_truncated_normal_noise_needs_one_scale():
    model = Box().model(VP, (2, 1, 1), Normalizer(torch.zeros(2, 1, 1), torch.tensor([1.0, 2.0]).reshape(2, 1, 1)))
    with pytest.raises(ValueError, match="one scale"):
        bits_per_dim(model, images(256, 2, (2, 1, 1)), dequantization="truncated_normal")


# Error bars.


def bumpy(u):
    """A density in name: it changes within a bin and from image to image."""
    return torch.sin(3 * u).flatten(1).sum(1) - 0.1 * (u.flatten(1) ** 2).sum(1)


@pytest.mark.parametrize("draws, importance", [(4, False), (40, True)])  # weighted: in the limit of many draws
def test_the_part_of_dequantisation_is_its_spread_over_seeds(draws, importance):
    shown = images(4, 40)
    runs = [bits_per_dim(bumpy, shown, draws=draws, importance=importance, seed=seed) for seed in range(200)]
    values, said = torch.tensor([run.value for run in runs]), torch.tensor([run.dequantisation for run in runs])
    assert float(said.square().mean().sqrt() / values.std()) == pytest.approx(1, abs=0.2)
    assert all(run.trace == 0.0 for run in runs)


def test_the_whole_is_the_spread_over_populations():
    runs = [bits_per_dim(bumpy, images(4, 40, seed=seed), draws=2, seed=seed) for seed in range(200)]
    values, said = torch.tensor([run.value for run in runs]), torch.tensor([run.std_error for run in runs])
    assert float(said.square().mean().sqrt() / values.std()) == pytest.approx(1, abs=0.2)


def test_the_part_of_the_trace_is_its_spread_over_seeds():
    data = atoms(TWO, spread=0.3)
    model, shown = data.model(VP), images(2, 10, (2,))
    options = {"divergence": "hutchinson", "steps": 4, "probe": "gaussian"}
    runs = [bits_per_dim(model, shown, draws=2, seed=seed, **options) for seed in range(50)]
    spread = torch.tensor([run.value for run in runs]).var()
    trace, places = (torch.tensor([getattr(run, part) for run in runs]).square().mean() for part in ("trace", "dequantisation"))
    assert float(((trace + places) / spread).sqrt()) == pytest.approx(1, abs=0.25) and float(trace) > float(places)


@pytest.mark.parametrize("options", [{"draws": 3}, {"draws": 3, "importance": True}, {"draws": 1}])
def test_the_parts_make_the_whole(options):
    found = bits_per_dim(atoms(TWO, spread=0.3).model(VP), images(2, 20, (2,)), 2, divergence="hutchinson", steps=10, **options)
    parts = [part for part in (found.trace, found.dequantisation, found.test_set) if not math.isnan(part)]
    assert math.hypot(*parts) == pytest.approx(found.std_error) and found.trace > 0
    assert found.std_error == pytest.approx(float(found.each.std()) / math.sqrt(20)) and found.value == pytest.approx(
        float(found.each.mean())
    )


def test_what_cannot_be_known_is_nan():
    model, shown = atoms(TWO, spread=0.3).model(VP), images(2, 5, (2,))
    one = bits_per_dim(model, shown, steps=10)
    assert math.isnan(one.dequantisation) and one.trace == 0.0 and "dequantisation unknown" in str(one)
    probe = bits_per_dim(model, shown, draws=2, divergence="hutchinson", probes=1, steps=10)
    assert math.isnan(probe.trace) and "trace unknown" in str(probe) and probe.dequantisation > 0
    image = bits_per_dim(model, shown[:1], draws=2, steps=10)
    assert math.isnan(image.std_error) and math.isnan(image.test_set) and image.dequantisation > 0


def test_the_printed_line():
    made = BitsPerDim(2.3141, 0.00611, 0.002, 0.0009, 0.0059, 0.0, torch.zeros(1), 30.0, 1.0, "variational")
    assert str(made) == "2.314 +- 0.006 bits/dim (trace 0.002, dequantisation < 0.001, test set 0.006; solver 0.000)"
    found = bits_per_dim(atoms(TWO, spread=0.3).model(VP), images(2, 5, (2,)), draws=2)
    number = r"(\d+\.\d{3}|< 0\.001)"
    line = rf"-?\d+\.\d{{3}} \+- \d+\.\d{{3}} bits/dim \(trace {number}, dequantisation {number}, test set {number}; solver {number}\)"
    assert re.fullmatch(line, str(found)) and str(found).startswith(f"{found.value:.3f} +- {found.std_error:.3f}")


def test_the_images_need_not_be_where_the_model_is(device):
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([0.3, 0.6], dtype=torch.float64))

        def forward(self, x, c):
            return self.weight * x

    model = ScoreModel(Linear(), VP, "data", data_std=1.0, prior="matched", normalizer=Normalizer(torch.zeros(2), torch.ones(2)))
    shown = images(4, 10, (2,))
    for kind in ("uniform", "truncated_normal"):
        here = bits_per_dim(model.to("cpu"), shown, 4, kind, draws=2, steps=10)
        there = bits_per_dim(model.to(device), shown, 4, kind, draws=2, steps=10)
        torch.testing.assert_close(there.each, here.each, rtol=1e-6, atol=1e-6)
        assert there.std_error == pytest.approx(here.std_error) and there.nfe == here.nfe


def test_images_that_do_not_converge_are_left_out_and_counted(device):
    shown = images(4, 20).to(device)

    def holes(u):
        return torch.where(torch.arange(20, device=device) == 7, math.nan, bumpy(u))

    found, whole = bits_per_dim(holes, shown), bits_per_dim(bumpy, shown)
    rest = torch.arange(20) != 7
    assert found.converged == pytest.approx(0.95) and found.value == pytest.approx(float(whole.each[rest].mean()))
    assert torch.equal(found.each[rest], whole.each[rest]) and math.isnan(found.each[7]) and len(found.each) == 20
    assert str(found).endswith("; 5.0% did not converge and are left out)")
    with pytest.raises(ValueError, match="converged"):
        bits_per_dim(lambda u: u.flatten(1).sum(1) * math.nan, shown)


# Seeds, options, refusals.


def test_a_seed_is_the_answer_and_an_image_knows_no_other():
    model, shown = atoms(TWO, spread=0.3).model(VP), images(2, 8, (2,))
    options = {"draws": 2, "divergence": "resampled", "steps": 10, "probe": "gaussian"}
    first, again, other = (bits_per_dim(model, shown, seed=seed, **options) for seed in (3, 3, 4))
    assert torch.equal(first.each, again.each) and str(first) == str(again) and not bool((first.each == other.each).any())
    parts = bits_per_dim(model, shown, seed=3, batch_size=3, **options)
    torch.testing.assert_close(parts.each, first.each, rtol=1e-6, atol=1e-6)
    one = bits_per_dim(model, shown, seed=3, divergence="exact", steps=10)
    some = bits_per_dim(model, shown[:5], seed=3, divergence="exact", steps=10)
    torch.testing.assert_close(some.each, one.each[:5], rtol=1e-6, atol=1e-6)


def test_it_is_the_log_likelihood_at_the_places_in_the_bins():
    model, shown, seen = atoms(TWO, spread=0.3).model(VP), images(2, 8, (2,)), []
    bits_per_dim(lambda u: seen.append(u) or u.sum(1), shown, seed=5)
    found = bits_per_dim(model, shown, seed=5, t=0.1)
    torch.testing.assert_close(found.each, -log_likelihood(model, seen[0], t=0.1).log_prob / (2 * math.log(2)))
    float32 = bits_per_dim(model, shown, seed=5, t=0.1, dtype=torch.float32)
    torch.testing.assert_close(float32.each, found.each, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "error, options",
    [
        (TypeError, {"images": torch.zeros(3, 2)}),
        (TypeError, {"images": torch.zeros(3, 2, dtype=torch.float64)}),
        (TypeError, {"images": torch.zeros(3, 2, dtype=torch.bool)}),
        (TypeError, {"images": [[1, 2]]}),
        (ValueError, {"images": torch.zeros(3, dtype=torch.uint8)}),
        (ValueError, {"images": torch.zeros(0, 2, dtype=torch.uint8)}),
        (ValueError, {"images": torch.zeros(3, 2, dtype=torch.int64)}),
        (ValueError, {"images": torch.full((3, 2), 17), "levels": 17}),
        (ValueError, {"images": torch.full((3, 2), -1), "levels": 17}),
        (ValueError, {"levels": 1}),
        (ValueError, {"levels": 2.0}),
        (ValueError, {"dequantization": "variational"}),
        (ValueError, {"draws": 0}),
        (ValueError, {"draws": True}),
        (ValueError, {"importance": True}),
        (ValueError, {"scale": 0.0}),
        (ValueError, {"scale": math.inf}),
        (ValueError, {"seed": -1}),
        (TypeError, {"seed": 1.0}),
        (ValueError, {"dequantization": "truncated_normal"}),
        (ValueError, {"steps": 4}),
        (ValueError, {"model": lambda u: u}),
        (ValueError, {"model": lambda u: 0.0}),
        (ValueError, {"model": Box().model(VP, (2,)), "probes": 0}),
        (TypeError, {"model": 3}),
    ],
)
def test_bad_arguments_are_refused_in_one_line(error, options):
    with pytest.raises(error) as caught:
        bits_per_dim(**{"model": bumpy, "images": images(2, 3, (2,)), **options})
    assert len(str(caught.value).splitlines()) == 1


def test_float_data_is_pointed_to_nats():
    with pytest.raises(TypeError, match="in nats: log_likelihood"):
        bits_per_dim(bumpy, torch.zeros(3, 2))


def test_no_warnings_for_good_models():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bits_per_dim(Box().model(VP, (2,)), images(2, 3, (2,)), 2, scale=1.0, shift=-0.5)
