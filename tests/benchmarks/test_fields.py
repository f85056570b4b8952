"""benchmarks/fields.py, judged by data of the law itself and by data that are wrong by as much as is known."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import sde_gen
from sde_gen.data import load_dataset
from sde_gen.data.toy_measurements import chirp_spectrogram, volume_spectrum
from sde_gen.data.weather import weather_law
from sde_gen.training import build_model

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fields.py"
spec = importlib.util.spec_from_file_location("benchmark_fields", SCRIPT)
assert spec is not None and spec.loader is not None
bench = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = bench
spec.loader.exec_module(bench)


def test_the_law_itself_is_within_its_errors_and_others_are_not() -> None:
    data = load_dataset("weather", seed=3)
    x, held_out = data.train[:400], data.test[:400]
    found = bench.measure_weather(x, held_out)
    off = [row["errors_off"] for part in found["statistics"].values() for row in part.values()]
    assert len(off) == 5 + 5 + 10 + 4 + 4 + 3 and max(map(abs, off)) < 4.5
    mean, stds, _ = weather_law()
    wide = (mean + 1.1 * (x.double() - mean)).float()
    rows = bench.measure_weather(wide, held_out)["statistics"]
    assert all(abs(row["samples"][0] - 1.1) < 4 * row["samples"][1] and row["errors_off"] > 5 for row in rows["std"].values())
    moved = x.clone()
    moved[:, 4] += 0.5 * stds[4].float()
    row = bench.measure_weather(moved, held_out)["statistics"]["mean"]["rain (m/s)"]
    assert abs(row["samples"][0] - 0.5) < 4 * row["samples"][1]
    torn = x.clone()
    torn[:, :, :, 16:] = x.flip(0)[:, :, :, 16:]  # two fields side by side: the ends of the circle do not meet
    rows = bench.measure_weather(torn, held_out)["statistics"]
    assert rows["across the ends"]["1"]["errors_off"] < -5
    changed = x.clone()
    changed[:, ~data.valid] = 1e9
    assert bench.moments(bench.standard(changed)) == bench.moments(bench.standard(x)) and torch.isfinite(x).all()


def test_volumes_of_the_law_are_within_their_errors_and_rough_ones_are_not() -> None:
    data = load_dataset("volumes", seed=3)
    assert data.test is not None
    x, held_out = data.train[:200], data.test
    rows = bench.measure_volumes(x, held_out)["statistics"]
    off = [row["errors_off"] for part in rows.values() for row in part.values()]
    assert len(off) == 1 + 11 + 3 and max(map(abs, off)) < 4.5
    noisy = x + 30 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    found = bench.measure_volumes(noisy, held_out)["statistics"]
    value, error = found["std"][""]["samples"]
    assert abs(value - math.sqrt(1 + 0.2**2)) < 4 * error
    high = volume_spectrum()[bench._shells() == 10] / 150**2
    value, error = found["spectrum"]["10"]["samples"]
    assert abs(value - float((1 + 0.2**2 / high).mean())) < 5 * error and found["spectrum"]["10"]["errors_off"] > 10
    mixed = x.flatten(2)[..., torch.randperm(12**3, generator=torch.Generator().manual_seed(1))].reshape(x.shape)
    found = bench.measure_volumes(mixed, held_out)["statistics"]
    assert abs(found["std"][""]["errors_off"]) < 4.5 and found["neighbours"]["1"]["errors_off"] < -20


def test_chirps_are_found_in_noise_and_others_are_no_chirps() -> None:
    data = load_dataset("spectrograms", seed=3)
    x = data.train[:10]
    shares, off = bench.nearest_chirps(x)
    assert float(off.max()) < 1e-3
    again = chirp_spectrogram(12 + 40 * shares[:, 0], 12 + 40 * shares[:, 1], 25 * shares[:, 2])
    assert float((again - x).abs().max()) < 0.01
    noisy = x + 2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    near, off = bench.nearest_chirps(noisy)
    assert float((near - shares).abs().max()) < 0.01 and float((off - 2).abs().max()) < 0.1
    rows = bench.measure_spectrograms(x, x.flip(0))["statistics"]
    assert max(abs(row["errors_off"]) for kind in ("mean", "std", "correlation") for row in rows[kind].values()) < 4
    two = torch.maximum(x, x.flip(0))  # two chirps in one spectrogram
    rows = bench.measure_spectrograms(two, x)["statistics"]["misfit"]
    assert rows["dB"]["samples"][0] > 5 and rows["below 3 dB"]["samples"][0] < 0.2 and rows["dB"]["held_out"][0] < 1e-3


@pytest.mark.parametrize("name", ["volumes"])
def test_the_law_itself_loses_nothing_and_another_one_what_it_must(name: str) -> None:
    data = load_dataset(name)
    assert data.test is not None
    model = build_model(data.train[:500], network="mlp", network_options={"width": 4, "depth": 1}, mask=data.valid)
    found = bench.gaussian_law(name, model)
    assert found is not None
    valid, denoise = found

    class Known(torch.nn.Module):
        factor = 1.0

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            alpha, sigma = (float(value) for value in model.sde.marginal(t[0].double()))
            return torch.where(valid, self.factor * denoise(x.double(), alpha, sigma), 0.0).to(x.dtype)

    exact = sde_gen.ScoreModel(Known(), model.sde, prediction="data", normalizer=model.normalizer, mask=data.valid)
    right = bench.excess(name, exact, data.test)
    assert right is not None and right["nats"] < 1e-4
    exact.network.factor = 0.9  # errs by a tenth of the denoised square, which has the variance of the data where the noise is small
    wrong = bench.excess(name, exact, data.test)
    assert wrong is not None
    first, last = (row["beyond"] for row in (wrong["levels"][0], wrong["levels"][-1]))
    z = model.normalizer.encode(data.test)[valid.expand(data.test.shape)]
    assert last == pytest.approx(0.01 * float(z.square().mean()), rel=0.1) and first < last and wrong["nats"] > 1
    noises = [row["noise"] for row in wrong["levels"]]
    assert wrong["levels"][7]["law"] == right["levels"][7]["law"] and noises == sorted(noises, reverse=True)


@pytest.mark.parametrize("name", ["volumes"])  # a network of spectrograms takes twenty seconds to be made and asked
def test_a_little_training_is_measured(name: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text('{"another": {"samples": 3}}')
    bench.main(["--quick", "--only", name, "--run", str(tmp_path / "run"), "--json", str(file)])
    found = json.loads(file.read_text())
    assert found["another"] == {"samples": 3} and found[name]["samples"] == found[name]["held_out"] == 20
    assert found[name]["cpu_seconds"] is not None and found[name]["training"] == "4 steps of 8"
