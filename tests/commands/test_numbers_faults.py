"""The numbers of `run`, `compare` and `likelihood` are of what they say: recomputed here from the parts, on data sorted by class whose
held-out items can be told from the training items, with labels, a normaliser that is not the identity, and a network not trained."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen
from sde_gen import metrics
from sde_gen.commands import compare, evaluation, likelihood, sample_metrics
from sde_gen.commands.compare import CompareSettings, compare_run
from sde_gen.commands.config import resolve
from sde_gen.commands.evaluation import sample_run
from sde_gen.commands.likelihood import LikelihoodSettings, likelihood_run
from sde_gen.commands.runs import TrainedRun
from sde_gen.commands.sample_metrics import SampleMetrics
from sde_gen.data import Dataset
from sde_gen.training import build_model, read_extra, read_state, save

CLASSES, EACH, LEVELS, STEP = 3, 20, 16, 4
MARK = 15.0
"""The first pixel of every held-out image, and of no training image."""


def images() -> Dataset:
    """Grey 1 x 4 x 4 images of whole numbers, sorted by class: their last row is STEP times their label."""
    labels = torch.arange(CLASSES * EACH) // EACH
    x = torch.randint(0, 12, (len(labels), 1, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    x[:, 0, 3] = STEP * labels[:, None].float()
    held = x[::2].clone()
    held[:, 0, 0, 0] = MARK
    return Dataset("stripes", x, held, labels, labels[::2], CLASSES, LEVELS, (0.0, 15.0))


def points() -> Dataset:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([30.0, 0.5]) + 100
    return Dataset("points", x, x[:30] + torch.tensor([90.0, 1.5]), modes=torch.tensor([[80.0, 100.0], [120.0, 100.0]]))


def label_of(x: Tensor) -> Tensor:
    return (x[:, 0, 3, 0] / STEP).round().long()


def run_of(data: Dataset, directory: Path, **sampling: Any) -> TrainedRun:
    labels = data.train_labels is not None
    name = "digits" if labels else "gaussians8"
    config = resolve({"data": {"name": name, "labels": labels}, "sampling": {"samples": 24, "steps": 4, "solver": "ddim", **sampling}})
    model = build_model(data.train, "vp", "mlp", network_options={"width": 8, "depth": 1}, conditions=data.classes)
    generator = torch.Generator().manual_seed(2)
    assert isinstance(model.network, nn.Module)
    with torch.no_grad():
        for parameter in model.network.parameters():  # an untrained one answers 0 whatever the label
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return TrainedRun(directory, config, data, model.requires_grad_(False))


class Pixels:
    """Features that are the pixels."""

    accuracy = 0.5

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1).double()

    def head(self, features: Tensor) -> Tensor:
        """Logits of the classes: what class it is stands in the last row of the pixels."""
        return -(features[:, -1:] - STEP * torch.arange(CLASSES)).abs()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each function of the report is asked to draw, by name; nothing is drawn."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        def draw(*given: Any, **_: Any) -> None:
            found[name] = given
            for path in (part for part in given if isinstance(part, Path)):
                path.write_bytes(name.encode())

        return draw

    for name in ("samples", "film", "extremes", "rows"):
        monkeypatch.setattr(evaluation.report, f"picture_{name}", keep(name))
    for name in ("likelihoods", "terms", "comparison"):
        monkeypatch.setattr(evaluation.report, f"plot_{name}", keep(name))
    monkeypatch.setattr(metrics, "cached_features", lambda *_: Pixels())
    return found


def watched(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The calls of `module.name`, which go through."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given, **options: (calls.append((given, options)), real(*given, **options))[1])
    return calls


def numbers(estimate: metrics.Estimate) -> dict[str, float]:
    assert estimate.std_error > 0
    return {"value": pytest.approx(estimate.value, rel=1e-3), "std_error": pytest.approx(estimate.std_error, rel=1e-3)}


def test_a_run_measures_and_shows_what_it_sampled(drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {"seed": 7, "batch": 5, "grid": "karras", "solver": "pc", "options": {"corrections": 2}}
    run = run_of(images(), tmp_path, **asked)
    sampled, calls = watched(monkeypatch, evaluation, "_sample"), watched(monkeypatch, evaluation, "sample")
    scores = sample_run(run, progress=False)
    ((_, options),) = sampled
    (_, shape, cond, _), settings = sampled[0][0], {"solver": "pc", "steps": 4, "grid": "karras", "corrections": 2, "seed": 7}
    assert options == settings | {"batch_size": 5, "progress": False} and shape == (24, 1, 4, 4)
    assert len(cond["label"]) == 24 and set(cond["label"].tolist()) == set(range(CLASSES))
    x = sde_gen.sample(run.model, shape, cond=cond, progress=False, **settings).x
    torch.testing.assert_close(drawn["samples"][0], x, rtol=1e-4, atol=1e-3)
    assert drawn["samples"][1] == tmp_path / "solvers" / "pc" / "samples.png" and drawn["samples"][3] == (0.0, 15.0)
    *parts, (_, of_film) = calls
    assert [given[1][0] for given, _ in parts] == [5, 19] and [options.get("index_offset", 0) for _, options in parts] == [0, 5]
    assert len(of_film["cond"]["label"]) == 24 and of_film["seed"] == 7 and drawn["film"][3][-1] == "denoised"
    shown = sde_gen.sample(run.model, shape, cond=of_film["cond"], progress=False, **settings).x  # classes in turn
    torch.testing.assert_close(drawn["film"][0][-1], shown, rtol=1e-4, atol=1e-3)

    train, test, f = run.data.train, run.data.test, Pixels().features
    assert test is not None
    precision, recall = metrics.precision_recall(f(x), f(train))
    near, held = metrics.nearest_distances(x, train), metrics.nearest_distances(test, train)
    for name, estimate in {
        "frechet_distance": metrics.frechet_distance(f(x), f(train), seed=7),
        "kernel_distance": metrics.kernel_distance(f(x), f(train)),
        "neighbour_ratio": metrics.neighbour_ratio(near, held),
    }.items():
        assert scores[name] == numbers(estimate), name
    assert scores["precision"]["value"] == precision.value and scores["recall"]["value"] == recall.value
    assert scores["memorised_fraction"]["value"] == metrics.memorised_of(near, held).value
    assert scores["held_out_frechet_distance"]["value"] > 50 and scores["held_out_frechet_distance"]["std_error"] > 0
    assert (scores["network_calls"], scores["samples"]) == (4 * 3 + 1, 24) and scores["data"] == run.data.signature()
    assert scores["settings"] == json.loads(run.config.sampling.model_dump_json())

    again = replace(
        run, config=resolve({"data": {"name": "digits", "labels": True}, "sampling": {"samples": 24, "steps": 2, "solver": "em"}})
    )
    sample_run(again, progress=False)
    known = json.loads((tmp_path / "metrics.json").read_text())["solvers"]
    assert known == {name: json.loads((tmp_path / "solvers" / name / "metrics.json").read_text()) for name in ("pc", "em")}
    assert known["pc"]["frechet_distance"] == scores["frechet_distance"] and known["em"]["settings"]["solver"] == "em"
    assert resolve(sde_gen.commands.config.read_config(tmp_path / "config.yaml")).sampling.solver == "em"
    assert (tmp_path / "samples.png").read_bytes() == b"samples" and (tmp_path / "denoising.gif").read_bytes() == b"film"


def test_points_are_measured_against_the_training_points(tmp_path: Path) -> None:
    data = points()
    x = 100 + (data.train[:40] - 100) * 1.1
    scores = sample_metrics.measure(data, x, tmp_path, seed=3)
    assert scores["sliced_wasserstein"] == numbers(metrics.sliced_wasserstein(x, data.train, seed=3, size=30, scale="reference"))
    assert data.test is not None and data.modes is not None
    far = metrics.sliced_wasserstein(data.test, data.train, seed=3, scale="reference").value
    assert scores["held_out_sliced_wasserstein"]["value"] == pytest.approx(far, rel=0.3) and far > 3 * scores["sliced_wasserstein"]["value"]
    assert [share["value"] for share in scores["mode_fractions"]] == [share.value for share in metrics.mode_fractions(x, data.modes)]
    assert len(scores["mode_fractions"]) == 2 and scores["mode_fractions"][0]["std_error"] > 0


def test_a_fitted_grid_is_of_the_run_s_labels_is_kept_and_leaves_the_checkpoint_as_it_was(
    drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = run_of(images(), tmp_path, grid="fitted", steps=2)
    save(run.model, tmp_path / "checkpoint", extra={"step": 3}, state=({"generator": torch.arange(3)}, {"step": 3}))
    monkeypatch.setattr(evaluation, "CALIBRATION", 6)
    monkeypatch.setattr(evaluation, "fit_grid", partial(evaluation.fit_grid, iterations=1, batch_size=3))
    fits = watched(monkeypatch, evaluation, "fit_grid")
    assert "fitted in" in sample_run(run, progress=False)["fit"] and len(fits) == 1
    assert len(fits[0][1]["cond"]["label"]) == 6 and fits[0][0][1:4] == ("ddim", 2, (1, 4, 4))
    again = replace(run, model=sde_gen.load(tmp_path / "checkpoint"))
    assert again.model.fitted == run.model.fitted and [key[:3] for key in again.model.fitted] == [("ddim", 2, ("label",))]
    scores = sample_run(again, progress=False)
    assert "stored with the checkpoint" in scores["fit"] and scores["fitted"] and len(fits) == 1
    state = read_state(tmp_path / "checkpoint")
    assert state is not None and state[1] == {"step": 3} and torch.equal(state[0]["generator"], torch.arange(3))
    assert read_extra(tmp_path / "checkpoint") == {"step": 3}


def test_a_comparison_s_rows_are_of_their_solvers_and_of_samples_that_did_not_fail(
    drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = run_of(images(), tmp_path)
    settings = CompareSettings(("ancestral", "ddim"), (3, 6), samples=24, seed=4, batch=7)
    calls: list[dict[str, Any]] = []

    def draw(model: sde_gen.ScoreModel, shape: tuple[int, ...], **options: Any) -> sde_gen.sampling.sample.Samples:
        calls.append(options)
        out = sde_gen.sampling.sample.sample_together(model, shape, **options)
        bad = torch.arange(24) < (2 if options["solver"] == "ddim" else 0)
        return replace(out, x=torch.where(bad[:, None, None, None], 1e4, out.x), failed=bad)

    monkeypatch.setattr(compare, "sample_together", draw)
    said: list[str] = []
    found = compare_run(run, settings, said.append)
    assert [(call["solver"], call["steps"]) for call in calls] == [("ancestral", 2), ("ancestral", 5), ("ddim", 2), ("ddim", 5)]
    for call, row, line in zip(calls, found["rows"], said[1:], strict=False):
        assert (call["seed"], call["batch_size"], call["on_failure"]) == (4, 7, "mask")
        assert set(call["cond"]["label"].tolist()) == set(range(CLASSES)) and len(call["cond"]["label"]) == 24
        failed = 2 if call["solver"] == "ddim" else 0
        assert (row["solver"], row["calls"], row["failed"]) == (call["solver"], call["steps"] + 1, failed)
        x = sde_gen.sample(run.model, (24, 1, 4, 4), call["solver"], call["steps"], 4, cond=call["cond"], progress=False).x[failed:]
        expected = SampleMetrics(run.data, tmp_path, 4)(x)
        assert row["distance"] == {key: pytest.approx(value, rel=1e-3) for key, value in expected["frechet_distance"].items()}
        assert row["precision"]["value"] == expected["precision"]["value"] and row["recall"]["value"] == expected["recall"]["value"]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        shown = [f"{row[name]['value']:.2f} +- {row[name]['std_error']:.2f}" for name in ("distance", "precision", "recall")]
        assert cells[0] == f"`{row['solver']}`" and cells[1] == f"{row['calls']}" + (" (2 failed)" if failed else "")
        assert cells[3:6] == shown
    assert found["held_out"]["distance"]["value"] > 50 and found["held_out"]["memorised_fraction"]["value"] < 0.3
    saved = json.loads((tmp_path / "compare" / "compare.json").read_text())
    assert saved["rows"] == found["rows"] and saved["held_out"] == found["held_out"] and saved["distance"] == "frechet_distance"
    assert saved["settings"] == json.loads(json.dumps(vars(settings))) and saved["data"] == run.data.signature()
    assert drawn["comparison"][0] == found["rows"] and drawn["comparison"][3] == found["held_out"]["distance"]


def test_points_are_compared_by_their_sliced_distance_and_the_seed(drawn: dict[str, Any], tmp_path: Path) -> None:
    found = compare_run(run_of(points(), tmp_path), CompareSettings(("ddim",), (4,), samples=24, seed=4), lambda line: None)
    x = sde_gen.sample(run_of(points(), tmp_path).model, (24, 2), "ddim", 3, 4, progress=False).x
    assert found["rows"][0]["distance"] == numbers(metrics.sliced_wasserstein(x, points().train, seed=4, scale="reference"))
    assert found["held_out"]["distance"]["value"] > 1 and "rows" not in drawn


def test_bits_are_of_the_parts_that_they_are_printed_for(drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = run_of(images(), tmp_path)
    settings = LikelihoodSettings(8, "uniform", draws=2, divergence="hutchinson", probes=3, tolerance=0.3, seed=5, batch=4)
    monkeypatch.setattr(likelihood, "CHAINS", {4: 2})
    monkeypatch.setattr(likelihood, "CONTINUOUS_TERMS", 4)
    bits, bounds = watched(monkeypatch, likelihood, "bits_per_dim"), watched(monkeypatch, likelihood, "elbo")
    limit = watched(monkeypatch, likelihood, "elbo_continuous")
    said: list[str] = []
    found = likelihood_run(run, settings, said.append)
    parts = dict(zip(("training", "held-out", "noise", "inverted", "constant", "other"), bits, strict=True))
    common = {"divergence": "hutchinson", "probes": 3, "rtol": 0.3, "atol": 0.3, "seed": 5, "batch_size": 4, "together": True}
    for name, (given, options) in parts.items():
        assert given[2:] == (LEVELS, "truncated_normal" if name == "other" else "uniform", 2) and len(given[1]) == 8
        assert {key: options[key] for key in common} == common
    x, cond = (
        {name: part(call) for name, call in parts.items()} for part in (lambda call: call[0][1], lambda call: call[1]["cond"]["label"])
    )
    assert all((x[name][:, 0, 0, 0] == MARK).all() == (name in ("held-out", "other")) for name in ("training", "held-out", "other"))
    assert all(torch.equal(cond[name], label_of(x[name])) for name in ("training", "held-out", "other"))
    assert torch.equal(x["inverted"], 15 - x["held-out"]) and torch.equal(cond["inverted"], cond["held-out"])
    assert int(x["noise"].max()) == 15 and int(x["noise"].min()) == 0 and x["noise"].float().std() > 4
    assert (x["constant"] == x["constant"][:, :, :1, :1]).all() and len(x["constant"][:, 0, 0, 0].unique()) > 1
    for given, options in (*bounds, *limit):
        assert torch.equal(given[1], x["held-out"]) and torch.equal(options["cond"]["label"], cond["held-out"]) and options["seed"] == 5

    values = {name: found["parts"][name]["value"] for name in ("training", "held-out")}
    (gap,) = (
        re.match(r"gap +held-out data is (-?[\d.]+) \+- ([\d.]+) bits/dim less likely", line) for line in said if line.startswith("gap")
    )
    assert gap is not None and float(gap[1]) == pytest.approx(values["held-out"] - values["training"], abs=1e-3) and float(gap[2]) > 0
    saved = json.loads((tmp_path / "likelihood" / "likelihood.json").read_text())
    assert saved == json.loads(json.dumps(found)) and saved["unit"] == "bits/dim" and saved["settings"] == vars(settings)
    assert saved["data"] == run.data.signature() and saved["parts"]["training"]["dequantization"] == "uniform"
    assert (
        set(drawn["likelihoods"][0]) == {"training", "held-out", "noise", "inverted", "constant"} and drawn["likelihoods"][2] == "bits/dim"
    )
    assert drawn["terms"][2] is not None and list(drawn["terms"][0]) == ["chain of 4 steps"]
    shown, each = drawn["extremes"][:2]
    assert torch.equal(shown.long(), x["held-out"]) and each.tolist() == pytest.approx(saved["parts"]["held-out"]["each"])


def test_nats_are_a_mean_per_dimension_over_what_converged(drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = points()

    def known(model: Any, x: Tensor, cond: Any, **options: Any) -> SimpleNamespace:
        """Nats that are 2 below the item's number in its part; the last item did not converge. Held-out items are 3 less likely."""
        assert cond == {} and options["rtol"] == options["atol"] == 0.01 and (options["probes"], options["seed"]) == (1, 2)
        shift = 3.0 if data.test is not None and bool(torch.isin(x[:, 0], data.test[:, 0]).all()) else 0.0
        log_prob = torch.arange(5.0) - 2 - shift
        log_prob[-1] = 1e6
        ones = torch.ones(5)
        return SimpleNamespace(
            log_prob=log_prob, converged=torch.arange(5) < 4, std_error=0.4 * ones, solver_error=0.02 * ones, nfe=ones, latent=x
        )

    monkeypatch.setattr(likelihood, "log_likelihood_together", known)
    said: list[str] = []
    settings = LikelihoodSettings(5, probes=1, tolerance=0.01, seed=2)
    found = likelihood_run(run_of(data, tmp_path), settings, said.append)
    part = found["parts"]["training"]
    spread = float(torch.arange(4.0).std())
    assert part["value"] == pytest.approx(-0.5 / 2) and part["std_error"] == pytest.approx(spread / 2 / 4**0.5)
    assert part["trace"] == pytest.approx(0.4 * 4**0.5 / 4 / 2) and part["solver"] == pytest.approx(0.01) and part["images"] == 4
    assert "1 of 5 did not converge" in part["line"] and found["unit"] == "nats/dim"
    assert any("held-out data is 1.500 +- " in line and "nats/dim less likely" in line for line in said)
    assert set(drawn) == {"likelihoods"}
