"""The benchmark's own arithmetic; the peers are not installed here."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    spec = importlib.util.spec_from_file_location("training_speed", ROOT / "training_speed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_are_over_the_best_peer_of_the_same_round(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Linear(1, 1)

    def call(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x

    made = {"sde_gen, float32": (net, call, False), "slow": (net, call, False), "fast": (net, call, True)}
    took = {False: iter([1.0, 8.0, 2.0, 20.0]), True: iter([4.0, 5.0])}
    monkeypatch.setattr(bench, "contenders", lambda shape: made)
    monkeypatch.setattr(bench, "turn", lambda net, call, half, *rest: next(took[half]))
    found = bench.measure((1, 8, 8), 16, 2, True)
    assert found["best peer"] == "fast"
    row = found["rows"]["sde_gen, float32"]
    assert row["ratio"] == pytest.approx((4.0 / 1.0 + 5.0 / 2.0) / 2) and row["images_a_second"] == pytest.approx(16 / 1.5)


@pytest.mark.parametrize("train", [True, False])
def test_our_networks_take_their_turn(bench: ModuleType, train: bool) -> None:
    net, call = bench.ours((1, 8, 8), {"width": 8, "multipliers": [1, 2], "attention": [1], "patch": 2})
    bench.spread(net)
    before = [p.detach().clone() for p in net.parameters()]
    assert bench.turn(net, call, True, (1, 8, 8), 2, train) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)) != train
    assert bench.gflop(call, (1, 8, 8)) > 0
