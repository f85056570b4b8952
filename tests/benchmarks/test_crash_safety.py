"""benchmarks/crash_safety.py at small size, and that it sees the faults which it is there to see."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "crash_safety.py"
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def bench():
    """benchmarks/crash_safety.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        spec = importlib.util.spec_from_file_location("benchmark_crash_safety", FILE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_nothing_is_lost_at_small_size(bench, tmp_path, capsys):
    out = tmp_path / "crash.json"
    sizes = ["--kills", "2", "--damaged", "3", "--splits", "1", "--workers", "0", "--repeats", "2"]
    bench.main([*sizes, "--json", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    kills, damage = found["kills"], found["damage"]
    assert (kills["kills"], kills["lost"], kills["unreadable"], kills["redone"]) == (2, 0, 0, 0)
    assert damage["fell back"] + damage["harmless"] == 3 and not damage["unnoticed"] + damage["unreadable"] + damage["no warning"]
    assert [(row["data"], row["splits"], row["different"]) for row in found["resume"]] == [("in memory", 1, {}), ("on disk", 1, {})]
    assert found["repeats"] == {"repeats": 2, "different": 0}
    printed = capsys.readouterr().out
    assert "0 lost, 0 unreadable, 0 intervals redone beyond" in printed and "| train and sample again | 2 | 0 different |" in printed


def test_damage_without_sums_would_be_seen(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("sde_gen.training.store.fault", lambda version: None)
    found = bench.damage(6, tmp_path)
    assert found["unnoticed"] + found["unreadable"] > 0


def test_a_resume_that_forgets_the_optimiser_would_be_seen(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.optim.AdamW.load_state_dict", lambda self, state: None)
    found = bench.resumes(1, (0,), tmp_path)
    assert all("raw.enter.weight" in names or len(names) > 5 for names in found[0]["different"].values()) and found[0]["different"]
