"""One entry for each picture of a run, whatever the data's shape.

(N, 2) points      (N, D) vectors      (N, C, L) signals      (N, C, H, W) images      (N, C, D, H, W) volumes
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from . import plots
from .figures import FPS, frame_labels, save_plot
from .images import (
    Range,
    channels_shown,
    display_range,
    display_values,
    finite_range,
    forward_strip,
    image_grid,
    not_finite_note,
    save_gif,
    save_image,
    with_note,
)
from .signals import SignalGrid, signals_image

Kind = Literal["points", "vectors", "signals", "images", "volumes"]

_STILL_VALUES = 330_000  # of colour images this many compress to about 300 kB
_FILM_VALUES = 8_000_000  # over all frames; about 2 MB with the palettes of `save_gif`
_FILM_WIDTH = 600


def data_kind(shape: Sequence[int]) -> Kind:
    """What (N, ...) data of this shape is drawn as; ValueError where it has no picture."""
    kinds: dict[int, Kind] = {2: "vectors", 3: "signals", 4: "images", 5: "volumes"}
    if len(shape) not in kinds or 0 in shape:
        raise ValueError(f"data must have shape (N, D) or (N, C, *spatial) with 1 to 3 spatial axes, none of them 0, not {tuple(shape)}")
    return "points" if len(shape) == 2 and shape[1] == 2 else kinds[len(shape)]


def _flat(x: Tensor) -> tuple[Tensor, str]:
    """Images as they are; of volumes the middle slice of the first spatial axis, and a note that says so."""
    if x.ndim == 4:
        return x, ""
    depth = x.shape[2]
    return x[:, :, depth // 2], f"slice {depth // 2 + 1} of {depth} of each volume"


def flat_images(x: Tensor) -> Tensor:
    """Images (N, C, H, W) as they are, and the middle slices of volumes (N, C, D, H, W)."""
    return _flat(x)[0]


def _side(x: Tensor, budget: int) -> int:
    """Images along a side of the grid, at most 10 and no more than make a square, so that the values shown stay within the budget."""
    shown = math.prod(x.shape[2:]) * (3 if x.shape[1] in (3, 4) else 1)
    return min(max(2, min(10, math.isqrt(budget // shown))), math.ceil(math.sqrt(len(x))))


def _lines(*notes: str) -> str:
    return "\n".join(note for note in notes if note)


def picture_samples(
    x: Tensor, path: str | os.PathLike[str], reference: Tensor | None = None, value_range: Range | None = None, title: str = ""
) -> Path:
    """Samples x as a PNG: a 10x10 grid of images (fewer where they are large), the middle slices of volumes, a grid of lines for
    signals, a scatter beside `reference` for 2-D points, pairwise scatters of the first features for other vectors.

    value_range: (low, high) for display; None takes the reference's, and without one that of the samples. The title is for points,
    vectors and signals. Samples that are not finite are marked in red. Raises ValueError for a shape without a picture.
    """
    kind = data_kind(x.shape)
    if kind == "points":
        return plots.plot_points(x, reference, path, title)
    if kind == "vectors":
        return plots.plot_pairs(x, reference, path, title)
    if value_range is None and reference is not None:
        low, high = finite_range(reference if kind == "signals" else channels_shown(reference))
        value_range = (low, high) if low < high else None
    if kind == "signals":
        return save_plot(signals_image(x, value_range, title=title), path)
    flat, note = _flat(x)
    side = _side(flat, _STILL_VALUES)
    shown = flat[: side * side]
    return save_image(with_note(image_grid(shown, side, side, value_range=value_range), _lines(note, not_finite_note(x))), path)


def film_images(frames: Sequence[Tensor], value_range: Range | None = None, labels: Sequence[str] | None = None) -> list[Image.Image]:
    """The images of `picture_film`, one for each frame, all of one size: for a GIF, or for a page with a slider."""
    names = frame_labels(len(frames), labels)
    last = frames[-1]
    kind = data_kind(last.shape)
    for k, frame in enumerate(frames):
        if frame.shape != last.shape:
            raise ValueError(f"every frame must have the last one's shape {tuple(last.shape)}, not {tuple(frame.shape)} (frame {k})")
    if kind == "points":
        return plots.points_film(frames, names)
    if kind == "vectors":
        return plots.vectors_film(frames, names)
    base = finite_range(last if kind == "signals" else channels_shown(last))
    if kind == "signals":
        # one axis for all frames, or the lines would not be seen to shrink
        low, high = value_range or base
        reach = (high - low) / 2
        grid = SignalGrid(last.shape, value_range or (low - reach, high + reach), 4, 4)
        return [grid.draw(frame, name) for frame, name in zip(frames, names, strict=True)]
    flat = [_flat(frame)[0] for frame in frames]
    side = _side(flat[0], _FILM_VALUES // len(frames))
    shown = [frame[: side * side] for frame in flat]
    slices = _flat(last)[1]
    notes = [_lines(f"{name}    {slices}".rstrip(), not_finite_note(frame)) for name, frame in zip(names, shown, strict=True)]
    height = 26 * max(1 + note.count("\n") for note in notes)
    images = []
    for frame, note in zip(shown, notes, strict=True):
        seen = display_range(channels_shown(frame), base) if value_range is None and base[0] < base[1] else value_range
        images.append(with_note(image_grid(frame, side, side, value_range=seen, width=_FILM_WIDTH), note, height))
    width = max(image.width for image in images)
    return [_widened(image, width) for image in images]


def _widened(image: Image.Image, width: int) -> Image.Image:
    if image.width == width:
        return image
    canvas = Image.new("RGB", (width, image.height), "white")
    canvas.paste(image, ((width - image.width) // 2, 0))
    return canvas


def picture_film(
    frames: Sequence[Tensor],
    path: str | os.PathLike[str],
    value_range: Range | None = None,
    labels: Sequence[str] | None = None,
    fps: float = FPS,
    hold: float = 1.5,
) -> Path:
    """Sampling as a GIF, from noise to data: frames of equal shape (N, ...), the last one held for `hold` seconds.

    labels: a line under (points, vectors, signals: over) each frame, None for "frame k of n". value_range None shows images in the
    range of the last frame, widened to hold the central 98 % of the frame, so that the noise of a VE process is seen as noise.
    """
    return save_gif(film_images(frames, value_range, labels), path, fps, hold, labels=labels or ())


def picture_forward(
    rows: Tensor | Sequence[Tensor], labels: Sequence[str], path: str | os.PathLike[str], value_range: Range | None = None
) -> Path:
    """Data along the forward process as a PNG, a column (for points and vectors a panel) for each time, its label above it.

    rows: (n, T, ...) or n tensors (T, ...): row i is one image, signal or volume at T times (the first six are shown), or one point.
    labels: T strings, see `level_label`. value_range: for images as in `forward_strip`.
    """
    if not isinstance(rows, Tensor) and len({row.shape for row in rows}) != 1:
        raise ValueError(f"rows must be tensors of one shape (T, ...), not {sorted({tuple(row.shape) for row in rows})}")
    x = rows if isinstance(rows, Tensor) else torch.stack([display_values(row) for row in rows])
    if x.ndim < 3 or x.shape[1] != len(labels) or not labels:
        raise ValueError(f"rows must have shape (n, T, ...) with T labels, not {tuple(x.shape)} with {len(labels)} labels")
    columns = list(x.unbind(1))
    kind = data_kind(columns[0].shape)
    if kind in ("points", "vectors"):
        return plots.plot_clouds(columns, labels, path)
    if kind == "signals":
        n = min(len(x), 6)
        # noise far beyond the data leaves the panels; the axis is one, so that the signal is seen to drown
        seen = value_range or display_range(x[:n], finite_range(x[:n, 0]))
        return save_plot(signals_image(x[:n].flatten(0, 1), seen, n, len(labels), titles=labels), path)
    flat = [_flat(column[:6]) for column in columns]
    strip = forward_strip(flat[0][0], [column for column, _ in flat[1:]], labels, value_range)
    return save_image(with_note(strip, flat[0][1]), path)
