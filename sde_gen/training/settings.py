"""How to train: plain values, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..discrete import INDEX_SAMPLERS
from ..discrete import OBJECTIVES as OF_CHAIN
from ..registry import lookup
from .ema import MOST_WIDTH
from .losses import DEFAULT_TIMES, DEFAULT_WEIGHTING, LOSSES, TIME_SAMPLERS, WEIGHTINGS
from .optimizers import OPTIMIZERS

OBJECTIVES = ("dsm", *OF_CHAIN)
SHARDINGS = ("fsdp",)
DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True)
class TrainSettings:
    """How to train. Raises ValueError for a value that is not allowed, with the values that are.

    steps: the number of the optimiser's steps.
    batch: samples in each step.
    accumulate: a batch is computed in so many parts, which gives the same gradients in less memory.
    micro_batch: a batch is computed in parts of so many samples, instead of `accumulate`.
    workers: so many processes read data larger than memory ahead.
    shard: "fsdp" spreads the weights, their gradients and averages, and the optimiser's state over torchrun's processes. With None
        each process has all of them.
    optimizer: "adamw", or "muon" for the matrices among the weights and AdamW for the rest (see `Muon`).
    lr: the optimiser's learning rate, at its highest.
    warmup: the learning rate rises to `lr` over so many steps.
    decay: how the learning rate falls to zero at the end: "constant" (not at all), "linear" or "cosine".
    weight_decay: by which share the weights shrink at a step, over lr.
    clip: the gradient's norm is capped at this number.
    ema_width: the relative width of the average of the weights (see `PowerAverage`).
    ema_widths: those of more averages that are kept beside it. From all of them `load(path, ema_width=...)` makes one of any width
        between (see `combination`).
    objective: "dsm" is denoising score matching in continuous time, with `weighting` and `times` (see `dsm_loss`). "simple", "vlb" and
        "hybrid" are those of the discrete view (see `chain_loss`), with `chain_steps` and `indices`.
    chain_steps: the length of the SDE's chain; None takes its own, or 1000.
    indices: "uniform" or "importance", how indices of the chain are drawn (see `IndexSampler`).
    weighting: a name in WEIGHTINGS. "edm" is the weighting of that name, and goes with any prediction.
    times: a name in TIME_SAMPLERS.
    loss: a name in LOSSES. "l2" learns the mean E[x_0 | x_t], and so the score; "l1" learns a median and "huber" something between.
    reference: the squared error is taken to the mean of x_0 given x_t over so many training items, in place of the item itself (see
        `PosteriorMeans`). 0 is the item itself, and a number that is not below the number of items takes them all.
    drop: the share of a batch that is not told a condition, in [0, 1): one number for each condition, or a number by name, those not
        named being always told; each condition is dropped on its own. The network learns the unconditional score from it (Ho and
        Salimans 2022, arXiv:2207.12598).
    bfloat16: True runs the network under autocast to bfloat16.
    compile: True trains through torch.compile, which costs some minutes at the start and needs a C++ or CUDA compiler.
    channels_last: True lays images and volumes out with their channels last, which convolutions in bfloat16 on a GPU prefer.
    tf32: True lets a GPU round float32 factors of products and convolutions to 10 bits of mantissa while it trains.
    max_seconds: training ends after this time, and the decay follows it; None sets no limit.
    evaluations: the loss by noise level is measured so many times.
    seed: seeds the weights, the order of the data, the times and the noise.
    """

    steps: int = 2000
    batch: int = 128
    accumulate: int = 1
    micro_batch: int | None = None
    workers: int = 0
    shard: str | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    warmup: int = 100
    decay: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    ema_width: float = 0.1
    ema_widths: tuple[float, ...] = ()
    objective: str = "dsm"
    chain_steps: int | None = None
    indices: str = "uniform"
    weighting: str = DEFAULT_WEIGHTING
    times: str = DEFAULT_TIMES
    loss: str = "l2"
    reference: int = 0
    drop: float | dict[str, float] = 0.1
    bfloat16: bool = False
    compile: bool = False
    channels_last: bool = False
    tf32: bool = True
    max_seconds: float | None = None
    evaluations: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "evaluations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("bfloat16", "compile", "channels_last", "tf32"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.channels_last and self.shard is not None:
            raise ValueError(f"channels_last and shard {self.shard!r} exclude each other: shares of weights lie in their plain order")
        for name in ("lr", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
        for name in ("warmup", "workers"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
        if self.micro_batch is not None:
            if isinstance(self.micro_batch, bool) or not isinstance(self.micro_batch, int) or self.micro_batch < 1:
                raise ValueError(f"micro_batch must be a whole number of at least 1, got {self.micro_batch!r}")
            if self.accumulate != 1:
                raise ValueError(f"give accumulate or micro_batch, not both, got {self.accumulate} and {self.micro_batch}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay!r}")
        if not 0 < self.ema_width < MOST_WIDTH:
            raise ValueError(f"ema_width must be above 0 and below {MOST_WIDTH}, got {self.ema_width!r}")
        widths = (self.ema_width, *self.ema_widths)
        if not all(0 < width < MOST_WIDTH for width in widths) or len(set(widths)) < len(widths):
            raise ValueError(
                f"ema_widths must be above 0 and below {MOST_WIDTH}, each another and none of them ema_width ({self.ema_width}), "
                f"got {list(self.ema_widths)}"
            )
        if isinstance(self.reference, bool) or not isinstance(self.reference, int) or self.reference < 0 or self.reference == 1:
            raise ValueError(f"reference must be 0 or a whole number of at least 2, got {self.reference!r}")
        if self.objective != "dsm" and (self.reference or self.loss != "l2"):
            what = f"reference {self.reference}" if self.reference else f"loss {self.loss!r}"
            raise ValueError(f"{what} is for objective 'dsm', got {self.objective!r}")
        if self.reference and self.loss != "l2":
            raise ValueError(f"reference {self.reference} is for loss 'l2', whose minimum it keeps, got {self.loss!r}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch must be a multiple of accumulate, got {self.batch} and {self.accumulate}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds!r}")
        if self.chain_steps is not None and (isinstance(self.chain_steps, bool) or self.chain_steps < 2):
            raise ValueError(f"chain_steps must be a whole number of at least 2, got {self.chain_steps!r}")
        for what, name, known in (
            ("objective", self.objective, OBJECTIVES),
            ("index sampler", self.indices, INDEX_SAMPLERS),
        ):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(known)}")
        if self.shard is not None and self.shard not in SHARDINGS:
            raise ValueError(f"unknown shard {self.shard!r}; choose from {', '.join(SHARDINGS)}, or leave it out")
        for share in self.drop.values() if isinstance(self.drop, dict) else (self.drop,):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
                raise ValueError(f"drop must be in [0, 1), one number or one by the name of each condition, got {self.drop!r}")
        lookup(DECAYS, "decay", self.decay)
        lookup(OPTIMIZERS, "optimizer", self.optimizer)
        lookup(LOSSES, "loss", self.loss)
        lookup(WEIGHTINGS, "weighting", self.weighting)
        lookup(TIME_SAMPLERS, "time sampler", self.times)

    def shares_dropped(self, names: Sequence[str]) -> dict[str, float]:
        """The share that is not told each of these conditions, where it is not 0. Raises ValueError for a share of another name."""
        if not isinstance(self.drop, dict):
            return {name: self.drop for name in names if self.drop > 0}
        strange = sorted(set(self.drop) - set(names))
        if strange:
            raise ValueError(f"drop names {', '.join(map(repr, strange))}; the conditions are {', '.join(map(repr, names)) or 'none'}")
        return {name: self.drop[name] for name in names if self.drop.get(name, 0) > 0}

    @property
    def part(self) -> int:
        """The number of samples that are computed at a time."""
        return self.batch // self.accumulate if self.micro_batch is None else min(self.micro_batch, self.batch)


def check_processes(settings: TrainSettings, processes: int) -> None:
    """Raises ValueError for settings that so many processes cannot train with."""
    if settings.shard is not None and processes == 1:
        raise ValueError(
            f"shard {settings.shard!r} spreads a network over several processes: start them by torchrun --nproc_per_node=N, got 1"
        )
    if settings.batch < processes:
        raise ValueError(f"batch must be at least the number of processes, {processes}, got {settings.batch}")
    if settings.shard is not None and settings.batch % processes:
        raise ValueError(f"batch must be a multiple of the {processes} processes with shard {settings.shard!r}, got {settings.batch}")


def check_layout(settings: TrainSettings, shape: Sequence[int]) -> None:
    """Raises ValueError for a layout that data of `shape` (N, *) do not have."""
    if settings.channels_last and len(shape) not in (4, 5):
        raise ValueError(f"channels_last is for images and volumes, (N, C, H, W) or (N, C, D, H, W), got data {tuple(shape)}")
