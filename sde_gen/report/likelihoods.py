"""Likelihoods as pictures: histograms of groups, and the images at both ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import figures as fig
from .figures import BLUE, GREEN, GREY, ORANGE, PURPLE, TEXT
from .images import Range, tiles

BINS = 40
MOST = 10
"""Images in a row of the extremes."""


def plot_likelihoods(groups: Mapping[str, Tensor], path: str | os.PathLike[str], unit: str) -> Path:
    """A histogram for each group of values (N,), over one axis, written to `path` (.png). Values that are not finite are left out
    and counted. Raises ValueError where no value is finite."""
    finite = {name: values[torch.isfinite(values)].double().cpu().numpy() for name, values in groups.items()}
    every = np.concatenate(list(finite.values())) if finite else np.zeros(0)
    if not len(every):
        raise ValueError("no value is finite")
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, BINS + 1).tolist()
    figure = fig.new_figure(8, 3.6)
    axes = figure.subplots()
    for (name, values), colour in zip(finite.items(), (GREY, BLUE, ORANGE, GREEN, PURPLE), strict=False):
        lost = len(groups[name]) - len(values)
        label = f"{name} ({len(values)}" + (f", {lost} not finite)" if lost else ")")
        if len(values):
            shares = np.full(len(values), 1 / len(values))
            axes.hist(values, edges, weights=shares, color=colour, alpha=0.35)
            axes.hist(values, edges, weights=shares, color=colour, histtype="step", linewidth=1.6, label=label)
    fig.style(axes, "", unit, "share of each group")
    fig.legend(axes)
    return fig.save_figure(figure, path)


def picture_extremes(
    images: Tensor, values: Tensor, path: str | os.PathLike[str], value_range: Range | None, unit: str, smaller_is_likelier: bool
) -> Path:
    """The most likely images (N, C, H, W) above and the least likely below, each with its value, written to `path` (.png).

    smaller_is_likelier: true for bits, false for log-densities. Raises ValueError where no value is finite.
    """
    known = torch.nonzero(torch.isfinite(values))[:, 0].cpu()
    if not len(known):
        raise ValueError("no value is finite")
    order = known[torch.argsort(values[known], descending=not smaller_is_likelier)]
    count = min(MOST, len(order))
    rows = (("most likely", order[:count]), ("least likely", order[-count:].flip(0)))
    figure = fig.new_figure(0.95 * count + 1.0, 2.9)
    grid = figure.subplots(2, count, squeeze=False)
    for (title, chosen), line in zip(rows, grid, strict=True):
        for index, axes in zip(chosen.tolist(), line, strict=True):
            axes.imshow(tiles(images[index : index + 1].cpu(), value_range)[0], interpolation="nearest")
            axes.set_title(f"{float(values[index]):.2f}", fontsize=TEXT)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(title, fontsize=TEXT)
    figure.supxlabel(unit, fontsize=TEXT)
    return fig.save_figure(figure, path)
