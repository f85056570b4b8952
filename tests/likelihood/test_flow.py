"""`log_likelihood`: closed forms, one answer whatever the batch, error bars that hold, gradients."""

import functools
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from toys import CountingNetwork, FailingNetwork, all_sdes

import sde_gen.likelihood
from sde_gen import Moments, Normalizer, ScoreModel, log_likelihood, make_sde
from sde_gen.exact.mixtures import GaussianData, MixtureData, marginal
from sde_gen.solvers.grids import GRIDS, make_grid

SDES = all_sdes()
VP = SDES["vp"]
GAUSSIAN = GaussianData.correlated()
every_sde = pytest.mark.parametrize("name", SDES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
every_divergence = pytest.mark.parametrize("divergence", ["exact", "hutchinson", "resampled"])


@pytest.fixture(autouse=True)
def unexpected_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def family(dim, seed=0, modes=8):
    """Means of unit variance, each mode with its own axes and standard deviations from 0.05 to 0.35."""
    options = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(1000 * dim + seed)}
    weights = torch.softmax(0.5 * torch.randn(modes, **options), dim=0)
    means = torch.randn(modes, dim, **options)
    stds = 0.05 * 7 ** torch.rand(modes, dim, **options)
    axes = torch.linalg.qr(torch.randn(modes, dim, dim, **options))[0]
    return MixtureData(weights, means, torch.einsum("kij,kj,klj->kil", axes, stds**2, axes))


def blurred(data, x, sde, t=None):
    """The log-density of the data plus noise of standard deviation sigma/alpha, in closed form."""
    t = sde.t_min if t is None else t
    alpha, _ = marginal(sde, t)
    return data.log_prob(alpha * x.double(), sde, t) + data.dim * math.log(alpha)


def draw(data, sde, count, seed=1):
    """From that density."""
    alpha, sigma = marginal(sde, sde.t_min)
    x = data.sample(count, seed)
    return x + sigma / alpha * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(x)


MIXTURE = family(2)
X = draw(MIXTURE, VP, 12)


@every_dtype
@every_sde
def test_gaussian_data(name, dtype, device):
    sde, data = SDES[name], GAUSSIAN.to(device)
    x = draw(data, sde, 64).to(dtype)
    found = log_likelihood(data.model(sde), x)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-6
    assert float((found.log_prob - blurred(data, x, sde)).abs().max()) / 2 < tolerance
    assert found.log_prob.dtype == found.std_error.dtype == found.solver_error.dtype == found.latent.dtype == dtype
    assert found.nfe.dtype == torch.int64 and bool(found.converged.all()) and bool((found.std_error == 0).all())
    latent = data.flow_map(x.double() * marginal(sde, sde.t_min)[0], sde, sde.t_min, sde.t_max)
    torch.testing.assert_close(found.latent, latent.to(dtype), rtol=1e-3, atol=1e-3)


@every_dtype
@pytest.mark.parametrize("std", [0.02, 1.0, 30.0])
def test_ve_up_to_fifty_standard_deviations(std, dtype, device):
    data = GaussianData(std * torch.tensor([0.7, -0.4]), std**2 * GAUSSIAN.covariance).to(device)
    sde = make_sde("ve", sigma_min=0.01 * std, sigma_max=50 * std)
    x = draw(data, sde, 32).to(dtype)
    off = (log_likelihood(data.model(sde), x).log_prob - blurred(data, x, sde)).abs().max() / 2
    assert float(off) < (1e-3 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("dim, dtype", [(2, torch.float32), (16, torch.float64)])
@every_sde
def test_mixtures(name, dim, dtype):
    sde, data = SDES[name], family(dim)
    x = draw(data, sde, 60).to(dtype)
    found = log_likelihood(data.model(sde), x)
    errors = (found.log_prob - blurred(data, x, sde)).abs()
    assert float(errors.mean()) < 1e-3 * dim and float(errors.median()) < 2e-4 * dim
    assert float((errors <= found.solver_error).double().mean()) > (0.9 if dtype == torch.float64 else 0.8)
    assert float(found.nfe.double().mean()) < 45 and bool(found.converged.all())


@pytest.mark.parametrize("seed", [0])
def test_tight_tolerances_reach_the_closed_form(seed):
    data = family(2, seed)
    x = draw(data, VP, 20)
    found = log_likelihood(data.model(VP), x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.log_prob, blurred(data, x, VP), rtol=0, atol=2 * prior_gap(data, VP))


def prior_gap(data, sde):
    """How far the matched prior is from the mixture at t_max, at most: what no integrator takes away."""
    z = MixtureData(torch.ones(1), *(value[None] for value in data.moments(sde, sde.t_max)))
    x = data.sample(2000, 5) * marginal(sde, sde.t_max)[0]
    x = x + marginal(sde, sde.t_max)[1] * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return float((data.log_prob(x, sde, sde.t_max) - z.log_prob(x)).abs().max()) + 1e-8


@pytest.mark.parametrize("share", [0.1, 0.6])
@every_sde
def test_the_density_is_that_of_data_blurred_at_t(name, share):
    sde = SDES[name]
    t = sde.t_min + share * (sde.t_max - sde.t_min)
    alpha, sigma = marginal(sde, t)
    x = MIXTURE.sample(40, 2) + sigma / alpha * torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = log_likelihood(MIXTURE.model(sde), x, t=t)
    assert float((found.log_prob - blurred(MIXTURE, x, sde, t)).abs().mean()) < 5e-4


def test_densities_integrate_to_one():
    data = MixtureData(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [0.8]]), torch.tensor([[[0.04]], [[0.25]]]))
    x = torch.linspace(-4, 5, 1000, dtype=torch.float64)[:, None]
    found = log_likelihood(data.model(VP), x).log_prob
    assert float(found.exp().sum() * (x[1] - x[0])[0]) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("name, shape", [("vp", (1,)), ("ve", (3,)), ("subvp", (2, 3)), ("cosine", (2, 2, 1)), ("toy", (1, 2, 1, 2))])
def test_any_rank_and_a_normalizer_for_each_channel(name, shape):
    dim, channels, sde = math.prod(shape), shape[0], SDES[name]
    flat = family(dim, modes=3)
    data = MixtureData(flat.log_weights.exp(), flat.means.reshape(3, *shape), flat.covariances)
    plain = data.model(sde)
    column = (channels, *[1] * (len(shape) - 1))
    shift, scale = torch.arange(1.0, channels + 1).reshape(column), 2.0 ** torch.arange(channels).reshape(column) * 3
    scaled = ScoreModel(plain.network, sde, prediction="score", normalizer=Normalizer(shift, scale), prior="matched", moments=plain.moments)
    z = draw(data, sde, 4)
    found = log_likelihood(scaled, shift + scale * z, rtol=1e-6, atol=1e-6)
    expected = blurred(data, z, sde) - float(scale.double().log().sum()) * dim / channels
    assert float((found.log_prob - expected).abs().max()) < 1e-3 * dim
    assert found.latent.shape == z.shape and float(found.latent.abs().max()) < 10 * sde.prior_std  # normalised


@every_divergence
@pytest.mark.parametrize("options", [{}, {"steps": 12}])
def test_batches_and_mates_do_not_matter(divergence, options, device):
    options = {"divergence": divergence, **options}
    model, x = MIXTURE.to(device).model(VP), X.to(device)
    whole = log_likelihood(model, x, **options)
    parts = log_likelihood(model, x, batch_size=8, **options)
    alone = log_likelihood(model, x[7:8], index_offset=7, **options)
    for name in ("log_prob", "std_error", "solver_error", "latent"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(getattr(alone, name), getattr(whole, name)[7:8], rtol=1e-5, atol=1e-5)
    assert torch.equal(parts.nfe, whole.nfe) and torch.equal(alone.nfe, whole.nfe[7:8])
    if divergence != "exact":
        runs = [{}, {"index_offset": 1}, {"seed": 1}]  # in two dimensions Rademacher's vectors are too much alike to tell
        first, moved, other = (log_likelihood(model, x, probe="gaussian", **options, **run).log_prob for run in runs)
        assert not bool((moved == first).any() | (other == first).any())


class NaNBackward(torch.autograd.Function):
    """The identity, whose slope is NaN where `bad`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, bad):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad):
        return torch.where(ctx.saved_tensors[0], math.nan, grad), None


INDEX = {"index": torch.arange(12)}
CLEAN = ScoreModel(
    lambda x, c, index: MIXTURE.score_at(x, VP, c), VP, prediction="score", prior="matched", moments=MIXTURE.model(VP).moments
)


@functools.cache
def without_the_bad(divergence):
    return log_likelihood(CLEAN, X, divergence, cond=INDEX)


@every_divergence
@pytest.mark.parametrize("kind", ["nan data", "nan network", "inf network", "stiff", "nan backward"])
def test_a_bad_sample_harms_no_other_and_is_warned_of(kind, divergence, monkeypatch):
    monkeypatch.setattr(sde_gen.likelihood.flow, "CAP", 150)
    score, bad = MIXTURE.score(VP), 3
    x = X.clone()

    def network(x, c, index):
        hit = (index == bad)[:, None]
        if kind == "stiff":
            return score(x, c) + torch.where(hit, 30 * torch.sin(1e4 * x), 0.0)
        if kind == "nan backward":
            return NaNBackward.apply(score(x, c), hit & (c > 0.3)[:, None])
        return score(x, c)

    if kind == "nan data":
        x[bad, 0] = math.nan
    elif kind.endswith("network"):
        network = FailingNetwork(score, bad, 0.4, math.nan if kind == "nan network" else math.inf)
    model = CLEAN.with_network(network)
    cond = INDEX
    with pytest.warns(UserWarning, match="^1 of 12 log-likelihoods did not converge"):
        found = log_likelihood(model, x, divergence, cond=cond)
    expected, others = without_the_bad(divergence), torch.arange(12) != bad
    assert torch.equal(found.converged, others) and torch.equal(torch.isnan(found.log_prob), ~others)
    torch.testing.assert_close(found.log_prob[others], expected.log_prob[others], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.std_error[others], expected.std_error[others], rtol=1e-8, atol=1e-8)
    assert torch.equal(found.nfe[others], expected.nfe[others]) and int(found.nfe[bad]) <= 151


@every_divergence
def test_calls_are_counted_really(divergence, device):
    data, x = MIXTURE.to(device), X.to(device)
    network = CountingNetwork(data.score(VP), 12, device)
    model = ScoreModel(network, VP, prediction="score", prior="matched", moments=data.model(VP).moments)
    found = log_likelihood(model, x, divergence, batch_size=5, cond={"index": torch.arange(12)})
    assert torch.equal(found.nfe, network.calls)
    assert log_likelihood(data.model(VP), x, divergence, steps=9).nfe.tolist() == [10] * 12


@every_divergence
def test_conditions_are_passed_and_split(divergence):
    data = [family(2, seed) for seed in range(2)]

    def network(x, c, label):
        return torch.where(label[:, None] == 0, data[0].score_at(x, VP, c), data[1].score_at(x, VP, c))

    settings = {"prediction": "score", "prior": "matched", "moments": MIXTURE.model(VP).moments}
    label = torch.arange(12) % 2
    options = {} if divergence == "exact" else {"steps": 12}
    found = log_likelihood(ScoreModel(network, VP, **settings), X, divergence, cond={"label": label}, batch_size=7, **options)
    for k in range(2):
        alone = log_likelihood(ScoreModel(data[k].score(VP), VP, **settings), X, divergence, **options)
        torch.testing.assert_close(found.log_prob[label == k], alone.log_prob[label == k], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name, grid", [("ve", None), ("toy", None)] + [("vp", grid) for grid in GRIDS])
def test_fixed_steps_along_a_named_grid_and_along_times(name, grid):
    sde = SDES[name]
    model, x = MIXTURE.model(sde), draw(MIXTURE, sde, 12)
    named = log_likelihood(model, x, steps=60, grid=grid)
    if grid in (None, "angle", "half_log_snr"):  # the others put hardly a node where these narrow modes are
        assert float((named.log_prob - blurred(MIXTURE, x, sde)).abs().mean()) < 0.01
    times = make_grid(sde, grid or "angle", sde.t_min, sde.t_max, 60, MIXTURE.model(sde).moments.spread())
    assert torch.equal(log_likelihood(model, x, steps=60, grid=times).log_prob, named.log_prob)
    assert named.nfe.tolist() == [61] * 12


def test_more_fixed_steps_than_the_adaptive_cap(monkeypatch):
    monkeypatch.setattr(sde_gen.likelihood.flow, "CAP", 20)
    assert bool(log_likelihood(GAUSSIAN.model(VP), X[:2], steps=30).converged.all())


@pytest.mark.parametrize("dim, seed", [(2, 0), (2, 1), (16, 0)])
def test_a_tenfold_smaller_tolerance_changes_no_more_than_was_said(dim, seed):
    data = family(dim, seed)
    x, model = draw(data, VP, 80), data.model(VP)
    found = [log_likelihood(model, x, rtol=tolerance, atol=tolerance) for tolerance in (1e-3, 1e-4, 1e-5, 1e-6)]
    changes = [(a.log_prob - b.log_prob).abs() for a, b in pairwise(found)]
    for one, change in zip(found, changes, strict=False):
        both = change <= one.solver_error
        assert float(both.double().mean()) >= 0.95
    # And it is no idle promise: a hundred times the change for the typical sample would be.
    assert float(found[1].solver_error.median() / changes[1].median()) < 100
    falls = [float(one.solver_error.median()) for one in found]
    assert all(b < 0.4 * a for a, b in pairwise(falls))


class Small(torch.nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(2, 2, dtype=dtype, generator=generator))

    def forward(self, x, c):
        return torch.tanh(x @ self.weight) + 0.3 * x


@pytest.mark.parametrize(
    "divergence, options, eps, tolerance",
    [(name, {"steps": 6}, 1e-5, 1e-5) for name in ("exact", "hutchinson", "resampled")]
    # Adaptive steps change with x: a difference quotient is right to tolerance/eps alone.
    + [("hutchinson", {"rtol": 1e-5, "atol": 1e-5}, 1e-2, 2e-2)],
)
def test_gradients_by_finite_differences(divergence, options, eps, tolerance, device):
    network, x = Small(), X[:2].to(device)
    model = ScoreModel(network, VP, prior="matched", moments=Moments(torch.zeros(2), covariance=0.5 * torch.eye(2))).to(device)
    options = {"divergence": divergence, "batch_size": 1 if "steps" in options else None, **options}
    asked = x.clone().requires_grad_()
    found = log_likelihood(model, asked, **options).log_prob
    by_x, by_weight = torch.autograd.grad(found.sum(), (asked, network.weight))

    @torch.no_grad()
    def value(move=0.0, change=0.0):
        network.weight[0, 1] += change
        out = log_likelihood(model, x + move, **options).log_prob
        network.weight[0, 1] -= change
        return out

    torch.testing.assert_close(found, value(), rtol=1e-12, atol=1e-12)
    for axis, move in enumerate(eps * torch.eye(2, dtype=torch.float64, device=device)):
        torch.testing.assert_close(by_x[:, axis], (value(move) - value(-move)) / (2 * eps), rtol=tolerance, atol=tolerance)
    numeric = (value(change=eps) - value(change=-eps)).sum() / (2 * eps)
    torch.testing.assert_close(by_weight[0, 1], numeric, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_the_gradient_is_the_score_of_the_blurred_data(name, device):
    sde, data = SDES[name], MIXTURE.to(device)
    x = draw(data, sde, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(log_likelihood(data.model(sde), x, rtol=1e-6, atol=1e-6).log_prob.sum(), x)
    alpha, _ = marginal(sde, sde.t_min)
    expected = alpha * data.score_at(alpha * x.detach(), sde, sde.t_min)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=0.05)


def test_no_graph_is_kept_unless_x_asks_for_it():
    model = ScoreModel(Small(), VP, prior="matched", data_std=1.0)
    assert not log_likelihood(model, X, steps=5).log_prob.requires_grad
    asked = log_likelihood(model, X.clone().requires_grad_(), "hutchinson", steps=5)
    assert asked.log_prob.requires_grad
    assert not any(getattr(asked, name).requires_grad for name in ("std_error", "solver_error", "latent"))
    with torch.no_grad():
        assert not log_likelihood(model, X.clone().requires_grad_(), steps=5).log_prob.requires_grad


@every_sde
def test_a_prior_that_is_not_the_datas_is_warned_of_with_its_size(name):
    sde = SDES[name]
    alpha, sigma = marginal(sde, sde.t_max)
    far = GaussianData(torch.tensor([1.0, -5.0]) * sde.prior_std / alpha, 25 * GAUSSIAN.covariance)
    x = draw(far, sde, 3)
    log_likelihood(far.model(sde), x)
    with pytest.warns(UserWarning, match=r"differs .* by [0-9.e+]+ nats .* prior='matched'") as caught:
        found = log_likelihood(far.model(sde, prior="sde"), x)
    said = float(str(caught[0].message).split(" nats")[0].split()[-1])
    own = torch.distributions.MultivariateNormal(alpha * far.mean, alpha**2 * far.covariance + sigma**2 * torch.eye(2))
    prior = torch.distributions.MultivariateNormal(torch.zeros(2).double(), sde.prior_std**2 * torch.eye(2).double())
    assert said == pytest.approx(float(torch.distributions.kl_divergence(own, prior)), rel=0.01)
    # The SDE's prior is what is used then.
    torch.testing.assert_close(found.log_prob - prior.log_prob(found.latent), blurred(far, x, sde) - own.log_prob(found.latent))


def test_a_prior_that_fits_is_not_warned_of():
    log_likelihood(GAUSSIAN.model(VP, prior="sde"), X)


def test_arrays_whole_numbers_and_narrow_types():
    model, x = MIXTURE.model(VP), X[:3].round()
    found = log_likelihood(model, x).log_prob
    for given in (x.numpy(), x.long(), x.numpy().astype("i8"), np.ma.array(x.numpy())):
        assert torch.equal(log_likelihood(model, given).log_prob, found)
    narrow = log_likelihood(model, x.to(torch.bfloat16), "resampled")
    single = log_likelihood(model, x.float(), "resampled")
    assert torch.equal(narrow.log_prob, single.log_prob) and torch.equal(narrow.std_error, single.std_error)
    assert narrow.log_prob.dtype == torch.float32


def test_a_network_in_float32_and_data_in_float64(device):
    network = Small(torch.float32).to(device)
    model = ScoreModel(network, VP, prior="matched", data_std=1.0)
    found = log_likelihood(model, X)
    assert found.log_prob.dtype == torch.float64
    network.double()
    torch.testing.assert_close(log_likelihood(model, X).log_prob, found.log_prob, rtol=1e-3, atol=1e-3)
    narrow = log_likelihood(model, X, dtype=torch.float32)  # the states alone: the network is asked in its own dtype
    torch.testing.assert_close(narrow.log_prob, found.log_prob, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "error, options",
    [
        (ValueError, {"probes": 0}),
        (ValueError, {"probes": True}),
        (ValueError, {"rtol": 0.0}),
        (ValueError, {"atol": math.nan}),
        (TypeError, {"rtol": "1e-3"}),
        (ValueError, {"divergence": "trace"}),
        (ValueError, {"probe": "sphere"}),
        (ValueError, {"steps": 0}),
        (ValueError, {"grid": "angle"}),
        (ValueError, {"steps": 5, "grid": "even"}),
        (ValueError, {"steps": 2, "grid": torch.tensor([VP.t_min, 1.0])}),
        (ValueError, {"steps": 2, "grid": torch.tensor([1.0, 0.5, VP.t_min])}),
        (ValueError, {"steps": 2, "grid": torch.tensor([0.2, 0.5, 1.0])}),
        (ValueError, {"steps": 2, "grid": torch.tensor([VP.t_min, 0.5, 0.7])}),
        (ValueError, {"steps": 2, "grid": torch.tensor([VP.t_min, math.nan, 1.0])}),
        (ValueError, {"batch_size": 0}),
        (ValueError, {"index_offset": -1}),
        (ValueError, {"seed": -1}),
        (TypeError, {"seed": 0.5}),
        (ValueError, {"t": 1.0}),
        (ValueError, {"t": math.nan}),
        (TypeError, {"t": "start"}),
        (TypeError, {"dtype": torch.int64}),
        (TypeError, {"cond": [torch.zeros(12)]}),
        (ValueError, {"cond": {"label": torch.zeros(11)}}),
        (TypeError, {"cond": {"label": 3}}),
        (TypeError, {"x": [[1.0, 2.0]]}),
        (TypeError, {"x": torch.zeros(3, 2, dtype=torch.complex64)}),
        (ValueError, {"x": np.ma.masked_less(np.zeros((3, 2)), 1)}),
        (ValueError, {"x": torch.zeros(3)}),
        (ValueError, {"x": torch.zeros(0, 2)}),
        (ValueError, {"x": torch.zeros(3, 5)}),
        (TypeError, {"model": torch.nn.Linear(2, 2)}),
    ],
)
def test_bad_arguments_are_refused_in_one_line(error, options):
    with pytest.raises(error) as caught:
        log_likelihood(**{"model": MIXTURE.model(VP), "x": X, **options})
    assert len(str(caught.value).splitlines()) == 1


def test_a_denoiser_that_does_not_look_at_its_state():
    sde = make_sde("vp")
    model = ScoreModel(lambda x, t: torch.zeros_like(x), sde, prediction="data", data_std=1e-3, prior="matched")
    x = 1e-3 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = (float(v) for v in sde.marginal(torch.tensor(sde.t_min, dtype=torch.float64)))
    with pytest.raises(TypeError, match="has no gradient with respect to its input"):  # it may as well be detached
        log_likelihood(model, x)
    model.depends_on_state = False
    found = log_likelihood(model, x)
    expected = torch.distributions.Normal(0.0, sigma / alpha).log_prob(x).sum(1)  # all data at 0, blurred
    assert bool(found.converged.all())
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=2e-3)


def test_what_two_probes_know_of_their_own_error():
    """Twice the standard error of two probes holds for about 70 % of samples, Student's margin for 95 %."""
    dim = 40
    stretch = torch.linspace(0.2, 1.5, dim, dtype=torch.float64)

    def network(x, c):
        return torch.tanh(x @ (torch.diag(stretch) + 0.3 * torch.ones(dim, dim, dtype=torch.float64) / dim))

    model = ScoreModel(network, VP, "data", prior="matched", data_std=1.0)
    x = 0.5 * torch.randn(300, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = log_likelihood(model, x, "exact", steps=6).log_prob
    found = log_likelihood(model, x, "resampled", steps=6)
    off = (found.log_prob - exact).abs()
    twice, student = (float((off <= bound).double().mean()) for bound in (2 * found.std_error, found.margin()))
    assert 0.6 < twice < 0.8 and 0.92 < student < 0.98, (twice, student)
    assert bool((log_likelihood(model, x[:2], "exact", steps=2).margin() == 0).all())
    with pytest.raises(ValueError, match="confidence must be in"):
        found.margin(95)
