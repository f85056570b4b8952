"""The recipe of data of the user's own is chosen by what a training step costs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.commands.config import recipe_note, resolve
from sde_gen.commands.recipes import (
    CALLS,
    DIGITS,
    LEAST_BATCH,
    MNIST,
    PART_FLOPS,
    SAMPLE_FLOPS,
    SAMPLING_FLOPS,
    SIGNALS,
    STEP_FLOPS,
    VECTORS,
    VOLUMES,
    shape_recipe,
)
from sde_gen.networks import MOST_TOKENS, make_network

SMALL = [
    ((0,), VECTORS),
    ((1, 8, 8), DIGITS),
    ((1, 28, 28), MNIST),
    ((3, 32, 32), MNIST),
    ((3, 64, 64), MNIST),
    ((1, 64), SIGNALS),
    ((2, 1024), SIGNALS),
    ((1, 12, 12, 12), VOLUMES),
]
LARGE = [(1, 256, 512), (3, 128, 128), (3, 256, 256), (1, 4096), (2, 160_000), (1, 32, 32, 32)]


@pytest.mark.parametrize(("shape", "recipe"), SMALL)
def test_what_is_small_keeps_its_recipe(shape: tuple[int, ...], recipe: dict[str, object]) -> None:
    assert shape_recipe(shape) is recipe


@pytest.mark.parametrize("shape", LARGE)
def test_a_step_stays_affordable(shape: tuple[int, ...]) -> None:
    recipe = shape_recipe(shape)
    with torch.device("meta"):
        network = make_network(recipe["model"]["network"], shape, **recipe["model"]["options"])
    flops, batch, sampling = network.flops(), recipe["training"]["batch"], recipe["sampling"]
    assert network.tokens() <= MOST_TOKENS and flops <= SAMPLE_FLOPS
    assert 3 * flops * batch <= STEP_FLOPS < PART_FLOPS and batch >= LEAST_BATCH
    assert CALLS * flops * sampling["samples"] <= SAMPLING_FLOPS and sampling["samples"] >= 20


def test_a_large_recipe_is_said_and_another_choice_of_the_user_s_is_not(tmp_path: Path) -> None:
    np.save(tmp_path / "spectrograms.npy", np.zeros((3, 1, 256, 512), np.float32))
    layer = {"data": {"name": str(tmp_path / "spectrograms.npy")}}
    config = resolve(layer)
    note = recipe_note(config, (1, 256, 512))
    assert note is not None and "256x512" in note and f"batches of {config.training.batch}" in note
    assert recipe_note(resolve(layer, {"model": {"network": "mlp"}}), (1, 256, 512)) is None
    assert recipe_note(resolve(), (1, 8, 8)) is None
