import math

import torch

from sde_gen import empirical_score, make_sde
from sde_gen.exact.empirical import best_level_loss
from sde_gen.exact.mixtures import GaussianData
from sde_gen.training import build_model
from sde_gen.training.loss_summary import measure_levels, summarise_losses

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
        "small noise 0.60 (best linear 0.80): learning, better than linear" in line
        and "middle 0.51 (best linear 0.50): as good as linear" in line
    )
    assert line.endswith("large noise 1.00 (best linear 1.00): no linear denoiser does anything here, nor does it")
    assert memory.startswith("memory    does not memorise (") and memory.endswith("nearest-neighbour ratio 0.90")
    line, _ = summary_of([1.0, 0.7, 1.5], [1.0, 0.7, 1.5], [1.0, 0.7, 1.5])
    assert (
        "small noise 1.00 (best linear 0.80): no better than zero" in line
        and "not yet as good as linear" in line
        and "worse than zero" in line
    )
    assert "not finite" in summary_of([math.nan, 1.0, 1.0], [1.0] * 3, [1.0] * 3)[0]


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
