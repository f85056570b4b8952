import math
from typing import Any

import pytest
import torch
from torch import nn

import sde_gen
from sde_gen.sdes import SDES
from sde_gen.solvers import SOLVERS
from sde_gen.training import TrainingError, TrainSettings, build_model, fit

SMALL = {"width": 32, "depth": 2}


def points(n: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, generator=generator) * torch.tensor([30.0, 0.5]) + torch.tensor([1000.0, -2.0])


@pytest.mark.parametrize("name", SDES)
def test_training_lowers_the_loss_and_samples_come_back_in_the_data_s_units(name: str) -> None:
    sign = torch.where(torch.arange(512) % 2 == 0, 1.0, -1.0)[:, None]
    data = points() * 0.02 + 100 * sign  # two far modes: something that a zero network cannot know
    model = build_model(data, name, "mlp", network_options=SMALL)
    result = fit(model, data, TrainSettings(steps=150, batch=128, lr=3e-3, warmup=10), progress=False)
    first, last = result.history[0]["loss"], result.history[-1]["loss"]
    assert last < 0.7 * first
    assert min(result.history[-1]["level_loss"]) < 0.6
    # Every solver on VP, and on the other SDEs every fourth one, in turn.
    for solver in SOLVERS if name == "vp" else list(SOLVERS)[list(SDES).index(name) % 4 :: 4]:
        # Two Langevin steps a level cannot keep up with sixty levels from sigma = 50 down; ten can.
        options = {"corrections": 10} if solver == "langevin" else {}
        # An adaptive solver's steps are a cap, and adaptive_sde alone has 32 panels of a step or more each.
        steps = None if sde_gen.make_solver(solver).adaptive else 60
        out = sde_gen.sample(result.model, (256, 2), solver, steps=steps, progress=False, **options).x
        assert float((out.mean(0) - data.mean(0)).abs().max()) < 40, solver
        assert float(out[:, 0].std() / data[:, 0].std()) == pytest.approx(1, abs=0.25), solver


@pytest.mark.parametrize(
    "objective, settings, sde",
    [("simple", {}, "vp"), ("vlb", {"indices": "importance"}, "vp"), ("vlb", {}, "ddpm"), ("hybrid", {}, "ddpm")],
)
def test_a_network_trained_as_a_chain_is_sampled_by_chain_and_flow(objective: str, settings: dict[str, Any], sde: str) -> None:
    sign = torch.where(torch.arange(512) % 2 == 0, 1.0, -1.0)[:, None]
    data = points() * 0.02 + 100 * sign
    variance = "learned_range" if objective == "hybrid" or settings else None
    chain_settings = {"sde_settings": {"steps": 20}} if sde == "ddpm" else {}
    model = build_model(data, sde, "mlp", network_options=SMALL, variance=variance, **chain_settings)
    chosen = TrainSettings(steps=200, batch=128, lr=3e-3, warmup=10, objective=objective, chain_steps=20, **settings)
    result = fit(model, data, chosen, progress=False)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert min(result.history[-1]["level_loss"]) < 0.7
    kinds = ("fixed_small", "fixed_large") if variance is None else ("fixed_small", "learned")
    for solver, options in (*(("ancestral", {"variance": kind}) for kind in kinds), ("dpm", {})):
        out = sde_gen.sample(result.model, (256, 2), solver, steps=40, progress=False, **options).x
        assert float((out.mean(0) - data.mean(0)).abs().max()) < 40, solver
        # The bound weighs the least noise most: so short a training by it alone leaves the rest rough.
        assert float(out[:, 0].std() / data[:, 0].std()) == pytest.approx(1, abs=0.4 if objective == "vlb" else 0.25), solver


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        model = sde_gen.train(
            points(), "vp", "mlp", steps=10, batch=32, seed=seed, network_options=SMALL | {"dropout": 0.1}, device="cpu", progress=False
        )
        weights.append(torch.cat([p.flatten() for p in model.network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_every_sample_is_seen_once_in_a_pass() -> None:
    from sde_gen.training.batches import batch_order

    order = batch_order(10, 4, seed=0)
    seen = torch.cat([next(order) for _ in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) == sorted(seen[10:].tolist())
    assert seen[:10].tolist() != seen[10:].tolist()


def test_labels_train_a_conditional_network() -> None:
    labels = torch.arange(512) % 2
    data = points() * 0.01 + 50.0 * (2 * labels[:, None] - 1)
    model = sde_gen.train(
        data, "vp", "mlp", steps=200, batch=128, lr=3e-3, labels=labels, network_options=SMALL, device="cpu", progress=False
    )
    asked = torch.arange(64) % 2
    out = sde_gen.sample(model, (64, 2), "em", steps=50, cond={"label": asked}, progress=False).x
    assert float(((out[:, 1] > 0) == (asked == 1)).double().mean()) > 0.9


class Broken(nn.Module):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.left = after

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.left -= 1
        return x * self.weight * (math.nan if self.left < 0 else 1.0)


def test_steps_that_are_not_finite_are_skipped_and_then_end_the_training() -> None:
    model = build_model(points(), "vp", Broken(after=5))
    with pytest.raises(TrainingError, match="not finite for 11 steps in a row, up to step 16"):
        fit(model, points(), TrainSettings(steps=50, batch=16), progress=False)
    assert bool(torch.isfinite(model.network.weight).all())


def test_max_seconds_ends_the_training() -> None:
    model = build_model(points(), "vp", "mlp", network_options=SMALL)
    result = fit(model, points(), TrainSettings(steps=10**6, batch=16, max_seconds=0.3), progress=False)
    assert result.steps < 10**6 and result.seconds < 5
    assert "level_loss" in result.history[-1]


def test_evaluations_and_checkpoints_are_reported() -> None:
    model = build_model(points(), "vp", "mlp", network_options=SMALL)
    evaluated, kept = [], []
    fit(
        model,
        points(),
        TrainSettings(steps=40, batch=16, evaluations=4),
        progress=False,
        on_evaluate=lambda step, result: evaluated.append(step),
        on_checkpoint=lambda step, result: kept.append(step),
        checkpoint_seconds=1e-9,
    )
    assert evaluated == [10, 20, 30, 40]
    assert kept == list(range(1, 40))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"batch": -4}, "batch must be a whole number"),
        ({"lr": math.nan}, "lr must be positive and finite"),
        ({"lr": -1.0}, "lr must be positive and finite"),
        ({"batch": 10, "accumulate": 3}, "multiple of accumulate"),
        ({"decay": "step"}, "unknown decay 'step'; choose from constant, linear, cosine"),
        ({"weighting": "snr"}, "unknown weighting 'snr'"),
        ({"times": "log"}, "unknown time sampler 'log'"),
        ({"max_seconds": 0.0}, "max_seconds must be positive"),
        ({"ema_width": 0.5}, "ema_width must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"warmup": -1}, "warmup must be"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings)


@pytest.mark.parametrize("data", [torch.zeros(3), torch.randn(1, 2), torch.ones(5, 2), torch.full((5, 2), math.nan)])
def test_bad_data(data: torch.Tensor) -> None:
    with pytest.raises(ValueError):
        sde_gen.train(data, steps=1, network="mlp", device="cpu", progress=False)


def test_train_names_what_it_cannot_take() -> None:
    class Backwards(sde_gen.SDE):
        def marginal(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return t, 1 - t

    x, labels = torch.randn(20, 2), torch.arange(20) % 2
    for arguments, error, message in (
        ({"data": 3.5}, TypeError, "a path, a registered name, a pandas frame or a dict of columns is needed, got float"),
        ({"data": "cats"}, ValueError, "data 'cats' is unknown"),
        ({"network": torch.nn.Linear}, TypeError, r"got the class Linear: make one, Linear\(...\)"),
        ({"labels": labels - 1}, ValueError, r"labels span -1..0"),
        ({"labels": labels[:5]}, ValueError, r"one label for each item"),
        ({"learning_rate": 1.0}, TypeError, "train has no setting learning_rate; it takes batch, .*lr"),
        ({"sde": Backwards()}, ValueError, "runs backwards"),
        ({"device": "gpu"}, ValueError, "unknown device 'gpu'; try cpu, cuda or cuda:0"),
    ):
        with pytest.raises(error, match=message):
            sde_gen.train(**{"data": x, "network": "mlp", "steps": 1, "progress": False, **arguments})
    sde_gen.train(x, network="mlp", labels=labels.numpy(), steps=1, progress=False, network_options={"width": 8, "depth": 1})
