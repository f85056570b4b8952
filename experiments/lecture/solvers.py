"""Solvers: error against network calls, ours and three libraries', from the file that benchmarks/solver_error.py wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from sde_gen.report import figures as fig

from .lesson import Lesson, Numbers, Studio

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "solver_error.json"
PANELS = {
    "2-D": "mixture of Gaussians, 2-D",
    "16-D": "mixture of Gaussians, 16-D",
    "64-D": "mixture of Gaussians, 64-D",
    "digits": "digits network",
}
LOOKS: dict[str, dict[str, Any]] = {
    "ddim": {"label": "ddim, order 1", "color": fig.GREY, "marker": "s"},
    "heun": {"label": "heun, order 2", "color": fig.PURPLE, "marker": "D"},
    "dpm": {"label": "dpm, order 3", "color": fig.ORANGE, "marker": "^"},
    "unipc": {"label": "unipc, order 4", "color": fig.GREEN, "marker": "v"},
    "angle": {"label": "angle, order 5", "color": fig.BLUE, "marker": "o"},
}


def draw(studio: Studio) -> Numbers:
    families = json.loads(RESULTS.read_text(encoding="utf-8"))["families"]
    figure = fig.new_figure(10, 8)
    grid = figure.subplots(2, 2).flat
    for (key, title), axes in zip(PANELS.items(), grid, strict=True):
        _panel(axes, families[key], title)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=fig.TEXT, frameon=False)
    studio.save(figure, "solvers")
    return {
        "order_ddim": _slope(families["16-D"], "ddim", 15, 50),
        "order_angle": _slope(families["16-D"], "angle", 15, 50),
        "ratio": families["16-D"]["20"]["out of the box"]["ratio"],
        "fitted": families["16-D"]["20"]["fitted"]["ratio"],
        "worst": families["digits"]["5"]["out of the box"]["ratio"],
        "worst_fitted": families["digits"]["5"]["fitted"]["ratio"],
    }


def _panel(axes: Axes, rows: dict[str, Any], title: str) -> None:
    calls = sorted(map(int, rows))
    fig.style(axes, title, "network calls a sample", "distance to the exact flow")
    best = [rows[str(n)]["best peer"]["geometric"] for n in calls]
    axes.plot(calls, best, color="black", linewidth=2.4, linestyle=(0, (4, 2)), label="best of k-diffusion, azula, diffusers")
    for name, look in LOOKS.items():
        known = [n for n in calls if name in rows[str(n)]["others"]]
        axes.plot(known, [rows[str(n)]["others"][name]["geometric"] for n in known], linewidth=1.5, markersize=5, **look)
    fitted = [rows[str(n)]["fitted"]["geometric"] for n in calls]
    axes.plot(calls, fitted, color=fig.BLUE, linewidth=1.5, linestyle=":", marker="o", markerfacecolor="white", label="angle, fitted grid")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(calls)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _slope(rows: dict[str, Any], name: str, low: int, high: int) -> float:
    """How fast the error falls between two numbers of calls: the apparent order there."""
    first, last = (rows[str(n)]["others"][name]["geometric"] for n in (low, high))
    return math.log(first / last) / math.log(high / low)


LESSON = Lesson(
    "Fewer calls for the same answer",
    r"""
Sampling is integration, and its cost is network calls. A method of order p errs by

$$\| x_{\text{solver}} - x_{\text{exact flow}} \| = O(h^{p}) ,$$

so that on logarithmic axes a higher order is a steeper line: between 15 and 50 calls `ddim` falls with slope <<order_ddim:.1f>> and
`angle`, whose polynomials run in the share of the signal, with slope <<order_angle:.1f>>. Against the best that three libraries offer at
20 calls (their sampler, grid and smallest noise chosen afterwards in their favour) the error of `angle` on the 16-dimensional mixtures is
<<ratio:.2f>> times as large, and <<fitted:.2f>> with a grid fitted to the model. It is not everywhere ahead: on the digits network at 5
calls it is <<worst:.2f>> times as large, and <<worst_fitted:.2f>> with a fitted grid.
""",
    (
        "slopes from 15 to 50 calls, 16-D: ddim <<order_ddim:.2f>>, angle <<order_angle:.2f>>",
        "error over the best library's at 20 calls, 16-D: angle <<ratio:.2f>>, with a fitted grid <<fitted:.2f>>",
        "the same on the digits network at 5 calls: <<worst:.2f>> and <<worst_fitted:.2f>>",
    ),
    "Error against network calls on three mixtures of Gaussians and on the digits network, for six of our solvers and the best library",
    draw,
)
