"""The state that a training can be stopped in and go on from, and the parts of it that PyTorch takes back only with care: the
optimiser's and a generator's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..devices import STATE_OF_CARD, random_state
from ..unknown_numbers import with_nan
from .checkpoint import State
from .sharding import in_shares, load_whole

if TYPE_CHECKING:
    from .trainer import Trainer


def state_of(trainer: Trainer) -> State:
    """The tensors and plain values that `restore` takes, with the weights that `save` writes beside them.

    A network in shares has them only while all processes are `together`; ValueError otherwise.
    """
    if trainer.placement.sharded and not trainer.of_others:
        raise ValueError("the state of a training in shares is put together for on_checkpoint alone: ask for it there")
    trainer.settle()
    tensors = {"generator": trainer.generator.get_state(), "random": random_state(trainer.device)}
    tensors["averaged"] = torch.tensor(trainer.average.updates)
    for number, network in enumerate(trainer.placement.whole_averages[1:]):
        tensors |= {f"averages.{number}.{name}": value for name, value in network.state_dict().items()}
    tensors |= trainer.of_others
    tensors |= {} if trainer.placement.sharded else optimizer_state(trainer.optimizer)
    tensors |= {f"objective.{name}": value for name, value in trainer.objective.state_dict().items()}
    if trainer.recent:
        tensors["recent"] = torch.stack(trainer.recent)
    names = ("step", "taken", "in_a_row", "evaluated", "part", "seconds")
    return tensors, {
        **{name: getattr(trainer, name) for name in names},
        "skipped": trainer.result.skipped,
        "history": trainer.result.history,
        "widths": [trainer.settings.ema_width, *trainer.settings.ema_widths],
    }


def restore(trainer: Trainer, state: State) -> None:
    """Go on from `state`, whose tensors hold the weights too, as `read_state` gives them."""
    tensors, values = state
    of: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, rest = key.partition(".")
        of.setdefault(part, {})[rest] = value
    load_whole(trainer.network, of["network"])
    load_whole(trainer.average.module, of["ema"])
    for number, average in enumerate(trainer.placement.averages):
        if number:
            prefix = f"{number - 1}."
            own = {name.removeprefix(prefix): value for name, value in of["averages"].items() if name.startswith(prefix)}
            load_whole(average.module, own)
        average.updates = int(tensors["averaged"])
    load_optimizer_state(trainer.optimizer, trainer.parameters, of.get("optimizer", {}))
    trainer.objective.load_state_dict(of.get("objective", {}))
    restore_generator(trainer.generator, tensors["generator"], trainer.settings.seed + 1_000_003 * (1 + int(values["step"])))
    trainer.random = tensors["random"].cpu() if trainer.rank == 0 else of.get("random", {}).get(str(trainer.rank))
    trainer.recent = list(tensors["recent"].to(trainer.device).unbind()) if "recent" in tensors else []
    trainer.step, trainer.taken, trainer.in_a_row, trainer.evaluated = (int(values[k]) for k in ("step", "taken", "in_a_row", "evaluated"))
    trainer.part, trainer.before = int(values["part"]), float(values["seconds"])
    if min(trainer.step, trainer.taken, trainer.in_a_row, trainer.evaluated) < 0 or trainer.part < 1 or not 0 <= trainer.before < math.inf:
        raise ValueError(
            f"counts that cannot be: step {trainer.step}, taken {trainer.taken}, part {trainer.part}, seconds {trainer.before}"
        )
    result = trainer.result
    result.steps, result.seconds, result.skipped = trainer.step, trainer.before, int(values["skipped"])
    trainer.logged = trainer._marks()
    result.history[:] = with_nan(values["history"])
    trainer.evaluated_at = max((int(entry["step"]) for entry in result.history if "level_loss" in entry), default=0)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser keeps of each parameter, under "optimizer.NUMBER.NAME"."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Give back what `optimizer_state` gave, under "NUMBER.NAME", whole where the parameters lie in shares. ValueError where a shape
    is not the parameter's."""
    of_parameters: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, _, name = key.partition(".")
        if name != "step":
            parameter = parameters[int(number)]
            value = in_shares(value, parameter)
            if value.shape != parameter.shape:  # the optimiser itself does not look
                raise ValueError(f"{key} of shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")
            value = torch.empty_like(parameter).copy_(value)  # nor at the order in memory, in which its kernel goes
        of_parameters.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": of_parameters, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_generator(generator: torch.Generator, state: Tensor, other_seed: int) -> None:
    """Set the generator to `state`, or to `other_seed` where that is the state of one on another kind of device, with a warning."""
    kept, kinds = state.cpu(), {len(torch.get_rng_state()), STATE_OF_CARD}
    if len(kept) == len(generator.get_state()) or len(kept) not in kinds:
        generator.set_state(kept)  # which says what is wrong with it
        return
    warnings.warn("this training began on another kind of device: its noise goes on from a new seed", stacklevel=3)
    generator.manual_seed(other_seed)
