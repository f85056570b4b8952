"""Settings that change how fast a training is and not what it makes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_gen.training import Objective, TrainingError, TrainResult, TrainSettings, build_model, fit, load, read_state, save
from sde_gen.training.batches import batch_order
from sde_gen.training.trainer import Trainer

SETTINGS = TrainSettings(steps=12, batch=12, warmup=2, evaluations=1, micro_batch=5, tf32=False)
CLOSE = {"rtol": 0, "atol": 2e-5}


def images(rank: int = 2) -> Tensor:
    return 3 + 2 * torch.randn(40, 2, *[6] * rank, generator=torch.Generator().manual_seed(0))


def trained(settings: TrainSettings, rank: int = 2, **options: Any) -> TrainResult:
    x = images(rank)
    model = build_model(x, network="unet", network_options={"width": 8, "multipliers": [1, 2], "attention": [1]})
    return fit(model, x, settings, progress=False, **options)


def weights(result: TrainResult) -> Tensor:
    return torch.cat([p.detach().flatten() for model in (result.raw, result.model) for p in model.parameters()])


@pytest.mark.parametrize("rank", [2, 3])
def test_channels_last_trains_the_same_network_and_is_saved_as_any_other(rank: int, device: torch.device, tmp_path: Path) -> None:
    plain, turned = (trained(replace(SETTINGS, channels_last=last), rank, device=device) for last in (False, True))
    torch.testing.assert_close(weights(turned), weights(plain), **CLOSE)
    layout = torch.channels_last if rank == 2 else torch.channels_last_3d
    wide = [p for p in (*turned.raw.parameters(), *turned.model.parameters()) if p.ndim == rank + 2 and p.shape[1] > 1 and p.shape[-1] > 1]
    assert wide and all(p.is_contiguous(memory_format=layout) for p in wide)
    save(turned.raw, tmp_path, ema=turned.model.network, state=turned.state())
    again = load(tmp_path, device=device)
    for mine, theirs in zip(again.parameters(), turned.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_training_goes_on_in_either_layout(device: torch.device, tmp_path: Path) -> None:
    """The optimiser's kernel goes through memory in its order, whatever the strides say."""
    half = trained(replace(SETTINGS, steps=6, decay="constant"), device=device)
    save(half.raw, tmp_path, ema=half.model.network, state=half.state())
    ends = [
        trained(replace(SETTINGS, decay="constant", channels_last=turned), resume=read_state(tmp_path), device=device)
        for turned in (False, True)
    ]
    torch.testing.assert_close(weights(ends[1]), weights(ends[0]), **CLOSE)
    for state in ends[1].trainer.optimizer.state.values():
        assert state["exp_avg"].stride() in {p.stride() for p in ends[1].trainer.parameters}


def test_channels_last_of_what_has_no_channels() -> None:
    with pytest.raises(ValueError, match=r"^channels_last is for images and volumes, .* got data \(9, 4\)$"):
        fit(build_model(torch.randn(9, 4), network="mlp"), torch.randn(9, 4), replace(SETTINGS, channels_last=True), progress=False)


def test_a_compiled_network_is_trained_to_the_same_weights(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))  # without a compiler, which takes a minute
    plain, compiled = (trained(replace(SETTINGS, compile=asked), device=device) for asked in (False, True))
    torch._dynamo.reset()
    assert calls, "nothing was compiled"
    torch.testing.assert_close(weights(compiled), weights(plain), **CLOSE)
    assert not any("_orig_mod" in name for name in compiled.model.state_dict())


def test_what_cannot_be_compiled_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(TrainingError, match=r"^the network cannot be compiled here \(leave training.compile out\): [^\n]*no compiler here"):
        trained(replace(SETTINGS, compile=True))
    torch._dynamo.reset()


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize("bad", [(), (3, 4, 7, 12)])
def test_a_training_that_runs_ahead_of_its_device_is_the_same_to_the_bit(
    bad: tuple[int, ...], saving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: whether a step was finite is asked for after the next one is under way, and before anything is kept of it."""
    forward, settle = Objective.forward, Trainer.settle
    calls, later = [0], [0]

    def losses(self: Objective, model: Any, x_0: Tensor, draw: Any, **cond: Any) -> Tensor:
        calls[0] += 1
        step = (calls[0] - 1) // 3 + 1  # three parts to a step
        return forward(self, model, x_0, draw, **cond) * (float("nan") if step in bad else 1.0)

    def counted(self: Trainer) -> None:
        later[0] += self.unsettled is not None and calls[0] > 3 * self.unsettled[0]
        settle(self)

    monkeypatch.setattr(Objective, "forward", losses)
    monkeypatch.setattr(Trainer, "settle", counted)
    monkeypatch.setattr("sde_gen.training.trainer.LOGS", 3)

    def run() -> tuple[Tensor, list[Any], dict[str, Tensor]]:
        calls[0] = later[0] = 0
        states: list[Any] = []
        saves: dict[str, Any] = {"checkpoint_seconds": 1e-9, "on_checkpoint": lambda step, r: states.append(r.state())} if saving else {}
        result = trained(SETTINGS, **saves)
        states.append(result.state())
        counts = [state[1] | {"seconds": 0.0, "history": [entry["loss"] for entry in state[1]["history"]]} for state in states]
        return weights(result), counts, states[-1][0]

    at_once = run()
    assert later[0] == 0
    monkeypatch.setattr(Trainer, "runs_ahead", True)
    ahead = run()
    assert later[0] == (0 if saving else 9), "steps that were settled behind the next one's kernels, of twelve"
    assert torch.equal(at_once[0], ahead[0]) and at_once[1] == ahead[1]
    assert at_once[1][-1]["skipped"] == len(bad) and len(at_once[1]) == (12 if saving else 1)
    assert at_once[2].keys() == ahead[2].keys() and all(torch.equal(value, ahead[2][name]) for name, value in at_once[2].items())


def test_batches_on_a_device_are_those_of_the_host(device: torch.device) -> None:
    on_host, on_device = batch_order(10, 4, seed=3, skip=3), batch_order(10, 4, seed=3, skip=3, device=device)
    drawn = [next(on_device) for _ in range(7)]
    assert {index.device.type for index in drawn} == {device.type}
    assert [index.tolist() for index in drawn] == [next(on_host).tolist() for _ in range(7)]
    one_pass = torch.cat([drawn[2], drawn[3], drawn[4]]).tolist()[:10]  # the first twelve were skipped, eight ended the second pass
    assert sorted(one_pass) == list(range(10)) != one_pass


def test_a_training_in_bfloat16_stays_near_the_one_in_float32(device: torch.device) -> None:
    plain, narrow = (trained(replace(SETTINGS, bfloat16=half, steps=20, lr=5e-3), device=device) for half in (False, True))
    ends = [result.history[-1]["validation"] for result in (plain, narrow)]
    assert ends[0] < 1 and ends[1] == pytest.approx(ends[0], rel=5e-3)


def test_steps_that_are_not_finite_are_left_out_on_every_device(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = Objective.forward, [0]

    def losses(self: Objective, model: Any, x_0: Tensor, draw: Any, **cond: Any) -> Tensor:
        calls[0] += 1
        return forward(self, model, x_0, draw, **cond) * (float("nan") if 2 < calls[0] <= 6 else 1.0)

    settings = replace(SETTINGS, micro_batch=None, decay="constant", warmup=0)
    monkeypatch.setattr(Objective, "forward", losses)
    result = trained(settings, device=device)
    assert result.skipped == 4 and result.trainer.taken == result.trainer.average.updates == 8
    assert {float(state["step"]) for state in result.trainer.optimizer.state.values()} == {8.0}
    assert bool(torch.isfinite(weights(result)).all())


def test_a_training_that_the_clock_ends_has_a_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "seconds", property(lambda self: 0.05 * self.step))
    result = trained(replace(SETTINGS, steps=1_000_000, max_seconds=1.0, evaluations=4))
    steps = [entry["step"] for entry in result.history]
    assert steps == list(range(1, 21)) and [entry["step"] for entry in result.history if "level_loss" in entry] == [5, 10, 15, 20]


def test_a_training_of_another_device_goes_on_with_a_warning(tmp_path: Path) -> None:
    half = trained(replace(SETTINGS, steps=6))
    tensors, values = half.state()
    tensors |= {
        "generator": torch.zeros(16, dtype=torch.uint8),
        "random": torch.cat((tensors["random"], torch.zeros(16, dtype=torch.uint8))),
    }
    save(half.raw, tmp_path, ema=half.model.network, state=(tensors, values))
    with pytest.warns(UserWarning, match="began on another kind of device: its noise goes on from a new seed"):
        assert trained(SETTINGS, resume=read_state(tmp_path)).steps == 12


def test_float32_on_a_gpu_is_as_asked_while_it_trains() -> None:
    seen = []
    for tf32 in (True, False):
        look = {"on_finish": lambda result: seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))}
        trained(replace(SETTINGS, tf32=tf32, steps=1), **look)
    assert seen == [(True, True), (False, False)] and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"compile": "no"}, "compile must be true or false, got 'no'"),
        ({"channels_last": 2}, "channels_last must be true or false, got 2"),
        ({"channels_last": True, "shard": "fsdp"}, "channels_last and shard 'fsdp' exclude each other"),
    ],
)
def test_settings_that_are_none(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**values)
