"""The parts of a training's state that PyTorch takes back only with care: the optimiser's and a generator's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..devices import STATE_OF_CARD
from .sharding import in_shares


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
