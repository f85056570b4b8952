"""Toys with exact truth, drawn from the seed: points in the plane, signals, a table and volumes."""

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
SINES_LENGTH, SINES_CYCLES = 64, 5
_SKEW = 0.6  # standard deviation of the logarithm of the table's third column
_TABLE_MODES, _TABLE_STD = (20.0, 60.0), 4.0  # of its fourth
BLOB_EDGE, BLOB_WIDTH, BLOB_MARGIN = 12, 1.6, 3.0
_BLOBS_TRAIN, _BLOBS_TEST = 4_000, 500


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


def sines(root: Path | None = None, seed: int = 0) -> Dataset:
    """Signals (1, 64): sin(2 pi 5 i/64 + phase) with uniform phase, so that all power is at 5 cycles. `root` is not read."""
    rng = np.random.default_rng(seed)
    phase = 2 * np.pi * rng.random((_TRAIN + _TEST, 1, 1))
    signals = np.sin(2 * np.pi * SINES_CYCLES * np.arange(SINES_LENGTH) / SINES_LENGTH + phase)
    return replace(_split("sines", signals, None, classes=None), value_range=(-1.0, 1.0))


def table(root: Path | None = None, seed: int = 0) -> Dataset:
    """A table of four columns in units of their own, made of normal u, v, w with corr(u, v) = 0.8; `root` is not read.

    height = 170 + 10 u, weight = 70 + 12 v, income = 3000 exp(0.6 (u + w)/sqrt(2)) (log-normal), and age = 20 or 60, whichever has
    the sign of v (- or +), with normal noise of 4: correlated, one marginal skewed, one with two modes.
    """
    rng = np.random.default_rng(seed)
    u, w, z, noise = rng.standard_normal((4, _TRAIN + _TEST))
    v = 0.8 * u + 0.6 * z
    age = np.where(v < 0, *_TABLE_MODES) + _TABLE_STD * noise
    columns = [170 + 10 * u, 70 + 12 * v, 3000 * np.exp(_SKEW * (u + w) / math.sqrt(2)), age]
    return _split("table", np.stack(columns, axis=1), None, classes=None)


def blob(centres: Tensor) -> Tensor:
    """Soft balls exp(-|r - centre|^2/(2 1.6^2)) on a grid of 12 x 12 x 12 voxels: centres (N, 3) give (N, 1, 12, 12, 12)."""
    grid = torch.arange(BLOB_EDGE).to(centres)
    lines = torch.exp(-((grid - centres[..., None]) ** 2) / (2 * BLOB_WIDTH**2))  # (N, 3, 12): the ball is a product of three
    return (lines[:, 0, :, None, None] * lines[:, 1, None, :, None] * lines[:, 2, None, None, :])[:, None]


def blobs3d(root: Path | None = None, seed: int = 0) -> Dataset:
    """4,000 volumes (1, 12, 12, 12) of one soft ball each (`blob`), its centre uniform in [3, 8]^3; 500 held out. `root` is not read."""
    rng = np.random.default_rng(seed)
    span = BLOB_EDGE - 1 - 2 * BLOB_MARGIN
    volumes = blob(torch.from_numpy(BLOB_MARGIN + span * rng.random((_BLOBS_TRAIN + _BLOBS_TEST, 3)))).float()
    return Dataset("blobs3d", volumes[:_BLOBS_TRAIN], volumes[_BLOBS_TRAIN:], value_range=(0.0, 1.0))


def _split(name: str, points: np.ndarray, labels: np.ndarray | None, classes: int | None) -> Dataset:
    x = torch.from_numpy(points).float()
    y = None if labels is None else torch.from_numpy(labels).long()
    y_train, y_test = (None, None) if y is None else (y[:_TRAIN], y[_TRAIN:])
    return Dataset(name, x[:_TRAIN], x[_TRAIN:], y_train, y_test, classes=classes)
