"""The affine map between the data's own units and the units in which the processes run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("standard", "range", "identity")
_CHUNK = 1 << 22  # values turned to float64 at a time, so that fitting needs no float64 copy of the data


class Normalizer(nn.Module):
    """z = (x - shift) / scale, one shift and scale for each channel of (C, *spatial) data or each feature of (D,) data.

    The buffers `shift` and `scale` are float32, of shape (C, 1, ..., 1) or (D,); what is stored is what defines the map, so a
    checkpoint gives back the same one to the last bit: `Normalizer.from_config(config)` and then `load_state_dict`.

    Args:
        shift: float tensor (C, 1, ..., 1) or (D,), in the data's units.
        scale: positive, same shape, same units.
        kind: where they came from, one of "standard", "range", "identity"; it only goes with the configuration.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor, kind: str = "standard") -> None:
        super().__init__()
        _check_kind(kind)
        if shift.shape != scale.shape or shift.ndim < 1 or math.prod(shift.shape[1:]) != 1:
            raise ValueError(f"shift {tuple(shift.shape)} and scale {tuple(scale.shape)}; both must be (D,) or (C, 1, ..., 1)")
        shift, scale = shift.to(torch.float32), scale.to(torch.float32)
        if not bool(torch.isfinite(shift).all() and torch.isfinite(scale).all() and (scale >= torch.finfo(torch.float32).tiny).all()):
            raise ValueError(
                "shift and scale must be finite and scale positive as float32; rescale data whose spread is below 1e-38 or above 1e38"
            )
        self.kind = kind
        self.register_buffer("shift", shift.clone())
        self.register_buffer("scale", scale.clone())

    @classmethod
    def fit(cls, data: Tensor, kind: str = "standard") -> Normalizer:
        """The normaliser of a training set, computed in float64.

        "standard": zero mean and unit (population) standard deviation. "range": the data's smallest and largest value go to
        -1 and 1. "identity": z = x. A channel or feature that is constant while others vary gets scale 1 (its shift is as
        ever), so that it encodes to zeros and adds nothing to `log_det`.

        Args:
            data: (N, D) or (N, C, *spatial).
            kind: "standard", "range" or "identity".

        Raises:
            ValueError: unknown kind, no batch and feature dimension, NaN or Inf, or nothing in the data varies.
        """
        _check_kind(kind)
        if data.ndim < 2 or data.numel() == 0:
            raise ValueError(f"data of shape {tuple(data.shape)}; non-empty (N, D) or (N, C, *spatial) is needed")
        low = torch.full((data.shape[1],), math.inf, dtype=torch.float64)
        high, total = -low, torch.zeros_like(low)
        for part in _parts(data):
            low = torch.minimum(low, part.amin((0, 2)))
            high = torch.maximum(high, part.amax((0, 2)))
            total += part.sum((0, 2))
        if not bool(torch.isfinite(total).all()):
            raise ValueError(f"data of shape {tuple(data.shape)} holds NaN or infinite values; finite numbers are needed")
        if bool((low == high).all()):
            raise ValueError(
                f"constant data: every channel or feature holds one value ({low[0]:g} in the first); data that varies is needed"
            )
        if kind == "standard":
            count = data.numel() / data.shape[1]
            shift, square = total / count, torch.zeros_like(low)
            for part in _parts(data):
                square += (part - shift[:, None]).square().sum((0, 2))
            scale = (square / count).sqrt()
        elif kind == "range":
            shift, scale = (high + low) / 2, (high - low) / 2
        else:
            shift, scale = torch.zeros_like(low), torch.ones_like(low)
        scale = torch.where(low == high, torch.ones_like(scale), scale)
        shape = (-1, *[1] * (data.ndim - 2))
        return cls(shift.reshape(shape), scale.reshape(shape), kind)

    def encode(self, x: Tensor) -> Tensor:
        """z = (x - shift) / scale for (..., C, *spatial) or (..., D) in the data's units; the dtype of x is kept."""
        shift, scale, dtype = self._matched(x)
        return ((x.to(dtype) - shift) / scale).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """x = shift + scale z, the inverse of `encode`; nothing is clamped or rounded, and the dtype of z is kept."""
        shift, scale, dtype = self._matched(z)
        return (shift + scale * z.to(dtype)).to(z.dtype)

    def log_det(self, shape: Sequence[int]) -> float:
        """log |det d encode(x) / dx| = -sum log scale over the entries of one sample of this shape, in nats.

        log p_x(x) = log p_z(encode(x)) + log_det(x.shape[1:]).

        Raises:
            ValueError: a shape that this normaliser does not fit.
        """
        self._check_shape(shape, exact=True)
        return -float(self.scale.double().log().sum()) * math.prod(shape[1:])

    def to_config(self) -> dict[str, Any]:
        """What `from_config` needs, ready for JSON; the numbers themselves are in the state dict."""
        return {"kind": self.kind, "shape": list(self.shift.shape)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Normalizer:
        """A normaliser of the kind and shape of `to_config`, with shift 0 and scale 1 until its state dict is loaded.

        Raises:
            ValueError: missing, unknown or impossible entries.
        """
        shape = config.get("shape")
        if set(config) != {"kind", "shape"} or not isinstance(shape, (list, tuple)) or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"normaliser configuration {config!r}; {{'kind': one of {', '.join(KINDS)}, 'shape': [C, 1, ...]}} is needed")
        _check_kind(config["kind"])
        return cls(torch.zeros(shape), torch.ones(shape), config["kind"])

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, shape={tuple(self.shift.shape)}"

    def _matched(self, x: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
        if not x.is_floating_point():
            raise TypeError(f"values of {x.dtype}; a floating-point tensor is needed (integers would be truncated)")
        self._check_shape(x.shape, exact=False)
        # Half-precision input is mapped in float32 and rounded once, at the end.
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self.shift.to(dtype), self.scale.to(dtype), dtype

    def _check_shape(self, shape: Sequence[int], exact: bool) -> None:
        # Without this a (B, 1) tensor would broadcast to (B, D) silently.
        rank = self.shift.ndim
        if len(shape) < rank or (exact and len(shape) != rank) or shape[-rank] != self.shift.shape[0]:
            wanted = ", ".join([str(self.shift.shape[0]), *["any"] * (rank - 1)])
            raise ValueError(f"shape {tuple(shape)} does not fit this normaliser; {'' if exact else '..., '}{wanted} is needed")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"normalisation {kind!r} is unknown; allowed: {', '.join(KINDS)}")


def _parts(data: Tensor) -> Iterator[Tensor]:
    """The data as float64 (n, C, spatial) on the CPU, a piece at a time."""
    step = max(1, _CHUNK // max(1, math.prod(data.shape[1:])))
    for start in range(0, len(data), step):
        yield data[start : start + step].detach().cpu().double().flatten(1).unflatten(1, (data.shape[1], -1))
