"""A report as one HTML file: it opens from disk, asks nothing of a network, and every text in it is escaped.

A page is a preface and chapters, a chapter sections, a section blocks: texts, warnings, facts, pictures, films, tables, code. What is
in them is decided elsewhere (`sde_gen.report_run`); how they look, and the JavaScript that moves a film and sorts a table, is page.html.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str


@dataclass(frozen=True)
class Warnings:
    """What the reader must know before believing the rest; an empty list says that there is nothing."""

    kind: ClassVar = "warnings"
    lines: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """src: a data URI; alt: what a reader who cannot see it must know. paper: "white" for a picture with a white ground, "none" for a chart
    that takes the reader's colours. wide: across the page, not beside its neighbours."""

    kind: ClassVar = "picture"
    src: str
    alt: str
    caption: str = ""
    paper: Literal["white", "none"] = "white"
    wide: bool = False


@dataclass(frozen=True)
class Film:
    """frames: a data URI and a label each, moved through by a slider; the last one is shown first."""

    kind: ClassVar = "film"
    frames: Sequence[tuple[str, str]]
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Cell:
    """A text, and the number that it is sorted by (None: by its text)."""

    text: str
    number: float | None = None

    @property
    def key(self) -> str:
        """The number as JavaScript reads it; empty where there is none."""
        return "" if self.number is None or not math.isfinite(self.number) else repr(self.number)


@dataclass(frozen=True)
class Table:
    """Columns of cells; each column's header is a button that sorts by it. notes: what a column's name does not say."""

    kind: ClassVar = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: str = ""

    def filled(self) -> Table:
        """The table without the columns in which no row has anything."""
        kept = [k for k in range(len(self.columns)) if any(row[k].text for row in self.rows)]
        rows = [[row[k] for k in kept] for row in self.rows]
        return Table(self.caption, [self.columns[k] for k in kept], rows, self.notes)


@dataclass(frozen=True)
class Code:
    """A text to copy; folded: closed at first, under its label."""

    kind: ClassVar = "code"
    text: str
    label: str
    folded: bool = False


Block = Text | Warnings | Facts | Picture | Film | Table | Code


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Chapter:
    """One run. Pages of several show each chapter closed, under its title."""

    title: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Page:
    title: str
    preface: Sequence[Block] = field(default_factory=list)
    chapters: Sequence[Chapter] = field(default_factory=list)


@cache
def _template() -> Template:
    loader = PackageLoader("sde_gen", "report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).get_template(
        "page.html"
    )


def render(page: Page) -> str:
    """The page as an HTML document."""
    return _template().render(page=page)
