"""The arithmetic of benchmarks/likelihood_cost.py on models whose answers are known, and its run without a network or peers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from sde_gen import VPSDE, ScoreModel, log_likelihood
from sde_gen.data import Normalizer
from sde_gen.exact.mixtures import GaussianData, MixtureData
from sde_gen.likelihood.divergence import DIVERGENCES

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """benchmarks/likelihood_cost.py as a module: benchmarks/ is no package, and its files import one another by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("benchmark_likelihood_cost", FOLDER / "likelihood_cost.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def pictures() -> tuple[ScoreModel, torch.Tensor]:
    """A mixture over (1, 2, 2) in place of a trained network, with a normalizer, and data of it in float32."""
    means = torch.tensor([[1.0, 0.5, -0.5, 0.8], [-1.0, -0.3, 0.6, -0.9]], dtype=torch.float64).reshape(2, 1, 2, 2)
    basis = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    data = MixtureData(torch.ones(2), means, 0.05 * torch.eye(4, dtype=torch.float64) + 0.05 * basis @ basis.mT)
    model, normalizer = data.model(VPSDE()), Normalizer.fit(8 + 4 * data.sample(500, 1), "standard")
    settings = model.settings() | {"prior": "sde"}
    return ScoreModel(model.network, model.sde, **settings, moments=model.moments, normalizer=normalizer), (
        8 + 4 * data.sample(4, 2)
    ).float()


def test_the_method_of_score_sde_gives_the_density_of_its_state(bench):
    """With the prior of the data's moments it is exact for one Gaussian, x being the state at 1e-5; with the SDE's own it is off."""
    data, sde = GaussianData.correlated(), VPSDE()
    x = data.sample(5, 0)
    answer = bench.score_sde(data.model(sde, "sde"), x, 1e-7)
    exact = data.log_prob(x, sde, bench.EPS)
    torch.testing.assert_close(answer.matched, exact, rtol=0, atol=2e-6)
    assert 1e-5 < float((answer.log_prob - exact).abs().max()) < 0.1
    one_pass = bench.score_sde(data.model(sde, "sde"), x, 1e-7, method="DOP853")
    torch.testing.assert_close(one_pass.log_prob, answer.log_prob, rtol=0, atol=2e-6)


def test_references_have_the_vectors_of_the_timed_runs(bench, monkeypatch):
    """Both methods, in float32 and at moderate tolerances, lie near their references: other vectors would move them by far more."""
    model, x = pictures()
    monkeypatch.setattr(bench, "REFERENCE", 1e-6)
    vectors = bench.probes_of(4, 4, torch.float32)
    reference = bench.converged_ours(model, x, vectors)
    tight = {"probes": 1, "rtol": 1e-5, "atol": 1e-5}
    assert float((log_likelihood(model, x, "hutchinson", **tight).log_prob - reference).abs().max()) < 5e-3
    assert float((log_likelihood(model, x, "hutchinson", **tight, seed=1).log_prob - reference).abs().max()) > 0.05
    z, v = model.normalizer.encode(x), vectors.reshape(x.shape)
    theirs = bench.score_sde(model, z, 1e-5, v, model.sde.t_min).log_prob + model.normalizer.log_det(x)
    # They differ by the Gaussian part's own noise, the SDE's prior being the same, and by x scored as the state at t_min.
    torch.testing.assert_close(theirs, bench.plain_hutchinson(model, reference, v), rtol=0, atol=5e-3)
    assert float((theirs - reference).abs().max()) > 0.05
    assert "given" not in DIVERGENCES


def test_all_parts_run_and_are_kept(bench, tmp_path, monkeypatch, capsys):
    model, x = pictures()
    monkeypatch.setattr(bench, "digits", lambda run, count: (model, x))
    monkeypatch.setattr(bench, "TOLERANCES", (1e-3, bench.DEFAULT))
    monkeypatch.setattr(bench, "DIM", 4)
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "likelihood_cost.json"
    bench.main(["--part", "mixture", "--quick", "--json", str(out)])
    assert "measured without k-diffusion" in capsys.readouterr().out
    bench.main(["--part", "digits", "trace", "--quick", "--json", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    mixture, digits, trace = (found[part] for part in bench.PARTS)
    ours = mixture["ours"]
    assert ours[f"{bench.DEFAULT:g}"]["mean"] < 0.2 * ours["0.001"]["mean"] < 1e-2
    assert ours[f"{bench.DEFAULT:g}"]["evaluations"] > ours["0.001"]["evaluations"]
    assert mixture["peers"]["score_sde_pytorch"]["0.001"]["evaluations"] > 30 and mixture["conditions"]["threads"] >= 1
    for table in digits["methods"].values():
        assert all(row["error"] < 0.1 and row["seconds"] > 0 for row in table.values())
    assert digits["methods"]["sde_gen"]["0.0001"]["error"] < digits["methods"]["sde_gen"]["0.01"]["error"]
    rows = trace["estimators"]
    assert rows["resampled, rademacher"]["ratio"] == 1 < rows["hutchinson alone, gaussian"]["ratio"]
    low, high = rows["hutchinson, rademacher"]["interval"]
    assert low <= rows["hutchinson, rademacher"]["ratio"] <= high


def test_time_at_equal_total_error(bench, capsys):
    """Theirs errs by 3 nats of vectors and 4 of steps: 5. Ours by 4 of vectors at 9 evaluations, and 6 at 4."""
    spreads = {"hutchinson alone, rademacher": {"spread": 3.0}, "resampled, rademacher": {"spread": 4.0, "evaluations": 9.0}}

    def row(nats, evaluations, seconds):
        return {"error": nats / 64, "evaluations": evaluations, "seconds": seconds}

    ours = {"0.1": row(0.0, 4.0, 1.0), "0.01": row(3.0, 9.0, 2.0), "0.001": row(0.0, 9.0, 5.0)}
    methods = {"sde_gen": ours, "score_sde_pytorch": {"1e-05": row(4.0, 99.0, 20.0), "1e-09": row(0.0, 999.0, 200.0)}}
    found = bench.total_errors({"digits": {"methods": methods}, "trace": {"estimators": spreads}})
    totals = {name: value["total"] for name, value in found.items()}
    assert totals["sde_gen, 0.1"] == pytest.approx(6) and totals["sde_gen, 0.01"] == totals["score_sde_pytorch, 1e-05"] == pytest.approx(5)
    assert found["score_sde_pytorch, 1e-05"]["ratio"] == pytest.approx(0.1) and found["score_sde_pytorch, 1e-09"]["ratio"] is None
    assert "| 0.100 |" in capsys.readouterr().out and bench.total_errors({"digits": {}}) == {}
