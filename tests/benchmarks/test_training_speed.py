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


@pytest.mark.parametrize("train", [True, False])
def test_our_networks_take_their_turn(bench: ModuleType, train: bool) -> None:
    net, call = bench.ours((1, 8, 8), {"width": 8, "multipliers": [1, 2], "attention": [1], "patch": 2})
    bench.spread(net)
    before = [p.detach().clone() for p in net.parameters()]
    assert bench.turn(net, call, True, (1, 8, 8), 2, train) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)) != train
    assert bench.gflop(call, (1, 8, 8)) > 0
