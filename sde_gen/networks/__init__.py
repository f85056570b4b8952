"""Networks that a score model is made of: `network(x, c, **cond)`, see `Network`. One file and one registry line each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .adm import ADMUNet
from .base import Network
from .diffusers_library import DiffusersNetwork
from .lucid import LucidUNet
from .mlp import MLP
from .song import SongUNet
from .transformer import PatchTransformer
from .unet import UNet
from .unet2d import UNet2D

__all__ = [
    "MLP",
    "NETWORKS",
    "ADMUNet",
    "DiffusersNetwork",
    "LucidUNet",
    "Network",
    "PatchTransformer",
    "SongUNet",
    "UNet",
    "UNet2D",
    "affordable_options",
    "make_network",
    "register_network",
    "summary",
]

NETWORKS: dict[str, Any] = {
    "adm": ADMUNet,
    "diffusers": DiffusersNetwork,
    "lucid": LucidUNet,
    "mlp": MLP,
    "song": SongUNet,
    "transformer": PatchTransformer,
    "unet": UNet,
    "unet2d": UNet2D,
}


def make_network(
    name: str,
    shape: Sequence[int],
    conditions: int | Mapping[str, Mapping[str, Any]] | None = None,
    out_channels: int | None = None,
    **options: Any,
) -> Network:
    """Build the network registered under `name`.

    Args:
        name: a key of `NETWORKS`.
        shape: (C, *spatial) of one sample, or (D,) for vectors.
        conditions: what it may be told, a spec by name (`conditions.fit_condition` makes one of values); a whole number stands for so
            many classes of a condition "label".
        out_channels: channels of the result; as many as the input if None.
        options: the class's own keywords; a network's `options` rebuild it exactly.

    Raises:
        ValueError: an unknown name or option, or a value that is not allowed; the message says what is.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(sorted(NETWORKS))}")
    kind = NETWORKS[name]
    if not issubclass(kind, Network):
        raise ValueError(f"network {name!r} ({kind.__name__}) is no sde_gen.networks.Network: make it yourself and give the object")
    allowed = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)} of network {name!r}; known: {', '.join(allowed)}")
    made: Network = kind(shape, conditions, out_channels, **options)
    return made


def register_network(name: str, kind: type[torch.nn.Module]) -> None:
    """Let checkpoints, `train` and the command line know a network's class as `name`.

    A subclass of `Network` is made by `kind(shape, conditions, out_channels, **options)`. Any other torch.nn.Module is rebuilt from a
    checkpoint by `kind(**network.options)`, `options` being a dict of finite numbers, strings, lists and dicts ({} where it has none).

    Raises TypeError for what is no such class, ValueError for a name that another class has.
    """
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise TypeError(f"kind must be a class of torch.nn.Module, got {kind!r}")
    if NETWORKS.get(name, kind) is not kind:
        raise ValueError(f"network {name!r} is registered already, as {NETWORKS[name].__name__}")
    NETWORKS[name] = kind


def summary(network: torch.nn.Module, shape: Sequence[int]) -> str:
    """One line: the network's name, its parameters and the cost of one sample's forward pass.

    The cost is counted, not estimated: matrix products, convolutions and attention, each multiply-add as two operations.
    Works for any module called as `network(x, c)` with x of shape (1, *shape).
    """
    parameters = sum(p.numel() for p in network.parameters())
    known = network.flops() if isinstance(network, Network) else None
    flops = _counted(network, shape) if known is None else known
    return f"{type(network).__name__}: {parameters:,} parameters, {flops / 1e9:.3g} GFLOP per sample and call"


def _counted(network: torch.nn.Module, shape: Sequence[int]) -> int:
    """Operations of one sample's forward pass as PyTorch counts them, which on a CPU leaves attention out."""
    reference = next(iter(network.parameters()), torch.zeros(()))
    x = torch.zeros(1, *shape, device=reference.device, dtype=reference.dtype)
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(x, torch.zeros(1, device=x.device, dtype=x.dtype))
    finally:
        network.train(training)
    return int(counter.get_total_flops())


MOST_TOKENS = 1024
"""Attention over more positions costs more than the convolutions around it, and grows with their square."""


def affordable_options(name: str, shape: Sequence[int], options: dict[str, Any], most_flops: float | None = None) -> dict[str, Any]:
    """`options` of the network `name` on data of `shape`, or the nearest cheaper ones that do not attend over more than `MOST_TOKENS`
    positions.

    most_flops: nor take more operations for one sample's forward pass. None: any number.
    Where nothing is cheap enough, the nearest options that cost at most half again what the cheapest do.
    """

    def cost(options: dict[str, Any]) -> tuple[int, int]:
        with torch.device("meta"):  # the layers' sizes alone
            network = make_network(name, shape, **options)
        return network.tokens(), network.flops() or 0

    tried: list[tuple[int, dict[str, Any]]] = []
    for chosen in (options, *NETWORKS[name].cheaper(shape, options)):
        tokens, flops = cost(chosen)
        if tokens <= MOST_TOKENS and (most_flops is None or flops <= most_flops):
            return chosen
        tried.append((flops, chosen))
    least = min(flops for flops, _ in tried)
    return next(chosen for flops, chosen in tried if flops <= 1.5 * least)
