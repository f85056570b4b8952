"""The statistics of benchmarks/quality.py, which need no peers and no training."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor


def _load(name: str) -> ModuleType:
    """A benchmark's file as a module: benchmarks/ is no package."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


excess = _load("excess")


def score(runs: list[float], pairs: Tensor | None = None):
    pairs = torch.zeros(50, 2, dtype=torch.float64) if pairs is None else pairs
    return excess.Score(runs, 0.0, pairs, pairs)


def normal(count: int, shift: float, seed: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) + shift


def test_subsets_are_distinct_items_and_differ_from_one_another():
    drawn = list(excess.subsets(20, 7, 5, seed=0))
    assert len(drawn) == 5
    assert all(len(set(index.tolist())) == 7 and int(index.min()) >= 0 and int(index.max()) < 20 for index in drawn)
    assert len({tuple(sorted(index.tolist())) for index in drawn}) > 1
    again = list(excess.subsets(20, 7, 5, seed=0))
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_a_peer_as_good_as_real_images_leaves_no_ratio():
    with pytest.raises(ValueError, match="not above that of real images"):
        excess.excess_ratio(score([2.5]), score([1.9]), score([2.0]))


def test_scores_are_taken_at_equal_counts():
    """At equal counts samples of the reference's distribution score what other real items do, however many there are."""
    reference = normal(400, 0.0, 0)
    many = excess.equal_count_score([normal(1200, 0.0, 1)], reference, 60, splits=4)
    few = excess.equal_count_score([normal(60, 0.0, 2)], reference, 60, splits=4)
    assert few.spread == 0 and many.spread > 0
    assert abs(many.value - few.value) < 4 * many.spread
    assert many.value > 3 * excess.equal_count_score([normal(1200, 0.0, 1)], reference, 1200, splits=2).value
