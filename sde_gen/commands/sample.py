"""Samples of a trained network as files: drawn in shards, which a killed job goes on from and which processes share out."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import parallel, progress
from ..data import formats
from ..data.columns.codec import VALID
from ..data.write import FOLDERS, TABLE_FORMS, write_samples
from ..locks import held
from ..report.files import atomic_path, write_text
from ..sampling.failures import SolverError
from ..sampling.sample import sample
from ..training import read_extra
from ..training.checkpoint import checkpoint_of
from ..unknown_numbers import from_json, number, shown_number, to_json
from .config import ConfigError
from .given_gaps import told_of_gaps
from .sample_job import JOB, Job, SampleSettings, plan_job

Say = Callable[[str], None]


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
    job = plan_job(directory, out, settings, device)
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


def _check_out(job: Job, asked: str, overwrite: bool) -> None:
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


def _known(job: Job) -> int:
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


def _draw(job: Job, known: int, show: bool) -> tuple[int, int]:
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


def _shard(job: Job, first: int, last: int, common: dict[str, Any]) -> tuple[Tensor, int]:
    """The samples first .. last - 1 in the data's units, and the network calls of all of them."""
    cond = job.conditions(first, last)
    shape = (last - first, *job.about.shape)
    try:
        out = sample(job.model, shape, cond=cond, batch_size=job.batch, index_offset=first, progress=False, **common)
    except SolverError as error:
        failed, healthy = error.failed + first, error.healthy + first
        raise SolverError(error.solver, error.time, error.step, failed, healthy, error.x) from None
    return out.x, int(out.nfe.sum())


def _join(job: Job, show: bool) -> list[str]:
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


def _result_lines(job: Job, touched: list[int]) -> Iterator[str]:
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
