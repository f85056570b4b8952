"""Numbers, settings and sentences as the report's tables and texts show them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..report.embed import Embedder
from ..report.page import Block, Cell, Picture, Text
from ..unknown_numbers import number, shown_estimate, shown_number

QUALITIES = {"precision": "precision", "recall": "recall", "memorised_fraction": "memorised", "neighbour_ratio": "neighbour ratio"}


def chart_block(embedder: Embedder, uri: str, alt: str, caption: str) -> list[Block]:
    fits = embedder.fitting(uri, f"the chart {caption!r}")
    return [] if fits is None else [Picture(fits, alt, caption, "none")]


def sentence_text(line: str) -> Text:
    """A line of the terminal as a sentence."""
    line = line.replace("+-", "±").replace("`", "")
    return Text(line[:1].upper() + line[1:] + ".")


def number_cell(value: Any, digits: int) -> Cell:
    known = number(value)
    if math.isnan(known):
        return Cell("")
    smallest = 0.5 * 10**-digits
    return Cell(f"< {10**-digits:.{digits}f}" if 0 < known < smallest else f"{known:.{digits}f}", known)


def count_cell(value: Any) -> Cell:
    known = number(value)
    return Cell("") if math.isnan(known) else Cell(f"{known:,.0f}", known)


def estimate_cell(value: Mapping[str, Any] | None, digits: int = 2) -> Cell:
    if value is None:
        return Cell("")
    return Cell(shown_estimate(value, digits).replace("+-", "±"), number(value["value"]))


def settings_line(name: str, settings: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{key} {value}" for key, value in settings.items())
    return f"{name} ({shown})" if shown else name


def environment_facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not found:
        return []
    return [("On", f"{found['device']}, {found['threads']} threads"), ("With", f"sde_gen {found['sde_gen']}, torch {found['torch']}")]


def ends_line(curve: Mapping[float, float]) -> str:
    """A curve over the half log-SNR in words."""
    order = sorted(curve)
    middle = order[len(order) // 2]
    points = ((order[0], "in nothing but noise"), (middle, "in the middle"), (order[-1], "in nearly clean data"))
    return ", ".join(f"{shown_number(curve[at], '.2f')} {where}" for at, where in points)
