"""Fields channel by channel: samples beside held-out items, the distribution of their values, and their spectrum."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from torch import Tensor

from . import figures as fig
from .figures import BLUE, ORANGE, Array
from .images import display_values

EACH, MOST_CHANNELS, MOST_ITEMS, BINS = 3, 6, 256, 60
"""Items shown of samples and of held-out ones, channels, items that distributions and spectra are taken of, and bins of the former."""
NO_DATA = "0.55"


def picture_fields(
    x: Tensor,
    held_out: Tensor,
    path: str | os.PathLike[str],
    valid: Tensor | None = None,
    held_out_valid: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Samples x (N, C, *spatial) of two or three axes of space beside held-out items (M, C, *spatial) as `path` (.png).

    A row for each of the first six channels, in its own range: three samples and three held-out items (of volumes the middle slice of the
    first axis), the distribution of the values, and the power spectrum about the held-out mean, by periods a field, of the first 256 of
    each; around the samples' spectrum a band of two standard errors. valid, held_out_valid: Boolean, broadcast to each; other entries are
    grey, have no part in the distribution, and count as the mean in the spectrum. names: of the channels.
    """
    parts = [_Part.of(x, valid), _Part.of(held_out, held_out_valid)]
    channels = min(x.shape[1], MOST_CHANNELS)
    wide, high = x.shape[-1] / max(x.shape[-2:]), x.shape[-2] / max(x.shape[-2:])
    figure = fig.new_figure(2 * EACH * 1.5 * wide + 5.6, channels * max(1.7, 1.5 * high) + 0.4)
    grid = figure.add_gridspec(channels, 2 * EACH + 2, width_ratios=[1.5 * wide] * (2 * EACH) + [2.7, 2.7])
    for channel in range(channels):
        known = parts[1].values[:, channel][parts[1].valid[:, channel]]
        low, high_end = (float(end) for end in np.quantile(known, (0.005, 0.995)))
        ends = (low, high_end) if low < high_end else (low - 1.0, low + 1.0)
        for column in range(2 * EACH):
            part, item = parts[column // EACH], column % EACH
            axes = figure.add_subplot(grid[channel, column])
            axes.set_axis_off()
            if item < len(part.values):
                axes.imshow(part.slice(item, channel), vmin=ends[0], vmax=ends[1], cmap=_colours(), interpolation="nearest")
            if not channel and not item:
                axes.set_title("samples" if column < EACH else "held out", fontsize=fig.TEXT + 1, loc="left")
        name = names[channel] if names is not None else f"channel {channel + 1}" if x.shape[1] > 1 else ""
        _levels(figure.add_subplot(grid[channel, -2]), parts, channel, ends, name, not channel)
        _spectra(figure.add_subplot(grid[channel, -1]), parts, channel, float(known.mean()), "spectrum" if not channel else "")
    return fig.save_figure(figure, path)


class _Part:
    """Items (N, C, *spatial) and which of their entries are data, as arrays."""

    def __init__(self, values: Array, valid: np.ndarray) -> None:
        self.values, self.valid = values, valid & np.isfinite(values)

    @classmethod
    def of(cls, x: Tensor, valid: Tensor | None) -> _Part:
        x = display_values(x[:MOST_ITEMS])
        there = torch.ones((), dtype=torch.bool) if valid is None else valid.detach().cpu()
        there = there[: len(x)] if there.ndim == x.ndim else there
        return cls(x.numpy(), there.expand(x.shape).numpy())

    def slice(self, item: int, channel: int) -> np.ma.MaskedArray:
        values, there = self.values[item, channel], self.valid[item, channel]
        if values.ndim == 3:
            values, there = values[len(values) // 2], there[len(there) // 2]
        return np.ma.masked_array(values, ~there)

    def spectrum(self, channel: int, mean: float) -> tuple[Array, Array]:
        """Of each item the mean power in each shell of frequencies, (N, shells) about `mean`, and the shells' periods a field."""
        values = np.where(self.valid[:, channel], self.values[:, channel] - mean, 0.0)
        axes = tuple(range(1, values.ndim))
        power = np.abs(np.fft.fftn(values, axes=axes, norm="ortho")) ** 2
        space = values.shape[1:]
        radius = np.sqrt(sum(along**2 for along in np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in space), indexing="ij")))
        shell = np.rint(radius).astype(int).ravel()
        shells = np.arange(min(n // 2 for n in space) + 1)
        of_shells = [power.reshape(len(values), -1)[:, shell == k].mean(1) for k in shells]
        return np.stack(of_shells, 1), shells.astype(np.float64)


def _colours() -> Colormap:
    return colormaps["viridis"].with_extremes(bad=NO_DATA)


def _levels(axes: Axes, parts: Sequence[_Part], channel: int, ends: tuple[float, float], name: str, labelled: bool) -> None:
    reach = (ends[1] - ends[0]) / 4
    edges = np.linspace(ends[0] - reach, ends[1] + reach, BINS + 1)
    for part, colour, label in zip(parts, (BLUE, ORANGE), ("samples", "held out"), strict=True):
        values, filled = part.values[:, channel][part.valid[:, channel]], part is parts[0]
        heights = np.histogram(values, edges)[0] / max(1, len(values))
        axes.stairs(heights, edges, fill=filled, color=colour, alpha=0.5 if filled else 1.0, label=label)
    fig.style(axes, name or "values")
    axes.set_yticks([])
    if labelled:
        fig.legend(axes)


def _spectra(axes: Axes, parts: Sequence[_Part], channel: int, mean: float, name: str) -> None:
    for part, colour in zip(parts, (BLUE, ORANGE), strict=True):
        each, periods = part.spectrum(channel, mean)
        middle, error = each.mean(0), each.std(0) / math.sqrt(len(each))
        axes.plot(periods, middle, color=colour, linewidth=1.2)
        if part is parts[0]:
            axes.fill_between(
                periods + 1, np.maximum(middle - 2 * error, middle / 10), middle + 2 * error, color=colour, alpha=0.3, linewidth=0
            )
        if middle.max() > 0:
            axes.set_yscale("log")
    fig.style(axes, name, "periods a field")
