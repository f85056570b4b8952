import re
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import TINY_RUN, Command

import sde_gen
from sde_gen import load_dataset, metrics
from sde_gen.commands import evaluation
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


def test_the_first_batch_is_shown_at_once_and_the_samples_are_those_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sde_gen.ScoreModel(lambda x, c, label: 0.1 * x + label[:, None], sde_gen.make_sde("vp"), data_std=1.0)
    cond = {"label": torch.arange(10) % 3}
    common = {"solver": "em", "steps": 4, "seed": 3, "progress": False}
    shown: list[torch.Tensor] = []
    out = evaluation._sample(model, (10, 2), cond, shown.append, batch_size=4, **common)
    whole = sde_gen.sample(model, (10, 2), cond=cond, batch_size=4, **common)
    assert torch.equal(out.x, whole.x) and torch.equal(out.nfe, whole.nfe) and torch.equal(out.failed, whole.failed)
    assert len(shown) == 1 and torch.equal(shown[0], whole.x[:4])
    evaluation._sample(model, (4, 2), {"label": cond["label"][:4]}, shown.append, batch_size=4, **common)
    assert len(shown) == 1  # of a single batch the samples themselves are as soon there

    def fails(*arguments: Any, index_offset: int = 0, **options: Any) -> sde_gen.Samples:
        if index_offset:
            raise sde_gen.SolverError("em", 0.5, 2, torch.tensor([1, 2]), torch.tensor([0, 3, 4, 5]), whole.x[[4, 7, 8, 9]])
        return sde_gen.sample(*arguments, **options)

    monkeypatch.setattr(evaluation, "sample", fails)
    with pytest.raises(sde_gen.SolverError) as caught:
        evaluation._sample(model, (10, 2), cond, shown.append, batch_size=4, **common)
    healthy = [0, 1, 2, 3, 4, 7, 8, 9]
    assert caught.value.failed.tolist() == [5, 6] and caught.value.healthy.tolist() == healthy
    assert torch.equal(caught.value.x, whole.x[healthy])


def test_long_tables_are_compared_with_a_drawn_part_of_the_training_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = sde_gen.load_dataset("gaussians8")
    assert evaluation.SampleMetrics(data, tmp_path).reference is data.train
    monkeypatch.setattr(evaluation, "MOST_REFERENCE", 50)
    monkeypatch.setattr(evaluation, "MOST_NUMBERS", 200)
    drawn = evaluation.SampleMetrics(data, tmp_path).reference
    assert drawn.shape == (100, 2) and not torch.equal(drawn, data.train[:100])
