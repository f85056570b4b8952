"""What all networks share: the contract `network(x, c, **cond)`, their options and the checks of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import FADE, Condition

M = TypeVar("M", bound=nn.Module)


def check_count(name: str, value: Any, least: int = 1) -> int:
    """An integer of at least `least`, or a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def check_probability(name: str, value: Any) -> float:
    """A number in [0, 1), or a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
    return float(value)


def check_counts(name: str, values: Any, least: int = 1) -> list[int]:
    """A sequence of integers of at least `least` as a list, or a TypeError or ValueError that names it."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of integers of at least {least}, got {values!r}")
    return [check_count(f"each of {name}", value, least) for value in values]


class Network(nn.Module):
    """A network `F(x, c, **cond)` for data of one shape.

    Args of a call:
        x: (B, C, *spatial), scaled to about unit variance by the caller.
        c: (B,), the noise level as half the log signal-to-noise ratio, lambda = log(alpha / sigma), about -7 to 9.
        cond: values of its conditions by name, (B, *) each; one that is left out is not given, as are rows of its null.
    The result is (B, out_channels, *spatial): zero for a network that has not been trained.

    conditions: what it may be told, a spec by name (see `conditions.make_condition`); a whole number stands for so many classes of a
        condition "label"; None for nothing.

    Attributes:
        shape: (C, *spatial), or (D,) for vectors.
        conditions: the specs by name.
        encoders: the conditions' encoders by name.
        out_channels: channels of the result (the length of the result for vectors).
        options: all the other options, JSON-able; `make_network(name, shape, out_channels=..., conditions=..., **options)` rebuilds the
            network.
    """

    spatial_ranks: tuple[int, ...] = (0, 1, 2, 3)

    def __init__(
        self,
        shape: Sequence[int],
        conditions: int | Mapping[str, Mapping[str, Any]] | None,
        out_channels: int | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.shape = tuple(check_counts("shape", shape))
        if len(self.shape) - 1 not in self.spatial_ranks:
            ranks = " or ".join(str(rank + 1) for rank in self.spatial_ranks)
            raise ValueError(f"{type(self).__name__} takes data of {ranks} dimensions (channels first), got shape {self.shape}")
        if isinstance(conditions, int):
            conditions = {"label": {"kind": "label", "classes": check_count("classes", conditions), "fade": FADE}}
        self.conditions = {name: dict(spec) for name, spec in (conditions or {}).items()}
        self.out_channels = self.shape[0] if out_channels is None else check_count("out_channels", out_channels)
        self.options = options

    @property
    def encoders(self) -> dict[str, Condition]:
        """The conditions' encoders by name."""
        return {module.name: module for module in self.modules() if isinstance(module, Condition)}

    @property
    def classes(self) -> int | None:
        """Number of classes of the condition "label", or None."""
        spec = self.conditions.get("label", {})
        return spec["classes"] if spec.get("kind") == "label" else None

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.out_channels, *self.shape[1:])

    def flops(self) -> int | None:
        """Operations of one sample's forward pass, a multiply-add as two, those of matrix products, convolutions and attention; None
        where the class does not say."""
        return None

    def tokens(self) -> int:
        """The largest number of positions that an attention of this network runs over; 0 where it has none."""
        return 0

    @classmethod
    def cheaper(cls, shape: Sequence[int], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Options that cost less on data of `shape` than `options` do, the nearest to them first."""
        return iter(())

    def check_input(self, x: Tensor, c: Tensor) -> None:
        """Raise a ValueError unless x is (B, *shape) and c is (B,)."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        if c.shape != x.shape[:1]:
            raise ValueError(f"c must have shape ({len(x)},), one noise level for each sample, got {tuple(c.shape)}")


def product_flops(module: nn.Module, positions: int = 1) -> int:
    """Operations of the linear layers and convolutions in `module`, each of which is applied at so many positions."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return 2 * positions * sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, layers))


def attention_flops(tokens: int, channels: int) -> int:
    """Operations of softmax(q k^T) v over so many tokens: two products of tokens^2 channels multiply-adds."""
    return 4 * tokens**2 * channels


def zeroed(module: M) -> M:
    """The module with all its parameters set to zero, as the last layer of a branch that starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """GroupNorm that gives the dtype that it gets: on CUDA autocast works it in float32, which its statistics need, and leaves the
    result so, and all up to the next convolution would move twice the bytes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


def group_norm(channels: int, affine: bool = True) -> GroupNorm:
    """GroupNorm (Wu and He 2018, arXiv:1803.08494) with at most 32 groups of at least 4 channels, as far as `channels` divides.

    Groups of few channels would have no variance left where the map has shrunk to a single point.
    """
    groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))
    return GroupNorm(groups, channels, affine=affine)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention softmax(q k^T / sqrt(d)) v over (B, heads, tokens, d), shape of `q`.

    seen: (B, tokens of k), those that are attended to, at least one in each row; None: all.

    On a CPU bfloat16 is worked in float32: PyTorch's bfloat16 gradient of attention is an order of magnitude slower there
    than its float32 one, enough to eat all that bfloat16 saves in the convolutions.
    """
    mask = None if seen is None else seen[:, None, None, :]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask)


class CrossAttention(nn.Module):
    """Attention from positions (B, T, channels) to the tokens of the conditions (B, L, width), zero before it is trained."""

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(width, 2 * channels)
        self.mix = zeroed(nn.Linear(channels, channels))

    def forward(self, h: Tensor, tokens: Tensor, seen: Tensor) -> Tensor:
        q = self.query(self.norm(h)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.mix(attend(q, k, v, seen).transpose(1, 2).flatten(2))
