"""Solvers side by side: distances against cost, and rows of images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor

from ..unknown_numbers import number
from . import figures as fig
from .figures import GREY, TEXT
from .images import Range, tiles

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#666666", "#882255")
MARKS = "osD^vP*X"


def plot_comparison(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], ylabel: str, held_out: Mapping[str, float] | None = None
) -> Path:
    """Distance with its standard error against network calls and against seconds, a line for each solver, written to `path` (.png).

    rows: {"solver", "calls", "seconds", optional "distance": {"value", "std_error"}}. held_out: the distance of held-out data, drawn as
    a band across. Raises ValueError where no row has a distance.
    """
    measured = [row for row in rows if "distance" in row]
    if not measured:
        raise ValueError("no row has a distance")
    figure = fig.new_figure(10, 4)
    left, right = figure.subplots(1, 2, sharey=True)
    draw_comparison(left, measured, "calls", ylabel, held_out)
    draw_comparison(right, measured, "seconds", "", held_out)
    fig.legend(right)
    return fig.save_figure(figure, path)


COSTS = {"calls": "network calls a sample", "seconds": "seconds"}


def draw_comparison(
    axes: Axes, rows: Sequence[Mapping[str, Any]], cost: str, ylabel: str, held_out: Mapping[str, float] | None = None
) -> None:
    """One panel of `plot_comparison`; cost: a key of `COSTS`. Rows without a distance are left out."""
    measured = [row for row in rows if "distance" in row]
    for k, name in enumerate(dict.fromkeys(row["solver"] for row in measured)):
        mine = sorted((row for row in measured if row["solver"] == name), key=lambda row: float(row["calls"]))
        values, errors = ([number(row["distance"][part]) for row in mine] for part in ("value", "std_error"))
        places = [max(row[cost], 1e-3) for row in mine]
        look: dict[str, Any] = {"color": COLOURS[k % len(COLOURS)], "marker": MARKS[k % len(MARKS)], "markersize": 5, "capsize": 2.5}
        axes.errorbar(places, values, errors, label=name, linewidth=1.4, **look)
    if held_out is not None:
        value, error = number(held_out["value"]), number(held_out["std_error"])
        axes.axhline(value, color=GREY, linewidth=1.3, linestyle=":", label="held-out data")
        axes.axhspan(max(value - error, 0.5 * value), value + error, color=GREY, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    fig.style(axes, "", COSTS[cost], ylabel)


def picture_rows(rows: Sequence[Tensor], labels: Sequence[str], path: str | os.PathLike[str], value_range: Range | None) -> Path:
    """A row of images (N, C, H, W) for each label, written to `path` (.png). Raises ValueError where their numbers differ."""
    if len(rows) != len(labels) or not rows:
        raise ValueError(f"{len(rows)} rows need {len(rows)} labels, not {len(labels)}")
    count = max(map(len, rows))
    figure = fig.new_figure(0.75 * count + 2.2, 0.8 * len(rows) + 0.1)
    for images, label, line in zip(rows, labels, figure.subplots(len(rows), count, squeeze=False), strict=True):
        for axes in line:
            axes.set_axis_off()
        for image, axes in zip(tiles(images, value_range), line, strict=False):
            axes.imshow(image, interpolation="nearest")
        line[0].text(-0.15, 0.5, label, fontsize=TEXT, ha="right", va="center", transform=line[0].transAxes)
    return fig.save_figure(figure, path)
