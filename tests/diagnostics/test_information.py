"""The information of a condition against closed forms: mixtures whose label's posterior is exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from guided_laws import VP, branches, gaussians, kind
from torch import Tensor, nn

import sde_gen
from sde_gen.diagnostics.information import LEVELS, information
from sde_gen.exact.mixtures import MixtureData

SHARES, COUNT = torch.tensor([0.6, 0.4], dtype=torch.float64), 600
MEANS = torch.tensor([[-0.6, 0.0], [0.9, 0.4]], dtype=torch.float64)
COVARIANCES = torch.stack((0.3 * torch.eye(2, dtype=torch.float64), 0.2 * torch.eye(2, dtype=torch.float64)))
BOTH = MixtureData(SHARES, MEANS, COVARIANCES)
MODES = [MixtureData(torch.ones(1), MEANS[k : k + 1], COVARIANCES[k : k + 1]) for k in range(2)]


class Labelled(nn.Module):
    """The exact denoiser of a mode by its label, 2 for none; `deaf` ignores it, `null_scale` spoils the null branch."""

    def __init__(self, deaf: bool = False, null_scale: float = 1.0) -> None:
        super().__init__()
        self.deaf, self.null_scale = deaf, null_scale

    def null(self, name: str, value: Tensor) -> Tensor:
        return torch.full_like(value, 2)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        null = BOTH.denoise_at(x, VP, c)
        if label is None or self.deaf:
            return null
        of_modes = torch.stack([*(mode.denoise_at(x, VP, c) for mode in MODES), self.null_scale * null])
        return of_modes[label, torch.arange(len(x))]


def data() -> tuple[Tensor, Tensor, float]:
    """Items, their labels and the exact information of these items, E log p(c | x)/p(c) at the noise of t_min."""
    label = (torch.arange(COUNT) >= 0.6 * COUNT).long()
    x = torch.where((label == 0)[:, None], MODES[0].sample(COUNT, 1), MODES[1].sample(COUNT, 2))
    joint = torch.stack([share.log() + mode.log_prob(x) for share, mode in zip(SHARES, MODES, strict=True)])
    posterior = joint.log_softmax(0)[label, torch.arange(COUNT)]
    return x, label, float((posterior - SHARES.log()[label]).mean())


def model(**options: Any) -> sde_gen.ScoreModel:
    return sde_gen.ScoreModel(Labelled(**options), VP, "data")


def test_both_forms_are_the_mixtures_own_information() -> None:
    x, label, exact = data()
    found = information(model(), x, "label", {"label": label}, draws=8)
    entropy = -float((SHARES * SHARES.log()).sum())
    assert 0.3 < exact < entropy
    assert found.value == pytest.approx(exact, abs=4 * found.std_error + 0.01)
    assert found.orthogonal == pytest.approx(exact, abs=4 * found.orthogonal_error + 0.01)
    assert abs(found.orthogonal - found.value) < 4 * found.disagreement_error + 0.01
    width = float(VP.half_log_snr(VP.t_min) - VP.half_log_snr(VP.t_max)) / LEVELS
    assert sum(found.by_level) * width == pytest.approx(found.value) and len(found.levels) == LEVELS
    assert found.levels == sorted(found.levels) and "nats by the difference of errors" in str(found)


def test_an_ignored_condition_says_nothing_and_a_poor_null_branch_makes_it_too_large() -> None:
    x, label, _ = data()
    deaf = information(model(deaf=True), x, "label", {"label": label})
    assert deaf.value == deaf.orthogonal == 0
    poor = information(model(null_scale=0.7), x, "label", {"label": label})
    assert poor.value > 1 and poor.value - deaf.value > 4 * poor.std_error


def test_units_do_not_matter_and_other_conditions_go_to_both_branches() -> None:
    x, label, _ = data()
    scaled = sde_gen.ScoreModel(Labelled(), VP, "data", normalizer=sde_gen.Normalizer(torch.tensor([3.0, 3.0]), torch.tensor([5.0, 5.0])))
    plain = information(model(), x, "label", {"label": label}, draws=1)
    units = information(scaled, 3 + 5 * x, "label", {"label": label}, draws=1, batch_size=50)
    assert units.value == pytest.approx(plain.value, abs=1e-3)

    class Two(Labelled):
        def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
            assert shift is not None, "the other condition is kept"
            return super().forward(x, c, label)

    network = Two()
    network.null = lambda name, value: torch.full_like(value, 2) if name == "label" else None
    both = information(sde_gen.ScoreModel(network, VP, "data"), x, "label", {"label": label, "shift": x}, draws=1)
    assert both.value == pytest.approx(plain.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "text"}, "condition 'text' is not among those given \\('kind'\\)"),
        ({"draws": 0}, "draws must be a whole number of at least 1"),
        ({"x": torch.zeros(1, 1), "cond": kind(1)}, "at least two items"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], message: str) -> None:
    asked = {"x": torch.zeros(4, 1), "name": "kind", "cond": kind(4)} | changes
    with pytest.raises(ValueError, match=message):
        information(gaussians(VP), **asked)


def test_a_data_set_is_asked_for_its_held_out_items_and_their_conditions() -> None:
    labels = torch.arange(100) % 2
    x = torch.stack([MODES[k].sample(1, seed=n)[0] for n, k in enumerate(labels.tolist())])
    held = torch.arange(100) < 40
    model = sde_gen.ScoreModel(Labelled(), VP, "data")
    data = sde_gen.Dataset("modes", x[~held], x[held], labels[~held], labels[held], classes=2)
    found = information(model, data, "label", draws=1)
    assert found == information(model, x[held], "label", {"label": labels[held]}, draws=1)
    alone = sde_gen.Dataset("modes", x[~held], None, labels[~held], classes=2)
    assert information(model, alone, "label", draws=1) == information(model, x[~held], "label", {"label": labels[~held]}, draws=1)


def test_two_gaussians_of_one_mean() -> None:
    """N(0, 1) given, N(0, 2) alone: the average over N(0, 1) is KL(N(0, 1) | N(0, 2)) = (log 2 - 1/2)/2."""
    given, alone = (MixtureData(torch.ones(1), torch.zeros(1, 1), v * torch.ones(1, 1, 1)) for v in (1.0, 2.0))
    x = given.sample(3000, seed=1)
    found = information(branches(VP, given, alone), x, "kind", kind(3000), draws=4)
    assert found.value == pytest.approx((math.log(2) - 0.5) / 2, abs=4 * found.std_error)


def test_items_of_which_it_is_not_known_are_left_out() -> None:
    x, label, _ = data()
    gaps = torch.where(torch.arange(COUNT) % 2 == 0, 2, label)
    found = information(model(), x, "label", {"label": gaps}, draws=4)
    known = information(model(), x[1::2], "label", {"label": label[1::2]}, draws=4)
    assert found.items == known.items == COUNT // 2 and found.value == known.value
    nothing = information(model(), x, "label", {"label": torch.full_like(label, 2)}, draws=1)
    assert nothing.value == nothing.orthogonal == 0 and nothing.items == COUNT
