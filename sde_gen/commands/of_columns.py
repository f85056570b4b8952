"""Columns of a table of kinds: samples beside held-out rows, as numbers, a picture and a part of the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import Dataset
from ..data.columns.codec import VALID
from ..data.columns.compare import compare
from ..report.margins import picture_margins
from ..report.page import Block, Cell, Table

PICTURE = "columns.png"


def compare_columns(data: Dataset, x: Tensor, place: Path, valid: Tensor | None = None) -> dict[str, Any]:
    """What `compare` says of samples (N, D) of a table's features, with gaps where they are not `valid`, and its held-out rows, or training
    rows where none are held out; {} for data without a codec. Draws the margins in `place`."""
    if data.codec is None:
        return {}
    held, of_held = (data.train, data.cond) if data.test is None else (data.test, data.test_cond)
    there = (None if part is None else part.cpu().numpy() for part in (valid, of_held.get(VALID)))
    ours, theirs = (data.codec.decode(part.cpu().numpy(), mask) for part, mask in zip((x, held), there, strict=True))
    picture_margins([(a.name, a.values[~a.missing], b.values[~b.missing]) for a, b in zip(ours, theirs, strict=True)], place / PICTURE)
    return {"table": compare(ours, theirs)}


def column_lines(found: Mapping[str, Any]) -> list[str]:
    """What a run says of it, in a line."""
    rows, between = [row for row in found["columns"] if "distance" in row], found["correlations"]
    beyond = [row["name"] for row in rows if row["distance"] > row["chance"]]
    named = f": {', '.join(beyond[:8])}{', ...' * (len(beyond) > 8)}" if beyond else ""
    pair = " and ".join(between["pair"])
    return [
        f"columns   margins of {len(beyond)} of {len(rows)} differ from held-out rows' beyond chance (5 %){named}; correlations by at most "
        f"{between['largest']:.3f} ({pair}; chance: {between['chance']:.3f})"
    ]


def column_table(name: str, found: Mapping[str, Any]) -> list[Block]:
    """The part of the report, of a solver."""
    rows = []
    for row in found["columns"]:
        ends = [f"{low:.4g} .. {high:.4g}" for low, high in row.get("range", [])] or ["", ""]
        pairs = [f"{100 * row[key][0]:.3g} / {100 * row[key][1]:.3g}" if key in row else "" for key in ("zeros", "missing")]
        beyond = row.get("distance", 0) > row.get("chance", 1)
        distance = f"{row['distance']:.3f}{' *' if beyond else ''}" if "distance" in row else ""
        texts = [row["name"], *pairs, *ends, distance, f"{row['chance']:.3f}" if "chance" in row else ""]
        rows.append([Cell(text) for text in texts])
    between = found["correlations"]
    notes = (
        "zeros and gaps in %, samples / held-out rows; distance: the largest difference of the distribution functions, or of a word's "
        "share, which the same law exceeds by chance in 5 % of cases (*). The largest difference of a correlation of ranks is "
        f"{between['largest']:.3f} ({' and '.join(between['pair'])}); beyond {between['chance']:.3f} it is hardly chance."
    )
    columns = ["column", "zeros", "gaps", "samples", "held-out rows", "distance", "chance"]
    return [Table(f"Columns of samples drawn with {name}", columns, rows, notes).filled()]
