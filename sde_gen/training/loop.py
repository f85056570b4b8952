"""Training: a model for some data, the loop around its steps, and both in one call."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import parallel
from ..conditions import fit_condition, valid_of
from ..data import Dataset, Normalizer, Source, as_items, check_labels, load_dataset
from ..data.captions import is_texts, text_tensor
from ..data.columns import Codec
from ..data.columns.redraw import Redraw
from ..data.masks import VALID, split_masked
from ..devices import find_device
from ..models.denoiser import mean_valid, only_valid
from ..models.moments import Moments
from ..models.score import ScoreModel
from ..networks import MOST_TOKENS, Network, affordable_options, make_network
from ..progress import bar as progress_bar
from ..sdes import SDE, make_sde
from .checkpoint import CheckpointError, State
from .objective import Objective
from .result import AbandonedStep, TrainResult
from .settings import TrainSettings
from .trainer import Trainer

PACE_STEPS, PACE_SECONDS = 20, 2.0
"""The time of a step is measured over so many of the first ones, or as many as fit into so many seconds; `UNMEASURED` come before them."""
UNMEASURED = 2


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the step or part of one that was under way: `step` of `steps` are done and were given to on_checkpoint."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"interrupted at step {step} of {steps}")
        self.step, self.steps = step, steps


def build_model(
    data: Tensor,
    sde: str | SDE = "vp",
    network: str | nn.Module = "unet",
    prediction: str = "edm",
    prior: str = "sde",
    normalizer: str = "standard",
    sde_settings: dict[str, Any] | None = None,
    network_options: dict[str, Any] | None = None,
    conditions: int | Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    variance: str | None = None,
    mask: Tensor | None = None,
    valid: Tensor | None = None,
    codec: Codec | None = None,
) -> ScoreModel:
    """A score model for training data (N, *) in its own units, not trained yet.

    The normaliser and the data's moments are learned from `data`; our networks are told the half log-SNR and get their
    input at unit variance (but for one that says `scales_input = False`), so that one network serves every SDE. `mask`: of entries
    that are data in no item (see `ScoreModel`), and `valid` (N, 1 or C, *), or (N, D) of vectors, of entries that are data in each item,
    the values of the condition that tells so: statistics are of valid entries alone. `conditions`: specs by name (see `make_network`).
    `codec`: that of the data's table, whose columns say by which transforms the normaliser begins.
    `variance`: None or "learned_range", for which a network given by name gets twice the channels at its output.
    `network_options`: of a network given by name. Where they leave its patches, levels and attention open and its defaults would attend
    over more positions than pays, the nearest ones that do not are taken (`affordable_options`).
    """
    process = make_sde(sde, **(sde_settings or {})) if isinstance(sde, str) else sde
    if not float(process.half_log_snr(process.t_min)) > float(process.half_log_snr(process.t_max)):
        raise ValueError(f"{process!r} runs backwards: log(alpha/sigma) must fall from t = 0, the data, to t = 1, the noise")
    there = mask if valid is None else valid.bool() if mask is None else mask & valid.bool()
    chains, breaks = (None, None) if codec is None else (codec.chains, codec.breaks)
    units = Normalizer.fit(data, normalizer, chains, breaks, valid=there)
    z = only_valid(units.encode(data), there)
    if isinstance(network, str):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            doubled = None if variance is None else 2 * data.shape[1]
            options, shape = network_options or {}, tuple(data.shape[1:])
            made = make_network(network, shape, conditions, doubled, **options)
            if made.tokens() > MOST_TOKENS and not {"patch", "multipliers", "attention"} & set(options):
                made = make_network(network, shape, conditions, doubled, **affordable_options(network, shape, options))
            network = made
    return ScoreModel(
        network,
        process,
        prediction=prediction,
        clock="half_log_snr",
        data_std=float(mean_valid(z.double().square()[None], None if there is None else there.expand(z.shape)[None]).sqrt()),
        normalizer=units,
        variance=variance,
        prior=prior,
        moments=Moments.fit(z),
        scale_input=getattr(network, "scales_input", True),
        mask=mask,
    ).eval()


def fit(
    model: ScoreModel,
    data: Tensor | Source,
    settings: TrainSettings | None = None,
    cond: Mapping[str, Tensor | Source] | None = None,
    held_out: Tensor | None = None,
    levels: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    on_evaluate: Callable[[int, TrainResult], None] | None = None,
    on_checkpoint: Callable[[int, TrainResult], None] | None = None,
    checkpoint_seconds: float | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    resume: State | None = None,
    on_pace: Callable[[float, TrainResult], None] | None = None,
    on_finish: Callable[[TrainResult], None] | None = None,
    held_out_cond: Mapping[str, Tensor] | None = None,
    objective: Objective | None = None,
    redraw: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> TrainResult:
    """Train `model` on data (N, *) in its own units, in memory or read batch by batch; `cond`: the items' conditions by name, (N, *) each.

    `levels`: of data that are whole numbers 0 .. levels - 1, for the decoder of the objectives "vlb" and "hybrid" (None: a density).
    `held_out` (default: the training data) is what the loss by noise level is measured on, at most 128 items of it, drawn by the seed;
    a conditional network gets their conditions `held_out_cond`, without which it is measured on the training data.
    `on_evaluate(step, result)` is called after each of these measurements,
    `on_checkpoint(step, result)` every `checkpoint_seconds` and after Ctrl-C or SIGTERM,
    which then raises `Interrupted`; in both `result.model` has the averaged weights and `result.state()` all that training needs to
    go on. `resume`: such a state; the training goes on from there, bit for bit on the CPU what it would have been.
    `on_log(entry)`: called with each new entry of the history, complete. `on_pace(seconds, result)`: called once, after the first steps,
    with the seconds that a step takes; a training of so few steps that this cannot be known does not call it. `on_finish(result)`:
    called after the last step, where `result.state()` is what a training of more steps goes on from. `objective`: another one than the
    settings name, which says how items are encoded, what is drawn and what the losses are.

    `redraw(x, u)`: draws what is random of items x (B, *) in the data's units anew, from uniform numbers u of their shape; it is asked for
    every batch, with numbers that the seed and the step give (`data.columns.redraw.Redraw`, of a table of kinds). None: items are as
    they are.

    A batch is computed in parts where one would cost too much (`Trainer`). The end of `max_seconds`, Ctrl-C and SIGTERM are looked at
    between parts too: the training then ends at the last whole step.

    `resume` may come from a training that had fewer steps, finished or not: the learning rate is then that of a training of
    `settings.steps` steps from here on, lr warmup(n) decay(n / settings.steps) at step n, the moments of the optimiser and the average
    of the weights go on, and the loss by noise level is measured at those of its `evaluations` that lie ahead.

    Under torchrun every process calls this with the same arguments, works on its share of each batch and returns the same network;
    callbacks run in the first process alone. Raises TrainingError when more than ten steps in a row are not finite, or memory does
    not suffice for one sample. Vincent 2011; Song et al. 2021, arXiv:2011.13456; AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    trainer = Trainer(model, data, settings or TrainSettings(), cond, held_out, levels, device, held_out_cond, objective, redraw)
    result = trainer.result
    if resume is not None:
        try:
            trainer.restore(resume)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"cannot go on with this training from its checkpoint: {type(error).__name__}: {reason}") from error
        ahead = max(trainer.step / trainer.settings.steps, trainer.share)  # where the end has moved away, less is behind
        trainer.evaluated = min(trainer.evaluated, int(ahead * trainer.settings.evaluations))
    first = trainer.rank == 0
    saved = trainer.seconds
    total = trainer.settings.steps
    measured, spent = -UNMEASURED, 0.0
    with (
        trainer.running(),
        _deferred_interrupts() as asked,
        progress_bar(total, "training", "step", progress and first, trainer.step) as bar,
    ):
        trainer.stop = lambda: bool(asked) or trainer.out_of_time()
        while not trainer.done:
            began = time.monotonic()
            finished = True
            try:
                entry = trainer.advance()
                bar.update()
            except AbandonedStep:
                entry, finished = trainer.close(), False
            if on_pace is not None and first and finished:
                took = time.monotonic() - began
                measured += 1
                spent += took if measured > 0 else 0.0
                slow = took >= PACE_SECONDS and measured > 1 - UNMEASURED  # the first one alone prepares things
                if not trainer.done and (slow or (measured > 0 and (measured >= PACE_STEPS or spent >= PACE_SECONDS))):
                    on_pace(took if slow else spent / measured, result)
                    on_pace = None
            if entry is not None:
                bar.set_postfix({"loss": f"{entry['loss']:.4f}", "samples/s": f"{trainer.rate:.0f}"}, refresh=False)
                if trainer.evaluation_due:
                    with trainer.together():
                        if first:
                            bar.set_description("training: loss by level")
                            trainer.evaluate(entry)
                        if first and on_evaluate is not None:
                            bar.set_description("training: evaluation")
                            on_evaluate(trainer.step, result)
                    trainer.evaluated_at = trainer.step
                    bar.set_description("training")
                if on_log is not None and first:
                    on_log(entry)
            if trainer.done:
                break
            timed = first and checkpoint_seconds is not None and trainer.seconds - saved >= checkpoint_seconds
            stop, timed = parallel.anywhere(bool(asked), timed)
            if on_checkpoint is not None and (stop or timed) and trainer.step > 0:
                with trainer.together(state=True):
                    if first:
                        on_checkpoint(trainer.step, result)
                saved = trainer.seconds
            if stop:
                raise Interrupted(trainer.step, total)
        if on_finish is not None:
            with trainer.together(state=True):
                if first:
                    on_finish(result)
    with trainer.together(last=True):
        model.eval()
    return result


@contextlib.contextmanager
def _deferred_interrupts() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM put their number in the list that is given, so that a step, or the part of a batch that is under way, is
    finished before they count; a second Ctrl-C interrupts at once."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals reach the main thread alone
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    data: Tensor | np.ndarray | Dataset | str | os.PathLike[str] | Any,
    sde: str | SDE = "vp",
    network: str | nn.Module | None = None,
    steps: int = 2000,
    labels: Tensor | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    network_options: dict[str, Any] | None = None,
    sde_settings: dict[str, Any] | None = None,
    prediction: str = "edm",
    prior: str = "sde",
    normalizer: str = "standard",
    variance: str | None = None,
    levels: int | None = None,
    conditions: Mapping[str, Any] | None = None,
    kinds: Mapping[str, str | Mapping[str, Any]] | None = None,
    mask: Tensor | np.ndarray | None = None,
    **settings: Any,
) -> ScoreModel:
    """Train a score model on data (N, *) in its own units and return it with averaged weights, ready for `sample`.

    data: a tensor or array (N, *); or a `Dataset`, or what `load_dataset` makes one of (the path of a folder or file, the name of a
        registered set, a pandas frame, a dict of columns), whose training items, conditions and levels are taken. Labels are told the
        network only where `labels` gives them. Of a table of words or gaps the model's data are `Dataset.codec`'s features.
    network: a name or a module; None: "mlp" for vectors, else "unet".
    conditions: what the network is told of each item, by name: tensors or arrays (N, *), NaN where a number is not known.
        Integers (N,) are labels, numbers (N,) or (N, K) numbers, (N, C, *grid) over the data's space, or a coarser grid of it, maps,
        Booleans there masks, and (N, L, K) sequences. Lists of strings are captions, "" where one is not known.
    labels: a condition "label", (N,) in 0 .. classes - 1.
    kinds: the kind of a condition by its name (a key of `sde_gen.conditions.CONDITIONS`), where its values do not say it, or a dict of the
        kind and options of its encoder, as {"caption": {"kind": "text", "vocabulary": "vocab.txt", "depth": 1}}.
    mask: of data of which some entries are never data (land in fields of the sea), Boolean, of one item's shape or broadcast to it, True
        where they are. Entries that are no data of single items are a condition "valid" of Booleans over space. What lies at such
        entries is not looked at, and may be NaN. A masked array says both itself.
    device: None takes CUDA where present, else the CPU.
    settings: those of `TrainSettings`. variance: that of `build_model`. levels: that of `fit`.

    Raises ValueError or TypeError for data, conditions or settings that cannot be trained on.
    """
    if np.ma.is_masked(data):
        if mask is not None or VALID in (conditions or {}):
            raise ValueError(f"data are a masked array, which says itself what is no data: leave mask and the condition {VALID!r} out")
        data, there_of_items = split_masked(np.ma.asarray(data))
        if (there_of_items == there_of_items[:1]).all():
            mask = there_of_items[0]
        else:
            conditions = dict(conditions or {}) | {VALID: there_of_items}
    loaded = None
    if not isinstance(data, Tensor | np.ndarray | list | tuple):
        loaded = data if isinstance(data, Dataset) else load_dataset(data)
        levels = loaded.levels if levels is None else levels
        conditions = {**loaded.conditions(loaded.cond, "all"), **(conditions or {})}
        mask = loaded.valid if mask is None else mask
    x: Tensor = as_items(data) if loaded is None else loaded.train
    if network is None:
        network = "mlp" if x.ndim == 2 else "unet"
    if not isinstance(network, str | nn.Module):
        kind = f"the class {network.__name__}: make one, {network.__name__}(...)" if isinstance(network, type) else type(network).__name__
        raise TypeError(f"network must be a name or a torch.nn.Module, got {kind}")
    unknown = sorted(set(settings) - {field.name for field in fields(TrainSettings)})
    if unknown:
        known = ", ".join(field.name for field in fields(TrainSettings) if field.name != "steps")
        raise TypeError(f"train has no setting {', '.join(unknown)}; it takes {known}")
    where = find_device(device)
    total = len(x) if loaded is None else len(loaded.training[0])
    ours = isinstance(network, str | Network)  # a network of the user's own may take conditions of any kind
    given = dict(conditions or {}) | ({} if labels is None else {"label": check_labels(labels, total) if ours else labels})
    if labels is not None and "label" in (conditions or {}):
        raise ValueError("labels are the condition 'label', which conditions holds too: give it once")
    cond = {name: value if isinstance(value, Source) else _as_values(name, value) for name, value in given.items()}
    for name, value in cond.items():
        if len(value) != total:
            what = "labels" if name == "label" else f"condition {name!r}"
            raise ValueError(f"{what} must have one entry for each of the {total} items, got {len(value)}")
    if x.ndim < 2 or x.shape[0] < 2:
        raise ValueError(f"data must be (N, *) with at least two samples, got shape {tuple(x.shape)}")
    chosen = TrainSettings(steps=steps, **settings)
    strange = sorted(set(kinds or {}) - set(cond))
    if strange:
        raise ValueError(f"kinds names {', '.join(map(repr, strange))}; the conditions are {', '.join(map(repr, cond)) or 'none'}")
    shown: dict[str, Any] = {n: loaded.cond[n] if isinstance(v, Source) and loaded is not None else v for n, v in cond.items()}
    texts = {n: "text" for n, v in given.items() if is_texts(v)} | dict.fromkeys(() if loaded is None else loaded.texts, "text")
    of_kind: dict[str, Any] = texts | dict(kinds or {})
    specs = {n: fit_condition(n, v, x.shape[2:], of_kind.get(n)) for n, v in shown.items()} if isinstance(network, str) else None
    there = None if mask is None else torch.as_tensor(mask)
    of_items = valid_of(specs or {}, shown)
    codec = None if loaded is None else loaded.codec
    made = (
        sde,
        network,
        prediction,
        prior,
        normalizer,
        sde_settings,
        network_options,
        specs,
        chosen.seed,
        variance,
        there,
        of_items,
        codec,
    )
    model = build_model(x, *made)
    items = x if loaded is None else loaded.training[0]
    redraw = None if codec is None else Redraw(codec)
    return fit(model, items, chosen, cond, levels=levels, device=where, progress=progress, redraw=redraw).model


def _as_values(name: str, value: Any) -> Tensor:
    """A condition as it is given, as a tensor (N, *)."""
    if is_texts(value):
        return text_tensor(value)
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise TypeError(
            f"condition {name!r} must be numbers, with classes as integers 0, 1, ..., or captions, all strings; got {kind}"
        ) from error
    if found.ndim == 0:
        raise ValueError(f"condition {name!r} must have one entry for each item, got one number")
    return found
