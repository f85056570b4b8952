"""Kinds of columns: each is a rule from a column's values to real features with a density, and the exact rule back.

What is no real number has cells of its own: a value stands for all features in its cell, drawn at random there (dequantisation), so that

    log P(row) >= E_u[log p(features(row, u)) - log q(u | row)]        (Theis et al. 2016, arXiv:1511.01844)

with the density q of the draws; cells are of width 1, where q is 1, unless a kind says otherwise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from sde_gen.data.transforms import Chain

MOST_BREAKS = 256
RING = 0.1
"""Standard deviation of the logarithm of an angle's radius, which is drawn so that cosine and sine have a density in the plane."""
FILL = 0.25
"""Of cells that are a word or say whether a value stands apart. With whole cells, networks of the recipe learned correlations of two words,
or of a word and a number, to little more than half of what they are (benchmarks/tables.py)."""
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Kind(ABC):
    """What a column is: `encode` its known values, (n,), as features (n, width) and `decode` features as values again.

    domain: the real numbers that its features take, "line", "positive" or "unit", for what stands in the place of a missing value.
    """

    name: ClassVar[str]
    domain: ClassVar[str] = "line"

    @property
    def width(self) -> int:
        """How many features."""
        return 1

    @property
    def lead(self) -> int:
        """How many of the first features only say whether a value stands apart."""
        return 0

    @property
    def domains(self) -> list[str]:
        """The domain of each feature."""
        return [self.domain] * self.width

    @property
    def chains(self) -> list[Chain]:
        """The transforms of each feature."""
        return [("quantile",)]

    @property
    def breaks(self) -> list[list[float]]:
        """Where the density of each feature may jump."""
        return [[] for _ in range(self.width)]

    def labels(self, name: str) -> list[str]:
        """What the features of a column of this name are called."""
        return [name]

    @abstractmethod
    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Features (n, width), float64."""

    @abstractmethod
    def decode(self, features: np.ndarray) -> np.ndarray:
        """The values (n,) of any features, also of such as no value has."""

    def log_q(self, features: np.ndarray) -> np.ndarray:
        """log density of the draws in `encode`, (n,) nats."""
        return np.zeros(len(features))

    def strange(self, values: np.ndarray) -> np.ndarray:
        """Which values the kind cannot hold, Boolean (n,)."""
        return ~np.isfinite(values)

    def settings(self) -> dict[str, Any]:
        """What makes the kind again, ready for JSON."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"kind": self.name} | {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


@dataclass(frozen=True)
class Number(Kind):
    """A real number. decimals: places that the file's numbers have, to which written ones are rounded; None: all digits."""

    name = "number"
    decimals: int | None = None

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return values[:, None].astype(np.float64)

    def decode(self, features: np.ndarray) -> np.ndarray:
        return rounded(features[:, 0], self.decimals)


@dataclass(frozen=True)
class Positive(Number):
    """A number that is never 0 or negative: its logarithm, then quantiles. A sample that rounds to 0 is one unit of the last place."""

    name = "positive"
    domain = "positive"

    @property
    def chains(self) -> list[Chain]:
        return [("log", "quantile")]

    def decode(self, features: np.ndarray) -> np.ndarray:
        least = np.finfo(np.float64).tiny if self.decimals is None else 10.0**-self.decimals
        return np.maximum(super().decode(features), least)

    def strange(self, values: np.ndarray) -> np.ndarray:
        return ~(np.isfinite(values) & (values > 0))


@dataclass(frozen=True)
class ZeroInflated(Number):
    """Exact zeros among positive numbers in one feature, as tables of earlier versions have it (`gaps.Gate` has two): a zero is the cell
    [-1, 0), and every feature below 0 a zero."""

    name = "zero_inflated"

    @property
    def chains(self) -> list[Chain]:
        return [("log1p", "quantile")]

    @property
    def breaks(self) -> list[list[float]]:
        return [[-1.0, 0.0]]

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.where(values == 0, -rng.uniform(size=len(values)), values)[:, None]

    def decode(self, features: np.ndarray) -> np.ndarray:
        x = features[:, 0]
        least = np.finfo(np.float64).tiny if self.decimals is None else 10.0**-self.decimals
        return np.where(x < 0, 0.0, np.maximum(rounded(x, self.decimals), least))

    def strange(self, values: np.ndarray) -> np.ndarray:
        return ~(np.isfinite(values) & (values >= 0))


@dataclass(frozen=True)
class Integer(Kind):
    """A multiple of `step`, as whole numbers are of 1: v is the cell [v/step, v/step + 1).

    low, high: the smallest and largest value that is written, None for no end; cells of the ends reach on to infinity.
    seen: the multiples v/step that are so frequent that the density jumps there.
    decimals: places that values are written with; 0: as whole numbers; None: all digits.
    """

    name = "integer"
    step: float = 1.0
    low: float | None = None
    high: float | None = None
    seen: tuple[float, ...] = ()
    decimals: int | None = 0

    @property
    def chains(self) -> list[Chain]:
        return [("log1p", "quantile") if self.low is not None and self.low >= 0 else ("quantile",)]

    @property
    def breaks(self) -> list[list[float]]:
        return [sorted({*self.seen, *(value + 1 for value in self.seen)})]

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (np.round(values / self.step) + rng.uniform(size=len(values)))[:, None]

    def decode(self, features: np.ndarray) -> np.ndarray:
        index = np.floor(features[:, 0]).clip(1 - 2.0**52, 2.0**52 - 1)
        low, high = (None if end is None else round(end / self.step) for end in (self.low, self.high))
        index = index if low is None and high is None else np.clip(index, low, high)
        return index.astype(np.int64) if self.step == 1 else rounded(index * self.step, self.decimals)

    def strange(self, values: np.ndarray) -> np.ndarray:
        ratio = values / self.step
        with np.errstate(invalid="ignore"):
            off = ~(
                np.isfinite(values) & (np.abs(ratio - np.round(ratio)) < 1e-6 * np.maximum(1, np.abs(ratio))) & (np.abs(ratio) < 2.0**52)
            )
            return off | (False if self.low is None else values < self.low) | (False if self.high is None else values > self.high)


@dataclass(frozen=True)
class Fraction(Kind):
    """A number from `low` to `high`, as (v - low)/(high - low), whose ends are cells of their own, [-1, 0) and [1, 2), where they occur.

    ends: whether exact values of `low` and of `high` occur. Without any, its logit, then quantiles.
    """

    name = "fraction"
    low: float = 0.0
    high: float = 1.0
    ends: tuple[bool, bool] = (False, False)
    decimals: int | None = None

    @property
    def domain(self) -> str:  # type: ignore[override]
        return "line" if any(self.ends) else "unit"

    @property
    def chains(self) -> list[Chain]:
        return [("quantile",) if any(self.ends) else ("logit", "quantile")]

    @property
    def breaks(self) -> list[list[float]]:
        return [([-1.0, 0.0] if self.ends[0] else []) + ([1.0, 2.0] if self.ends[1] else [])]

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x, u = (values - self.low) / (self.high - self.low), rng.uniform(size=len(values))
        return np.where(values == self.low, -u, np.where(values == self.high, 1 + u, x))[:, None]

    def decode(self, features: np.ndarray) -> np.ndarray:
        x = features[:, 0]
        values = self.low + (self.high - self.low) * x.clip(0, 1)
        # Inside stays inside: what rounds to an end that does not occur is one unit of the last place, or bit, from it.
        unit = None if self.decimals is None else 10.0**-self.decimals
        first = np.nextafter(self.low, self.high) if unit is None else self.low + unit
        last = np.nextafter(self.high, self.low) if unit is None else self.high - unit
        inner = rounded(rounded(values, self.decimals).clip(first, last), self.decimals)
        inner = np.where((x < 0) & self.ends[0], self.low, inner)
        return np.where((x >= 1) & self.ends[1], self.high, inner)

    def log_q(self, features: np.ndarray) -> np.ndarray:
        inside = (features[:, 0] > 0) & (features[:, 0] < 1)
        return np.where(inside, math.log(self.high - self.low), 0.0)

    def strange(self, values: np.ndarray) -> np.ndarray:
        low = values >= self.low if self.ends[0] else values > self.low
        return ~(low & (values <= self.high if self.ends[1] else values < self.high))


@dataclass(frozen=True)
class Angle(Kind):
    """A number of a cycle, from `low` to `low + period`: cosine and sine times a radius exp(0.1 e) with a normal e, which is drawn.

    step: of whole numbers, or other multiples, 1 or what they are multiples of: a value stands for an arc of it. None: real numbers.
    """

    name = "angle"
    period: float = 360.0
    low: float = 0.0
    step: float | None = None
    decimals: int | None = None

    @property
    def width(self) -> int:
        return 2

    @property
    def chains(self) -> list[Chain]:
        return [(), ()]

    def labels(self, name: str) -> list[str]:
        return [f"{name} (cos)", f"{name} (sin)"]

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        arc = 0.0 if self.step is None else self.step * rng.uniform(size=len(values))
        turn = 2 * np.pi * (values + arc - self.low) / self.period
        return (np.exp(RING * rng.standard_normal(len(values))) * np.stack((np.cos(turn), np.sin(turn)))).T

    def decode(self, features: np.ndarray) -> np.ndarray:
        turn = np.arctan2(features[:, 1], features[:, 0]) / (2 * np.pi) % 1.0
        within = turn * self.period
        if self.step is not None:
            within = np.floor(within / self.step) * self.step
            whole = self.step == 1 and float(self.low).is_integer()
            values = self.low + within
            return values.astype(np.int64) if whole else rounded(values, self.decimals)
        values = rounded(self.low + within, self.decimals)
        return np.where(values >= self.low + self.period, values - self.period, values)

    def log_q(self, features: np.ndarray) -> np.ndarray:
        # dx dy = r dr dturn: q of the radius, over what the plane's measure has at it, and the arc's 1/step.
        log_r = np.log(np.hypot(features[:, 0], features[:, 1]))
        of_radius = -0.5 * (log_r / RING) ** 2 - 0.5 * LOG_2PI - math.log(RING) - log_r
        of_turn = math.log(self.period / (2 * math.pi)) - (0.0 if self.step is None else math.log(self.step))
        return of_radius - log_r + of_turn

    def strange(self, values: np.ndarray) -> np.ndarray:
        within = (values >= self.low) & (values <= self.low + self.period)
        if self.step is None:
            return ~within
        ratio = (values - self.low) / self.step
        return ~(within & (np.abs(ratio - np.round(ratio)) < 1e-6 * np.maximum(1, np.abs(ratio))))


@dataclass(frozen=True)
class Category(Kind):
    """One of `words`, whole numbers or words, the most frequent first.

    form: "embedded", word k is the cell [k, k + 1) of one feature, the outer cells reaching on to infinity; "one_hot", one feature for
    each word, in [1, 2) for the one that it is and in [0, 1) for the others: the largest says which it is.
    fill: the share of a cell, in its middle, in which features are drawn. What a network has to learn of words that depend on others is
    hidden by draws of whole cells (`FILL`).
    """

    name = "category"
    words: tuple[int | str, ...] = ()
    form: str = "embedded"
    fill: float = 1.0

    @property
    def width(self) -> int:
        return len(self.words) if self.form == "one_hot" else 1

    @property
    def chains(self) -> list[Chain]:
        return [()] * self.width if self.form == "one_hot" or self.fill < 1 else [("quantile",)]

    @property
    def breaks(self) -> list[list[float]]:
        if self.form == "one_hot":
            return [[]] * self.width
        if self.fill < 1:
            return [[k + half for k in range(len(self.words)) for half in (0.5 - self.fill / 2, 0.5 + self.fill / 2)]]
        return [[float(k) for k in range(len(self.words) + 1)]] if len(self.words) < MOST_BREAKS else [[]]

    def labels(self, name: str) -> list[str]:
        return [f"{name}={word}" for word in self.words] if self.form == "one_hot" else [name]

    def index(self, values: np.ndarray) -> np.ndarray:
        """The number of each value's word, int64 (n,); -1 for no word."""
        places = {str(word): k for k, word in enumerate(self.words)}
        different, inverse = np.unique(values, return_inverse=True)
        return np.array([places.get(word_of(value), -1) for value in different.tolist()], dtype=np.int64)[inverse]

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        index = self.index(values)
        if self.form == "one_hot":
            return (index[:, None] == np.arange(len(self.words))) + in_cell(self.fill, rng.uniform(size=(len(values), len(self.words))))
        return (index + in_cell(self.fill, rng.uniform(size=len(values))))[:, None]

    def decode(self, features: np.ndarray) -> np.ndarray:
        one_hot = self.form == "one_hot"
        index = features.argmax(1) if one_hot else np.floor(features[:, 0]).clip(0, len(self.words) - 1).astype(np.int64)
        return np.array(self.words, dtype=np.int64 if all(isinstance(word, int) for word in self.words) else None)[index]

    def log_q(self, features: np.ndarray) -> np.ndarray:
        return np.full(len(features), -self.width * math.log(self.fill))

    def strange(self, values: np.ndarray) -> np.ndarray:
        return self.index(values) < 0


KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Number, Positive, ZeroInflated, Integer, Fraction, Angle, Category)}
"""By name; `gaps.Gaps` is around any of them, and "zero_inflated" of a new table is `gaps.Gate`."""


def in_cell(fill: float, u: np.ndarray) -> np.ndarray:
    """The place in a cell of width 1 of uniform draws u in the share `fill` of it, in its middle."""
    return (1 - fill) / 2 + fill * u


def rounded(values: np.ndarray, decimals: int | None) -> np.ndarray:
    """Values with so many places, None for all."""
    return values if decimals is None else np.round(values, decimals)


def word_of(value: Any) -> str:
    """A value of a category as its word: whole numbers without a point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
