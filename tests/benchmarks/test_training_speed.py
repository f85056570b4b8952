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


def test_ratios_are_to_the_best_peer_and_to_the_best_of_the_same_precision(bench: ModuleType) -> None:
    times = {
        "sde_gen, float32": [2.0, 2.0, 2.0],
        "sde_gen, bfloat16": [1.0, 1.0, 2.0],
        "sde_gen, bfloat16, patch 2": [0.5, 0.5, 0.5],
        "one, float32": [3.0, 5.0, 4.0],
        "one, bfloat16": [6.0, 6.0, 6.0],
        "other, float32": [5.0, 5.0, 5.0],
        "other, bfloat16": [1.5, 1.5, 1.5],
    }
    best, rows = bench.rows_of(times)
    assert best == "other, bfloat16"
    found = {name: (row["ratio"], row["like for like"]["ratio"], row["like for like"]["peer"]) for name, row in rows.items()}
    assert found["sde_gen, float32"] == (0.75, 2.0, "one, float32")
    assert found["sde_gen, bfloat16"] == (1.5, 1.5, "other, bfloat16")
    assert found["sde_gen, bfloat16, patch 2"] == (3.0, 3.0, "other, bfloat16")
    assert rows["sde_gen, float32"]["like for like"]["quartiles"] == [1.75, 2.25]
