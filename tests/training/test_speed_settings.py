"""Settings that change how fast a training is and not what it makes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_gen.training import TrainingError, TrainResult, TrainSettings, build_model, fit, load, read_state, save
from sde_gen.training.batches import batch_order

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
