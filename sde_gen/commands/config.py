"""The configuration of a run: what is allowed, the defaults for each kind of data, and how files and flags override them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..data import DATASETS, PATHS, is_path, item_shape
from ..data.reading import Reading
from ..external.feature_networks import LABELS, features_named
from ..solvers import SOLVERS
from ..training import TrainSettings
from .recipes import LABELLED, RECIPES, TABLES, rank_recipe, shape_recipe


class ConfigError(ValueError):
    """A configuration that cannot be run: one line that names the key, the value seen and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class DataConfig(_Section):
    """name: a registered data set or the path of the user's own; root: the directory of a registered set's files; limit: keep that many
    training items; labels: train a conditional network on the data's labels; size: resize images from files to this edge; label_column: of
    a table, its column of labels; axes: of an array, a letter for each axis, such as NHWC; missing: what marks a missing cell, a number,
    "nan" or in a table a word; split: how a tenth is held out, "random", "stratified" or "tail"; group: a column or array whose groups are
    held out whole; window, stride: of a series, so many rows are an item, so many rows apart; conditions: what the network is told of each
    item, columns of a table or arrays of an .npz file, each COLUMN or NAME=COLUMN; condition_map: a folder or archive of images that are
    the condition "map" of the images of the same names; captions: a table of file and caption, or a folder of text files of the same
    names, which are the condition "caption"; text: options of the encoder of captions (`conditions.Text`, and vocabulary: the path of a
    BERT vocab.txt); variable: of a NetCDF, zarr or HDF5 file, the array that is the data, or several
    that are its channels; mode: "grey", "rgb" or "rgba", to which images from files are converted; columns: of a table,
    what its columns are, "infer" or {COLUMN: KIND or {kind: KIND, ...}}; relative_to: the directory that relative paths in name, root and
    condition_map start from (None: where the command is called), which a run directory's config.yaml keeps."""

    name: str = "digits"
    root: str | None = None
    limit: int | None = Field(default=None, ge=2)
    labels: bool = False
    size: int | None = Field(default=None, ge=1)
    label_column: str | int | None = None
    axes: str | None = None
    missing: float | str | None = None
    split: str | None = None
    group: str | int | None = None
    window: int | None = Field(default=None, ge=2)
    stride: int | None = Field(default=None, ge=1)
    conditions: tuple[str, ...] = ()
    condition_map: str | None = None
    captions: str | None = None
    text: dict[str, Any] = {}
    variable: tuple[str, ...] = ()
    mode: str | None = None
    columns: str | dict[str, Any] | None = None
    relative_to: str | None = None

    @field_validator("missing", mode="before")
    @classmethod
    def _number_where_it_is_one(cls, value: Any) -> Any:
        """-9999 and "-9999" are one setting, and so are .nan and "nan"."""
        try:
            number = float(value) if isinstance(value, str | float) else math.nan
        except ValueError:
            return value
        return number if math.isfinite(number) else "nan" if isinstance(value, float) and math.isnan(value) else value

    @field_validator("text")
    @classmethod
    def _whole_path(cls, value: dict[str, Any]) -> dict[str, Any]:
        vocabulary = value.get("vocabulary")
        return value | {"vocabulary": os.path.abspath(vocabulary)} if isinstance(vocabulary, str) else value

    @field_validator("conditions", "variable", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """One name is a list of one, and the number of a column a name."""
        listed = value if isinstance(value, list | tuple) else [value]
        return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in listed]

    @property
    def location(self) -> str:
        """The name of a registered set; of the user's own data the path to open."""
        return located(self.name, self.relative_to)

    @property
    def root_location(self) -> str | None:
        """The directory of a registered set's files to open."""
        return None if self.root is None else os.path.join(self.relative_to or "", self.root)

    @property
    def reading(self) -> Reading:
        """How files of the user's own are to be read."""
        beside = {key: getattr(self, key) for key in BESIDE}
        places = {key: None if path is None else os.path.join(self.relative_to or "", path) for key, path in beside.items()}
        column = None if self.label_column is None else str(self.label_column)
        chosen = {field.name: getattr(self, field.name) for field in fields(Reading)}
        return Reading(**chosen | places | {"label_column": column})


class SDEConfig(_Section):
    """name: a registered SDE; settings: its constructor's."""

    name: str = "vp"
    settings: dict[str, Any] = {}


class ModelConfig(_Section):
    """network: a registered network; options: its constructor's; prediction, prior, normalizer, variance: see build_model."""

    network: str = "unet"
    options: dict[str, Any] = {}
    prediction: str = "edm"
    prior: str = "sde"
    normalizer: str = "standard"
    variance: str | None = None


class SamplingConfig(_Section):
    """solver: a registered solver with its options; steps and grid: None for the solver's defaults; samples: how many are
    drawn and measured; batch: how many at a time; seed: of their noise; features: what images are measured in beside the classifier of
    their own labels, `external.feature_networks.FEATURES`; reference: an .npz of moments of such features to compare with, None for the
    training data. Paths are kept whole."""

    solver: str = "pc"
    options: dict[str, Any] = {}
    steps: int | None = Field(default=None, ge=1)
    grid: str | None = None
    samples: int = Field(default=1000, ge=16)
    batch: int = Field(default=500, ge=1)
    seed: int = Field(default=0, ge=0)
    features: str = LABELS
    reference: str | None = None

    @field_validator("features")
    @classmethod
    def _known(cls, value: str) -> str:
        kind, path = features_named(value)
        return kind if path is None else f"{kind}:{os.path.abspath(path)}"

    @field_validator("reference")
    @classmethod
    def _whole(cls, value: str | None) -> str | None:
        return None if value is None else os.path.abspath(value)


class RunConfig(_Section):
    """One run: data, process, network, training and sampling."""

    data: DataConfig = DataConfig()
    sde: SDEConfig = SDEConfig()
    model: ModelConfig = ModelConfig()
    training: TrainSettings = TrainSettings()
    sampling: SamplingConfig = SamplingConfig()

    def identity(self) -> dict[str, Any]:
        """The part that decides what network comes out: two runs with the same one can share it. Paths of data are absolute."""
        found = {key: value for key, value in self.model_dump(mode="json").items() if key != "sampling"}
        data = found["data"]
        del data["relative_to"]
        data["name"] = self.data.name if self.data.name in DATASETS else os.path.abspath(self.data.location)
        for key, place in (("root", self.data.root_location), *((key, getattr(self.data.reading, key)) for key in BESIDE)):
            data[key] = None if place is None else os.path.abspath(place)
        for name in ("micro_batch", "workers", "shard", "compile", "channels_last"):  # how, not what
            del found["training"][name]
        return found

    def anchored(self) -> RunConfig:
        """The same run, which says where its relative paths start: it means the same data wherever it is read."""
        data = self.data
        beside = (getattr(data, key) for key in BESIDE)
        paths = [path for path in (None if data.name in DATASETS else data.name, data.root, *beside) if path is not None]
        if all(map(os.path.isabs, paths)):
            return self
        return self.model_copy(update={"data": data.model_copy(update={"relative_to": os.path.abspath(data.relative_to or ".")})})

    def to_yaml(self) -> str:
        """The whole configuration, as `--config` reads it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


BESIDE = ("condition_map", "captions")
"""Of data, the paths of what lies beside the items."""
BELONGS = {"network": ("options",), "solver": ("options", "steps", "grid"), "name": ("settings",)}
"""Of each choice, the settings beside it that mean nothing for another."""
MOST_CONFIG = 1 << 20
"""Bytes of a configuration file beyond which it is not read."""


def located(name: str, relative_to: str | None = None) -> str:
    """The name of a registered set as it is; a path of the user's own, from `relative_to` where that is given."""
    return name if name in DATASETS or relative_to is None else os.path.join(relative_to, name)


def recipe_note(config: RunConfig, shape: Sequence[int]) -> str | None:
    """Of a configuration of the user's own data whose recipe was chosen by its cost: how; None for any other."""
    recipe = shape_recipe(shape)
    if config.data.name in DATASETS or recipe == rank_recipe(shape) or config.model.options != recipe["model"]["options"]:
        return None
    options, size = config.model.options, "x".join(map(str, shape[1:]))
    levels = len(options["multipliers"])
    return (
        f"items of {size} are large: patches of edge {options['patch']}, {levels} levels, attention in the last alone, batches of "
        f"{config.training.batch}, so that a step stays affordable; --dry-run says what a step and the whole take"
    )


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, sections merged; a section that names another registry entry (`network`, `solver`,
    `name`) drops the options, steps, grid and settings of the one it replaces."""
    merged = dict(base)
    for choice, of_it in BELONGS.items():
        if choice in over and choice in base and over[choice] != base[choice]:
            for belongs in of_it:
                merged.pop(belongs, None)
    if {"name", "root", *BESIDE} & set(over) and "relative_to" not in over:
        merged.pop("relative_to", None)  # another layer's path does not start there
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


class _PlainLoader(yaml.SafeLoader):
    """YAML of plain values alone: an alias is refused, since a few lines of them can stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases are not allowed, got *{self.peek_event().anchor}")
        return super().compose_node(parent, index)


def read_yaml(text: str) -> Any:
    """The plain value of a YAML text; yaml.YAMLError for one with aliases, tags of objects, or too many levels."""
    try:
        return yaml.load(text, _PlainLoader)  # a SafeLoader: nothing is executed
    except RecursionError:
        raise yaml.YAMLError("too many levels") from None
    except ValueError as error:  # of a date that is none, say
        raise yaml.YAMLError(str(error)) from error


def read_config(path: str | Path) -> dict[str, Any]:
    """A YAML configuration file as nested dictionaries. ConfigError where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MOST_CONFIG + 1)
        if len(text) > MOST_CONFIG:
            raise ConfigError(f"cannot read the configuration {path}: it has more than {MOST_CONFIG} bytes")
        content = read_yaml(text.decode("utf-8"))
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
        asked = merge(asked, _with_registered_solver(layer))
    section = asked.get("data") or {}
    name = section.get("name", DataConfig().name) if isinstance(section, Mapping) else section
    start = section.get("relative_to") if isinstance(section, Mapping) else None
    place = located(name, start if isinstance(start, str) else None) if isinstance(name, str) else ""
    if not isinstance(name, str) or (name not in DATASETS and not is_path(place)):
        raise ConfigError(f"data.name: unknown data {name!r}; choose from {', '.join(DATASETS)}, or give a path: {PATHS}")
    try:
        data = RunConfig.model_validate({"data": section}).data if isinstance(section, Mapping) else DataConfig()
        recipe = RECIPES[name] if name in DATASETS else shape_recipe(item_shape(place, data.reading))
        recipe = recipe if data.columns is None else TABLES
        labelled = isinstance(section, Mapping) and bool(section.get("labels"))
        return RunConfig.model_validate(merge(merge(recipe, LABELLED.get(name, {}) if labelled else {}), asked))
    except ValidationError as error:
        raise ConfigError(_first(error)) from error


def registered_solver(name: str) -> str:
    """The registered name of a solver that is given by another name of the field; any other name as it is."""
    return SOLVERS.aliases.get(name, name)


def _with_registered_solver(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The layer with its solver's registered name: directories and fitted grids have one name."""
    sampling = layer.get("sampling")
    solver = sampling.get("solver") if isinstance(sampling, Mapping) else None
    return dict(layer) | {"sampling": {**sampling, "solver": registered_solver(solver)}} if isinstance(solver, str) else layer  # type: ignore[dict-item]


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
    seen = "" if ", got " in message or message.startswith("unknown ") else f", got {fault['input']!r}"
    return f"{place}: {message}{seen}".replace("\n", " ")


def parse_seconds(text: str) -> float:
    """ "30s", "5m", "1h" or a number of seconds, as seconds; ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else math.nan
    if not seconds > 0:
        raise ConfigError(f"a time must look like 30s, 5m or 1h and be positive, got {text!r}")
    return seconds
