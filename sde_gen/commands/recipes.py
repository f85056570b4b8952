"""What a run starts from where nothing is said: a recipe for each data set, and by shape and cost for data of the user's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..networks import affordable_options, make_network
from ..training.parts import PART_FLOPS

DIGITS: dict[str, Any] = {
    "model": {"network": "unet", "options": {"width": 32, "multipliers": [1, 2], "attention": [1], "dropout": 0.05}},
    "training": {"steps": 1800, "batch": 64, "lr": 2e-3, "ema_width": 0.05},
}
VECTORS: dict[str, Any] = {
    "model": {"network": "mlp", "options": {"width": 128, "depth": 3}},
    "training": {"steps": 4000, "batch": 512, "lr": 2e-3},
    "sampling": {"samples": 10000, "batch": 10000},
}
# Few steps widen margins that are exactly normal: at 18 by 4 % (benchmarks/tables.py).
TABLES: dict[str, Any] = {
    "model": VECTORS["model"],
    "training": {"steps": 5000, "batch": 512, "lr": 2e-3},
    "sampling": {"solver": "heun", "steps": 40, "samples": 10000, "batch": 10000},
}
MNIST: dict[str, Any] = {
    "model": {"network": "unet", "options": {"patch": 2, "width": 32, "multipliers": [1, 2], "attention": [1]}},
    "training": {"steps": 40000, "max_seconds": 3300.0, "batch": 64, "lr": 3e-3, "warmup": 200, "bfloat16": True},
}
SIGNALS: dict[str, Any] = {
    "model": {"network": "unet", "options": {"width": 24, "multipliers": [1, 2, 2], "attention": [2]}},
    "training": {"steps": 1000, "batch": 64, "lr": 2e-3, "ema_width": 0.05},
}
SHORT_SIGNALS: dict[str, Any] = {
    "model": {"network": "mlp", "options": {"width": 128, "depth": 3}},
    "training": {"steps": 2000, "batch": 128, "lr": 2e-3},
}
VOLUMES: dict[str, Any] = {
    "model": {"network": "unet", "options": {"width": 16, "multipliers": [1, 2], "attention": [1]}},
    "training": {"steps": 600, "batch": 16, "lr": 2e-3, "ema_width": 0.05},
    "sampling": {"samples": 200, "batch": 100},
}
# Three degrees of freedom among 1,728 voxels: the network says the volume itself (Li and He 2025, arXiv:2511.13720).
BLOBS: dict[str, Any] = {
    "model": {
        "network": "unet",
        "options": {"patch": 4, "width": 48, "multipliers": [1], "attention": [0]},
        "prediction": "data",
    },
    "training": {"steps": 600, "batch": 16, "lr": 2e-3, "ema_width": 0.05, "weighting": "min_snr", "evaluations": 4},
    "sampling": {"solver": "heun", "steps": 12, "samples": 64, "batch": 32},
}
FIELDS: dict[str, Any] = {
    "model": {"network": "unet", "options": {"width": 16, "multipliers": [1, 2, 2], "attention": []}},
    "training": {"steps": 1500, "batch": 64, "lr": 2e-3, "ema_width": 0.05},
    "sampling": {"solver": "dpm", "steps": 20},
}
# Structures as large as the fields: each patch looks at all others, and half of the times lie where the noise is .4 to 2.4 of the data.
WEATHER: dict[str, Any] = {
    "sde": {"name": "cosine"},
    "model": {"network": "transformer", "options": {"patch": 4, "width": 128, "depth": 4}},
    "training": {"steps": 2500, "batch": 16, "lr": 2.5e-3, "ema_width": 0.05, "times": "stratified", "evaluations": 3},
    "sampling": {"solver": "dpm", "steps": 20, "batch": 250},
}
# Three degrees of freedom among 32,768 points: as for BLOBS, the network says the spectrogram itself. So many points say which one it is
# through much noise, from hundreds of standard deviations down to a few: times and weights are even over these.
SPECTROGRAMS: dict[str, Any] = {
    "sde": {"name": "ve", "settings": {"sigma_min": 1.0, "sigma_max": 320.0}},
    "model": {
        "network": "unet",
        "options": {"patch": 8, "width": 32, "multipliers": [1, 2], "attention": [1], "coordinates": True},
        "prediction": "data",
    },
    "training": {"steps": 1500, "batch": 8, "lr": 3e-3, "ema_width": 0.05, "times": "stratified", "weighting": "edm", "evaluations": 3},
    "sampling": {"solver": "heun", "steps": 12, "samples": 64, "batch": 16},
}
# As WEATHER, of fewer patches.
RANDOM_VOLUMES: dict[str, Any] = {
    "sde": {"name": "cosine"},
    "model": {"network": "transformer", "options": {"patch": 4, "width": 128, "depth": 3}},
    "training": {"steps": 7000, "batch": 16, "lr": 2.5e-3, "ema_width": 0.05, "times": "stratified", "evaluations": 3},
    "sampling": {"solver": "dpm", "steps": 20, "samples": 200, "batch": 100},
}
RECIPES: dict[str, dict[str, Any]] = {
    "digits": DIGITS,
    "mnist": MNIST,
    "fashion_mnist": MNIST,
    "cifar10": MNIST,
    "emoji": MNIST,
    "gaussians8": VECTORS,
    "moons": VECTORS,
    "checkerboard": VECTORS,
    "sines": SHORT_SIGNALS,
    "table": VECTORS,
    "rain": TABLES,
    "adult": TABLES,
    "blobs3d": BLOBS,
    "regression": VECTORS,
    "downscale": FIELDS,
    "weather": WEATHER,
    "spectrograms": SPECTROGRAMS,
    "volumes": RANDOM_VOLUMES,
}
"""What each data set starts from; a configuration file and then flags override it."""
LABELLED: dict[str, dict[str, Any]] = {"digits": {"training": {"drop": 0.5}}}
"""The same where the network is told the labels. In so short a training the branch without them needs as many items as the other
(benchmarks/guidance_digits.py)."""
SMALL_IMAGE = 12
SAMPLE_FLOPS = 1.25e9
"""Operations of one sample's forward pass (a training step takes three times as many) up to which a recipe is what it is."""
STEP_FLOPS = 6e10
"""Operations of a training step of a recipe that is chosen by its cost: about a second of a core."""
SAMPLING_FLOPS, CALLS, LEAST_SAMPLES, MOST_SAMPLES = 1e13, 21, 64, 1000
"""Of a recipe that was chosen by its cost: operations of all its samples, and the network calls of each."""
LEAST_BATCH = 8


def rank_recipe(shape: Sequence[int] | None) -> dict[str, Any]:
    """What data whose items have this shape start from where they are small: (D,), (C, L), (C, H, W) or (C, D, H, W)."""
    if shape is None:
        return {}
    by_rank = {1: VECTORS, 2: SIGNALS, 3: DIGITS if max(shape[1:], default=0) <= SMALL_IMAGE else MNIST, 4: VOLUMES}
    return by_rank.get(len(shape), {})


def shape_recipe(shape: Sequence[int] | None) -> dict[str, Any]:
    """What data of the user's own starts from, by the shape of one item, so that a training step stays affordable.

    A network that would take more than `SAMPLE_FLOPS` for one sample, or attend over more positions than pays, becomes the nearest one
    that does not (`affordable_options`); batches are as large as `STEP_FLOPS` allows; and fewer samples are drawn, in fewer calls.
    """
    recipe = rank_recipe(shape)
    if shape is None or len(shape) < 2 or not recipe:
        return recipe
    model, training, sampling = recipe["model"], recipe["training"], recipe.get("sampling", {})
    name, options = model["network"], model["options"]
    suited = affordable_options(name, shape, options, SAMPLE_FLOPS)
    with torch.device("meta"):
        flops = make_network(name, shape, **suited).flops() or 0
    if suited == options and 3 * flops * training["batch"] <= PART_FLOPS:
        return recipe
    batch = _power_of_two(STEP_FLOPS / (3 * flops), LEAST_BATCH, training["batch"])
    samples = _power_of_two(SAMPLING_FLOPS / (CALLS * flops), LEAST_SAMPLES, sampling.get("samples", MOST_SAMPLES))
    return {
        "model": model | {"options": suited},
        "training": training | {"batch": batch},
        "sampling": sampling | {"solver": "dpm", "samples": samples, "batch": min(samples, 4 * batch)},
    }


def _power_of_two(number: float, least: int, most: int) -> int:
    """The largest power of 2 that is not above `number`, between `least` and `most`."""
    return max(least, min(most, 2 ** int(math.log2(max(1.0, number)))))
