"""The benchmark's own arithmetic, without a training."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sde_gen import ScoreModel, make_sde
from sde_gen.commands import flags
from sde_gen.commands.config import resolve

ROOT = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_options", ROOT / "training_options.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_errors_of_a_network_that_says_nothing_and_their_integral(bench: ModuleType) -> None:
    """A "noise" network of zeros leaves the noise's whole variance: 1 at each level, so that the integral is the range of levels."""
    model = ScoreModel(lambda x, c: torch.zeros_like(x), make_sde("vp"), prediction="noise")
    rows = bench.errors_by_level(model, torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert [level for level, _, _ in rows] == pytest.approx(bench.LAMBDAS.tolist(), abs=0.03)
    assert all(ratio == pytest.approx(1, rel=1e-4) and noise == pytest.approx(1, abs=0.04) for _, ratio, noise in rows)
    assert bench.bits(rows, 6.1) == pytest.approx(11 / math.log(2), rel=0.01)
    assert bench.bits([(0.0, 9.0, 1.0), (1.0, 9.0, 3.0), (2.0, 9.0, 5.0)], 1.0) == pytest.approx(2 / math.log(2))


def test_every_variant_is_a_configuration(bench: ModuleType) -> None:
    parser = bench.argparse.ArgumentParser()
    flags.add_run_flags(parser)
    seen = {}
    for name, texts in bench.VARIANTS.items():
        layers = flags.layers(parser.parse_args([part for text in texts for part in ("--set", text)]))
        seen[name] = resolve(*layers).training
    assert len({str(one) for one in seen.values()}) == len(seen) and seen["default"] == resolve().training
