"""A training is a plain loop of a page: what every setting does to the weights, against that loop written down here, in one part.

Labels, a normaliser far from the identity and data sorted by class are in all of them.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen
from sde_gen.discrete import chain_loss, chain_of
from sde_gen.training import TrainSettings, build_model, fit, loop, trainer
from sde_gen.training.batches import batch_order
from sde_gen.training.ema import power_exponent
from sde_gen.training.losses import TIME_SAMPLERS, dsm_loss
from sde_gen.training.objective import Draw, Objective
from sde_gen.training.trainer import Trainer
from sde_gen.training.validation import Validation

COUNT, STEPS, BATCH = 48, 8, 16
LABELS = torch.arange(COUNT) // 12  # sorted by class
DATA = 40.0 * LABELS[:, None] + torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.5]) + 1000.0
HELD = DATA[::5] + 7.0


def conditional(dropout: float = 0.1, **settings: Any) -> sde_gen.ScoreModel:
    options = {"width": 16, "depth": 1, "dropout": dropout}
    made = build_model(DATA, "vp", "mlp", network_options=options, conditions=4, **settings)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in made.network.parameters():  # a new network answers 0 whatever it is asked
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


def plain_training(model: sde_gen.ScoreModel, settings: TrainSettings) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """The weights, their average and the loss of each step of `settings`, by nothing but PyTorch and the loss."""
    network, normalizer = model.network, model.normalizer
    assert isinstance(network, nn.Module) and normalizer is not None
    z = normalizer.encode(DATA).float()
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay)
    generator, order = torch.Generator().manual_seed(settings.seed), batch_order(COUNT, BATCH, settings.seed)
    average, losses = [p.detach().clone() for p in network.parameters()], []
    torch.manual_seed(settings.seed)
    model.train()
    for n in range(1, settings.steps + 1):
        done = (n - 1) / settings.steps
        decay = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}[settings.decay]
        optimizer.param_groups[0]["lr"] = settings.lr * decay * min(1.0, n / settings.warmup)
        index = next(order)
        times, weights = TIME_SAMPLERS[settings.times](model.sde, BATCH, generator, model.data_std)
        noise = torch.randn(BATCH, 2, generator=generator)
        label = torch.where(torch.rand(BATCH, generator=generator) < settings.drop, 4, LABELS[index])
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            loss = (weights * dsm_loss(model, z[index], settings.weighting, times, noise=noise, label=label)).mean()
        network.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters()))
        for p in network.parameters():
            p.grad *= min(1.0, settings.clip / (norm + 1e-6))
        optimizer.step()
        beta = (1 - 1 / n) ** (power_exponent(settings.ema_width) + 1)
        average = [beta * a + (1 - beta) * p.detach() for a, p in zip(average, network.parameters(), strict=True)]
        losses.append(float(loss.detach()))
    return [p.detach() for p in network.parameters()], average, losses


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"micro_batch": 5, "dropout": 0.0, "normalizer": "range"},
        {"clip": 0.02, "decay": "linear", "weight_decay": 0.5},
        {"ema_width": 0.25, "decay": "constant", "weighting": "simple", "times": "uniform", "seed": 3},
        {"bfloat16": True, "times": "importance", "weighting": "likelihood"},
    ],
    ids=["defaults", "parts", "clip and decay", "average and times", "bfloat16"],
)
def test_a_training_is_the_plain_loop(chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "LOGS", STEPS // 2)  # an entry of the history every second step
    chosen = dict(chosen)
    made = {"dropout": chosen.pop("dropout", 0.1), "normalizer": chosen.pop("normalizer", "standard")}
    settings = TrainSettings(steps=STEPS, batch=BATCH, lr=0.02, warmup=3, **chosen)
    weights, average, losses = plain_training(conditional(**made), settings)
    result = fit(conditional(**made), DATA, settings, {"label": LABELS}, progress=False)
    for name, network, expected in (("raw", result.raw.network, weights), ("averaged", result.model.network, average)):
        assert isinstance(network, nn.Module)
        for (key, one), other in zip(network.named_parameters(), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-5, msg=lambda text, at=(name, key): f"{at}: {text}")
    means = [(one + other) / 2 for one, other in zip(losses[::2], losses[1::2], strict=True)]
    assert [entry["loss"] for entry in result.history] == pytest.approx(means, rel=1e-4)
    assert not result.raw.training and not result.model.training


def begun(settings: TrainSettings, **options: Any) -> Trainer:
    return Trainer(conditional(**options), DATA, settings, {"label": LABELS}, HELD, None, "cpu", {"label": LABELS[::5]})


def test_what_is_measured_are_the_averaged_weights_on_held_out_data_in_normalised_units() -> None:
    made = begun(TrainSettings(steps=3, batch=BATCH, lr=0.05, warmup=1, seed=5))
    entry: dict[str, Any] = {}
    with made.running():
        for _ in range(3):
            made.advance()
    made.model.eval()
    made.evaluate(entry)
    validation, normalizer = made.validation, made.model.normalizer
    assert normalizer is not None and validation.seed == 5 and len(validation.x_0) == len(HELD)
    held = {tuple(row) for row in normalizer.encode(HELD).float().tolist()}
    assert {tuple(row) for row in validation.x_0.tolist()} == held
    averaged, raw = validation.measure(made.result.model), validation.measure(made.result.raw)
    assert entry["level_loss"] == averaged != raw and entry["validation"] == pytest.approx(sum(averaged) / len(averaged))
    assert made.result.linear == {"levels": validation.levels, "linear": validation.linear}
    of_training = type(validation).prepare(made.model, validation.x_0, sde_gen.Moments.fit(normalizer.encode(DATA)), seed=5)
    assert validation.linear == pytest.approx(of_training.linear, rel=1e-4), "the linear denoiser knows the training data alone"


def test_a_validation_asks_for_its_conditions_by_the_noise_of_its_seed() -> None:
    model = conditional().eval()
    assert model.normalizer is not None and model.moments is not None
    x_0 = model.normalizer.encode(DATA).float()
    labels = {"label": LABELS}

    def measured(cond: dict[str, Tensor], seed: int = 0) -> list[float]:
        return Validation.prepare(model, x_0, model.moments, cond, seed).measure(model)

    assert measured(labels) != measured({}) and measured(labels) != measured({"label": LABELS.flip(0)})
    assert measured(labels, 0) == measured(labels, 0) != measured(labels, 1)


def test_the_rate_falls_with_the_time_where_the_time_ends_the_training() -> None:
    made = begun(TrainSettings(steps=1_000_000, batch=BATCH, lr=0.01, warmup=0, max_seconds=1e6))
    made.before = 5e5
    made._set_rate()
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.005, rel=1e-3) and not made.done
    made.before = 1e6
    made._set_rate()
    assert made.done and made.share == 1


def test_a_state_holds_everything() -> None:
    chosen = {"steps": 20, "batch": BATCH, "objective": "vlb", "chain_steps": 4, "indices": "importance"}
    made = begun(TrainSettings(**chosen))
    with made.running():
        for _ in range(3):
            made.advance()
        counts = {"step": 9, "taken": 7, "in_a_row": 2, "evaluated": 3, "part": 5, "before": 40.0}
        for name, value in counts.items():
            setattr(made, name, value)
        made.result.skipped, made.recent = 2, [torch.tensor(0.25), torch.tensor(0.5)]
        tensors, values = made.state()
    weights = {f"network.{key}": value for key, value in made.network.state_dict().items()}
    average = {f"ema.{key}": value for key, value in made.average.module.state_dict().items()}
    again = begun(TrainSettings(**chosen, seed=1))
    again.restore((tensors | weights | average, values))
    assert {name: getattr(again, name) for name in counts if name != "before"} == {k: v for k, v in counts.items() if k != "before"}
    assert 40 <= again.before < 60 and again.result.seconds == again.before and again.result.steps == 9
    assert again.result.skipped == 2 and again.recent == made.recent and again.result.history == made.result.history
    assert torch.equal(again.generator.get_state(), made.generator.get_state()) and torch.equal(again.random, tensors["random"])
    assert again.average.updates == 3 and int(made.objective.indices.seen.sum()) == 3 * BATCH
    for one, other in zip(again.objective.buffers(), made.objective.buffers(), strict=True):
        assert torch.equal(one, other)
    for one, other in ((again.network, made.network), (again.average.module, made.average.module)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(again.network.parameters(), again.average.module.parameters(), strict=True))
    for one, other in zip(again.optimizer.state_dict()["state"].values(), made.optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_losses_in_parts_reach_the_importance_of_their_own_indices() -> None:
    def seen(**parts: int) -> Tensor:
        chosen = TrainSettings(steps=2, batch=BATCH, objective="vlb", chain_steps=4, indices="importance", **parts)
        made = begun(chosen, dropout=0.0)
        with made.running():
            made.advance()
            made.advance()
        return made.objective.indices.losses

    torch.testing.assert_close(seen(micro_batch=3), seen(), rtol=1e-4, atol=1e-6)


def test_a_batch_tried_again_in_smaller_parts_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory ends at the last layer of the second part: the first part's gradients and both parts' dropout are behind."""

    def after(part: int) -> list[Tensor]:
        made = begun(TrainSettings(steps=1, batch=BATCH, micro_batch=part, warmup=0, lr=0.05), dropout=0.3)
        last = [module for module in made.network.modules() if isinstance(module, nn.Linear)][-1]
        forward, seen, found = nn.Linear.forward, [], []

        def small(self: nn.Linear, x: Tensor) -> Tensor:
            seen.extend([len(x)] if self is last else [])
            if self is last and seen == [8, 8]:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(self, x)

        with monkeypatch.context() as patch, made.running():
            patch.setattr(nn.Linear, "forward", small)
            made.optimizer.register_step_pre_hook(lambda *_: found.extend(p.grad.clone() for p in made.network.parameters()))
            made.advance()
        assert made.part == 4 and seen[-4:] == [4] * 4
        return found

    with pytest.warns(UserWarning, match="out of memory"):
        again = after(8)
    for one, other in zip(again, after(4), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_order_of_the_data_is_the_seed_s_and_resumes_within_any_pass() -> None:
    whole, other = batch_order(10, 4, seed=1), next(batch_order(10, 4, seed=2))
    batches = [next(whole) for _ in range(9)]
    assert not torch.equal(batches[0], other)
    for skip in (1, 3, 5, 8):
        assert torch.equal(next(batch_order(10, 4, 1, skip)), batches[skip])


def test_a_chain_s_losses_are_those_of_its_length_and_the_data_s_levels() -> None:
    made = begun(TrainSettings(steps=1, batch=BATCH, objective="vlb", chain_steps=4))
    objective = Objective(made.settings, made.model, 256)
    assert len(objective.chain) == 4
    draw = Draw(torch.zeros(BATCH, dtype=torch.int64), torch.ones(BATCH), torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(0)))
    normalizer = made.model.normalizer
    assert normalizer is not None
    x_0 = normalizer.encode(DATA[:BATCH].round() % 256)
    bits = objective(made.model, x_0, draw, label=LABELS[:BATCH])
    expected = chain_loss(made.model, x_0, chain_of(made.model.sde, 4), "vlb", draw.level, 256, noise=draw.noise, label=LABELS[:BATCH])
    assert torch.equal(bits, expected)
    assert not torch.allclose(bits, Objective(made.settings, made.model, None)(made.model, x_0, draw, label=LABELS[:BATCH]))


def test_train_hands_on_all_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Done:
        model, raw = "averaged", "last"

    def watched(model: sde_gen.ScoreModel, data: Tensor, settings: TrainSettings, cond: Any, **rest: Any) -> type[Done]:
        seen.update(model=model, data=data, settings=settings, cond=cond, **rest)
        return Done

    monkeypatch.setattr(loop, "fit", watched)
    given = {
        "prediction": "v",
        "prior": "matched",
        "normalizer": "identity",
        "variance": "learned_range",
        "sde_settings": {"sigma_max": 7.0},
    }
    options = {"width": 8, "depth": 1}
    made = sde_gen.train(
        DATA, "ve", "mlp", 3, LABELS, "cpu", network_options=options, levels=256, seed=4, objective="hybrid", progress=False, **given
    )
    model = seen["model"]
    assert made == "averaged" and seen["settings"] == TrainSettings(steps=3, seed=4, objective="hybrid")
    assert torch.equal(seen["cond"]["label"], LABELS) and torch.equal(seen["data"], DATA)
    assert (seen["levels"], seen["device"], seen["progress"]) == (256, torch.device("cpu"), False)
    assert (model.prediction, model.prior_name, model.variance, model.network.classes) == ("v", "matched", "learned_range", 4)
    assert model.sde.settings["sigma_max"] == 7 and model.normalizer.kind == "identity" and model.network.out_channels == 4
    assert model.data_std == pytest.approx(float(DATA.double().square().mean().sqrt()))
    first = next(iter(model.network.parameters()))
    again = [build_model(DATA, "ve", "mlp", network_options=options, conditions=4, seed=seed, variance="learned_range") for seed in (4, 5)]
    assert [torch.equal(first, next(iter(other.network.parameters()))) for other in again] == [True, False]


def test_ten_bad_steps_in_a_row_are_left_out_and_eleven_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    made = begun(TrainSettings(steps=60, batch=BATCH, warmup=0))
    forward = type(made.objective).forward
    bad = False
    monkeypatch.setattr(type(made.objective), "forward", lambda *given, **cond: forward(*given, **cond) * (math.nan if bad else 1.0))
    with made.running():
        for bad in [False, *[True] * 10, False, *[True] * 10]:
            before = [p.detach().clone() for p in (*made.network.parameters(), *made.average.module.parameters())]
            made.advance()
            now = [*made.network.parameters(), *made.average.module.parameters()]
            assert all(torch.equal(one, other) for one, other in zip(before, now, strict=True)) == bad
        assert made.result.skipped == 20 and made.average.updates == made.taken == 2
        with pytest.raises(sde_gen.training.TrainingError, match="11 steps in a row"):
            made.advance()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-4), (torch.bfloat16, 0.03)])
def test_a_network_of_another_dtype_is_trained_alike_on_data_of_either(dtype: torch.dtype, error: float) -> None:
    """The data, their noise and the loss stay float32 or wider; a network narrower than that rounds its own part alone."""
    losses = []
    for kind in (torch.float32, dtype):
        made = conditional(dropout=0.0)
        made.network.to(kind)
        result = fit(made, DATA.double(), TrainSettings(steps=5, batch=BATCH, lr=3e-3), {"label": LABELS}, progress=False)
        assert all(p.dtype == kind for p in result.model.network.parameters())
        losses.append([entry["loss"] for entry in result.history])
    assert losses[1] == pytest.approx(losses[0], rel=error)


def test_frozen_layers_stay_as_they_are_whatever_the_weight_decay() -> None:
    made = conditional()
    frozen, *_, free = made.network.parameters()
    frozen.requires_grad_(False)
    before = [p.detach().clone() for p in (frozen, free)]
    result = fit(made, DATA, TrainSettings(steps=3, batch=BATCH, weight_decay=0.5), {"label": LABELS}, progress=False)
    assert [torch.equal(p, old) for p, old in zip((frozen, free), before, strict=True)] == [True, False]
    torch.testing.assert_close(next(iter(result.model.network.parameters())), before[0])


def test_the_linear_baseline_of_wide_smooth_data_knows_their_axes() -> None:
    """33 x 33 fields of four large waves: an untrained network must not look as good as a linear denoiser."""
    place = torch.linspace(0, 2 * math.pi, 33)
    waves = torch.stack([torch.outer(torch.cos(a * place), torch.cos(b * place)) for a, b in ((0, 1), (1, 0), (1, 1), (2, 1))])
    fields = torch.einsum("nk,khw->nhw", torch.randn(80, 4, generator=torch.Generator().manual_seed(0)), waves)[:, None]
    model = build_model(fields[:64], "vp", "mlp", network_options={"width": 8, "depth": 1})
    made = Trainer(model, fields[:64], TrainSettings(batch=BATCH), None, fields[64:], None, "cpu")
    assert min(made.validation.linear) < 0.1 < 0.9 < min(made.validation.measure(model))
