"""Margins of a table's columns: samples beside the truth, a panel for each column."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import figures as fig
from .figures import BLUE, ORANGE

Margin = tuple[str, np.ndarray, np.ndarray]
"""A column's name, its known values among samples (n,) and among rows of the truth (m,): numbers, or words."""
ACROSS, MOST, BINS, MOST_WORDS = 4, 24, 40, 12


def picture_margins(margins: Sequence[Margin], path: str | os.PathLike[str], truth: str = "held-out rows") -> Path:
    """Histograms of the first 24 columns as `path` (.png): samples filled, the truth, by its name, as a line; of words the shares of the
    12 most frequent. A column whose values are never negative and whose largest is far out is cut at its 99.5 % quantile, as its title
    says."""
    shown = list(margins[:MOST])
    down = -(-len(shown) // ACROSS)
    figure = fig.new_figure(3.0 * min(ACROSS, len(shown)) + 0.2, 2.1 * down + 0.2)
    panels = np.atleast_1d(figure.subplots(down, min(ACROSS, len(shown)))).flatten()
    for axes, (name, ours, theirs) in zip(panels, shown, strict=False):
        if theirs.dtype.kind == "U" or ours.dtype.kind == "U":
            words, counts = np.unique(theirs, return_counts=True)
            top = words[np.argsort(-counts)][:MOST_WORDS]
            axes.bar(range(len(top)), [float((ours == word).mean()) for word in top], color=BLUE, alpha=0.5, label="samples")
            axes.step(
                np.arange(len(top) + 1) - 0.5,
                [*(shares := [float((theirs == word).mean()) for word in top]), shares[-1]],
                where="post",
                color=ORANGE,
                label=truth,
            )
            axes.set_xticks(range(len(top)), [str(word)[:12] for word in top], rotation=60, ha="right")
            fig.style(axes, name)
            continue
        both = np.concatenate((ours, theirs)).astype(np.float64)
        low, high = (float(end) for end in (both.min(), both.max()))
        cut = float(np.quantile(theirs.astype(np.float64), 0.995))
        far = low >= 0 and high > 3 * cut > 0
        edges = np.linspace(low, cut if far else high + 1e-9 * max(1.0, abs(high)), BINS + 1)
        for values, style in ((ours, {"color": BLUE, "alpha": 0.5, "label": "samples"}), (theirs, {"color": ORANGE, "label": truth})):
            heights = np.histogram(values, edges)[0] / max(1, len(values))
            axes.stairs(heights, edges, fill=values is ours, **style)
        fig.style(axes, f"{name} (up to {cut:.3g})" if far else name)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    fig.legend(panels[0])
    return fig.save_figure(figure, path)
