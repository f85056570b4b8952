"""Guidance against closed forms: Gaussian branches have exact guided flows, mixtures exact noisy classifiers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from guided_laws import EYE, VE, VP, branches, draws, gaussians, kind, mixtures
from torch import Tensor

import sde_gen
from sde_gen.exact.mixtures import GaussianData, marginal
from sde_gen.guidance import GUIDANCE, Classifier, Combine, Energy, guide
from sde_gen.models.denoiser import Prediction, Wrapper
from sde_gen.solvers import SOLVERS, make_solver


def final_variance(strength: float, t: float = VE.t_min) -> float:
    """Of the guided flow of `gaussians` from N(0, sigma_max^2): x grows as (1 + sigma^2)^(w/2) (2 + sigma^2)^((1 - w)/2)."""
    growth = [(1 + s**2) ** strength * (2 + s**2) ** (1 - strength) for s in (float(marginal(VE, at)[1]) for at in (t, VE.t_max))]
    return 80.0**2 * growth[0] / growth[1]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 3.0])
def test_the_flow_of_two_gaussians_ends_in_its_own_variance(strength: float) -> None:
    guided = guide(gaussians(), strength)
    out = sde_gen.sample(guided, (4, 1), "ode", x_init=80 * draws(4, width=1), cond=kind(4), final="state", rtol=1e-8, atol=1e-8)
    assert final_variance(3.0) == pytest.approx(0.25, rel=1e-2)
    torch.testing.assert_close(out.x, draws(4, width=1) * final_variance(strength) ** 0.5, rtol=1e-5, atol=1e-7)


def test_the_sde_of_two_gaussians_ends_in_another() -> None:
    out = sde_gen.sample(guide(gaussians(), 3.0), (20_000, 1), "em", 300, cond=kind(20_000), dtype=torch.float64, progress=False)
    assert float(out.x.var()) == pytest.approx(0.3875, rel=0.04)  # (2 - 2^(2 - 2g))/(2g - 1); the product's own is 0.5


def test_the_likelihood_is_that_of_the_guided_flow() -> None:
    x = draws(5, width=1)
    found = sde_gen.log_likelihood(guide(gaussians(), 3.0), x, cond=kind(5), divergence="exact", rtol=1e-8, atol=1e-8)
    expected = torch.distributions.Normal(0.0, final_variance(3.0) ** 0.5).log_prob(x[:, 0])
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("solver", "rule"), [(solver, rule) for solver in SOLVERS for rule in GUIDANCE if rule == "cfg" or solver in ("em", "dpm", "heun")]
)
def test_strength_one_and_an_empty_interval_are_the_conditional_model_and_zero_is_the_null_branch(solver: str, rule: str) -> None:
    model, steps = mixtures(), None if make_solver(solver).adaptive else 4
    if make_solver(solver).needs_variance:
        pytest.skip("these models predict no variance")
    common: dict[str, Any] = {"steps": steps, "dtype": torch.float64, "progress": False}
    given, null = sde_gen.sample(model, (3, 2), solver, cond=kind(3), **common), sde_gen.sample(model, (3, 2), solver, **common)
    cases = [(1.0, None, given), (3.0, (90.0, 91.0), given), (0.0, None, null)]
    if rule == "cfgpp":  # whose strength is on a scale of its own
        cases = cases[2:]
    if solver == "angle":  # which starts from the data's moments: under a condition nothing is known of them
        cases = cases[:2] if rule != "cfgpp" else []
    for strength, interval, expected in cases:
        out = sde_gen.sample(guide(model, strength, interval=interval, rule=rule), (3, 2), solver, cond=kind(3), **common)
        assert torch.equal(out.x, expected.x), (strength, interval)
        if not make_solver(solver).adaptive or interval is None:
            assert torch.equal(out.nfe, expected.nfe)


def test_an_interval_is_one_of_noise_levels_and_costs_half_outside_of_it() -> None:
    model = mixtures()
    lambdas = [float(VP.half_log_snr(t)) for t in (0.8, 0.4, 0.1)]
    guided = guide(model, 4.0, interval=(lambdas[1] - 0.1, lambdas[1] + 0.1))
    x = draws()
    for t, inside in ((0.8, False), (0.4, True), (0.1, False)):
        expected = guide(model, 4.0 if inside else 1.0).denoise(x, t, **kind(6))
        assert torch.equal(guided.denoise(x, t, **kind(6)), expected)
        assert guided.cost_at(t) == (2 if inside else 1)
    each = torch.tensor([0.8, 0.4, 0.1, 0.4, 0.8, 0.1], dtype=torch.float64)
    alone = torch.cat([guided.denoise(x[k : k + 1], float(each[k]), **kind(1)) for k in range(6)])
    torch.testing.assert_close(guided.denoise(x, each, **kind(6)), alone, rtol=1e-12, atol=1e-12)
    grid = [1.0, 0.8, 0.4, 0.1, VP.t_min]
    assert sde_gen.sample(guided, (2, 2), "ddim", grid=grid, cond=kind(2), progress=False, final="state").nfe.tolist() == [5, 5]


def test_both_branches_are_one_call_where_the_model_has_a_null_and_two_where_it_has_none() -> None:
    found = []
    for nulls, calls in ((True, [8]), (False, [4, 4])):
        model = gaussians(nulls=nulls)
        found.append(guide(model, 2.0).denoise(draws(4, width=1), 0.5, **kind(4)))
        assert model.network.calls == calls
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    out = sde_gen.sample(guide(gaussians(), 2.0), (3, 1), "ddim", 5, cond=kind(3), progress=False, final="state")
    assert out.nfe.tolist() == [10] * 3


def test_cfgpp_is_its_papers_step() -> None:
    model, steps, w = mixtures(), 7, 0.6
    x = x_0 = draws()
    times = torch.linspace(1.0, VP.t_min, steps + 1, dtype=torch.float64).tolist()
    for t, s in pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = marginal(VP, t), marginal(VP, s)
        null, given = model.denoise(x, t), model.denoise(x, t, **kind(6))
        x = alpha_s * (null + w * (given - null)) + sigma_s * (x - alpha * null) / sigma
    out = sde_gen.sample(guide(model, w, rule="cfgpp"), (6, 2), "ddim", x_init=x_0, grid=times, cond=kind(6), final="state", progress=False)
    torch.testing.assert_close(out.x, x, rtol=0, atol=1e-12)
    alone = guide(model, w).denoise(x, VP.t_min, **kind(6))  # of the end, which is no step, the guided data themselves
    out = sde_gen.sample(guide(model, w, rule="cfgpp"), (6, 2), "ddim", x_init=x_0, grid=times, cond=kind(6), progress=False)
    torch.testing.assert_close(out.x, alone, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="takes fixed-step solvers"):
        sde_gen.sample(guide(model, w, rule="cfgpp"), (2, 2), "ode", cond=kind(2), progress=False)


def test_apg_by_its_definition() -> None:
    model, x, t = mixtures(), draws(), 0.4
    given, null = model.denoise(x, t, **kind(6)), model.denoise(x, t)
    torch.testing.assert_close(guide(model, 3.0, rule="apg", eta=1.0).denoise(x, t, **kind(6)), null + 3 * (given - null))
    found = guide(model, 3.0, rule="apg").denoise(x, t, **kind(6)) - given
    assert float((found * given).sum(1).abs().max()) < 1e-12, "nothing along the conditional branch"
    short = guide(model, 2.0, rule="apg", radius=0.01, eta=1.0).denoise(x, t, **kind(6)) - given
    torch.testing.assert_close(short.norm(dim=1), (given - null).norm(dim=1).clamp_max(0.01))
    # momentum adds the differences of the steps before, of this run alone
    guided = guide(model, 3.0, rule="apg", eta=1.0, momentum=-0.5)
    first, second = guided.planned([0.8, 0.4]).values()
    before = guided.denoise(x, first, **kind(6))
    torch.testing.assert_close(before, guide(model, 3.0).denoise(x, 0.8, **kind(6)))
    old = model.denoise(x, 0.8, **kind(6)) - model.denoise(x, 0.8)
    torch.testing.assert_close(guided.denoise(x, second, **kind(6)), given + 2 * (given - null - 0.5 * old))
    again = guided.planned([0.4])
    torch.testing.assert_close(guided.denoise(x, again[0.4], **kind(6)), null + 3 * (given - null))
    assert bool(torch.isfinite(sde_gen.sample(guided, (2, 2), "ddim", 3, cond=kind(2), progress=False).x).all())
    with pytest.raises(ValueError, match="or momentum=0"):
        guided.denoise(x, 0.4, **kind(6))


def test_cfg_zero_by_its_definition() -> None:
    model, x, t = mixtures(), draws(), 0.4
    given, null = model.velocity(x, t, **kind(6)), model.velocity(x, t)
    scale = (given * null).sum(1, keepdim=True) / null.square().sum(1, keepdim=True)
    found = guide(model, 3.0, rule="cfg_zero").velocity(x, t, **kind(6))
    torch.testing.assert_close(found, scale * null + 3 * (given - scale * null))
    guided = guide(model, 3.0, rule="cfg_zero", zero_steps=1)
    first, second = guided.planned([0.8, 0.4]).values()
    assert float(guided.velocity(x, first, **kind(6)).abs().max()) < 1e-12
    torch.testing.assert_close(guided.velocity(x, second, **kind(6)), found)
    end = guide(model, 3.0, rule="cfg_zero").denoise(x, VP.t_min, **kind(6))
    torch.testing.assert_close(guided.denoise(x, VP.t_min, **kind(6)), end)
    with pytest.raises(ValueError, match="or zero_steps=0"):
        guided.denoise(x, 0.4, **kind(6))


def test_autoguidance_pushes_away_from_the_other_model() -> None:
    strong, weak, x = mixtures(), gaussians(VP), draws()
    weak = branches(VP, GaussianData(torch.zeros(2), 3 * EYE), GaussianData(torch.zeros(2), 9 * EYE))
    found = guide(strong, 2.0, against=weak).denoise(x, 0.4, **kind(6))
    a, b = strong.denoise(x, 0.4, **kind(6)), weak.denoise(x, 0.4, **kind(6))
    torch.testing.assert_close(found, b + 2 * (a - b))
    assert guide(strong, 2.0, against=weak).cost == 2


def test_a_combination_of_scores() -> None:
    model, other, x, t = mixtures(), sde_gen.ScoreModel(GaussianData.correlated().score(VP), VP, "score"), draws(), 0.3
    product = Combine([(1.0, model, {"kind": 1}), (2.0, other, {}), (-0.5, model, {})])
    expected = model.score(x, t, **kind(6)) + 2 * other.score(x, t) - 0.5 * model.score(x, t)
    torch.testing.assert_close(product.score(x, t), expected)
    assert product.cost == 3
    given = Combine([(3.0, model), (-2.0, model, {})])
    torch.testing.assert_close(given.denoise(x, t, **kind(6)), guide(model, 3.0).denoise(x, t, **kind(6)))
    model.network.calls.clear()
    given.denoise(x, t, **kind(6))
    assert model.network.calls == [12]


def test_the_product_of_two_gaussians_at_the_end() -> None:
    """Precisions add: N(m, C) N(m', C') is N with precision C^-1 + C'^-1, to the noise that is left at t_min."""
    a, b = GaussianData.correlated(), GaussianData(torch.tensor([0.0, 1.0]), 0.5 * EYE)
    both = Combine([(1.0, a.model(VE)), (1.0, b.model(VE))])
    precision = torch.linalg.inv(a.covariance) + torch.linalg.inv(b.covariance)
    mean = torch.linalg.solve(precision, torch.linalg.solve(a.covariance, a.mean) + torch.linalg.solve(b.covariance, b.mean))
    x = draws()
    torch.testing.assert_close(both.score(x, VE.t_min), (mean - x) @ precision, rtol=5e-3, atol=5e-3)


def test_the_exact_noisy_classifier_makes_the_class_of_it() -> None:
    """Bayes: the mixture's score and the gradient of its noisy classifier are one mode's score, at every time."""
    model = mixtures()
    network = model.network

    def log_prob(x: Tensor, t: Tensor | float) -> Tensor:
        return network.given.log_prob(x, VP, t) - network.null_law.log_prob(x, VP, t)  # up to log p(c)

    unconditional = network.null_law.model(VP, prior="sde")
    guided, x = Classifier(unconditional, log_prob), draws()
    for t in (VP.t_min, 0.2, 0.7, torch.linspace(0.1, 0.9, 6, dtype=torch.float64)):
        torch.testing.assert_close(guided.denoise(x, t), model.denoise(x, t, **kind(6)), rtol=1e-9, atol=1e-9)
    data = network.given.sample(4, seed=1)
    found = sde_gen.log_likelihood(guided, data, divergence="exact", rtol=1e-7, atol=1e-7)
    exact = sde_gen.log_likelihood(model, data, cond=kind(4), divergence="exact", rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.log_prob, exact.log_prob, rtol=0, atol=1e-5)


def test_conditions_go_to_the_classifier_and_to_the_model_those_that_are_named() -> None:
    network = sde_gen.make_network("mlp", (2,), 3, width=8, depth=1)
    x, label = draws(4).float(), torch.tensor([0, 1, 2, 0])
    plain = sde_gen.make_network("mlp", (2,), None, width=8, depth=1)
    seen = []

    def log_prob(x: Tensor, t: Tensor | float, label: Tensor) -> Tensor:
        seen.append(label)
        return -(x.sum(1) - label).square()

    for net, given in ((plain, ()), (network, ("label",)), (network, "label")):
        model = sde_gen.ScoreModel(net, VP, "noise", clock="half_log_snr")
        guided = Classifier(model, log_prob, given=given)
        assert torch.equal(guided.conditions({"label": label}, 4, torch.device("cpu"))["label"], label)
        expected = model.denoise(x, 0.3, **({"label": label} if given else {}))
        alpha, sigma = marginal(VP, 0.3)
        gradient = -2 * (x.sum(1) - label)[:, None].expand(4, 2)
        torch.testing.assert_close(guided.denoise(x, 0.3, label=label), expected + (sigma**2 / alpha).float() * gradient)
    with pytest.raises(ValueError, match=r"^condition 'label' is the model's, and was not given \(cond=\{...\}\)$"):
        guided.conditions({}, 4, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"'label' must be in 0 .. 2"):
        guided.conditions({"label": label + 5}, 4, torch.device("cpu"))


def test_an_energy_of_the_denoised_data() -> None:
    law = GaussianData.correlated()
    target, x, t = torch.tensor([1.0, 2.0], dtype=torch.float64), draws(), 0.4
    guided = Energy(law.model(VP), lambda d: 0.5 * (d - target).square().sum(1), strength=0.7)
    gain, offset = law.affine(VP, torch.tensor(t, dtype=torch.float64))
    denoised, (alpha, sigma) = x @ gain.T + offset, marginal(VP, t)
    expected = denoised - 0.7 * sigma**2 / alpha * (denoised - target) @ gain
    torch.testing.assert_close(guided.denoise(x, t), expected)
    assert not guided.denoise(x, t).requires_grad
    out = sde_gen.sample(guided, (3, 2), "heun", 4, progress=False)
    assert bool(torch.isfinite(out.x).all())


class Watching(Wrapper):
    same_law = True

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        return super().predict(x, t, **cond)


def test_guidance_of_a_wrapper_and_a_wrapper_of_guidance() -> None:
    model, x = mixtures(), draws()
    expected = guide(model, 2.5).denoise(x, 0.3, **kind(6))
    assert torch.equal(guide(Watching(model), 2.5).denoise(x, 0.3, **kind(6)), expected)
    outside = Watching(guide(model, 2.5, interval=(0.0, 1.0)))
    assert [outside.cost_at(t) for t in (0.99, float(VP.time_of(torch.tensor(0.5))))] == [1, 2]


def test_labels_of_our_own_networks() -> None:
    digits = sde_gen.make_network("mlp", (2,), 3, width=16, depth=1)
    for p in digits.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    model = sde_gen.ScoreModel(digits.eval(), VP, "noise", clock="half_log_snr")
    x, label = draws().float(), torch.tensor([0, 1, 2, 0, 1, 2])
    given, null = model.denoise(x, 0.3, label=label), model.denoise(x, 0.3)
    torch.testing.assert_close(guide(model, 2.0).denoise(x, 0.3, label=label), null + 2 * (given - null))
    assert torch.equal(model.null("label", label), torch.full((6,), 3)) and model.null("other", label) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": math.nan}, "strength must be a finite number"),
        ({"strength": "2"}, "strength must be a finite number"),
        ({"strength": 2.0, "interval": (1.0, 0.0)}, r"interval must be \(low, high\)"),
        ({"strength": 2.0, "interval": (1.0,)}, r"interval must be \(low, high\)"),
        ({"strength": 2.0, "interval": 1.0}, r"interval must be \(low, high\)"),
        ({"strength": 2.0, "drop": "kind"}, r"such as \('kind',\)"),
        ({"strength": 2.0, "rule": "cgf"}, "unknown guidance rule 'cgf'; choose from cfg, cfgpp, apg, cfg_zero"),
        ({"strength": 2.0, "rule": "cfg", "eta": 1.0}, "guidance rule 'cfg' has no setting eta; it takes model, strength, drop, interval"),
        ({"strength": 2.0, "rule": "apg", "radius": 0.0}, "radius must be positive"),
        ({"strength": 2.0, "rule": "cfg_zero", "zero_steps": -1}, "zero_steps must be a whole number"),
    ],
)
def test_bad_settings_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        guide(gaussians(), **options)
    assert "\n" not in str(caught.value)


def test_bad_models_and_conditions_are_one_line() -> None:
    model = gaussians()
    with pytest.raises(ValueError, match=r"^guidance drops conditions, and none was given \(cond=\{...\}\)$"):
        sde_gen.sample(guide(model, 2.0), (2, 1), "ddim", 3)
    with pytest.raises(ValueError, match=r"^guidance drops condition 'text', and none was given"):
        sde_gen.sample(guide(model, 2.0, drop=("text",)), (2, 1), "ddim", 3, cond=kind(2))
    with pytest.raises(ValueError, match="must lie along the model's SDE"):
        guide(model, 2.0, against=gaussians(VP))
    assert guide(model, 2.0, against=gaussians(sde_gen.make_sde("ve", sigma_min=0.01, sigma_max=80.0))).cost == 2
    with pytest.raises(ValueError, match="give one of them"):
        guide(model, 2.0, drop=("kind",), against=gaussians())
    with pytest.raises(ValueError, match="at least one term"):
        Combine([])
    for terms in ([model], [(1.0,)], [("2", model)], [(1.0, "model")]):
        with pytest.raises(TypeError, match=r"^a term is \(weight, model\) or \(weight, model, cond\) with a number and a Denoiser, got"):
            Combine(terms)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="along one SDE"):
        Combine([(1.0, model), (1.0, gaussians(VP))])
    with pytest.raises(ValueError, match=r"must be a number or \(1, \*\), got \(2,\)"):
        Combine([(1.0, model, {"kind": torch.ones(2)})])
    with pytest.raises(ValueError, match="would reach none of them"):
        sde_gen.sample(Combine([(1.0, model, {"kind": 1})]), (2, 1), "ddim", 3, cond=kind(2))
    with pytest.raises(ValueError, match=r"one number for each of the 6 samples, got \(\)"):
        Energy(mixtures(), lambda d: d.sum()).denoise(draws(), 0.3)
    with pytest.raises(TypeError, match="no gradient with respect to the state"):
        Energy(mixtures(), lambda d: d.detach().sum(1)).denoise(draws(), 0.3)
