"""Pictures and films as data URIs, within a number of bytes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageSequence

FRAMES = 24
"""Of a film on a page."""
SHARE = 0.5
"""Of the room, for films."""


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")


class Embedder:
    """room: bytes that all data URIs may take together; films: how many to expect, an equal share each. What is missing or unreadable is
    None or []; what does not fit too, and is named by `left_out`."""

    def __init__(self, room: int, films: int) -> None:
        self.each = int(SHARE * room / max(1, films))
        self.room = room - self.each * films
        self._left_out: list[str] = []

    def left_out(self) -> Sequence[str]:
        """The files that did not fit since the last call."""
        found, self._left_out = self._left_out, []
        return found

    def picture(self, path: Path) -> str | None:
        """A PNG file as it is."""
        try:
            content = path.read_bytes()
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                image.verify()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
        return self.fitting(_uri(content, "png"), str(path))

    def fitting(self, uri: str, name: str) -> str | None:
        """A data URI made elsewhere, named `name`, where it fits."""
        if len(uri) > self.room:
            self._left_out.append(name)
            return None
        self.room -= len(uri)
        return uri

    def film(self, path: Path) -> list[tuple[str, str]]:
        """Frames of a GIF, (data URI, label) each, as the sharpest WebP images that fit into the film's share."""
        try:
            with Image.open(path, formats=["GIF"]) as gif:
                labels = _labels(gif)
                frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(gif)]
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
            return []
        names = labels if len(labels) == len(frames) else [f"frame {k + 1} of {len(frames)}" for k in range(len(frames))]
        count = min(FRAMES, len(frames))
        chosen = [round(k * (len(frames) - 1) / max(1, count - 1)) for k in range(count)]
        for quality, scale in ((80, 1.0), (60, 1.0), (40, 1.0), (40, 0.7), (40, 0.5), (30, 0.35), (20, 0.25)):
            uris = [_webp(frames[k], quality, scale) for k in chosen]
            if sum(map(len, uris)) <= self.each:
                return [(uri, names[k]) for uri, k in zip(uris, chosen, strict=True)]
        self._left_out.append(str(path))
        return []


def _labels(gif: Image.Image) -> list[str]:
    """What `save_gif` noted of each frame."""
    try:
        found = json.loads(gif.info.get("comment", b"[]"))
    except (ValueError, RecursionError):
        return []
    return [str(label) for label in found] if isinstance(found, list) else []


def _webp(frame: Image.Image, quality: int, scale: float) -> str:
    if scale < 1:
        frame = frame.resize((max(1, round(frame.width * scale)), max(1, round(frame.height * scale))))
    buffer = io.BytesIO()
    frame.save(buffer, format="WEBP", quality=quality, method=2)
    return _uri(buffer.getvalue(), "webp")
