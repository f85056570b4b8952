"""One training under way: its steps, and the state that it can be stopped in and go on from."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import parallel
from ..data import Source, rows_drawn
from ..devices import OnItsWay, current, random_state, set_random_state
from ..models.score import ScoreModel
from ..shapes import expand_as
from .batches import check_conditions, read_batches
from .checkpoint import State
from .objective import Objective
from .optimizers import make_optimizer
from .parts import affordable_part, in_parts
from .result import AbandonedStep, TrainingError, TrainResult
from .resume import optimizer_state, restore, state_of
from .settings import DECAYS, TrainSettings, check_layout, check_processes
from .sharding import Placement, whole
from .validation import MOST_SAMPLES

MOST_SKIPPED = 10
"""So many steps in a row may be left out because they are not finite."""
LOGS = 200
"""The history of a whole training has about so many entries, by steps, and as many by time where `max_seconds` may end it."""
EVALUATION_SHARE, EVALUATION_SECONDS = 0.05, 5.0
"""The loss by noise level, and likewise a snapshot, costs at most this share of the training before it, or so many seconds."""
LEAST_ITEMS = 8


class Trainer:
    """A model, its data and all that changes from step to step; `advance` is one step. See `fit` for the arguments.

    The order of the data, the noise and the times are functions of the seed alone. Each step draws what is random for the whole
    batch; parts of it, and processes, compute their share of the same sum.
    """

    def __init__(
        self,
        model: ScoreModel,
        data: Tensor | Source,
        settings: TrainSettings,
        cond: Mapping[str, Tensor | Source] | None,
        held_out: Tensor | None,
        levels: int | None,
        device: torch.device | str,
        held_out_cond: Mapping[str, Tensor] | None = None,
        objective: Objective | None = None,
        redraw: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.redraw = redraw
        self.settings, self.device = settings, torch.device(device)
        self.rank, self.world = parallel.rank(), parallel.world()
        check_processes(settings, self.world)
        check_layout(settings, data.shape)
        if settings.reference and redraw is not None:
            what = "a table's cells are drawn for each batch"
            raise ValueError(f"reference {settings.reference} is for items that stay as they are, and {what}")
        self.model = model = model.to(self.device)
        self.objective = Objective(settings, model, levels) if objective is None else objective
        self.encode = partial(self.objective.encode, model)
        self.x = data
        if isinstance(data, Tensor):
            self.x = data.to(self.device) if redraw is not None else self.encode(data.to(self.device))
        cond = check_conditions(model, cond or {}, len(data), self.device)
        self.cond = cond
        taken = {name for name, value in cond.items() if isinstance(value, Source) or model.null(name, value[:1]) is not None}
        always = [name for name in cond if name not in taken]  # of a network of the user's own that has no null
        if always and settings.drop:
            warnings.warn(
                f"this network is always told {', '.join(map(repr, always))}: it has no null(name, value), and so knows nothing of items "
                "without (drop=0 says that this is meant)",
                stacklevel=3,
            )
        self.drop = settings.shares_dropped(sorted(taken))
        unknown = set(cond) - set(held_out_cond or {})  # items of which a condition is not known have no right answer
        items, of_items = (data, cond) if held_out is None or unknown else (held_out, held_out_cond or {})
        rows = rows_drawn(len(items), MOST_SAMPLES, settings.seed)
        held = self.encode(items[rows].to(self.device))
        of_held = {name: of_items[name][rows] for name in cond}
        self.validation = self.objective.validation(model, held, model.conditions(of_held, len(held), self.device))
        self.objective.see(self.x, cond)
        self.placement = Placement(model, settings, self.device)
        self.network, self.average = self.placement.network, self.placement.averages[0]
        self.result = TrainResult(model.with_network(self.placement.averaged).eval().requires_grad_(False), model, self)
        self.result.linear = {"levels": self.validation.levels, "linear": self.validation.linear}
        self.optimizer = make_optimizer(settings.optimizer, self.network.parameters(), settings.lr, settings.weight_decay)
        self.parameters = list(self.network.parameters())
        self.generator = torch.Generator(self.device).manual_seed(settings.seed)
        self.part = affordable_part(model, settings, self.device)
        self.log_every = max(1, settings.steps // LOGS)
        self.step = self.taken = self.in_a_row = self.evaluated = self.logged = 0
        self.stop: Callable[[], bool] = lambda: False  # asked between the parts of a batch
        self.timed, self.spent = 0, 0.0  # steps of this run and their seconds
        self.evaluated_at = 0  # the step of the last evaluation
        self.recent: list[Tensor] = []
        self.unsettled: tuple[int, Tensor, OnItsWay] | None = None  # the last step, its loss and whether it was finite
        self.before = 0.0  # seconds of the runs that this one goes on from
        self.began = time.monotonic()
        self.random: Tensor | None = None  # the global generators' state at the start of `running`, for dropout
        self.of_others: dict[str, Tensor] = {}  # what `state` needs of the other processes, between `together` and its end
        self.batches: Iterator[tuple[Tensor, dict[str, Tensor]]] | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The steps happen in here: torch's global generators, which dropout uses, are this training's own meanwhile."""
        forked = torch.random.fork_rng(devices=[] if self.device.type == "cpu" else [self.device])
        with current(self.device), forked, self.placement.running():
            torch.manual_seed(self.settings.seed + (self.rank + self.step if self.rank else 0))
            if self.random is not None:
                set_random_state(self.random, self.device)
            self.model.train()
            self.network.train()
            self.batches = read_batches(self.x, self.cond, self.encode, self.settings, self.step, self.device, self.redraw)
            self.began = time.monotonic()
            try:
                yield
            finally:
                self.batches = None  # ends the processes that read ahead

    @property
    def seconds(self) -> float:
        """The time that training has taken, evaluations included."""
        return self.before + time.monotonic() - self.began

    @property
    def runs_ahead(self) -> bool:
        """Whether a step begins before it is known what became of the one before."""
        return self.device.type != "cpu"

    @property
    def rate(self) -> float:
        """Training samples a second."""
        return self.step * self.settings.batch / max(self.seconds, 1e-9)

    @property
    def done(self) -> bool:
        return self.step >= self.settings.steps or (
            self.settings.max_seconds is not None and self.result.seconds >= self.settings.max_seconds
        )

    @property
    def share(self) -> float:
        """The part of the training that is behind, 0 to 1, by steps or by time."""
        settings = self.settings
        by_time = 0.0 if settings.max_seconds is None else min(1.0, self.result.seconds / settings.max_seconds)
        return max(self.taken / settings.steps, by_time)

    @contextlib.contextmanager
    def together(self, state: bool = False, last: bool = False) -> Iterator[None]:
        """In here `result` holds the whole networks, which lie in shares otherwise; all processes come here together.

        state: `state` works in here, in the first process.
        last: the whole networks stay.
        """
        self.settle()
        with self.placement.whole_networks(last):
            if state and self.world > 1:
                for number, random in enumerate(parallel.gather_rows(random_state(self.device)[None])):
                    self.of_others[f"random.{number}"] = random
                for name, value in optimizer_state(self.optimizer).items() if self.placement.sharded else ():
                    full = whole(value)
                    if self.rank == 0:
                        self.of_others[name] = full.cpu()
            yield
            self.of_others.clear()

    def advance(self) -> dict[str, Any] | None:
        """One step: a batch, its noise, the loss and its gradients, clipped, go into the weights and their average.

        Each process computes its share of the batch, in parts that fit the memory. Returns the new entry of the history where one is
        due. Raises TrainingError where training cannot go on or the network cannot be compiled; AbandonedStep where `stop` is true in
        any process between two parts, and all that changes from step to step is then as before this one.
        """
        began = time.monotonic()
        before = self.generator.get_state(), random_state(self.device)
        try:
            entry = self._advance()
        except AbandonedStep:
            self.optimizer.zero_grad(set_to_none=True)
            self.generator.set_state(before[0])
            set_random_state(before[1], self.device)
            raise
        except RuntimeError as error:
            if self.settings.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = " ".join(str(error).split())[:300]
                raise TrainingError(f"the network cannot be compiled here (leave training.compile out): {reason}") from error
            raise
        self.timed, self.spent = self.timed + 1, self.spent + time.monotonic() - began
        return entry

    def _advance(self) -> dict[str, Any] | None:
        settings, placement = self.settings, self.placement
        assert self.batches is not None
        x_0, cond = next(self.batches)
        drawn = self.objective.draw(self.model, (settings.batch, *x_0.shape[1:]), self.generator, self.drop)
        mine = drawn.part(parallel.share(settings.batch))
        cond = {name: self._dropped(name, value, mine.dropped.get(name)) for name, value in cond.items()}

        def backward(rows: slice) -> tuple[Tensor, Tensor]:
            part = mine.part(rows)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.bfloat16):
                losses = self.objective(placement.model, x_0[rows], part, **{name: value[rows] for name, value in cond.items()})
            loss = (part.weight.to(losses) * losses).sum() / settings.batch
            (loss * self.world if self.world > 1 else loss).backward()  # gradients are averaged over the processes, not summed
            return loss.detach(), losses.detach()

        loss, losses = in_parts(self, backward, len(x_0))
        if self.objective.learns:
            self.objective.observe(drawn, parallel.gather_rows(torch.cat(losses)))
        loss = parallel.summed(loss)
        norm = whole(nn.utils.clip_grad_norm_(self.parameters, settings.clip, foreach=True))
        self.settle()  # what became of the step before has been known for as long as this one took
        self._set_rate()
        finite = torch.isfinite(norm)
        if not placement.sharded:
            self.optimizer.found_inf = 1.0 - finite.float()  # type: ignore[attr-defined]  # the optimiser's kernel looks at it itself
            self.optimizer.step()
        elif bool(finite):  # its kernel takes no plain tensor beside weights in shares
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self._record(loss, finite)

    def _dropped(self, name: str, value: Tensor, dropped: Tensor | None) -> Tensor:
        """The condition `name` of a batch, its null in the place of the rows that are dropped."""
        null = None if dropped is None else self.model.null(name, value)
        return value if dropped is None or null is None else torch.where(expand_as(dropped, value), null, value)

    def _set_rate(self) -> None:
        """Give the optimiser this step's learning rate: the warm-up, then the decay."""
        settings = self.settings
        if settings.max_seconds is not None:
            self.result.seconds = parallel.agreed(self.seconds)
        rate = settings.lr * min(1.0, (self.taken + 1) / max(1, settings.warmup)) * DECAYS[settings.decay](self.share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _record(self, loss: Tensor, finite: Tensor) -> dict[str, Any] | None:
        """Count a step; the new entry of the history where one is due."""
        settings, result = self.settings, self.result
        self.step += 1
        self.unsettled = (self.step, loss, OnItsWay(finite))
        result.steps = self.step
        result.seconds = self.seconds if settings.max_seconds is None else parallel.agreed(self.seconds)
        marks = self._marks()
        due = self.step % self.log_every == 0 or marks > self.logged or self.done
        self.logged = marks
        if due or not self.runs_ahead:
            self.settle()
        return self._entry(float(torch.stack(self.recent).mean())) if due and self.recent else None

    def _marks(self) -> int:
        """How many of `LOGS` equal parts of `max_seconds` are behind: a training that the clock ends has a history by the clock."""
        limit = self.settings.max_seconds
        return 0 if limit is None else int(LOGS * self.result.seconds / limit)

    def settle(self) -> None:
        """Take the last step into the average and the counts, or count it as left out, once it is known whether it was finite.

        On a GPU that is not waited for at the step's end: the next step's kernels are under way before the answer is asked for.
        Raises TrainingError after too many steps in a row that were not finite.
        """
        if self.unsettled is None:
            return
        (step, loss, finite), self.unsettled = self.unsettled, None
        if bool(finite.arrived()):
            for average in self.placement.averages:
                average.update(self.placement.network)
            self.recent.append(loss)
            self.taken += 1
            self.in_a_row = 0
            return
        self.result.skipped += 1
        self.in_a_row += 1
        if self.in_a_row > MOST_SKIPPED:
            raise TrainingError(f"loss or gradients were not finite for {self.in_a_row} steps in a row, up to step {step}")

    def _entry(self, loss: float) -> dict[str, Any]:
        entry = {"step": self.step, "seconds": self.result.seconds, "loss": loss}
        self.recent.clear()
        self.result.history.append(entry)
        return entry

    def out_of_time(self) -> bool:
        """Whether `max_seconds` are over now, in the middle of a step."""
        return self.settings.max_seconds is not None and self.seconds >= self.settings.max_seconds

    def close(self) -> dict[str, Any] | None:
        """After an AbandonedStep: the last entry of the history where the time is over, else None. Raises TrainingError where it was
        over before the first step."""
        result = self.result
        self.settle()
        result.seconds = parallel.agreed(self.seconds)
        if not self.done:
            return None
        if self.step == 0:
            limit = f"max_seconds {self.settings.max_seconds:g} was over before the first step of {self.settings.batch} samples was done"
            raise TrainingError(f"{limit}: choose a smaller batch or network, or more time")
        if self.recent:
            return self._entry(float(torch.stack(self.recent).mean()))
        return self._entry(result.history[-1]["loss"]) if result.history else None

    @property
    def evaluation_due(self) -> bool:
        """Whether the loss by noise level is to be measured now; true once each time."""
        progress = 1.0 if self.done else max(self.step / self.settings.steps, self.share)
        if progress * self.settings.evaluations < self.evaluated + 1:
            return False
        self.evaluated = int(progress * self.settings.evaluations)
        return True

    @property
    def allowance(self) -> float:
        """The seconds that the loss by noise level, and likewise a snapshot, may take now: `EVALUATION_SHARE` of the steps since the last
        evaluation, or `EVALUATION_SECONDS` where those are more."""
        per_step = self.spent / max(1, self.timed)
        return max(EVALUATION_SECONDS, EVALUATION_SHARE * per_step * (self.step - self.evaluated_at))

    def affordable(self, calls: int, wanted: int) -> int:
        """How many of the `wanted` items the `allowance` pays for, where the network is called `calls` times for each: by the time that
        the steps of this run took, of which a call is a third of a sample's part."""
        per_call = self.spent / max(1, self.timed) / (3 * math.ceil(self.settings.batch / self.world))
        return wanted if per_call == 0 else min(wanted, int(self.allowance / (calls * per_call)))

    def evaluate(self, entry: dict[str, Any]) -> None:
        """Measure the loss by noise level of the averaged weights into `entry`, on as many items as is affordable; at the end of the
        training on `LEAST_ITEMS` at least, before it not at all where those cost too much."""
        whole = len(self.validation.x_0)
        least = min(whole, LEAST_ITEMS)
        items = self.affordable(len(self.validation.times), whole)
        if items < least and not self.done:
            return
        items = max(items, least)
        level_loss = self.validation.measure(self.result.model, items)
        entry |= {"validation": float(np.mean(level_loss)), "levels": self.validation.levels, "level_loss": level_loss}
        if items < whole:
            entry["items"] = items

    def state(self) -> State:
        """See `state_of`."""
        return state_of(self)

    def restore(self, state: State) -> None:
        """See `resume.restore`."""
        restore(self, state)
