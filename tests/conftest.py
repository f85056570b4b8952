"""Shared by all tests."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before PyTorch: two threads beside another busy process would mostly spin

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.layout_engine import ConstrainedLayoutEngine
from toys import Command

from sde_gen.commands.cli import main
from sde_gen.metrics import FeatureNet, cached_features, features

# The tensors here are small: threads would only wait for each other, and parallel runs would fight.
torch.set_num_threads(1)

_features: dict[str, FeatureNet] = {}


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the states of a test lie: the CPU, and CUDA where there is a card. `-m device` picks the tests that take it, `-k cuda` their
    runs on a card and those of test_cuda.py."""
    return torch.device(request.param)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "device: runs on the CPU and, where there is a card, on CUDA")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker("device")


def _features_of(dataset: Any, directory: Path) -> FeatureNet:
    """As `cached_features`, fitted once for all directories."""
    key = features._key(dataset, 0)
    if key not in _features:
        _features[key] = cached_features(dataset, directory)
    return _features[key]


@pytest.fixture
def sde_gen_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`sde-gen` in an empty directory: its exit code and the lines of stdout and stderr.

    Half of such a run's time would go into what has tests of its own: its plots are small and not laid out (tests/report), a film of
    points, of which each frame is a figure, is short, and a feature network is fitted once for all (tests/metrics).
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sde_gen.report.figures.DPI", 40)
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda *_: None)
    monkeypatch.setattr("sde_gen.commands.evaluation.FRAMES", 4)
    monkeypatch.setattr("sde_gen.commands.sample_metrics.metrics.cached_features", _features_of)

    def call(*arguments: str) -> tuple[int, list[str], list[str]]:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out.splitlines(), err.splitlines()

    return call
