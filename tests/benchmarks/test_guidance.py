import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "guidance.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_guidance", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = load()
    benchmark.main(["--quick", "--json", str(tmp_path / "g.json")])
    found = json.loads((tmp_path / "g.json").read_text())
    one = found["law"][0]
    assert one["expected"] == {"law": 0.5, "flow": 0.25, "sde": pytest.approx(0.3875)}
    assert one["solvers"]["em"]["particles"][0] == pytest.approx(0.5, rel=0.4) and one["solvers"]["ode"]["alone"][0] < 0.3
    assert len(found["classifier"]["solvers"]) >= 14 and {"guided", "particles", "ddim"} <= set(found["cost"]["ratios"])
    apart = found["cost"]["difference"]["torch.float64"]
    assert bool(apart) == (len(benchmark.MISSING) < 2) and all(value < 1e-10 for value in apart.values())
    assert "strength 3" in capsys.readouterr().out
