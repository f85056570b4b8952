"""benchmarks/weather.py, judged by fields of the law itself and by fields that are wrong by as much as is known."""

import importlib.util
import sys
from pathlib import Path

import torch

from sde_gen.data import load_dataset
from sde_gen.data.weather import weather_law

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "weather.py"
spec = importlib.util.spec_from_file_location("benchmark_weather", SCRIPT)
assert spec is not None and spec.loader is not None
bench = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = bench
spec.loader.exec_module(bench)


def test_the_law_itself_is_within_its_errors_and_others_are_not() -> None:
    data = load_dataset("weather", seed=3)
    x, held_out = data.train[:400], data.test[:400]
    found = bench.measure(x, held_out)
    off = [row["errors_off"] for part in found["statistics"].values() for row in part.values()]
    assert len(off) == 5 + 5 + 10 + 4 + 4 + 3 and max(map(abs, off)) < 4.5
    mean, stds, _ = weather_law()
    wide = (mean + 1.1 * (x.double() - mean)).float()
    rows = bench.measure(wide, held_out)["statistics"]
    assert all(abs(row["samples"][0] - 1.1) < 4 * row["samples"][1] and row["errors_off"] > 5 for row in rows["std"].values())
    moved = x.clone()
    moved[:, 4] += 0.5 * stds[4].float()
    row = bench.measure(moved, held_out)["statistics"]["mean"]["rain (m/s)"]
    assert abs(row["samples"][0] - 0.5) < 4 * row["samples"][1]
    torn = x.clone()
    torn[:, :, :, 16:] = x.flip(0)[:, :, :, 16:]  # two fields side by side: the ends of the circle do not meet
    rows = bench.measure(torn, held_out)["statistics"]
    assert rows["across the ends"]["1"]["errors_off"] < -5
    changed = x.clone()
    changed[:, ~data.valid] = 1e9
    assert bench.moments(bench.standard(changed)) == bench.moments(bench.standard(x)) and torch.isfinite(x).all()
