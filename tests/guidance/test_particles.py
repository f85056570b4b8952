"""Particles reach the law that a combination of scores stands for, where the scores alone do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from guided_laws import EYE, ONE, VE, branches, gaussians, kind, mixtures
from torch import Tensor

import sde_gen
from sde_gen.exact.mixtures import GaussianData, MixtureData
from sde_gen.guidance import Combine, guide
from sde_gen.solvers import SOLVERS, make_solver

ABLE = [name for name in SOLVERS if make_solver(name).reverse_sde]


def pooled(out: sde_gen.Samples) -> tuple[Tensor, Tensor]:
    """All particles (N K, *) of samples with one law, and their weights, which sum to 1."""
    assert out.log_weights is not None
    return out.x.flatten(0, 1), out.log_weights.flatten().softmax(0)


def drawn(model: Any, count: int, size: int, solver: str = "dpm_sde", steps: int = 100, width: int = 1, **options: Any) -> sde_gen.Samples:
    return sde_gen.sample(model, (count, width), solver, steps, particles=size, dtype=torch.float64, progress=False, **options)


def test_the_tilted_variance_is_reached_where_the_sde_alone_has_another() -> None:
    out = drawn(guide(gaussians(), 3.0), 300, 64, "em", cond=kind(300))
    x, weights = pooled(out)
    assert float(x.var()) == pytest.approx(0.3875, rel=0.06), "as the guided SDE leaves them"
    assert float((weights * x[:, 0].square()).sum()) == pytest.approx(0.5, rel=0.03), "2/(g + 1)"
    assert out.nfe.tolist() == [2 * 64 * 102] * 300 and out.x.shape == (300, 64, 1)
    assert out.ess is not None and float(out.ess.min()) >= 32 and float(out.ess.max()) <= 64


@pytest.mark.parametrize("solver", ABLE)
def test_every_solver_of_the_reverse_sde_goes_there(solver: str) -> None:
    x, weights = pooled(drawn(guide(gaussians(), 3.0), 60, 64, solver, 400, cond=kind(60)))
    assert float((weights * x[:, 0].square()).sum()) == pytest.approx(0.5, rel=0.09)


def test_the_product_of_two_laws() -> None:
    a, b = GaussianData.correlated(), GaussianData(torch.tensor([0.0, 1.0]), 0.5 * EYE)
    precision = torch.linalg.inv(a.covariance) + torch.linalg.inv(b.covariance)
    mean = torch.linalg.solve(precision, torch.linalg.solve(a.covariance, a.mean) + torch.linalg.solve(b.covariance, b.mean))
    both = Combine([(1.0, a.model(VE)), (1.0, b.model(VE))])
    x, weights = pooled(drawn(both, 100, 64, steps=150, width=2))
    found = weights @ x
    spread = (weights[:, None] * (x - found)).T @ (x - found)
    torch.testing.assert_close(found, mean, rtol=0, atol=0.04)
    torch.testing.assert_close(spread, torch.linalg.inv(precision), rtol=0, atol=0.03)
    alone = sde_gen.sample(both, (4000, 2), "dpm_sde", 150, dtype=torch.float64, progress=False).x
    assert float((alone.T.cov() - torch.linalg.inv(precision)).abs().max()) > 0.05, "the scores alone end elsewhere"


def test_the_product_of_two_mixtures_keeps_the_shares_of_its_modes() -> None:
    """Modes at -2 and 2 of shares .8 and .2, times a mixture of shares .4 and .6 there: .32 and .12, so .727 and .273."""
    places = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
    laws = [MixtureData(torch.tensor(shares), places, 0.2 * torch.stack((ONE, ONE))) for shares in ((0.8, 0.2), (0.4, 0.6))]
    x, weights = pooled(drawn(Combine([(1.0, law.model(VE)) for law in laws]), 60, 64, steps=150))
    assert float(weights[x[:, 0] < 0].sum()) == pytest.approx(0.32 / 0.44, abs=0.04)


def test_particles_do_not_depend_on_their_batch_and_no_batch_cuts_a_group() -> None:
    guided = guide(mixtures(), 4.0)
    common: dict[str, Any] = {"width": 2, "solver": "em", "steps": 30}
    whole = drawn(guided, 5, 16, cond=kind(5), **common)
    for size in (1, 16, 50):
        parts = drawn(guided, 5, 16, cond=kind(5), batch_size=size, **common)
        torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-12)
        torch.testing.assert_close(parts.log_weights, whole.log_weights, rtol=0, atol=1e-10)
    last = drawn(guided, 2, 16, cond=kind(2), index_offset=3, **common)
    torch.testing.assert_close(last.x, whole.x[3:], rtol=0, atol=1e-12)
    assert not torch.equal(whole.x, drawn(guided, 5, 16, cond=kind(5), seed=1, **common).x)


def test_resampling_copies_states_and_keeps_the_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threshold in (0.0, 1.1):  # never, and at every step
        monkeypatch.setattr("sde_gen.solvers.particles.THRESHOLD", threshold)
        out = drawn(guide(gaussians(), 2.0), 60, 64, "em", 60, cond=kind(60))
        x, weights = pooled(out)
        assert out.log_weights is not None
        found.append(torch.stack((weights @ x[:, 0].square(), torch.logsumexp(out.log_weights.flatten(), 0) - 8.25)))
        assert out.ess is not None and (float(out.ess.mean()) > 63.9) == (threshold > 1)
        assert out.lineages is not None
        if threshold > 1:
            assert float((out.ess - out.lineages).mean()) > 3, "what was copied is one particle of the start"
        else:
            torch.testing.assert_close(out.lineages, out.ess)
    assert float(found[0][0]) == pytest.approx(2 / 3, rel=0.05)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0.05)


def test_strength_one_weighs_all_alike_and_an_interval_stands_for_no_law() -> None:
    out = drawn(guide(mixtures(), 1.0), 3, 8, width=2, steps=10, cond=kind(3))
    assert out.log_weights is not None and float(out.log_weights.abs().max()) == 0 and out.nfe.tolist() == [8 * 12] * 3
    with pytest.raises(ValueError, match=r"no law of guidance in an interval: leave it out, got interval=\(-1.0, 1.0\)"):
        drawn(guide(mixtures(), 3.0, interval=(-1.0, 1.0)), 3, 8, width=2, steps=10, cond=kind(3))


def test_memory_that_does_not_suffice_splits_between_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    guided = guide(mixtures(), 4.0)
    whole = drawn(guided, 5, 16, width=2, steps=8, cond=kind(5))
    predict = type(guided.model).predict

    def small(self: Any, x: Tensor, t: Any, **cond: Tensor) -> Any:
        if len(x) > 100:
            raise torch.OutOfMemoryError("no memory")
        return predict(self, x, t, **cond)

    monkeypatch.setattr(type(guided.model), "predict", small)
    with pytest.warns(UserWarning, match="going on with batches of 48"):
        split = drawn(guided, 5, 16, width=2, steps=8, cond=kind(5))
    torch.testing.assert_close(split.x, whole.x, rtol=0, atol=1e-12)
    torch.testing.assert_close(split.log_weights, whole.log_weights, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"size": 0}, ValueError, "particles must be a whole number of at least 1, got 0"),
        ({"solver": "ddim"}, ValueError, r"reverse SDE \(em, ancestral, reverse_diffusion, dpm_sde\), got 'ddim'"),
        ({"solver": "ode"}, ValueError, "got 'ode'"),
        ({"graph": True}, ValueError, "particles go with neither graph"),
        ({"rule": "apg"}, TypeError, "combination of scores .*, got AdaptiveProjected"),
        ({"model": branches(VE, GaussianData(torch.zeros(1), ONE), GaussianData(torch.zeros(1), ONE))}, TypeError, "got ScoreModel"),
    ],
)
def test_what_particles_cannot_do_is_one_line(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    asked: dict[str, Any] = {"size": 4, "solver": "em", "rule": "cfg", "model": None} | changes
    model = asked.pop("model") or guide(gaussians(), 3.0, rule=asked["rule"])
    del asked["rule"]
    with pytest.raises(error, match=message) as caught:
        drawn(model, 2, asked.pop("size"), steps=3, cond=kind(2), **asked)
    assert "\n" not in str(caught.value)
