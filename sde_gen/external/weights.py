"""Weights of other libraries put into our networks, each of them once and all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..networks import make_network
from ..networks.resampled import ResampledUNet
from ..networks.resampled_blocks import Attention, FilteredConv, ResampledConv, ResidualBlock, Stage

MOST_NUMBER = 1 << 16
"""Channels, classes or steps beyond which a file is not believed: a tensor without elements, or a configuration, may claim any."""
BLOCK = ("norm1", "conv1", "modulation", "norm2", "conv2", "shortcut")
Weights = Mapping[str, Tensor]


class Part(NamedTuple):
    """A layer of a U-Net in the order of the call: its role (enter, down, side, encode, middle, up, decode, leave), level and number."""

    role: str
    level: int
    number: int
    module: nn.Module


def parts(network: ResampledUNet) -> Iterator[Part]:
    """All layers but the embedding, in the order in which they are called."""
    last = len(network.encoder) - 1
    yield Part("enter", 0, 0, network.enter)
    for level, stages in enumerate(network.encoder.children()):
        if level > 0:
            yield Part("down", level, 0, network.down[level - 1])
            if len(network.side):
                yield Part("side", level, 0, network.side[level - 1])
        yield from (Part("encode", level, k, stage) for k, stage in enumerate(stages.children()))
    yield from (Part("middle", last, k, stage) for k, stage in enumerate(network.middle))
    for level in reversed(range(last + 1)):
        if level < last:
            yield Part("up", level, 0, network.up[level])
        yield from (Part("decode", level, k, stage) for k, stage in enumerate(network.decoder[level].children()))
        if level < len(network.leave):
            yield Part("leave", level, 0, network.leave[level])


class Filler:
    """Collects the state of a network from weights under other names; `finish` makes the network, or raises CheckpointError where one is
    left over, missing or of another shape.

    block: the other library's names of a residual block's layers, in the order of `BLOCK`.
    attention: its names of an attention's norm, joint queries, keys and values (None where they are not joint) and projection.
    order: how the rows of its queries, keys and values are laid out: "new" (3, heads, channels), "legacy" (heads, 3, channels), "edm"
        (heads, channels, 3).
    """

    def __init__(
        self, kind: str, shape: tuple[int, ...], classes: int | None, out_channels: int, options: dict[str, Any], weights: Weights
    ) -> None:
        # of a foreign network no label fades with the noise
        conditions = None if classes is None else {"label": {"kind": "label", "classes": classes, "fade": None}}
        self.made = (kind, shape, conditions, out_channels, options)
        if options["blocks"] > len(weights):
            raise CheckpointError(f"it has {options['blocks']} blocks in a level, but {len(weights)} tensors in all")
        for name, value in (("classes", classes or 0), ("channels", max(shape[0], out_channels, options["width"]))):
            if value > MOST_NUMBER:
                raise CheckpointError(f"it has {value} {name}; at most {MOST_NUMBER} are read")
        with torch.device("meta"):  # nothing is allocated before the file is known to hold as much
            network = make_network(kind, shape, conditions, out_channels, **options)
        assert isinstance(network, ResampledUNet)
        self.network, self.weights = network, weights
        self.names = {module: name for name, module in network.named_modules()}
        self.state: dict[str, Tensor] = {}
        self.used: set[str] = set()

    def take(self, name: str) -> Tensor:
        if name not in self.weights:
            raise CheckpointError(f"the file lacks {name!r}")
        self.used.add(name)
        return self.weights[name]

    def layer(self, module: nn.Module, name: str) -> None:
        """A linear layer, convolution or norm; those of one position may have any number of dimensions."""
        for key, value in (("weight", self.take(f"{name}.weight")), ("bias", self.take(f"{name}.bias"))):
            self.put(module, key, value)

    def put(self, module: nn.Module, key: str, value: Tensor) -> None:
        wanted = getattr(module, key).shape
        if value.shape != wanted and value.numel() == wanted.numel() and [n for n in value.shape if n > 1] == [n for n in wanted if n > 1]:
            value = value.reshape(wanted)
        self.state[f"{self.names[module]}.{key}"] = value

    def block(self, block: ResidualBlock, name: str, theirs: tuple[str, ...]) -> None:
        for ours, other in zip(BLOCK, theirs, strict=True):
            layer = getattr(block, ours)
            if not isinstance(layer, nn.Identity):
                self.layer(layer, f"{name}{other}")

    def attention(self, attention: Attention, name: str, theirs: tuple[str, str, str], order: str) -> None:
        norm, qkv, projection = theirs
        self.layer(attention.norm, f"{name}{norm}")
        self.layer(attention.mix, f"{name}{projection}")
        for key in ("weight", "bias"):
            self.put(attention.qkv, key, reordered(self.take(f"{name}{qkv}.{key}"), attention.heads, order))

    def plain(self, module: nn.Module, name: str) -> None:
        """A convolution, or what holds one."""
        inside = module.conv if isinstance(module, FilteredConv | ResampledConv) else module
        assert isinstance(inside, nn.Module)
        self.layer(inside, name)

    def finish(self, ignored: frozenset[str] = frozenset()) -> ResampledUNet:
        left = [name for name in self.weights if name not in self.used and name not in ignored]
        if left:
            raise CheckpointError(f"the file has {len(left)} tensors that this network has not, as {left[0]!r}")
        wanted = self.network.state_dict()
        for name, value in wanted.items():
            found = self.state.get(name)
            if found is None or found.shape != value.shape:
                raise CheckpointError(
                    f"{name} should be {tuple(value.shape)}, the file has {None if found is None else tuple(found.shape)}"
                )
        kind, shape, conditions, out_channels, options = self.made
        network = make_network(kind, shape, conditions, out_channels, **options)
        network.load_state_dict({name: value.float() for name, value in self.state.items()})
        assert isinstance(network, ResampledUNet)
        return network


def reordered(value: Tensor, heads: int, order: str) -> Tensor:
    """Rows of queries, keys and values (3 C, ...) in the order (3, heads, channels), from another one, see `Filler`."""
    rows = value.reshape(len(value), -1) if value.ndim > 1 else value
    if order == "new":
        return rows
    if order == "legacy":
        return rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return rows.unflatten(0, (heads, -1, 3)).movedim(2, 0).flatten(0, 2)


def stage_of(part: Part) -> Stage:
    assert isinstance(part.module, Stage)
    return part.module


def stripped(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """Without the prefix, where all have it."""
    if weights and all(name.startswith(prefix) for name in weights):
        return {name.removeprefix(prefix): value for name, value in weights.items()}
    return dict(weights)
