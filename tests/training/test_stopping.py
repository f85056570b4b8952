"""Limits and signals between the parts of a batch; what evaluations may cost."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from sde_gen.models.moments import Moments
from sde_gen.training import Interrupted, TrainingError, TrainResult, TrainSettings, Validation, build_model, fit, read_state, save
from sde_gen.training import parts as parts_of_batch
from sde_gen.training.objective import Objective
from sde_gen.training.trainer import Trainer

STEPS, PARTS = 12, 4
SETTINGS: dict[str, Any] = {"steps": STEPS, "batch": 16, "micro_batch": 16 // PARTS, "warmup": 3, "evaluations": 2}
OPTIONS = {"width": 16, "depth": 1, "dropout": 0.2}


def points() -> torch.Tensor:
    return torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1


def train(settings: dict[str, Any] | None = None, **arguments: Any) -> TrainResult:
    model = build_model(points(), "vp", "mlp", network_options=OPTIONS)
    return fit(model, points(), TrainSettings(**(SETTINGS | (settings or {}))), progress=False, **arguments)


def numbers(result: TrainResult) -> dict[str, Any]:
    """All that a training has made but its times."""
    tensors, values = result.state()
    networks = {f"{name}.{key}": value for name, model in (("raw", result.raw), ("ema", result.model)) for key, value in weights(model)}
    history = [{key: value for key, value in entry.items() if key != "seconds"} for entry in values["history"]]
    del tensors["random"]
    return tensors | networks | {"step": values["step"], "taken": values["taken"], "history": history}


def weights(model: Any) -> Any:
    return model.network.state_dict().items()


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The step of each part of a batch that was computed."""
    seen: list[int] = []
    forward = Objective.forward

    def counted(self: Objective, *arguments: Any, **cond: Any) -> torch.Tensor:
        seen.append(len(seen) // PARTS)
        return forward(self, *arguments, **cond)

    monkeypatch.setattr(Objective, "forward", counted)
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("part", [1, 2])
def test_a_signal_in_a_batch_ends_the_training_at_the_last_whole_step(
    number: int, part: int, parts: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = numbers(train())
    parts.clear()
    counted = Objective.forward

    def interrupted(self: Objective, *arguments: Any, **cond: Any) -> torch.Tensor:
        if len(parts) == 7 * PARTS + part - 1:
            os.kill(os.getpid(), number)
        return counted(self, *arguments, **cond)

    monkeypatch.setattr(Objective, "forward", interrupted)

    def keep(step: int, result: TrainResult) -> None:
        save(result.raw, tmp_path / "c", ema=result.model.network, state=result.state())

    with pytest.raises(Interrupted, match=f"step 7 of {STEPS}"):
        train(on_checkpoint=keep)
    assert len(parts) == 7 * PARTS + part  # the part under way is finished, no other begins
    monkeypatch.setattr(Objective, "forward", counted)
    torch.rand(5)
    assert_equal(numbers(train(resume=read_state(tmp_path / "c"))), whole)


def test_a_signal_in_the_first_batch_keeps_nothing(parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "out_of_time", lambda self: len(parts) == 2 and bool(os.kill(os.getpid(), signal.SIGTERM)))
    kept: list[int] = []
    with pytest.raises(Interrupted, match=f"step 0 of {STEPS}"):
        train(on_checkpoint=lambda step, result: kept.append(step))
    assert kept == [] and len(parts) == 3


def test_the_time_is_over_in_a_batch(parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "seconds", property(lambda self: 100.0 if len(parts) > 5 * PARTS + 1 else 0.01 * len(parts)))
    logged: list[int] = []
    result = train({"max_seconds": 50.0}, on_log=lambda entry: logged.append(entry["step"]))
    assert result.steps == 5 and len(parts) == 5 * PARTS + 2 and result.seconds == 100.0
    assert result.history[-1]["step"] == 5 and len(result.history[-1]["level_loss"]) == 16 and logged[-1] == 5


def test_no_time_for_a_single_step_is_one_line(parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "seconds", property(lambda self: 100.0 * len(parts)))
    with pytest.raises(TrainingError, match="max_seconds 50 was over before the first step of 16 samples was done: choose a smaller"):
        train({"max_seconds": 50.0})
    assert len(parts) == 1


def made(**settings: Any) -> Trainer:
    model = build_model(points(), "vp", "mlp", network_options=OPTIONS)
    return Trainer(model, points(), TrainSettings(steps=10, batch=18, **settings), None, None, None, "cpu")


def test_a_batch_is_cut_where_it_costs_too_much_unless_the_user_has_cut_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made().part == 18
    flops = made().model.network.flops()
    monkeypatch.setattr(parts_of_batch, "PART_FLOPS", 3.0 * flops * 7)
    assert made().part == 6  # three even parts of at most seven
    assert made(micro_batch=9).part == 9 and made(accumulate=2).part == 9
    monkeypatch.setattr(parts_of_batch, "PART_FLOPS", 1.0)
    assert made().part == 1


@pytest.mark.parametrize("seconds", [1e-4, 0.08, 4.0])
def test_evaluations_of_the_default_run_are_whole_however_slow_it_is(seconds: float) -> None:
    model = build_model(points(), "vp", "mlp", network_options=OPTIONS)
    training = Trainer(model, points(), TrainSettings(steps=1800, batch=64), None, None, None, "cpu")
    training.step = training.timed = 1800 // 8
    training.spent = seconds * training.timed
    assert training.affordable(16, 128) == 128 and training.affordable(51, 25) == 25


def test_an_evaluation_costs_a_share_of_the_training_before_it() -> None:
    training = made()
    training.step, training.evaluated_at, training.timed, training.spent = 500, 100, 500, 500 * 27.0
    assert training.allowance == pytest.approx(0.05 * 400 * 27)
    per_call = 27.0 / (3 * 18)
    assert training.affordable(16, 10**6) == int(0.05 * 400 * 27 / (16 * per_call))
    training.evaluated_at = 500
    assert training.allowance == 5.0 and training.affordable(16, 128) == 0


@pytest.mark.parametrize(("done", "items"), [(False, None), (True, 8)])
def test_a_costly_evaluation_takes_few_items_or_waits(done: bool, items: int | None) -> None:
    training = made()
    training.step = 10 if done else 9
    training.timed, training.spent = 1, 1e6
    training.evaluated_at = training.step
    entry: dict[str, Any] = {}
    training.evaluate(entry)
    assert entry.get("items") == items and ("level_loss" in entry) == done


def test_a_zero_network_reads_one_on_a_part_of_the_items_too() -> None:
    model = build_model(points(), "vp", "mlp", network_options=OPTIONS)  # zero before its training
    x_0 = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3.0, 64)[:, None]
    validation = Validation.prepare(model, x_0, Moments.fit(x_0))
    assert validation.measure(model.eval(), 5) == pytest.approx([1.0] * 16, rel=1e-5)
