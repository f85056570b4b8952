"""A training that stops and goes on is the training that never stopped; parts of a batch are the batch."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sde_gen
from sde_gen.data.source import array_source
from sde_gen.training import Interrupted, TrainingError, TrainResult, TrainSettings, build_model, fit, read_state, save
from sde_gen.training.loop import PACE_STEPS, UNMEASURED
from sde_gen.training.trainer import Trainer

STEPS = 24
OPTIONS = {"width": 16, "depth": 1, "dropout": 0.2}


def points() -> torch.Tensor:
    return torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1


def model(**options: Any) -> sde_gen.ScoreModel:
    return build_model(points(), "vp", "mlp", network_options=OPTIONS | options)


def hybrid() -> sde_gen.ScoreModel:
    return build_model(points(), "vp", "mlp", network_options=OPTIONS, variance="learned_range")


def everything(result: TrainResult) -> dict[str, Any]:
    """All that must be equal: weights, average, optimiser, random states, losses."""
    tensors, values = result.state()
    weights = {f"raw.{k}": v for k, v in result.raw.network.state_dict().items()}
    average = {f"ema.{k}": v for k, v in result.model.network.state_dict().items()}
    del tensors["random"]  # outside of the training it is that of the rest of the program
    values = {k: v for k, v in values.items() if k != "seconds"}
    values["history"] = [{k: v for k, v in entry.items() if k != "seconds"} for entry in values["history"]]
    return {**tensors, **weights, **average, "values": values}


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


class Stop(Exception):
    pass


def train(
    path: Path,
    settings: TrainSettings,
    make: Any = model,
    stop: int | None = None,
    resume: bool = False,
    data: Any = None,
    device: torch.device | str = "cpu",
) -> TrainResult:
    """Train; `stop`: leave a checkpoint after this step and die."""

    def keep(step: int, result: TrainResult) -> None:
        if step == stop:
            save(result.raw, path, ema=result.model.network, state=result.state())
            raise Stop

    state = read_state(path) if resume else None
    data = points() if data is None else data
    return fit(make(), data, settings, device=device, progress=False, on_checkpoint=keep, checkpoint_seconds=0.0, resume=state)


def test_n_steps_a_death_and_the_rest_equal_all_at_once(tmp_path: Path) -> None:
    settings = TrainSettings(steps=STEPS, batch=16, warmup=4, evaluations=3)
    whole = everything(train(tmp_path / "none", settings))
    for stop in (1, 6, 8, 15, 23):  # 3 and 9 batches are a pass over the data, 8 and 16 steps an evaluation
        with pytest.raises(Stop):
            train(tmp_path / "c", settings, stop=stop)
        torch.rand(7)  # the global generator is elsewhere in another process
        assert_equal(everything(train(tmp_path / "c", settings, resume=True)), whole)


OTHERS: dict[str, dict[str, Any]] = {
    "muon": {"optimizer": "muon"},
    "reference, drawn": {"reference": 9},
    "reference of all": {"reference": 50, "times": "broad"},
    "several averages": {"ema_widths": (0.2, 0.05)},
    "huber": {"loss": "huber"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_go_on_to_the_last_bit_too(name: str, tmp_path: Path) -> None:
    settings = TrainSettings(steps=10, batch=16, warmup=4, evaluations=1, **OTHERS[name])
    whole = everything(train(tmp_path / "none", settings))
    for stop in (4, 9):
        with pytest.raises(Stop):
            train(tmp_path / "c", settings, stop=stop)
        torch.rand(7)
        assert_equal(everything(train(tmp_path / "c", settings, resume=True)), whole)
    plain = everything(train(tmp_path / "none", TrainSettings(steps=10, batch=16, warmup=4, evaluations=1)))
    changed = not all(torch.equal(plain[key], value) for key, value in whole.items() if key.startswith("raw."))
    assert changed == (name != "several averages"), "more averages are looked at, and change nothing"
    kept = {key.rpartition(".")[2] for key in whole if key.startswith("optimizer.")}
    assert ("momentum" in kept) == (name == "muon") and "exp_avg" in kept
    assert {key.split(".")[1] for key in whole if key.startswith("averages.")} == ({"0", "1"} if name == "several averages" else set())


def test_a_training_learns_and_goes_on_on_every_device(device: torch.device, tmp_path: Path) -> None:
    data = points() + 30 * torch.tensor([1.0, -1.0]).repeat(25)[:, None]  # two modes

    def make() -> sde_gen.ScoreModel:
        return build_model(data, "vp", "mlp", network_options={"width": 16, "depth": 1, "dropout": 0.05})

    settings = TrainSettings(steps=60, batch=50, warmup=4, lr=1e-2, evaluations=2)
    whole = train(tmp_path / "none", settings, make, data=data, device=device)
    assert {p.device.type for one in (whole.raw, whole.model) for p in one.parameters()} == {device.type}
    assert min(whole.history[-1]["level_loss"]) < 0.8
    assert sum(entry["loss"] for entry in whole.history[-20:]) < 0.9 * sum(entry["loss"] for entry in whole.history[:20])
    with pytest.raises(Stop):
        train(tmp_path / "c", settings, make, stop=7, data=data, device=device)
    rest = train(tmp_path / "c", settings, make, resume=True, data=data, device=device)
    for one, other in ((whole.raw, rest.raw), (whole.model, rest.model)):
        for name, value in one.network.state_dict().items():
            torch.testing.assert_close(other.network.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_a_finished_training_goes_on_by_the_schedule_of_the_longer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = (TrainSettings(steps=steps, batch=16, warmup=4, evaluations=3) for steps in (STEPS, 2 * STEPS))
    fit(
        model(),
        points(),
        short,
        progress=False,
        on_finish=lambda result: save(result.raw, tmp_path / "c", ema=result.model.network, state=result.state()) and None,
    )
    rates: list[float] = []
    advance = Trainer.advance

    def watched(self: Trainer) -> Any:
        entry = advance(self)
        rates.append(self.optimizer.param_groups[0]["lr"])
        return entry

    monkeypatch.setattr(Trainer, "advance", watched)
    first = train(tmp_path / "c", long, resume=True)
    assert rates == pytest.approx([1e-3 * 0.5 * (1 + math.cos(math.pi * n / (2 * STEPS))) for n in range(STEPS, 2 * STEPS)])
    torch.rand(3)
    assert_equal(everything(train(tmp_path / "c", long, resume=True)), everything(first))
    assert [entry["step"] for entry in first.history] == list(range(1, 2 * STEPS + 1))
    assert [entry["step"] for entry in first.history if "level_loss" in entry] == [8, 16, 24, 32, 48]
    with pytest.raises(Stop):
        train(tmp_path / "c", long, stop=STEPS + 5, resume=True)
    assert_equal(everything(train(tmp_path / "c", long, resume=True)), everything(first))


def test_the_pace_is_said_once_and_changes_nothing(tmp_path: Path) -> None:
    settings = TrainSettings(steps=30, batch=16, warmup=4, evaluations=3)
    said: list[tuple[int, float]] = []
    watched = fit(model(), points(), settings, progress=False, on_pace=lambda seconds, result: said.append((result.steps, seconds)))
    assert len(said) == 1 and said[0][0] == UNMEASURED + PACE_STEPS and 0 < said[0][1] < watched.seconds
    assert_equal(everything(watched), everything(fit(model(), points(), settings, progress=False)))


@pytest.mark.parametrize("objective", ["vlb", "hybrid"])
def test_the_importance_of_indices_is_remembered(objective: str, tmp_path: Path) -> None:
    settings = TrainSettings(steps=STEPS, batch=32, warmup=4, objective=objective, chain_steps=4, indices="importance")
    whole = everything(train(tmp_path / "none", settings, hybrid))
    with pytest.raises(Stop):
        train(tmp_path / "c", settings, hybrid, stop=STEPS // 2 + 3)
    assert_equal(everything(train(tmp_path / "c", settings, hybrid, resume=True)), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_on_disk_give_the_same_training_and_go_on_the_same(workers: int, tmp_path: Path) -> None:
    np.save(tmp_path / "points.npy", points().numpy())
    source = array_source(np.load(tmp_path / "points.npy", mmap_mode="r"), "points.npy")
    settings = TrainSettings(steps=12, batch=16, warmup=4, evaluations=3, workers=workers)
    in_memory = everything(train(tmp_path / "none", TrainSettings(steps=12, batch=16, warmup=4, evaluations=3)))
    assert_equal(everything(train(tmp_path / "none", settings, data=source)), in_memory)
    with pytest.raises(Stop):
        train(tmp_path / "c", settings, stop=5, data=source)
    assert_equal(everything(train(tmp_path / "c", settings, resume=True, data=source)), in_memory)


@pytest.mark.parametrize("settings", [{"accumulate": 4}, {"micro_batch": 5}, {"micro_batch": 1}])
@pytest.mark.parametrize("objective", ["dsm", "simple"])
def test_parts_of_a_batch_give_the_gradients_of_the_batch(settings: dict[str, int], objective: str) -> None:
    def gradients(**parts: int) -> list[torch.Tensor]:
        made = model(dropout=0.0)
        common = {"batch": 16, "warmup": 0, "steps": 1, "weighting": "simple", "times": "stratified", "objective": objective, "clip": 1e9}
        trainer = Trainer(made, points(), TrainSettings(**common, **parts), None, None, None, "cpu")
        found: list[torch.Tensor] = []
        trainer.optimizer.register_step_pre_hook(lambda *_: found.extend(p.grad.clone() for p in made.network.parameters()))
        with trainer.running():
            trainer.advance()
        return found

    for one, other in zip(gradients(), gradients(**settings), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_out_of_memory_goes_on_with_smaller_parts_and_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings(steps=3, batch=16, warmup=0)
    whole = train(Path("none"), settings, lambda: model(dropout=0.0)).raw
    forward = torch.nn.Linear.forward

    def small_memory(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", small_memory)
    with pytest.warns(UserWarning, match="--micro-batch 4 starts so"):
        parts = train(Path("none"), settings, lambda: model(dropout=0.0)).raw
    for one, other in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_no_memory_for_one_sample_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object, **kwargs: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = model()
    trainer = Trainer(made, points(), TrainSettings(steps=3, batch=2), None, None, None, "cpu")
    monkeypatch.setattr(torch.nn.Linear, "forward", none)
    with trainer.running(), pytest.warns(UserWarning), pytest.raises(TrainingError, match="--micro-batch or network"):
        trainer.advance()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_its_step_keeps_it_and_says_so(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = TrainSettings(steps=STEPS, batch=16, warmup=4, evaluations=3)
    whole = everything(train(tmp_path / "none", settings))
    advance = Trainer.advance

    def interrupted(self: Trainer) -> Any:
        if self.step == 9:
            os.kill(os.getpid(), number)
        return advance(self)

    def keep(step: int, result: TrainResult) -> None:
        save(result.raw, tmp_path / "c", ema=result.model.network, state=result.state())

    monkeypatch.setattr(Trainer, "advance", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"step 10 of {STEPS}"):
        fit(model(), points(), settings, progress=False, on_checkpoint=keep)
    assert signal.getsignal(number) is before
    monkeypatch.setattr(Trainer, "advance", advance)
    assert_equal(everything(train(tmp_path / "c", settings, resume=True)), whole)


def test_a_step_that_is_not_finite_leaves_weights_average_and_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(dropout=0.0)
    trainer = Trainer(made, points(), TrainSettings(steps=STEPS, batch=16, warmup=10), None, None, None, "cpu")
    from sde_gen.training.objective import Objective

    forward = Objective.forward
    with trainer.running():
        for _ in range(3):
            trainer.advance()
        weights = [p.detach().clone() for p in made.network.parameters()]
        average = [p.detach().clone() for p in trainer.average.module.parameters()]
        share = trainer.share
        monkeypatch.setattr(Objective, "forward", lambda *args, **cond: forward(*args, **cond) * float("nan"))
        trainer.advance()
        assert trainer.result.skipped == 1 and trainer.step == 4 and trainer.share == share
        assert all(torch.equal(a, b) for a, b in zip(weights, made.network.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(average, trainer.average.module.parameters(), strict=True))
        monkeypatch.undo()
        trainer.advance()
        assert trainer.in_a_row == 0


@pytest.mark.parametrize(
    "settings, match",
    [({"micro_batch": 0}, "micro_batch"), ({"workers": -1}, "workers"), ({"micro_batch": 2, "accumulate": 2}, "not both")],
)
def test_bad_settings(settings: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TrainSettings(batch=16, **settings)
