import pytest
import torch
from toys import FREE_PREDICTIONS

from sde_gen import ScoreModel, make_sde
from sde_gen.models.moments import Moments
from sde_gen.sdes import SDES
from sde_gen.training import TrainSettings, Validation, build_model, fit


@pytest.mark.parametrize("prediction", FREE_PREDICTIONS)
@pytest.mark.parametrize("name", SDES)
def test_a_zero_network_reads_one(name: str, prediction: str) -> None:
    x_0 = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = ScoreModel(lambda x, c: torch.zeros_like(x), make_sde(name), prediction, data_std=1.0)
    relative = Validation.prepare(model, x_0, Moments.fit(x_0)).measure(model)
    assert relative == pytest.approx([1.0] * len(relative), rel=1e-9)


@pytest.mark.parametrize("name", SDES)
def test_the_linear_baseline_is_the_exact_denoiser_of_gaussian_data(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.tensor([[1.0, 0.0], [0.9, 0.3]], dtype=torch.float64)
    x_0 = torch.randn(512, 2, generator=generator, dtype=torch.float64) @ root.T
    sde, moments = make_sde(name), Moments.fit(x_0)

    def exact(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return moments.denoise(x, *sde.marginal(t[0]))

    model = ScoreModel(exact, sde, "data", data_std=1.0)
    validation = Validation.prepare(model, x_0, moments)
    assert validation.measure(model) == pytest.approx(validation.linear, rel=1e-9)
    assert min(validation.linear) < 0.8  # it sees the correlation, which the zero network does not


def test_the_noise_does_not_change_between_measurements() -> None:
    x_0 = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
    model = ScoreModel(lambda x, c: torch.tanh(x), make_sde("vp"), "edm", data_std=1.0)
    validation = Validation.prepare(model, x_0, Moments.fit(x_0))
    assert validation.measure(model) == validation.measure(model)


@pytest.mark.parametrize("held", [True, False])
def test_a_training_is_measured_on_items_of_every_class_with_their_labels(held: bool) -> None:
    """Sorted by class, in units that are not the model's: the head is of class 0 alone, and without labels the loss cannot be small."""
    labels = torch.arange(3).repeat_interleave(200)
    x = 40 + 10 * labels[:, None].float() + torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    model = build_model(x, "vp", "mlp", conditions=3, network_options={"width": 8, "depth": 1})
    part = {"held_out": x, "held_out_cond": {"label": labels}} if held else {}
    result = fit(model, x, TrainSettings(steps=1, batch=8, evaluations=1), {"label": labels}, progress=False, **part)  # type: ignore[arg-type]
    validation = result.trainer.validation
    shown = validation.cond["label"]
    assert shown.bincount(minlength=3).min() > 25 and len(shown) == 128
    assert model.normalizer is not None
    centres = torch.stack([model.normalizer.encode(x)[labels == k].mean(0) for k in range(3)])
    assert (validation.x_0 - centres[shown]).abs().max() < 1
    # Items without a label have no right answer of a conditional network: the training items stand in for them.
    without = fit(
        model, x, TrainSettings(steps=1, batch=8, evaluations=1), {"label": labels}, held_out=x + 1, progress=False
    ).trainer.validation
    assert torch.equal(without.cond["label"], shown) and torch.equal(without.x_0, validation.x_0)
