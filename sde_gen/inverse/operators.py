"""What is measured of data: operators on tensors of any rank, in the data's own units."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Operator(ABC):
    """A map from data x (B, *data shape), in their own units, to measurements (B, *measured shape); a subclass gives `apply`.

    linear: whether A(x) is linear in x, with A(0) = 0.

    An operator has no device of its own: it works where x is, in x's dtype.
    """

    linear: bool = True

    def __init__(self) -> None:
        self._placed: dict[tuple[Any, ...], Tensor] = {}

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """A(x), (B, *measured shape), differentiable in x."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.apply(x)

    def adjoint(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """A^T y of a linear operator, for data of this sample shape: (B, *measured shape) to (B, *shape); by automatic differentiation
        where a subclass has no closed form."""
        outside = torch.is_grad_enabled()
        with torch.enable_grad():
            x = torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device, requires_grad=True)
            return torch.autograd.grad(self.apply(x), x, y, create_graph=outside)[0]

    def kept(self, shape: Sequence[int]) -> Tensor | None:
        """Which entries of a measurement are measured, bool, of the measured shape; None: all."""
        return None

    def data_shape(self, measured: Sequence[int]) -> Shape | None:
        """The data's sample shape that belongs to this measured shape; None where the operator cannot know it."""
        return None

    def matrix(self, shape: Sequence[int], dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """A linear operator as a matrix over flattened samples, (M, D); ValueError for one that is not linear."""
        if not self.linear:
            raise ValueError(f"{type(self).__name__} is not linear and has no matrix")
        dim = math.prod(shape)
        with torch.no_grad():
            return self.apply(torch.eye(dim, dtype=dtype, device=device).reshape(dim, *shape)).flatten(1).T

    def placed(self, name: str, x: Tensor) -> Tensor:
        """The attribute `name` on x's device, in x's dtype unless it is bool; moved once."""
        value: Tensor = getattr(self, name)
        key = (name, x.device, x.dtype)
        if key not in self._placed:
            self._placed[key] = value.to(x.device) if value.dtype == torch.bool else value.to(x.device, x.dtype)
        return self._placed[key]


class Matrix(Operator):
    """y = M x over flattened samples: (B, M).

    matrix: (M, D) floating.
    shape: of one sample of the data; None: (D,).
    """

    def __init__(self, matrix: Tensor, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        if not isinstance(matrix, Tensor) or matrix.ndim != 2 or not matrix.is_floating_point():
            raise ValueError(f"matrix must be a floating-point tensor (M, D), got {_told(matrix)}")
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("matrix must be finite")
        self.entries = matrix.double()
        self.shape = (matrix.shape[1],) if shape is None else tuple(shape)
        if math.prod(self.shape) != matrix.shape[1]:
            raise ValueError(f"a matrix {tuple(matrix.shape)} takes samples of {matrix.shape[1]} numbers, not of shape {self.shape}")

    def apply(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this Matrix takes samples of shape {self.shape}, got {tuple(x.shape[1:])}")
        return x.flatten(1) @ self.placed("entries", x).T

    def adjoint(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        return (y @ self.placed("entries", y)).reshape(len(y), *shape)

    def data_shape(self, measured: Sequence[int]) -> Shape:
        return self.shape


class Mask(Operator):
    """y = x where `mask` is True; elsewhere nothing is measured, and what y holds there (NaN, 0, anything) is not looked at.

    mask: bool, of one sample's shape or broadcast to it, such as (H, W) for (C, H, W); None: everything is measured but for the NaN of y.
        Gaps that differ from sample to sample are NaN in y.
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.mask = torch.ones((), dtype=torch.bool) if mask is None else torch.as_tensor(mask)
        if self.mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True where the data are measured, got {self.mask.dtype}")
        if not bool(self.mask.any()):
            raise ValueError("mask is False everywhere: nothing is measured")

    @classmethod
    def box(cls, shape: Sequence[int], size: int | Sequence[int], outside: bool = False) -> Mask:
        """A box in the middle of the spatial axes of samples (C, *spatial) is hidden; with `outside` all but the box is (outpainting).

        size: the box's width along each axis, or one number for all.
        """
        spatial = tuple(shape[1:])
        sizes = (size,) * len(spatial) if isinstance(size, int) else tuple(size)
        if not spatial or len(sizes) != len(spatial) or any(not 0 < width < length for width, length in zip(sizes, spatial, strict=True)):
            raise ValueError(f"a box must be smaller than the spatial axes {spatial} of the data and have a width for each, got {sizes}")
        hidden = torch.zeros(tuple(shape), dtype=torch.bool)
        hidden[(slice(None), *(slice((n - w) // 2, (n - w) // 2 + w) for n, w in zip(spatial, sizes, strict=True)))] = True
        return cls(hidden if outside else ~hidden)

    @classmethod
    def random(cls, shape: Sequence[int], share: float, seed: int = 0) -> Mask:
        """A random share of the pixels of samples (C, *spatial), or of the entries of (D,), is hidden; all channels of a pixel alike."""
        if not 0 < share < 1:
            raise ValueError(f"the hidden share must be in (0, 1), got {share!r}")
        places = tuple(shape[1:]) if len(shape) > 1 else tuple(shape)
        count = math.prod(places)
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: max(1, min(count - 1, round(share * count)))]
        measured = torch.ones(count, dtype=torch.bool)
        measured[chosen] = False
        return cls(measured.reshape(places).expand(tuple(shape)).clone())

    def apply(self, x: Tensor) -> Tensor:
        self._fits(x.shape[1:])
        return x * self.placed("mask", x)

    def adjoint(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y * self.placed("mask", y)

    def kept(self, shape: Sequence[int]) -> Tensor:
        self._fits(shape)
        return self.mask.expand(tuple(shape))

    def _fits(self, shape: Sequence[int]) -> None:
        try:
            fits = torch.broadcast_shapes(self.mask.shape, tuple(shape)) == tuple(shape)
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"a mask of shape {tuple(self.mask.shape)} does not fit samples of shape {tuple(shape)}")

    def data_shape(self, measured: Sequence[int]) -> Shape:
        return tuple(measured)


class Grey(Operator):
    """The weighted mean of the channels: (C, *spatial) to (1, *spatial). To invert it is to colour.

    weights: one for each channel; None: equal ones that sum to 1.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.weights = None if weights is None else torch.tensor(list(weights), dtype=torch.float64)

    def apply(self, x: Tensor) -> Tensor:
        if x.ndim < 3:
            raise ValueError(f"Grey takes samples (C, *spatial), got shape {tuple(x.shape[1:])}")
        if self.weights is None:
            return x.mean(1, keepdim=True)
        if len(self.weights) != x.shape[1]:
            raise ValueError(f"Grey has weights for {len(self.weights)} channels, the data have {x.shape[1]}")
        return (x * self.placed("weights", x).reshape(-1, *[1] * (x.ndim - 2))).sum(1, keepdim=True)

    def data_shape(self, measured: Sequence[int]) -> Shape | None:
        return None if self.weights is None else (len(self.weights), *measured[1:])


class Downsample(Operator):
    """The mean over blocks of `factor` along each spatial axis: (C, *spatial) to (C, *spatial/factor)."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
            raise ValueError(f"factor must be a whole number of at least 2, got {factor!r}")
        self.factor = factor

    def apply(self, x: Tensor) -> Tensor:
        if x.ndim < 3 or any(n % self.factor for n in x.shape[2:]):
            raise ValueError(f"Downsample({self.factor}) takes (C, *spatial) with spatial axes that it divides, got {tuple(x.shape[1:])}")
        for axis in range(2, x.ndim):
            x = x.unflatten(axis, (-1, self.factor)).mean(axis + 1)
        return x

    def data_shape(self, measured: Sequence[int]) -> Shape:
        return (measured[0], *(self.factor * n for n in measured[1:]))


class Blur(Operator):
    """A Gaussian blur along each spatial axis of (C, *spatial), of standard deviation `std` pixels; at the border the weights that remain
    sum to 1, so that a constant stays one."""

    def __init__(self, std: float) -> None:
        super().__init__()
        if isinstance(std, bool) or not isinstance(std, int | float) or not (math.isfinite(std) and std > 0):
            raise ValueError(f"std must be a positive number of pixels, got {std!r}")
        self.std = float(std)

    def apply(self, x: Tensor) -> Tensor:
        if x.ndim < 3:
            raise ValueError(f"Blur takes samples (C, *spatial), got shape {tuple(x.shape[1:])}")
        for axis in range(2, x.ndim):
            place = torch.arange(x.shape[axis], dtype=torch.float64)
            weights = torch.exp(-0.5 * ((place[:, None] - place) / self.std) ** 2)
            rows = (weights / weights.sum(1, keepdim=True)).to(x.device, x.dtype)
            x = torch.movedim(torch.movedim(x, axis, -1) @ rows.T, -1, axis)
        return x

    def data_shape(self, measured: Sequence[int]) -> Shape:
        return tuple(measured)


class FourierMask(Operator):
    """Some frequencies of the orthonormal Fourier transform over the spatial axes of (C, *spatial): compressed sensing, magnetic resonance.

    mask: bool, of the spatial shape, True for the frequencies that are measured, in the order of `torch.fft.fftn`.

    y is (C, *spatial, 2), real and imaginary part. Of real data a frequency and its negative say the same: a mask that holds both
    measures it twice, each time with noise of its own.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = torch.as_tensor(mask)
        if self.mask.dtype != torch.bool or not bool(self.mask.any()):
            raise ValueError(f"mask must be bool with at least one frequency that is measured, got {_told(self.mask)}")

    def apply(self, x: Tensor) -> Tensor:
        self._fits(x.shape[1:])
        spectrum = torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")
        return torch.view_as_real(spectrum) * self.placed("mask", x)[..., None]

    def kept(self, shape: Sequence[int]) -> Tensor:
        self._fits(shape)
        return self.mask[..., None].expand(*shape, 2)

    def _fits(self, shape: Sequence[int]) -> None:
        if tuple(self.mask.shape) != tuple(shape[1:]):
            raise ValueError(f"a mask of {tuple(self.mask.shape)} frequencies does not fit samples of shape {tuple(shape)}")

    def data_shape(self, measured: Sequence[int]) -> Shape:
        return tuple(measured[:-1])


class Crop(Operator):
    """A window of the last axes: Crop((lo, hi)) keeps x[..., lo:hi], Crop((a, b), (c, d)) keeps x[..., a:b, c:d]."""

    def __init__(self, *windows: tuple[int, int]) -> None:
        super().__init__()
        if not windows or any(len(window) != 2 or not 0 <= window[0] < window[1] for window in windows):
            raise ValueError(f"Crop takes windows (lo, hi) with 0 <= lo < hi, got {windows!r}")
        self.windows = tuple((int(lo), int(hi)) for lo, hi in windows)

    def apply(self, x: Tensor) -> Tensor:
        lengths = x.shape[1:][-len(self.windows) :]
        if len(lengths) < len(self.windows) or any(hi > n for (_, hi), n in zip(self.windows, lengths, strict=True)):
            raise ValueError(f"windows {self.windows} do not lie inside samples of shape {tuple(x.shape[1:])}")
        places: tuple[Any, ...] = (..., *(slice(lo, hi) for lo, hi in self.windows))
        return x[places]


class Function(Operator):
    """Any differentiable function of data (B, *data shape) to (B, *measured shape); the adjoint is found by automatic differentiation.

    linear: that it is linear with A(0) = 0, which `Measurement` checks.
    shape: of one sample of the data, where it is not that of the model's moments.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], linear: bool = False, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"Function takes a function of a tensor, got {type(function).__name__}")
        self.function, self.linear = function, linear
        self.shape = None if shape is None else tuple(shape)

    def apply(self, x: Tensor) -> Tensor:
        return self.function(x)

    def data_shape(self, measured: Sequence[int]) -> Shape | None:
        return self.shape


def _told(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
