"""The configuration of a run: what is allowed, the defaults for each kind of data, and how files and flags override them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .data import DATASETS
from .training import TrainSettings


class ConfigError(ValueError):
    """A configuration that cannot be run: one line that names the key, the value seen and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class DataConfig(_Section):
    """name: a registered data set; root: the directory of its files; limit: keep that many training items;
    labels: train a conditional network on the data's labels."""

    name: str = "digits"
    root: str | None = None
    limit: int | None = Field(default=None, ge=2)
    labels: bool = False


class SDEConfig(_Section):
    """name: a registered SDE; settings: its constructor's."""

    name: str = "vp"
    settings: dict[str, Any] = {}


class ModelConfig(_Section):
    """network: a registered network; options: its constructor's; prediction, prior, normalizer: see build_model."""

    network: str = "unet"
    options: dict[str, Any] = {}
    prediction: str = "edm"
    prior: str = "sde"
    normalizer: str = "standard"


class SamplingConfig(_Section):
    """solver: a registered solver with its options; steps and grid: None for the solver's defaults; samples: how many are
    drawn and measured; batch: how many at a time; seed: of their noise."""

    solver: str = "pc"
    options: dict[str, Any] = {}
    steps: int | None = Field(default=None, ge=1)
    grid: str | None = None
    samples: int = Field(default=1000, ge=16)
    batch: int = Field(default=500, ge=1)
    seed: int = Field(default=0, ge=0)


class RunConfig(_Section):
    """One run: data, process, network, training and sampling."""

    data: DataConfig = DataConfig()
    sde: SDEConfig = SDEConfig()
    model: ModelConfig = ModelConfig()
    training: TrainSettings = TrainSettings()
    sampling: SamplingConfig = SamplingConfig()

    def identity(self) -> dict[str, Any]:
        """The part that decides what network comes out: two runs with the same one can share it."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key != "sampling"}

    def to_yaml(self) -> str:
        """The whole configuration, as `--config` reads it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


DIGITS: dict[str, Any] = {
    "model": {"network": "unet", "options": {"width": 32, "multipliers": [1, 2], "attention": [1], "dropout": 0.05}},
    "training": {"steps": 1800, "batch": 64, "lr": 2e-3, "ema_width": 0.05},
}
VECTORS: dict[str, Any] = {
    "model": {"network": "mlp", "options": {"width": 128, "depth": 3}},
    "training": {"steps": 4000, "batch": 512, "lr": 2e-3},
    "sampling": {"samples": 10000, "batch": 10000},
}
MNIST: dict[str, Any] = {
    "model": {"network": "unet", "options": {"width": 32, "multipliers": [1, 2, 2], "attention": [2]}},
    "training": {"steps": 3000, "batch": 64, "lr": 1e-3, "ema_width": 0.05},
}
RECIPES: dict[str, dict[str, Any]] = {
    "digits": DIGITS,
    "mnist": MNIST,
    "gaussians8": VECTORS,
    "moons": VECTORS,
    "checkerboard": VECTORS,
}
"""What each data set starts from; a configuration file and then flags override it."""


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, sections merged; a section that names another registry entry (`network`, `solver`,
    `name`) drops the options and settings of the one it replaces."""
    merged = dict(base)
    for choice, belongs in (("network", "options"), ("solver", "options"), ("name", "settings")):
        if choice in over and choice in base and over[choice] != base[choice] and belongs in base:
            merged.pop(belongs)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def read_config(path: str | Path) -> dict[str, Any]:
    """A YAML configuration file as nested dictionaries. ConfigError where it cannot be read."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {' '.join(str(error).split())[:200]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"the configuration {path} must be a mapping of sections, got {type(content).__name__}")
    return content


def resolve(*layers: Mapping[str, Any]) -> RunConfig:
    """The run that `layers` describe, each overriding the ones before it, all overriding the data's recipe."""
    asked: dict[str, Any] = {}
    for layer in layers:
        asked = merge(asked, layer)
    section = asked.get("data") or {}
    name = section.get("name", DataConfig().name) if isinstance(section, Mapping) else section
    if name not in DATASETS:
        raise ConfigError(f"data.name: unknown data {name!r}; choose from {', '.join(DATASETS)}")
    try:
        return RunConfig.model_validate(merge(RECIPES.get(name, {}), asked))
    except ValidationError as error:
        raise ConfigError(_first(error)) from error


def _first(error: ValidationError) -> str:
    """The first fault of many as one line."""
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"] if part != "TrainSettings")
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        section: Any = RunConfig
        for part in place.split(".")[:-1]:
            section = section.model_fields[part].annotation
        names = section.model_fields if hasattr(section, "model_fields") else section.__dataclass_fields__
        return f"unknown key {place}; choose from {', '.join(names)}"
    message = fault["msg"].removeprefix("Value error, ")
    seen = "" if ", got " in message else f", got {fault['input']!r}"
    return f"{place}: {message}{seen}".replace("\n", " ")


def parse_seconds(text: str) -> float:
    """ "30s", "5m", "1h" or a number of seconds, as seconds; ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else math.nan
    if not seconds > 0:
        raise ConfigError(f"a time must look like 30s, 5m or 1h and be positive, got {text!r}")
    return seconds
