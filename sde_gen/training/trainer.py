"""One training under way: its steps, and the state that it can be stopped in and go on from."""

from __future__ import annotations

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from .. import memory, parallel
from ..data import Source
from ..models.moments import Moments
from ..models.score import ScoreModel
from .checkpoint import State
from .ema import power_average
from .objective import Draw, Objective
from .settings import DECAYS, TrainSettings, check_processes
from .sharding import collect_gradients, in_shares, load_whole, put_together, shard, whole
from .validation import Validation

MOST_SKIPPED = 10
LOGS = 200
"""Entries of the history over a whole training."""


class TrainingError(RuntimeError):
    """Training cannot go on: the loss or its gradients were not finite too often in a row, or memory does not suffice."""


@dataclass
class TrainResult:
    """model: with the averaged weights, in evaluation mode; raw: the last weights; history: what plot_loss takes;
    linear: the best linear denoiser's loss by level; steps, seconds, skipped: taken, used, and left out as not finite."""

    model: ScoreModel
    raw: ScoreModel
    trainer: Trainer = field(repr=False)
    history: list[dict[str, Any]] = field(default_factory=list)
    linear: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    skipped: int = 0

    def state(self) -> State:
        """All that `fit(resume=...)` needs besides the weights that `save` writes."""
        return self.trainer.state()


class Trainer:
    """A model, its data and all that changes from step to step; see `fit` for the arguments.

    The order of the data, the noise and the times are functions of the seed alone. Each step draws what is random for the whole
    batch; parts of it, and processes, compute their share of the same sum.
    """

    def __init__(
        self,
        model: ScoreModel,
        data: Tensor | Source,
        settings: TrainSettings,
        labels: Tensor | None,
        held_out: Tensor | None,
        levels: int | None,
        device: torch.device | str,
    ) -> None:
        self.settings, self.device = settings, torch.device(device)
        self.rank, self.world = parallel.rank(), parallel.world()
        check_processes(settings, self.world)
        self.sharded = settings.shard is not None
        self.model = model = model.to(self.device)
        normalizer, network = model.normalizer, model.network
        assert normalizer is not None and isinstance(network, nn.Module)
        # The network that is trained: the model's own or, in shares, a copy of it.
        self.network: nn.Module = copy.deepcopy(network) if self.sharded else network
        self.x = normalizer.encode(data.to(self.device)) if isinstance(data, Tensor) else data
        self.encode = normalizer.encode
        self.label = None if labels is None else labels.to(self.device)
        if held_out is None:
            held = self.x[:MOST_HELD] if isinstance(data, Tensor) else self.encode(data[:MOST_HELD].to(self.device))
        else:
            held = self.encode(held_out.to(self.device))
        moments = model.moments if model.moments is not None else Moments.fit(held)
        self.validation = Validation.prepare(model, held, moments, seed=settings.seed)
        self.objective = Objective(settings, model, levels)
        self.average = power_average(network, settings.ema_width)
        averaged = copy.deepcopy(network) if self.sharded else self.average.module
        self.result = TrainResult(model.with_network(averaged).eval().requires_grad_(False), model, self)
        self.plain: dict[str, nn.Module] = {}  # of a network in shares: the result's whole ones, which wait on the host
        if self.sharded:
            self.plain = {"raw": network.cpu(), "averaged": averaged.cpu()}
            shard(self.network, self.device)
            shard(self.average.module, self.device)
        self.result.linear = {"levels": self.validation.levels, "linear": self.validation.linear}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=True
        )
        self.parameters = list(self.network.parameters())
        self.generator = torch.Generator(self.device).manual_seed(settings.seed)
        self.parallel: ScoreModel = model
        if self.sharded:
            self.parallel = model.with_network(self.network)
        elif self.world > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.parallel = model.with_network(DistributedDataParallel(network, device_ids=ids))
        self.part = settings.part
        self.log_every = max(1, settings.steps // LOGS)
        self.step = self.taken = self.in_a_row = self.evaluated = 0
        self.recent: list[Tensor] = []
        self.before = 0.0  # seconds of the runs that this one goes on from
        self.began = time.monotonic()
        self.random: Tensor | None = None  # the global generator's state at the start of `running`, for dropout
        self.of_others: dict[str, Tensor] = {}  # what `state` needs of the other processes, between `together` and its end
        self.batches: Iterator[tuple[Tensor, Tensor]] | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The steps happen in here: torch's global generator, which dropout uses, is this training's own meanwhile."""
        with torch.random.fork_rng(devices=[] if self.device.type == "cpu" else [self.device]), warnings.catch_warnings():
            if self.sharded:  # nothing here writes into the network's result
                warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            torch.manual_seed(self.settings.seed + (self.rank + self.step if self.rank else 0))
            if self.random is not None:
                torch.set_rng_state(self.random)
            self.model.train()
            self.network.train()
            self.batches = self._read()
            self.began = time.monotonic()
            try:
                yield
            finally:
                self.batches = None  # ends the processes that read ahead

    @property
    def seconds(self) -> float:
        """Time that training has taken, evaluations included."""
        return self.before + time.monotonic() - self.began

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.step * self.settings.batch / max(self.seconds, 1e-9)

    @property
    def done(self) -> bool:
        return self.step >= self.settings.steps or (
            self.settings.max_seconds is not None and self.result.seconds >= self.settings.max_seconds
        )

    @property
    def share(self) -> float:
        """How much of the training is behind, 0 to 1, by steps or by time."""
        settings = self.settings
        by_time = 0.0 if settings.max_seconds is None else min(1.0, self.result.seconds / settings.max_seconds)
        return max(self.taken / settings.steps, by_time)

    @contextlib.contextmanager
    def together(self, state: bool = False, last: bool = False) -> Iterator[None]:
        """In here `result` holds the whole networks, which lie in shares otherwise, and, where `state` is set, `state` works in the first
        process; all processes come here together. `last`: the whole networks stay."""
        if self.sharded:
            put_together(self.plain["raw"], self.network)
            put_together(self.plain["averaged"], self.average.module)
            self.plain["averaged"].to(self.device)
        if state and self.world > 1:
            for number, random in enumerate(parallel.gather_rows(torch.get_rng_state()[None])):
                self.of_others[f"random.{number}"] = random
            for number, values in self.optimizer.state_dict()["state"].items() if self.sharded else ():
                for name, value in values.items():
                    full = whole(value)
                    if self.rank == 0:
                        self.of_others[f"optimizer.{number}.{name}"] = full.cpu()
        yield
        self.of_others.clear()
        for network in self.plain.values():
            network.to(self.device if last else "cpu")

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        """From the present step on, this process's items of each batch, normalised, with their numbers."""
        rows = parallel.share(self.settings.batch)
        order = (index[rows] for index in batch_order(self.x.shape[0], self.settings.batch, self.settings.seed, self.step))
        if isinstance(self.x, Tensor) and not self.settings.workers:
            for index in order:
                index = index.to(self.device)
                yield index, self.x[index]
            return
        source = self.x
        loader = DataLoader(
            _Items(source if isinstance(source, Source) else source.cpu()),
            batch_size=None,
            sampler=order,
            num_workers=self.settings.workers,
            generator=torch.Generator(),  # else it takes a number from the global one, and dropout changes
            pin_memory=self.device.type == "cuda",
        )
        for index, items in loader:
            items = items.to(self.device, non_blocking=True)
            yield index.to(self.device), self.encode(items) if isinstance(source, Source) else items

    def advance(self) -> dict[str, Any] | None:
        """One step; the new entry of the history where one is due."""
        settings, result = self.settings, self.result
        if settings.max_seconds is not None:
            result.seconds = parallel.agreed(self.seconds)
        rate = settings.lr * min(1.0, (self.taken + 1) / max(1, settings.warmup)) * DECAYS[settings.decay](self.share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        assert self.batches is not None
        index, x = next(self.batches)
        drawn = self.objective.draw(self.model, (settings.batch, *x.shape[1:]), self.generator)
        mine = drawn.part(parallel.share(settings.batch))
        loss = self._gradients(x, mine, None if self.label is None else self.label[index], drawn)
        norm = whole(nn.utils.clip_grad_norm_(self.parameters, settings.clip, foreach=True))
        self.step += 1
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            self.average.update_parameters(self.network)
            self.recent.append(loss)
            self.taken += 1
            self.in_a_row = 0
        else:
            result.skipped += 1
            self.in_a_row += 1
            if self.in_a_row > MOST_SKIPPED:
                raise TrainingError(f"loss or gradients were not finite for {self.in_a_row} steps in a row, up to step {self.step}")
        self.optimizer.zero_grad(set_to_none=True)
        result.steps = self.step
        result.seconds = self.seconds if settings.max_seconds is None else parallel.agreed(self.seconds)
        if not self.recent or (self.step % self.log_every and not self.done):
            return None
        entry = {"step": self.step, "seconds": result.seconds, "loss": float(torch.stack(self.recent).mean())}
        self.recent.clear()
        result.history.append(entry)
        return entry

    def _gradients(self, x: Tensor, draw: Draw, label: Tensor | None, drawn: Draw) -> Tensor:
        """The gradients of the batch's mean loss, in parts that fit the memory, this process's of them from what is `drawn`; the loss."""
        while True:
            random = torch.get_rng_state()
            try:
                return self._backward(x, draw, label, drawn)
            except (RuntimeError, MemoryError) as error:
                if not memory.out_of_memory(error):
                    raise
                if self.world > 1 or self.part == 1:
                    raise TrainingError(
                        f"out of memory with {self.part} sample(s) at a time: choose a smaller --micro-batch or network"
                    ) from error
            self.optimizer.zero_grad(set_to_none=True)
            memory.release()
            torch.set_rng_state(random)
            self.part = math.ceil(self.part / 2)
            warnings.warn(f"out of memory: going on with {self.part} samples at a time (--micro-batch {self.part} starts so)", stacklevel=2)

    def _backward(self, x: Tensor, draw: Draw, label: Tensor | None, drawn: Draw) -> Tensor:
        settings = self.settings
        parts = [slice(start, start + self.part) for start in range(0, len(x), self.part)]
        total = torch.zeros((), device=self.device)
        seen = []
        for number, rows in enumerate(parts):
            cond: dict[str, Any] = {} if label is None else {"label": label[rows]}
            of_part = draw.part(rows)
            last = number + 1 == len(parts)
            network = self.parallel.network
            if self.sharded:
                collect_gradients(network, last)
            alone = network.no_sync() if isinstance(network, DistributedDataParallel) and not last else contextlib.nullcontext()
            with alone:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.bfloat16):
                    losses = self.objective(self.parallel, x[rows], of_part, **cond)
                loss = (of_part.weight.to(losses) * losses).sum() / settings.batch
                (loss * self.world if self.world > 1 else loss).backward()
            total += loss.detach()
            seen.append(losses.detach())
        if self.objective.learns:
            self.objective.observe(drawn, parallel.gather_rows(torch.cat(seen)))
        return parallel.summed(total)

    @property
    def evaluation_due(self) -> bool:
        """Whether the loss by noise level is to be measured now; true once each time."""
        progress = 1.0 if self.done else max(self.step / self.settings.steps, self.share)
        if progress * self.settings.evaluations < self.evaluated + 1:
            return False
        self.evaluated = int(progress * self.settings.evaluations)
        return True

    def evaluate(self, entry: dict[str, Any]) -> None:
        """Measure the loss by noise level of the averaged weights into `entry`."""
        level_loss = self.validation.measure(self.result.model)
        entry |= {"validation": float(np.mean(level_loss)), "levels": self.validation.levels, "level_loss": level_loss}

    def state(self) -> State:
        """Tensors and plain values that `restore` takes, with the weights that `save` writes beside them; of a network in shares only
        while all processes are `together`."""
        if self.sharded and not self.of_others:
            raise ValueError("the state of a training in shares is put together for on_checkpoint alone: ask for it there")
        tensors = {"generator": self.generator.get_state(), "random": torch.get_rng_state(), "averaged": self.average.n_averaged}
        tensors |= self.of_others
        for number, values in () if self.sharded else self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        tensors |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        if self.recent:
            tensors["recent"] = torch.stack(self.recent)
        names = ("step", "taken", "in_a_row", "evaluated", "part", "seconds")
        return tensors, {
            **{name: getattr(self, name) for name in names},
            "skipped": self.result.skipped,
            "history": self.result.history,
        }

    def restore(self, state: State) -> None:
        """Go on from `state`, whose tensors hold the weights too, as `read_state` gives them."""
        tensors, values = state
        of: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            of.setdefault(part, {})[rest] = value
        load_whole(self.network, of["network"])
        load_whole(self.average.module, of["ema"])
        self.average.n_averaged.copy_(tensors["averaged"])
        of_parameters: dict[int, dict[str, Tensor]] = {}
        for key, value in of.get("optimizer", {}).items():
            number, _, name = key.partition(".")
            value = value if name == "step" else in_shares(value, self.parameters[int(number)])
            if name != "step" and value.shape != self.parameters[int(number)].shape:  # the optimiser itself does not look
                raise ValueError(f"{key} of shape {tuple(value.shape)} for a parameter of {tuple(self.parameters[int(number)].shape)}")
            of_parameters.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({"state": of_parameters, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.objective.load_state_dict(of.get("objective", {}))
        self.generator.set_state(tensors["generator"].cpu())
        self.random = tensors["random"].cpu() if self.rank == 0 else of.get("random", {}).get(str(self.rank))
        self.recent = list(tensors["recent"].to(self.device).unbind()) if "recent" in tensors else []
        self.step, self.taken, self.in_a_row, self.evaluated = (int(values[k]) for k in ("step", "taken", "in_a_row", "evaluated"))
        self.part, self.before = int(values["part"]), float(values["seconds"])
        if min(self.step, self.taken, self.in_a_row, self.evaluated) < 0 or self.part < 1 or not 0 <= self.before < math.inf:
            raise ValueError(f"counts that cannot be: step {self.step}, taken {self.taken}, part {self.part}, seconds {self.before}")
        result = self.result
        result.steps, result.seconds, result.skipped = self.step, self.before, int(values["skipped"])
        result.history[:] = values["history"]


MOST_HELD = 128
"""Training items that stand for held-out ones where there are none."""


class _Items(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Batches by their numbers."""

    def __init__(self, source: Tensor | Source) -> None:
        self.source = source

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return index, self.source[index]


def batch_order(count: int, batch: int, seed: int, skip: int = 0) -> Iterator[Tensor]:
    """Indices of endless batches: each pass over the data in its own random order, batches running on across passes; `skip`: how
    many batches to leave out at the start."""
    generator = torch.Generator().manual_seed(seed)
    passes, start = divmod(skip * batch, count)
    for _ in range(passes):
        torch.randperm(count, generator=generator)
    left = torch.randperm(count, generator=generator)[start:]
    while True:
        while len(left) < batch:
            left = torch.cat((left, torch.randperm(count, generator=generator)))
        yield left[:batch]
        left = left[batch:]
