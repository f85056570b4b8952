"""Checkpoints: safetensors for numbers, JSON for everything else, never pickle."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data import Normalizer
from ..fitting import FittedGrid
from ..networks import NETWORKS, Network, make_network
from ..prior import Moments
from ..score import ScoreModel
from ..sdes import SDES, make_sde
from ..version import __version__

FORMAT = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read, in one line."""


def _name_of(registry: dict[str, Any], value: object, what: str) -> str:
    for name, kind in registry.items():
        if type(value) is kind:
            return name
    raise CheckpointError(f"cannot save a model whose {what} is {type(value).__name__}; it must be one of {', '.join(registry)}")


def describe(model: ScoreModel) -> dict[str, Any]:
    """All that rebuilds `model` but its numbers, JSON-able. CheckpointError for parts that no registry knows."""
    network = model.network
    name = _name_of(NETWORKS, network, "network")
    assert isinstance(network, Network)
    normalizer = model.normalizer
    if normalizer is not None and not isinstance(normalizer, Normalizer):
        raise CheckpointError(f"cannot save a model whose normalizer is {type(normalizer).__name__}; it must be sde_gen.data.Normalizer")
    return {
        "format": FORMAT,
        "version": __version__,
        "sde": {"name": _name_of(SDES, model.sde, "sde"), "settings": dict(model.sde.settings)},
        "network": {
            "name": name,
            "shape": list(network.shape),
            "classes": network.classes,
            "out_channels": network.out_channels,
            "options": network.options,
        },
        "model": model.settings(),
        "normalizer": None if normalizer is None else normalizer.to_config(),
        "moments": None if model.moments is None else {"covariance": model.moments.eigenvectors is not None},
        "fitted": [asdict(fitted) for fitted in model.fitted.values()],
    }


def save(model: ScoreModel, path: str | os.PathLike[str], ema: nn.Module | None = None, extra: dict[str, Any] | None = None) -> Path:
    """Write `model` to the directory `path`: its weights, those of `ema` (a network of averaged weights) beside them, the
    normaliser, the moments, and what rebuilds them; `extra` is JSON-able and comes back from `read_extra`.

    The directory is written under a temporary name and renamed, so that a half-written one never has this name. Raises
    CheckpointError for a model that `load` could not rebuild.
    """
    path = Path(path)
    description = describe(model) | {"extra": extra or {}}
    tensors: dict[str, Tensor] = {}
    for part, module in (("network", model.network), ("ema", ema), ("normalizer", model.normalizer), ("moments", model.moments)):
        if isinstance(module, nn.Module):
            tensors |= {f"{part}.{key}": value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        save_file(tensors, temporary / WEIGHTS)
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        for file in (temporary / WEIGHTS, temporary / DESCRIPTION):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        old = path.with_name(f".{path.name}-old")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def save_fitted(model: ScoreModel, path: str | os.PathLike[str]) -> None:
    """Write `model.fitted` into the checkpoint at `path`, which holds this model; nothing else of it changes."""
    path = Path(path)
    description = _read_description(path) | {"fitted": [asdict(fitted) for fitted in model.fitted.values()]}
    temporary = path / f".{DESCRIPTION}"
    temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path / DESCRIPTION)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no readable checkpoint at {path}: {type(error).__name__} on {DESCRIPTION}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(f"{path / DESCRIPTION} is not a checkpoint of format {FORMAT}")
    return description


def read_extra(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `extra` that a checkpoint was saved with."""
    extra = _read_description(Path(path)).get("extra", {})
    return extra if isinstance(extra, dict) else {}


def load(path: str | os.PathLike[str], ema: bool = True, device: torch.device | str = "cpu") -> ScoreModel:
    """The model saved at the directory `path`, in evaluation mode; `ema`: with the averaged weights where there are any.

    Nothing is unpickled or executed. Raises CheckpointError, one line, for a checkpoint that is missing, damaged or of
    another shape than its description says.
    """
    path = Path(path)
    description = _read_description(path)
    try:
        tensors = load_file(path / WEIGHTS, device=str(device))
        sde = make_sde(description["sde"]["name"], **description["sde"]["settings"])
        about = description["network"]
        network = make_network(about["name"], about["shape"], about["classes"], about["out_channels"], **about["options"]).to(device)
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "ema": {}, "normalizer": {}, "moments": {}}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = value
        network.load_state_dict(parts["ema"] if ema and parts["ema"] else parts["network"])
        normalizer = None
        if description["normalizer"] is not None:
            normalizer = Normalizer.from_config(description["normalizer"]).to(device)
            normalizer.load_state_dict(parts["normalizer"])
        moments = None if description["moments"] is None else _moments(parts["moments"]).to(device)
        model = ScoreModel(network, sde, **description["model"], normalizer=normalizer, moments=moments)
        fitted = [FittedGrid.from_config(values) for values in description.get("fitted", [])]
        model.fitted = {(grid.solver, grid.steps): grid for grid in fitted}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"cannot load the checkpoint at {path}: {type(error).__name__}: {reason[:300]}") from error
    return model.eval().requires_grad_(False)


def _moments(state: dict[str, Tensor]) -> Moments:
    moments = Moments(state["mean"], variance=state["eigenvalues"])
    moments.eigenvectors = state.get("eigenvectors")
    return moments
