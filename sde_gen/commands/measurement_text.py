"""Operators and noise as the command line writes them: "mask box 4", "0.1"."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..data.write import DataDescription
from ..inverse import Blur, Crop, Downsample, Gaussian, Grey, Mask, Matrix, Noise, Operator, Poisson, Quantised
from ..models.denoiser import Denoiser, is_affine

Shape = tuple[int, ...]


def _box(shape: Shape, *sizes: int, outside: bool = False) -> Mask:
    return Mask.box(shape, sizes[0] if len(sizes) == 1 else sizes, outside)


def _crop(shape: Shape, *ends: int) -> Crop:
    if len(ends) % 2:
        raise ValueError(f"a window is two numbers, LOW HIGH, got {len(ends)} numbers")
    return Crop(*zip(ends[::2], ends[1::2], strict=True))


def _matrix(shape: Shape, file: str) -> Matrix:
    try:
        entries = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as an .npy matrix ({' '.join(str(error).split())[:80]})") from error
    return Matrix(torch.as_tensor(np.asarray(entries, dtype=np.float64)), shape)


OPERATORS: dict[str, tuple[str, tuple[type, ...], int, Callable[..., Operator]]] = {
    "mask box": ("mask box SIZE ...", (int,) * 3, 1, _box),
    "mask random": ("mask random SHARE [SEED]", (float, int), 1, Mask.random),
    "outpaint": ("outpaint SIZE ...", (int,) * 3, 1, lambda shape, *sizes: _box(shape, *sizes, outside=True)),
    "gaps": ("gaps", (), 0, lambda shape: Mask()),
    "denoise": ("denoise", (), 0, lambda shape: Mask()),
    "grey": ("grey", (), 0, lambda shape: Grey()),
    "downsample": ("downsample FACTOR", (int,), 1, lambda shape, factor: Downsample(factor)),
    "blur": ("blur PIXELS", (float,), 1, lambda shape, std: Blur(std)),
    "crop": ("crop LOW HIGH ...", (int,) * 6, 2, _crop),
    "matrix": ("matrix FILE.npy", (str,), 1, _matrix),
}
"""By the first words: how it is written, the kinds of what follows, how many of these are needed, and the operator for a data shape."""


def parse_operator(text: str) -> tuple[str, Callable[[Shape], Operator]]:
    """The name of the operator that `text` asks for, such as "mask box 4", and a function that makes it for a data shape.

    ValueError, in one line, for a text that asks for none; that of the operator where it does not fit the data.
    """
    words = text.split()
    name = next((key for key in sorted(OPERATORS, key=len, reverse=True) if words[: len(key.split())] == key.split()), None)
    if name is None:
        raise ValueError(f"--operator {text!r}: choose from {', '.join(usage for usage, *_ in OPERATORS.values())}")
    usage, kinds, least, make = OPERATORS[name]
    given = words[len(name.split()) :]
    try:
        if not least <= len(given) <= len(kinds):
            raise ValueError
        values = [kind(word) for kind, word in zip(kinds, given, strict=False)]
    except ValueError:
        raise ValueError(f"--operator {text!r}: {usage} is needed") from None

    def build(shape: Shape) -> Operator:
        try:
            operator = make(shape, *values)
            operator(torch.zeros(2, *shape))
        except (ValueError, IndexError, RuntimeError) as error:
            raise ValueError(f"--operator {text!r} does not fit data of shape {'x'.join(map(str, shape))}: {error}") from error
        return operator

    return name, build


def parse_noise(text: str) -> Callable[[Operator, Shape, Tensor, str], tuple[Noise, str]]:
    """What makes the noise that `text` asks for, with a line about it, of the operator, the data's shape, their spread and its name.

    A number is Gaussian noise of that share of the spread; "gaussian STD", "poisson GAIN" and "quantised STEP STD" are in the data's units.
    ValueError, in one line, for any other text.
    """
    words = text.split()
    kinds: dict[str, tuple[int, Callable[..., Noise]]] = {"gaussian": (1, Gaussian), "poisson": (1, Poisson), "quantised": (2, Quantised)}
    try:
        if len(words) == 1:
            share = float(words[0])
            if not (math.isfinite(share) and share >= 0):
                raise ValueError
            return lambda operator, shape, spread, name: _share(operator, shape, spread, name, share)
        count, kind = kinds[words[0]]
        numbers = [float(word) for word in words[1:]]
        if len(numbers) != count:
            raise ValueError
    except (ValueError, KeyError):
        asked = "a share of the data's range >= 0, gaussian STD, poisson GAIN, quantised STEP STD"
        raise ValueError(f"--noise {text!r}: choose from {asked}") from None
    try:
        noise = kind(*numbers)
    except ValueError as error:
        raise ValueError(f"--noise {text!r}: {error}") from error
    return lambda operator, shape, spread, name: (noise, f"{text}, in the data's units")


def _share(operator: Operator, shape: Shape, spread: Tensor, name: str, share: float) -> tuple[Noise, str]:
    if not share:
        return Gaussian(0.0), "none"
    if not spread.ndim:
        return Gaussian(share * float(spread)), f"std {share * float(spread):.4g}, {share:g} of {name}"
    if not isinstance(operator, Mask):  # as the operator passes on entries that vary by themselves
        mixed = operator.matrix(shape).square() @ spread.flatten().square()
        spread = mixed.sqrt().reshape(operator(torch.zeros(1, *shape)).shape[1:])
    return Gaussian(share * spread), f"{share:g} of {name}"


def spread_of(about: DataDescription, model: Denoiser) -> tuple[Tensor, str]:
    """What a share of noise is a share of: of vectors each entry's standard deviation (D,), of all others the data's range ()."""
    scale = getattr(model.normalizer, "scale", None)
    if len(about.shape) == 1 and isinstance(scale, Tensor) and is_affine(model.normalizer):
        return scale.detach().cpu().double(), "each column's standard deviation"
    low, high = about.value_range
    return torch.tensor(high - low, dtype=torch.float64), f"the data's range {low:.4g} .. {high:.4g}"
