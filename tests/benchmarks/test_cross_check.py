"""benchmarks/cross_check.py without peers, and that it tells an order of 2 from one of 3."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("benchmark_cross_check", FOLDER / "cross_check.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def published_3m(denoiser, x, sigmas, second_difference=1.0):
    """DPM-Solver++ 3M as published, lower orders first; its second difference is half the second derivative."""
    history: list[tuple[torch.Tensor, float]] = []
    for t, s in zip(sigmas[:-1].log().neg().tolist(), sigmas[1:].log().neg().tolist(), strict=True):
        h = torch.tensor(s - t, dtype=torch.float64)
        history = [(denoiser(x, float(torch.exp(torch.tensor(-t, dtype=torch.float64)))), t), *history][:3]
        values, places = [value for value, _ in history], [place for _, place in history]
        phi_2 = torch.expm1(-h) / h + 1
        x = torch.exp(-h) * x - torch.expm1(-h) * values[0]
        if len(history) > 1:
            r0 = (places[0] - places[1]) / h
            slope = (values[0] - values[1]) / r0
            if len(history) > 2:
                r1 = (places[1] - places[2]) / h
                bend = slope - (values[1] - values[2]) / r1
                slope = slope + bend * r0 / (r0 + r1)
                x = x - second_difference * (phi_2 / h - 0.5) * bend / (r0 + r1)
            x = x + phi_2 * slope
    return x


def test_the_missing_factor_costs_an_order(bench):
    import peer_samplers  # beside it, on the path that its own import took

    names = bench.ORDERS[:2]
    runs = [lambda *given, factor=factor: published_3m(*given, second_difference=factor) for factor in (1.0, 2.0)]
    found = bench.orders({name: peer_samplers.Method(run) for name, run in zip(names, runs, strict=True)})
    assert found["sde_gen dpm"]["order"] == pytest.approx(3, abs=0.1)
    assert found[names[0]]["order"] < 2.4 and found[names[1]]["order"] == pytest.approx(3, abs=0.1)
    assert found[names[1]]["errors"] == pytest.approx(found["sde_gen dpm"]["errors"], rel=1e-4)


def test_without_peers_it_skips_and_says_why(bench, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench.peer_samplers, "versions", lambda: dict.fromkeys(bench.LIBRARIES))
    target = tmp_path / "cross_check.json"
    result = bench.main(["--json", str(target)])
    printed = capsys.readouterr().out
    assert all("skipped" in row for row in result["differences"]) and list(result["orders"]) == ["sde_gen dpm"]
    assert "k-diffusion is not installed" in printed and "benchmarks/peers.txt" in printed and not target.exists()


def test_the_results_kept_have_no_finding(bench):
    kept = json.loads((FOLDER / "results" / "cross_check.json").read_text(encoding="utf-8"))
    assert len(kept["differences"]) >= 35 and all(row["difference"] <= bench.SAME for row in kept["differences"])
