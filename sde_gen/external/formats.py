"""Foreign checkpoints as score models: recognised by their keys, with what they do not say taken from a preset or the caller."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import CheckpointError
from ..pickles import PickleError, Record
from ..tensor_files import read
from . import adm, edm, lucid, score_sde
from .diffusers_pipelines import from_diffusers
from .imported import ExternalModel, Imported, checked_range, external_model
from .others import known_other
from .presets import PRESETS

FORMATS: dict[str, ModuleType] = {"score_sde": score_sde, "edm": edm, "adm": adm, "lucid": lucid}
"""Each with `recognise(tree)` and `load(tree, facts given, weights)`."""


def load_external(
    path: str | os.PathLike[str],
    format: str | None = None,
    config: str | Mapping[str, Any] | None = None,
    weights: str = "ema",
    value_range: Sequence[float] = (0.0, 255.0),
) -> ExternalModel:
    """The network in another library's checkpoint as a score model, in evaluation mode on the CPU. Nothing in the file is executed.

    path: a file of score_sde_pytorch (NCSN++, DDPM++, DDPM), EDM (its pickles, or a state dict), guided-diffusion, improved-diffusion
        or denoising-diffusion-pytorch; or a folder of diffusers, see `from_diffusers`.
    format: "score_sde", "edm", "adm" or "lucid"; None: as the keys of the file say.
    config: what the file does not say: the name of a published configuration (see `sde_gen.external.PRESETS`), facts by name, the
        library's own configuration as nested dicts, or both, {"preset": name, **facts}.
    weights: "ema", the averaged ones, or "raw"; for a file with one set of weights, that one.
    value_range: the smallest and largest value that the pictures have outside, which become -1 and 1. 0 and 255, as they stand, are those
        of uint8 pictures, so that `bits_per_dim` takes them as they are.

    Raises CheckpointError (a ValueError) for a file that cannot be read or is not what its format says, ValueError for a fact that is
    neither there nor given (it lists them), contradicts the file, or is not allowed.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"unknown weights {weights!r}; choose from ema, raw")
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; choose from {', '.join(FORMATS)}")
    low, high = checked_range(value_range)
    if Path(path).is_dir():
        if format is not None or isinstance(config, str):
            raise ValueError(f"{path} is a folder, which only diffusers writes: it has no format or preset, got {format or config!r}")
        return from_diffusers(path, config=config, value_range=(low, high), weights=weights)
    content = read(path)
    name = recognise(content.tree, path) if format is None else format
    given, preset = facts_of(config, name)
    try:
        if not FORMATS[name].recognise(content.tree):
            raise CheckpointError(f"it holds no network of {name}")
        found: Imported = FORMATS[name].load(content.tree, given, weights)
    except (CheckpointError, PickleError, ArithmeticError, AttributeError, LookupError, TypeError, RuntimeError) as error:
        said = (
            " ".join(str(error).split())[:300]
            if isinstance(error, ValueError)
            else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )
        raise CheckpointError(f"{path} is not what {name} writes: {said}") from error
    source = {"file": Path(path).name, "sha256": content.sha256, "read": content.kind, "format": name}
    model = external_model(found, (low, high), source)
    return _named_preset(model, preset)


def recognise(tree: Any, path: str | os.PathLike[str]) -> str:
    """The format whose keys the file has; CheckpointError where it has none's."""
    for name, form in FORMATS.items():
        if form.recognise(tree):
            return name
    if (said := known_other(tree)) is not None:
        raise CheckpointError(f"{path} cannot be read: {said}")
    keys = ", ".join(repr(str(key)[:40]) for key in list(tree)[:5]) if isinstance(tree, dict) else type(tree).__name__
    keys = f"an object {tree.name[:60]!r}" if isinstance(tree, Record) else keys
    raise CheckpointError(f"{path} is a file, but this knows no such checkpoint: it holds {keys or 'nothing'}; known: {', '.join(FORMATS)}")


def facts_of(config: str | Mapping[str, Any] | None, name: str) -> tuple[dict[str, Any], str | None]:
    """The facts of `config` and the preset's name in it; ValueError for another."""
    if config is None:
        return {}, None
    if not isinstance(config, str | Mapping):
        raise TypeError(f"config must be a preset's name or a dict of facts, got {type(config).__name__}")
    given: dict[str, Any] = {"preset": config} if isinstance(config, str) else dict(config)
    preset = given.pop("preset", None)
    if preset is None:
        return given, None
    if preset not in PRESETS[name]:
        elsewhere = [form for form, known in PRESETS.items() if preset in known]
        hint = f"it is one of {elsewhere[0]}" if elsewhere else f"known: {', '.join(PRESETS[name])}"
        raise ValueError(f"{name} has no preset {preset!r}; {hint}")
    return PRESETS[name][preset] | given, preset


def _named_preset(model: ExternalModel, preset: str | None) -> ExternalModel:
    if preset is not None:
        for entry in model.source["facts"].values():
            if entry["from"] == "given":
                entry["from"] = f"preset {preset}, or given"
    return model
