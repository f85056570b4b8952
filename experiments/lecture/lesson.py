"""What a lesson is, and what lessons share: the place for pictures, the data, the network, images with labels, an error bar."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import sde_gen
from sde_gen.commands.config import resolve
from sde_gen.commands.runs import open_run
from sde_gen.report import figures as fig
from sde_gen.report.images import Range, image_grid

MOST_BYTES = 300_000
"""Of a picture."""
STEPS = 700
"""Of training the digits network that the lessons share: about a minute on two cores. `run.py`'s default is 1,800."""
MNIST = Path(os.environ.get("SDE_GEN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "mnist"
"""Where the four IDX files of MNIST are looked for: beside the checkout, or under $SDE_GEN_DATA."""


class Skipped(Exception):
    """A lesson that cannot be made on this machine; the message says why, in one sentence."""


@dataclass
class Studio:
    """place: the directory of the pictures; run: the run directory of the digits network, trained the first time that a lesson asks for it
    (that of the MNIST network has "-mnist" after it); scale: a share of the samples and steps, for trying a lesson out (the page is made
    at 1); steps: of training each of the two networks."""

    place: Path
    run: Path
    scale: float = 1.0
    steps: int = STEPS

    def count(self, full: int, least: int = 2) -> int:
        """How many of something to use where a whole page uses `full`."""
        return max(min(full, least), round(full * self.scale))

    @cached_property
    def digits(self) -> sde_gen.Dataset:
        """The 1,797 handwritten digits that scikit-learn ships, 8x8, values 0 to 16."""
        return sde_gen.load_dataset("digits")

    @cached_property
    def model(self) -> sde_gen.ScoreModel:
        """The digits network: `experiments/run.py`'s default recipe, shorter; VP, with averaged weights."""
        return open_run(resolve({"training": {"steps": self.steps}}), self.run).model

    @cached_property
    def labelled_model(self) -> sde_gen.ScoreModel:
        """The same network told the digits' labels."""
        config = resolve({"data": {"labels": True}, "training": {"steps": self.steps}})
        return open_run(config, self.run.with_name(f"{self.run.name}-labels")).model

    @cached_property
    def mnist(self) -> sde_gen.Dataset:
        """MNIST's handwritten digits, 28x28, values 0 to 255; `Skipped` where its files are missing."""
        if not MNIST.is_dir():
            raise Skipped(f"it needs MNIST's four IDX files in {MNIST} (SDE_GEN_DATA names another place than its parent)")
        return sde_gen.load_dataset("mnist", root=MNIST)

    @cached_property
    def mnist_model(self) -> sde_gen.ScoreModel:
        """The MNIST network: `experiments/run.py --data mnist`'s recipe, far shorter."""
        training = {"steps": self.steps, "max_seconds": None}
        config = resolve({"data": {"name": "mnist", "root": str(MNIST)}, "training": training})
        return open_run(config, self.run.with_name(f"{self.run.name}-mnist")).model

    def save(self, figure: Figure, name: str) -> Path:
        """Write `name`.png; ValueError where it is larger than a page should load."""
        path = fig.save_figure(figure, self.place / f"{name}.png")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a picture of the gallery has at most {MOST_BYTES:,}")
        return path


Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Lesson:
    """title: a heading. text: Markdown before the picture, with the equation; says: the lines that the command prints and the page shows.
    Both may name numbers, `<<like_this:.2f>>`, which `draw(studio)` returns after it has written <name>.png; alt: what the picture shows,
    for who cannot see it."""

    title: str
    text: str
    says: tuple[str, ...]
    alt: str
    draw: Callable[[Studio], Numbers]


def show(axes: Axes, images: Tensor, value_range: Range, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> None:
    """Images (R, C, 1, H, W) in the data's units as one picture, with labels beside its rows and above its columns."""
    height, width = images.shape[:2]
    axes.imshow(image_grid(images.flatten(0, 1), height, width, 6, 2, value_range), cmap="gray", interpolation="nearest")
    cell = 6 * images.shape[-1] + 2
    axes.set_xticks([cell * (k + 0.5) + 1 for k in range(len(columns))], columns)
    axes.set_yticks([cell * (k + 0.5) + 1 for k in range(len(rows))], rows)
    axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0, labelsize=fig.TEXT)
    axes.spines[:].set_visible(False)


def root_mean(squares: Tensor) -> tuple[float, float]:
    """Root of the mean of squares (N,), and its standard error."""
    value = math.sqrt(float(squares.mean()))
    return value, float(squares.std()) / math.sqrt(len(squares)) / (2 * value)
