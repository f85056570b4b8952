"""The arithmetic of benchmarks/solver_error.py and its run without peers."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """benchmarks/solver_error.py as a module: benchmarks/ is no package, and its files import one another by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("benchmark_solver_error", FOLDER / "solver_error.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_the_reference_is_the_flow(bench):
    """One Gaussian has its flow in closed form: each coordinate keeps its quantile."""
    problems = sys.modules[bench.network_problem.__module__]
    std, mean = 0.3, 0.5
    x = torch.linspace(-90.0, 90.0, 7, dtype=torch.float64)[:, None]

    def denoiser(y, sigma):
        return mean + std**2 / (std**2 + sigma**2) * (y - mean)

    def solve(steps):
        end = problems.flow(denoiser, x, 80.0, 1e-4, steps)
        return (end + denoiser(end, 1e-4)) / 2

    exact = mean + (x - mean) * std / math.sqrt(std**2 + 80.0**2)
    torch.testing.assert_close(problems.converged(solve, 100, 1e-9), exact, rtol=0, atol=1e-8)
    with pytest.raises(RuntimeError, match="no reference"):
        problems.converged(solve, 1, 1e-300)


def test_a_peer_gets_the_steps_that_its_calls_allow(bench):
    """An Euler loop in the place of a library's: n steps to sigma_min, or n - 1 and one call to 0; two calls a step halve it."""
    seen = []

    def run(denoiser, x, sigmas):
        seen.append(len(sigmas) - 1)
        for here, there in itertools.pairwise(sigmas):
            x = x + (there - here) / here * (x - denoiser(x, float(here)))
        return x

    peers, x = bench.peer_samplers, torch.full((1, 1), 80.0, dtype=torch.float64)

    def drive(method, end, calls):
        return peers.drive(method, peers.karras, end, 80.0, lambda y, sigma: y / (1 + sigma**2), x, calls, 0.01)

    raw, zero = drive(peers.Method(run), "raw", 200), drive(peers.Method(run), "zero", 200)
    native = drive(peers.Method(run, to_zero=True), "zero", 200)
    assert seen == [200, 199, 200]
    torch.testing.assert_close(native, zero)
    assert abs(float(raw) - 80 / math.sqrt(1 + 80**2)) < 0.05
    assert drive(peers.Method(run, calls=2), "raw", 9) is not None and seen[-1] == 4
    assert drive(peers.Method(run, extra=3, least=2), "zero", 5) is None


def test_ours_run_without_peers(bench, tmp_path, monkeypatch, capsys):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(bench.peer_samplers, "version", absent)
    monkeypatch.setattr("sde_gen.sampling.fitting.EVALUATIONS_FREE", 60)
    out = tmp_path / "solver_error.json"
    arguments = ["--families", "2-D", "--run", "--budgets", "5", "20", "--seeds", "0", "--samples", "4", "--json", str(out)]
    result = bench.main(arguments)
    assert "measured without k-diffusion, azula, diffusers" in capsys.readouterr().out
    rows = json.loads(out.read_text(encoding="utf-8"))["families"]["2-D"]
    assert set(rows) == {"5", "20"} and rows["5"]["peers"] == {}
    assert rows["20"]["out of the box"]["geometric"] < rows["5"]["out of the box"]["geometric"]
    assert {"ddim", "heun", "ab", "dpm", "unipc"} <= set(rows["20"]["others"])
    assert result["versions"]["azula"] is None
