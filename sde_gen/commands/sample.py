"""Samples of a trained network as files: drawn in shards, which a killed job goes on from and which processes share out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from .. import parallel, progress
from ..data import formats
from ..data.columns import Codec
from ..data.columns.codec import VALID
from ..data.columns.patterns import KEY, valid_of_patterns
from ..data.write import FOLDERS, TABLE_FORMS, DataDescription, write_samples
from ..guidance import guide
from ..locks import held
from ..models.denoiser import Denoiser
from ..models.flow_map import STRENGTH, FlowMap
from ..models.score import ScoreModel
from ..randomness import check_seed
from ..report.files import atomic_path, write_text
from ..sampling.failures import SolverError
from ..sampling.sample import sample
from ..training import CheckpointError, load, read_extra
from ..training.checkpoint import WEIGHTS, checkpoint_of, open_checkpoint
from ..unknown_numbers import from_json, number, shown_number, to_json
from .config import ConfigError, RunConfig, SamplingConfig, read_config, registered_solver
from .given_conditions import Given, given_conditions
from .given_gaps import gaps_in_file, split_texts, told_of_gaps
from .runs import config_of_run, load_data
from .sample_solver import jumps_of, solver_of

MOST_SHARDS = 4096
JOB = "job.json"
_GOLDEN, _ROOT_OF_TWO = 0x9E3779B97F4A7C15, 0x6A09E667F3BCC909
"""The golden ratio and the square root of 2 less 1, over 2^64: together with 1 independent, so that classes and gaps are."""
Say = Callable[[str], None]


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
class _Job:
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


def sample_to_files(
    directory: Path,
    out: str,
    settings: SampleSettings,
    device: torch.device,
    overwrite: bool = False,
    show: bool = True,
    say: Say = print,
) -> Path:
    """Draw samples of a run's network and write them to `out`, a file (.npy, .npz, .csv, .tsv) or a folder of PNGs; gives its path.

    They are drawn in shards, files in a hidden folder beside `out` that are whole or not there. When all are there they are joined and
    the folder is removed; memory holds one shard at a time. The same call goes on from the shards that are there. Under torchrun all
    processes call this: process r draws the shards r, r + world, ... Sample i is a function of the network, the settings and i alone.

    ConfigError, or another error in one line, for settings that do not fit the run, an `out` that is there (unless `overwrite`, of a
    file) and shards of other samples; LockError where another process writes them.
    """
    job = _job(directory, out, settings, device)
    _check_out(job, out, overwrite)
    known = _known(job)
    parallel.wait()  # until all have seen what was there
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    try:
        with contextlib.ExitStack() as hold:
            if parallel.rank() == 0:
                job.parts.mkdir(parents=True, exist_ok=True)
                hold.enter_context(held(job.parts, "wait for it, or give another --out"))
                write_text(job.parts / JOB, to_json(job.settings, 1))
                extra = read_extra(checkpoint_of(directory))
                if extra.get("complete") is False:
                    left = f"has not ended: its checkpoint is of step {extra.get('steps')}"
                    say(f"warning   the training in {directory} {left}; sde-gen run, with the same flags, goes on with it")
                if job.settings["auto"] is not None:
                    say(f"auto      {job.settings['auto']}")
                if job.settings["fitted"] is not None:
                    say(f"grid      {_fitted_line(job.settings['fitted'])}")
                if known:
                    say(f"going on  with {known} of {len(job.shards)} parts that are there")
            parallel.wait()
            began = time.monotonic()
            drawn, calls = _draw(job, known, show)
            parallel.wait()
            seconds = time.monotonic() - began
            if parallel.rank() == 0:
                together = f", {parallel.world()} processes" if parallel.world() > 1 else ""
                each = f"{calls / drawn:.0f} network calls per sample, " if drawn else ""
                say(f"sampled   {job.samples} with {job.settings['solver']}: {each}{seconds:.1f} s{together}")
                for line in _join(job, show):
                    say(line)
    finally:
        torch.set_num_threads(threads)
    return job.out


def _fitted_line(fitted: dict[str, Any]) -> str:
    """What is said of a fitted grid that is used."""
    before, after = (shown_number(number(fitted[name]), ".2g") for name in ("default_error", "error"))
    return f"fitted to this network for {fitted['steps']} steps: distance to the exact flow {before} -> {after}"


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


def _job(directory: Path, out: str, settings: SampleSettings, device: torch.device) -> _Job:
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
    return _Job(drawn, about, form, Path(out), settled, batch, given, device, dropped)


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


def _check_out(job: _Job, asked: str, overwrite: bool) -> None:
    out = job.out
    if not out.name or out.name in (".", ".."):
        raise ConfigError(f"--out {asked}: a file or a folder of its own is needed")
    if job.form in FOLDERS:
        kind = "PNGs" if job.form == "png" else "files of their own" if job.form == "files" else job.form
        if out.exists() and not out.is_dir():
            raise ConfigError(f"{out} is a file; samples as {kind} need a new folder")
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError(f"{out} is a folder that is not empty; samples as {kind} need a new one")
    elif out.is_dir():
        raise ConfigError(f"{out} is a folder; a .{job.form} file cannot be written there")
    elif out.exists() and not overwrite:
        raise ConfigError(f"{out} is there already; --overwrite replaces it, another --out leaves it")


def _known(job: _Job) -> int:
    """How many shards are there; ConfigError where they are of other samples."""
    try:
        text = (job.parts / JOB).read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0
    try:
        before = from_json(text)
        different = [key for key in job.settings if before.get(key) != job.settings[key]]
    except (ValueError, AttributeError):
        raise ConfigError(f"{job.parts / JOB} cannot be read; delete {job.parts} to start anew") from None
    if different:
        long = ("network", "data", "fitted")
        shown = [key if key in long else f"{key} {to_json(before.get(key))}, now {to_json(job.settings[key])}" for key in different]
        raise ConfigError(
            f"{job.parts} holds the beginning of other samples ({'; '.join(shown)}): the command that began them goes on with them; "
            "delete that folder to start anew, or give another --out"
        )
    return sum(file.exists() for file, _, _ in job.shards)


def _draw(job: _Job, known: int, show: bool) -> tuple[int, int]:
    """Draw this process's shards: how many samples it drew, and by how many network calls."""
    names = ("solver", "steps", "grid", "seed")
    common = {name: job.settings[name] for name in names} | job.settings["options"]
    there = sum(last - first for file, first, last in job.shards if file.exists()) if known else 0
    drawn = calls = 0
    with progress.bar(job.samples, "sampling", "sample", show and parallel.rank() == 0, initial=there) as bar:
        for file, first, last in job.shards[parallel.rank() :: parallel.world()]:
            if file.exists():
                continue
            x, nfe = _shard(job, first, last, common)
            valid = job.model.valid(job.conditions(first, last) or {})
            values, touched = job.about.finish(x, job.form, None if valid is None else valid.cpu().numpy())
            with atomic_path(file) as temporary, temporary.open("wb") as handle:
                np.savez(handle, x=values, touched=touched)
                handle.flush()
                os.fsync(handle.fileno())
            drawn, calls = drawn + last - first, calls + nfe
            if parallel.world() > 1:
                everywhere = sum(last - first for file, first, last in job.shards if file.exists())
                there, step = everywhere, everywhere - there
                bar.update(step)
            else:
                bar.update(last - first)
    return drawn, calls


def _shard(job: _Job, first: int, last: int, common: dict[str, Any]) -> tuple[Tensor, int]:
    """The samples first .. last - 1 in the data's units, and the network calls of all of them."""
    cond = job.conditions(first, last)
    shape = (last - first, *job.about.shape)
    try:
        out = sample(job.model, shape, cond=cond, batch_size=job.batch, index_offset=first, progress=False, **common)
    except SolverError as error:
        failed, healthy = error.failed + first, error.healthy + first
        raise SolverError(error.solver, error.time, error.step, failed, healthy, error.x) from None
    return out.x, int(out.nfe.sum())


def _join(job: _Job, show: bool) -> list[str]:
    """Make the output of the shards and remove them: what is to be said of it."""
    shards = job.shards
    touched = np.zeros(2, dtype=np.int64)

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for file, first, last in shards:
            with np.load(file) as arrays:
                yield arrays["x"], job.classes(first, last)
            bar.update()

    for file, _, _ in shards:
        with np.load(file) as arrays:
            touched += arrays["touched"]
    passes = 1 + (job.form in ("npz", *formats.NAMED) and job.labelled)
    beside = {name: value.written for name, value in job.beside.items()}
    strength = job.settings["guidance"]
    facts: dict[str, float | str] = {} if strength is None else {"guidance": float(strength), "rule": str(job.settings["rule"])}
    with progress.bar(passes * len(shards), "writing", "part", show, leave=False) as bar:
        if job.form in FOLDERS:
            folder = job.parts / "folder"
            shutil.rmtree(folder, ignore_errors=True)
            write_samples(folder, job.form, job.about, job.samples, parts, job.labelled, beside, facts)
            os.replace(folder, job.out)
        else:
            with atomic_path(job.out) as temporary:
                write_samples(temporary, job.form, job.about, job.samples, parts, job.labelled, beside, facts)
    shutil.rmtree(job.parts)
    return list(_result_lines(job, touched.tolist()))


def _result_lines(job: _Job, touched: list[int]) -> Iterator[str]:
    about = job.about
    line = about.touched_line(touched, job.samples, job.form)
    if line:
        yield f"values    {line}"
    if job.settings["guidance"] is not None:
        kept = "" if job.form == "npz" else "; an .npz file keeps both"
        rule = f"strength {job.settings['guidance']:g} by rule {job.settings['rule']}"
        yield f"guidance  {rule}: samples of the rule, not of the data's law{kept}"
    if job.beside:
        yield f"condition {', '.join(f'{name}={value.text}' for name, value in job.beside.items())}"
    yield from (f"warning   {condition}: {note}" for condition, given in job.beside.items() for note in given.notes)
    told = told_of_gaps(job.model.encoders, about.codec)
    if told is not None and job.given.get(VALID) is None:
        names = ", ".join(name for name, masked in zip(told.names, told.masked, strict=True) if masked)
        drawn = f"as the training data have them (--cond {VALID}= draws rows without gaps)"
        yield f"gaps      in {names}: {'none' if job.gaps is None else drawn}"
    absent = [name for name in job.model.encoders if job.given.get(name) is None and not (name == "label" and job.labelled)]
    absent = [name for name in absent if told is None or name != VALID]
    if absent:
        several = len(absent) > 1
        yield f"condition {', '.join(absent)} {'are' if several else 'is'} not given: samples are of all values{' of them' * several}"
    never = [name for name in absent if name not in job.dropped]
    if never:
        yield f"warning   training.drop left out {', '.join(never)} of no sample: what the network answers without is not what it learned"
    if job.labelled and job.given.get("label") is None:
        yield f"labels    {len(about.label_names or ())} classes in the shares of the training data"
    wordless = job.form in ("tensors", "safetensors") and any(isinstance(name, str) for name in about.label_names or ())
    if job.labelled and (wordless or job.form in ("npy", "tiff", "nifti", "nifti_gz")):
        yield f"labels    are not in {'an .npy' if job.form == 'npy' else 'such a'} file; .npz keeps them"
    columns = {name for name, _, _ in about.cond_columns} if job.form in TABLE_FORMS else set()
    written = {*columns, VALID} if told is not None else columns
    lost = [name for name in job.beside if name not in written] if job.form not in ("npz", *formats.NAMED) else []
    if lost:
        yield f"condition {', '.join(lost)}: {job.form} has no place for {'them' if len(lost) > 1 else 'it'}; an .npz file keeps all"
    if job.form in TABLE_FORMS and not job.labelled and about.label_column is not None:
        name = about.label_column[0] or about.label_column[1]
        why = "no label is given" if "label" in job.model.encoders else "the network was trained without labels (sde-gen run --labels)"
        yield f"labels    column {name} is left out: {why}"
    items = "x".join(map(str, about.shape))
    kind = "PNGs" if job.form == "png" else f"{about.file_dtype(job.form)}, axes {about.axes_of(job.form)}"
    yield f"samples   {job.out}: {job.samples:,} of shape {items} ({kind}), in the units of {about.name}"
