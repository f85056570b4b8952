"""Gaps of a table against exact conditional laws: the laws themselves, and what the benchmark makes of samples."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import sde_gen
from sde_gen.data import Normalizer
from sde_gen.exact.mixtures import GaussianData
from sde_gen.models.moments import Moments

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "restoration_table.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_restoration_table", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


benchmark = load()
ROWS = sde_gen.load_dataset("table").test


def test_conditionals_are_those_of_the_table() -> None:
    """Truths of the data set are uniform among exact draws of what they lack, whatever that is; scrambled ones are not."""
    assert ROWS is not None
    y = benchmark.gaps(ROWS[:240], 3)
    assert torch.isnan(y).sum(1).tolist() == [1, 2, 3] * 80
    scale = ROWS.double().std(0)
    draws = benchmark.conditional(y, 24, 1)
    known = ~torch.isnan(y)[:, None].expand(draws.shape)
    assert torch.equal(draws[known], y[:, None].expand(draws.shape)[known])
    exact = benchmark.conditional(y, 500, 2).mean(1)
    found = benchmark.judged(ROWS[:240], y, benchmark.Filled(draws, None, draws.mean(1)), exact, scale, 0)
    assert found["ranks_p"] > 0.02
    for name in (*benchmark.COLUMNS, "all"):
        part = found[name]
        assert part["band"][0] <= part["coverage"] <= part["band"][1], name
        assert part["ratio"] == pytest.approx(1.0, abs=3 * part["ratio_error"] + 0.03)
        assert part["error"] < 0.97, "a column's own spread is 1"
    others = draws.roll(1, 0)
    wrong = benchmark.judged(ROWS[:240], y, benchmark.Filled(others, None, others.mean(1)), exact, scale, 0)
    assert wrong["all"]["ratio"] > 1.3
    narrow = draws.mean(1, keepdim=True) + 0.6 * (draws - draws.mean(1, keepdim=True))
    assert benchmark.judged(ROWS[:240], y, benchmark.Filled(narrow, None, narrow.mean(1)), exact, scale, 0)["ranks_p"] < 1e-3


def test_an_exact_network_fills_a_table_as_its_conditional_law_does() -> None:
    """Three of the columns, with the logarithm of income, are jointly normal: the default method's error and coverage are the law's."""
    sde = sde_gen.make_sde("vp")
    data = GaussianData(torch.zeros(3), benchmark.CORRELATIONS)
    units = Normalizer(torch.tensor([170.0, 70.0, 8.0]), torch.tensor([10.0, 12.0, 0.6]))
    model = sde_gen.ScoreModel(
        data.score(sde), sde, "score", normalizer=units, prior="matched", moments=Moments(data.mean, covariance=data.covariance)
    )
    truths = units.decode(data.sample(120, 1))
    y = benchmark.gaps(truths, 0)
    args = argparse.Namespace(batch=60, steps=40, seed=0, samples=32)
    found = benchmark.filled(model, y, "twisted", args)
    means, spreads = [], []
    for row in units.encode(y):
        known = ~torch.isnan(row)
        mean, covariance = benchmark._normal(row, known)
        means.append(mean)
        spreads.append(covariance.diagonal().sqrt())
    exact = units.decode(torch.stack(means))
    hidden = torch.isnan(y)
    off = ((found.means - exact) / (units.scale * torch.stack(spreads)))[hidden]
    assert 32**-0.5 * 0.8 < float(off.square().mean().sqrt()) < 10**-0.5 * 1.1  # of 32 particles more than ten count at 40 steps
    ours, law = ((((value - truths) / units.scale)[hidden]).square().mean().sqrt() for value in (found.means, exact))
    assert float(ours / law) == pytest.approx(1.0, abs=0.1)
    ranks = benchmark.randomised_ranks(truths, found.samples, found.log_weights)
    inside = ((2 * ranks - 1).abs() <= 0.9)[hidden].double().mean()
    assert 0.83 < float(inside) < 0.97


def test_small(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the Gaussian of the table's moments for a network."""
    dataset = sde_gen.load_dataset("table")
    units = Normalizer.fit(dataset.train)
    covariance = torch.cov(units.encode(dataset.train).double().T)
    sde = sde_gen.make_sde("vp")
    model = sde_gen.ScoreModel(GaussianData(torch.zeros(4), covariance).score(sde), sde, "score", normalizer=units)
    monkeypatch.setattr(benchmark, "open_run", lambda *asked: SimpleNamespace(data=dataset, model=model))
    asked = ["--rows", "12", "--samples", "4", "--steps", "3", "--methods", "ddnm", "--run", str(tmp_path / "none")]
    benchmark.main([*asked, "--json", str(tmp_path / "r.json")])
    found = json.loads((tmp_path / "r.json").read_text())
    assert set(found["truths"]) == {"held-out rows", "truths from the network"}
    held, drawn = found["truths"]["held-out rows"], found["truths"]["truths from the network"]
    assert set(held) == {"exact conditional", "ddnm"} and held["ddnm"]["calls"] == 4 and "exact_error" not in drawn["ddnm"]["all"]
    assert "| exact conditional | income |" in capsys.readouterr().out
