"""Methods of inverse problems against closed forms: each where its docstring says that it is exact."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_gen
from sde_gen.data import Normalizer
from sde_gen.exact.mixtures import GaussianData, MixtureData
from sde_gen.inverse import (
    DDRM,
    MEASURED,
    METHODS,
    Crop,
    Downsample,
    Function,
    Gaussian,
    Mask,
    Matrix,
    Measurement,
    Observed,
    Oracle,
    Poisson,
    Quantised,
    average,
    moment_matched,
    twisted,
)
from sde_gen.inverse.exact_flow import chain
from sde_gen.inverse.gibbs import narrowed
from sde_gen.models.moments import Moments

VE = sde_gen.make_sde("ve", sigma_min=0.005, sigma_max=60.0)
VP = sde_gen.make_sde("vp")
SHAPE = (2, 1, 4)
DIM = math.prod(SHAPE)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def law(modes: int = 1) -> MixtureData:
    """In normalised units, entries correlated."""
    roots = 0.5 * numbers(modes, DIM, DIM, seed=1) / math.sqrt(DIM) + 0.4 * torch.eye(DIM, dtype=torch.float64)
    means = numbers(modes, *SHAPE, seed=2) * (1.5 if modes > 1 else 0.5)
    return MixtureData(torch.arange(1, modes + 1).double(), means, roots @ roots.mT)


def model_of(data: MixtureData, sde: sde_gen.SDE = VE) -> sde_gen.ScoreModel:
    """Data units: the channels differ in place and scale."""
    channels = data.shape[0]
    shift, scale = 20 + torch.arange(channels).double(), 3.0 + torch.arange(channels).double()
    units = Normalizer(shift.reshape(-1, *[1] * (len(data.shape) - 1)), scale.reshape(-1, *[1] * (len(data.shape) - 1)))
    mean, covariance = data.moments()
    return sde_gen.ScoreModel(
        data.score(sde), sde, "score", normalizer=units, moments=Moments(mean.reshape(data.shape), covariance=covariance), prior="matched"
    )


MEASUREMENTS = {
    "matrix": Measurement(Matrix(numbers(3, DIM, seed=4), SHAPE), Gaussian(torch.tensor([0.5, 1.0, 2.0]))),
    "mask": Measurement(Mask(numbers(*SHAPE, seed=5) > 0.2), Gaussian(0.7)),
    "downsample": Measurement(Crop((0, 4)), Gaussian(1.5)),
    "crop": Measurement(Crop((1, 3)), Gaussian(1.5)),
}
SPLIT = Measurement(Matrix(torch.eye(DIM, dtype=torch.float64)[[0, 5]], SHAPE), Gaussian(1.0))


def measured(measurement: Measurement, data: MixtureData, model: sde_gen.ScoreModel, count: int = 3, seed: int = 7) -> Tensor:
    assert model.normalizer is not None
    return measurement.simulate(model.normalizer.decode(data.sample(count, seed)), seed=seed)


def normalised(measurement: Measurement, model: sde_gen.ScoreModel, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrix, y less what the data's origin gives, and variances of the measured entries, for normalised data."""
    assert model.normalizer is not None
    zero, one = (model.normalizer.decode(value * torch.ones(1, *SHAPE, dtype=torch.float64)) for value in (0.0, 1.0))
    kept = torch.ones_like(y[0], dtype=torch.bool) if (k := measurement.operator.kept(SHAPE)) is None else k
    matrix = (measurement.operator.matrix(SHAPE) * (one - zero).flatten())[kept.flatten()]
    variance = measurement.noise.variance(y).expand(y.shape)[0][kept]
    return matrix, (y - measurement.operator(zero))[:, kept], variance


def states(model: sde_gen.ScoreModel, data: MixtureData, t: float, count: int = 3) -> Tensor:
    alpha, sigma = (float(v) for v in model.sde.marginal(torch.tensor(t, dtype=torch.float64)))
    return alpha * data.sample(count, seed=8) + sigma * numbers(count, *SHAPE, seed=9)


def exact_and_found(
    method: str, measurement: Measurement, data: MixtureData, sde: sde_gen.SDE = VE, **options: Any
) -> list[tuple[Tensor, Tensor]]:
    model = model_of(data, sde)
    y = measured(measurement, data, model)
    wrapper = METHODS[method](model, measurement, **(options or some(method, data)))
    pairs = []
    for t in (0.2, 0.5, 0.8):
        x = states(model, data, t)
        expected = data.denoise_given(x, sde, t, *normalised(measurement, model, y))
        times = torch.full((len(x),), t, dtype=torch.float64)
        for time in (t, times):
            pairs.append((wrapper.denoise(x, time, **{MEASURED: y}), expected))
    return pairs


@pytest.mark.parametrize("sde", [VE, VP], ids=["ve", "vp"])
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_mmps_is_exact_for_gaussian_data(name: str, sde: sde_gen.SDE) -> None:
    for found, expected in exact_and_found("mmps", MEASUREMENTS[name], law(), sde):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_mmps_by_iterations_is_exact_once_they_are_as_many_as_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moment_matched, "DIRECT", 0)
    for name, most in (("matrix", 3), ("crop", 4)):
        for found, expected in exact_and_found("mmps", MEASUREMENTS[name], law(), directions=most):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    few = exact_and_found("mmps", MEASUREMENTS["crop"], law(), directions=1)
    assert max(float((found - expected).abs().max()) for found, expected in few) > 1e-3


def test_the_twist_is_the_evidence_for_gaussian_data_by_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    data, measurement = law(), MEASUREMENTS["mask"]
    model = model_of(data)
    y = measured(measurement, data, model)
    matrix, rest, variance = normalised(measurement, model, y)
    for direct in (48, 0):
        monkeypatch.setattr(moment_matched, "DIRECT", direct)
        x = states(model, data, 0.5)
        wrapper = METHODS["twisted"](model, measurement, directions=8)
        found = wrapper.weigh(x, 0.5, **{MEASURED: y}).twist  # type: ignore[attr-defined]
        gain, offset = GaussianData(data.means[0].reshape(SHAPE), data.covariances[0]).affine(VE, 0.5)
        _, sigma = VE.marginal(torch.tensor(0.5, dtype=torch.float64))
        spread = matrix @ (sigma**2 * gain) @ matrix.T + torch.diag(variance)
        normal = torch.distributions.MultivariateNormal((x.flatten(1) @ gain.T + offset) @ matrix.T, spread)
        torch.testing.assert_close(found, normal.log_prob(rest), rtol=0, atol=1e-5)


def test_pigdm_is_exact_for_standard_normal_data_and_tmpd_for_independent_entries() -> None:
    standard = GaussianData(torch.zeros(SHAPE), torch.eye(DIM))
    diagonal = GaussianData(numbers(*SHAPE), torch.diag(0.2 + numbers(DIM, seed=3).abs()))
    cases = [
        ("pigdm", MEASUREMENTS["matrix"], standard),
        ("pigdm", MEASUREMENTS["mask"], standard),
        ("tmpd", MEASUREMENTS["mask"], diagonal),
        ("tmpd", SPLIT, diagonal),
    ]
    for method, measurement, data in cases:
        for sde in (VE, VP):
            for found, expected in exact_and_found(method, measurement, data, sde):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for method in ("pigdm", "tmpd"):
        assert max(float((a - b).abs().max()) for a, b in exact_and_found(method, MEASUREMENTS["matrix"], law())) > 0.01


def test_dps_is_bayes_where_the_state_says_all_and_oracle_everywhere() -> None:
    data = law()
    model = model_of(data)
    measurement = MEASUREMENTS["matrix"]
    y = measured(measurement, data, model)
    x = states(model, data, 0.0)
    pushed = METHODS["dps"](model, measurement).score(x, 0.0, **{MEASURED: y}) - data.score_at(x, VE, 0.0)
    exact = _gradient(measurement, model, y, x)
    assert float((pushed - exact).norm()) < 0.01 * float(exact.norm())
    for found, expected in exact_and_found("oracle", measurement, law(3)):
        assert float((found - expected).abs().max()) < 1e-9


def _gradient(measurement: Measurement, model: sde_gen.ScoreModel, y: Tensor, x: Tensor) -> Tensor:
    state = x.clone().requires_grad_()
    assert model.normalizer is not None
    return torch.autograd.grad(measurement.log_prob(y, model.normalizer.decode(state)).sum(), state)[0]


def posterior_moments(data: MixtureData, matrix: Tensor, rest: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    gain = torch.linalg.solve(matrix @ data.covariances[0] @ matrix.T + torch.diag(variance), matrix @ data.covariances[0]).T
    return data.means[0] + (rest - data.means[0] @ matrix.T) @ gain.T, data.covariances[0] - gain @ matrix @ data.covariances[0]


@pytest.mark.parametrize("method", ["mmps", "twisted", "oracle", "gibbs", "exact_flow"])
def test_the_posterior_of_gaussian_data(method: str) -> None:
    data = law()
    model, measurement = model_of(data), MEASUREMENTS["matrix"]
    y = measured(measurement, data, model, 2)
    options: dict[str, Any] = {"oracle": {"data": data}, "gibbs": {"sweeps": 6, "inner": 6, "start": partial(Oracle, data=data)}}.get(
        method, {}
    )
    count = 150 if method == "exact_flow" else 2000
    found = sde_gen.posterior(model, measurement, y, count, method, steps=60, progress=False, **options)
    assert model.normalizer is not None and found.x.shape == (2, count, *SHAPE)
    z = model.normalizer.encode(found.x).flatten(2)
    weights = found.weights
    mean = torch.einsum("bk,bkd->bd", weights, z)
    covariance = torch.einsum("bk,bkd,bke->bde", weights, z - mean[:, None], z - mean[:, None])
    matrix, rest, variance = normalised(measurement, model, y)
    expected_mean, expected = posterior_moments(data, matrix, rest, variance)
    loose = 0.16 if method == "exact_flow" else 0.05
    torch.testing.assert_close(mean, expected_mean, rtol=0, atol=loose)
    torch.testing.assert_close(covariance, expected.expand(2, -1, -1), rtol=0, atol=loose)
    if found.log_evidence is not None:
        truth = data.log_evidence(matrix, rest, variance)
        torch.testing.assert_close(found.log_evidence, truth, rtol=0, atol=0.01)
        assert found.log_evidence_error is not None and float(found.log_evidence_error.max()) < 0.02
        assert float(found.ess.min()) > 0.9 * count, "the twist is exact there, and the weights are alike up to the steps"


def test_twisted_particles_reach_a_mixture_that_mmps_misses() -> None:
    data = law(4)
    model, measurement = model_of(data), SPLIT
    y = measured(measurement, data, model, 3)
    matrix, rest, variance = normalised(measurement, model, y)
    truth, evidence = data.posterior_sample(20000, matrix, rest, variance).flatten(2), data.log_evidence(matrix, rest, variance)
    off = {}
    for method in ("mmps", "twisted"):
        found = sde_gen.posterior(model, measurement, y, 1000, method, steps=60, progress=False)
        assert model.normalizer is not None
        z = model.normalizer.encode(found.x).flatten(2)
        off[method] = float((torch.einsum("bk,bkd->bd", found.weights, z) - truth.mean(1)).abs().max())
    assert off["twisted"] < 0.1 < off["mmps"]
    assert found.log_evidence is not None and found.log_evidence_error is not None
    assert float((found.log_evidence - evidence).abs().max()) < 0.12
    assert bool(((found.log_evidence - evidence).abs() < 4 * found.log_evidence_error + 0.01).all())
    often = sde_gen.posterior(model, measurement, y, 1000, steps=60, resample_below=1.0, progress=False)
    assert often.log_evidence is not None and float((often.log_evidence - evidence).abs().max()) < 0.25
    several = sde_gen.posterior(model, measurement, y, 100, particles=30, steps=60, progress=False)
    assert several.log_weights is None and several.x.shape[1] == 100 and several.nfe.tolist() == [30 * 4 * 62] * 3
    cut = sde_gen.posterior(model, measurement, y, 10, particles=200, steps=60, progress=False)
    assert cut.x.shape[1] == 10 and cut.log_evidence is not None and float((cut.log_evidence - evidence).abs().max()) < 0.4


def test_the_guided_flow_s_evidence_is_within_its_error() -> None:
    means = torch.tensor([[[1.5, 0.3]], [[-1.2, 0.8]]], dtype=torch.float64)
    data = MixtureData(torch.tensor([0.6, 0.4]), means, torch.stack([0.15 * torch.eye(2, dtype=torch.float64)] * 2))
    model = data.model(VP)
    measurement = Measurement(Matrix(torch.tensor([[0.5, 1.0]], dtype=torch.float64), (1, 2)), Gaussian(0.5))
    y = measurement.simulate(data.sample(2, 3), 3)
    found = sde_gen.posterior(model, measurement, y, 300, "exact_flow", progress=False)
    evidence = data.log_evidence(torch.tensor([[0.5, 1.0]], dtype=torch.float64), y, torch.tensor([0.25], dtype=torch.float64))
    assert found.log_evidence is not None and found.log_evidence_error is not None
    assert float(found.log_evidence_error.max()) < 0.05
    assert bool(((found.log_evidence - evidence).abs() < 3.5 * found.log_evidence_error).all())


def test_a_chain_has_the_law_that_is_asked_of_it_and_says_how_much_it_took() -> None:
    wanted, offered = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0]).double(), torch.tensor([0.1, 0.1, 0.3, 0.3, 0.2]).double()
    chains, count = 400, 300
    generator = torch.Generator().manual_seed(1)
    proposals = torch.multinomial(offered.expand(chains, -1), count, replacement=True, generator=generator)
    ratio = wanted / offered
    chosen, taken = chain(ratio.log()[proposals], torch.rand(chains, count + 1, generator=generator, dtype=torch.float64))
    found = proposals.gather(1, chosen)
    shares = torch.bincount(found.flatten(), minlength=5) / found.numel()
    torch.testing.assert_close(shares.double(), wanted, rtol=0, atol=0.006)
    assert int((found == 4).sum()) == 0, "what has no weight is never taken"
    expected = (wanted[:, None] * offered * (ratio / ratio[:, None]).clamp(max=1).nan_to_num()).sum()
    assert abs(float(taken.mean()) - float(expected)) < 0.01
    moved = (chosen[:, 1:] != chosen[:, :-1]).double().mean(1)
    assert float((taken - moved).abs().max()) <= 1 / count + 0.01


def test_metropolis_reaches_the_posterior_of_a_mixture_that_its_proposals_miss() -> None:
    data, measurement = law(4), SPLIT
    model = model_of(data)
    y = measured(measurement, data, model, 2)[:1]
    truth = data.posterior_sample(20000, *normalised(measurement, model, y)).flatten(2)
    common: dict[str, Any] = {"count": 400, "method": "exact_flow", "rtol": 1e-3, "progress": False}
    found = sde_gen.posterior(model, measurement, y, accept="metropolis", **common)
    weighted = sde_gen.posterior(model, measurement, y, **common)
    assert model.normalizer is not None and found.acceptance is not None
    chained, proposals = (model.normalizer.encode(one.x).flatten(2).mean(1) for one in (found, weighted))
    assert float((chained - truth.mean(1)).abs().max()) < 0.35 < 1 < float((proposals - truth.mean(1)).abs().max())
    assert found.log_weights is None and weighted.acceptance is None
    assert 0.1 < float(found.acceptance) < 0.6
    torch.testing.assert_close(found.ess, weighted.ess)
    torch.testing.assert_close(found.log_evidence, weighted.log_evidence)


def test_chains_do_not_depend_on_their_batch() -> None:
    data, measurement = law(2), SPLIT
    model = model_of(data)
    y = measured(measurement, data, model, 2)
    common: dict[str, Any] = {"count": 6, "method": "exact_flow", "rtol": 1e-2, "progress": False, "accept": "metropolis", "seed": 3}
    whole = sde_gen.posterior(model, measurement, y, **common)
    alone = sde_gen.posterior(model, measurement, y[1:], index_offset=1, batch_size=5, **common)
    torch.testing.assert_close(alone.x, whole.x[1:], rtol=0, atol=1e-5)
    assert whole.acceptance is not None and alone.acceptance is not None and torch.equal(alone.acceptance, whole.acceptance[1:])


POISSON = Measurement(Matrix(torch.tensor([[0.5, 1.0]], dtype=torch.float64), (1, 2)), Poisson(3.0))
ONE_BIT = Measurement(Matrix(torch.tensor([[0.5, 1.0], [1.0, -1.0]], dtype=torch.float64), (1, 2)), Quantised(2.0, 0.7, -1.0, 1.0))
CURVED = Measurement(Function(lambda x: x.square().sum((1, 2))[:, None]), Gaussian(0.8))


@pytest.mark.parametrize(("name", "y"), [("poisson", [[4 / 3]]), ("one bit", [[1.0, -1.0]]), ("curved", [[4.0]])])
def test_twisted_particles_take_any_noise_and_operator(name: str, y: list[list[float]]) -> None:
    measurement = {"poisson": POISSON, "one bit": ONE_BIT, "curved": CURVED}[name]
    means = torch.tensor([[[1.5, 0.3]], [[0.2, 1.8]]], dtype=torch.float64)
    data = MixtureData(torch.tensor([0.6, 0.4]), means, torch.stack([0.3 * torch.eye(2, dtype=torch.float64)] * 2))
    given = torch.tensor(y, dtype=torch.float64)
    found = sde_gen.posterior(data.model(VE), measurement, given, 1500, steps=60, progress=False)
    x = data.sample(200000, 5)
    log_prob = measurement.log_prob(given.expand(len(x), -1), x)
    evidence, weights = float(torch.logsumexp(log_prob, 0)) - math.log(len(x)), log_prob.softmax(0)
    assert found.log_evidence is not None and found.log_evidence_error is not None
    assert abs(float(found.log_evidence) - evidence) < 3 * float(found.log_evidence_error) + 0.01 < 0.25
    torch.testing.assert_close(found.mean()[0], torch.einsum("k,kcd->cd", weights, x), rtol=0, atol=0.08)
    dps = METHODS["dps"](data.model(VE), measurement)
    assert bool(torch.isfinite(dps.denoise(x[:4], 0.3, **{MEASURED: given.expand(4, -1)})).all())


def some(method: str, data: MixtureData) -> dict[str, Any]:
    return {
        "oracle": {"data": data},
        "gibbs": {"sweeps": 2, "inner": 3},
        "repaint": {"rounds": 2},
        "daps": {"inner": 2},
        "exact_flow": {"rtol": 1e-2},
    }.get(method, {})


@pytest.mark.parametrize("method", METHODS)
def test_samples_do_not_depend_on_their_batch(method: str) -> None:
    data = law(2)
    model, measurement = model_of(data), MEASUREMENTS["crop"]
    y = measured(measurement, data, model, 8)
    rows, count = (2, 2) if method == "exact_flow" else (8, 8)
    common: dict[str, Any] = {"method": method, "steps": 6, "progress": False, "seed": 3, **some(method, data)}
    whole = sde_gen.posterior(model, measurement, y[:rows], count, **common)
    parts = sde_gen.posterior(model, measurement, y[:rows], count, batch_size=7, **common)
    alone = sde_gen.posterior(model, measurement, y[1:2], count, index_offset=1, **common)
    torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone.x, whole.x[1:2], rtol=0, atol=1e-5)
    if whole.log_weights is not None:
        torch.testing.assert_close(alone.log_weights, whole.log_weights[1:2], rtol=0, atol=1e-5)
    assert (bool(torch.isfinite(whole.x).all()) and int(whole.nfe.min()) > 0) or method == "oracle"
    other = sde_gen.posterior(model, measurement, y[:rows], count, **{**common, "seed": 4})
    assert not torch.allclose(other.x, whole.x)


def allowed(method: str) -> bool:
    return not METHODS[method].noisy and method not in ("dps",)


@pytest.mark.parametrize("method", [name for name in METHODS if allowed(name)])
def test_a_measurement_without_noise_is_a_hard_constraint(method: str) -> None:
    data = law(2)
    model = model_of(data)
    for measurement in (
        Measurement(MEASUREMENTS["mask"].operator, Gaussian(0.0)),
        Measurement(MEASUREMENTS["matrix"].operator, Gaussian(0.0)),
    ):
        y = measured(measurement, data, model, 2)
        found = sde_gen.posterior(model, measurement, y, 3, method, steps=20, progress=False, **some(method, data))
        clean = measurement.operator(found.x.flatten(0, 1)).reshape(2, 3, *y.shape[1:])
        seen = measurement.seen(y, SHAPE)[:, None].expand(clean.shape)
        if isinstance(measurement.operator, Mask):
            assert torch.equal(clean[seen], y[:, None].expand(clean.shape)[seen])
        torch.testing.assert_close(clean[seen], y[:, None].expand(clean.shape)[seen], rtol=1e-6, atol=1e-6)
        assert float((found.x - 20).abs().max()) < 60, "the rest has not run away"


def test_gaps_of_each_sample_are_those_of_a_mask() -> None:
    data = law(2)
    model = model_of(data)
    masks = numbers(2, *SHAPE, seed=11) > 0
    y = measured(Measurement(Mask(), Gaussian(0.7)), data, model, 2)
    gaps = torch.where(masks, y, math.nan)
    for method in [name for name in METHODS if name not in ("oracle", "ddrm", "exact_flow")]:
        common: dict[str, Any] = {"method": method, "steps": 8, "progress": False, **some(method, data)}
        both = sde_gen.posterior(model, Measurement(Mask(), Gaussian(0.7)), gaps, 4, **common)
        for k in range(2):
            one = sde_gen.posterior(model, Measurement(Mask(masks[k]), Gaussian(0.7)), y[k : k + 1], 4, index_offset=k, **common)
            torch.testing.assert_close(both.x[k], one.x[0], rtol=0, atol=1e-5, msg=lambda text, name=method: f"{name}: {text}")


def test_the_model_s_own_conditions_reach_it() -> None:
    from guided_laws import branches

    given, null = GaussianData(torch.tensor([2.0, 0.0]), 0.1 * torch.eye(2)), GaussianData(torch.tensor([-2.0, 0.0]), 0.1 * torch.eye(2))
    measurement = Measurement(Mask(torch.tensor([False, True])), Gaussian(0.1))
    y = torch.tensor([[0.0, 0.3], [0.0, -0.3]])
    for method in [name for name in METHODS if name not in ("oracle", "exact_flow")]:
        out = sde_gen.posterior(
            branches(VP, given, null),
            measurement,
            y,
            20,
            method,
            cond={"kind": torch.tensor([1, 0])},
            shape=(2,),
            steps=10,
            progress=False,
            **some(method, given),
        )
        mean = out.mean()[:, 0]
        assert float(mean[0]) > 1.5 and float(mean[1]) < -1.5, method


def test_wrappers_run_under_every_solver() -> None:
    data = law()
    model, measurement = model_of(data, VP), MEASUREMENTS["matrix"]
    y = measured(measurement, data, model, 1)
    matrix, rest, variance = normalised(measurement, model, y)
    mean, _ = posterior_moments(data, matrix, rest, variance)
    assert model.normalizer is not None
    for name in sde_gen.solvers.SOLVERS:
        method = sde_gen.make_solver(name)
        if method.needs_variance or name == "langevin":
            continue
        steps = 4000 if method.adaptive else 40
        out = sde_gen.posterior(model, measurement, y, 60, "mmps", solver=name, steps=steps, progress=False)
        z = model.normalizer.encode(out.x[0]).flatten(1)
        torch.testing.assert_close(z.mean(0), mean[0], rtol=0, atol=0.4, msg=lambda text, name=name: f"{name}: {text}")


def test_float32_and_float64_agree() -> None:
    data = law()
    model, measurement = model_of(data), MEASUREMENTS["mask"]
    y = measured(measurement, data, model, 2)
    wide = sde_gen.posterior(model, measurement, y, 16, steps=30, progress=False)
    narrow = sde_gen.posterior(model, measurement, y.float(), 16, steps=30, progress=False)
    assert wide.x.dtype == torch.float64 and narrow.x.dtype == torch.float32
    assert wide.log_evidence is not None and narrow.log_evidence is not None
    torch.testing.assert_close(narrow.log_evidence, wide.log_evidence, rtol=0, atol=0.2)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "model": ({"model": torch.nn.Linear(2, 2)}, TypeError, "model must be a Denoiser"),
    "measurement": ({"measurement": Mask()}, TypeError, r"measurement must be a Measurement\(operator, noise\), got Mask"),
    "method": ({"method": "magic"}, ValueError, "unknown method 'magic'; choose from twisted, gibbs"),
    "accept": ({"method": "exact_flow", "accept": "all"}, ValueError, "accept must be one of weights, metropolis, got 'all'"),
    "option": ({"method": "mmps", "rounds": 3}, ValueError, "method 'mmps' has no setting rounds; it takes model, measurement, directions"),
    "width of y": ({"y": torch.zeros(2, 5)}, ValueError, r"y must have shape \(B, 3\), as Matrix gives of data \(2, 1, 4\), got \(2, 5\)"),
    "rank of y": ({"y": torch.zeros(3)}, ValueError, r"y must be a tensor \(B, \*measured shape\).*got \(3,\)"),
    "integers": ({"y": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "y must be floating, got torch.int64"),
    "infinite y": ({"y": torch.full((1, 3), math.inf)}, ValueError, "y must be finite, or NaN"),
    "nothing": ({"y": torch.full((1, 3), math.nan)}, ValueError, "at least one entry"),
    "count": ({"count": 0}, ValueError, "count must be a whole number of at least 1, got 0"),
    "particles": ({"particles": 0}, ValueError, "particles must be a whole number of at least 1, got 0"),
    "particles elsewhere": ({"method": "mmps", "particles": 4}, ValueError, "particles belong to method 'twisted', not to MMPS"),
    "solver": ({"solver": "ddim"}, ValueError, "particles need a fixed-step solver of the reverse SDE"),
    "learned variance": ({"solver": sde_gen.make_solver("ancestral", variance="learned")}, ValueError, "no learned variance|needs a model"),
    "dtype": ({"operator": Function(lambda x: x.long())}, TypeError, "Function must give a tensor of its argument's dtype"),
    "first dimension": ({"operator": Function(lambda x: x[:1])}, ValueError, r"with B = 64, got \(1, 2, 1, 4\)"),
    "NaN": ({"operator": Function(lambda x: (x.flatten(1)[:, :3] - 1e4).sqrt())}, ValueError, "gives values that are not finite"),
    "no gradient": ({"operator": Function(lambda x: x.detach().flatten(1)[:, :3])}, ValueError, "Function is not differentiable"),
    "not linear": ({"operator": Function(lambda x: x.flatten(1)[:, :3] ** 2, linear=True)}, ValueError, "was said to be linear and is not"),
    "nonlinear": (
        {"operator": Function(lambda x: x.flatten(1)[:, :3] ** 2), "method": "pigdm"},
        ValueError,
        "PiGDM takes linear operators, got Function",
    ),
    "noise-free dps": ({"noise": Gaussian(0.0), "method": "dps"}, ValueError, "DPS needs noise: std must be positive, got 0"),
    "noise-free gibbs": ({"noise": Gaussian(0.0), "method": "gibbs"}, ValueError, "Gibbs needs noise: std must be positive, got 0"),
    "too little noise": ({"noise": Gaussian(1e-4), "method": "gibbs"}, ValueError, "the noise is too small for gibbs"),
    "a matrix of zeros": ({"operator": Matrix(torch.zeros(3, 8), SHAPE)}, ValueError, "Matrix gives 0 of all data: nothing is measured"),
    "no such shape": (
        {"shape": (2, 4)},
        ValueError,
        r"model's data have shape \(2, 1, 4\), and the measurement is of data of shape \(2, 4\)",
    ),
    "ddrm and gaps": ({"method": "ddrm", "y": torch.tensor([[1.0, math.nan, 2.0]])}, ValueError, "y has gaps"),
    "oracle": ({"method": "oracle", "data": None}, TypeError, "oracle needs data="),
    "cond": ({"cond": {"kind": torch.zeros(3)}}, ValueError, "must have first dimension 2"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:y lies")
def test_bad_input_is_one_line(name: str) -> None:
    changes, error, message = WRONG[name]
    asked: dict[str, Any] = {"model": model_of(law()), "y": torch.zeros(2, 3), "steps": 3, "progress": False} | changes
    base = MEASUREMENTS["matrix"]
    measurement = Measurement(asked.pop("operator", base.operator), asked.pop("noise", base.noise))
    asked.setdefault("measurement", measurement)
    with pytest.raises(error, match=message) as caught:
        sde_gen.posterior(**asked)
    assert "\n" not in str(caught.value)


def test_y_in_other_units_is_warned_of() -> None:
    model = model_of(law())
    with pytest.warns(UserWarning, match="standard deviations from what Mask gives of the model's data: are both in the data's own units"):
        sde_gen.posterior(model, MEASUREMENTS["mask"], torch.full((1, *SHAPE), 2000.0), 2, "ddnm", steps=2, progress=False)


def test_methods_that_differentiate_refuse_graphs_and_need_the_measurement() -> None:
    model = model_of(law())
    for name in METHODS:
        if name == "oracle":
            continue
        wrapper = METHODS[name](model, MEASUREMENTS["matrix"])
        with pytest.raises(ValueError, match="needs the measurement, cond="):
            sde_gen.sample(wrapper, (2, *SHAPE), "ancestral", 2, progress=False)
        if wrapper.gradient:
            with pytest.raises(ValueError, match="graph=True captures no gradients"):
                sde_gen.sample(wrapper, (2, *SHAPE), "ancestral", 2, cond={MEASURED: torch.zeros(2, 3)}, graph=True, progress=False)


def test_a_detached_network_is_named() -> None:
    class Detached(sde_gen.Wrapper):
        same_law = True

        def predict(self, x: Tensor, t: Any, **cond: Tensor) -> sde_gen.Prediction:
            return sde_gen.Prediction(self.model.denoise(x, t).detach())

    for name in ("mmps", "dps", "pigdm"):
        with pytest.raises(TypeError, match="has no gradient"):
            sde_gen.posterior(Detached(model_of(law())), MEASUREMENTS["matrix"], torch.zeros(1, 3) + 20, 2, name, steps=2, progress=False)


def test_downsampled_and_nonlinear_forms_agree() -> None:
    """A linear operator that is not said to be one gives the same, by its derivative."""
    data = GaussianData(torch.zeros(1, 4, 4), 0.5 * torch.eye(16) + 0.5)
    model = data.model(VE)
    y = numbers(2, 1, 2, 2)
    linear, other = Measurement(Downsample(2), Gaussian(0.3)), Measurement(Function(lambda x: Downsample(2)(x)), Gaussian(0.3))
    found = [sde_gen.posterior(model, m, y, 5, "mmps", steps=10, progress=False).x for m in (linear, other)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-9)


def test_ddrm_pulls_as_far_as_the_noise_lets() -> None:
    data = GaussianData(torch.zeros(2), torch.eye(2))
    measurement = Measurement(Matrix(torch.tensor([[3.0, 0.0], [0.0, 0.1]], dtype=torch.float64)), Gaussian(0.5))
    model, y = data.model(VE), torch.tensor([[6.0, 0.3]], dtype=torch.float64)
    t = float(VE.time_of(torch.tensor(0.0, dtype=torch.float64)))  # sigma = 1: above .5/3, below .5/.1
    x = numbers(1, 2)
    plain = model.denoise(x, t)
    found = DDRM(model, measurement, eta=0.6).denoise(x, t, **{MEASURED: y})
    expected = torch.stack((torch.tensor(2.0, dtype=torch.float64), plain[0, 1] + 0.8 * 0.2 * (3.0 - plain[0, 1])))
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6)


def test_the_noise_of_a_gibbs_sweep_has_its_covariance() -> None:
    data, measurement = law(), MEASUREMENTS["matrix"]
    model = model_of(data)
    y, z = measured(measurement, data, model), numbers(3, *SHAPE)
    observed = Observed(METHODS["ddnm"](model, measurement), y, z)
    matrix, _, variance = normalised(measurement, model, y)
    rho = 0.5 / float(torch.linalg.matrix_norm(matrix / variance.sqrt()[:, None], 2))
    twice = narrowed(observed, rho, narrowed(observed, rho, z)).flatten(1)
    torch.testing.assert_close(
        twice, z.flatten(1) @ (torch.eye(DIM) - rho**2 * matrix.T @ (matrix / variance[:, None])), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("differentiated", [8, 0], ids=["jacobian", "average"])
def test_a_step_of_particles_is_weighed_by_its_two_densities(differentiated: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twisted, "DIFFERENTIATED", differentiated)
    data, measurement = law(3), MEASUREMENTS["matrix"]
    model = model_of(data)
    y, x, z = measured(measurement, data, model), states(model, data, 0.6), numbers(3, *SHAPE, seed=12)
    step = METHODS["twisted"](model, measurement).weigh(x, 0.6, **{MEASURED: y}).proposal  # type: ignore[attr-defined]
    b, c = 0.3, 0.7
    kick, gained = step.move(b, c, z)
    moved = (c * z + kick).flatten(1)
    steep = (b / c**2 * step.slopes[..., None] * step.columns).expand(3, -1, -1)
    spread = torch.linalg.inv(torch.eye(DIM, dtype=torch.float64) / c**2 + steep.mT @ steep)
    normal = torch.distributions.MultivariateNormal
    own = normal(torch.zeros(DIM, dtype=torch.float64), c**2 * torch.eye(DIM, dtype=torch.float64))
    taken = normal((spread @ steep.mT @ step.aim[..., None])[..., 0], spread)
    torch.testing.assert_close(gained, own.log_prob(moved) - taken.log_prob(moved), rtol=1e-7, atol=1e-7)
    # A draw of it: as far from its mean, in its own units, as the noise was long.
    white = torch.linalg.solve(torch.linalg.cholesky(taken.covariance_matrix), (moved - taken.mean)[..., None])[..., 0]
    torch.testing.assert_close(white.square().sum(1), z.flatten(1).square().sum(1), rtol=1e-7, atol=1e-7)
    order = torch.tensor([2, 0, 0])
    again = step.taken(order).move(b, c, z[order])
    torch.testing.assert_close(again[0], kick[order])
    torch.testing.assert_close(again[1], gained[order])


def test_the_average_covariance_is_the_jacobian_for_gaussian_data_whatever_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    data, measurement = law(), Measurement(Mask(), Gaussian(torch.linspace(0.4, 1.5, DIM).reshape(SHAPE)))
    model = model_of(data)
    y = measured(measurement, data, model)
    y[1, 0, 0, 2] = y[2, 1] = math.nan  # other gaps in each sample
    x, found = states(model, data, 0.4), []
    for most in (DIM, 0):
        monkeypatch.setattr(twisted, "DIFFERENTIATED", most)
        found.append(METHODS["twisted"](model, measurement).weigh(x, 0.4, **{MEASURED: y}))  # type: ignore[attr-defined]
    torch.testing.assert_close(found[0].twist, found[1].twist, rtol=0, atol=1e-5)
    kicks = [one.proposal.move(0.3, 0.7, numbers(3, *SHAPE, seed=12)) for one in found]
    for first, second in zip(*kicks, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-4)
    for plain in (Gaussian(0.8), Gaussian(0.0)):
        same = Measurement(Mask(), plain)
        whole = [METHODS["twisted"](model, same).weigh(x, 0.4, **{MEASURED: measured(same, data, model)}) for _ in (0,)]  # type: ignore[attr-defined]
        assert len(whole[0].proposal.columns) == 1, "states with the same gaps share one decomposition"


@pytest.mark.parametrize("reach", [0.5, 0.02], ids=["far", "held"])
def test_a_tilt_leaves_evidence_and_mean_of_gaussian_data_as_they_are(reach: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twisted, "DIFFERENTIATED", 0)
    monkeypatch.setattr(average, "TILT", reach)
    for name in ("matrix", "mask"):
        measurement, data = MEASUREMENTS[name], law()
        model = model_of(data)
        y, x = measured(measurement, data, model), states(model, data, 0.4)
        found = []
        for begins in (math.inf, -math.inf):
            wrapper = METHODS["twisted"](model, measurement)
            wrapper.tilt_from = begins  # type: ignore[assignment]
            found.append((wrapper.weigh(x, 0.4, **{MEASURED: y}), wrapper.denoise(x, 0.4, **{MEASURED: y})))  # type: ignore[operator]
        assert found[1][0].proposal.lead is not None and float(found[1][0].proposal.lead.abs().max()) > 1e-3
        torch.testing.assert_close(found[0][0].twist, found[1][0].twist, rtol=0, atol=1e-8)
        torch.testing.assert_close(found[1][1], data.denoise_given(x, VE, 0.4, *normalised(measurement, model, y)), rtol=0, atol=1e-8)


def test_many_entries_are_weighed_without_a_derivative_and_calls_are_counted() -> None:
    """A pilot of the model, one call before its states are tilted and two from there on."""
    data = GaussianData(torch.zeros(1, 4, 4), 0.5 * torch.eye(16) + 0.5)

    class Detached(sde_gen.Wrapper):
        same_law = True
        asked = 0

        def predict(self, x: Tensor, t: Any, **cond: Tensor) -> sde_gen.Prediction:
            type(self).asked += len(x)
            return sde_gen.Prediction(self.model.denoise(x, t).detach())

    measurement = Measurement(Mask(), Gaussian(0.5))
    y = measurement.simulate(data.sample(2, 1).reshape(2, 1, 4, 4))
    found = sde_gen.posterior(Detached(data.model(VE)), measurement, y, 500, steps=60, progress=False)
    assert int(found.nfe.sum()) == Detached.asked > 1.3 * 1000 * 62
    exact = data.log_evidence(torch.eye(16, dtype=torch.float64), y.flatten(1), torch.full((16,), 0.25, dtype=torch.float64))
    assert found.log_evidence is not None and found.log_evidence_error is not None
    assert bool(((found.log_evidence - exact).abs() < 4 * found.log_evidence_error + 0.02).all())


def test_a_posterior_says_of_how_many_particles_of_the_start_it_comes() -> None:
    """Weights alone do not tell: resampled particles weigh alike, and a sharp measurement leaves few of those at the start."""
    data, measurement = law(2), Measurement(MEASUREMENTS["matrix"].operator, Gaussian(0.05))
    model = model_of(data)
    y = measured(measurement, data, model, 2)
    found = sde_gen.posterior(model, measurement, y, 128, steps=30, progress=False)
    assert found.lineages is not None and found.log_evidence_error is not None
    assert bool((found.lineages >= 1).all()) and bool((found.lineages < found.ess).all())
    torch.testing.assert_close(found.log_evidence_error, torch.sqrt((128 / found.lineages - 1) / 127))
    assert found.resampled(16).lineages is found.lineages
    # groups of one are never resampled: each is its own ancestor, and the error is that of a mean of independent weights
    alone = sde_gen.posterior(model, measurement, y, 128, particles=1, steps=30, progress=False)
    assert alone.lineages is not None and alone.log_evidence_error is not None
    torch.testing.assert_close(alone.lineages, alone.ess)
    torch.testing.assert_close(alone.log_evidence_error, alone.weights.std(1) * math.sqrt(128))
    assert sde_gen.posterior(model, measurement, y, 4, "mmps", steps=3, progress=False).lineages is None


def test_a_network_whose_jacobian_is_no_covariance_leaves_the_law_as_it_is() -> None:
    """Weights are those of the solver's own steps: the evidence is that of the chain, which a rotation in the Jacobian does not change."""

    class Twirled(sde_gen.Wrapper):
        same_law = True

        def predict(self, x: Tensor, t: Any, **cond: Tensor) -> sde_gen.Prediction:
            found = self.model.denoise(x, t).flatten(1)
            turn = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
            # The same values, with a derivative that is not symmetric.
            wrong = x.flatten(1) - x.flatten(1).detach()
            return sde_gen.Prediction((found + 0.05 * wrong @ (turn - turn.T)).reshape(x.shape))

    data, measurement = law(2), SPLIT
    model = model_of(data)
    y = measured(measurement, data, model, 2)
    runs = [sde_gen.posterior(one, measurement, y, 2000, steps=40, progress=False) for one in (model, Twirled(model))]
    evidence = [run.log_evidence for run in runs]
    assert evidence[0] is not None and evidence[1] is not None
    assert float((evidence[0] - evidence[1]).abs().max()) < 0.12
    errors = [run.log_evidence_error for run in runs]
    assert errors[0] is not None and errors[1] is not None and float(errors[1].min()) > float(errors[0].max()), "worse, and it says so"


def test_a_measurement_is_planned_once_a_run_and_no_solve_asks_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = [], []

    class Counted(Observed):
        def __init__(self, *given: Any) -> None:
            made.append(1)
            super().__init__(*given)

    monkeypatch.setattr("sde_gen.inverse.conditioned.Observed", Counted)
    truth = Tensor.__bool__
    monkeypatch.setattr(Tensor, "__bool__", lambda value: (asked.append(1), truth(value))[1])  # type: ignore[func-returns-value]
    counts = []
    for steps in (4, 12):
        made.clear()
        asked.clear()
        data = GaussianData(torch.zeros(1, 4, 4), 0.5 * torch.eye(16) + 0.5)
        sde_gen.posterior(
            data.model(VE), Measurement(Downsample(2), Gaussian(0.3)), numbers(2, 1, 2, 2), 3, "diffpir", steps=steps, progress=False
        )
        counts.append((len(made), len(asked)))
    assert counts[0] == counts[1] and counts[0][0] <= 2, "what is asked does not depend on the number of steps"
