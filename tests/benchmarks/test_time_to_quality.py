"""The benchmark's own arithmetic, without trainings and peers."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    spec = importlib.util.spec_from_file_location("time_to_quality", ROOT / "time_to_quality.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_crossing_is_on_the_line_through_logarithms(bench: ModuleType) -> None:
    assert bench.crossing([10.0, 20.0, 40.0], [8.0, 4.0, 1.0], 2.0) == (40.0, pytest.approx(30.0))
    assert bench.crossing([10.0, 20.0], [1.0, 1.0], 2.0) == (10.0, 10.0)
    assert bench.crossing([10.0, 20.0], [1.0, 3.0], 2.0) == (None, None)
    assert bench.crossing([10.0, 20.0, 40.0], [1.0, 8.0, 1.0], 2.0)[0] == 40.0, "from there on all are below"


def test_the_answer_is_that_of_the_mean_over_seeds_and_each_alone(bench: ModuleType) -> None:
    distances = {(20.0, 0): 6.0, (20.0, 1): 2.0, (40.0, 0): 3.0, (40.0, 1): 1.0}
    rows = [{"budget": budget, "seed": seed, "value": value} for (budget, seed), value in distances.items()]
    found = bench.answer(rows, 3.0)
    assert found["reached_after"] == 40.0 and found["target"] == 3.0
    assert found["crossing"] == pytest.approx(20 + 20 * math.log(4 / 3) / math.log(2))
    assert found["crossing_of_each_seed"] == [pytest.approx(40.0), 20.0]
    assert bench.answer(rows, 0.5) == {"target": 0.5, "reached_after": None, "crossing": None, "crossing_of_each_seed": [None, None]}


def test_settings_are_read_as_the_command_reads_them(bench: ModuleType) -> None:
    layers = bench.settings_of(["training.optimizer=muon", "training.lr=1e-3"])
    config = bench.resolve(*layers, {"training": {"seed": 3}})
    assert (config.training.optimizer, config.training.lr, config.training.seed, config.training.batch) == ("muon", 1e-3, 3, 64)
