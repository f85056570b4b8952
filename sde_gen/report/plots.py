"""Losses and points as figures. All draw through matplotlib's `Figure`, never pyplot: nothing global is changed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image
from torch import Tensor

from . import figures as fig
from .figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, TEXT, Array
from .images import save_gif

_MOST_POINTS = 20_000  # a film or a scatter of more is a blot, and slow


# ---------------------------------------------------------------- loss


def plot_loss(
    history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], baselines: Mapping[str, Sequence[float]] | None = None
) -> Path:
    """Written to `path` (.png): the loss over training steps, the held-out error over training steps, and that error by noise level.

    The training loss has the weights and times of its objective; the held-out error is the mean over the noise levels of the squared error
    over the zero predictor's. The two are of different scales, so each has a panel of its own. The second is left out where nothing was
    held out.

    history: {"step", "seconds", "loss", optional "validation": float, optional "levels": lambda = log(alpha/sigma) of each level,
    optional "level_loss": the loss at each}, in the order of training. The last entry with "level_loss" is bold; of the earlier ones
    up to four are faint. baselines: {"levels": lambda, optional "zero": loss of the network that answers 0, optional "linear": loss of
    the optimal linear denoiser, the exact one for Gaussian data, optional "best": the least that any network can have on the training
    data, 0 where it has memorised them and cut off at the other curves' lowest}, interpolated in lambda. Without "zero" the losses are
    taken to be in units of it, which those of a noise prediction are (E[eps^2] = 1). A loss that is not finite is marked in red.

    Raises ValueError for an empty history, an entry without "step" or "loss", or lists whose lengths differ.
    """
    return fig.save_figure(loss_figure(history, baselines), path)


def loss_figure(history: Sequence[Mapping[str, Any]], baselines: Mapping[str, Sequence[float]] | None = None) -> Figure:
    """The figure of `plot_loss`."""
    if not history:
        raise ValueError("history must have at least one entry, not 0")
    for entry in history:
        if not {"step", "loss"} <= entry.keys():
            raise ValueError(f'each entry of history needs "step" and "loss", not only {sorted(entry)}')
    figure = fig.new_figure(10.5, 5.2)
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    draw_loss_over_steps(left, history)
    draw_loss_by_level(right.subplots(), history, baselines or {})
    return figure


def _moving_average(values: Array, half: int) -> Array:
    """Mean over 2 half + 1 neighbours, fewer at the ends; values that are not finite do not count."""
    good = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(v)]) for v in (np.where(good, values, 0.0), good))
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)


def _scale_y(axes: Axes, values: Array) -> None:
    """A logarithmic axis where the values are positive and differ by more than a factor of five."""
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 5 * values.min():
        axes.set_yscale("log")
        # with few decades 2 and 5 have labels too, or there would be one label or none
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if values.max() < 100 * values.min() else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def draw_loss_over_steps(figure: Figure | SubFigure, history: Sequence[Mapping[str, Any]]) -> None:
    """The left half of `plot_loss`: a panel of the training loss, and one below of the held-out error where it was measured."""
    points = [(entry["step"], float(entry["validation"])) for entry in history if entry.get("validation") is not None]
    axes, *below = figure.subplots(1 + bool(points), 1, sharex=True, squeeze=False)[:, 0]
    steps, loss = (np.array([entry[key] for entry in history], dtype=float) for key in ("step", "loss"))
    seconds = history[-1].get("seconds")
    title = "Training loss" + ("" if seconds is None else f": {steps[-1]:,.0f} steps in {seconds:,.0f} s")
    fig.style(axes, title, "" if below else "training step", "loss, training's weights")
    few = len(loss) < 20
    if not few:
        axes.plot(steps, loss, color=BLUE, alpha=0.25, linewidth=0.8, label="each entry")
    smooth = loss if few else _moving_average(loss, max(2, len(loss) // 60))
    axes.plot(steps, smooth, color=BLUE, linewidth=2, marker="o" if few else None, markersize=4, label="training" if few else "smoothed")
    _scale_y(axes, loss)
    bad = steps[~np.isfinite(loss)]
    if bad.size:
        axes.plot(bad, np.full(bad.shape, 0.02), "x", color=RED, transform=axes.get_xaxis_transform(), label=f"not finite ({bad.size})")
    fig.legend(axes)
    for panel in below:
        panel.plot(*zip(*points, strict=True), "D-", color=ORANGE, markeredgecolor="black", markersize=6, label="held out")
        fig.style(panel, "Held-out error: mean over noise levels", "training step", "error / zero predictor's")
        _scale_y(panel, np.array([value for _, value in points]))
    for panel in (axes, *below):
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def draw_loss_by_level(axes: Axes, history: Sequence[Mapping[str, Any]], baselines: Mapping[str, Sequence[float]]) -> None:
    """The right panel of `plot_loss`: the held-out error by noise level, its legend below the axes."""
    unknown = baselines.keys() - {"levels", "zero", "linear", "best"}
    if unknown or (baselines and "levels" not in baselines):
        raise ValueError(f'baselines must have "levels" and may have "zero", "linear" and "best", not {sorted(baselines)}')
    base = {key: np.asarray(value, dtype=float) for key, value in baselines.items()}
    if len({len(value) for value in base.values()}) > 1:
        raise ValueError(f"the lists of baselines must have equal lengths, not {[len(value) for value in base.values()]}")
    if base:
        base = {key: value[np.argsort(base["levels"])] for key, value in base.items()}

    def over_zero(levels: Array, loss: Array) -> Array:
        return loss / np.interp(levels, base["levels"], base["zero"]) if "zero" in base else loss

    fig.style(
        axes, "Held-out error by noise level", "← noise       half log-SNR  λ = log(α/σ)       data →", "error / zero predictor's error"
    )
    curves = [entry for entry in history if entry.get("level_loss") is not None]
    shown = [*(curves[:-1][k] for k in fig.spread(len(curves) - 1, 4)), *curves[-1:]]
    values = [np.ones(1)]
    for k, entry in enumerate(shown):
        levels, loss = (np.asarray(entry.get(key, ()), dtype=float) for key in ("levels", "level_loss"))
        if levels.shape != loss.shape:
            raise ValueError(f'"levels" and "level_loss" must have equal lengths, not {levels.size} and {loss.size} (step {entry["step"]})')
        order = np.argsort(levels)
        ratio = over_zero(levels, loss)[order]
        values.append(ratio)
        last = k == len(shown) - 1
        (line,) = axes.plot(levels[order], ratio, color=str(0.8 - 0.1 * k), linewidth=1.3, label=f"network, step {entry['step']:,}")
        if last:
            line.set(color=BLUE, linewidth=2.5, marker="o", markersize=4, zorder=3)
        bad = levels[order][~np.isfinite(ratio)]
        if last and bad.size:
            axes.plot(bad, np.full(bad.shape, 0.02), "x", color=RED, transform=axes.get_xaxis_transform(), label=f"not finite ({bad.size})")
    if "linear" in base:
        linear = over_zero(base["levels"], base["linear"])
        values.append(linear)
        axes.plot(base["levels"], linear, color=GREEN, linewidth=1.8, linestyle=(0, (6, 2)), label="optimal linear denoiser")
    axes.axhline(1.0, color="black", linewidth=1.3, linestyle=":", label="zero predictor")
    _scale_y(axes, np.concatenate(values))
    if "best" in base:  # falls to nothing: the other curves keep the window, a little wider below
        bottom, top = axes.get_ylim()
        bottom = bottom / 2 if axes.get_yscale() == "log" else min(0.0, bottom)
        best = np.maximum(over_zero(base["levels"], base["best"]), 0.1 * bottom)
        axes.plot(base["levels"], best, color=PURPLE, linewidth=1.8, linestyle=(0, (1, 1)), label="best possible on the training data")
        axes.set_ylim(bottom, top)
    if not curves:
        axes.set(ylim=(0, 1.25), xticks=[])
        axes.text(0.5, 0.5, "no loss by noise level was recorded", transform=axes.transAxes, ha="center", fontsize=TEXT, color=GREY)
    fig.legend_below(axes)


# ---------------------------------------------------------------- points


def plot_points(samples: Tensor, reference: Tensor | None, path: str | os.PathLike[str], title: str = "") -> Path:
    """Samples (N, 2) beside the data (M, 2) they should look like, on equal axes, written to `path` (.png).

    Up to 2,000 points a panel are dots, more are counted in hexagons (one colour scale for both panels). The window is the data's box
    and a quarter of its size around; samples outside it are red crosses on its edge, and those that are not finite are counted in red.
    """
    drawn = fig.vectors(samples, "samples", 2)
    sets = {"samples": drawn} if reference is None else {"data": fig.vectors(reference, "reference", 2), "samples": drawn}
    corners = fig.window(next(iter(sets.values())), 0.25 if reference is not None else 0.05)
    across, up = corners[1] - corners[0]
    figure = fig.new_figure(4.7 * len(sets) + 0.6, 1.0 + 4.0 * float(np.clip(up / across, 0.5, 1.6)))
    panels = figure.subplots(1, len(sets), squeeze=False)[0]
    dots = max(len(x) for x in sets.values()) <= 2000
    hexagons = []
    for axes, (name, x) in zip(panels, sets.items(), strict=True):
        good = fig.finite_rows(x)
        inside = good[((good >= corners[0]) & (good <= corners[1])).all(1)]
        fig.style(axes, f"{name} (N = {len(x):,})", *fig.feature_names(2))
        if dots:
            axes.scatter(*inside.T, s=9, alpha=0.5, color=BLUE, linewidths=0)
        else:
            extent = (*corners[:, 0], *corners[:, 1])
            share = np.full(len(inside), 100 / len(x))
            hexagons.append(axes.hexbin(*inside.T, C=share, reduce_C_function=np.sum, gridsize=60, extent=extent, mincnt=1, linewidths=0.1))
        outside = len(good) - len(inside)
        if outside:
            edge = np.clip(good, *corners)[(good != np.clip(good, *corners)).any(1)]
            axes.scatter(*edge.T, marker="x", s=30, color=RED, clip_on=False, zorder=5)
        notes = [fig.lost_rows(x), f"{outside} of {len(x)} outside the window" if outside else ""]
        fig.warn(axes, "\n".join(note for note in notes if note))
        axes.set(xlim=corners[:, 0], ylim=corners[:, 1], aspect="equal")
    if hexagons:
        top = max(float(h.get_array().max()) if h.get_array().size else 0.0 for h in hexagons)
        for h in hexagons:
            h.set_clim(0, top or 1)
        bar = figure.colorbar(hexagons[-1], ax=list(panels), shrink=0.8)
        bar.set_label("share of the points in a hexagon (%)", fontsize=TEXT)
        bar.ax.tick_params(labelsize=TEXT)
    if title:
        figure.suptitle(title, fontsize=TEXT + 2)
    return fig.save_figure(figure, path)


def _opacity(n: int) -> float:
    """Of a dot among n, so that many do not become a blot."""
    return float(np.clip(700 / max(n, 1), 0.1, 0.6))


def plot_pairs(samples: Tensor, reference: Tensor | None, path: str | os.PathLike[str], title: str = "", features: int = 4) -> Path:
    """The first `features` of samples (N, D) against each other, histograms on the diagonal, over the data (M, D) if given."""
    sets = {} if reference is None else {"data": (fig.vectors(reference, "reference"), ORANGE)}
    sets["samples"] = (fig.vectors(samples, "samples"), BLUE)
    if len({x.shape[1] for x, _ in sets.values()}) > 1:
        raise ValueError(f"samples and reference must have as many features, not {samples.shape[1]} and {sets['data'][0].shape[1]}")
    d = min(features, samples.shape[1])
    corners = fig.window(next(iter(sets.values()))[0][:, :d], 0.15)
    names = fig.feature_names(d)
    clouds = [(fig.finite_rows(x)[:_MOST_POINTS, :d], colour) for x, colour in sets.values()]
    points, colours = np.concatenate([x for x, _ in clouds]), np.repeat([c for _, c in clouds], [len(x) for x, _ in clouds])
    mixed = np.random.default_rng(0).permutation(len(points))  # neither set lies over the other
    points, colours = points[mixed], colours[mixed]
    size = 5.0 if d == 1 else 2.1 * d + 0.6
    figure = fig.new_figure(size, size if d > 1 else 4.0)
    panels = figure.subplots(d, d, squeeze=False, sharex="col")
    for i in range(d):
        for j in range(d):
            axes = panels[i, j]
            if j > i:
                axes.axis("off")
                continue
            fig.style(axes, "", names[j] if i == d - 1 else "", "density" if i == j else names[i] if j == 0 else "")
            if i != j:
                axes.scatter(points[:, j], points[:, i], s=5, c=colours, linewidths=0, alpha=_opacity(len(points) // len(sets)))
                axes.set_ylim(corners[:, i])
            for name, (x, colour) in sets.items() if i == j else ():
                good, bins = fig.finite_rows(x)[:, j], np.linspace(corners[0, j], corners[1, j], 41)
                share = np.histogram(good, bins)[0] / (max(len(good), 1) * (bins[1] - bins[0]))
                axes.stairs(share, bins, color=colour, linewidth=2.2 if name == "samples" else 1.6, label=f"{name} (N = {len(x):,})")
            axes.set_xlim(corners[:, j])
    handles = panels[0, 0].get_legend_handles_labels()[0]
    lost = fig.lost_rows(sets["samples"][0])
    if lost:
        handles.append(Line2D([], [], color=RED, marker="x", linestyle="", label=f"samples: {lost}"))
    figure.legend(handles=handles, loc="outside upper right", fontsize=TEXT, frameon=False)
    if title:
        figure.suptitle(title, fontsize=TEXT + 2, x=0.02, ha="left")
    return fig.save_figure(figure, path)


def points_film(frames: Sequence[Tensor], labels: Sequence[str] | None = None) -> list[Image.Image]:
    """The images of `plot_points_film`."""
    clouds = [fig.vectors(x, "each frame", 2) for x in frames]
    names = fig.frame_labels(len(clouds), labels)
    corners = fig.window(clouds[-1], 0.4)
    figure = fig.new_figure(4.6, 4.8)
    axes = figure.subplots()
    fig.style(axes, " ", *fig.feature_names(2))
    axes.set(xlim=corners[:, 0], ylim=corners[:, 1], aspect="equal")
    cloud = axes.scatter([], [], s=7, alpha=0.5, color=BLUE, linewidths=0)
    note = axes.text(0.98, 0.98, "", transform=axes.transAxes, ha="right", va="top", fontsize=TEXT)
    images = []
    for x, name in zip(clouds, names, strict=True):
        good = fig.finite_rows(x)
        outside = int(((good < corners[0]) | (good > corners[1])).any(1).sum())
        lost = fig.lost_rows(x)
        cloud.set_offsets(good[:5000])
        axes.set_title(name, loc="left", fontsize=TEXT + 1)
        note.set_text("\n".join(t for t in (lost, f"{outside} of {len(x)} outside the window" if outside else "") if t))
        note.set_color(RED if lost else GREY)
        images.append(fig.to_image(figure))
        figure.set_layout_engine("none")  # the axes must not move from frame to frame
    return images


def plot_points_film(
    frames: Sequence[Tensor], path: str | os.PathLike[str], labels: Sequence[str] | None = None, fps: float = fig.FPS, hold: float = 1.5
) -> Path:
    """A GIF of points (N, 2) along sampling (5,000 of them are drawn), the last frame held for `hold` seconds.

    The window is fixed: the last frame's box and 40 % of its size around; the number of points outside it is written in the frame.
    """
    return save_gif(points_film(frames, labels), path, fps, hold)


def vectors_film(frames: Sequence[Tensor], labels: Sequence[str] | None = None) -> list[Image.Image]:
    """As `points_film`, for vectors (N, D): the first two features, or for D = 1 the feature against the sample's number."""
    return points_film([_two_features(x) for x in frames], labels)


def _two_features(x: Tensor) -> Tensor:
    if x.shape[1] > 1:
        return x[:, :2]
    return torch.stack([x[:, 0], torch.arange(len(x), dtype=x.dtype, device=x.device)], 1)


def plot_clouds(columns: Sequence[Tensor], labels: Sequence[str], path: str | os.PathLike[str]) -> Path:
    """A panel for each of the sets (N, D) in `columns`, its label above: the first two features, or for D = 1 a histogram.

    Each panel has axes of its own, so that data and noise of very different scales are both seen; read the ticks.
    """
    down = -(-len(columns) // 5)
    across = -(-len(columns) // down)
    figure = fig.new_figure(2.2 * across, 2.6 * down)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, column, label in zip(panels, columns, labels, strict=False):
        x = fig.vectors(column, "each column")
        names = fig.feature_names(min(2, x.shape[1]))
        good = fig.finite_rows(x)[:_MOST_POINTS, :2]
        fig.style(axes, "", names[0], "density" if x.shape[1] == 1 else names[1])
        axes.set_title(label, fontsize=TEXT, loc="center")
        if x.shape[1] == 1:
            axes.hist(good[:, 0], bins=40, density=True, color=BLUE)
        else:
            corners = fig.window(good, 0.05)
            corners = corners.mean(0) + np.array([[-0.5], [0.5]]) * (corners[1] - corners[0]).max()  # square, so that the panels line up
            axes.scatter(*good.T, s=4, alpha=_opacity(len(good)), color=BLUE, linewidths=0)
            axes.set(xlim=corners[:, 0], ylim=corners[:, 1], aspect="equal")
        fig.warn(axes, fig.lost_rows(x))
    for axes in panels[len(columns) :]:
        axes.axis("off")
    return fig.save_figure(figure, path)
