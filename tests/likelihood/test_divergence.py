"""The divergence: the exact trace for any shape and network, and estimates that are as good as they say."""

import math

import pytest
import torch
from toys import all_sdes

import sde_gen.likelihood.divergence
from sde_gen import ScoreModel, log_likelihood
from sde_gen.exact.mixtures import MixtureData
from sde_gen.likelihood.divergence import DIVERGENCES, Exact
from sde_gen.randomness import NoiseStream

SHAPES = [(1,), (5,), (2, 3, 3), (1, 4)]
KINDS = ["hutchinson", "resampled"]
RANDOM = pytest.mark.parametrize("kind", KINDS)


class Unbatchable(torch.autograd.Function):
    """x^3 with a backward that torch cannot batch."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        if float(grad.abs().max()) == 0:  # what cannot be batched
            return torch.zeros_like(x)
        return 3 * x**2 * grad


CPU = torch.device("cpu")


def network(shape, seed=0, device=CPU):
    """Couples every element of a sample, and no two samples."""
    dim = math.prod(shape)
    mixing = torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(device)
    return lambda x: (torch.tanh(x.flatten(1) @ mixing) + 0.2 * x.flatten(1) ** 2).reshape(x.shape)


def points(shape, count=3, device=CPU):
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(device).requires_grad_()


def symmetric(dim, device=CPU):
    matrix = torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).to(device)
    return matrix + matrix.T


def made(kind, x, probes=2, probe="rademacher", keep=False, seed=0):
    noise = NoiseStream(seed, 0, len(x), (probes, x[0].numel()), x.dtype, x.device)
    return DIVERGENCES[kind](noise, probes, probe, keep)


def trace(rule, denoise, x, matrix, evaluation=0, rows=None):
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    return rule.trace(denoise(x), x, lambda v: ((v @ matrix) * v).sum(2), rows, evaluation)


def autograd_trace(denoise, x):
    jacobians = [torch.autograd.functional.jacobian(denoise, one[None]).reshape(one.numel(), -1) for one in x.detach()]
    return torch.stack([jacobian.trace() for jacobian in jacobians])


@pytest.mark.parametrize("chunk", [1, 7, 1 << 21])
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_is_the_trace(shape, chunk, monkeypatch, device):
    monkeypatch.setattr(sde_gen.likelihood.divergence, "_CHUNK", chunk)
    x, matrix, denoise = points(shape, device=device), symmetric(math.prod(shape), device), network(shape, device=device)
    found = trace(made("exact", x), denoise, x, matrix)
    assert found.shape == (3, 1) and found.dtype == torch.float64
    torch.testing.assert_close(found[:, 0], autograd_trace(denoise, x) - matrix.trace(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [24, 1 << 21])
def test_exact_keeps_memory_bounded(chunk, monkeypatch):
    monkeypatch.setattr(sde_gen.likelihood.divergence, "_CHUNK", chunk)
    x, sizes = points((8,)), []

    def known(v):
        sizes.append(len(x) * v.shape[1] * v.shape[2])
        return v.square().sum(2)

    Exact(None, 1, "", False).trace(network((8,))(x), x, known, torch.arange(3), 0)
    assert max(sizes) <= chunk and len(sizes) == (8 if chunk == 24 else 1)


def test_exact_where_a_backward_pass_cannot_be_batched():
    def denoise(x):
        return Unbatchable.apply(x) + x.roll(1, 1) ** 2

    x, matrix = points((4,)), symmetric(4)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(Unbatchable.apply(x), x, torch.ones(2, *x.shape, dtype=x.dtype), is_grads_batched=True)
    found = trace(made("exact", x), denoise, x, matrix)[:, 0]
    torch.testing.assert_close(found, 3 * x.detach().square().sum(1) - matrix.trace(), rtol=1e-12, atol=1e-12)


def test_exact_in_float32():
    x, matrix, denoise = points((5,)), symmetric(5), network((5,))
    single = x.detach().float().requires_grad_()
    found = trace(made("exact", single), lambda x: denoise(x.double()).float(), single, matrix)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[:, 0], autograd_trace(denoise, x) - matrix.trace(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
@pytest.mark.parametrize("shape", SHAPES)
@RANDOM
def test_random_traces_are_quadratic_forms_of_the_probes(kind, shape, probe, device):
    x, matrix, denoise = points(shape, device=device), symmetric(math.prod(shape), device), network(shape, device=device)
    rule = made(kind, x, 3, probe)
    found = trace(rule, denoise, x, matrix)
    vectors = rule.vectors(0)
    assert found.shape == (3, 3) and vectors.shape == (3, 3, math.prod(shape))
    for k, one in enumerate(x.detach()):
        jacobian = torch.autograd.functional.jacobian(denoise, one[None]).reshape(one.numel(), -1) - matrix
        torch.testing.assert_close(found[k], torch.einsum("pi,ij,pj->p", vectors[k], jacobian, vectors[k]))
    if probe == "rademacher":
        assert bool((vectors.abs() == 1).all())


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
@RANDOM
def test_random_traces_are_unbiased(kind, probe, device):
    x, matrix, denoise = points((4,), 1, device), symmetric(4, device), network((4,), device=device)
    many = x.detach().expand(4000, -1).clone().requires_grad_()
    found = trace(made(kind, many, 1, probe), denoise, many, matrix)[:, 0].detach()
    exact = autograd_trace(denoise, x)[0] - matrix.trace()
    assert abs(float(found.mean() - exact)) < 4 * float(found.std()) / math.sqrt(4000)


def test_hutchinson_keeps_its_vectors_and_resampled_does_not():
    x, matrix, denoise = points((4,)), symmetric(4), network((4,))
    hutchinson, resampled = made("hutchinson", x), made("resampled", x)
    first = trace(hutchinson, denoise, x, matrix, 0)
    assert torch.equal(trace(hutchinson, denoise, x, matrix, 1), first)
    assert torch.equal(trace(resampled, denoise, x, matrix, 0), first)  # one stream, its first draw
    assert not torch.equal(trace(resampled, denoise, x, matrix, 1), first)
    assert len(resampled._drawn) == 1
    kept = made("resampled", x, keep=True)
    thrice = [trace(kept, denoise, x, matrix, evaluation) for evaluation in (0, 1, 0)]
    assert torch.equal(thrice[0], thrice[2]) and not torch.equal(thrice[0], thrice[1])


@RANDOM
def test_vectors_belong_to_the_sample_and_not_to_its_place(kind):
    x, matrix, denoise = points((4,)), symmetric(4), network((4,))
    rows = torch.tensor([2, 0])
    whole = trace(made(kind, x), denoise, x, matrix)
    some = x.detach()[rows].requires_grad_()
    torch.testing.assert_close(trace(made(kind, x), denoise, some, matrix, rows=rows), whole[rows])


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_trace_can_be_differentiated(kind):
    x, matrix, denoise = points((3,)), symmetric(3), network((3,))
    rule = made(kind, x, keep=True)

    def value(x):
        with torch.enable_grad():
            return trace(rule, denoise, x, matrix).sum(1)

    assert torch.autograd.gradcheck(value, (x,))
    with torch.no_grad():
        y = points((3,))
        with torch.enable_grad():
            denoised = denoise(y)
        assert not rule.trace(denoised, y, lambda v: v.sum(2), torch.arange(3), 0).requires_grad


# Along a path: what log_likelihood makes of them.

SDE = all_sdes()["vp"]
STEPS, SEEDS = 20, 200


def modes(dim, seed=3, count=4):
    generator = torch.Generator().manual_seed(seed)
    options = {"dtype": torch.float64, "generator": generator}
    axes = torch.linalg.qr(torch.randn(count, dim, dim, **options))[0]
    stds = 0.1 + 0.4 * torch.rand(count, dim, **options)
    return MixtureData(torch.ones(count), torch.randn(count, dim, **options), torch.einsum("kij,kj,klj->kil", axes, stds**2, axes))


DATA = modes(4)
X = DATA.sample(8, seed=1)
EXACT = log_likelihood(DATA.model(SDE), X, divergence="exact", steps=STEPS)


def over_seeds(kind, **options):
    """(SEEDS, 8) log-densities and standard errors: index i of one seed is an independent stream like any other."""
    found = log_likelihood(DATA.model(SDE), X.repeat(SEEDS, 1), divergence=kind, steps=STEPS, **options)
    return found.log_prob.reshape(SEEDS, len(X)), found.std_error.reshape(SEEDS, len(X))


@pytest.mark.parametrize("probe, probes", [("rademacher", 2), ("gaussian", 2), ("rademacher", 8)])
@RANDOM
def test_standard_errors_are_the_true_spread(kind, probe, probes):
    values, errors = over_seeds(kind, probe=probe, probes=probes)
    true = values.var(0)
    assert float((errors.square().mean() / true.mean()).sqrt()) == pytest.approx(1, abs=0.2)  # pooled
    assert bool(((values.mean(0) - EXACT.log_prob).abs() < 4 * true.sqrt() / math.sqrt(SEEDS)).all())
    assert bool((EXACT.std_error == 0).all())
    if probes == 8:  # with eight, one run's own standard error tells: hardly any beyond four of them
        inside = (values - EXACT.log_prob).abs() < 4 * errors
        assert float(inside.double().mean()) > 0.97


def test_more_probes_are_more_exact():
    two, eight = (over_seeds("resampled", probes=probes)[0].var(0).mean() for probes in (2, 8))
    assert float(two / eight) == pytest.approx(4, rel=0.3)


def test_resampled_has_a_fraction_of_hutchinsons_variance():
    hutchinson, resampled = (over_seeds(kind)[0].var(0).mean() for kind in KINDS)
    assert float(hutchinson / resampled) > 4


@RANDOM
def test_seeds_differ_and_repeat(kind):
    runs = [log_likelihood(DATA.model(SDE), X, divergence=kind, steps=STEPS, seed=seed).log_prob for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not bool((runs[0] == runs[2]).any())


@RANDOM
def test_one_probe_does_not_know_its_error(kind):
    found = log_likelihood(DATA.model(SDE), X, divergence=kind, steps=STEPS, probes=1)
    assert bool(torch.isnan(found.std_error).all()) and bool(torch.isfinite(found.log_prob).all()) and bool(found.converged.all())


@RANDOM
def test_adaptive_steps_are_unbiased_too(kind):
    x = X[:4].repeat(100, 1)
    found = log_likelihood(DATA.model(SDE), x, divergence=kind).log_prob.reshape(100, 4)
    exact = log_likelihood(DATA.model(SDE), X[:4]).log_prob
    assert bool(((found.mean(0) - exact).abs() < 4 * found.std(0) / 10).all())


def test_vectors_of_gaussian_data_do_not_matter():
    """The Gaussian part is taken out: what is left of a Gaussian's trace is nothing, for any vector."""
    gaussian = MixtureData(torch.ones(1), DATA.means[:1], DATA.covariances[:1])
    model = gaussian.model(SDE)
    found = [log_likelihood(model, X, divergence=kind, probes=2) for kind in ("exact", *KINDS)]
    for other in found[1:]:
        torch.testing.assert_close(other.log_prob, found[0].log_prob, rtol=0, atol=1e-8)
        assert float(other.std_error.max()) < 1e-8


def test_a_network_that_recomputes_by_reentrant_checkpoints_is_named():
    from torch.utils.checkpoint import checkpoint

    def model(reentrant: bool) -> ScoreModel:
        return ScoreModel(lambda x, c: checkpoint(torch.tanh, x, use_reentrant=reentrant), sde_gen.make_sde("vp"), "data", data_std=1.0)

    x = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for divergence in ("exact", "resampled"):
        with pytest.raises(TypeError, match="give it use_reentrant=False") as caught:
            log_likelihood(model(True), x, divergence, steps=2)
        assert "\n" not in str(caught.value)
        assert bool(log_likelihood(model(False), x.numpy(), divergence, steps=2).converged.all())
