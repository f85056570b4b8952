"""Toys with exact truth, drawn from the seed: points in the plane, signals, a table, volumes, and two that follow from conditions."""

from __future__ import annotations

import functools
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
_PATIENTS = 20_000
FIELD_EDGE, FIELD_BLOCK = 16, 4
_FIELD_MEAN, _FIELD_STD, _FIELD_LENGTH = 15.0, 4.0, 3.0
_FIELDS = 20_000


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


def response_law(dose: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a response of `regression` at doses and ages of one shape: 50 + age/5 sin(dose), 1 + 3/10 dose."""
    return 50 + age / 5 * dose.sin(), 1 + 0.3 * dose


def regression(root: Path | None = None, seed: int = 0) -> Dataset:
    """Responses (1,) to a dose, uniform in 0 .. 10, and an age, uniform in 20 .. 80, which are the conditions "dose" and "age".

    A response is normal with the mean and the standard deviation that `response_law` gives: 20,000 of them, 2,000 held out. `root` is not
    read.
    """
    rng = np.random.default_rng(seed)
    total = _PATIENTS + _TEST
    dose, age = (torch.from_numpy(low + span * rng.random(total)) for low, span in ((0.0, 10.0), (20.0, 60.0)))
    mean, std = response_law(dose, age)
    y = (mean + std * torch.from_numpy(rng.standard_normal(total))).float()[:, None]
    cond = {"dose": dose, "age": age}
    train, test = ({name: value[rows] for name, value in cond.items()} for rows in (slice(_PATIENTS), slice(_PATIENTS, None)))
    return Dataset("regression", y[:_PATIENTS], y[_PATIENTS:], cond=train, test_cond=test)


@functools.cache
def _field_covariance() -> Tensor:
    """Of a field's 256 values, float64: 4^2 (1 + r) e^-r with r = sqrt(3) distance/3 (Matern, order 3/2)."""
    axis = torch.arange(FIELD_EDGE, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    r = math.sqrt(3) * torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") / _FIELD_LENGTH
    return _FIELD_STD**2 * (1 + r) * (-r).exp()


def block_means(fields: Tensor) -> Tensor:
    """Means over blocks of 4 x 4 points: (N, 1, 16, 16) to (N, 1, 4, 4)."""
    return fields.unflatten(3, (-1, FIELD_BLOCK)).unflatten(2, (-1, FIELD_BLOCK)).mean((3, 5))


def fine_law(coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, 1, 16, 16) and covariance (256, 256), float64, of the fields of `downscale` whose block means are `coarse` (N, 1, 4, 4):

    m + C A^T (A C A^T)^-1 (coarse - m),   C - C A^T (A C A^T)^-1 A C      for block means A
    """
    covariance = _field_covariance()
    rows = block_means(torch.eye(FIELD_EDGE**2, dtype=torch.float64).reshape(-1, 1, FIELD_EDGE, FIELD_EDGE)).flatten(1).T  # A
    gain = torch.linalg.solve(rows @ covariance @ rows.T, rows @ covariance).T
    mean = _FIELD_MEAN + (coarse.double().flatten(1) - _FIELD_MEAN) @ gain.T
    return mean.reshape(-1, 1, FIELD_EDGE, FIELD_EDGE), covariance - gain @ rows @ covariance


def downscale(root: Path | None = None, seed: int = 0) -> Dataset:
    """Gaussian random fields (1, 16, 16) of mean 15 and standard deviation 4 whose 4 x 4 block means are the condition "coarse".

    They are stationary, with the covariance 16 (1 + r) e^-r, r = sqrt(3) distance/3; `fine_law` gives the law of a field under its
    condition. There are 20,000 of them, and 2,000 held out. `root` is not read.
    """
    rng = np.random.default_rng(seed)
    root_of = torch.linalg.cholesky(_field_covariance()).float()
    white = torch.from_numpy(rng.standard_normal((_FIELDS + _TEST, FIELD_EDGE**2), dtype=np.float32))
    fields = (_FIELD_MEAN + white @ root_of.T).reshape(-1, 1, FIELD_EDGE, FIELD_EDGE)
    coarse = block_means(fields)
    train, test = ({"coarse": coarse[rows]} for rows in (slice(_FIELDS), slice(_FIELDS, None)))
    return Dataset("downscale", fields[:_FIELDS], fields[_FIELDS:], value_range=(3.0, 27.0), cond=train, test_cond=test)


def _split(name: str, points: np.ndarray, labels: np.ndarray | None, classes: int | None) -> Dataset:
    x = torch.from_numpy(points).float()
    y = None if labels is None else torch.from_numpy(labels).long()
    y_train, y_test = (None, None) if y is None else (y[:_TRAIN], y[_TRAIN:])
    return Dataset(name, x[:_TRAIN], x[_TRAIN:], y_train, y_test, classes=classes)
