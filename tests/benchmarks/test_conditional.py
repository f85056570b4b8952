"""benchmarks/conditional.py, judged by models whose law is exact, or wrong by as much as is known; and its small run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen
from sde_gen.data import Dataset, Normalizer
from sde_gen.data.toys import fine_law, response_law
from sde_gen.exact.mixtures import marginal

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "conditional.py"
VP = sde_gen.make_sde("vp")
OPTIONS = {"solver": "dpm", "steps": 40}


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_conditional", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Response(nn.Module):
    """The exact denoiser of the response, its mean moved and its spread stretched by so much."""

    def __init__(self, normalizer: Normalizer, moved: float, stretched: float) -> None:
        super().__init__()
        self.normalizer, self.moved, self.stretched = normalizer, moved, stretched

    def forward(self, x: Tensor, t: Tensor, dose: Tensor, age: Tensor) -> Tensor:
        mean, std = response_law(dose.double(), age.double())
        std = self.stretched * std
        z, s = self.normalizer.encode(mean[:, None] + self.moved * std[:, None]), std[:, None] / self.normalizer.scale
        alpha, sigma = (value[:, None] for value in marginal(VP, t.double()))
        return (z + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (x.double() - alpha * z)).to(x)


class Fine(nn.Module):
    """The exact denoiser of a fine field, its covariance stretched by so much."""

    def __init__(self, normalizer: Normalizer, stretched: float) -> None:
        super().__init__()
        self.normalizer = normalizer
        values, self.vectors = torch.linalg.eigh(fine_law(torch.zeros(1, 1, 4, 4))[1])
        self.values = stretched * values.clamp_min(0) / float(normalizer.scale.flatten()[0]) ** 2

    def forward(self, x: Tensor, t: Tensor, coarse: Tensor) -> Tensor:
        z = self.normalizer.encode(fine_law(coarse)[0]).flatten(1)
        alpha, sigma = (value[:, None] for value in marginal(VP, t.double()))
        off = (x.double().flatten(1) - alpha * z) @ self.vectors
        return (z + (off * alpha * self.values / (alpha**2 * self.values + sigma**2)) @ self.vectors.T).reshape(x.shape).to(x)


def model(data: Dataset, kind: type[nn.Module], **options: float) -> sde_gen.ScoreModel:
    units = Normalizer.fit(data.train)
    return sde_gen.ScoreModel(kind(units, **options), VP, "data", normalizer=units)


def table(benchmark: ModuleType, moved: float, stretched: float) -> dict[str, Any]:
    data = sde_gen.load_dataset("regression")
    return benchmark.table(model(data, Response, moved=moved, stretched=stretched), data, 300, OPTIONS)


def test_the_exact_response_is_found_exact(benchmark: ModuleType) -> None:
    found = table(benchmark, 0.0, 1.0)
    assert found["mean error"][0] < 0.05 and abs(found["spread"][0] - 1) < 0.02
    assert found["covered, exact law"][0] == pytest.approx(0.9, abs=0.01)
    assert found["band"][0] <= found["covered"] <= found["band"][1] and found["conditions"] == 300
    assert abs(found["divergence"][0]) < 5e-3


def test_a_wrong_response_is_found_as_wrong_as_it_is(benchmark: ModuleType) -> None:
    found = table(benchmark, 0.3, 1.25)
    assert found["mean error"][0] == pytest.approx(0.3 * 1.25, rel=0.06) and found["spread"][0] == pytest.approx(1.25, rel=0.02)
    normal = torch.distributions.Normal(0.0, 1.0)
    high, low = normal.cdf(torch.tensor([1.25 * (1.645 + 0.3), 1.25 * (-1.645 + 0.3)]))
    assert found["covered, exact law"][0] == pytest.approx(float(high - low), abs=0.01)
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.375, 1.25))
    assert found["divergence"][0] == pytest.approx(float(expected), abs=4 * found["divergence"][1])


@pytest.mark.parametrize("stretched", [1.0, 1.2])
def test_the_exact_field_is_found_exact_and_a_wrong_one_as_wrong_as_it_is(benchmark: ModuleType, stretched: float) -> None:
    data = sde_gen.load_dataset("downscale")
    found = benchmark.field(model(data, Fine, stretched=stretched), data, 60, 3, OPTIONS)
    assert found["covariance error"][0] == pytest.approx(stretched - 1, abs=0.01)
    assert found["trace"][0] == pytest.approx(stretched, abs=0.01) and found["mean error"][0] < 0.02
    for share, error in found["variances"].values():
        assert share == pytest.approx(stretched, abs=0.01 + 4 * error)
    assert found["block means"] < 0.01 and 0.03 < found["training fields"] < 0.06


def test_small(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--quick", "--runs", str(tmp_path), "--json", str(tmp_path / "c.json")])
    found = json.loads((tmp_path / "c.json").read_text())
    assert set(found) == {"regression", "downscale"} and found["regression"]["conditions"] == 40
    out = capsys.readouterr().out
    assert "| covariance error |" in out and "| covered | " in out and "(band 0." in out
