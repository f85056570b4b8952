"""benchmarks/few_steps.py: the peer's pieces against closed forms, and what the table says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import sde_gen
from sde_gen.exact.mixtures import GaussianData
from sde_gen.networks import make_network

FILE = Path(__file__).parents[2] / "benchmarks" / "few_steps.py"
VP = sde_gen.make_sde("vp")
DATA = GaussianData(torch.tensor([0.4, -1.0]), torch.tensor([[0.5, 0.1], [0.1, 0.2]]))
UNITS = sde_gen.Normalizer(torch.tensor([3.0, 5.0]), torch.tensor([0.5, 2.0]))


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_few_steps", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def times(value: float, count: int = 6) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def test_the_teachers_step_is_the_flow_to_second_order(bench: ModuleType) -> None:
    model, x = DATA.model(VP), torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert model.moments is not None
    errors = []
    for s in (0.4, 0.45):
        exact = model.moments.flow(x, *VP.marginal(torch.tensor([0.5, s], dtype=torch.float64)))
        errors.append(float((bench.heun(model, x, times(0.5), times(s)) - exact).abs().max()))
    assert errors[0] < 0.02 and 5 < errors[0] / errors[1] < 12, "third order in the step, of one step"


def test_the_peer_ends_in_its_own_state_and_learns_where_its_samples_belong(bench: ModuleType) -> None:
    torch.manual_seed(0)
    network = make_network("mlp", (2,), width=16, depth=1)
    model = sde_gen.ScoreModel(network, VP, "edm", "half_log_snr", data_std=0.7, normalizer=UNITS).eval().requires_grad_(False)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    student = bench.Consistency(model, network)
    alpha = float(VP.marginal(times(VP.t_min, 1))[0])
    torch.testing.assert_close(student(x, times(VP.t_min)), x / alpha)
    assert not torch.allclose(student(x, times(0.5)), x / float(VP.marginal(times(0.5, 1))[0]), atol=0.1)
    data = UNITS.decode(DATA.sample(500, seed=1).float())
    for teacher in (True, False):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        peer = bench.consistency(model, data, 1e-3, teacher, seconds=0.1)
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items()), "the model stays as it was"
        for several in ([VP.t_max], [VP.t_max, 0.4, 0.2]):
            found = peer.sample(50, (2,), several, seed=0)
            assert found.shape == (50, 2) and torch.isfinite(found).all()
            assert (found.mean(0) - UNITS.decode(torch.zeros(2))).abs().max() < 4, "in the data's units"


def row(sampler: str, calls: int, frechet: float, **more: Any) -> dict[str, Any]:
    return {"sampler": sampler, "calls": calls, "frechet": frechet, "std_error": 0.4, "from_converged": 0.1} | more


def test_the_table_takes_the_peers_best_and_says_what_is_met(bench: ModuleType) -> None:
    rows = [row("converged flow", bench.CONVERGED, 1.2), row("calibrated solver", 5, 3.0), row("flow map", 1, 6.0)]
    rows += [row("flow map", 2, 2.1), row("flow map", 4, 1.6)]
    rows += [row("consistency distillation", 2, 9.0, lr=1e-3), row("consistency training", 2, 7.0, lr=2e-3)]
    result = {"samples": 10, "budget": 5.0, "real": {"frechet": 0.2, "std_error": 0.1}, "rows": rows}
    said = bench.lines(result)
    assert "| consistency training, lr 0.002 | 2 | 7.00 +- 0.40 | 6.80 | 0.100 |" in said
    assert not any("distillation" in line for line in said)
    assert said[-2].startswith("4 calls: +0.40") and said[-2].endswith("met")
    assert said[-1] == "2 calls: 1.90 times the converged flow's excess (2): met"
    rows[3]["frechet"], rows[4]["frechet"] = 2.3, 1.9
    assert all(line.endswith("missed") for line in bench.lines(result)[-2:])


def test_a_small_run(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = sde_gen.load_dataset("digits")
    model = sde_gen.training.build_model(data.train, network="mlp", network_options={"width": 8, "depth": 1}).eval()
    sde_gen.save(model, tmp_path / "run" / "checkpoint")
    monkeypatch.setattr(bench, "cached_features", lambda data, directory: sde_gen.metrics.FeatureNet(data.shape, data.classes).eval())
    quick = ["--samples", "40", "--trajectories", "16", "--train-steps", "2", "--peer-lr", "1e-3", "--solver-calls", "3"]
    monkeypatch.setattr(sys, "argv", ["few_steps.py", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "few.json"), *quick])
    bench.main()
    out = capsys.readouterr().out
    assert "| flow map | 4 |" in out and "| calibrated solver | 3 |" in out and "calls: " in out
    assert (tmp_path / "few.json").is_file()
