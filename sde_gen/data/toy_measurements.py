"""Made-up measurements of the kinds that come as files: spectrograms and volumes whose laws are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.dataset import Dataset

BINS, FRAMES, FLOOR = 128, 256, -80.0
"""Of a spectrogram: frequencies, times, and the level (dB) below which nothing is shown."""
LOW, HIGH, DECAY = 12.0, 52.0, 25.0
"""Bins between which a chirp begins and ends, and the most (dB) that it loses over the time."""
_WIDTH, _OVERTONE = 3.0, -15.0
VOXELS, VOLUME_MEAN, VOLUME_STD, CORRELATION = 12, 1000.0, 150.0, 2.0
"""Of a volume: edge, mean, standard deviation, and the length (voxels) over which it is correlated."""
_CHIRPS, _VOLUMES, _HELD_OUT = 1000, 4000, 200


def chirp_spectrogram(begin: Tensor, end: Tensor, decay: Tensor) -> Tensor:
    """Levels in dB, (N, 1, 128, 256), of chirps whose frequency goes in a line from bin `begin` to bin `end`, with an overtone 15 dB below.

    S(f, t) = max(-80, 10 log10(e^{-(f - f(t))^2/w^2} + 10^{-1.5} e^{-(f - 2 f(t))^2/w^2}) - decay t)   with w = 3 bins: what a Gaussian
    window gives of a chirp. `decay`: (N,), dB over the whole time; N chirps.
    """
    time = torch.linspace(0, 1, FRAMES).to(begin)
    bins = torch.arange(BINS).to(begin)[:, None]
    line = (begin[:, None] + (end - begin)[:, None] * time)[:, None]  # (N, 1, 256)
    tone, overtone = (-((bins - k * line) ** 2) / _WIDTH**2 for k in (1, 2))
    level = 10 / math.log(10) * torch.logaddexp(tone, overtone + _OVERTONE * math.log(10) / 10) - (decay[:, None] * time)[:, None]
    return level.clamp_min(FLOOR)[:, None]


def spectrograms(root: Path | None = None, seed: int = 0) -> Dataset:
    """1,000 spectrograms (1, 128, 256) in dB of `chirp_spectrogram`, with frequencies uniform in 12 .. 52 bins and a decay uniform in
    0 .. 25 dB; 200 held out. `root` is not read."""
    rng = np.random.default_rng(seed)
    begin, end, decay = torch.from_numpy(rng.random((3, _CHIRPS + _HELD_OUT), dtype=np.float32))
    span = HIGH - LOW
    of_parts = zip((LOW + span * begin).split(100), (LOW + span * end).split(100), (DECAY * decay).split(100), strict=True)
    x = torch.cat([chirp_spectrogram(*part) for part in of_parts])
    return Dataset("spectrograms", x[:_CHIRPS], x[_CHIRPS:], value_range=(FLOOR, 0.0))


def volume_spectrum() -> Tensor:
    """Variance, float64 (12, 12, 12), of each of the discrete Fourier coefficients (orthonormal) of a volume of `volumes` about its mean:
    proportional to (1 + (2 pi l k)^2)^{-2} for the frequency k in cycles a voxel and l = 2 voxels, with a mean of 150^2: Matern's of order
    1/2 (Whittle 1954), which without a grid and without ends has the correlation e^{-r/l}."""
    k = torch.fft.fftfreq(VOXELS, dtype=torch.float64)
    square = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    power = (1 + (2 * math.pi * CORRELATION) ** 2 * square) ** -2
    return VOLUME_STD**2 * power / power.mean()


def volumes(root: Path | None = None, seed: int = 0) -> Dataset:
    """4,000 stationary Gaussian random fields (1, 12, 12, 12), periodic, of mean 1000, standard deviation 150 and the spectrum
    `volume_spectrum`; 200 held out. `root` is not read."""
    rng = np.random.default_rng(seed)
    white = torch.from_numpy(rng.standard_normal((_VOLUMES + _HELD_OUT, VOXELS, VOXELS, VOXELS), dtype=np.float32))
    axes = (-3, -2, -1)
    shaped = torch.fft.fftn(white, dim=axes) * volume_spectrum().sqrt().float()
    x = (VOLUME_MEAN + torch.fft.ifftn(shaped, dim=axes).real)[:, None]
    return Dataset("volumes", x[:_VOLUMES], x[_VOLUMES:], value_range=(VOLUME_MEAN - 3 * VOLUME_STD, VOLUME_MEAN + 3 * VOLUME_STD))
