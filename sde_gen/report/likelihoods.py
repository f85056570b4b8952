"""Likelihoods as pictures: histograms of groups, the images at both ends, and the terms of a bound."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from . import figures as fig
from .figures import BLUE, GREEN, GREY, ORANGE, PURPLE, TEXT
from .images import Range, tiles

BINS = 40
GROUPS = 64
"""Terms in a curve: where a chain has more, neighbours are averaged."""
MOST = 10
"""Images in a row of the extremes."""


def plot_likelihoods(groups: Mapping[str, Tensor], path: str | os.PathLike[str], unit: str) -> Path:
    """A histogram for each group of values (N,), over one axis, written to `path` (.png). Values that are not finite are left out
    and counted. Raises ValueError where no value is finite."""
    figure = fig.new_figure(8, 3.6)
    draw_histogram(figure.subplots(), groups, unit)
    return fig.save_figure(figure, path)


def draw_histogram(axes: Axes, groups: Mapping[str, Tensor], unit: str) -> None:
    """The panel of `plot_likelihoods`."""
    finite = {name: values[torch.isfinite(values)].double().cpu().numpy() for name, values in groups.items()}
    every = np.concatenate(list(finite.values())) if finite else np.zeros(0)
    if not len(every):
        raise ValueError("no value is finite")
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, BINS + 1).tolist()
    for (name, values), colour in zip(finite.items(), (GREY, BLUE, ORANGE, GREEN, PURPLE), strict=False):
        lost = len(groups[name]) - len(values)
        label = f"{name} ({len(values)}" + (f", {lost} not finite)" if lost else ")")
        if len(values):
            shares = np.full(len(values), 1 / len(values))
            axes.hist(values, edges, weights=shares, color=colour, alpha=0.35)
            axes.hist(values, edges, weights=shares, color=colour, histtype="step", linewidth=1.6, label=label)
    fig.style(axes, "", unit, "share of each group")
    fig.legend(axes)


def draw_values(axes: Axes, parts: Mapping[str, tuple[float, float]], unit: str) -> None:
    """A point with its standard error for each named part: (value, std_error), the first one on top; without an error, the point alone."""
    for k, (value, error) in enumerate(parts.values()):
        known = error if np.isfinite(error) else None
        axes.errorbar(value, k, xerr=known, fmt="o", color=BLUE, markersize=6, capsize=4, linewidth=1.8)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    fig.style(axes, "", unit, "")
    axes.set_yticks(range(len(parts)), list(parts))


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


class Terms(Protocol):
    """What `plot_terms` reads of a bound; `sde_gen.discrete.Elbo` has it."""

    @property
    def decoder(self) -> Any: ...
    @property
    def prior(self) -> Any: ...
    @property
    def diffusion(self) -> Any: ...
    @property
    def times(self) -> Tensor: ...
    @property
    def terms(self) -> Tensor: ...
    @property
    def term_errors(self) -> Tensor: ...
    @property
    def edges(self) -> Tensor: ...
    @property
    def counts(self) -> Tensor: ...
    @property
    def each(self) -> Tensor: ...
    @property
    def unit(self) -> str: ...


def plot_terms(chains: Mapping[str, Terms], path: str | os.PathLike[str], continuous: Terms | None = None) -> Path:
    """Where a chain spends its bits, written to `path` (.png).

    Left: L_t against t, a step each, with L_0 at the first time and L_T at the last. Right: the same for a unit of half log-SNR, in which
    chains of any number of steps and their continuous limit are one curve but for what the steps' length costs: the area under it is the
    sum of the L_t. Bands are one standard error; of more than `GROUPS` terms neighbours are averaged. A bound's `terms`, `edges` and
    `counts` are those of `sde_gen.discrete.Elbo`. Raises ValueError where there is no chain, or one of a single step.
    """
    return fig.save_figure(terms_figure(chains, continuous), path)


def terms_figure(chains: Mapping[str, Terms], continuous: Terms | None = None) -> Figure:
    """The figure of `plot_terms`."""
    if not chains or min(len(bound.terms) for bound in chains.values()) < 2:
        raise ValueError(f"chains of at least 2 steps are needed, got {[len(bound.terms) for bound in chains.values()]}")
    unit = next(iter(chains.values())).unit
    figure = fig.new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    ends: dict[tuple[int, str], list[tuple[Terms, Any, str, str]]] = {}
    for (name, bound), colour in zip(chains.items(), (BLUE, ORANGE, PURPLE, GREY), strict=False):
        t, level, value, error, width = _curve(bound)
        _band(left, t, value, error, colour, f"{name}: L_t")
        for at, part, mark, what in ((0, bound.decoder, "o", "L_0"), (-1, bound.prior, "s", "L_T")):
            if part.value > 0:
                label = f"{what} = {part.value:.2g}"
                ends.setdefault((at, label), []).append((bound, part, mark, colour))
        _band(right, level, value / width, error / width, colour, f"{name}: area {_number(bound.diffusion)}")
    for (at, label), found in ends.items():  # chains with the same ends share a point, in black: it is of no one chain
        bound, part, mark, colour = found[0]
        look = {"color": colour if len(found) < len(chains) else "black", "marker": mark, "markersize": 6, "capsize": 3, "linestyle": ""}
        left.errorbar(float(bound.times[at]), part.value, part.std_error, label=label, **look)
    if continuous is not None:
        _, level, value, error, width = _curve(continuous)
        _band(right, level, value / width, error / width, "black", f"continuous: area {_number(continuous.diffusion)}", (0, (2, 2)))
    left.set_xscale("log")
    left.set_yscale("log")
    fig.style(left, "The bound by step", "← data        t        noise →", f"{unit} a step")
    fig.style(
        right, f"The same for a unit of λ: areas are {unit}", "← noise       half log-SNR  λ = log(α/σ)       data →", f"{unit} a unit of λ"
    )
    right.set_ylim(0, 1.3 * right.get_ylim()[1])  # room for the legend
    fig.legend(left)
    fig.legend(right)
    return figure


def _band(axes: Any, x: fig.Array, value: fig.Array, error: fig.Array, colour: str, label: str, dashes: Any = "-") -> None:
    axes.plot(x, value, color=colour, linewidth=1.8, linestyle=dashes, label=label)
    low = np.maximum(value - error, 0.1 * value)  # a logarithmic axis has no zero
    axes.fill_between(x, low, value + error, where=np.isfinite(error), color=colour, alpha=0.25, linewidth=0)


def _number(part: Any) -> str:
    return f"{part.value:.3f}" + ("" if np.isnan(part.std_error) else f" ± {part.std_error:.3f}")


def _curve(bound: Terms) -> tuple[fig.Array, fig.Array, fig.Array, fig.Array, fig.Array]:
    """Time, half log-SNR, mean term, its error and mean width in half log-SNR, of at most `GROUPS` groups of neighbouring terms."""
    edges, counts = bound.edges.double().cpu(), bound.counts.double().cpu()
    widths, middles = edges[:-1] - edges[1:], (edges[:-1] + edges[1:]) / 2
    rows = []
    for group in torch.tensor_split(torch.arange(1, len(bound.terms)), min(GROUPS, len(bound.terms) - 1)):
        count, value, error = counts[group], bound.terms.cpu()[group], bound.term_errors.cpu()[group]
        seen = count > 0
        if not bool(seen.any()):
            continue
        # Terms of one width have one expectation to first order, and the images that drew them are weighed alike. An image that drew
        # several counts once: its terms go together.
        total = float(count.sum())
        of_image = (error.square() * count)[count > 1]
        several = max(1.0, total / len(bound.each))
        error_of_mean = (float(of_image.nanmean()) / total * several) ** 0.5 if len(of_image) else float("nan")
        width = widths[group - 1]
        share = float((value / width)[seen] @ count[seen]) / total * float(width.mean())
        rows.append((float(bound.times.cpu()[group].mean()), float(middles[group - 1].mean()), share, error_of_mean, float(width.mean())))
    return tuple(np.array(column) for column in zip(*rows, strict=True))  # type: ignore[return-value]
