import re
from pathlib import Path

import pytest
import torch
from toys import TINY_RUN, Command

from sde_gen import load_dataset, metrics
from sde_gen.commands.evaluation import SampleMetrics, measure
from sde_gen.metrics import features


@pytest.fixture(autouse=True)
def short_feature_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here asks how good the features are."""
    monkeypatch.setitem(features._SETTINGS, "steps", 20)


def test_the_summary_says_how_near_the_samples_are_to_the_training_data(sde_gen_command: Command, tmp_path: Path) -> None:
    code, out, err = sde_gen_command("run", *TINY_RUN, "--out", str(tmp_path / "mine"))
    assert (code, err) == (0, [])
    k = next(k for k, line in enumerate(out) if line.startswith("memorised"))
    assert re.fullmatch(r"memorised 0\.\d{3} \+- 0\.\d{3} of samples nearer to a training item than 95 % of .* \(chance: 0\.05\)", out[k])
    assert re.match(r"          nearest-neighbour ratio \d+\.\d{3} \+- 0\.\d{3}: .*\(1: like new data, 0: copies\)", out[k + 1])


def test_copies_and_new_data_are_told_apart(tmp_path: Path) -> None:
    data = load_dataset("digits")
    assert data.test is not None
    sample_metrics = SampleMetrics(data, tmp_path)
    copies, new = sample_metrics(data.train[:100]), sample_metrics(data.test[:200])
    assert copies["memorised_fraction"]["value"] == 1 and copies["neighbour_ratio"]["value"] < 1e-6
    assert new["neighbour_ratio"]["value"] == pytest.approx(1, abs=0.1) and new["memorised_fraction"]["value"] < 0.12
    whole = measure(data, data.test[:200], tmp_path)
    assert {name: whole[name] for name in new} == new and whole["held_out_frechet_distance"]["value"] > 0
    expected = metrics.memorised_fraction(data.test[:200], data.train, data.test)
    assert new["memorised_fraction"] == {"value": expected.value, "std_error": expected.std_error}


def test_what_depends_on_the_data_alone_is_worked_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_metrics, x = SampleMetrics(load_dataset("digits"), tmp_path), torch.rand(30, 1, 8, 8)
    first = sample_metrics(x)
    seen: list[int] = []
    distances = metrics.nearest_distances
    monkeypatch.setattr(metrics, "nearest_distances", lambda a, b: (seen.append(len(a)), distances(a, b))[1])
    monkeypatch.setattr(metrics, "cached_features", None)
    assert sample_metrics(x) == first and seen == [30]
