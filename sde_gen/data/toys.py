"""Two-dimensional toys, 10,000 points for training and 2,000 held out, drawn from the seed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.dataset import Dataset

_TRAIN, _TEST = 10_000, 2_000
_RADIUS, _STD = 4.0, 0.25  # of gaussians8
_MOONS_NOISE = 0.05


def gaussians8_centres() -> Tensor:
    """Centres of the eight modes of `gaussians8`, (8, 2) float32; row i is the mode labelled i."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    return (_RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)).float()


def gaussians8(root: Path | None = None, seed: int = 0) -> Dataset:
    """Eight equal Gaussians of standard deviation 0.25 on a circle of radius 4; the label is the mode. `root` is not read."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(8, size=_TRAIN + _TEST)
    points = gaussians8_centres().double().numpy()[labels] + _STD * rng.standard_normal((_TRAIN + _TEST, 2))
    return replace(_split("gaussians8", points, labels, classes=8), modes=gaussians8_centres().float())


def moons(root: Path | None = None, seed: int = 0) -> Dataset:
    """Two interleaved half circles of radius 1 with Gaussian noise of 0.05; the label is the moon. `root` is not read."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=_TRAIN + _TEST)
    angle = np.pi * rng.random(_TRAIN + _TEST)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.stack([1.0 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    points = np.where(labels[:, None] == 0, upper, lower) + _MOONS_NOISE * rng.standard_normal((_TRAIN + _TEST, 2))
    return _split("moons", points, labels, classes=2)


def checkerboard(root: Path | None = None, seed: int = 0) -> Dataset:
    """Uniform on the eight dark squares, 2 x 2 each, of a 4 x 4 board over [-4, 4]^2; no labels. `root` is not read."""
    rng = np.random.default_rng(seed)
    column = rng.integers(4, size=_TRAIN + _TEST)
    row = 2 * rng.integers(2, size=_TRAIN + _TEST) + column % 2
    points = 2.0 * (np.stack([column, row], axis=1) + rng.random((_TRAIN + _TEST, 2))) - 4.0
    return _split("checkerboard", points, None, classes=None)


def _split(name: str, points: np.ndarray, labels: np.ndarray | None, classes: int | None) -> Dataset:
    x = torch.from_numpy(points).float()
    y = None if labels is None else torch.from_numpy(labels).long()
    y_train, y_test = (None, None) if y is None else (y[:_TRAIN], y[_TRAIN:])
    return Dataset(name, x[:_TRAIN], x[_TRAIN:], y_train, y_test, classes=classes)
