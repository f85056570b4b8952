"""A training told several conditions, each dropped on its own: parts of a batch, data on disk and a resumed training are the plain one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sde_gen
from sde_gen.conditions import fit_condition
from sde_gen.data.source import array_source
from sde_gen.training import TrainResult, TrainSettings, build_model, fit, read_state, save
from sde_gen.training.batches import batch_order
from sde_gen.training.objective import Objective
from sde_gen.training.trainer import Trainer

COUNT, STEPS, BATCH = 60, 10, 24
DROP = {"label": 0.3, "year": 0.5, "coarse": 0.2}


def signals() -> Tensor:
    return 100 + 5 * torch.randn(COUNT, 1, 8, generator=torch.Generator().manual_seed(0))


def told() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    year = 2020 + 4 * torch.randn(COUNT, 2, generator=generator, dtype=torch.float64)
    year[::5, 1] = torch.nan
    return {"label": torch.arange(COUNT) % 3, "year": year, "coarse": signals().unflatten(2, (4, 2)).mean(3)}


def model(dropout: float = 0.1) -> sde_gen.ScoreModel:
    specs = {name: fit_condition(name, value, (8,)) for name, value in told().items()}
    made = build_model(signals(), network="mlp", network_options={"width": 16, "depth": 1, "dropout": dropout}, conditions=specs)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.network.parameters():  # a new network answers 0 whatever it is told
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"steps": STEPS, "batch": BATCH, "warmup": 2, "drop": DROP, "evaluations": 2} | changes)


def weights(result: TrainResult) -> list[Tensor]:
    return [p.detach().clone() for one in (result.raw, result.model) for p in one.parameters()]


def seen_by_the_network(chosen: TrainSettings, monkeypatch: pytest.MonkeyPatch, steps: int = 3) -> list[dict[str, Tensor]]:
    """What the network is told in each step, its parts together."""
    trainer, parts = Trainer(model(dropout=0.0), signals(), chosen, told(), None, None, "cpu"), []
    network = trainer.model.network
    assert isinstance(network, nn.Module)
    network.register_forward_pre_hook(lambda _, args, cond: parts.append(cond), with_kwargs=True)
    found = []
    with trainer.running():
        for _ in range(steps):
            parts.clear()
            trainer.advance()
            found.append({name: torch.cat([part[name] for part in parts]) for name in DROP})
    return found


def not_given(name: str, value: Tensor) -> Tensor:
    return value == 3 if name == "label" else torch.isnan(value).flatten(1).all(1)


def test_rows_are_dropped_as_the_trainer_drew_them_for_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(steps=50)
    found = seen_by_the_network(chosen, monkeypatch, 50)
    objective, plain, cond = Objective(chosen, model()), model(), told()
    generator, order = torch.Generator().manual_seed(chosen.seed), batch_order(COUNT, BATCH, chosen.seed)
    for step in found:
        dropped, rows = objective.draw(plain, (BATCH, 1, 8), generator, dict(sorted(DROP.items()))).dropped, next(order)
        for name in DROP:
            kept = ~dropped[name]
            assert bool(not_given(name, step[name])[dropped[name]].all())
            torch.testing.assert_close(step[name][kept], cond[name][rows][kept], rtol=0, atol=0, equal_nan=True)
    shares = {name: torch.cat([not_given(name, step[name]) for step in found]).double() for name in DROP}
    for name, share in DROP.items():  # four standard errors of 1,200
        assert float(shares[name].mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / len(shares[name])) ** 0.5)
    both = float((shares["label"] * shares["year"]).mean())
    assert both == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 1200) ** 0.5), "each on its own"


@pytest.mark.parametrize("parts", [{"micro_batch": 7}, {"micro_batch": 24}, {"accumulate": 4}], ids=str)
def test_parts_of_a_batch_are_told_the_same_and_train_the_same(parts: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for one, other in zip(seen_by_the_network(settings(), monkeypatch), seen_by_the_network(settings(**parts), monkeypatch), strict=True):
        for name in DROP:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)
    whole, inparts = (fit(model(0.0), signals(), settings(**chosen), told(), progress=False) for chosen in ({}, parts))
    for one, other in zip(weights(whole), weights(inparts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_conditions_on_disk_are_the_same_training_to_the_bit() -> None:
    cond = told()
    on_disk: dict[str, Any] = cond | {"coarse": array_source(cond["coarse"].numpy(), "coarse")}
    results = [fit(model(), signals(), settings(), given, progress=False) for given in (cond, on_disk)]
    assert all(torch.equal(one, other) for one, other in zip(*map(weights, results), strict=True))


def test_a_training_that_died_goes_on_to_the_bit(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def keep(step: int, result: TrainResult) -> None:
        if step == 4:
            save(result.raw, tmp_path, ema=result.model.network, state=result.state())
            raise Stop

    chosen = settings(micro_batch=7)
    whole = fit(model(), signals(), chosen, told(), progress=False)
    with pytest.raises(Stop):
        fit(model(), signals(), chosen, told(), progress=False, on_checkpoint=keep, checkpoint_seconds=0.0)
    torch.rand(5)  # the global generator is elsewhere in another process
    rest = fit(model(), signals(), chosen, told(), progress=False, resume=read_state(tmp_path))
    assert rest.steps == STEPS
    assert all(torch.equal(one, other) for one, other in zip(weights(whole), weights(rest), strict=True))
    again = sde_gen.load(tmp_path)
    assert again.network.conditions == whole.model.network.conditions  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"conditions": {"site": np.array(["a", 2] * 20, dtype=object)}}, "condition 'site' must be numbers, with classes as integers"),
        ({"conditions": {"site": ["a", 2] * 20}}, "condition 'site' must be numbers, with classes as integers .* got a list"),
        ({"conditions": {"age": 3.0}}, "condition 'age' must have one entry for each item, got one number"),
        ({"conditions": {"label": torch.arange(40) % 3}, "labels": torch.arange(40) % 2}, "give it once"),
    ],
)
def test_conditions_that_are_none_are_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        sde_gen.train(torch.randn(40, 2), network="mlp", steps=1, progress=False, **given)
    assert "\n" not in str(caught.value)


def test_a_network_that_has_no_null_is_named_and_one_that_has_one_is_not() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(3, 2)

        def forward(self, x: Tensor, c: Tensor, dose: Tensor) -> Tensor:
            return self.body(torch.cat([x, dose[:, None]], 1))

    class WithNull(Own):
        def null(self, name: str, value: Tensor) -> Tensor:
            return torch.zeros_like(value)

    x, dose = torch.randn(20, 2), {"dose": torch.randn(20)}
    common: dict[str, Any] = {"conditions": dose, "steps": 1, "batch": 4, "progress": False, "device": "cpu"}
    with pytest.warns(UserWarning, match="always told 'dose'"):
        sde_gen.train(x, network=Own(), **common)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sde_gen.train(x, network=WithNull(), **common)
        sde_gen.train(x, network=Own(), drop=0.0, **common)
