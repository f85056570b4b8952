import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import TINY_RUN, Command

import sde_gen
from sde_gen import Dataset, ScoreModel, load_dataset, make_sde, metrics
from sde_gen.commands import evaluation, sample_metrics, training_files
from sde_gen.commands.compare import CompareSettings, compare_run
from sde_gen.commands.config import ConfigError, resolve
from sde_gen.commands.evaluation import report_lines, sample_run
from sde_gen.commands.likelihood import LikelihoodSettings, _parts
from sde_gen.commands.runs import TrainedRun
from sde_gen.commands.sample_metrics import SampleMetrics, measure
from sde_gen.conditions import Label
from sde_gen.data import rows_drawn
from sde_gen.data.assemble import Part, assemble
from sde_gen.data.source import array_source
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
    assert sample_metrics.SampleMetrics(data, tmp_path).reference is data.train
    monkeypatch.setattr(sample_metrics, "MOST_REFERENCE", 50)
    monkeypatch.setattr(sample_metrics, "MOST_NUMBERS", 200)
    drawn = sample_metrics.SampleMetrics(data, tmp_path).reference
    assert drawn.shape == (100, 2) and not torch.equal(drawn, data.train[:100])


UNITS = torch.tensor([1000.0, 0.01, 1.0])


class Classes(torch.nn.Module):
    """E[x_0 | x_t, label] of two Gaussian classes around -2 and 2, of std 0.5: a conditional network that is perfect."""

    encoders = {"label": Label("label", 1, (), 2)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.means = torch.nn.Parameter(torch.tensor([-2.0, 2.0])[:, None].expand(2, 3).clone())

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (value[:, None].to(x) for value in make_sde("vp").marginal(t.double()))
        mean = torch.cat([self.means, self.means.mean(0, keepdim=True)])[label]
        return mean + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * mean)


def unequal(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorted items of 95 % of class 0 and 5 % of class 1, whose columns have unlike units."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) < 0.05).long().sort().values
    return UNITS * (4.0 * labels[:, None] - 2 + 0.5 * torch.randn(count, 3, generator=generator)), labels


class Units(torch.nn.Module):
    """The normaliser of those units."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x / UNITS.to(x)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return x * UNITS.to(x)


@pytest.fixture
def classes_run(tmp_path: Path) -> TrainedRun:
    (x, labels), (held, of_held) = unequal(1500, 0), unequal(200, 1)
    data = Dataset("classes", x, held, labels, of_held, classes=2)
    model = ScoreModel(Classes(), make_sde("vp"), prediction="data", normalizer=Units()).eval()  # type: ignore[arg-type]
    return TrainedRun(tmp_path, resolve({"sampling": {"solver": "ddim", "steps": 12, "samples": 400}}), data, model)


def test_a_perfect_conditional_network_reads_like_held_out_data(classes_run: TrainedRun) -> None:
    scores = sample_run(classes_run, progress=False)
    ours, held = (scores[f"{part}sliced_wasserstein"] for part in ("", "held_out_"))
    assert ours["value"] < held["value"] + 3 * held["std_error"] and ours["value"] < 0.6  # classes in turn read about 2
    assert scores["distance_size"] == 200 and "standard deviation" in scores["distance_unit"]
    with np.load(classes_run.directory / "solvers" / "ddim" / "samples.npz") as kept:
        assert 0 < kept["label"].sum() < 60 and ((kept["x"][:, 2] > 0) == (kept["label"] == 1)).all()
    line = next(line for line in report_lines(classes_run, scores) if line.startswith("distance"))
    assert line.endswith("(each at 200 items, in units of each column's standard deviation)")
    unknown = {"value": None, "std_error": None, "reason": "every held-out item is a training item"}
    lines = report_lines(classes_run, scores | dict.fromkeys(("memorised_fraction", "neighbour_ratio"), unknown))
    assert lines.count("          (not known: every held-out item is a training item)") == 1


def test_distances_side_by_side_are_of_equal_sizes_and_weigh_all_columns(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    train, held, x = (UNITS * torch.randn(count, 3, generator=generator) for count in (1000, 60, 480))
    data = Dataset("columns", train, held)
    scores = measure(data, x, tmp_path)
    ours, theirs = (scores[f"{part}sliced_wasserstein"]["value"] for part in ("", "held_out_"))
    # 480 fresh draws taken at once have a third of the distance of 60
    assert ours > 1.5 * metrics.sliced_wasserstein(x, train, scale="reference").value and ours == pytest.approx(theirs, rel=0.4)
    wrong = measure(data, x * torch.tensor([1.0, 4.0, 1.0]), tmp_path)  # in the column of the smallest unit
    assert wrong["sliced_wasserstein"]["value"] > 2 * ours
    assert "distance_size" not in SampleMetrics(data, tmp_path)(x) and measure(Dataset("alone", train), x, tmp_path)["distance_size"] == 480


def test_compare_takes_drawn_held_out_items_and_classes_in_the_shares_of_the_data(classes_run: TrainedRun, tmp_path: Path) -> None:
    said: list[str] = []
    found = compare_run(classes_run, CompareSettings(("ddim",), (12,), samples=100), said.append)
    row, held = found["rows"][0]["distance"], found["held_out"]["distance"]
    assert max(row["value"], held["value"]) < 0.6  # the head of the held-out part is of class 0 alone; classes in turn read 2
    assert any("100 items each, in units of each column's" in line for line in said)
    held_out, of_held_out = classes_run.data.test, classes_run.data.test_labels
    assert held_out is not None and of_held_out is not None and not of_held_out[:100].any()
    drawn = rows_drawn(200, 100, 0)
    assert of_held_out[drawn].any() and held == SampleMetrics(classes_run.data, tmp_path)(held_out[drawn])["sliced_wasserstein"]
    more = compare_run(classes_run, CompareSettings(("ddim",), (12,), samples=400), said.append)
    assert any("200 items each" in line for line in said) and more["held_out"]["distance"]["value"] < 0.6


@pytest.mark.parametrize("content", ["{", "[]", "null", "3", '{"solvers": null}', '{"history": [], "linear": {}}', '{"history": {}}'])
def test_what_no_command_wrote_is_not_read(content: str, classes_run: TrainedRun) -> None:
    place = classes_run.directory
    for name in ("metrics.json", "history.json"):
        (place / name).write_text(content)
    assert {"metrics.json", "history.json"} <= set(training_files.missing_files(place))
    evaluation._collect(classes_run, "ddim", {"samples": 3})
    assert training_files.metrics_of(place) == {"solvers": {"ddim": {"samples": 3}}}
    assert evaluation._learned(classes_run, {}) == []


def test_likelihoods_are_of_drawn_items(classes_run: TrainedRun) -> None:
    x, cond = _parts(classes_run, LikelihoodSettings(images=150))["held-out"]
    labels = cond["label"]
    assert labels.sum() > 2 and torch.equal(x[:, 2] > 0, labels == 1)
    whole, _ = _parts(classes_run, LikelihoodSettings(images=200))["held-out"]
    assert classes_run.data.test is not None and torch.equal(whole, classes_run.data.test)
    unlabelled = replace(classes_run, data=replace(classes_run.data, test_labels=None))
    assert list(_parts(unlabelled, LikelihoodSettings(images=150))) == ["training"], "the network takes labels"


def pictures(count: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 4, 4, generator=generator), torch.arange(count) % classes


def test_copies_of_items_that_lie_on_disk_are_found(tmp_path: Path) -> None:
    x, labels = (part.numpy() for part in pictures(3000, 2))
    there, here = (assemble("x", Part(array_source(x, "x"), labels), in_memory=size) for size in (64 * 300, 1 << 30))
    assert there.source is not None and len(there.train) == 300 and len(there.source) == 2700
    assert any("metrics but nearest neighbours use 300" in note for note in there.notes)
    copies = there.source[torch.arange(0, 2700, 27)]
    found = [SampleMetrics(data, tmp_path)(copies) for data in (there, here)]
    assert found[0]["memorised_fraction"]["value"] == 1 and found[0]["neighbour_ratio"]["value"] == 0
    for name in ("memorised_fraction", "neighbour_ratio"):
        assert found[0][name] == found[1][name]


def test_pictures_of_one_class_have_no_features(tmp_path: Path, classes_run: TrainedRun) -> None:
    x, labels = pictures(120, 1)
    data = Dataset("alone", x[:90], x[90:], labels[:90], labels[90:], classes=1)
    assert set(measure(data, x[30:60], tmp_path)) == {"memorised_fraction", "neighbour_ratio"}
    with pytest.raises(ConfigError, match="'alone' has training items of one class alone, and so no features"):
        compare_run(replace(classes_run, data=data), CompareSettings(("ddim",), (12,), samples=20))


def test_held_out_pictures_without_labels_are_measured_by_features_too(tmp_path: Path) -> None:
    x, labels = pictures(120, 2)
    found = measure(Dataset("x", x[:90], x[90:], labels[:90], classes=2), x[:30], tmp_path)
    assert "no held-out labels" in found["features"] and found["held_out_frechet_distance"]["value"] > 0
