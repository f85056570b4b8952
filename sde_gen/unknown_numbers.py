"""Numbers that are not known: NaN in calculations, null in JSON files, "unknown" in print."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(values: Any, indent: int | None = None) -> str:
    """JSON text in which a number that is not finite is null: JSON has neither NaN nor infinity, and other tools refuse them."""
    return json.dumps(_without_nan(values), indent=indent, allow_nan=False)


def from_json(text: str) -> Any:
    """What JSON text holds; the NaN and Infinity of files of earlier versions are None, as null is. ValueError where it is no JSON."""
    return json.loads(text, parse_constant=lambda _: None)


def number(value: Any) -> float:
    """A number of a JSON file; NaN where it is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def with_nan(values: Any) -> Any:
    """The same lists and dicts with NaN for each None: of files in which null means nothing but a number that is not known."""
    if isinstance(values, dict):
        return {key: with_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [with_nan(value) for value in values]
    return math.nan if values is None else values


def shown_number(value: Any, form: str) -> str:
    """A number in this format, such as ".2f", or "unknown"."""
    known = number(value)
    return "unknown" if math.isnan(known) else format(known, form)


def shown_estimate(estimate: Mapping[str, Any], digits: int) -> str:
    """The "value" and "std_error" of an estimate to so many decimals, with +- between them."""
    return " +- ".join(shown_number(estimate[part], f".{digits}f") for part in ("value", "std_error"))


def _without_nan(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_nan(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
