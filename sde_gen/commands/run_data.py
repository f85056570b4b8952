"""The data and the untrained model that a run's configuration describes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..conditions import RESERVED, fit_condition, valid_of
from ..data import DATASETS, SOURCES, Dataset, download, load_dataset
from ..data.write import MEMBERS
from ..devices import find_device
from ..models.score import ScoreModel
from ..sampling.automatic import flow_solver
from ..sampling.fitting import check_fit
from ..solvers import GRIDS, make_solver
from ..training import CheckpointError, Objective, build_model, check_layout, read_extra
from ..training.checkpoint import describe
from .config import ConfigError, RunConfig, read_config, resolve
from .training_files import category_names, conditions_of

Say = Callable[[str], None]


def default_directory(config: RunConfig) -> Path:
    """runs/<data>-<sde>; of a path its last part, ending and all: energy.npy and energy.csv are two runs."""
    name = config.data.name if config.data.name in DATASETS else Path(os.path.abspath(config.data.location)).name
    return Path("runs") / f"{name or 'data'}-{config.sde.name}"


def choose_device(name: str | None) -> torch.device:
    """The device `name`, or CUDA where present and else the CPU; ConfigError for one that is not here."""
    try:
        return find_device(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def config_of_run(directory: Path) -> RunConfig:
    """The configuration of a run directory, its data found from wherever this is called.

    A relative path of data starts where the run was made, or else here, or else at a directory above the run's (which may have been
    moved together with its data); of several that are there, the first with the signature of the data that the network was trained on.
    ConfigError where the directory is no run's, or its data are nowhere.
    """
    file = directory / "config.yaml"
    if not file.is_file():
        with contextlib.suppress(CheckpointError):
            source = read_extra(directory / "checkpoint").get("distilled_from")
            if source is not None:
                raise ConfigError(f"{directory} holds a flow map, which sde-gen sample alone takes; the run that it came from is {source}")
        raise ConfigError(f"{directory} is not a run directory: it has no config.yaml")
    layer = read_config(file)
    section = layer.get("data")
    if not isinstance(section, dict):
        return resolve(layer)
    name, root, made = (section.get(key) for key in ("name", "root", "relative_to"))
    path = root if name in DATASETS else name
    if not isinstance(path, str) or os.path.isabs(path):
        return resolve(layer)
    starts = dict.fromkeys([*([made] if isinstance(made, str) else []), os.getcwd(), *map(str, directory.absolute().parents)])
    found = {os.path.realpath(os.path.join(start, path)): start for start in reversed(starts) if os.path.exists(os.path.join(start, path))}
    if not found:
        raise ConfigError(
            f"the data of {directory} are not there: {path!r} is neither below {', '.join(list(starts)[:2])} nor beside the run"
        )
    configs = [resolve(layer, {"data": {"relative_to": start}}) for start in reversed(found.values())]
    if len(configs) > 1:
        with contextlib.suppress(CheckpointError):
            trained = read_extra(directory / "checkpoint").get("data")
            return next((config for config in configs if load_data(config).signature() == trained), configs[0])
    return configs[0]


def fetch_data(config: RunConfig, say: Say = print) -> None:
    """Download the files of the configuration's data set that are not there; ConfigError where that cannot be done."""
    try:
        download(config.data.name, config.data.root_location, say)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_data(config: RunConfig) -> Dataset:
    """The configuration's data set; ConfigError where it is missing, unreadable or cannot be trained on."""
    try:
        chosen = config.data
        if chosen.root is not None and chosen.name not in SOURCES:
            raise ValueError(f"data.root is for {', '.join(SOURCES)}, whose files it holds; {chosen.name!r} reads none from there")
        data = load_dataset(chosen.location, chosen.root_location, config.training.seed, chosen.limit, **vars(chosen.reading))
        taken = next((name for name in data.cond if name in RESERVED or name in MEMBERS), None)
        if taken is not None:
            raise ValueError(f"a condition cannot be called {taken!r}; --condition NAME={taken} gives it another name")
        return data
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check(config: RunConfig, data: Dataset) -> ScoreModel:
    """The model that the configuration describes, not trained: every name and setting is checked before any work."""
    sampling = config.sampling
    try:
        name = flow_solver(sampling.solver, sampling.options)
        solver = make_solver(name, **sampling.options)
        if sampling.grid == "fitted":
            check_fit(name, solver, sampling.steps)
            if sampling.options:
                raise ValueError("a fitted grid has options of its own: leave sampling.options empty")
        elif sampling.grid is not None and sampling.grid not in GRIDS:
            raise ValueError(f"unknown grid {sampling.grid!r}; choose from {', '.join(GRIDS)}, fitted")
        if config.data.labels and data.classes is None:
            raise ValueError(f"data {data.name!r} has no labels to train on")
        names = conditions_of(config, data)
        known: dict[str, Any] = data.conditions(names)
        kinds = {key: {"kind": "text", **config.data.text} for key in data.texts}
        specs = {n: fit_condition(n, value, data.shape[1:], kinds.get(n), category_names(data, n)) for n, value in known.items()}
        model = build_model(
            data.train,
            config.sde.name,
            config.model.network,
            config.model.prediction,
            config.model.prior,
            config.model.normalizer,
            config.sde.settings,
            config.model.options,
            specs,
            config.training.seed,
            config.model.variance,
            data.valid,
            valid_of(specs, known),
            data.codec,
        )
        if config.training.reference and data.codec is not None:
            what = "tables of words, whose cells are drawn for each batch"
            raise ValueError(f"training.reference {config.training.reference} is not for {what}")
        Objective(config.training, model, data.levels)
        config.training.shares_dropped(names)
        check_layout(config.training, data.train.shape)
        if solver.needs_variance and model.variance is None:
            raise ValueError(f"solver {sampling.solver!r} with these options needs a network that learns the variance: --learned-variance")
        model.scales(torch.full((1,), model.sde.t_max, dtype=torch.float64))  # a clock or prediction that does not suit the SDE
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    try:
        describe(model)  # what cannot be saved is said before it is trained
    except (CheckpointError, TypeError) as error:
        raise ConfigError(f"this run could not be saved: {error}") from error
    return model
