"""Our models as pipelines that the library diffusers loads."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..conditions import Label
from ..data import Normalizer
from ..errors import CheckpointError
from ..models.score import ScoreModel
from ..networks import ADMUNet, DiffusersNetwork, UNet2D
from ..networks.resampled_blocks import LevelFeatures
from ..unknown_numbers import to_json
from .diffusers_pipelines import PREDICTIONS, SCHEDULES
from .diffusers_unet import as_unet2d, config_of, write_unet

VERSION = "0.30.0"
"""Of the library: the settings that are written are known from this one on."""
NAMES = {ours: theirs for theirs, ours in PREDICTIONS.items()}
SPREAD = 1e-4
"""Of alpha^2 + sigma^2 around 1 that still counts as variance-preserving: between the points of a chain it is not exactly 1."""


def to_diffusers(model: ScoreModel, folder: str | os.PathLike[str]) -> Path:
    """Write `model` as a DDPMPipeline that `diffusers.DiffusionPipeline.from_pretrained(folder)` loads, and give the folder.

    The library is not needed. The network becomes a UNet2DModel: `unet2d` (trained here, or of `from_diffusers`, fine-tuned or not), `adm`
    with heads of one width and norms of one number of groups (guided-diffusion's from a width of 128 on), and UNet2DModels of the
    library's own class. The process becomes the betas of a chain whose step i the network is told by its own clock: where that is no
    index, the chain runs through the noise levels at which the clock is a whole number, counted from the data on. Where it does not start
    at 0 or runs the other way, the difference goes into the first layer behind the clock's sines and cosines.
    Clipping is off in what is written. Of labels the last is that of no label, where the network has learned one.

    Raises CheckpointError, one line, for what the library's pipeline cannot be: another network or condition, a process that does not
    preserve the variance, an input or units that are scaled, a prediction other than "noise", "data" or "v".
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(f"to_diffusers takes a ScoreModel, got {type(model).__name__}: give the model that it wraps")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is there already and not empty")
    _check(model)
    network = model.network
    if isinstance(network, DiffusersNetwork):
        times, betas = _indices(model)
        config = {"_class_name": network.options["kind"], "_diffusers_version": VERSION, **network.options["config"]}
        weights = {name: value.detach().cpu().contiguous().clone() for name, value in network.module.state_dict().items()}
    else:
        unet = as_unet2d(network) if isinstance(network, ADMUNet) else network
        assert isinstance(unet, UNet2D)
        times, first, sign = _steps(model, unet.embedding.level)
        betas = _betas(model, times)
        config, weights = config_of(unet) | {"_diffusers_version": VERSION}, write_unet(unet)
        _turn(weights, unet.embedding.level, first, sign)
    _write(folder, config, weights, _scheduler(model, times, betas))
    return folder


def _check(model: ScoreModel) -> None:
    """CheckpointError, one line, where the pipeline could not be the model."""
    network, encoders = model.network, model.encoders
    if not isinstance(network, UNet2D | ADMUNet | DiffusersNetwork) or (
        isinstance(network, DiffusersNetwork) and network.options["kind"] != "UNet2DModel"
    ):
        kind = network.options["kind"] if isinstance(network, DiffusersNetwork) else type(network).__name__
        raise CheckpointError(f"UNet2DModel, which a DDPMPipeline holds, is no {kind}: train network='unet2d' for it")
    for name, encoder in encoders.items():
        if name != "label" or not isinstance(encoder, Label):
            raise CheckpointError(f"UNet2DModel takes class labels alone, not the condition {name!r}")
        if encoder.fade is not None:
            raise CheckpointError(
                f"its label fades below a half log-SNR of {encoder.fade:g}, which UNet2DModel's cannot: train with fade None"
            )
    if model.prediction not in NAMES:
        raise CheckpointError(f"diffusers has no prediction {model.prediction!r}: it has {', '.join(NAMES)}")
    if model.scale_input:
        raise CheckpointError("its input is scaled to unit variance, which a DDPMPipeline's is not: train with scale_input=False")
    normalizer = model.normalizer
    if isinstance(normalizer, Normalizer) and normalizer.kind != "range":
        raise CheckpointError(f"its data are scaled by {normalizer.kind!r}; a DDPMPipeline's are -1 .. 1: train with normalizer='range'")


def _told(model: ScoreModel, level: LevelFeatures | None, t: Tensor) -> Tensor:
    """What the sines and cosines of the network are of, at times t."""
    clock = model.scales(t).clock
    return clock if level is None else level.scale * clock + level.shift


def _steps(model: ScoreModel, level: LevelFeatures) -> tuple[Tensor, int, int]:
    """The times at which the clock is a whole number, from data to noise, the first such number, and whether it rises or falls (1, -1)."""
    ends = torch.tensor([model.sde.t_min, model.sde.t_max], dtype=torch.float64)
    low, high = _told(model, level, ends).tolist()
    sign = 1 if high > low else -1
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    first = math.ceil(low - slack) if sign > 0 else math.floor(low + slack)
    count = math.floor(abs(high - first) + slack) + 1
    if count < 2:
        raise CheckpointError(f"its clock runs from {low:.4g} to {high:.4g}, over fewer than two whole steps of a chain")
    wanted = first + sign * torch.arange(count, dtype=torch.float64)
    left, right = ends[0].expand(count).clone(), ends[1].expand(count).clone()
    for _ in range(80):
        middle = 0.5 * (left + right)
        before = sign * (_told(model, level, middle) - wanted) < 0
        left, right = torch.where(before, middle, left), torch.where(before, right, middle)
    return 0.5 * (left + right), first, sign


def _indices(model: ScoreModel) -> tuple[Tensor, Tensor]:
    if model.clock != "index":
        raise CheckpointError(f"its clock is {model.clock!r}; a network of the library's own class must be told the index")
    times: Tensor = model.sde.points.times  # type: ignore[attr-defined]
    return times, _betas(model, times)


def _betas(model: ScoreModel, times: Tensor) -> Tensor:
    """1 - (alpha_i/alpha_{i-1})^2 of the process at these times."""
    alpha, sigma = model.sde.marginal(times)
    if float((alpha**2 + sigma**2 - 1).abs().max()) > SPREAD:
        raise CheckpointError(f"{model.sde!r} does not preserve the variance (alpha^2 + sigma^2 = 1), as a chain of diffusers does")
    log_alpha = 0.5 * torch.nn.functional.logsigmoid(2 * model.sde.half_log_snr(times))
    return -torch.expm1(2 * torch.diff(log_alpha, prepend=log_alpha.new_zeros(1)))


def _turn(weights: dict[str, Tensor], level: LevelFeatures, first: int, sign: int) -> None:
    """Let the first layer behind the features of step i see those of the clock first + sign i: a rotation of each sine and cosine."""
    if (first, sign) == (0, 1):
        return
    weight = weights["time_embedding.linear_1.weight"].double()
    one, two = weight.chunk(2, dim=1)
    of_sine, of_cosine = (one, two) if level.sine_first else (two, one)
    angle = first * level.frequencies.double().cpu()
    # sin(a + s b) = sin a cos b + s cos a sin b and cos(a + s b) = cos a cos b - s sin a sin b
    sine = sign * (of_sine * angle.cos() - of_cosine * angle.sin())
    cosine = of_sine * angle.sin() + of_cosine * angle.cos()
    weights["time_embedding.linear_1.weight"] = torch.cat([sine, cosine] if level.sine_first else [cosine, sine], dim=1).float()


def _scheduler(model: ScoreModel, times: Tensor, betas: Tensor) -> dict[str, Any]:
    settings, named = model.sde.settings, {}
    points = getattr(model.sde, "points", None)
    theirs = {ours: name for name, ours in SCHEDULES.items()}
    if points is not None and len(points.times) == len(times) and torch.allclose(points.times, times, rtol=0, atol=1e-12):
        if settings.get("betas") in theirs and not {"span", "s", "beta_max"} & set(settings):
            ends = {"beta_start": settings.get("beta_start", 1e-4), "beta_end": settings.get("beta_end", 0.02)}
            named = {"beta_schedule": theirs[settings["betas"]], "trained_betas": None, **ends}
        else:
            betas = _exact(settings.get("betas"), betas)
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": len(times),
        **(named or {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "trained_betas": betas.tolist()}),
        "prediction_type": NAMES[model.prediction],
        "variance_type": "fixed_small" if model.variance is None else "learned_range",
        "clip_sample": False,
        "thresholding": False,
        **_spacing(model),
        "rescale_betas_zero_snr": False,
    }


def _exact(given: Any, betas: Tensor) -> Tensor:
    return torch.tensor(given, dtype=torch.float64) if isinstance(given, list) else betas


def _spacing(model: ScoreModel) -> dict[str, Any]:
    """As an imported pipeline had it."""
    facts = (getattr(model, "source", None) or {}).get("facts", {})
    return {
        name: facts[name]["value"] if name in facts else default for name, default in (("timestep_spacing", "leading"), ("steps_offset", 0))
    }


def _write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], scheduler: dict[str, Any]) -> None:
    index: dict[str, Any] = {"_class_name": "DDPMPipeline", "_diffusers_version": VERSION}
    index |= {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    for file, values in (
        (folder / "unet" / "config.json", config),
        (folder / "scheduler" / "scheduler_config.json", scheduler),
        (folder / "model_index.json", index),
    ):
        file.write_text(to_json(values, 2) + "\n", encoding="utf-8")
        json.loads(file.read_text(encoding="utf-8"))
