"""One-dimensional signals (N, C, L) as grids of small line plots."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from PIL import Image
from torch import Tensor

from . import figures as fig
from .figures import BLUE, GREEN, ORANGE, PURPLE, RED, TEXT
from .images import Range, display_values, finite_range, not_finite_note


class SignalGrid:
    """A grid of small line plots that can be drawn again with other signals: (N, C, L), at most `rows` x `columns` and four channels."""

    def __init__(self, shape: Sequence[int], value_range: Range, rows: int, columns: int, titles: Sequence[str] | None = None) -> None:
        n, channels, length = shape
        columns = min(columns, n)
        rows = min(rows, -(-n // columns))
        self.shape = (min(n, rows * columns), min(channels, 4), length)
        self.figure = fig.new_figure(max(1.7 * columns, 4.0) + 0.5, max(1.2 * rows, 2.2) + 0.7)
        panels = self.figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        margin = 0.05 * (value_range[1] - value_range[0]) or 1.0
        self.axes = list(panels.flat)
        for axes in self.axes:
            fig.style(axes)
            axes.set(xlim=(0, max(length - 1, 1)), ylim=(value_range[0] - margin, value_range[1] + margin))
        for axes, title in zip(panels[0], titles or (), strict=False):
            axes.set_title(title, fontsize=TEXT)
        for axes in self.axes[self.shape[0] :]:
            axes.axis("off")
        colours = (BLUE, ORANGE, GREEN, PURPLE)[: self.shape[1]]
        self.lines = [[axes.plot([], [], color=c, linewidth=1.3, animated=True)[0] for c in colours] for axes in self.axes[: self.shape[0]]]
        self.background: Any = None
        self.figure.supxlabel("position $l$", fontsize=TEXT)
        self.figure.supylabel("value $x_l$", fontsize=TEXT)
        self.title = self.figure.suptitle(" ", fontsize=TEXT + 1, animated=True)
        if channels > 1:
            names = [f"channel {k + 1}" for k in range(self.shape[1])]
            self.figure.legend(self.lines[0], names, loc="outside lower right", ncols=4, fontsize=TEXT, frameon=False)

    def draw(self, x: Tensor, title: str) -> Image.Image:
        """The grid with signals x; where a value is not finite the line has a gap and its place is red."""
        n, channels, length = self.shape
        values = display_values(x[:n, :channels]).numpy()
        marks: list[LineCollection] = []
        width = max(1.5, 130 / length)  # points: neighbours touch
        for axes, lines, signal in zip(self.axes, self.lines, values, strict=False):
            for line, channel in zip(lines, signal, strict=True):
                line.set_data(np.arange(length), np.where(np.isfinite(channel), channel, np.nan))
            bad = np.flatnonzero(~np.isfinite(signal).all(0))
            if bad.size:
                marks.append(axes.vlines(bad, 0, 1, color=RED, linewidth=width, transform=axes.get_xaxis_transform(), animated=True))
        note = not_finite_note(x)
        self.title.set(text=f"{title}   {note}".strip() or " ", color=RED if note else "black")
        # the panels are drawn once and the lines over them: forty frames of sixteen panels would take 20 s otherwise
        canvas = fig.agg_canvas(self.figure)
        if self.background is None:
            canvas.draw()
            self.background = canvas.copy_from_bbox(self.figure.bbox)
        canvas.restore_region(self.background)
        for artist in (self.title, *marks, *(line for lines in self.lines for line in lines)):
            self.figure.draw_artist(artist)
        for mark in marks:
            mark.remove()
        return fig.canvas_image(canvas)


def signals_image(
    x: Tensor, value_range: Range | None = None, rows: int = 6, columns: int = 5, title: str = "", titles: Sequence[str] | None = None
) -> Image.Image:
    """The image of `plot_signals`; titles: one for each column."""
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"signals must have shape (N, C, L), none of them 0, not {tuple(x.shape)}")
    grid = SignalGrid(x.shape, value_range or finite_range(x[: rows * columns]), rows, columns, titles)
    return grid.draw(x, title)


def plot_signals(
    x: Tensor, path: str | os.PathLike[str], value_range: Range | None = None, rows: int = 6, columns: int = 5, title: str = ""
) -> Path:
    """The first rows x columns signals of x (N, C, L), a small panel each on common axes, written to `path` (.png).

    Up to four channels are lines of different colours. value_range: the axis of values, None for the range of the signals shown;
    values beyond it leave the panel. Where a value is NaN or infinite the line has a gap and its place is red.
    """
    return fig.save_plot(signals_image(x, value_range, rows, columns, title), path)
