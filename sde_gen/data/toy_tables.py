"""Tables made here whose columns are of many kinds: days of weather with rain and people of a census, drawn from the seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_gen.data.columns.codec import Codec, Column
from sde_gen.data.dataset import Dataset

_TRAIN, _TEST = 10_000, 2_000
DRY = 0.23
"""The normal score above which a day is wet."""
_JOBS = (
    "clerical",
    "crafts",
    "management",
    "professional",
    "sales",
    "service",
    "machines",
    "transport",
    "handling",
    "farming",
    "technical",
)
_SECTORS = ("private", "self-employed", "local", "state", "federal")


def rain(root: Path | None = None, seed: int = 0) -> Dataset:
    """Days of weather: rain (mm) at two stations, more than half of them dry and the rest heavy-tailed, temperature (degrees C), wind
    (m/s, positive), its direction (degrees, a cycle), and humidity (a fraction, 1 on some days). `root` is not read."""
    return _of("rain", rain_table(_TRAIN + _TEST, seed))


def adult(root: Path | None = None, seed: int = 0) -> Dataset:
    """People of a census: ages, years of education and weekly hours (whole numbers), sector, occupation, sex and income (words), weight
    (positive) and capital gains (zeros but for a few); occupation and sector, or hours, are not known of some. `root` is not read."""
    return _of("adult", adult_table(_TRAIN + _TEST, seed))


def law_rows(name: str, count: int, seed: int) -> list[Column] | None:
    """So many rows of the law of a table made here, as columns; None for other data. The data themselves are of seed 0 and up."""
    make = {"rain": rain_table, "adult": adult_table}.get(name)
    return None if make is None else _columns(make(count, seed))


def rain_table(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The columns of `rain`, `count` days."""
    from scipy import stats  # here, as it takes as long to import as the rest of the package

    rng = np.random.default_rng([seed, 1])
    season = rng.uniform(0, 2 * np.pi, count)
    front, first, second = rng.standard_normal((3, count))
    wet = 0.75 * front[:, None] + np.sqrt(1 - 0.75**2) * np.stack((first, second), 1)  # of each station, standard normal
    amount = 5.0 * (-np.log(stats.norm.sf(wet.clip(DRY)) / stats.norm.sf(DRY))).clip(0) ** 1.4 + 0.1
    rain = np.where(wet > DRY, np.round(amount * (1 + 0.2 * np.cos(season))[:, None], 2), 0.0)
    temperature = 11 - 9 * np.cos(season) - 1.5 * front + 3 * rng.standard_normal(count)
    wind = np.exp(1.1 + 0.3 * front + 0.45 * rng.standard_normal(count))
    direction = np.where(rng.uniform(size=count) < stats.norm.cdf(front), 240, 60) + 35 * rng.standard_normal(count)
    humidity = stats.norm.cdf(0.6 + 0.7 * front - 0.03 * (temperature - 11) + 0.5 * rng.standard_normal(count))
    return {
        "rain_north": rain[:, 0],
        "rain_south": rain[:, 1],
        "temperature": np.round(temperature, 2),
        "wind": np.round(wind, 2).clip(0.01),
        "wind_direction": np.round(direction % 360, 1) % 360,
        "humidity": np.where(humidity > 0.97, 1.0, np.round(humidity, 4).clip(0.0001, 0.9999)),
    }


def adult_table(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The columns of `adult`, `count` people; "" is an unknown word and NaN an unknown number."""
    rng = np.random.default_rng([seed, 2])
    age = np.floor(17 + 73 * rng.beta(1.5, 3.2, count)).astype(int)
    female = rng.uniform(size=count) < 0.42
    education = np.clip(np.round(10 + 2.6 * rng.standard_normal(count) - 0.02 * (age - 38)), 1, 16).astype(int)
    # Jobs by education: the softmax of a score of each.
    slope = np.array([0.0, -0.35, 0.35, 0.8, 0.05, -0.4, -0.5, -0.35, -0.55, -0.45, 0.2])
    base = np.array([0.35, 0.35, 0.3, 0.2, 0.3, 0.25, -0.1, -0.2, -0.3, -0.6, -0.9])
    sex = np.array([0.6, -1.6, -0.2, 0.1, 0.1, 0.8, -0.3, -1.5, -1.0, -1.1, 0.1])
    scores = base + slope * (education[:, None] - 10) + sex * (female[:, None] - 0.5) + rng.gumbel(size=(count, len(_JOBS)))
    job = scores.argmax(1)
    sector = rng.choice(len(_SECTORS), size=count, p=[0.7, 0.11, 0.09, 0.06, 0.04])
    sector = np.where((job == 9) & (rng.uniform(size=count) < 0.5), 1, sector)
    full = rng.uniform(size=count) < 0.47
    hours = np.where(full, 40, np.clip(np.round(39 + 13 * rng.standard_normal(count) - 4 * female + 3 * (sector == 1)), 1, 99))
    worth = 0.35 * (education - 10) + 0.045 * (age - 38) - 0.0012 * (age - 38) ** 2 + 0.035 * (hours - 40)
    worth = worth - 0.8 * female + 0.7 * np.isin(job, (2, 3)) - 1.3
    rich = rng.uniform(size=count) < 1 / (1 + np.exp(-worth))
    gains = rng.uniform(size=count) < np.where(rich, 0.21, 0.04)
    gain = np.where(gains, np.round(np.exp(8.1 + 0.9 * rich + 0.8 * rng.standard_normal(count))), 0.0)
    unknown = rng.uniform(size=count) < np.where((age < 22) | (age > 65), 0.16, 0.03)
    no_hours = rng.uniform(size=count) < 0.04
    return {
        "age": age.astype(float),
        "sector": np.where(unknown, "", np.array(_SECTORS)[sector]),
        "weight": np.round(np.exp(12.0 + 0.5 * rng.standard_normal(count))),
        "education": education.astype(float),
        "occupation": np.where(unknown, "", np.array(_JOBS)[job]),
        "sex": np.where(female, "female", "male"),
        "gain": gain,
        "hours": np.where(no_hours, np.nan, hours),
        "income": np.where(rich, ">50K", "<=50K"),
    }


def _of(name: str, table: Mapping[str, np.ndarray], asked: Mapping[str, Mapping[str, Any]] | None = None) -> Dataset:
    """The data set of a table made here: the first rows are the training items."""
    columns = _columns(table)
    codec, lines = Codec.fit(columns, asked)
    features = torch.from_numpy(codec.encode(columns))
    return Dataset(name, features[:_TRAIN], features[_TRAIN:], notes=tuple(lines), columns=codec.labels, codec=codec)


def _columns(table: Mapping[str, np.ndarray]) -> list[Column]:
    return [Column(key, values, values == "" if values.dtype.kind == "U" else np.isnan(values)) for key, values in table.items()]
