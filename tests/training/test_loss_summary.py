import math
from itertools import product

import pytest
import torch

from sde_gen import empirical_score, make_sde
from sde_gen.exact.empirical import best_level_loss
from sde_gen.exact.mixtures import GaussianData
from sde_gen.training import build_model
from sde_gen.training.loss_summary import _learning, measure_levels, summarise_losses, warnings_of_losses

LEVELS = [4.0, 0.0, -4.0]
LINEAR = {"levels": LEVELS, "linear": [0.8, 0.5, 1.0], "best": [0.0, 0.1, 0.98]}


def summary_of(loss: list[float], train: list[float], held: list[float]) -> list[str]:
    errors = {"training_error": [0.01] * 3, "held_out_error": [0.01] * 3}
    return summarise_losses(
        [{"step": 1}, {"levels": LEVELS, "level_loss": loss}], LINEAR | {"training": train, "held_out": held} | errors, 0.9
    )


def test_each_range_gets_its_verdict() -> None:
    line, memory = summary_of([0.6, 0.51, 1.0], [0.6, 0.5, 1.0], [0.6, 0.51, 1.0])
    assert (
        "small noise 0.60 (best linear 0.80, memorised 0.00): learning, better than linear" in line
        and "middle 0.51 (best linear 0.50, memorised 0.10): learning, as good as linear" in line
    )
    assert line.endswith("large noise 1.00 (best linear 1.00, memorised 0.98): like zero, which no linear denoiser betters here")
    assert memory.startswith("memory    does not memorise (") and memory.endswith("nearest-neighbour ratio 0.90")
    line, _ = summary_of([1.0, 0.7, 1.5], [1.0, 0.7, 1.5], [1.0, 0.7, 1.5])
    assert (
        "small noise 1.00 (best linear 0.80, memorised 0.00): no better than zero" in line
        and "not yet as good as linear" in line
        and "worse than zero" in line
    )
    assert "not finite" in summary_of([math.nan, 1.0, 1.0], [1.0] * 3, [1.0] * 3)[0]


def test_a_verdict_follows_from_its_numbers() -> None:
    ways = product((0.02, 0.34, 0.52, 0.9, 0.99, 1.0, 1.02, 1.5, 20.0), (0.05, 0.34, 0.9, 1.0, 1.3, 14.19), (0.001, 0.02, 0.22))
    for own, best, error in ways:
        said, sure = _learning(own, best, error), 3 * error
        claims = {
            "better than linear": own < best and own < 1,
            "learning, as good as linear": abs(own - min(best, 1)) <= max(sure, 0.01) and own < 1,
            "not yet as good as linear": best < own < 1,
            "no linear denoiser": best >= 0.99 and own >= 0.99,
            "no better than zero": own >= 0.99 and best < own - sure,
            "worse than zero": own > 1 + sure,
            "which linear is not": best > 1 and own < 1,
            "not told from zero": own >= 1 - sure,
            "of linear": own >= 0.99 and abs(own - min(best, 1)) <= sure,
        }
        made = [claim for claim in claims if claim in said]
        assert made and all(claims[claim] for claim in made), (said, own, best, error)


def test_a_network_like_zero_at_every_level_is_warned_of() -> None:
    history = [{"levels": LEVELS, "level_loss": [1.0, 1.0, 1.0]}]
    lines = summarise_losses(history, LINEAR | {"linear": [1.0] * 3, "held_out_error": [0.01] * 3})
    assert "nothing was learned" in warnings_of_losses(lines)[0]
    history[0]["level_loss"] = [0.5, 1.0, 1.0]
    assert warnings_of_losses(summarise_losses(history, LINEAR | {"linear": [1.0] * 3, "held_out_error": [0.01] * 3})) == []


def test_items_and_labels_of_sorted_conditional_data_are_drawn_together() -> None:
    """Class means of -3 and 3, sorted, in units that are not the model's: without its label, or with a neighbour's, an item reads more."""
    labels = torch.arange(2).repeat_interleave(200)
    x = 5 * (6.0 * labels[:, None] - 3 + 0.3 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0))) + 100
    model = build_model(x, "vp", "mlp", conditions=2, prediction="data")
    means = torch.stack([model.normalizer.encode(x)[labels == k].mean(0) for k in (0, 1)])  # type: ignore[union-attr]

    class Known(torch.nn.Module):
        classes = 2

        def forward(self, x: torch.Tensor, c: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
            return torch.zeros_like(x) if label is None else means[label].to(x)

    found = measure_levels(model.with_network(Known()), x, x, 0, {"label": labels}, {"label": labels})
    assert max(found["training"]) < 0.02 and max(found["held_out"]) < 0.02
    assert min(measure_levels(model.with_network(Known()), x, None)["training"]) == pytest.approx(1.0)


def test_memorising_shows_where_training_data_is_denoised_better() -> None:
    assert (
        "memorises in part (middle: 0.40 on training data, 0.51 on held-out data, 0.10 if"
        in summary_of([0.6, 0.51, 1], [0.6, 0.4, 1], [0.6, 0.51, 1])[1]
    )
    assert summary_of([0.6, 0.51, 1], [0.1, 0.4, 1], [0.6, 0.51, 1])[1].startswith("memory    memorises (small noise")


def test_nothing_measured_nothing_said() -> None:
    assert summarise_losses([{"step": 1, "loss": 1.0}], LINEAR) == []
    assert len(summarise_losses([{"levels": LEVELS, "level_loss": [1.0, 1.0, 1.0]}], LINEAR)) == 1


def test_measured_on_models_whose_memory_is_known() -> None:
    x = GaussianData.correlated().sample(200, 0).float()
    held, sde = GaussianData.correlated().sample(200, 1).float(), make_sde("vp")
    for model, verdict in (
        (empirical_score(x[:60], sde), "memory    memorises ("),
        (build_model(x[:60], sde, "mlp"), "memory    does not memorise"),
    ):
        found = measure_levels(model, x[:60], held)
        assert len(found["training"]) == len(found["held_out_error"]) == 16
        levels = torch.linspace(float(sde.half_log_snr(sde.t_max)), float(sde.half_log_snr(sde.t_min)), 16).tolist()
        linear = {"linear": [1.0] * 16, "best": best_level_loss(model, x[:60], levels)} | found
        assert summarise_losses([{"levels": levels, "level_loss": found["held_out"]}], linear)[1].startswith(verdict)
