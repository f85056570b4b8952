"""Pipelines and networks of the library diffusers as score models; UNet2DModel without the library, all else by its own classes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..networks import DiffusersNetwork, Network
from ..sdes import SDE, make_sde
from ..tensor_files import MOST_JSON, read
from .diffusers_unet import Unlike, options_of, read_unet
from .facts import Facts
from .imported import ExternalModel, Imported, checked_range, external_model, tensors
from .weights import MOST_NUMBER

FACTS = ("size", "schedule", "steps", "beta_start", "beta_end", "prediction", "sigma_min", "sigma_max", "sigma_data", "length")
LICENCE = "diffusers is under the Apache License 2.0; the weights are under what their own page says"
NETWORKS = ("unet", "transformer", "prior")
"""Parts of a pipeline that are its network."""
CODECS = ("vae", "vqvae", "movq", "first_stage_model")
"""Parts that turn pictures into what the network works on."""
SCHEDULES = {"linear": "linear", "scaled_linear": "quadratic", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
"""Their names of ours (see `sdes.BETAS`)."""
PREDICTIONS = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}
CONSISTENCY = ("LCM", "TCD", "CMStochastic")
OTHER_CLOCKS = {"timestep_type": "discrete", "snr_shift_scale": 1.0}
"""Settings of schedulers that change what the network is told or the process, and the values that leave both alone."""
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin")


@dataclass
class Parts:
    """What a pipeline, a folder or a module says: the network's class and configuration, its weights, and the scheduler's configuration."""

    kind: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    scheduler: dict[str, Any]
    source: dict[str, Any]
    codec: dict[str, Any] | None = None


def from_diffusers(
    source: Any,
    scheduler: Any = None,
    config: Mapping[str, Any] | None = None,
    value_range: Sequence[float] = (0.0, 255.0),
    weights: str = "ema",
) -> ExternalModel:
    """A pipeline or network of the library diffusers as a score model, in evaluation mode on the CPU.

    A UNet2DModel whose function our `unet2d` has is read into one, without the library; every other network stays the library's own class
    (`networks.DiffusersNetwork`), for which it must be installed. The scheduler's betas become the process, its `prediction_type` what
    the output means, its steps the network's clock. What only concerns sampling is left to our samplers and noted in `source["facts"]`:
    the library's clipping of x_0, thresholding, the spacing of its steps (`scheduler_times` gives them).

    source: a pipeline, a network, or a folder of either, as `save_pretrained` writes them.
    scheduler: of a network alone: a scheduler, its configuration, or its folder; None: the pipeline's own.
    config: what is not said: "size", the edge of pictures where the network has none; "length", of encoder_hidden_states (77).
    value_range: the values of pictures outside that are -1 and 1 (of ScoreSdeVe 0 and 1) in the network. Of a latent pipeline the units
        are the latents', scaled as the network is trained on them, and this is not used.
    weights: "ema", that of a folder `unet_ema` where there is one, or "raw".

    Conditions are "label", handed on as class_labels, and "encoder_hidden_states". Raises CheckpointError for a folder that is not one of
    theirs, ValueError for a fact that is missing or that this library has no process for, ImportError, one line, where the library is
    needed and not installed.
    """
    low, high = checked_range(value_range)
    if weights not in ("ema", "raw"):
        raise ValueError(f"unknown weights {weights!r}; choose from ema, raw")
    if isinstance(source, str | os.PathLike):
        try:
            return _model(_of_folder(Path(source), weights), scheduler, config, (low, high))
        except (ArithmeticError, AttributeError, LookupError, NameError, RecursionError, RuntimeError, TypeError) as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise CheckpointError(f"{source} is not what diffusers writes: {said}") from error
    return _model(_of_object(source), scheduler, config, (low, high))


def _model(parts: Parts, scheduler: Any, config: Mapping[str, Any] | None, value_range: tuple[float, float]) -> ExternalModel:
    if scheduler is not None:
        parts.scheduler = _scheduler_config(scheduler)
    _check_sizes(parts.config, len(parts.weights))
    facts = Facts(config or {}, FACTS)
    if not parts.scheduler:
        raise ValueError(f"a {parts.kind} alone does not say its process: give from_diffusers(..., scheduler=...), or the pipeline")
    channels = int(parts.config.get("in_channels") or 0)
    size = parts.config.get("sample_size")
    if size is not None:
        facts.find("size", list(size) if isinstance(size, list | tuple) else size)
    facts.need("size")
    edges = facts["size"] if isinstance(facts["size"], list) else [facts["size"]] * 2
    if channels < 1 or not all(type(edge) is int and 1 <= edge <= 1 << 16 for edge in edges):
        raise CheckpointError(f"its configuration says in_channels = {channels}, size = {facts['size']!r}")
    sde, settings, told, lowest = process_of(parts.scheduler, facts)
    try:
        if told != "step" or parts.kind != "UNet2DModel":
            raise Unlike(parts.kind)
        network: Network = read_unet(parts.config, parts.weights, (edges[0], edges[1]))
        facts.find("network", "unet2d", "the same function as UNet2DModel")
    except Unlike as error:
        network = _own_class(parts, (channels, *edges), told, facts)
        facts.find("network", f"{parts.kind} of diffusers", "its own class" if str(error) == parts.kind else f"its own class: {error}")
    if network.out_channels == 2 * channels:
        settings["variance"] = "learned_range"
    elif network.out_channels != channels:
        raise ValueError(f"its network has {network.out_channels} outputs for {channels} channels: no denoiser of its input alone")
    latent = parts.codec is not None
    if parts.codec is not None:
        scaling = parts.codec.get("scaling_factor") or 1.0
        facts.find("latents", f"of {parts.codec.get('_class_name', 'a codec')}, times {scaling:g}", "the pipeline")
    found = Imported(network, sde, settings, facts, "only", LICENCE, lowest)
    return external_model(found, None if latent else value_range, parts.source)


def _check_sizes(config: Mapping[str, Any], tensors: int) -> None:
    """CheckpointError for a configuration that claims more layers than it has tensors, or sizes of no network."""
    waiting = list(config.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, list):
            if len(value) > max(16, tensors):
                raise CheckpointError(f"its configuration lists {len(value)} {name} for {tensors} tensors")
            waiting += [(name, part) for part in value]
        elif isinstance(value, int) and value > (tensors if "layers" in name else MOST_NUMBER):
            raise CheckpointError(f"its configuration says {name} = {value:.0f}, with {tensors} tensors: no network is so large")


class Process(NamedTuple):
    """A process, the settings of a ScoreModel along it, what the network is told (see `DiffusersNetwork`), and the smallest value of
    pictures in it, -1 or 0; the largest is 1."""

    sde: SDE
    settings: dict[str, Any]
    told: str = "step"
    lowest: int = -1


def process_of(scheduler: Mapping[str, Any], facts: Facts) -> Process:
    """What a scheduler's configuration says; ValueError for one of which this library has no process."""
    name = str(scheduler.get("_class_name", "a scheduler"))
    if name.startswith(CONSISTENCY):
        raise ValueError(f"{name} is of a consistency model, whose output is the start of the flow and not the mean of the data: not read")
    for setting, read_as in OTHER_CLOCKS.items():
        if scheduler.get(setting, read_as) not in (read_as, None):
            raise ValueError(f"{name} with {setting} = {scheduler[setting]!r}: only {read_as!r} is read")
    if name.startswith("ScoreSdeVe"):
        for end in ("sigma_min", "sigma_max"):
            facts.find(end, scheduler[end], name)
        sde = make_sde("ve", sigma_min=facts.number("sigma_min"), sigma_max=facts.number("sigma_max"))
        facts.find("prediction", "score", name)
        return Process(sde, {"prediction": "score", "clock": "half_log_snr"}, "sigma", 0)
    if name.startswith("EDM"):
        for fact in ("sigma_min", "sigma_max", "sigma_data"):
            facts.find(fact, scheduler[fact], name)
        if scheduler.get("prediction_type", "epsilon") != "epsilon":
            raise ValueError(f"{name} with prediction_type = {scheduler['prediction_type']!r}: only 'epsilon' is read")
        sde = make_sde("ve", sigma_min=facts.number("sigma_min"), sigma_max=facts.number("sigma_max"))
        return Process(sde, {"prediction": "edm", "clock": "c_noise", "data_std": facts.number("sigma_data")})
    if "beta_schedule" not in scheduler and scheduler.get("trained_betas") is None:
        raise ValueError(f"{name} has no betas: of diffusers' processes its chains, ScoreSdeVe and EDM are read, no flows nor consistency")
    meant = str(scheduler.get("prediction_type", "epsilon"))
    if meant not in PREDICTIONS:
        raise ValueError(f"prediction_type = {meant!r}; choose from {', '.join(PREDICTIONS)}")
    facts.find("prediction", PREDICTIONS[meant], name)
    for setting in ("clip_sample", "thresholding"):
        if scheduler.get(setting):
            facts.find(setting, False, f"left off; {name} says True")
    for setting in ("timestep_spacing", "steps_offset"):
        if setting in scheduler:
            facts.find(setting, scheduler[setting], name)
    return Process(_chain(scheduler, facts, name), {"prediction": facts["prediction"], "clock": "index"})


def _chain(scheduler: Mapping[str, Any], facts: Facts, name: str) -> SDE:
    betas, steps = scheduler.get("trained_betas"), int(scheduler.get("num_train_timesteps", 1000))
    if max(steps, 0 if betas is None else len(betas)) > MOST_NUMBER:
        raise ValueError(f"{name} has a chain of more than {MOST_NUMBER} steps")
    schedule = str(scheduler.get("beta_schedule", "linear"))
    rescaled = bool(scheduler.get("rescale_betas_zero_snr"))
    if betas is None and schedule not in SCHEDULES:
        raise ValueError(f"beta_schedule = {schedule!r}; choose from {', '.join(SCHEDULES)}, or give trained_betas")
    if betas is None:
        facts.find("schedule", SCHEDULES[schedule], name)
        ends = {} if schedule == "squaredcos_cap_v2" else {end: float(scheduler[end]) for end in ("beta_start", "beta_end")}
        for end, value in ends.items():
            facts.find(end, value, name)
        sde = make_sde("ddpm", betas=SCHEDULES[schedule], steps=steps, **ends)
    else:
        facts.find("schedule", "trained_betas", name)
        sde = make_sde("ddpm", betas=[float(beta) for beta in betas])
        steps = len(betas)
    facts.find("steps", steps, name)
    if not rescaled:
        return sde
    # Lin et al. 2023 (arXiv:2305.08891): alpha shifted and scaled so that nothing of the data is left at the last step
    alpha = sde.points.alpha  # type: ignore[attr-defined]
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    betas = 1 - (alpha[:-1] / torch.cat([alpha.new_ones(1), alpha[:-2]])) ** 2
    facts.find("rescale_betas_zero_snr", True, f"{name}; its last step, which has no signal, is left out")
    return make_sde("ddpm", betas=betas.tolist())


def scheduler_times(model: ExternalModel, steps: int) -> Tensor:
    """The times at which diffusers' scheduler of an imported pipeline calls the network in so many steps, from noise to data, (steps,).

    `sample(model, shape, solver="ddim", grid=scheduler_times(model, steps))` makes its DDIM steps, the last one by `final="denoise"`.

    Its spacing, "leading", "trailing" or "linspace", and its offset are the scheduler's own (Lin et al. 2023, arXiv:2305.08891, table 2).
    Raises ValueError for a model whose facts do not say them, or more steps than the chain has.
    """
    facts = {name: fact["value"] for name, fact in model.source["facts"].items()}
    if "timestep_spacing" not in facts:
        raise ValueError("the facts of this model have no timestep_spacing: it is not from a pipeline of diffusers with a chain")
    total, spacing, offset = int(facts["steps"]), facts["timestep_spacing"], int(facts.get("steps_offset", 0))
    if not 1 <= steps <= total:
        raise ValueError(f"steps must be in 1 .. {total}, got {steps}")
    if spacing == "leading":
        indices = torch.arange(steps - 1, -1, -1) * (total // steps) + offset
    elif spacing == "trailing":
        indices = torch.round(total - torch.arange(steps, dtype=torch.float64) * total / steps).long() - 1
    elif spacing == "linspace":
        indices = torch.linspace(0, total - 1, steps, dtype=torch.float64).round().long().flip(0)
    else:
        raise ValueError(f"timestep_spacing = {spacing!r}; choose from leading, trailing, linspace")
    times: Tensor = model.sde.points.times  # type: ignore[attr-defined]
    return times[indices.clamp(0, len(times) - 1)]


def _own_class(parts: Parts, shape: tuple[int, ...], clock: str, facts: Facts) -> DiffusersNetwork:
    config = parts.config
    conditions: dict[str, dict[str, Any]] = {}
    dit = parts.kind == "DiTTransformer2DModel"
    classes = config.get("num_embeds_ada_norm") if dit else config.get("num_class_embeds")
    if classes is not None:
        conditions["label"] = {"kind": "label", "classes": int(classes), "fade": None}
    width = config.get("cross_attention_dim")
    if isinstance(width, int):
        length = facts.whole("length") if facts.know("length") else 77
        conditions["encoder_hidden_states"] = {"kind": "sequence", "features": width, "length": length, "ordered": False}
    if clock == "step" and parts.kind == "Transformer2DModel" and config.get("norm_type") == "ada_norm":
        clock = "whole_step"
        facts.find("clock", "whole steps", f"{parts.kind} looks its steps up in a table")
    out = int(config.get("out_channels") or shape[0])
    network = DiffusersNetwork(shape, conditions, out, kind=parts.kind, config=config, clock=clock)
    try:
        network.module.load_state_dict(parts.weights)
    except RuntimeError as error:
        raise CheckpointError(f"its weights are not those of its configuration: {' '.join(str(error).split())[:200]}") from error
    return network


def _of_object(source: Any) -> Parts:
    network = next((getattr(source, name) for name in NETWORKS if isinstance(getattr(source, name, None), nn.Module)), source)
    if not isinstance(network, nn.Module) or not hasattr(network, "config"):
        raise TypeError(f"from_diffusers takes a pipeline or network of diffusers, or a folder, got {type(source).__name__}")
    scheduler = getattr(source, "scheduler", None)
    codec = next((getattr(source, name) for name in CODECS if getattr(source, name, None) is not None), None)
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    return Parts(
        type(network).__name__,
        dict(network.config),  # type: ignore[arg-type]
        weights,
        {} if scheduler is None else _scheduler_config(scheduler),
        {"file": type(source).__name__, "sha256": _digest(weights), "read": "object", "format": "diffusers"},
        None if codec is None else {"_class_name": type(codec).__name__, **dict(codec.config)},
    )


def _digest(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the weights in the order of their names."""
    sum_ = hashlib.sha256()
    for name in sorted(weights):
        sum_.update(name.encode())
        sum_.update(weights[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sum_.hexdigest()


def _scheduler_config(scheduler: Any) -> dict[str, Any]:
    if isinstance(scheduler, str | os.PathLike):
        return _json(Path(scheduler) / "scheduler_config.json")
    if isinstance(scheduler, Mapping):
        return dict(scheduler)
    if not hasattr(scheduler, "config"):
        raise TypeError(f"scheduler must be one of diffusers, its configuration or its folder, got {type(scheduler).__name__}")
    return {"_class_name": type(scheduler).__name__, **dict(scheduler.config)}


def _of_folder(folder: Path, weights: str) -> Parts:
    index = folder / "model_index.json"
    if not index.is_file():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} is no folder of diffusers: it has neither model_index.json nor config.json")
        beside = folder.parent / "scheduler" / "scheduler_config.json"
        return _of_network(folder, _json(beside) if beside.is_file() else {}, None)
    listed = _json(index)
    name = next((name for name in NETWORKS if name in listed), None)
    if name is None:
        raise CheckpointError(f"{folder} is a pipeline without a network: it lists {', '.join(n for n in listed if not n.startswith('_'))}")
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    codec = next((part for part in CODECS if isinstance(listed.get(part), list) and listed[part][0] is not None), None)
    average = folder / f"{name}_ema"
    return _of_network(
        average if weights == "ema" and average.is_dir() else folder / name,
        scheduler,
        None if codec is None else _json(folder / codec / "config.json"),
    )


def _of_network(folder: Path, scheduler: dict[str, Any], codec: dict[str, Any] | None) -> Parts:
    config = _json(folder / "config.json")
    kind = config.get("_class_name")
    if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z0-9]+", kind):
        raise CheckpointError(f"{folder / 'config.json'} does not name the network's class")
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder} has no weights in one file: {', '.join(WEIGHTS)}")
    content = read(file)
    named = tensors(content.tree)
    if named is None:
        raise CheckpointError(f"{file} is no dict of tensors")
    source = {"file": str(Path(folder.name) / file.name), "sha256": content.sha256, "read": content.kind, "format": "diffusers"}
    return Parts(kind, config, named, scheduler, source, codec)


def _json(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file():  # a pipe or a device would be read without end
            raise CheckpointError(f"{file}: no such file")
        if file.stat().st_size > MOST_JSON:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; at most {MOST_JSON} are read")
        found = json.loads(file.read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} must hold a mapping, got {type(found).__name__}")
    return found


__all__ = ["from_diffusers", "options_of", "process_of", "scheduler_times"]
