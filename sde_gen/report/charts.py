"""The charts of a page, each one panel as a data URI: `svg` of what the plots draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from . import figures as fig
from .comparisons import COLOURS, COSTS, draw_comparison
from .figures import BLUE, ORANGE, PURPLE
from .likelihoods import draw_histogram, draw_values
from .plots import draw_loss_by_level, draw_loss_over_steps
from .svg import svg_uri

__all__ = ["COSTS", "comparison", "histogram", "information_by_level", "loss_by_level", "loss_over_steps", "memory_by_level", "values"]

WIDTH, HEIGHT = 5.2, 3.7
"""Inches: narrow, so that the letters stay legible where a phone shows the whole width."""


def _panel(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = fig.new_figure(WIDTH, height)
    return figure, figure.subplots()


def loss_by_level(history: Sequence[Mapping[str, Any]], baselines: Mapping[str, Sequence[float]]) -> str:
    """See `plots.plot_loss`."""
    figure, axes = _panel(1.3 * HEIGHT)
    draw_loss_by_level(axes, history, baselines)
    return svg_uri(figure)


def loss_over_steps(history: Sequence[Mapping[str, Any]]) -> str:
    """See `plots.plot_loss`."""
    figure = fig.new_figure(WIDTH, 1.3 * HEIGHT)
    draw_loss_over_steps(figure, history)
    return svg_uri(figure)


def comparison(rows: Sequence[Mapping[str, Any]], cost: str, label: str, held_out: Mapping[str, float] | None) -> str:
    """See `comparisons.draw_comparison`."""
    figure, axes = _panel()
    draw_comparison(axes, rows, cost, label, held_out)
    fig.legend(axes)
    return svg_uri(figure)


def histogram(groups: Mapping[str, Tensor], unit: str) -> str:
    """See `likelihoods.draw_histogram`."""
    figure, axes = _panel()
    draw_histogram(axes, groups, unit)
    return svg_uri(figure)


def values(parts: Mapping[str, tuple[float, float]], unit: str) -> str:
    """See `likelihoods.draw_values`."""
    figure, axes = _panel(0.9 + 0.33 * len(parts))
    draw_values(axes, parts, unit)
    return svg_uri(figure)


def information_by_level(curves: Mapping[str, Mapping[str, Any]]) -> str:
    """Nats for each unit of half log-SNR that each named condition tells, by both forms: {"levels", "by_level", "orthogonal_by_level"}."""
    figure, axes = _panel()
    for k, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[k % len(COLOURS)]
        axes.plot(curve["levels"], curve["by_level"], color=colour, linewidth=1.8, marker="o", markersize=3.5, label=name)
        dashed: dict[str, Any] = {"color": colour, "linewidth": 1.4, "linestyle": (0, (4, 2))}
        axes.plot(curve["levels"], curve["orthogonal_by_level"], label=f"{name}, by distance of branches", **dashed)
    axes.axhline(0.0, color="0.6", linewidth=0.8)
    fig.style(axes, "", "← noise       half log-SNR  λ = log(α/σ)       data →", "nats a unit of λ")
    fig.legend(axes)
    return svg_uri(figure)


def memory_by_level(
    levels: Sequence[float], parts: Mapping[str, tuple[Sequence[float], Sequence[float]]], best: Sequence[float] | None
) -> str:
    """The error over a zero network's on each named part (values, standard errors) by noise level (half log-SNR); best: the least that the
    training data allows."""
    figure, axes = _panel()
    order = np.argsort(levels)
    at = np.asarray(levels)[order]
    for (label, (error, spread)), colour in zip(parts.items(), (BLUE, ORANGE), strict=False):
        value, width = np.asarray(error)[order], np.asarray(spread)[order]
        axes.plot(at, value, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=label)
        axes.fill_between(at, value - width, value + width, color=colour, alpha=0.25, linewidth=0)
    if best is not None:
        axes.plot(at, np.asarray(best)[order], color=PURPLE, linewidth=1.8, linestyle=(0, (1, 1)), label="training data memorised")
    fig.style(axes, "", "← noise       half log-SNR  λ = log(α/σ)       data →", "error / zero predictor's error")
    axes.set_ylim(bottom=0)
    fig.legend(axes)
    return svg_uri(figure)
