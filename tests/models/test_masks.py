"""Entries that are no data: what lies there changes nothing, and everything else is that of the valid entries alone."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sde_gen
from sde_gen import Moments, ScoreModel, make_sde
from sde_gen.conditions import Valid, fit_condition, make_condition, valid_entries
from sde_gen.data import Normalizer
from sde_gen.exact.mixtures import MixtureData
from sde_gen.networks import make_network
from sde_gen.solvers import SOLVERS, make_solver

SDE = make_sde("vp")
SHAPE = (2, 4, 5)
MASK = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.7
MASK[0, 0, 0], MASK[1, 0, 0] = True, False
WIDE = int(MASK.sum())


def sea(components: int = 2) -> MixtureData:
    """A mixture over the valid entries, flattened."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(components, WIDE, generator=generator, dtype=torch.float64)
    half = torch.randn(components, WIDE, WIDE, generator=generator, dtype=torch.float64)
    return MixtureData(torch.ones(components), means, 0.3 * half @ half.mT / WIDE + 0.05 * torch.eye(WIDE))


class OfValid(nn.Module):
    """The exact score of data on the valid entries, wrong by what it sees at the others, where it answers with whatever is there."""

    def __init__(self, data: MixtureData, kind: str | None = None) -> None:
        super().__init__()
        self.data = data
        self.encoders = {} if kind is None else {"valid": make_condition("valid", {"kind": kind, "channels": 2}, 4, SHAPE[1:])}

    def forward(self, x: Tensor, t: Tensor, valid: Tensor | None = None) -> Tensor:
        score = self.data.score_at(x[:, MASK], SDE, t) + x[:, ~MASK].sum(1, keepdim=True)  # which is 0 where the mask does its work
        return (1e3 + x**2).index_put((slice_all(len(x)), *places()), score)


def slice_all(count: int) -> Tensor:
    return torch.arange(count)[:, None]


def places() -> tuple[Tensor, ...]:
    return tuple(index[None] for index in MASK.nonzero(as_tuple=True))


def masked_model(prior: str = "matched", per_item: bool = False, components: int = 2) -> ScoreModel:
    data = sea(components)
    mean, covariance = data.moments()
    whole_mean = torch.zeros(SHAPE, dtype=torch.float64)
    whole_mean[MASK] = mean
    whole = torch.zeros(MASK.numel(), MASK.numel(), dtype=torch.float64)
    rows = MASK.flatten().nonzero()[:, 0]
    whole[rows[:, None], rows] = covariance
    if per_item:  # known of other items, where the same entries are data
        whole = whole + 0.2 * torch.diag((~MASK).flatten().double())
    return ScoreModel(
        OfValid(data, "valid" if per_item else None),
        SDE,
        prediction="score",
        prior=prior,
        moments=Moments(whole_mean, covariance=whole),
        normalizer=Normalizer(torch.tensor([1e5, -3.0]).reshape(2, 1, 1), torch.tensor([200.0, 1e-4]).reshape(2, 1, 1)),
        mask=None if per_item else MASK,
    )


def garbage(seed: int, count: int = 3) -> Tensor:
    return 1e4 * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def told(per_item: bool, count: int) -> dict[str, Tensor]:
    return {"valid": MASK.expand(count, *SHAPE)} if per_item else {}


@pytest.mark.parametrize("per_item", [False, True])
def test_what_lies_at_other_entries_changes_no_bit(per_item: bool):
    model = masked_model(per_item=per_item)
    cond = model.conditions(told(per_item, 3), 3, torch.device("cpu"))
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = [model.denoise(torch.where(MASK, x, other), 0.4, **cond) for other in (garbage(3), torch.full((), math.nan))]
    assert torch.equal(*found) and bool((found[0][:, ~MASK] == 0).all()) and bool((found[0][:, MASK] != 0).all())
    clean = model.normalizer.decode(x)
    flows = [
        sde_gen.log_likelihood(model, torch.where(MASK, clean, other), cond=cond, rtol=1e-3, atol=1e-3).log_prob
        for other in (garbage(3), torch.full((), math.nan))
    ]
    assert torch.equal(*flows)
    losses = [sde_gen.dsm_loss(model, torch.where(MASK, x, other), seed=4, **cond) for other in (garbage(3), torch.full((), math.nan))]
    assert torch.equal(*losses)


@pytest.mark.parametrize("prior", ["matched", "sde"])
@pytest.mark.parametrize("per_item", [False, True])
def test_the_likelihood_is_that_of_the_valid_entries(prior: str, per_item: bool):
    model, data = masked_model(prior, per_item), sea()
    z = data.sample(2, seed=5)
    x = garbage(6, 2).index_put((slice_all(2), *places()), z)
    x = torch.where(MASK, model.normalizer.decode(x), garbage(7, 2))
    scale = model.normalizer.scale.expand(SHAPE)[MASK].log().sum()
    plain = sde_gen.log_likelihood(data.model(SDE, prior), z, "exact", rtol=1e-5, atol=1e-5, dtype=torch.float64)
    exact = plain.log_prob - scale  # of the valid entries alone
    alpha = float(SDE.marginal(torch.tensor(SDE.t_min, dtype=torch.float64))[0])
    if prior == "matched":
        torch.testing.assert_close(exact, data.log_prob(alpha * z, SDE, SDE.t_min) + WIDE * math.log(alpha) - scale, atol=2e-3, rtol=0)
    for divergence in ("exact", "hutchinson"):
        options = {"probes": 16} if divergence == "hutchinson" else {}
        found = sde_gen.log_likelihood(model, x, divergence, cond=told(per_item, 2), rtol=1e-5, atol=1e-5, dtype=torch.float64, **options)
        error = (found.log_prob - exact).abs()
        assert bool((error < 1e-2 + 4 * found.margin().nan_to_num()).all()), (divergence, error, found.std_error)


def test_the_loss_is_the_mean_over_valid_entries_of_each_item():
    model = masked_model()
    x = torch.where(MASK, torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64), 9.0)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t = torch.full((3,), 0.3, dtype=torch.float64)
    alpha, sigma = (float(value) for value in SDE.marginal(t[0]))
    right = (model.denoise(alpha * x + sigma * noise, t) - x)[:, MASK].square().mean(1)
    found = sde_gen.dsm_loss(model, x, lambda sde, t, std: torch.ones_like(t), t, noise=noise)
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("name", [name for name in SOLVERS if not make_solver(name).needs_variance])
def test_every_solver_samples_the_valid_entries_as_if_there_were_no_others(name: str):
    data = sea(1)
    model = masked_model(components=1)
    options = {"steps": 30} if not make_solver(name).adaptive else {}
    found = sde_gen.sample(model, (512, *SHAPE), name, seed=1, progress=False, dtype=torch.float64, **options)
    z = model.normalizer.encode(found.x)
    assert bool((z[:, ~MASK] == 0).all()) and bool((found.x[:, ~MASK] == model.normalizer.decode(torch.zeros(1, *SHAPE))[:, ~MASK]).all())
    plain = sde_gen.sample(data.model(SDE), (512, WIDE), name, seed=1, progress=False, dtype=torch.float64, **options)
    spread, other = z[:, MASK].double().std(0).mean(), plain.x.double().std(0).mean()
    assert float((spread / other - 1).abs()) < 0.05
    off = (z[:, MASK].double().mean(0) - plain.x.double().mean(0)) / plain.x.double().std(0) * math.sqrt(512 / 2)
    assert float(off.square().mean().sqrt()) < 1.6


def test_statistics_are_of_valid_entries_whatever_the_scale():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, *SHAPE, generator=generator, dtype=torch.float64) * torch.tensor([10.0, 1e-8]).reshape(2, 1, 1)
    x = x + torch.tensor([1e5, 1e-6]).reshape(2, 1, 1)
    valid = torch.rand(300, 1, 4, 5, generator=generator) < 0.6
    for there, kind in ((MASK, "standard"), (valid, "standard"), (valid, "quantile")):
        found = [Normalizer.fit(torch.where(there, x, other), kind, valid=there) for other in (1e9, -5.0)]
        assert all(torch.equal(a, b) for a, b in zip(found[0].state_dict().values(), found[1].state_dict().values(), strict=True))
        if kind == "standard":
            for channel in range(2):
                values = x[:, channel][there.expand(x.shape)[:, channel]]
                torch.testing.assert_close(found[0].shift.flatten()[channel], values.mean(), rtol=1e-12, atol=0)
                torch.testing.assert_close(found[0].scale.flatten()[channel], values.std(correction=0), rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="channel 1 has no valid entry"):
        Normalizer.fit(x, valid=torch.tensor([True, False]).reshape(2, 1, 1))
    normalizer = Normalizer.fit(x)
    part = normalizer.log_det(x[:2], MASK) + normalizer.log_det(x[:2], ~MASK)
    torch.testing.assert_close(part, normalizer.log_det(x[:2]))


def training(mask: bool, other: Callable[[Tensor], Tensor], seed: int = 0) -> ScoreModel:
    generator = torch.Generator().manual_seed(seed)
    x = 5 + 3 * torch.randn(64, *SHAPE, generator=generator)
    valid = torch.rand(64, 1, 4, 5, generator=generator) < 0.7
    valid[:, :, 0, 0] = True
    there = MASK if mask else valid
    how = {"steps": 3, "batch": 16, "warmup": 1, "network_options": {"width": 8, "multipliers": (1, 2), "attention": (), "patch": 1}}
    told = {"mask": MASK} if mask else {"conditions": {"valid": valid}}
    return sde_gen.train(torch.where(there, x, other(x)), progress=False, device="cpu", **told, **how)


@pytest.mark.parametrize("mask", [True, False])
def test_a_training_never_sees_other_entries(mask: bool, tmp_path):
    first, second = training(mask, lambda x: 1e6 - x), training(mask, torch.zeros_like)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert (first.mask is not None) == mask and first.data_std == pytest.approx(1.0, abs=1e-5)
    sde_gen.save(first, tmp_path / "model")
    again = sde_gen.load(tmp_path / "model")
    cond = {} if mask else {"valid": (torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.5).float()}
    x = torch.randn(2, *SHAPE)
    assert torch.equal(again.denoise(x, 0.5, **cond), first.denoise(x, 0.5, **cond))
    if mask:
        assert torch.equal(again.mask, MASK)


@pytest.mark.parametrize("mask", [True, False])
def test_a_masked_array_is_data_with_a_mask(mask: bool):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, *SHAPE, generator=generator).numpy()
    hole = np.broadcast_to(~MASK.numpy(), x.shape) if mask else np.random.default_rng(0).random(x.shape) < 0.3
    how = {
        "steps": 1,
        "batch": 4,
        "network_options": {"width": 8, "multipliers": (1,), "attention": ()},
        "progress": False,
        "device": "cpu",
    }
    found = sde_gen.train(np.ma.array(x, mask=hole), **how)
    assert (found.mask is not None and torch.equal(found.mask, MASK)) == mask and ("valid" in found.encoders) != mask
    told = {"mask": MASK} if mask else {"conditions": {"valid": torch.from_numpy(~hole)}}
    again = sde_gen.train(np.where(hole, np.nan, x), **told, **how)
    for a, b in zip(found.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="which says itself what is no data"):
        sde_gen.train(np.ma.array(x, mask=hole), mask=MASK, **how)


def test_the_condition_valid_is_never_dropped_and_must_be_known():
    assert fit_condition("valid", MASK[None, :1].expand(3, 1, 4, 5), (4, 5))["kind"] == "valid"
    assert fit_condition("clouds", MASK[None, :1].expand(3, 1, 4, 5), (4, 5))["kind"] == "mask"
    network = make_network("unet", SHAPE, {"valid": {"kind": "valid"}}, width=8, multipliers=(1,), attention=())
    encoder = network.encoders["valid"]
    assert isinstance(encoder, Valid)
    value = torch.ones(2, 1, 4, 5)
    value[0, 0, 0] = 0
    assert torch.equal(encoder.null(value), value) and bool((encoder.missing(2, torch.device("cpu")) == 1).all())
    assert torch.equal(valid_entries(network.encoders, {"valid": value}), value.bool()) and valid_entries(network.encoders, {}) is None
    for bad, words in ((value * math.nan, "must be known everywhere"), (value * 0, "item 0 without a single valid entry")):
        with pytest.raises(ValueError, match=words):
            encoder.check(bad)
    with pytest.raises(ValueError, match="mask must be Boolean with at least one True"):
        ScoreModel(network, SDE, mask=torch.zeros(SHAPE, dtype=torch.bool))
    with pytest.raises(ValueError, match="objective 'simple' is for data without masks"):
        sde_gen.train(torch.randn(8, *SHAPE), mask=MASK, objective="simple", sde="ddpm", progress=False, device="cpu", network="mlp")


def test_a_guided_model_has_its_models_mask():
    guided = sde_gen.guide(masked_model(per_item=True), 2.0)
    assert torch.equal(guided.valid(told(True, 2)), MASK.expand(2, *SHAPE))
