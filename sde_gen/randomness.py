"""Per-sample noise: the only place that draws sampling noise.

The noise of a sample is a function of (seed, sample index, draw), so that it does not depend on the batch that the sample
is in, nor on which process computes it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK, _CHUNK_OF_DEVICE = 4096, 1 << 15
"""Numbers drawn ahead for each sample, on the CPU and on other devices: many small draws in one call, one large draw at a time. On a
device a call is some sixty kernels, whose start would cost as much as a network's call if each draw had them to itself."""
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >= 1 << 63 else value


_C1, _C2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_GOLDEN = _signed(0x9E3779B97F4A7C15)


def splitmix64(z: Tensor) -> Tensor:
    """The splitmix64 finaliser on int64 tensors: a bijection whose output bits look independent (Steele et al. 2014)."""
    # torch shifts arithmetically, so the sign's copies are masked away.
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _C1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _C2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def check_seed(seed: int) -> int:
    """`seed` if it is an integer in [0, 2^63), else ValueError or TypeError in one line."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    return seed


class NoiseStream:
    """Standard normal draws of shape (B, *shape) for the samples `start` .. `start + count - 1` of one seed.

    On the CPU each sample owns a Mersenne Twister, seeded by a bijection of its index (no two samples of one seed share a
    stream); on other devices a counter-based generator computes all samples in a few launches, with no state on the host.
    Draws are float64 for float64 states, float32 for every other dtype, then cast.
    """

    def __init__(self, seed: int, start: int, count: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = (count, *shape)
        self.dtype, self.device = dtype, device
        self.size = math.prod(shape)
        self._width = torch.float64 if dtype == torch.float64 else torch.float32
        self._ahead = max(1, min(64, (_CHUNK if device.type == "cpu" else _CHUNK_OF_DEVICE) // max(1, self.size)))
        self._drawn = torch.empty(0, 0)
        self._buffer: tuple[Tensor, ...] = ()
        self._used = self._ahead
        self._block = 0
        index = torch.arange(start, start + count, dtype=torch.int64)
        # Every bit of the seed moves the start of the stream; indices are then distinct for any one seed.
        base = splitmix64(torch.tensor(_signed(check_seed(seed) + 0x5DEECE66D), dtype=torch.int64))
        if device.type == "cpu":
            self._generators = [torch.Generator().manual_seed(value) for value in _twist32(int(base) + index).tolist()]
        else:
            self._keys = splitmix64(splitmix64(base + index * _GOLDEN) ^ base).to(device)

    def draw(self) -> Tensor:
        """The next draw, shape (B, *shape)."""
        if self._used == self._ahead:
            self._drawn = self._fill()
            self._buffer = self._drawn.unbind(1)
            self._used = 0
        noise = self._buffer[self._used]
        self._used += 1
        return noise

    @property
    def memory(self) -> tuple[Tensor, Tensor]:
        """On other devices than the CPU: what later draws are made of besides their count."""
        return self._keys, self._drawn

    def with_memory(self, memory: Sequence[Tensor]) -> NoiseStream:
        """The stream from here on, with these tensors in the place of `memory`: whoever overwrites them changes its draws."""
        twin = copy.copy(self)
        twin._keys, twin._drawn = memory
        twin._buffer = twin._drawn.unbind(1)
        return twin

    def _fill(self) -> Tensor:
        count, ahead = self.shape[0], self._ahead
        if self.device.type == "cpu":
            block = torch.empty(count, ahead * self.size, dtype=self._width)
            for row, generator in zip(block.unbind(0), self._generators, strict=True):
                row.normal_(generator=generator)
        else:
            block = counter_normal(self._keys, self._block, ahead * self.size, self._width)
        self._block += 1
        return block.to(self.dtype).reshape(count, ahead, *self.shape[1:])


def counter_normal(keys: Tensor, block: int, size: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers as a function of (key, block, position): `keys` (B,) int64 gives (B, size) on the keys' device.

    splitmix64 hashes give two 32-bit uniforms each, Box-Muller makes them normal.
    """
    stream = splitmix64(keys + _signed(block * 0xD1342543DE82EF95))[:, None]
    bits = splitmix64(stream + torch.arange((size + 1) // 2, device=keys.device) * _GOLDEN)
    unit = 2.0**-32
    first = ((bits & 0xFFFFFFFF).to(torch.float64) + 0.5).mul_(unit).to(dtype)
    second = (((bits >> 32) & 0xFFFFFFFF).to(torch.float64) + 0.5).mul_(unit).to(dtype)
    radius, angle = torch.sqrt(-2.0 * torch.log(first)), (2.0 * math.pi) * second
    return torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)[:, :size]


def _twist32(value: Tensor) -> Tensor:
    # The CPU generator keeps 32 bits of its seed; this is a bijection of those (the murmur3 finaliser), so that
    # neighbouring indices get unlike seeds and different indices never the same one.
    value = value & 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return value ^ (value >> 16)
