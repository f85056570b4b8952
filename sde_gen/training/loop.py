"""The training loop: denoising score matching with an average of the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data import Normalizer
from ..discrete import INDEX_SAMPLERS
from ..losses import TIME_SAMPLERS, WEIGHTINGS
from ..networks import make_network
from ..prior import Moments
from ..registry import lookup
from ..score import ScoreModel
from ..sdes import SDE, make_sde
from .ema import MOST_WIDTH, power_average
from .objective import OBJECTIVES, Objective
from .validation import Validation

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
MOST_SKIPPED = 10


class TrainingError(RuntimeError):
    """Training cannot go on: the loss or its gradients were not finite too often in a row."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    steps, batch: optimiser steps and samples for each; accumulate: parts that a batch is computed in.
    lr, warmup (steps), decay (to zero at the end: "constant", "linear" or "cosine"), weight_decay, clip (of the gradient's
    norm): AdamW. ema_width: relative width of the weights' average (see `power_average`).
    objective: "dsm", denoising score matching in continuous time with `weighting` and `times` (see `dsm_loss`); or the discrete
    view's "simple", "vlb" or "hybrid" (see `chain_loss`) on the chain of `chain_steps` steps of the SDE (None: its own, or 1000),
    with `indices` drawn "uniform" or by "importance". bfloat16: autocast of the network.
    max_seconds: end after this time, with the decay following it, or None. evaluations: how often the validation loss by
    noise level is measured. seed: of the weights, the data order and the noise.
    """

    steps: int = 2000
    batch: int = 128
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 100
    decay: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    ema_width: float = 0.1
    objective: str = "dsm"
    chain_steps: int | None = None
    indices: str = "uniform"
    weighting: str = "edm"
    times: str = "lognormal"
    bfloat16: bool = False
    max_seconds: float | None = None
    evaluations: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "evaluations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("lr", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            raise ValueError(f"warmup must be a whole number of at least 0, got {self.warmup!r}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay!r}")
        if not 0 < self.ema_width < MOST_WIDTH:
            raise ValueError(f"ema_width must be above 0 and below {MOST_WIDTH}, got {self.ema_width!r}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch must be a multiple of accumulate, got {self.batch} and {self.accumulate}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds!r}")
        if self.chain_steps is not None and (isinstance(self.chain_steps, bool) or self.chain_steps < 2):
            raise ValueError(f"chain_steps must be a whole number of at least 2, got {self.chain_steps!r}")
        for what, name, known in (("objective", self.objective, OBJECTIVES), ("index sampler", self.indices, INDEX_SAMPLERS)):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(known)}")
        lookup(DECAYS, "decay", self.decay)
        lookup(WEIGHTINGS, "weighting", self.weighting)
        lookup(TIME_SAMPLERS, "time sampler", self.times)


@dataclass
class TrainResult:
    """model: with the averaged weights, in evaluation mode; raw: the last weights; history: what plot_loss takes;
    linear: the best linear denoiser's loss by level; steps, seconds, skipped: taken, used, and left out as not finite."""

    model: ScoreModel
    raw: ScoreModel
    history: list[dict[str, Any]] = field(default_factory=list)
    linear: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    skipped: int = 0


def build_model(
    data: Tensor,
    sde: str | SDE = "vp",
    network: str | nn.Module = "unet",
    prediction: str = "edm",
    prior: str = "sde",
    normalizer: str = "standard",
    sde_settings: dict[str, Any] | None = None,
    network_options: dict[str, Any] | None = None,
    classes: int | None = None,
    seed: int = 0,
    variance: str | None = None,
) -> ScoreModel:
    """A score model for training data (N, *) in its own units, not trained yet.

    The normaliser and the data's moments are learned from `data`; our networks are told the half log-SNR and get their
    input at unit variance, so that one network serves every SDE. `classes`: number of labels of a conditional network.
    `variance`: None or "learned_range", for which a network given by name gets twice the channels at its output.
    """
    process = make_sde(sde, **(sde_settings or {})) if isinstance(sde, str) else sde
    units = Normalizer.fit(data, normalizer)
    z = units.encode(data)
    if isinstance(network, str):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            doubled = None if variance is None else 2 * data.shape[1]
            network = make_network(network, tuple(data.shape[1:]), classes, doubled, **(network_options or {}))
    return ScoreModel(
        network,
        process,
        prediction=prediction,
        clock="half_log_snr",
        data_std=float(z.double().square().mean().sqrt()),
        normalizer=units,
        variance=variance,
        prior=prior,
        moments=Moments.fit(z),
        scale_input=True,
    )


def fit(
    model: ScoreModel,
    data: Tensor,
    settings: TrainSettings | None = None,
    labels: Tensor | None = None,
    held_out: Tensor | None = None,
    levels: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    on_evaluate: Callable[[int, TrainResult], None] | None = None,
    on_checkpoint: Callable[[int, TrainResult], None] | None = None,
    checkpoint_seconds: float | None = None,
) -> TrainResult:
    """Train `model` on data (N, *) in its own units; `labels` (N,) for a conditional network.

    `levels`: of data that are whole numbers 0 .. levels - 1, for the decoder of the objectives "vlb" and "hybrid" (None: a density).
    `held_out` (default: the training data) is what the loss by noise level is measured on. `on_evaluate(step, result)` is
    called after each of these measurements and `on_checkpoint(step, result)` every `checkpoint_seconds`; in both
    `result.model` has the averaged weights. Raises TrainingError when more than ten steps in a row are not finite.
    Vincent 2011; Song et al. 2021, arXiv:2011.13456; AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    settings = settings or TrainSettings()
    device = torch.device(device)
    model = model.to(device)
    assert model.normalizer is not None and isinstance(model.network, nn.Module)
    x = model.normalizer.encode(data.to(device))
    label = None if labels is None else labels.to(device)
    held = x if held_out is None else model.normalizer.encode(held_out.to(device))
    moments = model.moments if model.moments is not None else Moments.fit(x)
    validation = Validation.prepare(model, held, moments, seed=settings.seed)

    objective = Objective(settings, model, levels)
    average = power_average(model.network, settings.ema_width)
    result = TrainResult(model.with_network(average.module).eval().requires_grad_(False), model)
    result.linear = {"levels": validation.levels, "linear": validation.linear}
    optimizer = torch.optim.AdamW(
        model.network.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=True
    )
    parameters = list(model.network.parameters())
    generator = torch.Generator(device).manual_seed(settings.seed)
    order = _batches(x.shape[0], settings.batch, settings.seed)
    size = settings.batch // settings.accumulate
    log_every = max(1, settings.steps // 200)
    recent: list[Tensor] = []
    in_a_row = evaluated = 0
    began = saved = time.monotonic()
    with (
        torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]),
        tqdm(total=settings.steps, desc="training", unit="step", disable=None if progress else True) as bar,
    ):
        torch.manual_seed(settings.seed)  # dropout
        model.train()
        for step in range(1, settings.steps + 1):
            elapsed = time.monotonic() - began
            share = (step - 1) / settings.steps
            if settings.max_seconds is not None:
                share = max(share, min(1.0, elapsed / settings.max_seconds))
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * min(1.0, step / max(1, settings.warmup)) * DECAYS[settings.decay](share)
            index = next(order).to(device)
            total = torch.zeros((), device=device)
            for part in index.split(size):
                cond: dict[str, Any] = {} if label is None else {"label": label[part]}
                with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
                    losses = objective(model, x[part], generator, **cond)
                loss = losses.sum() / settings.batch
                loss.backward()
                total += loss.detach()
            norm = nn.utils.clip_grad_norm_(parameters, settings.clip, foreach=True)
            if bool(torch.isfinite(norm)):
                optimizer.step()
                average.update_parameters(model.network)
                recent.append(total)
                in_a_row = 0
            else:
                result.skipped += 1
                in_a_row += 1
                if in_a_row > MOST_SKIPPED:
                    raise TrainingError(f"loss or gradients were not finite for {in_a_row} steps in a row, up to step {step}")
            optimizer.zero_grad(set_to_none=True)
            result.steps, result.seconds = step, time.monotonic() - began
            last = step == settings.steps or (settings.max_seconds is not None and result.seconds >= settings.max_seconds)
            progress_now = 1.0 if last else max(step / settings.steps, share)
            if recent and (step % log_every == 0 or last):
                loss_now = float(torch.stack(recent).mean())
                recent.clear()
                result.history.append({"step": step, "seconds": result.seconds, "loss": loss_now})
                rate = step * settings.batch / result.seconds
                bar.set_postfix({"loss": f"{loss_now:.4f}", "images/s": f"{rate:.0f}"}, refresh=False)
            bar.update()
            if result.history and progress_now * settings.evaluations >= evaluated + 1:
                evaluated = int(progress_now * settings.evaluations)
                level_loss = validation.measure(result.model)
                result.history[-1] |= {"validation": float(np.mean(level_loss)), "levels": validation.levels, "level_loss": level_loss}
                if on_evaluate is not None:
                    on_evaluate(step, result)
            if on_checkpoint is not None and checkpoint_seconds is not None and time.monotonic() - saved >= checkpoint_seconds and not last:
                on_checkpoint(step, result)
                saved = time.monotonic()
            if last:
                break
    model.eval()
    return result


def train(
    data: Tensor | np.ndarray,
    sde: str | SDE = "vp",
    network: str | nn.Module = "unet",
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
    **settings: Any,
) -> ScoreModel:
    """Train a score model on data (N, *) in its own units and return it with averaged weights, ready for `sample`.

    `settings` are those of `TrainSettings`, `variance` that of `build_model`, `levels` that of `fit`; `labels` (N,) in 0 .. classes -
    1 make the network conditional. `device` None: CUDA where present, else the CPU. Raises ValueError for data or settings that
    cannot be trained on.
    """
    x = torch.as_tensor(data, dtype=torch.float32)
    if x.ndim < 2 or x.shape[0] < 2:
        raise ValueError(f"data must be (N, *) with at least two samples, got shape {tuple(x.shape)}")
    chosen = TrainSettings(steps=steps, **settings)
    classes = None if labels is None else int(labels.max()) + 1
    model = build_model(x, sde, network, prediction, prior, normalizer, sde_settings, network_options, classes, chosen.seed, variance)
    where = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    return fit(model, x, chosen, labels, levels=levels, device=where, progress=progress).model


def _batches(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Indices of endless batches: each pass over the data in its own random order, batches running on across passes."""
    generator = torch.Generator().manual_seed(seed)
    left: Sequence[Tensor] = []
    while True:
        held = sum(part.numel() for part in left)
        while held < batch:
            left = [*left, torch.randperm(count, generator=generator)]
            held += count
        flat = torch.cat(list(left))
        yield flat[:batch]
        left = [flat[batch:]]
