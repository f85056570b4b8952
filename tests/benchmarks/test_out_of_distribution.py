"""benchmarks/out_of_distribution.py, its AUC and what it finds with a Gaussian of the digits."""

import importlib.util
import math
import sys
from pathlib import Path

import torch

from sde_gen import load_dataset
from sde_gen.data import Normalizer
from sde_gen.exact.mixtures import GaussianData
from sde_gen.sdes import make_sde

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "out_of_distribution.py"
spec = importlib.util.spec_from_file_location("benchmark_out_of_distribution", SCRIPT)
assert spec is not None and spec.loader is not None
bench = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = bench
spec.loader.exec_module(bench)


def test_auc_is_the_share_of_pairs() -> None:
    assert bench.auc(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0, 2.0])) == (
        (1.5 + 3) / 6,
        math.sqrt((0.75 * 0.25 + (0.75 / 1.25 - 0.75**2) + 2 * (2 * 0.75**2 / 1.75 - 0.75**2)) / 6),
    )
    draws = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    value, error = bench.auc(draws[:, 0] + 1, draws[:, 1])
    assert abs(value - 0.5 * math.erfc(-0.5)) < 4 * error < 0.05  # Phi(1/sqrt(2))


def test_a_gaussian_of_the_digits_tells_what_is_no_digit() -> None:
    data = load_dataset("digits")
    units = Normalizer.fit(data.train)
    z = units.encode(data.train).flatten(1).double()
    gaussian = GaussianData(z.mean(0).reshape(data.shape), z.T.cov() + 0.02 * torch.eye(64))
    model = gaussian.model(make_sde("vp"))
    model.normalizer = units
    found = bench.measure(model, data, None, 30, 0, 1e-2)
    assert set(found["auc"]) == {"scaled", "noisy", "turned", "inverted"}
    print(found)
    assert all(found["auc"][name]["bits"][0] > 0.95 for name in ("turned", "inverted")) and found["counts"]["held_out"] == 30
    assert found["unshifted_below_0.05"]["p_low"][0] < 0.25
