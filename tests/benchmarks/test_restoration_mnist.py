"""The restoration benchmark of MNIST on random images of its form: what it counts, and that it runs."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

import sde_gen
from sde_gen.data import Normalizer
from sde_gen.exact.mixtures import GaussianData

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "restoration_mnist.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_restoration_mnist", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


benchmark = load()


def brightest(x: Tensor) -> Tensor:
    """A classifier of which fifth of the rows is the brightest."""
    return x.flatten(1)[:, :780].unflatten(1, (5, -1)).mean(2)


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 40 + 30 * torch.randn(count, 1, 28, 28, generator=generator)


def test_small(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = images(50, 0), images(30, 1)
    dataset = sde_gen.Dataset("mnist", train, test, brightest(train).argmax(1), brightest(test).argmax(1), classes=5)
    sde = sde_gen.make_sde("vp")
    units = Normalizer(torch.tensor([[[40.0]]]), torch.tensor([[[30.0]]]))
    model = sde_gen.ScoreModel(lambda x, c: x * sde.marginal(c)[0].reshape(-1, 1, 1, 1), sde, "data", normalizer=units)  # exact
    monkeypatch.setattr(benchmark, "open_run", lambda *asked: SimpleNamespace(data=dataset, model=model))
    monkeypatch.setattr(benchmark.metrics, "cached_features", lambda *asked: brightest)
    asked = ["--items", "6", "--samples", "4", "--batch", "4", "--run", str(tmp_path), "--json", str(tmp_path / "r.json")]
    monkeypatch.setattr(benchmark, "config_of_run", lambda run: None)
    benchmark.main([*asked, "--ways", "pigdm", "mmps, 3 directions"])
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["true"] == 1.0 and set(found["measured"]) == {"box of 12 x 12 hidden", "blocks of 4 x 4"}
    for rows in found["measured"].values():
        assert list(rows) == ["pigdm", "mmps, 3 directions"]
        for row in rows.values():
            assert row["calls"] == 26 * 4 and 0 <= row["digits"][0] <= 1 and row["seconds"] > 0
    # nothing is known of a pixel in the box but that it is N(40, 30^2)
    box = found["measured"]["box of 12 x 12 hidden"]["pigdm"]
    assert box["error"][0] == pytest.approx(30 * (1 + 1 / 4) ** 0.5, rel=0.05) and box["coverage"][0] == pytest.approx(0.9, abs=0.04)
    assert "| blocks of 4 x 4 | mmps, 3 directions | 104 |" in capsys.readouterr().out


def test_what_is_judged_is_what_is_hidden() -> None:
    data = GaussianData(torch.zeros(1, 28, 28), torch.eye(784))
    truths = data.sample(20, 1)
    x = truths[:, None] + 5.0 * torch.arange(-1, 2).reshape(1, 3, 1, 1, 1)
    hidden = torch.zeros(1, 28, 28, dtype=torch.bool)
    hidden[0, :2] = True
    x[:, :, ~hidden] = 100.0
    found = sde_gen.Posterior(x, None, torch.full((20,), 3.0), None, None, torch.zeros(20))
    row = benchmark.judged(found, truths, brightest(truths).argmax(1), hidden, brightest)
    assert row["error"] == [pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6)] and row["coverage"] == [1.0, 0.0]
    assert row["digits"][0] < 1
