"""A batch goes through the network in parts that suit the memory, and on a CPU the patience of whoever wants to stop it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import memory, parallel
from ..devices import random_state, set_random_state
from ..models.score import ScoreModel
from ..networks import Network
from .result import AbandonedStep, TrainingError
from .settings import TrainSettings

if TYPE_CHECKING:
    from .trainer import Trainer

PART_FLOPS = 1.2e11
"""On a CPU a batch is computed in parts of at most so many operations, some seconds of a core: between them a training can be stopped."""


def affordable_part(model: ScoreModel, settings: TrainSettings, device: torch.device) -> int:
    """The number of samples that are computed at a time: as the settings say, or on a CPU so many that a part costs no more than
    `PART_FLOPS`, where the network knows what it costs."""
    network = model.network
    flops = network.flops() if isinstance(network, Network) else None
    if settings.micro_batch is not None or settings.accumulate > 1 or device.type != "cpu" or not flops:
        return settings.part
    most = max(1, int(PART_FLOPS / (3 * flops)))
    return math.ceil(settings.batch / math.ceil(settings.batch / most))


def in_parts(trainer: Trainer, backward: Callable[[slice], tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, list[Tensor]]:
    """Go through `count` samples in parts, which are halved where memory does not suffice.

    backward: adds to the gradients those of the rows that it is given, and returns their loss and losses.
    Returns the sum of the loss, and the losses of all parts.
    """
    least = trainer.settings.batch // trainer.world  # rows that every process has: they ask one another between the same parts
    while True:
        random = random_state(trainer.device)
        total, seen = torch.zeros((), device=trainer.device), []
        try:
            for start in range(0, count, trainer.part):
                if 0 < start < least and parallel.anywhere(trainer.stop())[0]:
                    raise AbandonedStep
                with trainer.placement.gradients(last=start + trainer.part >= count):
                    loss, losses = backward(slice(start, start + trainer.part))
                total += loss
                seen.append(losses)
            return total, seen
        except (RuntimeError, MemoryError) as error:
            if not memory.out_of_memory(error):
                raise
            if trainer.world > 1 or trainer.part == 1:
                raise TrainingError(
                    f"out of memory with {trainer.part} sample(s) at a time: choose a smaller --micro-batch or network"
                ) from error
        trainer.optimizer.zero_grad(set_to_none=True)
        memory.release()
        set_random_state(random, trainer.device)
        trainer.part = math.ceil(trainer.part / 2)
        warnings.warn(
            f"out of memory: going on with {trainer.part} samples at a time (--micro-batch {trainer.part} starts so)", stacklevel=2
        )
