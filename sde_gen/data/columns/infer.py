"""What a column is taken for, and why: kinds from values, or as the user names them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sde_gen.data.columns.gaps import Gate
from sde_gen.data.columns.kinds import FILL, KINDS, Angle, Category, Fraction, Integer, Kind, Number, Positive, ZeroInflated
from sde_gen.data.columns.kinds import word_of as _word_of

MOST_PLACES = 6
FEW = 32
"""A column of at most so many different whole numbers holds no others; and at most so many words are one-hot by themselves."""
ONE_HOT = (3, 16)
"""A category of so many words is one-hot unless the user says otherwise; others are embedded."""
MOST_WORDS = 1000
GRID = 10
"""Multiples of a step are dequantised where each value is there so many times on average."""
ZEROS = 0.01
MOSTLY = 2.0
"""Whole numbers of which 0 is that many times as frequent as any other are zero-inflated."""
_SEED = 0
ROUNDING = 1e-9
"""Relative error of a ratio of numbers as they were typed."""
OFTEN = 0.005
"""Share of a column from which a whole number is a jump of its density."""
CYCLES = (("degrees", 360.0, (0.0, -180.0)), ("radians", 2 * np.pi, (0.0, -np.pi)))
_ANGLE = re.compile(r"(^|[^a-z])(angle|direction|dir|azimuth|bearing|heading|phase|aspect|longitude|lon)([^a-z]|$)")


def infer(name: str, values: np.ndarray) -> tuple[Kind, str]:
    """The kind of a column by its known values (n,), float64 or words, and why, in words.

    Raises ValueError for words that hardly ever repeat.
    """
    if values.dtype.kind != "f":
        return _category(name, values)
    different = np.unique(values)
    if len(different) <= 2 and bool((different == np.round(different)).all()):
        kind, _ = _category(name, values)
        return kind, f"whole numbers, {' and '.join(map(_word_of, different.tolist()))} alone"
    angle = _angle(name, values)
    if angle is not None:
        return angle
    places = decimals_of(values)
    low, high = float(values.min()), float(values.max())
    zeros = float((values == 0).mean())
    share = f"{100 * zeros:.3g} % exact zeros" if zeros else "no zeros"
    gated = bool(low >= 0) and zeros >= ZEROS
    if places == 0:
        if gated and zeros >= MOSTLY * float(np.unique(values[values != 0], return_counts=True)[1].max()) / len(values):
            return _gate(values, 0, whole=True), f"{share}, never negative, else whole numbers up to {values.max():g}: zero-inflated"
        return _integer(values, different, 1.0, 0), _of_integers(values, different, share, "whole numbers")
    grid = places is not None and places <= 3 and len(values) >= GRID * len(different)
    if grid and places is not None:
        step = 10.0**-places
        return _integer(values, different, step, places), _of_integers(values, different, share, f"multiples of {step:g}")
    if low >= 0 and high <= 1 and high > 0.5 and low < 0.5:
        ends = (bool((values == 0).any()), bool((values == 1).any()))
        return Fraction(0.0, 1.0, ends, places), "all from 0 to 1" + (f", {share}" if ends[0] else "")
    if gated:
        return _gate(values, places), f"{share}, never negative: zero-inflated"
    if low > 0:
        return Positive(places), f"never 0 or negative, {low:.4g} .. {high:.4g}"
    return Number(places), f"real numbers, {low:.4g} .. {high:.4g}"


def as_asked(name: str, values: np.ndarray, asked: Mapping[str, Any]) -> tuple[Kind, str]:
    """The kind that the user asked for, `asked["kind"]` with its options, of known values (n,).

    Raises ValueError for unknown options and values that the kind cannot hold, in one line.
    """
    options = {key: value for key, value in asked.items() if key not in ("kind", "transform", "missing")}
    kind = asked.get("kind")
    if kind is None:
        found, why = infer(name, values)
        kind = found.name
        if not options:
            return found, why
    cls = KINDS[kind]
    if values.dtype.kind != "f" and cls is not Category:
        raise ValueError(f"column {name!r} holds words ({values[0]!r}), which are no {kind}; 'category' or 'drop' is needed")
    if cls is Category:
        words = options.pop("words", None)
        if words is not None and (not isinstance(words, list | tuple) or not words or len(set(map(str, words))) < len(words)):
            raise ValueError(f"column {name!r}: words {words!r}; a list of different words is needed")
        found = _category(name, values, options.pop("form", None), words)[0]
    elif cls is ZeroInflated and bool((values >= 0).all()) and bool((values > 0).any()):
        found = _gate(values, decimals_of(values))
    elif cls is Integer:
        unit = _number(name, "step", options.pop("step", 1.0), positive=True)
        ends = {key: _number(name, key, options.pop(key)) for key in ("low", "high") if key in options}
        found = _integer(values, np.unique(values), unit, decimals_of(np.array([unit])), **ends)
    elif cls is Fraction:
        low, high = (_number(name, key, options.pop(key, usual)) for key, usual in (("low", 0.0), ("high", 1.0)))
        found = Fraction(low, high, (bool((values == low).any()), bool((values == high).any())), decimals_of(values))
    elif cls is Angle:
        period = _number(name, "period", options.pop("period", 360.0), positive=True)
        start = _number(name, "low", options.pop("low", 0.0))
        whole = bool((values == np.round(values)).all()) and period.is_integer() and start.is_integer()
        step = options.pop("step", 1.0 if whole else None)
        of_arc = None if step is None else _number(name, "step", step, positive=True)
        if of_arc is not None and abs(period / of_arc - round(period / of_arc)) > ROUNDING * period / of_arc:
            raise ValueError(f"column {name!r}: step {of_arc:g} of a period of {period:g}; a whole number of steps in the period is needed")
        found = Angle(period, start, of_arc, decimals_of(values))
    else:
        found = cls(decimals_of(values))  # type: ignore[call-arg]
    if options:
        raise ValueError(f"column {name!r}: unknown option {next(iter(options))!r} of the kind {kind!r}")
    bad = found.strange(values)
    if bad.any():
        raise ValueError(f"column {name!r} holds {values[bad][0]!s}, which is no {kind} ({_needed(found)})")
    return found, "as asked"


def _number(name: str, option: str, value: Any, positive: bool = False) -> float:
    """An option of a kind as a finite number; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or (positive and value <= 0):
        raise ValueError(f"column {name!r}: {option} {value!r}; a finite number{' greater than 0' * positive} is needed")
    return float(value)


def decimals_of(values: np.ndarray) -> int | None:
    """The least number of places, at most `MOST_PLACES`, with which all values are written exactly; None for more."""
    for places in range(MOST_PLACES + 1):
        if bool((np.round(values, places) == values).all()):
            return places
    return None


def _needed(kind: Kind) -> str:
    if isinstance(kind, Category):
        return "its words are " + ", ".join(map(str, kind.words[:8])) + (", ..." if len(kind.words) > 8 else "")
    if isinstance(kind, Fraction):
        return f"from {kind.low:g} to {kind.high:g}"
    if isinstance(kind, Angle):
        of_step = "" if kind.step is None else f"multiples of {kind.step:g}, "
        return f"{of_step}from {kind.low:g} to {kind.low + kind.period:g}"
    if isinstance(kind, Integer):
        return f"multiples of {kind.step:g}" + ("" if kind.low is None else f" from {kind.low:g}")
    return {"positive": "greater than 0", "zero_inflated": "0 or greater, and some greater"}.get(kind.name, "finite numbers")


def _category(name: str, values: np.ndarray, form: str | None = None, words: Any = None) -> tuple[Category, str]:
    different, counts = np.unique(values, return_counts=True)
    if words is None:
        if len(different) > MOST_WORDS or (values.dtype.kind != "f" and len(different) > max(10, len(values) // 2)):
            raise ValueError(
                f"column {name!r} holds {len(different):,} different words in {len(values):,} cells, which are no categories; "
                f"{{{name}: drop}} in columns leaves it out"
            )
        order = np.lexsort((different, -counts))
        found: list[int | str] = [int(word) if isinstance(word, float) else word for word in different[order].tolist()]
    else:
        found = list(words)
    if form not in (None, "embedded", "one_hot"):
        raise ValueError(f"column {name!r}: form {form!r}; 'embedded' or 'one_hot' is allowed")
    form = form or ("one_hot" if ONE_HOT[0] <= len(found) <= ONE_HOT[1] else "embedded")
    shown = ", ".join(map(str, found[:4])) + (", ..." if len(found) > 4 else "")
    fill = FILL if form == "one_hot" or len(found) <= 2 else 1.0
    return Category(tuple(found), form, fill), f"{len(found)} words: {shown}"


def _integer(
    values: np.ndarray, different: np.ndarray, step: float, decimals: int | None, low: float | None = None, high: float | None = None
) -> Integer:
    few = len(different) <= FEW
    least = float(different[0])
    low = low if low is not None else least if few else 0.0 if least >= 0 else None
    high = high if high is not None else float(different[-1]) if few else None
    _, counts = np.unique(values, return_counts=True)
    seen = tuple(np.round(different[counts >= OFTEN * len(values)] / step).tolist())
    return Integer(step, low, high, seen, decimals)


def _gate(values: np.ndarray, places: int | None, whole: bool = False) -> Gate:
    """Zeros beside positive numbers, which are dequantised where they are `whole`."""
    positive = values[values > 0]
    inner: Kind = _integer(positive, np.unique(positive), 1.0, 0, low=1.0) if whole else Positive(places)
    return Gate.around(inner, inner.encode(positive, np.random.default_rng(_SEED)))


def _of_integers(values: np.ndarray, different: np.ndarray, share: str, what: str) -> str:
    never = ", never negative" if values.min() >= 0 else ""
    few = f", {len(different)} different ones" if len(different) <= FEW else f", {values.min():g} .. {values.max():g}"
    return f"{what}{few}, {share}{never}" if (values == 0).mean() >= 0.05 else f"{what}{few}{never}"


def _angle(name: str, values: np.ndarray) -> tuple[Kind, str] | None:
    """An angle: the name says so, and the values fill more than three quarters of a turn and no more than one."""
    if not _ANGLE.search(name.lower()):
        return None
    low, high = float(values.min()), float(values.max())
    for unit, period, starts in CYCLES:
        for start in starts:
            if low >= start and high <= start + period and high - low > 0.75 * period:
                step = 1.0 if bool((values == np.round(values)).all()) and period == 360.0 else None
                return Angle(period, start, step, decimals_of(values)), f"its name, and {low:.4g} .. {high:.4g} {unit}"
    return None
