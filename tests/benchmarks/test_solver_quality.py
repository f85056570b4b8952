"""The arithmetic of benchmarks/solver_quality.py, and both of its parts on toys."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from sde_gen import VPSDE
from sde_gen.exact import mixtures as closed_forms
from sde_gen.solvers import SOLVERS

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """benchmarks/solver_quality.py as a module: benchmarks/ is no package, and its files import one another by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("benchmark_solver_quality", FOLDER / "solver_quality.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


class Features:
    """Items are their own features; the class is the sign of the first."""

    classes = 2

    def __init__(self):
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight = nn.Parameter(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), requires_grad=False)

    def features(self, x):
        return x.float()


def two_modes(count: int, right: float, seed: int) -> torch.Tensor:
    """Two modes at -4 and 4, the fraction `right` of the items in the right one on average."""
    generator = torch.Generator().manual_seed(seed)
    side = (torch.rand(count, generator=generator) < right).double() * 8 - 4
    return torch.randn(count, 2, dtype=torch.float64, generator=generator) + torch.stack((side, torch.zeros(count)), dim=1)


@pytest.fixture(scope="module")
def judge(bench):
    return bench.Judge.of(Features(), two_modes(1000, 0.5, 0))


def test_steps_are_the_most_that_the_calls_allow(bench):
    sde = VPSDE()
    found = {name: bench.steps_for(name, sde, calls) for name, calls in (("angle", 20), ("pc", 1000), ("heun", 20))}
    assert found == {"angle": 19, "pc": 499, "heun": 9}
    assert bench.steps_for("restart", sde, 50) == 14  # 2 (steps + 2 rounds of 5) + 1 calls
    assert bench.steps_for("restart", sde, 20) == 0


def test_the_balanced_distance_does_not_see_the_class_fractions(judge):
    skewed, moved = two_modes(1000, 0.25, 3), two_modes(1000, 0.25, 3) + torch.tensor([0.0, 1.0])
    assert judge.distance(skewed, balanced=False) > 3
    assert judge.distance(skewed, balanced=True) < 0.05
    assert judge.distance(moved, balanced=True) == pytest.approx(1.0, abs=0.25)


def test_mixtures_with_every_solver(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "MIXTURE_CALLS", (25,))
    monkeypatch.setattr(bench, "TOLERANCES", {"ode": ((0.1, 0.1),), "adaptive_sde": ((0.5, 0.2),)})
    out = tmp_path / "solver_quality.json"
    bench.main(["--part", "mixtures", "--dimensions", "2", "--samples", "100", "--json", str(out)])
    part = json.loads(out.read_text(encoding="utf-8"))["mixtures"]["2-D, seed 0"]
    assert set(part["solvers"]) == set(SOLVERS)
    floor = part["floor"]
    for name, rows in part["solvers"].items():
        (row,) = rows
        assert row["failed"] == 0 and row["std_error"] > 0 and 9 < row["calls"] < 100, name
        assert row["budget"] is None or row["calls"] <= row["budget"]
    assert part["solvers"]["angle"][0]["value"] < floor["value"] + 4 * floor["std"]


def test_the_target_and_the_table_on_a_gaussian(bench, judge, tmp_path, monkeypatch):
    for name, value in {"YARDSTICK_CALLS": 41, "CALLS": 8, "SPLITS": 5}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench.sde_gen, "fit_grid", partial(bench.sde_gen.fit_grid, samples=6, batch_size=2))
    data = closed_forms.GaussianData.correlated()
    draw = bench.Sampler(data.model(VPSDE()), (2,), tmp_path)
    close = bench.Judge.of(Features(), data.sample(1000, seed=1))
    found = bench.target(draw, close, ours=600, yardstick=300, iterations=1)
    assert [row["calls"] for row in found.values()] == [41, 8, 8]
    assert len(found["angle at 8"]["frechet"]["sets"]) == 2 and found["angle at 8"]["frechet"]["value"] < 0.05
    assert {"value", "std_error", "verdict"} == set(found["angle at 8, fitted"]["balanced"]["ratio"])
    assert draw.reused == 0
    x, calls = draw(600, "angle", {"steps": 7})
    assert draw.reused == 600 and calls == 8
    torch.testing.assert_close(x, draw(600, "angle", {"steps": 7}, fitted=True)[0])  # those are never kept: drawn anew
    assert draw.reused == 600
    table = bench.digits_table(draw, close, 50, (5,))
    assert set(table) == set(SOLVERS) and table["restart"] == []
    assert table["angle"][0]["balanced"]["value"] < table["heun"][0]["balanced"]["value"]
