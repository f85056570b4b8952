"""Posterior means over a reference of training items: their own closed forms, and what they leave as it is, the minimiser."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sde_gen import ScoreModel, empirical_score, make_sde
from sde_gen.data.source import array_source
from sde_gen.training import TrainSettings, build_model, fit
from sde_gen.training.objective import Objective
from sde_gen.training.targets import PosteriorMeans
from sde_gen.training.tokens import TokenObjective


def items(count: int = 60, shape: tuple[int, ...] = (1, 5, 5)) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def model(mask: Tensor | None = None) -> ScoreModel:
    return ScoreModel(lambda x, c: x, make_sde("vp"), prediction="data", mask=mask)


def drawn(x: Tensor, count: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Items of x, times and noise: (count, ...)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(x), (count,), generator=generator)
    t = torch.rand(count, generator=generator, dtype=torch.float64) * 0.8 + 0.01
    return chosen, t, torch.randn(count, *x.shape[1:], generator=generator)


def test_over_all_items_they_are_the_optimal_denoiser_of_the_data() -> None:
    x, whole = items(), model()
    chosen, t, noise = drawn(x, 32)
    means = PosteriorMeans(x, {}, 1_000)
    found = means(whole, x[chosen], t, noise, means.draw(torch.Generator().manual_seed(0)), {})
    exact = empirical_score(x, whole.sde, normalizer=type("Units", (), {"encode": lambda self, x: x})())  # type: ignore[arg-type]
    alpha, sigma = (value[:, None, None, None] for value in whole.sde.marginal(t))
    expected = exact.denoise((alpha * x[chosen] + sigma * noise).float(), t)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.dtype == x.dtype and float((found - x[chosen]).abs().max()) > 0.5, "at much noise they are not the item"


@pytest.mark.parametrize("count", [2, 3])
def test_over_few_items_their_mean_given_the_state_is_that_over_all(count: int) -> None:
    """The tower rule, for data of two values with unequal shares: the mean of the targets near a state is E[x_0 | x_t] there."""
    x = torch.tensor([[-1.0], [-1.0], [-1.0], [1.0]])
    whole, n = model(), 40_000
    generator = torch.Generator().manual_seed(count)
    t = torch.full((n,), float(whole.sde.time_of(torch.tensor(0.0, dtype=torch.float64))), dtype=torch.float64)
    alpha, sigma = (float(value) for value in whole.sde.marginal(t[0]))
    few, everything = PosteriorMeans(x, {}, count), PosteriorMeans(x, {}, 4)
    found, exact, states = [], [], []
    for _ in range(25):  # a reference for each batch
        chosen, noise = torch.randint(4, (n // 25,), generator=generator), torch.randn(n // 25, 1, generator=generator)
        found.append(few(whole, x[chosen], t[: n // 25], noise, few.draw(generator), {}))
        exact.append(everything(whole, x[chosen], t[: n // 25], noise, torch.arange(4), {}))
        states.append(alpha * x[chosen] + sigma * noise)
    off, state, best = torch.cat(found) - torch.cat(exact), torch.cat(states), torch.cat(exact)
    assert float(off.std()) > 0.1, "each target differs"
    for low, high in ((-9, -0.7), (-0.7, 0.0), (0.0, 0.7), (0.7, 9)):
        here = (state > low) & (state <= high)
        of_batches = torch.stack([one[mask].mean() for one, mask in zip(off.chunk(25), here.chunk(25), strict=True)])
        assert abs(float(of_batches.mean())) < 4 * float(of_batches.std()) / 5 + 1e-3, (low, float(best[here].mean()))


def test_a_network_that_is_told_classes_gets_the_means_over_its_class() -> None:
    x, labels = items(), torch.arange(60) % 3
    chosen, t, noise = drawn(x, 24)
    told = labels[chosen].clone()
    told[::4] = -1
    means = PosteriorMeans(x, {"label": labels}, 60)
    found = means(model(), x[chosen], t, noise, torch.arange(60), {"label": told})
    for row in range(24):
        mine = x if told[row] < 0 else x[labels == told[row]]
        alone = PosteriorMeans(mine, {}, 60)
        expected = alone(model(), x[chosen[row]][None], t[row : row + 1], noise[row : row + 1], torch.arange(len(mine)), {})
        torch.testing.assert_close(found[row], expected[0], rtol=1e-5, atol=1e-6)


def test_entries_that_are_no_data_have_no_say() -> None:
    mask = torch.ones(1, 5, 5, dtype=torch.bool)
    mask[:, 2:, 1:] = False
    x = items()
    chosen, t, noise = drawn(x, 16)
    means = PosteriorMeans(x.masked_fill(~mask, 0.0), {}, 60)
    found = means(model(mask), x[chosen], t, noise, torch.arange(60), {})
    inside = PosteriorMeans(x[:, mask], {}, 60)(model(), x[chosen][:, mask], t, noise[:, mask], torch.arange(60), {})
    torch.testing.assert_close(found[:, mask], inside, rtol=1e-5, atol=1e-6)
    assert not found[:, ~mask].any()


def test_near_the_data_they_are_the_item_itself() -> None:
    x = items(400, (3, 40))
    chosen, _, noise = drawn(x, 8)
    t = torch.full((8,), make_sde("vp").t_min, dtype=torch.float64)
    for count in (400, 50):
        means = PosteriorMeans(x, {}, count)
        assert len(means.draw(torch.Generator())) == (400 if count == 400 else 49)
        torch.testing.assert_close(means(model(), x[chosen], t, noise, means.draw(torch.Generator().manual_seed(3)), {}), x[chosen])


def test_a_training_is_told_apart_from_one_of_items_and_its_losses_are_lower() -> None:
    data, labels = items(40, (4,)) * 3 + 1, torch.arange(40) % 2
    specs = {"label": {"kind": "label", "classes": 2}}
    losses = {}
    for reference in (0, 8, 40):
        made = build_model(data, network="mlp", network_options={"width": 16, "depth": 1}, conditions=specs)
        settings = TrainSettings(steps=4, batch=32, reference=reference, drop=0.5)
        losses[reference] = fit(made, data, settings, {"label": labels}, progress=False).history[0]["loss"]
    assert losses[40] < losses[8] < losses[0]


@pytest.mark.parametrize(
    ("data", "cond", "message"),
    [
        (array_source(items(9).numpy(), "x"), {}, "reference 5 is for data in memory, and these are read batch by batch"),
        (items(9), {"dose": torch.rand(9)}, r"told classes, and 'dose' is torch.float32 of shape \(9,\): leave reference out"),
        (items(9), {"map": torch.ones(9, 2, dtype=torch.int64)}, r"and 'map' is torch.int64 of shape \(9, 2\)"),
    ],
)
def test_what_has_no_posterior_mean(data: Any, cond: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PosteriorMeans(data, cond, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": 1}, "reference must be 0 or a whole number of at least 2, got 1"),
        ({"reference": 8, "loss": "l1"}, "reference 8 is for loss 'l2', whose minimum it keeps, got 'l1'"),
        ({"reference": 8, "objective": "simple"}, "reference 8 is for objective 'dsm', got 'simple'"),
        ({"loss": "huber", "objective": "vlb"}, "loss 'huber' is for objective 'dsm', got 'vlb'"),
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'; choose from adamw, muon"),
        ({"ema_widths": (0.1,)}, r"each another and none of them ema_width \(0.1\), got \[0.1\]"),
        ({"ema_widths": (0.5,)}, r"ema_widths must be above 0 and below 0.28, .* got \[0.5\]"),
    ],
)
def test_settings_that_contradict_one_another(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings)


@pytest.mark.parametrize(("settings", "what"), [({"reference": 4}, "reference 4"), ({"loss": "l1"}, "loss 'l1'")])
def test_symbols_have_neither_posterior_means_nor_other_losses(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=f"{what} is for data of numbers, and these are symbols"):
        TokenObjective(TrainSettings(**settings))


def test_items_with_gaps_of_their_own_have_no_means() -> None:
    x, valid = items(20), torch.ones(20, 1, 5, 5)
    valid[::2, :, 0] = 0
    specs = {"valid": {"kind": "valid", "channels": 1, "grid": [5, 5]}}
    made = build_model(x, network="unet", network_options={"width": 8, "multipliers": [1], "attention": []}, conditions=specs, valid=valid)
    with pytest.raises(ValueError, match="reference 8 is for data whose items all have the same valid entries, and 'valid' differs"):
        Objective(TrainSettings(reference=8), made)
