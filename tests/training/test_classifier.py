"""A classifier that is trained on noisy data comes near the exact one, and guides like it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sde_gen
from sde_gen.exact.mixtures import MixtureData
from sde_gen.guidance import Classifier
from sde_gen.training import train_classifier

VP = sde_gen.make_sde("vp")
MEANS = torch.tensor([[-0.8, 0.0], [0.9, 0.4]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)
BOTH = MixtureData(torch.tensor([0.5, 0.5]), MEANS, torch.stack((0.2 * EYE, 0.2 * EYE)))
MODES = [MixtureData(torch.ones(1), MEANS[k : k + 1], 0.2 * EYE[None]) for k in range(2)]
UNITS = sde_gen.Normalizer(torch.tensor([3.0, -3.0]), torch.tensor([5.0, 5.0]))
LABELS = torch.arange(2).repeat_interleave(1000)


def model() -> sde_gen.ScoreModel:
    return sde_gen.ScoreModel(BOTH.score(VP), VP, "score", normalizer=UNITS)


def data() -> torch.Tensor:
    return UNITS.decode(torch.cat([mode.sample(1000, k) for k, mode in enumerate(MODES)]))  # class-sorted, in units of its own


def test_it_comes_near_the_exact_classifier_and_guides_to_the_class(device: torch.device) -> None:
    options: dict[str, Any] = {"network": "mlp", "network_options": {"width": 64, "depth": 2}, "steps": 600, "lr": 3e-3}
    found = train_classifier(model(), data(), LABELS, progress=False, device=device, **options)
    for t in (VP.t_min, 0.2, 0.5, 0.9):
        x = float(VP.marginal(torch.tensor(t))[0]) * BOTH.sample(400, 7)
        x = x + float(VP.marginal(torch.tensor(t))[1]) * torch.randn(
            400, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        exact = torch.stack([mode.log_prob(x, VP, t) for mode in MODES], 1).softmax(1)
        off = (found.log_probs(x.to(device), t).cpu().exp() - exact).abs().mean()
        assert float(off) < 0.04, t
    if device.type == "cpu":  # the closed-form model is
        guided = Classifier(model(), found)
        out = sde_gen.sample(guided, (300, 2), "heun", 20, cond={"label": torch.ones(300, dtype=torch.int64)}, progress=False)
        z = UNITS.encode(out.x.double())
        assert float((z - MEANS[1]).mean(0).abs().max()) < 0.12 and float(z.var(0).sub(0.2).abs().max()) < 0.08


def test_images_and_the_same_again() -> None:
    images = torch.randn(60, 1, 6, 6) + 3 * torch.arange(2).repeat(30)[:, None, None, None]
    base = sde_gen.ScoreModel(lambda x, c, **cond: x, VP, "data")
    options: dict[str, Any] = {
        "network_options": {"width": 8, "multipliers": [1], "attention": []},
        "steps": 25,
        "batch": 32,
        "progress": False,
    }
    made = [train_classifier(base, images, torch.arange(2).repeat(30), **options) for _ in range(2)]
    x = images[:9]
    assert made[0].log_probs(x, 0.3).shape == (9, 2) and torch.equal(made[0].log_probs(x, 0.3), made[1].log_probs(x, 0.3))
    assert not made[0].training and not any(p.requires_grad for p in made[0].parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.zeros(2000, dtype=torch.int64)}, "at least two classes"),
        ({"labels": LABELS[:5]}, "labels"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"batch": 1.5}, "batch must be a whole number of at least 1, got 1.5"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_classifier(**({"model": model(), "data": data(), "labels": LABELS} | changes))


def test_it_stands_beside_conditions_of_the_model_and_asks_for_its_class() -> None:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    small: dict[str, Any] = {"network": "mlp", "network_options": {"width": 8}, "steps": 1, "batch": 8, "progress": False}
    told = sde_gen.train(x, conditions={"dose": x[:, 0]}, **small)
    guided = Classifier(told, train_classifier(told, x, torch.arange(60) % 3, **small), given=("dose",))
    common: dict[str, Any] = {"steps": 2, "progress": False}
    dose, label = torch.ones(4), torch.tensor([0, 1, 2, 2])
    assert sde_gen.sample(guided, (4, 2), "ddim", cond={"label": label, "dose": dose}, **common).x.isfinite().all()
    with pytest.raises(ValueError, match=r"^the classifier is asked for condition 'label', and was given 'dose'$"):
        sde_gen.sample(guided, (4, 2), "ddim", cond={"dose": dose}, **common)
    with pytest.raises(ValueError, match=r"condition 'label' of the classifier span 1..4; 0..2 is allowed"):
        sde_gen.sample(guided, (4, 2), "ddim", cond={"label": 2 * label.clamp_min(1) - (label < 2).long(), "dose": dose}, **common)
