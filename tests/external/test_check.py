"""A wrong fact is named by an exact denoiser that stands for a trained network, and a right one raises no alarm."""

import math
from typing import Any

import pytest
import torch
from foreign_checkpoints import adm_state, randomised

import sde_gen
from sde_gen.external import ExternalModel, check_external, load_external
from sde_gen.external.check import _laid_out, _levels, _linear_errors
from sde_gen.networks.resampled_blocks import Attention

SHAPE = (3, 8, 8)


def pictures(count: int, seed: int) -> torch.Tensor:
    """Smooth pictures of 0 .. 255 whose channels differ in brightness and contrast."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.nn.functional.interpolate(torch.randn(count, 3, 3, 3, generator=generator), size=(8, 8), mode="bicubic")
    waves = waves + 0.8 * torch.randn(count, 1, 1, 1, generator=generator)
    level, contrast = torch.tensor([170.0, 110.0, 60.0]).reshape(3, 1, 1), torch.tensor([40.0, 30.0, 12.0]).reshape(3, 1, 1)
    return (level + contrast * waves).clamp(0, 255).round()


class Exact(torch.nn.Module):
    """What a network that has learned such pictures would give, as `truth` says its clock and output, with its moments."""

    def __init__(self, sde: sde_gen.SDE, moments: sde_gen.Moments) -> None:
        super().__init__()
        self.moments, self.sde, self.truth = moments, sde, None
        self.place = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        assert self.truth is not None
        grid = torch.linspace(self.sde.t_min, self.sde.t_max, 1001, dtype=torch.float64)
        scales = self.truth.scales(grid)
        told = (scales.clock - c.double()[:, None]).nan_to_num(1e9).abs().argmin(1)
        c_in, skip, out, alpha, sigma = (column[told, None] for column in (scales.c_in, scales.skip, scales.out, *self.sde.marginal(grid)))
        state = x.double().flatten(1) / c_in
        mean, variances, axes = self.moments.axes(SHAPE)
        along = (state - alpha * mean) @ axes
        denoised = mean + (alpha * variances / (alpha**2 * variances + sigma**2) * along) @ axes.T
        return ((denoised - skip * state) / out).reshape(x.shape).to(x.dtype) + 0 * self.place


MOMENTS = sde_gen.Moments.fit(pictures(1500, 0) / 127.5 - 1)
NORMALIZER = sde_gen.Normalizer(torch.full((3, 1, 1), 127.5), torch.full((3, 1, 1), 127.5), "range")
TRUTHS: dict[str, tuple[sde_gen.SDE, dict[str, Any]]] = {
    "vp": (sde_gen.make_sde("vp"), {"prediction": "noise", "clock": "time"}),
    "ve": (sde_gen.make_sde("ve", sigma_min=0.02, sigma_max=100.0), {"prediction": "scaled_score", "clock": "half_log_snr"}),
    "edm": (sde_gen.make_sde("ve", sigma_min=0.002, sigma_max=80.0), {"prediction": "edm", "clock": "c_noise", "data_std": 0.5}),
}


def stated(kind: str, **settings: Any) -> sde_gen.ScoreModel:
    sde, truth = TRUTHS[kind]
    network = Exact(sde, MOMENTS)
    network.truth = sde_gen.ScoreModel(lambda x, c: x, sde, **truth)
    normalizer = settings.pop("normalizer", NORMALIZER)
    given = truth | ({"data_std": 0.5} if settings.get("prediction") == "edm" else {}) | settings
    return sde_gen.ScoreModel(network, sde, **given, normalizer=normalizer)


@pytest.mark.parametrize("kind", TRUTHS)
def test_right_facts_raise_no_alarm(kind: str) -> None:
    for seed in (1, 2):
        found = check_external(stated(kind), pictures(8, seed), seed=seed)
        assert found.right and found.fact is None and found.error < 1 and "the facts fit" in found.sentence
        assert len(found.errors) == len(found.linear) == len(found.half_log_snr) and len(found.others) > 12


@pytest.mark.parametrize(
    ("kind", "wrong", "fact", "value"),
    [
        ("vp", {"prediction": "scaled_score"}, "prediction", "'noise'"),
        ("vp", {"prediction": "data"}, "prediction", "'noise'"),
        ("ve", {"prediction": "noise"}, "prediction", "'scaled_score'"),
        ("edm", {"prediction": "v", "scale_input": False}, "prediction", "'edm'"),
        ("vp", {"clock": lambda sde, t: 1 - t}, "clock", "t"),
        ("ve", {"clock": lambda sde, t: -sde.half_log_snr(t)}, "clock", "half_log_snr"),
        ("edm", {"clock": lambda sde, t: t}, "clock", "log(sigma)/4"),
        (
            "vp",
            {"normalizer": sde_gen.Normalizer(torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.5))},
            "range",
            "pictures of 0 .. 255 outside",
        ),
        (
            "ve",
            {"normalizer": sde_gen.Normalizer(torch.zeros(3, 1, 1), torch.full((3, 1, 1), 255.0))},
            "range",
            "pictures of -1 .. 1 in the network",
        ),
    ],
)
def test_one_wrong_fact_is_named(kind: str, wrong: dict[str, Any], fact: str, value: str) -> None:
    found = check_external(stated(kind, **wrong), pictures(8, 3))
    assert (found.right, found.fact) == (False, fact) and value in str(found.value)
    assert found.better is not None and found.better < found.error and f"the {fact} looks wrong" in found.sentence


def test_colours_the_other_way_round() -> None:
    found = check_external(stated("vp"), pictures(8, 3).flip(1))
    assert found.fact == "channel order"


def test_an_average_is_compared_where_it_is_given() -> None:
    worse = stated("vp")
    worse.network.moments = sde_gen.Moments(0.3 * MOMENTS.mean, covariance=torch.eye(192))
    found = check_external(worse, pictures(8, 3), others={"averaged weights": stated("vp")})
    assert (found.fact, found.value) == ("average", "averaged weights")


def test_raw_weights_must_be_better_by_more_than_averaged_ones() -> None:
    """Of a denoiser that is worse by 3 %: the better one is named where it is called an average, and not where it is called raw."""

    class Worse(sde_gen.ScoreModel):
        def predict(self, x: torch.Tensor, t: Any, **cond: torch.Tensor) -> sde_gen.Prediction:
            found = super().predict(x, t, **cond).denoised
            return sde_gen.Prediction(found + (x - found) * 0.042)

    good = stated("vp")
    worse = Worse(good.network, good.sde, **good.settings(), normalizer=good.normalizer)
    gain = 1 - check_external(good, pictures(8, 3)).error / check_external(worse, pictures(8, 3)).error
    assert 0.012 < gain < 0.048
    assert check_external(worse, pictures(8, 3), others={"averaged weights": good}).value == "averaged weights"
    assert check_external(worse, pictures(8, 3), others={"raw weights": good}).right


def test_two_wrong_facts_are_not_taken_for_one() -> None:
    found = check_external(stated("ve", prediction="data", clock=lambda sde, t: t), pictures(8, 3))
    assert not found.right and found.fact is None and "no single other fact" in found.sentence


def test_what_it_is_given() -> None:
    with pytest.raises(TypeError, match="takes a ScoreModel, got Linear"):
        check_external(torch.nn.Linear(2, 2), pictures(8, 0))  # type: ignore[arg-type]
    for images in (pictures(3, 0), pictures(8, 0)[0]):
        with pytest.raises(ValueError, match="at least 4"):
            check_external(stated("vp"), images)


def test_the_linear_filter_is_the_best_one_of_stationary_pictures() -> None:
    """White noise of variance v: every filter leaves alpha^2 v/(alpha^2 v + sigma^2) of the noise."""
    z = math.sqrt(0.3) * torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    levels = _levels(sde_gen.make_sde("vp"))
    wanted = 0.3 / (0.3 + torch.exp(-2 * levels))
    torch.testing.assert_close(_linear_errors(z, levels), wanted, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_another_layout_of_attention_is_that_of_another_import(order: str, tmp_path: Any) -> None:
    """Changing the order or the heads of a loaded network gives, to the bit, what loading it so would have given."""
    network = randomised("adm", size=8, width=32, multipliers=(1, 2), heads=4, group=1, null=False)
    torch.save(adm_state(network, order), tmp_path / "a.pt")
    facts = {"size": 8, "schedule": "linear", "steps": 1000, "prediction": "noise", "rescale_timesteps": False}

    def load(order: str, heads: int) -> ExternalModel:
        return load_external(tmp_path / "a.pt", config=facts | {"attention_order": order, "heads": heads})

    model, other = load(order, 4), {"legacy": "new", "new": "legacy"}[order]
    for to, heads in ((other, 4), (order, 2), (order, 8)):
        names = [name for name, module in model.network.named_modules() if isinstance(module, Attention)]
        found = _laid_out(model.network, order, to, dict.fromkeys(names, heads)).state_dict()
        wanted = load(to, heads).network.state_dict()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    table = check_external(model, pictures(4, 0)).others
    assert f"attention order: {other}" in table and "heads: heads = 2" in table and "schedule: cosine" in table
