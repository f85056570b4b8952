"""Transforms of single entries: exact inverses and slopes, what they make of data, and likelihoods that carry them."""

from __future__ import annotations

import json
import math

import pytest
import safetensors.torch
import torch
from scipy import stats

import sde_gen
from sde_gen.data import Normalizer
from sde_gen.data.transforms import TRANSFORMS, Transforms
from sde_gen.discrete.elbo_terms import decoder_nll
from sde_gen.inverse import Gaussian, Mask, Matrix, Measurement
from sde_gen.likelihood.bits_per_dim import matching_time

COUNT = 3000
CHAINS = {
    "none": (),
    "log1p": ("log1p",),
    "box_cox": ("box_cox",),
    "log": ("log",),
    "logit": ("logit",),
    "quantile": ("quantile",),
    "log, quantile": ("log", "quantile"),
    "log1p, quantile": ("log1p", "quantile"),
    "logit, quantile": ("logit", "quantile"),
}


def normal(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def columns(count: int = COUNT, seed: int = 0) -> torch.Tensor:
    """(count, 9), one column of a law of its own for each of `CHAINS`, in units from 1e-8 to 1e5."""
    z = [normal(count, 100 * seed + k) for k in range(10)]
    atom = torch.where(z[7] < 0.3, -torch.sigmoid(z[8]), 20 * z[9].exp())  # zeros in [-1, 0) beside positive values
    laws = [3e4 + 1e5 * z[0], 7 * z[1].exp() - 2, (2 + 0.3 * z[2].clamp(-6, 6)) ** 3, 1e-8 * z[3].exp(), torch.sigmoid(2 * z[4])]
    laws += [(5 * z[5]).floor() + torch.sigmoid(3 * z[6]), 1e5 * (z[4].abs() + z[3]).exp(), atom, -3 + 5 * torch.sigmoid(z[2] * z[5])]
    return torch.stack(laws, 1)


def fitted(count: int = COUNT) -> Normalizer:
    return Normalizer.fit(columns(count), transforms=list(CHAINS.values()), breaks=[[-1.0, 0.0] if k == 7 else [] for k in range(9)])


@pytest.mark.parametrize("spatial", [False, True])
def test_round_trips_are_exact_in_float64(spatial: bool) -> None:
    x = columns(seed=1)
    normalizer = fitted()
    if spatial:  # the same numbers as channels over space
        whole = Normalizer.fit(columns().reshape(-1, 3, 4, 9).movedim(3, 1), transforms=list(CHAINS.values()))
        x = x.reshape(-1, 3, 4, 9).movedim(3, 1)
        assert whole.shift.shape == (9, 1, 1)
        normalizer = whole
    x = torch.where(torch.isfinite(x), x, 0)
    logit = x.movedim(1, 0)[8]
    logit.clamp_(float(logit.min()) * 0.9, float(logit.max()) * 0.9)  # beyond the training values a logit has no answer
    z = normalizer.encode(x)
    back = normalizer.decode(z)
    error = (back - x).abs().movedim(1, 0).flatten(1).amax(1)
    scale = x.abs().movedim(1, 0).flatten(1).amax(1)
    assert bool((error <= 1e-12 * scale).all()), error / scale
    assert z.dtype == back.dtype == torch.float64


@pytest.mark.parametrize("far", [-7.0, 7.0])
def test_decode_takes_the_whole_line_and_encode_gives_it_back(far: float) -> None:
    normalizer = fitted()
    z = torch.full((1, 9), far, dtype=torch.float64)
    x = normalizer.decode(z)
    assert bool(torch.isfinite(x).all()) and float(x[0, 3]) > 0 and float(x[0, 6]) > 0
    back = normalizer.encode(x)
    inside = [k for k in range(9) if k not in (2, 4, 8)]  # a Box-Cox map's range and a logit's rounding end before
    torch.testing.assert_close(back[:, inside], z[:, inside], rtol=1e-9, atol=1e-9)
    assert not bool((normalizer.decode(torch.full((1, 9), -60.0, dtype=torch.float64))[0, [2, 3, 6]] < 0).any())


def test_log_determinants_are_those_of_autograd() -> None:
    normalizer, x = fitted(), columns(20, seed=2)
    x[:, 8] = x[:, 8].clamp(-2.5, 1.5)
    x[0, 5], x[1, 5] = -100.0, 100.0  # in the tails
    for row in x:
        jacobian = torch.autograd.functional.jacobian(normalizer.encode, row[None])[0, :, 0]
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(normalizer.log_det(row[None])[0], expected, rtol=1e-12, atol=1e-12)


def test_quantiles_make_any_column_normal_and_jumps_stay_where_they_are() -> None:
    normalizer, z = fitted(), fitted().encode(columns())
    for name, k in (("quantile", 5), ("log, quantile", 6), ("log1p, quantile", 7)):
        assert stats.kstest(z[:, k].numpy(), "norm").statistic < 0.02, name
    x = columns()
    border = torch.zeros(1, 9, dtype=torch.float64)
    border[0] = x[0]
    border[0, 7] = 0.0
    share = float((x[:, 7] < 0).double().mean())
    assert float(torch.special.ndtr(normalizer.encode(border)[0, 7])) == pytest.approx(share, abs=1e-3)


def test_checkpoints_give_the_same_bits(tmp_path) -> None:  # type: ignore[no-untyped-def]
    normalizer = fitted()
    safetensors.torch.save_file(normalizer.state_dict(), tmp_path / "n.safetensors")
    again = Normalizer.from_config(json.loads(json.dumps(normalizer.to_config())))
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "n.safetensors"))
    x = columns(50)
    assert torch.equal(again.encode(x), normalizer.encode(x)) and torch.equal(again.log_det(x), normalizer.log_det(x))
    assert torch.equal(again.half().encode(x), normalizer.encode(x))  # a cast of the model leaves the numbers alone


@pytest.mark.parametrize("config", [{"chains": [["odd"]]}, {"chains": 3}, {}, {"chains": [["quantile"]], "knots": {"0-quantile": -1}}])
def test_bad_configurations_are_refused(config: dict) -> None:
    with pytest.raises(ValueError, match=r"transform|knots"):
        Transforms.from_config(config)


@pytest.mark.parametrize(("name", "value"), [("log", 0.0), ("box_cox", -1.0), ("logit", 2.0)])
def test_values_that_a_transform_does_not_take_are_named(name: str, value: float) -> None:
    x = torch.sigmoid(torch.stack([normal(50, 1), normal(50, 2)], 1))
    normalizer = Normalizer.fit(x, transforms=[(), (name,)])
    x[7, 1] = value
    with pytest.raises(ValueError, match=f"column 1 holds {value:g}.*{name!r}"):
        normalizer.encode(x)
    with pytest.raises(ValueError, match="column 1 holds -5"):
        Normalizer.fit(torch.stack([normal(50), -5 + 0 * normal(50)], 1), transforms=[(), ("log",)])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_is_a_normalisation_by_name(name: str) -> None:
    x = torch.sigmoid(torch.stack([normal(200, 1), normal(200, 2)], 1)).float()
    normalizer = Normalizer.fit(x, name)
    assert not normalizer.affine and Normalizer.fit(x).affine
    z = normalizer.encode(x)
    assert z.dtype == torch.float32 and float(z.double().mean().abs()) < 1e-5 and float(z.std(correction=0)) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="goes with them"):
        Normalizer.fit(x, name, transforms=[(), ()])


class Standard(torch.nn.Module):
    """E[x_0 | x_t] of standard normal data along a process."""

    def __init__(self, sde: sde_gen.SDE) -> None:
        super().__init__()
        self.sde = sde

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (value.to(x)[:, None] for value in self.sde.marginal(c.double()))
        return alpha * x / (alpha**2 + sigma**2)


def exact_model(normalizer: Normalizer) -> sde_gen.ScoreModel:
    sde = sde_gen.make_sde("vp")
    moments = sde_gen.Moments(torch.zeros(2), variance=torch.ones(2))
    return sde_gen.ScoreModel(Standard(sde), sde, prediction="data", clock="time", normalizer=normalizer, moments=moments, prior="matched")


LAWS = {
    "log": (lambda z: z.exp(), lambda x, m, s: stats.lognorm.logpdf(x, s, scale=math.exp(m))),
    "logit": (
        lambda z: torch.sigmoid(z),
        lambda x, m, s: stats.norm.logpdf(torch.logit(torch.from_numpy(x)).numpy(), m, s) - stats.uniform.logpdf(x) - log_of(x),
    ),
}


def log_of(x):  # type: ignore[no-untyped-def]
    return (torch.from_numpy(x).log() + torch.from_numpy(1 - x).log()).numpy()


@pytest.mark.parametrize("name", LAWS)
def test_likelihoods_of_exact_scores_are_those_of_the_law_in_its_own_units(name: str) -> None:
    """log-normal and logit-normal data: the flow's log-likelihood through the transform is the law's to 1e-3 nats a dimension."""
    to_data, log_prob = LAWS[name]
    mean, std = torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([0.5, 0.8], dtype=torch.float64)
    z = torch.stack([normal(200, 5), normal(200, 6)], 1)
    x = to_data(mean + std * z)
    entries = Transforms.fit(x.T.contiguous(), [(name,)] * 2)
    model = exact_model(Normalizer(mean, std, dtype=torch.float64, transforms=entries))
    found = sde_gen.log_likelihood(model, x, rtol=1e-6, atol=1e-6).log_prob
    expected = sum(torch.from_numpy(log_prob(x[:, k].numpy(), float(mean[k]), float(std[k]))) for k in range(2))
    assert float((found - expected).abs().max()) < 2e-3
    samples = sde_gen.sample(model, (400, 2), "ddim", steps=20, progress=False, dtype=torch.float64).x
    for k in range(2):
        scores = torch.log(samples[:, k]) if name == "log" else torch.logit(samples[:, k])
        assert stats.kstest(scores.numpy(), "norm", (float(mean[k]), float(std[k]))).pvalue > 1e-3


def test_a_density_of_the_decoder_is_one_in_the_datas_units() -> None:
    normalizer = Normalizer.fit(columns()[:, [0, 3]], transforms=[(), ("log",)])
    values, denoised = columns(5, seed=3)[:, [0, 3]], torch.zeros(5, 2, dtype=torch.float64)
    found = decoder_nll(normalizer, values, denoised, torch.tensor(0.5, dtype=torch.float64), None)
    centre, spread = normalizer.shift, 0.5 * normalizer.scale
    expected = stats.norm.logpdf(values[:, 0], centre[0], spread[0]) + stats.lognorm.logpdf(
        values[:, 1], float(spread[1]), scale=math.exp(float(centre[1]))
    )
    torch.testing.assert_close(-found, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="affine"):
        decoder_nll(normalizer, values, denoised, torch.tensor(0.5, dtype=torch.float64), 8)


def test_consumers_that_need_an_affine_map_say_so_or_take_it_as_not_linear() -> None:
    x = (0.3 + 0.5 * torch.stack([normal(500, 1), normal(500, 2)], 1)).exp()
    model = exact_model(Normalizer.fit(x, transforms=[("log",), ("log",)]))
    with pytest.raises(ValueError, match="affine"):
        matching_time(model, torch.Size((2,)), 1.0)
    with pytest.raises(ValueError, match="not affine"):
        sde_gen.posterior(model, Measurement(Matrix(torch.eye(2)), Gaussian(0.1)), x[:1], method="ddrm")
    # x_0 alone is measured: its posterior is known, and x_1 keeps its law.
    y = torch.tensor([[2.0, math.nan]], dtype=torch.float64)
    mask = Mask(torch.tensor([True, False]))
    post = sde_gen.posterior(
        model, Measurement(mask, Gaussian(0.2)), y, 200, method="twisted", progress=False, steps=30, dtype=torch.float64
    )
    weights = torch.ones(200, dtype=torch.float64) / 200 if post.log_weights is None else torch.softmax(post.log_weights[0], 0)
    grid = torch.linspace(0.5, 4, 4001, dtype=torch.float64)
    log_post = stats.lognorm.logpdf(grid, 0.5, scale=math.exp(0.3)) + stats.norm.logpdf(grid, 2.0, 0.2)
    shares = torch.softmax(torch.from_numpy(log_post), 0)
    assert float((weights * post.x[0, :, 0]).sum()) == pytest.approx(float((shares * grid).sum()), abs=0.06)
