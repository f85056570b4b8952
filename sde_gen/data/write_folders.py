"""Samples as a folder with a file for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sde_gen.data.formats import Items


def write_folder(folder: Path, items: Items, write_one: Callable[[Path, np.ndarray, Mapping[str, Any]], None] | None) -> None:
    """Write samples as files that are named by number, in a subfolder for each label where there are such: by `write_one` in the format of
    the data, or else as PNGs."""
    ending = ".png" if write_one is None else items.header["folder"]
    digits, number = max(6, len(str(items.count - 1))), 0
    folder.mkdir()
    for values, labels in items.parts():
        names = [None] * len(values) if labels is None else labels.tolist()
        for value, label in zip(values, names, strict=True):
            place = folder if label is None else folder / _folder_name(str(label))
            place.mkdir(exist_ok=True)
            (write_one or _write_png)(place / f"{number:0{digits}d}{ending}", value, items.header)
            number += 1


def _write_png(path: Path, picture: np.ndarray, header: Mapping[str, Any]) -> None:
    Image.fromarray(picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, -1)).save(path)


def _folder_name(label: str) -> str:
    """A label as the name of a folder: what cannot be one becomes _."""
    return "".join("_" if letter in '/\\:*?"<>|' or ord(letter) < 32 else letter for letter in label).lstrip(".") or "_"
