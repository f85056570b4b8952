"""Checkpoints: safetensors for numbers, JSON for everything else, never pickle."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data import Normalizer
from ..devices import find_device
from ..models.flow_map import FlowMap
from ..models.moments import Moments
from ..models.score import ScoreModel
from ..networks import NETWORKS, Network, make_network
from ..sampling.fitted import FittedGrid
from ..sdes import SDE, SDES, make_sde
from ..tokens import PROCESSES, TokenModel
from ..unknown_numbers import to_json
from ..version import __version__
from .ema import average_of_width
from .store import MANIFEST, CheckpointError, fault, newest, versions, write_version

FORMAT = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"
STATE, STATE_VALUES = "training.safetensors", "training.json"
MOST_VALUES = 1 << 26
"""Bytes of a JSON file beyond which it is not read."""
MOST_OF_ANYTHING = 1 << 16
"""The largest whole number in a checkpoint's settings of a process or options of a network."""
TOKENS = "tokens"
"""The kind of a checkpoint that holds a TokenModel."""
KINDS: dict[str, Any] = {"score": ScoreModel, "flow_map": FlowMap}
"""What the other kinds hold; of a subclass of the user's own a ScoreModel is kept."""
State = tuple[dict[str, Tensor], dict[str, Any]]


def name_of(registry: dict[str, Any], value: object) -> str | None:
    """The name under which the class of a value is registered, or None."""
    return next((name for name, kind in registry.items() if type(value) is kind), None)


def _check_rebuilt(what: str, kind: type, settings: Any, attribute: str) -> None:
    """CheckpointError where `kind(**settings)` cannot be called, as `load` will."""
    try:
        inspect.signature(kind).bind(**settings)
    except TypeError as error:
        hint = f"give it an attribute `{attribute}`, the dict of its constructor's arguments"
        raise CheckpointError(f"cannot save this {what}: load could not rebuild {kind.__name__}(**{attribute}): {error}; {hint}") from error


def describe(model: ScoreModel | TokenModel) -> dict[str, Any]:
    """All that rebuilds `model` but its numbers, JSON-able.

    A network or SDE of a class that is not registered is described by its class's name, and `load` must be given one.
    Raises TypeError for another Denoiser, CheckpointError for parts that cannot be written.
    """
    if not isinstance(model, ScoreModel | TokenModel):
        raise TypeError(f"save takes a ScoreModel, whose network it writes, got {type(model).__name__}: save the model that it wraps")
    about = _describe_network(model.network)
    common = {"format": FORMAT, "version": __version__, "network": about}
    if isinstance(model, TokenModel):
        process = {"name": name_of(PROCESSES, model.process), "settings": model.process.settings}
        return common | {"kind": TOKENS, "process": process, "shape": list(model.shape), "ordered": model.ordered}
    normalizer = model.normalizer
    if normalizer is not None and not isinstance(normalizer, Normalizer):
        raise CheckpointError(f"cannot save a model whose normalizer is {type(normalizer).__name__}; it must be sde_gen.data.Normalizer")
    for what in ("prediction", "clock"):
        if not isinstance(getattr(model, what), str):
            raise CheckpointError(
                f"cannot save a {what} that is a function: register it, sde_gen.models.score.{what.upper()}S['name'] = it"
            )
    if name_of(SDES, model.sde) is not None:
        _check_rebuilt("SDE", type(model.sde), model.sde.settings, "settings")
    process = {"name": name_of(SDES, model.sde), "class": type(model.sde).__name__, "settings": dict(model.sde.settings)}
    _check_json("SDE", process["settings"])
    return common | {
        "sde": process,
        "kind": name_of(KINDS, model) or "score",
        "model": model.settings(),
        "normalizer": None if normalizer is None else normalizer.to_config(),
        "moments": None if model.moments is None else {"covariance": model.moments.eigenvectors is not None},
        "masked": model.mask is not None,
        "fitted": [asdict(fitted) for fitted in model.fitted.values()],
    }


def _describe_network(network: Any) -> dict[str, Any]:
    if not isinstance(network, nn.Module):
        raise CheckpointError(f"cannot save a network that is a {type(network).__name__}: make it a torch.nn.Module")
    options = getattr(network, "options", {})
    if name_of(NETWORKS, network) is not None and not isinstance(network, Network):
        _check_rebuilt("network", type(network), options, "options")
    _check_json("network", options)
    about = {"name": name_of(NETWORKS, network), "class": type(network).__name__, "options": options}
    if isinstance(network, Network):
        about |= {"shape": list(network.shape), "conditions": network.conditions, "out_channels": network.out_channels}
    return about


def _check_json(what: str, values: Any) -> None:
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        reason = f"cannot save the settings of this {what}: {error}; they must be finite numbers, strings, lists and dicts"
        raise CheckpointError(reason) from error


def save(
    model: ScoreModel | TokenModel,
    path: str | os.PathLike[str],
    ema: nn.Module | None = None,
    extra: dict[str, Any] | None = None,
    state: State | None = None,
) -> Path:
    """Write `model` to the directory `path`: its weights, those of `ema` (a network of averaged weights) beside them, the
    normaliser, the moments, and what rebuilds them; `extra` is JSON-able and comes back from `read_extra`, `state` (tensors and
    JSON-able values: of a training) from `read_state`.

    Each save is a new numbered version in `path`, whole or not there at all, whenever the process dies (see `write_version`); the
    one before it is kept. Any torch.nn.Module is written as a network; `load` rebuilds those that are registered, and is given the others.
    Raises TypeError for another Denoiser, CheckpointError for a model that cannot be written, OSError where the disk cannot.
    """
    path = Path(path)
    description = describe(model) | {"extra": extra or {}}
    tensors: dict[str, Tensor] = {}
    parts: dict[str, Any] = {"network": model.network, "ema": ema}
    if isinstance(model, ScoreModel):
        parts |= {"normalizer": model.normalizer, "moments": model.moments}
        tensors |= {} if model.mask is None else {"mask.mask": model.mask}
    for part, module in parts.items():
        if isinstance(module, nn.Module):
            tensors |= {f"{part}.{key}": value for key, value in module.state_dict().items()}
    files = {WEIGHTS: tensors_file(tensors), DESCRIPTION: values_file(description)}
    if state is not None:
        files |= {STATE: tensors_file(state[0]), STATE_VALUES: values_file(state[1])}
    write_version(path, files)
    for name in (WEIGHTS, DESCRIPTION):
        (path / name).unlink(missing_ok=True)  # of a checkpoint from before there were versions
    return path


def tensors_file(tensors: dict[str, Tensor]) -> Callable[[Path], None]:
    """What writes the tensors to a safetensors file."""
    return lambda file: save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, file)


def values_file(values: dict[str, Any]) -> Callable[[Path], None]:
    """What writes the values to a JSON file."""
    text = to_json(values, 2) + "\n"

    def write(file: Path) -> None:
        file.write_text(text, encoding="utf-8")

    return write


def copy_file(source: Path) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        try:
            os.link(source, file)  # the content never changes: one copy on the disk will do
        except OSError:
            shutil.copyfile(source, file)

    return write


def save_fitted(model: ScoreModel, path: str | os.PathLike[str]) -> None:
    """Write `model.fitted` into the checkpoint at `path`, which holds this model, as a new version; nothing else of it changes."""
    version = open_checkpoint(path)
    description = read_values(version / DESCRIPTION) | {"fitted": [asdict(fitted) for fitted in model.fitted.values()]}
    others = [name for name in (WEIGHTS, STATE, STATE_VALUES) if (version / name).exists()]
    write_version(Path(path), {name: copy_file(version / name) for name in others} | {DESCRIPTION: values_file(description)})


def open_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The directory with the files of the checkpoint at `path`: its newest version that is whole, a version itself, or a checkpoint
    from before there were versions. CheckpointError where there is none."""
    path = Path(path)
    if (path / MANIFEST).exists():
        reason = fault(path)
        if reason is not None:
            raise CheckpointError(f"no readable checkpoint at {path}: {reason}")
        return path
    if not versions(path) and (path / DESCRIPTION).exists():
        return path
    return newest(path)


def read_values(file: Path) -> dict[str, Any]:
    """The mapping of a JSON file; CheckpointError where it is none."""
    try:
        if file.stat().st_size > MOST_VALUES:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; at most {MOST_VALUES} are read")
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"no readable checkpoint at {file.parent}: {type(error).__name__} on {file.name}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold a mapping, got {type(values).__name__}")
    return values


def read_description(version: Path) -> dict[str, Any]:
    description = read_values(version / DESCRIPTION)
    if description.get("format") != FORMAT:
        raise CheckpointError(f"{version / DESCRIPTION} is not a checkpoint of format {FORMAT}")
    return description


def read_extra(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `extra` that a checkpoint was saved with."""
    extra = read_description(open_checkpoint(path)).get("extra", {})
    return extra if isinstance(extra, dict) else {}


def read_state(path: str | os.PathLike[str]) -> State | None:
    """The `state` that a checkpoint was saved with, on the CPU, and the weights with it as "network.*" and "ema.*"; or None."""
    version = open_checkpoint(path)
    if not (version / STATE).exists():
        return None
    try:
        return load_file(version / STATE) | load_file(version / WEIGHTS), read_values(version / STATE_VALUES)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the state of the training at {path}: {type(error).__name__}: {error}") from error


def load(
    path: str | os.PathLike[str],
    ema: bool = True,
    device: torch.device | str = "cpu",
    network: nn.Module | None = None,
    sde: SDE | None = None,
    ema_width: float | None = None,
) -> ScoreModel:
    """The model saved at the directory `path`, or that of the run directory `path`, in evaluation mode on `device`.

    ema: whether the averaged weights are loaded where there are any, those that `choose_average` has left before the training's own.
    ema_width: loads weights averaged over another relative width, made of the averages that the training kept (`average_of_width`).
    network, sde: what the weights are loaded into and the process that the model runs along, for a checkpoint of classes that are not
        registered (see `register_network` and `register_sde`); None: as the checkpoint says.

    Where the newest version is damaged, the one before it is loaded, with a warning. Nothing is unpickled or executed.
    Raises ValueError for a device that is not here, ema_width with ema=False, or a width that the averages kept do not reach;
    CheckpointError, one line, for a checkpoint that is missing, damaged, of another shape than its description says, or of classes
    that are neither registered nor given.
    """
    device = find_device(device)
    if ema_width is not None and not ema:
        raise ValueError(f"ema_width {ema_width!r} is of averaged weights, and ema=False asks for the last ones: give one of them")
    chosen = {} if ema_width is None else average_of_width(read_state(checkpoint_of(path)), ema_width)[0]
    with loading(path) as (description, version):
        if description.get("kind") == TOKENS:
            raise ValueError("it holds a model of symbols: sde_gen.training.load_tokens reads it")
        tensors = load_file(version / WEIGHTS, device=str(device)) | {f"chosen.{name}": value for name, value in chosen.items()}
        _check_size(description["sde"])
        process = description["sde"]
        if sde is None and process["name"] not in SDES:
            raise _Unknown("an SDE", process, "sde", "register_sde")
        sde = make_sde(process["name"], **process["settings"]) if sde is None else sde
        network = load_network(description["network"], tensors, ema, device, network)
        parts: dict[str, dict[str, Tensor]] = {"normalizer": {}, "moments": {}, "mask": {}}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = value
        normalizer = None
        if description["normalizer"] is not None:
            normalizer = Normalizer.from_config(description["normalizer"]).to(device)
            normalizer.load_state_dict(parts["normalizer"])
        moments = None if description["moments"] is None else Moments.from_state(parts["moments"]).to(device)
        mask = parts["mask"]["mask"].bool() if description.get("masked") else None
        kind = KINDS[description.get("kind", "score")]
        model = kind(network, sde, **description["model"], normalizer=normalizer, moments=moments, mask=mask)
        fitted = [FittedGrid.from_config(values) for values in description.get("fitted", [])]
        model.fitted = {grid.key: grid for grid in fitted}
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def loading(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], Path]]:
    """The description and the directory of the checkpoint at `path`; what goes wrong in here is a CheckpointError, one line."""
    path = checkpoint_of(path)
    version = open_checkpoint(path)
    description = read_description(version)
    try:
        yield description, version
    except (OSError, SafetensorError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error) if isinstance(error, _Unknown) else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CheckpointError(f"cannot load the checkpoint at {path}: {reason}") from error


def load_network(
    about: dict[str, Any], tensors: dict[str, Tensor], ema: bool, device: torch.device, network: nn.Module | None = None
) -> nn.Module:
    """The network that a checkpoint describes with its weights, or `network` with them; ValueError and others where they do not fit."""
    _check_size(about["options"])
    _of_today(about, tensors)
    if network is None and about["name"] not in NETWORKS:
        raise _Unknown("a network", about, "network", "register_network")
    if network is None:
        with torch.device("meta"):  # nothing is allocated before the file is known to hold as much
            _check_weights(_made(about), tensors)
        network = _made(about)
    else:
        _check_weights(network, tensors)
    weights: dict[str, dict[str, Tensor]] = {"network": {}, "ema": {}}
    for key, value in tensors.items():
        part, _, rest = key.partition(".")
        weights.setdefault(part, {})[rest] = value
    network = network.to(device)
    averaged = weights.get("chosen") or weights["ema"]
    network.load_state_dict(averaged if ema and averaged else weights["network"])
    return network


def checkpoint_of(path: str | os.PathLike[str]) -> Path:
    """`path`, or the checkpoint in it where it is a run directory."""
    path = Path(path)
    inside = path / "checkpoint"
    return inside if inside.is_dir() and not (path / DESCRIPTION).exists() and not versions(path) else path


class _Unknown(ValueError):
    """A class that the registries do not know."""

    def __init__(self, what: str, about: dict[str, Any], argument: str, register: str) -> None:
        kind = about.get("class") or about["name"]
        super().__init__(
            f"it was saved with {what} of class {kind}, which is not registered: give load({argument}=...) one, "
            f"or call sde_gen.{register}({(about['name'] or str(kind).lower())!r}, {kind}) first"
        )


def _made(about: dict[str, Any]) -> nn.Module:
    if "shape" in about:
        return make_network(about["name"], about["shape"], about["conditions"], about["out_channels"], **about["options"])
    made: nn.Module = NETWORKS[about["name"]](**about["options"])
    return made


def _of_today(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Bring a network of a version that knew labels alone, and dropped them itself, up to date."""
    if "shape" in about and "conditions" not in about:
        classes = about.pop("classes")
        about["conditions"] = None if classes is None else {"label": {"kind": "label", "classes": classes}}
        about["options"].pop("label_dropout", None)
        for part in ("network", "ema"):
            table = tensors.pop(f"{part}.condition.label.table.weight", None)
            if table is not None:
                tensors[f"{part}.condition.encoders.0.table.weight"] = table


def _check_weights(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    for key, value in network.state_dict().items():
        found = tensors.get(f"network.{key}")
        if found is None or found.shape != value.shape:
            shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise ValueError(f"network.{key} is {shape}, not {tuple(value.shape)}")


def _check_size(values: Any) -> None:
    """ValueError where a description asks for more of anything than a network or process can have."""
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        if isinstance(value, int) and value > MOST_OF_ANYTHING:
            raise ValueError(f"{value} is more than the {MOST_OF_ANYTHING} of anything that a checkpoint may ask for")
        _check_size(value)
