"""Tensors as pictures: grids, strips along the forward process, and films.

Samples are never clipped on their way here. The only clipping is in `to_uint8`, for display. Values that are NaN or
infinite have no colour, so they are painted in `NOT_FINITE` (a red that is also seen on black by colour-blind readers).
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .files import atomic_path

Range = tuple[float, float]

NOT_FINITE = (230, 50, 20)
DPI = 110
WIDTH = 900  # pixels that a picture fills at most, where upscaling has the choice
_GAP = 96  # grey between tiles: seen beside black and beside white ones
_TEXT_PIXELS = 15  # 9.8 points at 110 dpi


def display_values(x: Tensor) -> Tensor:
    """x as a float64 tensor on the CPU; TypeError for anything but a real tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"pictures are made of torch tensors, not of {type(x).__name__}")
    if x.is_complex():
        raise TypeError(f"pictures are made of real values, not of {x.dtype}")
    return x.detach().to(device="cpu", dtype=torch.float64)


def finite_range(x: Tensor, quantile: float = 0.0) -> Range:
    """(low, high) of the finite values of x, or the `quantile` and `1 - quantile` of them; (0, 1) where none is finite."""
    values = display_values(x).numpy()
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, [quantile, 1 - quantile]) if quantile else (values.min(), values.max())
    return float(low), float(high)


def display_range(x: Tensor, base: Range) -> Range:
    """`base`, widened to hold the central 98 % of x: noise far wider than the data stays noise and does not turn black and white."""
    low, high = finite_range(x, 0.01)
    return min(low, base[0]), max(high, base[1])


def to_uint8(x: Tensor, value_range: Range | None = None) -> Tensor:
    """round(255 (x - low) / (high - low)), clipped to 0..255: the one place where values are clipped, for display only.

    x: any shape, (N, C, *spatial) or (N, D); `value_range` (low, high) in x's units, None for the least and the largest finite
    value of the whole set (a constant set becomes mid-grey, 128). NaN becomes 0 (the pictures paint it), -inf 0, +inf 255.
    Returns uint8 of the same shape on the CPU. Raises ValueError for a range that is not finite and increasing.
    """
    values = display_values(x)
    low, high = finite_range(values) if value_range is None else _checked_range(value_range)
    if low == high:
        return torch.full(values.shape, 128, dtype=torch.uint8).masked_fill_(~values.isfinite(), 0)
    scaled = (values - low) * (255.0 / (high - low))
    return scaled.nan_to_num(0.0, 255.0, 0.0).round_().clamp_(0, 255).to(torch.uint8)


def _checked_range(value_range: Range) -> Range:
    low, high = (float(v) for v in value_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range must be finite with low < high, not ({low:g}, {high:g})")
    return low, high


def channels_shown(x: Tensor) -> Tensor:
    """The channels of images or volumes (N, C, *spatial) that a picture has: 3 (or the first 3 of 4) as colours, else the first one."""
    return x[:, :3] if x.shape[1] in (3, 4) else x[:, :1]


def tiles(x: Tensor, value_range: Range | None = None) -> NDArray[np.uint8]:
    """Images (N, C, H, W) as RGB bytes (N, H, W, 3): 3 channels (or the first 3 of 4) are colour, of any other count the first is grey.

    Pixels with a NaN or infinite value in a channel shown are painted `NOT_FINITE`.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"images must have shape (N, C, H, W), none of them 0, not {tuple(x.shape)}")
    shown = display_values(channels_shown(x))
    rgb = to_uint8(shown, value_range).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy().copy()
    rgb[~shown.isfinite().all(1).numpy()] = NOT_FINITE
    return rgb


def not_finite_note(x: Tensor) -> str:
    """What to write under a picture of x (N, ...) with NaN or infinite values; empty where all are finite."""
    bad = int((~x.detach().flatten(1).isfinite().all(1)).sum())
    return f"{bad} of {len(x)} {'holds' if bad == 1 else 'hold'} NaN or infinite values (red)" if bad else ""


def _enlarged(rgb: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    return rgb.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _grey_if_possible(rgb: NDArray[np.uint8]) -> Image.Image:
    grey = (rgb == rgb[..., :1]).all()
    return Image.fromarray(np.ascontiguousarray(rgb[..., 0] if grey else rgb))


def image_grid(
    x: Tensor,
    rows: int = 10,
    columns: int = 10,
    scale: int | None = None,
    padding: int = 2,
    value_range: Range | None = None,
    width: int = WIDTH,
) -> Image.Image:
    """The first rows x columns images of x (N, C, H, W), row by row; fewer images make fewer rows and columns.

    scale: integer nearest-neighbour enlargement, None for the largest that keeps both sides within `width` pixels. padding: pixels
    around each image, so that tile (i, j) begins at (padding + i (H scale + padding), padding + j (W scale + padding)).
    value_range: as `to_uint8`, None for the range of the images shown. Returns mode "L" where every pixel is grey, otherwise "RGB".
    """
    for name, value, least in (
        ("rows", rows, 1),
        ("columns", columns, 1),
        ("padding", padding, 0),
        ("scale", scale, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    rgb = tiles(x[: rows * columns], value_range)
    n, height, breadth = rgb.shape[:3]
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    if scale is None:
        room_x, room_y = ((width - padding) // k - padding for k in (columns, rows))
        scale = max(1, min(room_x // breadth, room_y // height))
    step_y, step_x = height * scale + padding, breadth * scale + padding
    canvas = np.full((rows * step_y + padding, columns * step_x + padding, 3), _GAP, dtype=np.uint8)
    for k, tile in enumerate(_enlarged(rgb, scale)):
        top, left = padding + k // columns * step_y, padding + k % columns * step_x
        canvas[top : top + step_y - padding, left : left + step_x - padding] = tile
    return _grey_if_possible(canvas)


@cache
def _font() -> ImageFont.FreeTypeFont:
    # the one that matplotlib brings: it has the Greek letters, and plots and pictures look alike
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _TEXT_PIXELS)


def _text_size(text: str) -> tuple[int, int]:
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text or " ", font=_font())
    return math.ceil(box[2]), math.ceil(box[3]) + 2


def with_note(image: Image.Image, text: str, height: int | None = None) -> Image.Image:
    """The image with a white strip of text under it (wide enough for the text); the image itself where the text is empty."""
    if not text:
        return image
    text_width, text_height = _text_size(text)
    canvas = Image.new("RGB", (max(image.width, text_width + 12), image.height + (height or text_height + 8)), "white")
    canvas.paste(image.convert("RGB"), ((canvas.width - image.width) // 2, 0))
    ImageDraw.Draw(canvas).multiline_text((6, image.height + 4), text, fill="black", font=_font())
    return canvas


def forward_strip(images: Tensor, levels: Sequence[Tensor], labels: Sequence[str], value_range: Range | None = None) -> Image.Image:
    """Images along the forward process: a row for each image, a column for each time, with its label above.

    images: (n, C, H, W), the first column; levels: the same images at later times, (n, C, H, W) each; labels: one for each level, or
    one more for the images (otherwise "data"); several lines each, see `level_label`. value_range None shows each column in the range
    of `images`, widened to hold the central 98 % of the column (so that the noise of a VE process is not just black and white).
    """
    columns = [images, *levels]
    names = list(labels) if len(labels) == len(columns) else ["data", *labels]
    if len(names) != len(columns):
        raise ValueError(f"{len(levels)} levels need {len(levels)} labels, or one more for the images, not {len(labels)}")
    for k, column in enumerate(columns):
        if column.shape != images.shape:
            raise ValueError(f"every level must have the images' shape {tuple(images.shape)}, not {tuple(column.shape)} (level {k})")
    base = finite_range(images)
    pixels = [tiles(c, display_range(c, base) if value_range is None and base[0] < base[1] else value_range) for c in columns]
    n, height, breadth = pixels[0].shape[:3]
    sizes = [_text_size(name) for name in names]
    gap, header = 6, max(size[1] for size in sizes) + 8
    text_width = max(size[0] for size in sizes)
    scale = max(1, min(max(text_width, WIDTH // len(columns) - 2 * gap) // breadth, (WIDTH // n - gap) // height))
    step_x, step_y = max(breadth * scale, text_width) + 2 * gap, height * scale + gap
    canvas = Image.new("RGB", (step_x * len(columns), header + step_y * n), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (name, size, shown) in enumerate(zip(names, sizes, pixels, strict=True)):
        draw.multiline_text((k * step_x + (step_x - size[0]) // 2, header - 4 - size[1]), name, fill="black", font=_font())
        for i, tile in enumerate(_enlarged(shown, scale)):
            corner = (k * step_x + (step_x - breadth * scale) // 2, header + i * step_y)
            canvas.paste(Image.fromarray(tile), corner)
            # a hairline, without which an image that is white at its rim has no rim
            box = (corner[0] - 1, corner[1] - 1, corner[0] + breadth * scale, corner[1] + height * scale)
            draw.rectangle(box, outline=(_GAP,) * 3)
    return with_note(canvas, not_finite_note(torch.stack(columns, 1)))


def level_label(t: float, sigma: float, half_log_snr: float) -> str:
    """A label for `forward_strip`: time, sigma and the log signal-to-noise ratio log(alpha^2/sigma^2) = 2 lambda, a line each."""
    return f"t = {t:.2f}\nσ = {sigma:.3g}\nlog-SNR {2 * half_log_snr:.1f}".replace("-SNR -", "-SNR \N{MINUS SIGN}")


def _checked_suffix(path: str | os.PathLike[str], suffix: str) -> Path:
    if Path(path).suffix.lower() != suffix:
        raise ValueError(f"the file's name must end in {suffix}, not {Path(path).name!r}")
    return Path(path)


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a PNG atomically, lossless, and return its path."""
    path = _checked_suffix(path, ".png")
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", optimize=True, dpi=(DPI, DPI))
    return path


def in_palette(frames: Sequence[Image.Image], colours: int, kept: Sequence[tuple[int, int, int]] = ()) -> list[Image.Image]:
    """RGB frames in one common palette by median cut, without dithering, which is noise that does not compress.

    Black, white, `NOT_FINITE` and the colours `kept` stay exactly what they are: a median cut would give rare ones away.
    """
    # the last frame, what a film is about, and a few on the way
    chosen = [np.asarray(frames[k]) for k in sorted({round(f * (len(frames) - 1)) for f in (0, 0.25, 0.5, 0.75, 0.9, 1)})]
    exact = [(0, 0, 0), (255, 255, 255), NOT_FINITE, *kept]
    cut = Image.fromarray(np.concatenate(chosen)).quantize(colours - len(exact), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(value for colour in exact for value in colour), *(cut.getpalette() or [])][: 3 * colours])
    result = []
    for frame in frames:
        indices, rgb = np.array(frame.quantize(palette=palette, dither=Image.Dither.NONE)), np.asarray(frame)
        for index, colour in enumerate(exact):  # Pillow's search is approximate, and white would not be white
            indices[(rgb == np.array(colour, dtype=np.uint8)).all(-1)] = index
        result.append(Image.fromarray(indices))
        result[-1].putpalette(palette.getpalette() or [])
    return result


def _with_palette(frames: Sequence[Image.Image], colours: int) -> list[Image.Image]:
    """The frames in one common palette: evenly spaced greys where all are grey, otherwise as `in_palette`."""
    if all(frame.mode == "L" for frame in frames):
        levels = np.linspace(0, 255, colours).round().astype(np.uint8)
        result = []
        for frame in frames:
            indexed = Image.fromarray((np.asarray(frame, dtype=np.float64) * ((colours - 1) / 255)).round().astype(np.uint8))
            indexed.putpalette(levels.repeat(3).tobytes())
            result.append(indexed)
        return result
    return in_palette([frame.convert("RGB") for frame in frames], colours)


def save_gif(
    frames: Sequence[Image.Image],
    path: str | os.PathLike[str],
    fps: float = 12.0,
    hold: float = 1.5,
    max_bytes: int = 2_000_000,
    labels: Sequence[str] = (),
) -> Path:
    """Write a looping GIF atomically and return its path: `fps` frames a second, the last one shown for `hold` seconds.

    All frames share one palette, of 256 colours or of the most among 128, 64, 32 and 16 that keep the file within `max_bytes`; where
    even 16 are too many the file is larger. GIF counts in hundredths of a second, so 0 < fps <= 50 (more and browsers slow it down).
    Equal neighbours become one frame with the sum of their times. labels: kept in the file's comment as a JSON list, for readers that
    cannot see what is drawn.
    """
    path = _checked_suffix(path, ".gif")
    if not frames:
        raise ValueError("a film needs at least one frame, not 0")
    if len({frame.size for frame in frames}) > 1:
        raise ValueError(f"every frame must have the same size, not {sorted({frame.size for frame in frames})}")
    if not 0 < fps <= 50:
        raise ValueError(f"fps must be above 0 and at most 50, not {fps:g}")
    if not 0 < hold <= 600:
        raise ValueError(f"hold must be above 0 and at most 600 seconds, not {hold:g}")
    durations = [10 * round(100 / fps)] * (len(frames) - 1) + [10 * max(1, round(100 * hold))]
    content = b""
    for colours in (256, 128, 64, 32, 16):
        first, *rest = _with_palette(frames, colours)
        buffer = io.BytesIO()
        comment = json.dumps(list(labels)).encode("ascii") if labels else b""
        first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True, comment=comment)
        content = buffer.getvalue()
        if len(content) <= max_bytes:
            break
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path
