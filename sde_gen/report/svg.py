"""Figures as SVG for a page: sharp at any size, and legible on light and dark paper."""

from __future__ import annotations

import io
import re
from urllib.parse import quote

from matplotlib.figure import Figure

LIGHT = {"ink": "#1b1b1b", "grid": "#dddddd", "paper": "#f5f6f8"}
DARK = {"ink": "#e8e8e8", "grid": "#4a4a4a", "paper": "#1d2126"}
_NAMES = {"#000000": "ink", "#e5e5e5": "grid", "#e6e6e6": "grid", "#ffffff": "paper"}


def svg(figure: Figure) -> str:
    """The figure as an SVG document without a background: what is black is drawn in the reader's ink, the grid and the legend's paper
    likewise, after the colour scheme that the reader prefers; letters are outlines, the same everywhere."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]
    for colour, name in _NAMES.items():
        text = text.replace(colour, f"var(--{name})")
    themes = (_variables(LIGHT), f"@media (prefers-color-scheme: dark) {{ {_variables(DARK)} }}")
    # Letters and filled shapes in black carry no colour of their own: they inherit the root's.
    style = f"<style>{' '.join(themes)} svg {{ fill: var(--ink) }}</style>"
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), text)  # hundredths of a point are enough
    text = re.sub(r"\s*\n\s*", " ", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    return re.sub(r"(<svg[^>]*>)", lambda found: found.group(1) + style, text, count=1)


def _variables(theme: dict[str, str]) -> str:
    return "svg { " + " ".join(f"--{name}: {colour};" for name, colour in theme.items()) + " }"


def svg_uri(figure: Figure) -> str:
    """`svg` as a data URI, for an <img>: percent-encoded, which is shorter than base64."""
    return "data:image/svg+xml," + quote(svg(figure).replace('"', "'"), safe=" /:;,.=()'+-_!?*@$&")
