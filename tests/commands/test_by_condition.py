"""Runs of conditional networks: classes one by one, what conditions tell, samples by strength of guidance, conditions of every kind."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conditional_laws import BLUR, FIELD, NUMBERS, TABLE, UNITS, Labelled, Linear, labelled, model
from PIL import Image

from sde_gen import Dataset, load, log_likelihood, metrics
from sde_gen.commands import by_condition
from sde_gen.commands.by_condition import PICTURE, class_lines, information_lines, information_of_run, picture_run
from sde_gen.commands.compare import CompareSettings, compare_run
from sde_gen.commands.config import resolve
from sde_gen.commands.evaluation import report_lines, sample_run
from sde_gen.commands.likelihood import LikelihoodSettings, likelihood_run
from sde_gen.commands.report import write_report
from sde_gen.commands.runs import TrainedRun
from sde_gen.commands.sample_metrics import SampleMetrics, measure
from sde_gen.commands.saved_run import read_run, warnings
from sde_gen.conditions import fit_condition
from sde_gen.metrics import features
from sde_gen.training import TrainSettings, build_model, fit, save

SMALL = {"sampling": {"solver": "ddim", "steps": 8, "samples": 120, "batch": 60}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here asks how good the features or how sharp the pictures are."""
    monkeypatch.setitem(features._SETTINGS, "steps", 30)
    monkeypatch.setattr("sde_gen.report.figures.DPI", 40)
    monkeypatch.setattr("sde_gen.commands.evaluation.FRAMES", 2)


def classes_run(place: Path, **options: Any) -> TrainedRun:
    (x, label), (held, of_held) = labelled(600), labelled(150, 7)
    data = Dataset("classes", UNITS.decode(x), UNITS.decode(held), label, of_held, classes=2, label_names=("low", "high"))
    exact = model(Labelled(**options), normalizer=UNITS)
    exact.register_parameter("place", torch.nn.Parameter(torch.zeros(1)))  # commands ask where a network lies
    return TrainedRun(place, resolve(SMALL, {"data": {"name": "gaussians8", "labels": True}}), data, exact)


def test_classes_are_measured_one_by_one_at_one_size(tmp_path: Path) -> None:
    data, sample_metrics = classes_run(tmp_path).data, SampleMetrics(classes_run(tmp_path).data, tmp_path)
    x, label = labelled(200, 20)
    found = sample_metrics.by_class(UNITS.decode(x), label)
    assert [(one["name"], one["samples"]) for one in found["classes"]] == [("low", 120), ("high", 80)]
    assert found["size"] == 60 and found["distance"] == "sliced_wasserstein"  # of the held-out items of the rarer class
    for one in found["classes"]:
        assert abs(one["distance"]["value"] - one["held_out"]["value"]) < 4 * math.hypot(
            *(one[k]["std_error"] for k in ("distance", "held_out"))
        )
    swapped = sample_metrics.by_class(UNITS.decode(x), 1 - label)
    assert all(one["distance"]["value"] > 2 * one["held_out"]["value"] for one in swapped["classes"])
    assert swapped["confirmed"]["value"] == pytest.approx(1 - found["confirmed"]["value"]) and found["confirmed"]["value"] > 0.7
    part = found["confirmed"]
    assert part["std_error"] == pytest.approx(math.sqrt(part["value"] * (1 - part["value"]) / 200), rel=0.1)
    few = sample_metrics.by_class(UNITS.decode(x[:130]), label[:130])
    assert few["classes"][1]["distance"] is None and few["classes"][0]["distance"] is not None
    assert few["classes"][1]["reason"].startswith("10 samples and 240 training items of high; 20 of each are needed")
    lines = class_lines({"by_class": found})
    assert len(lines) == 2 and "of held-out data" in lines[0] and "each at 60 items" in lines[1] and "(low)" in lines[1] + "(low)"
    assert "by_class" not in measure(data, UNITS.decode(x), tmp_path), "samples of no known class"


def test_classes_of_pictures_are_measured_by_features(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(400) % 2
    x = torch.randn(400, 1, 4, 4, generator=generator) + 3.0 * label[:, None, None, None]
    data = Dataset("pictures", x[:300], x[300:], label[:300], label[300:], classes=2)
    found = measure(data, x[300:360], tmp_path, labels=label[300:360])["by_class"]
    assert found["distance"] == "frechet_distance" and found["size"] == 30 and found["confirmed"]["value"] > 0.9
    ours = SampleMetrics(data, tmp_path)
    expected = metrics.frechet_distance(ours.features_of(x[300:360:2]), ours.of_train[label[:300] == 0], bootstrap=16)
    assert found["classes"][0]["distance"]["value"] == pytest.approx(expected.value)


def test_a_run_says_what_its_conditions_tell_and_shows_strengths_of_guidance(tmp_path: Path) -> None:
    run = classes_run(tmp_path)
    scores = sample_run(run, progress=False)
    told = json.loads((tmp_path / "metrics.json").read_text())["information"]["label"]
    assert told == scores["information"]["label"] and told["part"] == "held-out" and told["items"] == 150
    assert told["value"] == pytest.approx(0.52, abs=4 * told["std_error"] + 0.02) and told["most"] == pytest.approx(0.673, abs=1e-3)
    lines = report_lines(run, scores)
    (line,) = [line for line in lines if line.startswith("condition")]
    assert line.startswith(f"condition label tells {told['value']:.2f} +- {told['std_error']:.2f} nats (by distance of branches ")
    assert sum(line.startswith("classes") for line in lines) == 1 and any(str(tmp_path / PICTURE) in line for line in lines)
    with Image.open(tmp_path / PICTURE) as image:
        assert min(image.size) > 50
    (tmp_path / "config.yaml").write_text(run.config.to_yaml())
    page = write_report([tmp_path]).read_text()
    assert "ddim: class by class" in page and "What conditions tell by noise level" in page and "Label tells" in page
    assert not any("condition" in line or "taken for the class" in line for line in warnings(read_run(tmp_path)))


def test_what_metrics_hold_of_the_network_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = classes_run(tmp_path)
    first = sample_run(run, progress=False)
    monkeypatch.setattr(by_condition, "information", None)
    monkeypatch.setattr(by_condition, "sample", None)
    assert sample_run(run, progress=False)["information"] == first["information"]


def test_a_condition_that_was_never_dropped_has_no_null_branch(tmp_path: Path) -> None:
    run = classes_run(tmp_path)
    run = replace(run, config=run.config.model_copy(update={"training": replace(run.config.training, drop=0.0)}))
    found = information_of_run(run)
    assert "training.drop is 0" in found["label"]["reason"] and "not measured" in information_lines(found)[0]
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_condition.report, "picture_conditions", lambda columns, *rest: seen.append(columns))
        picture_run(run)
    assert list(seen[0]) == ["strength 1"]


def test_strengths_are_of_one_noise_and_the_first_is_the_conditional_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = classes_run(tmp_path)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(by_condition.report, "picture_conditions", lambda columns, words, *rest: seen.update(columns=columns, words=words))
    picture_run(run)
    columns = list(seen["columns"].values())
    assert list(seen["columns"]) == ["strength 1", "strength 1.5", "strength 2", "strength 4"] and seen["words"] == ["low", "high"]
    plain = replace(run, config=run.config.model_copy(update={"training": replace(run.config.training, drop=0.0)}))
    picture_run(plain)
    assert torch.equal(columns[0], next(iter(seen["columns"].values())))
    for earlier, later in pairwise(columns):
        a, b = (UNITS.encode(x).flatten() for x in (earlier, later))
        assert not torch.equal(a, b) and float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.7


def test_a_poor_run_is_warned_of(tmp_path: Path) -> None:
    run = classes_run(tmp_path, used=0.0)
    sample_run(run, progress=False)
    (tmp_path / "config.yaml").write_text(run.config.to_yaml())
    lines = warnings(read_run(tmp_path))
    assert any("condition 'label' tells 0.000 +- 0.000 nats" in line for line in lines)
    assert any("are taken for the class that they were drawn for, of held-out data" in line for line in lines)


def any_kind(place: Path, kind: str) -> TrainedRun:
    """A run of a network of one step that takes numbers, or a map and a label, beside its data."""
    encoder, matrix = (NUMBERS, TABLE) if kind == "numbers" else (FIELD, BLUR)
    (x, y), (held, of_held) = (Linear(matrix, encoder).draw(count, seed) for count, seed in ((120, 0), (40, 1)))
    label = (x.mean(1) > 0).long()
    shape = (-1, 1, 4, 4) if kind == "map" else (-1, x.shape[1])
    values = {"field": y.reshape(shape)} if kind == "map" else {"y": y}
    of_test = {"field": of_held.reshape(shape)} if kind == "map" else {"y": of_held}
    labels: dict[str, Any] = {"train_labels": label, "test_labels": (held.mean(1) > 0).long(), "classes": 2} if kind == "map" else {}
    data = Dataset(kind, x.reshape(shape), held.reshape(shape), cond=values, test_cond=of_test, **labels)
    names = ["label", "field"] if kind == "map" else ["y"]
    config = resolve(SMALL, {"data": {"name": "digits" if kind == "map" else "gaussians8", "labels": kind == "map"}})
    known: dict[str, Any] = data.conditions(names)
    specs = {name: fit_condition(name, value, data.shape[1:]) for name, value in known.items()}
    options = {"width": 16, "depth": 1}
    made = build_model(data.train, "vp", "mlp", network_options=options, conditions=specs)
    settings = TrainSettings(steps=60, batch=32, lr=2e-2, warmup=1, evaluations=1)
    result = fit(made, data.train, settings, known, held_out=data.test, held_out_cond=data.held_out(names)[1], progress=False)
    save(result.model, place / "checkpoint")
    return TrainedRun(place, config, data, result.model)


@pytest.mark.parametrize("kind", ["numbers", "map"])
def test_conditions_of_every_kind_go_through_the_commands(kind: str, tmp_path: Path) -> None:
    run = any_kind(tmp_path, kind)
    said: list[str] = []
    scores = sample_run(run, progress=False)
    names = list(run.model.encoders)
    assert list(scores["information"]) == names and all(one["items"] == 40 for one in scores["information"].values())
    with Image.open(tmp_path / PICTURE) as image:
        assert min(image.size) > 50
    found = compare_run(run, CompareSettings(("ddim",), (6,), samples=30), said.append)
    assert math.isfinite(found["rows"][0]["distance"]["value"])
    likelihood = likelihood_run(run, LikelihoodSettings(images=25, tolerance=1e-2), said.append)
    assert likelihood["parts"]["held-out"]["images"] == 25
    assert ("classified" in likelihood) == (kind == "map")
    # another condition, another density
    other = load(tmp_path / "checkpoint")
    x, cond = run.data.held_out(names)
    assert x is not None
    last = names[-1]
    options: dict[str, Any] = {"divergence": "exact", "rtol": 1e-3, "atol": 1e-3}
    one, two = (
        log_likelihood(other, x[:4], cond={k: v[:4] for k, v in given.items()}, **options)
        for given in (cond, cond | {last: 3 * cond[last]})
    )
    assert not torch.allclose(one.log_prob, two.log_prob)


def test_held_out_items_are_classified_by_their_denoising_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = classes_run(tmp_path)
    said: list[str] = []
    settings = LikelihoodSettings(images=100, tolerance=1e-2)
    found = likelihood_run(run, settings, said.append)["classified"]
    (line,) = [line for line in said if line.startswith("classes")]
    assert line == f"classes   {found['value']:.1%} +- {found['std_error']:.1%} of 100 held-out items are classified right by their " + (
        "denoising errors (the largest class alone: 60.0%)"
    )
    # Bayes' own share of right answers, of 60 : 40 classes at these distances
    assert found["value"] == pytest.approx(0.93, abs=0.1)
    deaf = likelihood_run(classes_run(tmp_path, used=0.0), settings, said.append)["classified"]
    assert deaf["value"] < 0.7
    monkeypatch.setattr("sde_gen.commands.likelihood.CLASSIFIED", 1000)
    assert (
        "not classified: with 2 classes 1,000 network evaluations are enough for 15 items alone"
        in likelihood_run(run, settings, said.append)["classified"]["line"]
    )
