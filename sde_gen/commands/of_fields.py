"""Fields over space: a picture of samples beside held-out items, channel by channel."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..data import Dataset, rows_drawn
from ..data.masks import VALID
from ..report.fields import MOST_ITEMS, picture_fields

PICTURE = "fields.png"


def picture_space(data: Dataset, x: Tensor, valid: Tensor | None, place: Path) -> None:
    """Draw samples x (N, C, *spatial) of two or three axes of space beside drawn held-out items, or training items where none are held
    out, in `place`. valid: which entries of the samples are data. Nothing is drawn of pictures, whose values are levels, and of other
    shapes."""
    if data.levels is not None or len(data.shape) not in (3, 4):
        return
    held_out, of_items = (data.train, data.cond) if data.test is None else (data.test, data.test_cond)
    rows = rows_drawn(len(held_out), min(len(held_out), MOST_ITEMS), 0)
    there = of_items[VALID][rows].bool() if VALID in of_items else data.valid
    named = (data.header or {}).get("variables", ())
    names = [str(each["name"]) for each in named] if len(named) == data.shape[0] > 1 else None
    picture_fields(x, held_out[rows], place / PICTURE, valid, there, names)
