"""Restored data as pictures: what was measured, the posterior's mean, spread and samples; and whether they are calibrated."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from . import figures as fig
from .figures import BLUE, GREEN, GREY, ORANGE, TEXT
from .images import Range, display_values, save_image, tiles

GAP = (170, 190, 215)
"""The colour of a pixel that was not measured."""
MOST_ITEMS, MOST_SAMPLES = 8, 5
COVERAGES = {"entries": (BLUE, "entries"), "directions": (ORANGE, "projections"), "regions": (GREEN, "regions")}


def picture_restorations(
    y: Tensor,
    mean: Tensor,
    std: Tensor,
    samples: Tensor,
    path: str | os.PathLike[str],
    value_range: Range | None = None,
    truth: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """At most `MOST_ITEMS` restored items, written to `path` (.png): images side by side, everything else as curves over their entries.

    y: (N, *measured shape), NaN in gaps. mean, std: (N, *shape) of the posterior. samples: (N, K, *shape), of which `MOST_SAMPLES` are
    shown. truth: (N, *shape), where it is known. value_range: of images. names: of the entries of vectors.
    """
    count = min(MOST_ITEMS, len(mean))
    parts = [None if x is None else display_values(x[:count]) for x in (y, mean, std, samples[:, :MOST_SAMPLES], truth)]
    y, mean, std, samples, truth = parts  # type: ignore[assignment]
    if mean.ndim == 5:  # volumes by their middle slice
        middle = mean.shape[2] // 2
        mean, std, samples = mean[:, :, middle], std[:, :, middle], samples[:, :, :, middle]
        truth = None if truth is None else truth[:, :, middle]
        y = y[:, :, y.shape[2] // 2] if y.ndim == 5 else y
    if mean.ndim == 4:
        return _pictures(y, mean, std, samples, truth, path, value_range)
    return _curves(y, mean, std, samples, truth, path, names)


def _pictures(
    y: Tensor, mean: Tensor, std: Tensor, samples: Tensor, truth: Tensor | None, path: str | os.PathLike[str], value_range: Range | None
) -> Path:
    most = float(std.max()) or 1.0
    columns: list[tuple[str, Any]] = [] if truth is None else [("truth", tiles(truth, value_range))]
    if y.ndim == 4:
        shown = tiles(torch.nan_to_num(y, 0.0), value_range)
        gaps = torch.isnan(y[:, :3] if y.shape[1] in (3, 4) else y[:, :1]).all(1).numpy()
        shown[gaps] = GAP
        columns.append(("measured", shown))
    spread = std.mean(1).numpy()
    columns += [("mean", tiles(mean, value_range)), (f"sd, 0 .. {most:.3g}", spread)]
    columns += [(f"sample {k + 1}", tiles(samples[:, k], value_range)) for k in range(samples.shape[1])]
    figure = fig.new_figure(0.95 * len(columns) + 0.2, 0.95 * len(mean) + 0.3)
    for k, line in enumerate(figure.subplots(len(mean), len(columns), squeeze=False)):
        for (title, images), axes in zip(columns, line, strict=True):
            axes.set_axis_off()
            axes.imshow(images[k], interpolation="nearest", cmap="viridis", vmin=0, vmax=most)
            if k == 0:
                axes.set_title(title, fontsize=TEXT - 1)
    return save_image(fig.to_image(figure), path)


def _curves(
    y: Tensor,
    mean: Tensor,
    std: Tensor,
    samples: Tensor,
    truth: Tensor | None,
    path: str | os.PathLike[str],
    names: Sequence[str] | None,
) -> Path:
    signals = mean.ndim == 3
    same = y.shape == mean.shape
    if signals:  # the first channel
        mean, std, samples = mean[:, 0], std[:, 0], samples[:, :, 0]
        truth, y = None if truth is None else truth[:, 0], y[:, 0] if y.ndim == 3 else y
    place = np.arange(mean.shape[1])
    columns = 2 if len(mean) > 1 else 1
    figure = fig.new_figure(9, 2.1 * -(-len(mean) // columns) + 0.5)
    panels = list(figure.subplots(-(-len(mean) // columns), columns, squeeze=False, sharex=True).flat)
    for k, axes in enumerate(panels):
        if k >= len(mean):
            axes.set_axis_off()
            continue
        centre, width = mean[k].numpy(), 2 * std[k].numpy()
        if signals:
            axes.fill_between(place, centre - width, centre + width, color=BLUE, alpha=0.2, linewidth=0, label="mean ± 2 sd")
            axes.plot(place, centre, color=BLUE, linewidth=1.5, label="mean")
            for sample in samples[k].numpy():
                axes.plot(place, sample, color=GREY, linewidth=0.6, alpha=0.7)
        else:
            axes.errorbar(place, centre, width, fmt="o", color=BLUE, markersize=4, capsize=3, label="mean ± 2 sd")
            for sample in samples[k].numpy():
                axes.plot(place, sample, linestyle="", marker="_", color=GREY, alpha=0.8)
        if truth is not None:
            axes.plot(
                place, truth[k].numpy(), color="black", linewidth=1.0 if signals else 0, marker=None if signals else "x", label="truth"
            )
        if same:
            axes.plot(place, y[k].numpy(), linestyle="", marker=".", color=ORANGE, markersize=5, label="measured")
        fig.style(axes)
        if not signals and names is not None and len(names) <= 12:
            axes.set_xticks(place, list(names), rotation=30, ha="right")
    fig.legend(panels[0])
    figure.supxlabel("position" if signals else "entry", fontsize=TEXT)
    return fig.save_figure(figure, path)


def plot_calibration(parts: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Coverage and ranks of each named test, a row each, written to `path` (.png); a test is what `Calibration.to_json` gives.

    Left: the share of truths inside intervals and regions against the share that should be, with the band of as many problems. Right: the
    ranks' distribution functions less that of uniform ones, a line for each projection, with the band that holds one whole line in 95 %.
    """
    figure = fig.new_figure(9, 3.1 * len(parts) + 0.2)
    for (name, part), (left, right) in zip(parts.items(), figure.subplots(len(parts), 2, squeeze=False), strict=True):
        draw_coverage(left, part["coverage"], name)
        draw_ranks(right, part["sbc"], f"ranks: p = {part['sbc_p']:.2g}; TARP: p = {part['tarp_p']:.2g}")
    return fig.save_figure(figure, path)


def draw_coverage(axes: Axes, shares: Mapping[str, Any], title: str) -> None:
    """The left panel of `plot_calibration`."""
    levels = np.array(shares["entries"]["levels"])
    low, high = np.array(shares["entries"]["band"]).T
    axes.fill_between(levels, low, high, color=GREY, alpha=0.25, linewidth=0, label="95 % of right ones")
    axes.plot(levels, levels, color=GREY, linewidth=1.0)
    for k, (key, (colour, label)) in enumerate(COVERAGES.items()):
        value, error = (np.array(shares[key][name]) for name in ("value", "std_error"))
        axes.errorbar(levels + 0.004 * (k - 1), value, error, color=colour, marker="o", markersize=4, capsize=2, label=label)
    fig.style(axes, title, "share that should hold the truth", "share that does")
    fig.legend(axes)


def draw_ranks(axes: Axes, curves: Mapping[str, Any], title: str) -> None:
    """The right panel of `plot_calibration`."""
    points = np.array(curves["points"])
    axes.fill_between(points, np.array(curves["low"]) - points, np.array(curves["high"]) - points, color=GREY, alpha=0.25, linewidth=0)
    for line in np.array(curves["ecdf"]):
        axes.plot(points, line - points, color=BLUE, linewidth=0.8, alpha=0.7)
    fig.style(axes, title, "rank of the truth among its samples", "share of ranks below, less the rank")
