"""What the plots share: figures that leave matplotlib's global state alone, one style, and figures as images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .images import DPI, NOT_FINITE, display_values, in_palette, save_image

Array = NDArray[np.float64]

# Okabe and Ito's colours, told apart by colour-blind readers
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#666666"
RED = "#{:02x}{:02x}{:02x}".format(*NOT_FINITE)
TEXT = 9.5  # points
FPS = 12.0


def new_figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """A figure of `width` x `height` inches that pyplot knows nothing of."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Our text sizes, a faint grid, no box."""
    axes.set_title(title, fontsize=TEXT + 1, loc="left")
    axes.set_xlabel(xlabel, fontsize=TEXT)
    axes.set_ylabel(ylabel, fontsize=TEXT)
    axes.tick_params(labelsize=TEXT)
    axes.grid(True, color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes) -> None:
    axes.legend(fontsize=TEXT, frameon=True, framealpha=0.85, edgecolor="none")


def legend_below(axes: Axes) -> None:
    """The legend in two columns under the axis' name, where it covers nothing."""
    axes.legend(
        fontsize=TEXT, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.16), columnspacing=1.2, handlelength=1.6
    )


def warn(axes: Axes, text: str) -> None:
    """A red note inside the panel: what it could not show."""
    if text:
        box = {"facecolor": "white", "edgecolor": RED, "alpha": 0.9, "pad": 2.5}
        axes.text(0.02, 0.98, text, transform=axes.transAxes, va="top", color=RED, fontsize=TEXT, fontweight="bold", bbox=box, zorder=9)


def to_image(figure: Figure) -> Image.Image:
    canvas = agg_canvas(figure)
    canvas.draw()
    return canvas_image(canvas)


def agg_canvas(figure: Figure) -> FigureCanvasAgg:
    canvas = figure.canvas
    return canvas if isinstance(canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)


def canvas_image(canvas: FigureCanvasAgg) -> Image.Image:
    """What is drawn on the canvas, as RGB."""
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure as PNG, atomically, and return its path."""
    return save_plot(to_image(figure), path)


def save_plot(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """As `save_image`, in 256 colours: of lines and letters nobody sees the difference, and the file is half as large."""
    kept = [tuple(bytes.fromhex(colour[1:])) for colour in (BLUE, ORANGE, GREEN, PURPLE, GREY)]
    return save_image(in_palette([image], 256, kept)[0], path)  # type: ignore[arg-type]


def vectors(x: Tensor, name: str, dimension: int | None = None) -> Array:
    """x as (N, D) float64, or a ValueError that names it."""
    if x.ndim != 2 or 0 in x.shape or dimension not in (None, x.shape[1]):
        raise ValueError(f"{name} must have shape (N, {dimension or 'D'}) with N > 0, not {tuple(x.shape)}")
    return display_values(x).numpy()


def finite_rows(x: Array) -> Array:
    return x[np.isfinite(x).all(1)]


def lost_rows(x: Array) -> str:
    """A note on the rows that no plot can place; empty where there are none."""
    lost = len(x) - len(finite_rows(x))
    return f"{lost} of {len(x)} not finite" if lost else ""


def window(points: Array, margin: float) -> Array:
    """(2, D): the low and high corner of the points' box, widened on each side by `margin` of its longest side."""
    points = finite_rows(points)
    if not len(points):
        return np.stack([-np.ones(points.shape[1]), np.ones(points.shape[1])])
    low, high = points.min(0), points.max(0)
    reach = margin * max(float((high - low).max()), 1e-6 * max(1.0, float(np.abs(high).max())))
    return np.stack([low - reach, high + reach])


def spread(n: int, most: int) -> list[int]:
    """At most `most` of the indices 0..n-1, evenly spaced, both ends included."""
    return sorted({round(float(k)) for k in np.linspace(0, n - 1, min(n, most))}) if n > 0 else []


def feature_names(dimension: int) -> Sequence[str]:
    return [f"feature $x_{{{k + 1}}}$" for k in range(dimension)]


def frame_labels(n: int, labels: Sequence[str] | None) -> list[str]:
    if labels is not None and len(labels) != n:
        raise ValueError(f"{n} frames need {n} labels, not {len(labels)}")
    if not n:
        raise ValueError("a film needs at least one frame, not 0")
    return list(labels) if labels is not None else [f"frame {k + 1} of {n}" for k in range(n)]
