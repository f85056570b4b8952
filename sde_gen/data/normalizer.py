"""The map between the data's own units and the units in which the processes run: affine, after a transform of each entry where asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sde_gen.data.precision import filled, needs_float64, statistics
from sde_gen.data.transforms import TRANSFORMS, Chain, Transforms

KINDS = ("standard", "range", "robust", "identity")
NORMALISATIONS = (*KINDS, *TRANSFORMS)
"""What `Normalizer.fit` takes: the affine maps, and transforms of every entry with "standard" after them."""
QUARTILES = 1.3489795003921634
"""The distance of a standard normal's quartiles."""
_TYPES = {"float32": torch.float32, "float64": torch.float64}


class Normalizer(nn.Module):
    """z = (T(x) - shift) / scale, one shift and scale for each channel of (C, *spatial) data or each feature of (D,) data.

    T is a monotone map of single entries, one for each channel or feature (`sde_gen.data.transforms`), or the identity: the map is then
    affine. The buffers `shift` and `scale` are float64, of shape (C, 1, ..., 1) or (D,), and stay float64 when a module that holds them is
    cast (`.float()`, `.half()`, `.to(torch.bfloat16)`); they follow it to its device. What is stored is what defines the map, so a
    checkpoint gives back the same one to the last bit: `Normalizer.from_config(config)` and then `load_state_dict`.

    Types of what `encode` and `decode` give:
        float64 for float64 input.
        float32 for any narrower floating-point input: states and data are never narrower.
        float64 also for `decode` where `dtype` is float64, because float32 cannot hold such data in their own units.

    Args:
        shift: float tensor (C, 1, ..., 1) or (D,), in the units of T(x).
        scale: positive, same shape, same units.
        kind: where they came from, one of "standard", "range", "robust", "identity"; it only goes with the configuration.
        dtype: torch.float32, or torch.float64 for data that float32 would round too much (`precision.needs_float64`).
        transforms: T, or None for the identity.

    Raises:
        ValueError: shapes that do not fit, or values that float32 cannot hold.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        shift: Tensor,
        scale: Tensor,
        kind: str = "standard",
        dtype: torch.dtype = torch.float32,
        transforms: Transforms | None = None,
    ) -> None:
        super().__init__()
        _check_kind(kind, KINDS)
        if dtype not in _TYPES.values():
            raise ValueError(f"dtype {dtype}; torch.float32 or torch.float64 is allowed")
        if shift.shape != scale.shape or shift.ndim < 1 or math.prod(shift.shape[1:]) != 1:
            raise ValueError(f"shift {tuple(shift.shape)} and scale {tuple(scale.shape)}; both must be (D,) or (C, 1, ..., 1)")
        for value, least in ((shift.float(), -math.inf), (scale.float(), torch.finfo(torch.float32).tiny)):
            if not bool(torch.isfinite(value).all() and (value >= least).all()):
                raise ValueError(
                    "shift and scale must be finite and scale positive as float32; rescale data whose spread is below 1e-38 or above 1e38"
                )
        if transforms is not None and len(transforms.chains) != len(shift):
            raise ValueError(f"transforms of {len(transforms.chains)} channels or columns for {len(shift)}; one chain each is needed")
        self.kind, self.dtype, self.transforms = kind, dtype, transforms
        self.register_buffer("shift", shift.to(torch.float64, copy=True))
        self.register_buffer("scale", scale.to(torch.float64, copy=True))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = (self.shift, self.scale)
        super()._apply(fn, recurse)
        if self.shift.dtype != torch.float64:  # a cast of the module around it: only the device is followed
            self.shift, self.scale = (value.to(self.shift.device) for value in before)
        return self

    @property
    def affine(self) -> bool:
        """Whether `decode` is shift + scale z, so that every entry is stretched alike wherever it is."""
        return self.transforms is None

    @classmethod
    def fit(
        cls,
        data: Tensor,
        kind: str = "standard",
        transforms: Sequence[Chain] | None = None,
        breaks: Sequence[Sequence[float]] | None = None,
        valid: Tensor | None = None,
    ) -> Normalizer:
        """The normaliser of a training set, with statistics taken in float64 from every value; `dtype` is float64 for float64 data
        that need it.

        "standard": zero mean and unit (population) standard deviation. "range": the data's smallest and largest value go to
        -1 and 1. "robust": zero median and the quartiles of a standard normal, which outliers do not move. "identity": z = x.
        The name of a transform ("log1p", "box_cox", "log", "logit", "quantile"): that one of every entry, then "standard".
        A channel or feature that is constant while others vary gets scale 1 (its shift is as ever), so that it encodes to zeros
        and adds nothing to `log_det`.

        Args:
            data: (N, D) or (N, C, *spatial).
            kind: one of `NORMALISATIONS`.
            transforms: for each channel or feature the names of its transforms in order, () for none, before the affine map of `kind`.
            breaks: of each, in the data's units, where its density may jump (see `transforms.Quantile`).
            valid: Boolean, broadcast to the data: the entries that are data, of which the statistics are taken. None: all.

        Raises:
            ValueError: unknown kind, no batch and feature dimension, NaN or Inf, nothing in the data varies, or a value that a
                transform does not take.
        """
        _check_kind(kind, NORMALISATIONS)
        if data.ndim < 2 or data.numel() == 0:
            raise ValueError(f"data of shape {tuple(data.shape)}; non-empty (N, D) or (N, C, *spatial) is needed")
        found = statistics(data, valid)
        if valid is not None and (transforms is not None or kind not in ("standard", "range", "identity")):
            data = filled(data, valid)  # so that quantiles are those of valid entries
        low, high = found.low, found.high
        if not bool(torch.isfinite(found.mean).all()):
            raise ValueError(f"data of shape {tuple(data.shape)} holds NaN or infinite values; finite numbers are needed")
        if bool((low == high).all()):
            raise ValueError(
                f"constant data: every channel or feature holds one value ({low[0]:g} in the first); data that varies is needed"
            )
        entries: Transforms | None = None
        if kind in TRANSFORMS:
            if transforms is not None:
                raise ValueError(f"normalisation {kind!r} beside transforms of each column; one of {', '.join(KINDS)} goes with them")
            kind, transforms = "standard", [(kind,)] * data.shape[1]
        if transforms is not None and any(transforms):
            values = data.detach().cpu().double().movedim(1, 0).flatten(1)
            entries = Transforms.fit(values, transforms, breaks)
            shaped = entries(values).reshape(data.shape[1], len(data), -1).movedim(0, 1).reshape(data.shape)
            found = statistics(shaped, valid)
            low, high = found.low, found.high
            data_of_kind = shaped
        else:
            data_of_kind = data
        if kind == "standard":
            shift, scale = found.mean, found.std
        elif kind == "robust":
            shift, scale = _middle(data_of_kind, found.std)
        elif kind == "range":
            shift, scale = (high + low) / 2, (high - low) / 2
        else:
            shift, scale = torch.zeros_like(low), torch.ones_like(low)
        scale = torch.where(low == high, torch.ones_like(scale), scale)
        shape = (-1, *[1] * (data.ndim - 2))
        wide = needs_float64(data, None if entries is not None else found) or (entries is not None and data.dtype == torch.float64)
        dtype = torch.float64 if wide else torch.float32
        return cls(shift.reshape(shape), scale.reshape(shape), kind, dtype, entries).to(data.device)

    def encode(self, x: Tensor) -> Tensor:
        """z = (T(x) - shift) / scale for (..., C, *spatial) or (..., D) in the data's units: float64 for float64 x, else float32.

        Raises:
            ValueError: a value that its transform does not take (a logarithm's that is not positive, say).
        """
        shift, scale, dtype = self._matched(x)
        if self.transforms is not None:
            return ((self._each(self.transforms, x) - self.shift) / self.scale).to(_at_least_float32(x.dtype))
        return ((x.to(dtype) - shift) / scale).to(_at_least_float32(x.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """x = T^-1(shift + scale z), the inverse of `encode`; nothing is clamped or rounded to whole numbers. float64 for float64 z and
        where `dtype` is float64, else float32."""
        shift, scale, dtype = self._matched(z)
        if self.transforms is not None:
            return self._each(self.transforms.inverse, self.shift + self.scale * z.double()).to(dtype)
        return shift + scale * z.to(dtype)

    def log_det(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """log |det d encode(x) / dx| of each sample of x (B, C, *spatial) or (B, D) in the data's units, float64 (B,), in nats; of its
        `valid` entries alone where these are given, Boolean and broadcast to x.

            log p_x(x) = log p_z(encode(x)) + log_det(x),   log_det(x) = sum over the entries of log T'(x) - log scale

        Raises:
            ValueError: a shape that this normaliser does not fit, or a value that its transform does not take.
        """
        shape = x.shape[1:]
        self._check_shape(shape, exact=True)
        if valid is not None:
            slope = -self.scale.log().expand(x.shape)
            slope = slope if self.transforms is None else slope + self._each(self.transforms.log_slope, x)
            return torch.where(valid, slope, 0.0).flatten(1).sum(1)
        constant = -float(self.scale.log().sum()) * math.prod(shape[1:])
        found = torch.full((len(x),), constant, dtype=torch.float64, device=x.device)
        if self.transforms is None:
            return found
        return found + self._each(self.transforms.log_slope, x).flatten(1).sum(1)

    def _each(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function` of the entries of x (..., C, *spatial) by channel, float64."""
        axis = x.ndim - self.shift.ndim
        by_channel = x.double().movedim(axis, 0)
        return function(by_channel.reshape(len(by_channel), -1)).reshape(by_channel.shape).movedim(0, axis)

    def to_config(self) -> dict[str, Any]:
        """What `from_config` needs, ready for JSON; the numbers themselves are in the state dict."""
        more: dict[str, Any] = {"dtype": "float64"} if self.dtype == torch.float64 else {}
        more |= {} if self.transforms is None else {"transforms": self.transforms.to_config()}
        return {"kind": self.kind, "shape": list(self.shift.shape), **more}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Normalizer:
        """A normaliser of the kind, shape, dtype and transforms of `to_config`, with shift 0 and scale 1 until its state dict is loaded.

        Raises:
            ValueError: missing, unknown or impossible entries.
        """
        shape: Any = config.get("shape")
        dtype = config.get("dtype", "float32")
        sizes = isinstance(shape, (list, tuple)) and all(type(n) is int and n > 0 for n in shape)
        if not {"kind", "shape"} <= set(config) <= {"kind", "shape", "dtype", "transforms"} or not sizes or dtype not in _TYPES:
            raise ValueError(
                f"normaliser configuration {config!r}; {{'kind': one of {', '.join(KINDS)}, 'shape': [C, 1, ...]}} is needed, and "
                f"'dtype' may be one of {', '.join(_TYPES)}"
            )
        _check_kind(config["kind"], KINDS)
        transforms = Transforms.from_config(config["transforms"]) if "transforms" in config else None
        return cls(torch.zeros(shape), torch.ones(shape), config["kind"], _TYPES[dtype], transforms)

    def extra_repr(self) -> str:
        chains = {} if self.transforms is None else {"+".join(chain) for chain in self.transforms.chains if chain}
        after = f", transforms={', '.join(sorted(chains))}" if chains else ""
        return f"kind={self.kind!r}, shape={tuple(self.shift.shape)}{after}"

    def _matched(self, x: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
        if not x.is_floating_point():
            raise TypeError(f"values of {x.dtype}; a floating-point tensor is needed (integers would be truncated)")
        self._check_shape(x.shape, exact=False)
        dtype = torch.promote_types(_at_least_float32(x.dtype), self.dtype)
        return self.shift.to(dtype), self.scale.to(dtype), dtype

    def _check_shape(self, shape: Sequence[int], exact: bool) -> None:
        # Without this a (B, 1) tensor would broadcast to (B, D) silently.
        rank = self.shift.ndim
        if len(shape) < rank or (exact and len(shape) != rank) or shape[-rank] != self.shift.shape[0]:
            wanted = ", ".join([str(self.shift.shape[0]), *["any"] * (rank - 1)])
            raise ValueError(f"shape {tuple(shape)} does not fit this normaliser; {'' if exact else '..., '}{wanted} is needed")


def _middle(data: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Median of each channel, and the distance of its quartiles over a standard normal's, or its standard deviation where that is 0."""
    rows = data.detach().cpu().double().movedim(1, 0).flatten(1).sort(1).values
    low, middle, high = (rows[:, min(int(share * rows.shape[1]), rows.shape[1] - 1)] for share in (0.25, 0.5, 0.75))
    return middle, torch.where(high > low, (high - low) / QUARTILES, std)


def _check_kind(kind: str, allowed: Sequence[str]) -> None:
    if kind not in allowed:
        raise ValueError(f"normalisation {kind!r} is unknown; allowed: {', '.join(allowed)}")


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
