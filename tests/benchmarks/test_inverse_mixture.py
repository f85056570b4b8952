import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "inverse_mixture.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_inverse_mixture", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cells", "8/1", "--problems", "2", "--count", "200", "--steps", "30", "--methods", "twisted", "mmps", "pigdm", "oracle"]
    load().main([*options, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    rows = found["cells"][0]["methods"]
    assert rows["twisted"]["distance"] < 2 * rows["floor"]["distance"] < rows["prior"]["distance"]
    assert rows["oracle"]["distance"] < 2 * rows["floor"]["distance"] and rows["oracle"]["nfe"] == 0
    assert rows["twisted"]["evidence_rms"] < 0.3 and set(found["scores"][0]["relative squared error, median and its error"]) == {
        "mmps",
        "pigdm",
    }
    assert "d = 8, d_y = 1" in capsys.readouterr().out
