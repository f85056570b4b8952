"""What samples are asked for, and the job that draws them: settings, conditions and files, all checked before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from ..data.columns import Codec
from ..data.columns.codec import VALID
from ..data.columns.patterns import KEY, valid_of_patterns
from ..data.write import DataDescription
from ..guidance import guide
from ..models.denoiser import Denoiser
from ..models.flow_map import STRENGTH, FlowMap
from ..models.score import ScoreModel
from ..randomness import check_seed
from ..training import CheckpointError, load, read_extra
from ..training.checkpoint import WEIGHTS, checkpoint_of, open_checkpoint
from ..unknown_numbers import from_json, to_json
from .config import ConfigError, RunConfig, SamplingConfig, read_config, registered_solver
from .given_conditions import Given, given_conditions
from .given_gaps import gaps_in_file, split_texts, told_of_gaps
from .run_data import config_of_run, load_data
from .sample_solver import jumps_of, solver_of

MOST_SHARDS = 4096


JOB = "job.json"


_GOLDEN, _ROOT_OF_TWO = 0x9E3779B97F4A7C15, 0x6A09E667F3BCC909
"""The golden ratio and the square root of 2 less 1, over 2^64: together with 1 independent, so that classes and gaps are."""


@dataclass(frozen=True)
class SampleSettings:
    """What is drawn. None: what the run's configuration says, of steps and grid where its solver is the same.

    samples: how many; solver, steps, grid, seed: as `sample` takes them; batch: how many at a time; cond: conditions, "NAME=VALUE" each
    (`given_conditions`); label: short for "label=..."; without it classes come in the shares of the training data, and other conditions
    are not given; guidance: the strength with which samples are pushed towards their conditions
    (None and 1: not at all) by `rule`, a name in GUIDANCE (None: "cfg"); threads: of each process on the CPU, on which the last bits of
    some networks depend, so that with one number of them any number of processes draws the same bits.
    """

    samples: int
    solver: str | None = None
    steps: int | None = None
    grid: str | None = None
    seed: int | None = None
    batch: int | None = None
    label: str | None = None
    guidance: float | None = None
    rule: str | None = None
    threads: int = 1
    cond: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A set of samples in a form, and where its shards lie.

    given: the conditions that are asked for, None for one that is asked not to be given. labelled: whether each sample has a class.
    dropped: the conditions that training left out at times.
    """

    model: Denoiser
    about: DataDescription
    form: str
    out: Path
    settings: dict[str, Any]
    batch: int
    given: dict[str, Given | None]
    device: torch.device
    dropped: list[str]

    @property
    def labelled(self) -> bool:
        return "label" in self.model.encoders and self.given.get("label", True) is not None and self.about.label_counts is not None

    @property
    def gaps(self) -> Codec | None:
        """The codec of a table whose samples have gaps in the patterns of the data, else None."""
        return None if VALID in self.given else told_of_gaps(self.model.encoders, self.about.codec)

    @property
    def beside(self) -> dict[str, Given]:
        """The conditions but the label that samples are given."""
        return {name: value for name, value in self.given.items() if name != "label" and value is not None}

    @property
    def samples(self) -> int:
        return int(self.settings["samples"])

    @property
    def parts(self) -> Path:
        """The hidden folder of the shards."""
        return self.out.with_name(f".{self.out.name}.parts")

    @property
    def shards(self) -> list[tuple[Path, int, int]]:
        """File, first sample and the one after the last of each: whole batches, cut alike for any number of processes."""
        size = self.batch * -(-self.samples // (self.batch * MOST_SHARDS))
        firsts = range(0, self.samples, size)
        return [(self.parts / f"{k:06d}.npz", first, min(first + size, self.samples)) for k, first in enumerate(firsts)]

    def classes(self, first: int, last: int) -> np.ndarray | None:
        """The class of each of the samples first .. last - 1, a function of its number alone."""
        if not self.labelled or self.about.label_counts is None:
            return None
        label = self.given.get("label")
        return classes_by_shares(first, last, self.about.label_counts) if label is None else label.rows(first, last)

    def conditions(self, first: int, last: int) -> dict[str, Tensor] | None:
        """The conditions of the samples first .. last - 1, with nulls for what is not given; None for a model that takes none."""
        found = {name: encoder.missing(last - first, torch.device("cpu")) for name, encoder in self.model.encoders.items()}
        classes = self.classes(first, last)
        found |= {} if classes is None else {"label": torch.from_numpy(np.array(classes))}
        if self.gaps is not None and self.about.codec is not None:
            shares = tuple(self.about.codec[KEY].values())
            chosen = classes_by_shares(first, last, shares, _ROOT_OF_TWO)
            found[VALID] = torch.from_numpy(valid_of_patterns(self.gaps, self.about.codec, chosen))
        found |= {name: value.tensor(first, last) for name, value in self.beside.items()}
        if isinstance(self.model, FlowMap) and self.settings["guidance"] is not None:
            found[STRENGTH] = torch.full((last - first,), self.settings["guidance"])
        return found or None


def classes_by_shares(first: int, last: int, counts: Sequence[int], step: int = _GOLDEN) -> np.ndarray:
    """Class of each of the samples first .. last - 1, int64: class k has a share counts[k]/sum(counts) of any many samples in a row.

    Sample i takes the class in whose interval of the cumulated shares the fraction (i + 1) 0.618... mod 1 lies (another irrational number
    with another `step`): that sequence fills [0, 1) evenly, so that a share is off by about log(N)/N and not by 1/sqrt(N).
    """
    index = np.arange(first + 1, last + 1, dtype=np.uint64)
    fraction = (index * np.uint64(step)).astype(np.float64) / 2.0**64
    bounds = np.cumsum(np.array(counts, dtype=np.float64)) / sum(counts)
    filled = int(np.flatnonzero(counts)[-1])
    return np.searchsorted(bounds, fraction, side="right").clip(max=filled).astype(np.int64)


def plan_job(directory: Path, out: str, settings: SampleSettings, device: torch.device) -> Job:
    """What is to be done, everything checked that can be before any work."""
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a run directory: {'a file' if directory.exists() else 'it is not there'}")
    checkpoint = checkpoint_of(directory)
    try:
        model, extra = load(checkpoint, device=device), read_extra(checkpoint)
    except CheckpointError as error:
        raise ConfigError(f"{directory} holds no trained network: {error}") from error
    own = _own_sampling(directory)
    try:
        for name, value in (("samples", settings.samples), ("batch-size", settings.batch), ("threads", settings.threads)):
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        about = description_of(directory, extra)
        form = about.form(out)
        about.check(form)
        given = _given(model, about, settings)
        config, names = _own_config(directory), list(model.encoders)
        dropped = names if config is None else list(config.training.shares_dropped(names))
        seed = check_seed(own.seed if settings.seed is None else settings.seed)
        drawn: Denoiser
        if isinstance(model, FlowMap):
            drawn, how = model, jumps_of(model, settings.solver, settings.steps, settings.grid, settings.guidance, settings.rule)
        else:
            drawn = _guided(model, given, settings, dropped)
            how = solver_of(model, drawn, own, settings.solver, settings.steps, settings.grid, settings.rule)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with (open_checkpoint(checkpoint) / WEIGHTS).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    batch = min(own.batch if settings.batch is None else settings.batch, settings.samples)
    job = {
        "samples": settings.samples,
        **how,
        "seed": seed,
        "batch": batch,
        "label": settings.label,
        "cond": {name: None if value is None else value.setting for name, value in given.items()} or None,
        "guidance": settings.guidance,
        "rule": None if settings.guidance is None else settings.rule or "cfg",
        "form": form,
        "threads": settings.threads if device.type == "cpu" else None,
        "device": device.type,
        "network": weights,
        "data": about.to_config(),
    }
    settled = from_json(to_json(job))  # as it is read back
    return Job(drawn, about, form, Path(out), settled, batch, given, device, dropped)


def _guided(model: ScoreModel, given: dict[str, Given | None], settings: SampleSettings, dropped: list[str]) -> Denoiser:
    """The model with the guidance that is asked for, away from itself without `dropped`, what training left out at times."""
    if settings.guidance is None:
        if settings.rule is not None:
            raise ValueError(f"--rule {settings.rule} is of guidance: give its strength too, --guidance X")
        return model
    asked = f"--guidance {settings.guidance:g}"
    if not model.encoders:
        without = "without labels or other conditions (sde-gen run --labels, --condition)"
        raise ValueError(f"{asked}: this network was trained {without}")
    names = list(model.encoders)
    towards = [name for name in names if given.get(name, "by shares" if name == "label" else None) is not None]
    if not towards:
        raise ValueError(f"{asked}: towards what? --cond NAME=VALUE says it, of {', '.join(names)}")
    if not set(towards) & set(dropped):
        never = f"training.drop left out {', '.join(towards)} of no sample, so that there is nothing to push away from"
        raise ValueError(f"{asked}: {never} (sde-gen run --drop 0.1 --retrain)")
    return guide(model, settings.guidance, drop=dropped, rule=settings.rule or "cfg")


def _own_sampling(directory: Path) -> SamplingConfig:
    """The sampling of the run's configuration; the defaults where it has none."""
    config = _own_config(directory)
    if config is None:
        return SamplingConfig()
    return config.sampling.model_copy(update={"solver": registered_solver(config.sampling.solver)})


def _own_config(directory: Path) -> RunConfig | None:
    """The run's configuration, where it has one."""
    file = directory / "config.yaml"
    if not file.is_file():
        return None
    try:  # without a look at the data, which need not be there
        return RunConfig.model_validate(read_config(file))
    except ValidationError as error:
        raise ConfigError(f"{file} is no configuration of a run: {error.errors()[0]['msg']}") from error


def description_of(directory: Path, extra: dict[str, Any]) -> DataDescription:
    """That of the data that the network was trained on: of the checkpoint, or, of an earlier version's, of the data themselves."""
    known = extra.get("data_description")
    if known is not None:
        return DataDescription.from_config(known)
    try:
        return DataDescription.of(load_data(config_of_run(directory)))
    except ConfigError as error:
        raise ConfigError(
            f"the checkpoint of {directory} is of an earlier version, which did not keep the header, levels and labels of its data, and "
            f"the data cannot be looked at: {error}"
        ) from error


def _given(model: ScoreModel, about: DataDescription, settings: SampleSettings) -> dict[str, Given | None]:
    """The conditions that are asked for, by name."""
    classes = getattr(model.network, "classes", None)
    if classes is not None and (about.label_names is None or len(about.label_names) != classes):
        raise ValueError(
            f"the network has {classes} classes, and the data {len(about.label_names or ())}: they are not those it was trained on"
        )
    texts, label = list(settings.cond), settings.label
    if label is not None:
        if classes is None or about.label_names is None:
            raise ValueError(f"--label {label}: this network was trained without labels (sde-gen run --labels trains one with them)")
        if label not in map(str, about.label_names):
            shown = ", ".join(map(str, about.label_names[:20])) + (", ..." if len(about.label_names) > 20 else "")
            raise ValueError(f"--label {label}: no such label; choose from {shown}")
        texts.append(f"label={label}")
    codec, gaps = told_of_gaps(model.encoders, about.codec), None
    if codec is not None:
        texts, gaps = split_texts(texts)
    found = given_conditions(model.encoders, texts, settings.samples, about.label_names)
    if codec is not None and gaps is not None:
        try:
            found[VALID] = gaps_in_file(codec, gaps, settings.samples) if gaps else None
        except ValueError as error:
            raise ValueError(f"--cond {VALID}={gaps}: {error}") from error
    return found
