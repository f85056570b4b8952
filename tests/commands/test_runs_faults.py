"""What a run trains, and what it keeps of it, are what its configuration and data say: the training itself is a stand-in here."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import sde_gen
from sde_gen.commands import run_data, runs, training_files
from sde_gen.commands.config import RunConfig, resolve
from sde_gen.commands.reuse import Earlier
from sde_gen.commands.run_data import check, load_data
from sde_gen.commands.runs import TrainedRun
from sde_gen.data import Dataset
from sde_gen.training import TrainSettings, load, read_extra, read_state

CHOSEN: dict[str, Any] = {
    "data": {"name": "digits", "labels": True, "limit": 60},
    "sde": {"name": "vp", "settings": {"beta_max": 15.0}},
    "model": {"network": "mlp", "options": {"width": 8, "depth": 1}, "prediction": "v", "prior": "matched", "normalizer": "range"},
    "training": {"steps": 3, "batch": 8, "seed": 6},
    "sampling": {"seed": 9, "samples": 30},
}


def setting(section: str, **values: Any) -> RunConfig:
    return resolve(CHOSEN | {section: CHOSEN[section] | values})


def parameters(model: sde_gen.ScoreModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])  # type: ignore[union-attr]


def test_the_model_is_the_configuration_s() -> None:
    config = resolve(CHOSEN)
    data = load_data(config)
    model = check(config, data)
    assert len(data.train) == 60
    assert (model.prediction, model.prior_name, model.normalizer.kind) == ("v", "matched", "range")  # type: ignore[union-attr]
    assert model.sde.settings["beta_max"] == 15 and model.network.classes == 10  # type: ignore[union-attr]
    assert check(setting("data", labels=False), data).network.classes is None  # type: ignore[union-attr]
    assert torch.equal(parameters(model), parameters(check(config, data)))
    assert not torch.equal(parameters(model), parameters(check(setting("training", seed=7), data)))


class StandIn:
    """`fit` that remembers what it was given, and calls what it should, with the averaged and the last weights apart."""

    def __init__(self, averaged: sde_gen.ScoreModel) -> None:
        self.averaged, self.given = averaged, {}  # type: ignore[var-annotated]
        self.kept: list[dict[str, Any]] = []

    def __call__(self, model: sde_gen.ScoreModel, items: Tensor, settings: TrainSettings, cond: Any, **rest: Any) -> Any:
        self.given = {"items": items, "settings": settings, "cond": cond, **rest}
        history = [{"step": 3, "seconds": 0.1, "loss": 0.5}]
        state = ({"generator": torch.arange(4)}, {"step": 3, "seconds": 1.5, "history": history})
        result = SimpleNamespace(
            model=self.averaged,
            raw=model,
            steps=3,
            seconds=1.5,
            skipped=1,
            linear={"levels": [0.0]},
            state=lambda: state,
            history=history,
            trainer=SimpleNamespace(affordable=lambda calls, wanted: wanted, allowance=60.0),
        )
        rest["on_log"](history[0])
        rest["on_evaluate"](3, result)
        for keep in (lambda: rest["on_checkpoint"](2, result), lambda: rest["on_finish"](result)):
            keep()
            self.kept.append(read_extra(self.place))
        return result

    place = Path()


def trained(config: RunConfig, place: Path, monkeypatch: pytest.MonkeyPatch, earlier: Earlier | None = None) -> tuple[StandIn, TrainedRun]:
    data = load_data(config)
    run = TrainedRun(place, config, data, check(config, data))
    stand_in = StandIn(check(replace_seed(config), data))
    stand_in.place = place / "checkpoint"
    place.mkdir(exist_ok=True)
    monkeypatch.setattr(runs, "fit", stand_in)
    runs._train(run, "cpu", False, 7.5, earlier, True, print, False)
    return stand_in, run


def replace_seed(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"training": replace(config.training, seed=8)})


class Events:
    """Stands for TensorBoard's files."""

    made: ClassVar[list["Events"]] = []

    def __init__(self, directory: Path, batch: int, first_step: int) -> None:
        self.given, self.added = (directory.name, batch, first_step), []  # type: ignore[var-annotated]
        Events.made.append(self)

    def add(self, entry: dict[str, Any]) -> None:
        self.added.append(entry["loss"])

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_: object) -> None:
        self.added.append("closed")


@pytest.fixture(autouse=True)
def events(monkeypatch: pytest.MonkeyPatch) -> list[Events]:
    monkeypatch.setattr(runs, "EventWriter", Events)
    monkeypatch.setattr(Events, "made", [])
    return Events.made


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Each snapshot: its model, shape and options, and the file that it goes to."""
    found: list[dict[str, Any]] = []

    def draw(model: Any, shape: tuple[int, ...], solver: str, **options: Any) -> SimpleNamespace:
        found.append({"model": model, "shape": shape, **options})
        return SimpleNamespace(x=torch.zeros(shape))

    monkeypatch.setattr(runs, "sample", draw)
    monkeypatch.setattr(runs.report, "picture_samples", lambda x, path, *rest: found[-1].update(path=path))
    return found


def test_a_run_trains_on_its_data_and_keeps_both_weights(
    snapshots: list[dict[str, Any]], events: list[Events], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = resolve(CHOSEN)
    fit, run = trained(config, tmp_path / "run", monkeypatch)
    assert [(one.given, one.added) for one in events] == [(("tensorboard", 8, 0), [0.5, "closed"])]
    given, data, place = fit.given, run.data, tmp_path / "run"
    assert given["settings"] == config.training and torch.equal(given["items"], data.train)
    assert torch.equal(given["cond"]["label"], data.train_labels) and torch.equal(given["held_out"], data.test)
    assert (given["levels"], given["device"], given["checkpoint_seconds"], given["resume"]) == (17, "cpu", 7.5, None)
    (shown,) = snapshots
    assert shown["model"] is fit.averaged and shown["seed"] == 9 and shown["path"] == place / "snapshots" / "step-000003.png"
    assert len(shown["cond"]["label"]) == shown["shape"][0] and len(shown["cond"]["label"].unique()) == 10
    during, after = fit.kept
    assert (during["complete"], during["steps"]) == (False, 2) and (after["complete"], after["steps"]) == (True, 3)
    for extra in fit.kept:
        assert extra["identity"] == config.identity() and extra["data"] == data.signature()
        assert (extra["seconds"], extra["skipped"], extra["linear"]) == (1.5, 1, {"levels": [0.0]}) and "earlier_ends" not in extra
    assert torch.equal(parameters(load(place / "checkpoint")), parameters(fit.averaged))
    assert torch.equal(parameters(load(place / "checkpoint", ema=False)), parameters(run.model))
    state = read_state(place / "checkpoint")
    assert state is not None and state[1]["seconds"] == 1.5
    assert [json.loads(line)["loss"] for line in (place / "history.jsonl").read_text().splitlines()] == [0.5]


def test_labels_that_were_not_asked_for_are_not_trained_on(
    snapshots: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fit, _ = trained(setting("data", labels=False), tmp_path / "run", monkeypatch)
    assert fit.given["cond"] == {} and snapshots[0]["cond"] is None


def test_a_training_that_goes_on_has_its_state_and_history_and_remembers_its_ends(
    snapshots: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = resolve(CHOSEN)
    (tmp_path / "run" / "snapshots").mkdir(parents=True)
    (tmp_path / "run" / "snapshots" / "step-000001.png").touch()
    (tmp_path / "run" / "report.html").touch()
    state = ({"generator": torch.arange(2)}, {"step": 1, "seconds": 0.5, "history": [{"step": 1, "loss": 0.9}]})
    earlier = Earlier(check(config, load_data(config)), {}, state, (1,), True)
    fit, _ = trained(config, tmp_path / "run", monkeypatch, earlier)
    assert fit.given["resume"] is state and fit.kept[-1]["earlier_ends"] == [1]
    assert [json.loads(line)["loss"] for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()] == [0.9, 0.5]
    assert (tmp_path / "run" / "snapshots" / "step-000001.png").exists() and not (tmp_path / "run" / "report.html").exists()


def test_history_measures_held_out_items_beside_training_items(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = resolve(CHOSEN)
    data = load_data(config)
    seen: dict[str, tuple[Any, ...]] = {}
    monkeypatch.setattr(training_files, "best_level_loss", lambda *given, **_: seen.update(best=given) or [0.25])
    monkeypatch.setattr(training_files, "measure_levels", lambda *given, **_: seen.update(items=given) or {"training": [0.5]})
    (tmp_path / "history.jsonl").write_text('{"step": 3, "loss": 0.5}\n')
    extra = {"steps": 3, "linear": {"levels": [2.0, -2.0], "linear": [0.7, 0.9]}}
    training_files._write_history(tmp_path, check(config, data), data, config, extra)
    assert seen["best"][1] is data.train and seen["best"][2] == [2.0, -2.0] and torch.equal(seen["best"][3], data.train_labels)
    assert seen["best"][4] == training_files.affordable_states(data.train, 2)
    assert seen["items"][1] is data.train and seen["items"][2] is data.test and seen["items"][3] == 6
    assert torch.equal(seen["items"][4]["label"], data.train_labels) and torch.equal(seen["items"][5]["label"], data.test_labels)
    found = json.loads((tmp_path / "history.json").read_text())
    assert found == {
        "history": [{"step": 3, "loss": 0.5}],
        "linear": {"levels": [2.0, -2.0], "linear": [0.7, 0.9], "best": [0.25]},
        "items": {"training": [0.5]},
    }


def test_the_forward_picture_goes_from_the_data_to_noise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = resolve(CHOSEN)
    data = load_data(config)
    seen: list[Tensor] = []
    monkeypatch.setattr(training_files.report, "picture_forward", lambda x, *rest: seen.append(x))
    training_files._forward_picture(check(config, data), data, tmp_path / "forward.png")
    (columns,) = seen
    assert (
        data.test is not None
        and columns.shape == (5, 9, *data.shape)
        and {tuple(row) for row in columns[:, 0].flatten(1).tolist()} <= {tuple(row) for row in data.test.flatten(1).tolist()}
    )

    def alike(k: int) -> float:
        return float(torch.corrcoef(torch.stack((columns[:, 0].flatten(), columns[:, k].flatten())))[0, 1])

    assert alike(1) > 0.95 > 0.5 > alike(8) and columns[:, 8].std() > 0.5 * columns[:, 0].std()


def test_data_stay_as_they_are_when_a_run_has_none_held_out(
    snapshots: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = run_data.load_dataset

    def without_test(*given: Any, **options: Any) -> Dataset:
        return replace(real(*given, **options), test=None, test_labels=None)

    monkeypatch.setattr(run_data, "load_dataset", without_test)
    fit, run = trained(resolve(CHOSEN), tmp_path / "run", monkeypatch)
    assert fit.given["held_out"] is None and torch.equal(fit.given["items"], run.data.train)
