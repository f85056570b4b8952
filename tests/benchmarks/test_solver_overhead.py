"""The arithmetic of benchmarks/solver_overhead.py and its run without peers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from sde_gen.solvers import SOLVERS, FixedStepSolver, make_solver

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """benchmarks/solver_overhead.py as a module: benchmarks/ is no package, and its files import one another by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("benchmark_solver_overhead", FOLDER / "solver_overhead.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_ours_run_without_peers(bench, tmp_path, capsys):
    out = tmp_path / "solver_overhead.json"
    bench.main(["--cases", "small", "--calls", "9", "17", "--repeats", "1", "--no-peers", "--json", str(out)])
    printed = capsys.readouterr().out
    assert "measured without k-diffusion, azula, diffusers" in printed and "targets met" in printed
    small = json.loads(out.read_text(encoding="utf-8"))["small"]
    assert set(small["ours"]) == {name for name in SOLVERS if isinstance(make_solver(name), FixedStepSolver)} and small["peers"] == {}
    assert small["ours"]["ddim"]["target"] == 0.02 and small["ours"]["em"]["target"] == pytest.approx(0.03 + small["torch.randn"], rel=1e-3)
