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

SETTINGS = TrainSettings(steps=12, batch=12, warmup=2, evaluations=1, micro_batch=5)


def images(rank: int = 2) -> Tensor:
    return 3 + 2 * torch.randn(40, 2, *[6] * rank, generator=torch.Generator().manual_seed(0))


def trained(settings: TrainSettings, rank: int = 2, **options: Any) -> TrainResult:
    x = images(rank)
    model = build_model(x, network="unet", network_options={"width": 8, "multipliers": [1, 2], "attention": [1]})
    return fit(model, x, settings, progress=False, **options)


def weights(result: TrainResult) -> Tensor:
    return torch.cat([p.detach().flatten() for model in (result.raw, result.model) for p in model.parameters()])


@pytest.mark.parametrize("rank", [2, 3])
def test_channels_last_trains_the_same_network_and_is_saved_as_any_other(rank: int, tmp_path: Path) -> None:
    plain, turned = trained(SETTINGS, rank), trained(replace(SETTINGS, channels_last=True), rank)
    torch.testing.assert_close(weights(turned), weights(plain), rtol=0, atol=2e-5)
    layout = torch.channels_last if rank == 2 else torch.channels_last_3d
    wide = [p for p in (*turned.raw.parameters(), *turned.model.parameters()) if p.ndim == rank + 2 and p.shape[1] > 1 and p.shape[-1] > 1]
    assert wide and all(p.is_contiguous(memory_format=layout) for p in wide)
    save(turned.raw, tmp_path, ema=turned.model.network, state=turned.state())
    again = load(tmp_path)
    for mine, theirs in zip(again.parameters(), turned.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_training_goes_on_in_either_layout(tmp_path: Path) -> None:
    """The optimiser's kernel goes through memory in its order, whatever the strides say."""
    half = trained(replace(SETTINGS, steps=6, decay="constant"))
    save(half.raw, tmp_path, ema=half.model.network, state=half.state())
    ends = [trained(replace(SETTINGS, decay="constant", channels_last=turned), resume=read_state(tmp_path)) for turned in (False, True)]
    torch.testing.assert_close(weights(ends[1]), weights(ends[0]), rtol=0, atol=2e-5)
    for state in ends[1].trainer.optimizer.state.values():
        assert state["exp_avg"].stride() in {p.stride() for p in ends[1].trainer.parameters}


def test_channels_last_of_what_has_no_channels() -> None:
    with pytest.raises(ValueError, match=r"^channels_last is for images and volumes, .* got data \(9, 4\)$"):
        fit(build_model(torch.randn(9, 4), network="mlp"), torch.randn(9, 4), replace(SETTINGS, channels_last=True), progress=False)


def test_a_compiled_network_is_trained_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))  # without a compiler, which takes a minute
    plain, compiled = trained(SETTINGS), trained(replace(SETTINGS, compile=True))
    torch._dynamo.reset()
    assert calls, "nothing was compiled"
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=0, atol=2e-5)
    assert not any("_orig_mod" in name for name in compiled.model.state_dict())


def test_what_cannot_be_compiled_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(TrainingError, match=r"^the network cannot be compiled here \(leave training.compile out\): [^\n]*$"):
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


def test_batches_on_a_device_are_those_of_the_host() -> None:
    on_host, on_device = batch_order(10, 4, seed=3, skip=3), batch_order(10, 4, seed=3, skip=3, device="meta")
    for _ in range(6):
        assert next(on_host).shape == next(on_device).shape
    assert next(on_device).device.type == "meta"


def test_float32_on_a_gpu_is_as_asked_while_it_trains() -> None:
    seen = []
    for tf32 in (True, False):
        trained(replace(SETTINGS, tf32=tf32, steps=1), on_finish=lambda result: seen.append(torch.backends.cuda.matmul.fp32_precision))
    assert seen == ["tf32", "ieee"] and torch.backends.cuda.matmul.fp32_precision == "none"
