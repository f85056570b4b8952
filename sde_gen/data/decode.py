"""One image file to an array: what is allowed, and what is refused before it is unpacked."""

from __future__ import annotations

import io
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from sde_gen.data.errors import one_line

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".pgm": "PPM",
    ".ppm": "PPM",
}
"""The endings that count as images, and the reader of each: never one that runs another program."""
MOST_PIXELS = 1 << 26
LEVELS = {"L": 256, "RGB": 256, "RGBA": 256, "I;16": 65536, "1": 2}
CHANNELS = {"RGB": 3, "RGBA": 4}
"""Of modes that have more than one."""
MODES = {"grey": "L", "rgb": "RGB", "rgba": "RGBA"}
"""What images can be converted to, by the names of the field."""
_AS_THEY_ARE = ("L", "RGB", "I;16", "1")
_CONVERTED = ("L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "1", "CMYK", "YCbCr", "HSV")
_ALLOWED = "greyscale, RGB, palette, 16-bit greyscale and black-and-white are"
_ORIENTATION = 0x0112


def describe(content: bytes, name: str, convert: str | None = None) -> tuple[tuple[int, int], str]:
    """(height, width) and mode ("L", "RGB", "RGBA", "I;16" or "1") that `decode` will give, from the header; ValueError as there."""
    try:
        with _opened(content, name) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION, 1) >= 5:
                width, height = height, width
            return (height, width), _mode(image, name, convert)
    except ValueError:
        raise
    except Exception as error:  # a parser of foreign files: whatever it trips over, the file is what is wrong
        raise _broken(name, error) from error


def decode(content: bytes, name: str, size: int | None = None, convert: str | None = None) -> tuple[np.ndarray, str]:
    """An image as an array (C, H, W) and its mode: "L" and "RGB" are uint8 with one and three channels, "I;16" uint16 and one,
    "1" uint8 0 or 1 and one. Palettes become RGB; a camera's orientation is applied.

    Args:
        content: the file.
        name: of the file, for messages.
        size: resize the shorter side to this and cut out the middle square, or None.
        convert: a key of `MODES`, to which images of other modes are converted, of 8 bits: what is transparent stands on white in "grey"
            and "rgb", and is a fourth channel in "rgba". None: as they are.

    Raises:
        ValueError: no image or a broken one, more than `MOST_PIXELS` pixels, an animation, and, unless they are converted, transparency,
            CMYK or 16-bit colour.
    """
    try:
        with _opened(content, name) as opened:
            mode = _mode(opened, name, convert)
            image: Image.Image = ImageOps.exif_transpose(opened)
            if convert is not None:
                image = _in_mode(image, mode)
            elif image.mode == "P":
                image = image.convert("RGB")
            if size is not None:
                image = _fitted(image, mode, size)
            values = _channels_first(image, mode)
    except ValueError:
        raise
    except Exception as error:
        raise _broken(name, error) from error
    return values, mode


def pixels(image: Image.Image, name: str) -> np.ndarray:
    """A pillow image in memory as an array (C, H, W): those of `decode` as there but with "1" as Boolean values, 32-bit whole numbers
    and floats as they are. ValueError as there."""
    if image.mode in ("I", "F"):
        return np.asarray(image)[None]
    mode = _mode(image, name)
    values = _channels_first(image.convert("RGB") if image.mode == "P" else image, mode)
    return values.astype(bool) if mode == "1" else values


def _channels_first(image: Image.Image, mode: str) -> np.ndarray:
    values = np.asarray(image).astype(np.uint16 if mode == "I;16" else np.uint8)
    return np.moveaxis(values, -1, 0) if mode in CHANNELS else values[None]


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in this mode of 8 bits."""
    if image.mode.startswith("I"):
        image = Image.fromarray(np.rint(np.asarray(image).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA" and mode != "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def _broken(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name}: cannot be read as an image ({one_line(error)}); a complete file is needed")


def _opened(content: bytes, name: str) -> Image.Image:
    ending = name[name.rfind(".") :].lower()
    allowed = sorted({*FORMATS.values()}) if ending in FORMATS else []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=allowed)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: more than {MOST_PIXELS:,} pixels; at most that many are allowed in one image") from error
    except Exception as error:
        found = "the file is empty" if not content else one_line(error).replace(str(io.BytesIO), "file").split("<")[0].strip()
        raise ValueError(f"{name}: cannot be read as an image ({found}); a complete {'/'.join(allowed)} file is needed") from error
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{name}: {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are allowed in one image")
    return image


def _mode(image: Image.Image, name: str, convert: str | None = None) -> str:
    raw = str([tile[3] for tile in getattr(image, "tile", [])])  # how the file stores it: pillow silently cuts 16-bit colour to 8 bits
    if image.format in ("GIF", "PNG", "WEBP", "TIFF") and getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{name}: {getattr(image, 'n_frames', 1)} frames; single images are allowed")
    if convert is not None:
        if image.mode not in _CONVERTED and not image.mode.startswith("I;16") and not (image.mode == "I" and ";16" in raw):
            raise ValueError(f"{name}: mode {image.mode} cannot be converted to {convert}; {', '.join(_CONVERTED)} and I;16 can")
        return MODES[convert]
    if image.mode in ("L", "RGB", "P", "1") and "transparency" in image.info:
        raise ValueError(f"{name}: has transparency; {_ALLOWED} allowed")
    if image.mode in ("RGB", "L") and "16" in raw:
        raise ValueError(f"{name}: 16-bit colour; {_ALLOWED} allowed")
    if image.mode.startswith("I;16") or (image.mode == "I" and ";16" in raw):
        return "I;16"
    if image.mode == "P":
        return "RGB"
    if image.mode not in _AS_THEY_ARE:
        raise ValueError(f"{name}: mode {image.mode}; {_ALLOWED} allowed, convert it first")
    return image.mode


def _fitted(image: Image.Image, mode: str, size: int) -> Image.Image:
    deep = mode == "I;16"
    if mode == "1":
        image = image.convert("L")
    elif deep:  # pillow resizes 16-bit images in floating point only
        image = Image.fromarray(np.asarray(image).astype(np.float32))
    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    if mode == "1":
        return image.convert("1", dither=Image.Dither.NONE)
    return Image.fromarray(np.asarray(image).round().clip(0, 65535).astype(np.uint16)) if deep else image


def read_limited(file: BinaryIO, name: str, most: int) -> bytes:
    """All of a file of at most `most` bytes; ValueError for a longer one."""
    content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name}: more than {most:,} bytes; at most that many are allowed in one file")
    return content
