"""Samples of each condition, beside what was asked for: a row a condition, a column a strength of guidance."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from . import figures as fig
from .figures import BLUE, GREEN, ORANGE, PURPLE, TEXT
from .images import Range, display_values, finite_range, not_finite_note, tiles
from .pictures import data_kind, flat_images

GAP = 1
"""Pixels between the images of a cell."""
CELL, LABEL = 0.72, 1.3
"""Inches: the height of a cell, and the width of the words beside a row."""
PANEL, MOST_POINTS = 3.4, 4000
"""Inches of a panel of points, and the points of the data behind each."""


def picture_conditions(
    columns: Mapping[str, Tensor],
    labels: Sequence[str],
    path: str | os.PathLike[str],
    value_range: Range | None = None,
    maps: Mapping[str, Tensor] | None = None,
    reference: Tensor | None = None,
) -> Path:
    """Samples of R conditions under each of some settings, written to `path` (.png).

    columns: the settings' names, with samples (R K, *shape) each, the K of one condition together.
    labels: R texts, what each condition is.
    maps: fields or images (R, C, *spatial) that belong to the conditions, in columns of their own before the samples.
    reference: data (N, D) that points are shown before.

    Images, the middle slices of volumes and lines stand in rows, one for each condition. Of vectors the first two entries are scattered
    in a panel for each setting, in a colour for each condition; of vectors of one entry histograms.
    Raises ValueError where the numbers do not fit together, or for a shape without a picture.
    """
    count = len(labels)
    sizes = {len(x) for x in columns.values()}
    if not count or len(sizes) != 1 or sizes.pop() % count:
        raise ValueError(f"{count} conditions need as many samples each, in every column, not {[len(x) for x in columns.values()]}")
    first = next(iter(columns.values()))
    if data_kind(first.shape) in ("points", "vectors"):
        return _panels(columns, labels, path, reference)
    each = len(first) // count
    shown = {**{name: (x, 1) for name, x in (maps or {}).items()}, **{name: (x, each) for name, x in columns.items()}}
    ranges = {name: value_range or finite_range(first) if name in columns else finite_range(x) for name, (x, _) in shown.items()}
    widths = [_aspect(x) * k for x, k in shown.values()]
    figure = fig.new_figure(LABEL + CELL * sum(widths) + 0.1 * len(widths), 0.5 + (CELL + 0.08) * count)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.1)  # type: ignore[call-arg]  # settings stand apart, samples of one close together
    grid = figure.subplots(count, len(shown), squeeze=False, gridspec_kw={"width_ratios": widths})
    for line, label in enumerate(labels):
        for axes, (name, (x, k)) in zip(grid[line], shown.items(), strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            _cell(axes, x[line * k : (line + 1) * k], ranges[name])
            if line == 0:
                axes.set_title(name, fontsize=TEXT)
        grid[line][0].set_ylabel(label, fontsize=TEXT, rotation=0, ha="right", va="center")
    note = not_finite_note(torch.cat(list(columns.values())))
    if note:
        figure.supxlabel(note, fontsize=TEXT, color=fig.RED)
    return fig.save_figure(figure, path)


def _aspect(x: Tensor) -> float:
    """Width over height of the picture of one item."""
    return 1.6 if x.ndim == 3 else min(4.0, max(0.25, x.shape[-1] / x.shape[-2]))


def _cell(axes: Axes, x: Tensor, value_range: Range) -> None:
    """The samples of one condition: images side by side, or lines over one another."""
    if x.ndim == 3:
        for signal in display_values(x).numpy():
            for channel, colour in zip(signal, (BLUE, ORANGE, GREEN, PURPLE), strict=False):
                axes.plot(np.arange(len(channel)), np.where(np.isfinite(channel), channel, np.nan), color=colour, linewidth=0.9)
        low, high = value_range
        margin = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
        return
    low, high = value_range
    images = tiles(flat_images(x), value_range if low < high else None)
    between = np.full((images.shape[1], GAP, 3), 255, dtype=np.uint8)
    strip = np.concatenate([part for image in images for part in (image, between)][:-1], axis=1)
    axes.imshow(strip, interpolation="nearest")


def _panels(columns: Mapping[str, Tensor], labels: Sequence[str], path: str | os.PathLike[str], reference: Tensor | None) -> Path:
    """Points of each setting, in a colour for each condition."""
    sets = {name: fig.vectors(x, "samples") for name, x in columns.items()}
    behind = None if reference is None else fig.vectors(reference[:MOST_POINTS], "reference")
    drawn = fig.finite_rows(np.concatenate([*sets.values(), *([] if behind is None else [behind])]))[:, :2]
    corners = np.concatenate([fig.window(drawn[:, k : k + 1], 0.05) for k in range(drawn.shape[1])], axis=1)
    figure = fig.new_figure(PANEL * len(sets) + LABEL, PANEL + 0.4)
    panels = figure.subplots(1, len(sets), squeeze=False, sharex=True, sharey=True)[0]
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, len(labels)))
    bins = np.linspace(float(corners[0, 0]), float(corners[1, 0]), 41).tolist()
    for axes, (name, x) in zip(panels, sets.items(), strict=True):
        flat = x.shape[1] == 1
        fig.style(axes, name, fig.feature_names(1)[0], "samples" if flat else fig.feature_names(2)[1])
        if behind is not None and not flat:
            axes.scatter(*behind[:, :2].T, s=3, color="0.85", linewidths=0)
        groups = x.reshape(len(labels), -1, x.shape[1])
        for group, label, colour in zip(groups, labels, colours, strict=True):
            good = fig.finite_rows(group)
            if flat:
                axes.hist(good[:, 0], bins, color=colour, histtype="step", linewidth=1.5, label=label)
            else:
                axes.scatter(*good[:, :2].T, s=6, color=[colour], linewidths=0, alpha=0.7, label=label)
        axes.set_xlim(corners[:, 0])
        if not flat:
            axes.set_ylim(corners[:, 1])
        fig.warn(axes, fig.lost_rows(x))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=TEXT, frameon=False, markerscale=2)
    return fig.save_figure(figure, path)
