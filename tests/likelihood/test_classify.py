"""Classes by likelihood against a mixture's exact posterior."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen
from sde_gen.exact.mixtures import MixtureData
from sde_gen.likelihood.classify import METHODS, classify

VP = sde_gen.make_sde("vp")
MEANS = torch.tensor([[-0.6, 0.0], [0.9, 0.4], [0.2, -1.0]], dtype=torch.float64)
MODES = [MixtureData(torch.ones(1), MEANS[k : k + 1], (0.2 + 0.1 * k) * torch.eye(2, dtype=torch.float64)[None]) for k in range(3)]
SHARES = [0.5, 0.3, 0.2]


class Labelled(nn.Module):
    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        return torch.stack([mode.denoise_at(x, VP, c) for mode in MODES])[label, torch.arange(len(x))]


def model(**options: Any) -> sde_gen.ScoreModel:
    return sde_gen.ScoreModel(Labelled(), VP, "data", **options)


def exact(x: Tensor) -> Tensor:
    shares = torch.tensor(SHARES, dtype=torch.float64).log()
    return (torch.stack([mode.log_prob(x, VP, VP.t_min) for mode in MODES], 1) + shares).log_softmax(1)


@pytest.mark.parametrize("method", METHODS)
def test_the_posterior_is_the_mixtures_own(method: str) -> None:
    x = torch.cat([mode.sample(8, k) for k, mode in enumerate(MODES)])
    options: dict[str, Any] = {"draws": 60} if method == "bound" else {"divergence": "exact", "rtol": 1e-6, "atol": 1e-6}
    found = classify(model(), x, 3, SHARES, method, **options)
    assert float(found.log_prob.exp().sum(1).sub(1).abs().max()) < 1e-12
    off = (found.log_prob - exact(x)).abs()
    assert float((off / (2 * found.std_error.norm(dim=1, keepdim=True) + 0.02)).max()) < 2.5
    assert float(found.std_error.max()) < (0.6 if method == "bound" else 0.05)
    sure = exact(x).exp().amax(1) > 0.75
    assert int(sure.sum()) > 8 and torch.equal(found.label[sure], exact(x).argmax(1)[sure])


def test_batches_units_and_equal_shares() -> None:
    x = MODES[1].sample(7, 3)
    whole = classify(model(), x, 3, draws=3)
    assert torch.allclose(classify(model(), x, 3, draws=3, batch_size=4).log_prob, whole.log_prob)
    units = sde_gen.Normalizer(torch.tensor([3.0, 3.0]), torch.tensor([5.0, 5.0]))
    moved = classify(model(normalizer=units), 3 + 5 * x, 3, draws=3)
    torch.testing.assert_close(moved.log_prob, whole.log_prob, rtol=0, atol=1e-3)
    assert torch.equal(whole.log_prob, classify(model(), x, 3, [2, 2, 2], draws=3).log_prob)
    assert bool((classify(model(), x, 3, [1, 0, 1], draws=3).label != 1).all())


@pytest.mark.parametrize("method", METHODS)
def test_other_conditions_are_given_with_every_class(method: str) -> None:
    """Items that lie where another condition says: without it each would be of another class."""

    class Moved(Labelled):
        def forward(self, x: Tensor, c: Tensor, label: Tensor, shift: Tensor) -> Tensor:
            alpha, _ = (value[:, None] for value in VP.marginal(c))
            return shift + super().forward(x - alpha * shift, c, label)

    x = torch.cat([mode.sample(3, k) for k, mode in enumerate(MODES)])
    shift = torch.arange(18, dtype=torch.float64).reshape(9, 2) / 18
    options: dict[str, Any] = {"draws": 3, "batch_size": 6} if method == "bound" else {"divergence": "exact"}
    plain = classify(model(), x, 3, method=method, **options)
    moved = classify(sde_gen.ScoreModel(Moved(), VP, "data"), x + shift, 3, method=method, cond={"shift": shift}, **options)
    torch.testing.assert_close(moved.log_prob, plain.log_prob, rtol=0, atol=1e-6 if method == "bound" else 0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 1}, "classes must be a whole number of at least 2, got 1"),
        ({"prior": [1.0, 2.0]}, r"prior must be 3 shares, none negative and not all 0, got \[1.0, 2.0\]"),
        ({"prior": [1.0, -2.0, 3.0]}, "none negative"),
        ({"method": "guess"}, "unknown method 'guess'; choose from bound, flow"),
        ({"draws": 1}, "draws must be a whole number of at least 2, got 1"),
        ({"rtol": 1e-3}, "options rtol are of method 'flow'"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classify(model(), **({"x": MODES[0].sample(2, 0), "classes": 3} | changes))


def test_classes_are_those_of_the_model() -> None:
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    cond = {"label": torch.arange(40) % 3, "dose": x[:, 0]}
    trained = sde_gen.train(x, network="mlp", network_options={"width": 8}, conditions=cond, steps=1, batch=8, progress=False)
    assert classify(trained, x[:2], 3, draws=2).log_prob.shape == (2, 3)
    with pytest.raises(ValueError, match="'label' of this model is of 3 classes; classify was asked for 4 classes of it"):
        classify(trained, x[:2], 4, draws=2)
    with pytest.raises(ValueError, match="'dose' of this model is of kind 'numbers'"):
        classify(trained, x[:2], 3, draws=2, name="dose")
