"""Columns of a table of kinds: samples beside the truth, as numbers, a picture and a part of the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import Dataset
from ..data.columns.codec import VALID
from ..data.columns.compare import LEVELS, compare
from ..data.toy_tables import law_rows
from ..report.margins import picture_margins
from ..report.page import Block, Cell, Table

PICTURE = "columns.png"
OF_LAW, SEED_OF_LAW = 50_000, 1_000_003
"""Rows of the law of a table made here beside which samples stand, and the seed that no training has."""


def compare_columns(data: Dataset, x: Tensor, place: Path, valid: Tensor | None = None) -> dict[str, Any]:
    """What `compare` says of samples (N, D) of a table's features, with gaps where they are not `valid`, and the truth: of a table made
    here new rows of its law, else held-out rows, or training rows where none are held out; "truth" says which. {} for data without a
    codec. Draws the margins in `place`."""
    if data.codec is None:
        return {}
    ours = data.codec.decode(x.cpu().numpy(), None if valid is None else valid.cpu().numpy())
    theirs, truth = law_rows(data.name, OF_LAW, SEED_OF_LAW), "rows of the law"
    if theirs is None or [column.name for column in theirs] != list(data.codec.names):
        held, cond = (data.train, data.cond) if data.test is None else (data.test, data.test_cond)
        there, truth = cond.get(VALID), "training rows" if data.test is None else "held-out rows"
        theirs = data.codec.decode(held.cpu().numpy(), None if there is None else there.cpu().numpy())
    margins = [(a.name, a.values[~a.missing], b.values[~b.missing]) for a, b in zip(ours, theirs, strict=True)]
    picture_margins(margins, place / PICTURE, truth)
    return {"table": compare(ours, theirs) | {"truth": truth, "rows": len(theirs[0].values)}}


def column_lines(found: Mapping[str, Any]) -> list[str]:
    """What a run says of it, in a line."""
    rows, between = [row for row in found["columns"] if "distance" in row], found["correlations"]
    beyond = [row["name"] for row in rows if row["distance"] > row["chance"]]
    named = f": {', '.join(beyond[:8])}{', ...' * (len(beyond) > 8)}" if beyond else ""
    pair = " and ".join(between["pair"])
    return [
        f"columns   margins of {len(beyond)} of {len(rows)} differ from {_truth(found)}' beyond chance (5 %){named}; correlations by at "
        f"most {between['largest']:.3f} ({pair}; chance: {between['chance']:.3f})"
    ]


def column_table(name: str, found: Mapping[str, Any]) -> list[Block]:
    """The part of the report, of a solver."""
    rows, truth = [], _truth(found)
    for row in found["columns"]:
        ends = [f"{low:.4g} .. {high:.4g}" for low, high in row.get("range", [])] or ["", ""]
        pairs = [f"{100 * row[key][0]:.3g} / {100 * row[key][1]:.3g}" if key in row else "" for key in ("zeros", "missing")]
        middle = [", ".join(f"{value:.4g}" for value in part) for part in row.get("quantiles", [])] or ["", ""]
        if "words" in row:
            middle = [f"{row['words'][0]}: {100 * share:.3g} %" for share in row["words"][1:]]
        beyond = row.get("distance", 0) > row.get("chance", 1)
        distance = f"{row['distance']:.3f}{' *' if beyond else ''}" if "distance" in row else ""
        texts = [row["name"], *pairs, *ends, *middle, distance, f"{row['chance']:.3f}" if "chance" in row else ""]
        rows.append([Cell(text) for text in texts])
    between = found["correlations"]
    shares = ", ".join(f"{100 * level:g}" for level in LEVELS)
    notes = (
        f"the truth: {found.get('rows', '')} {truth}. Zeros and gaps in %, samples / truth; ranges and quantiles ({shares} %) are in the "
        "columns' own units, of words the share of the most frequent one; distance: the largest difference of the distribution functions, "
        "or of a word's share, which the same law exceeds by chance in 5 % of cases (*)."
    )
    columns = ["column", "zeros", "gaps", "range of samples", "of the truth", "quantiles of samples", "of the truth", "distance", "chance"]
    blocks: list[Block] = [Table(f"Columns of samples drawn with {name}", columns, rows, notes).filled()]
    if between.get("rows"):
        of_pairs = [[Cell(a), Cell(b), *(Cell(f"{value:.3f}") for value in (x, y, x - y))] for a, b, x, y in between["rows"]]
        said = f"of ranks, those that differ most; a difference beyond {between['chance']:.3f} is hardly chance."
        named = ["column", "and column", "samples", "truth", "difference"]
        blocks.append(Table(f"Correlations of samples drawn with {name}", named, of_pairs, said).filled())
    return blocks


def _truth(found: Mapping[str, Any]) -> str:
    """What samples stand beside; of a run of an earlier version held-out rows."""
    return str(found.get("truth", "held-out rows"))
