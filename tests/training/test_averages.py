"""Averages of several widths, and one of another width made of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_gen.training import CheckpointError, TrainResult, TrainSettings, build_model, choose_average, fit, load, read_state, save
from sde_gen.training.ema import PowerAverage, combination

KEPT = (0.02, 0.05, 0.1, 0.2)
SETTINGS = TrainSettings(steps=60, batch=16, warmup=2, ema_width=0.05, ema_widths=(0.2, 0.1), evaluations=1, lr=1e-2, decay="constant")


def points() -> Tensor:
    return torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1


def trained(path: Path, settings: TrainSettings = SETTINGS, **how: Any) -> TrainResult:
    made = build_model(points(), network="mlp", network_options={"width": 16, "depth": 1})
    result = fit(made, points(), settings, progress=False, **how)
    save(result.raw, path, ema=result.model.network, state=result.state())
    return result


def weights(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


@pytest.mark.parametrize("width", [0.02, 0.03, 0.04, 0.07, 0.15, 0.2])
def test_a_combination_follows_the_average_that_it_stands_for(width: float) -> None:
    """On weights that are a Brownian motion, beside an average that was kept all along."""
    coefficients, missed = combination(KEPT, width)
    assert sum(coefficients) == pytest.approx(1) and (missed == 0) == (width in KEPT) and missed < 0.05
    network = nn.Linear(400, 1, bias=False).double()
    averages = [PowerAverage(network, one) for one in (*KEPT, width)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(1500):
        with torch.no_grad():
            network.weight.add_(torch.randn(1, 400, generator=generator))
        for average in averages:
            average.update(network)
    *kept, wanted = (average.module.weight.detach() for average in averages)
    made = sum(c * one for c, one in zip(coefficients, kept, strict=True))
    off = float((made - wanted).norm() / (network.weight.detach() - wanted).norm())
    assert off == pytest.approx(missed, rel=0.2, abs=2e-3)
    if width not in KEPT:
        nearest = min(kept, key=lambda one: float((one - wanted).norm()))
        assert off < 0.3 * float((nearest - wanted).norm() / (network.weight.detach() - wanted).norm())


def test_weights_that_never_change_stay_what_they_are() -> None:
    coefficients, missed = combination((0.05, 0.1), 0.07)
    assert sum(coefficients) == pytest.approx(1, abs=1e-12) and 0.02 < missed < 0.1


@pytest.mark.parametrize(
    ("widths", "width", "message"),
    [
        ((0.05,), 0.1, "the averages kept, of widths 0.05, miss one of width 0.1 by [0-9]+%: choose one between them"),
        ((0.1, 0.05), 0.25, "of widths 0.05, 0.1, miss one of width 0.25 by"),
        ((0.1, 0.05), 0.4, "width must be above 0 and below 0.28, got 0.4"),
    ],
)
def test_a_width_that_the_averages_do_not_reach(widths: tuple[float, ...], width: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combination(widths, width)


def test_any_width_between_is_loaded_afterwards(tmp_path: Path) -> None:
    result = trained(tmp_path)
    kept = {0.05: result.model.network, 0.2: result.trainer.placement.whole_averages[1], 0.1: result.trainer.placement.whole_averages[2]}
    for width, network in kept.items():
        loaded = load(tmp_path, ema_width=width)
        assert torch.equal(weights(loaded), torch.cat([p.detach().flatten() for p in network.parameters()]))
    alone = trained(tmp_path / "alone", TrainSettings(**vars(SETTINGS) | {"ema_width": 0.07, "ema_widths": ()}))
    assert torch.equal(weights(alone.raw), weights(result.raw)), "averages change nothing of the training"
    off = float((weights(load(tmp_path, ema_width=0.07)) - weights(alone.model)).norm())
    assert off < 0.1 * float((weights(load(tmp_path)) - weights(alone.model)).norm())


def test_a_width_that_is_chosen_is_everybodys_and_the_training_goes_on_from_its_own(tmp_path: Path) -> None:
    longer = TrainSettings(**vars(SETTINGS) | {"steps": 80})
    trained(tmp_path)
    before, wanted = load(tmp_path), load(tmp_path, ema_width=0.07)
    assert 0 < choose_average(tmp_path, 0.07) < 0.05
    assert torch.equal(weights(load(tmp_path)), weights(wanted)) and not torch.equal(weights(wanted), weights(before))
    assert torch.equal(weights(load(tmp_path, ema_width=0.12)), weights(load(tmp_path, ema_width=0.12)))
    rest = trained(tmp_path / "rest", longer, resume=read_state(tmp_path))
    trained(tmp_path / "again")
    other = trained(tmp_path / "other", longer, resume=read_state(tmp_path / "again"))
    assert torch.equal(weights(rest.model), weights(other.model)) and torch.equal(weights(rest.raw), weights(other.raw))
    assert choose_average(tmp_path, 0.05) == 0
    assert torch.equal(weights(load(tmp_path)), weights(before))
    assert not torch.equal(weights(load(tmp_path, ema=False)), weights(before))


def test_a_checkpoint_without_averages_says_so(tmp_path: Path) -> None:
    result = trained(tmp_path / "a")
    with pytest.raises(ValueError, match=r"ema_width 0.07 is of averaged weights, and ema=False asks for the last ones"):
        load(tmp_path / "a", ema=False, ema_width=0.07)
    with pytest.raises(ValueError, match=r"the averages kept, of widths 0.05, 0.1, 0.2, miss one of width 0.01 by"):
        choose_average(tmp_path / "a", 0.01)
    save(result.raw, tmp_path / "b", ema=result.model.network)
    with pytest.raises(CheckpointError, match=r"keeps no averages of a training to make one of width 0.07 of"):
        load(tmp_path / "b", ema_width=0.07)
