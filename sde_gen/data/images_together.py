"""Images that are to be items of one data set: each is looked at, and what does not fit is said of all of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sde_gen.data.decode import CHANNELS, decode, describe
from sde_gen.data.errors import first_and_count


@dataclass(frozen=True)
class Seen:
    """What an image is: its name in the folder or archive, (height, width) and mode."""

    name: str
    size: tuple[int, int]
    mode: str

    def __str__(self) -> str:
        return f"{self.name} ({self.size[1]} x {self.size[0]}, {self.mode})"


class Together:
    """The images of a folder or archive, looked at one by one: those that are not like most, or cannot be read, are known when all were
    seen, so that one message names them."""

    def __init__(self, path: Path, size: int | None, convert: str | None, total: int | None = None) -> None:
        self.path, self.size, self.convert, self.total = path, size, convert, total
        self.first: Seen | None = None
        self.seen = 0
        self.kinds: dict[tuple[tuple[int, int], str], list[str]] = {}
        self.refused: list[ValueError] = []

    @property
    def mode(self) -> str:
        return "L" if self.first is None else self.first.mode

    @property
    def item(self) -> tuple[int, ...] | None:
        return None if self.first is None else (CHANNELS.get(self.first.mode, 1), *self.first.size)

    def look(self, content: bytes, name: str) -> None:
        """At an image's header."""
        try:
            found, mode = describe(content, f"{self.path.name}/{name}", self.convert)
        except ValueError as error:
            self._refuse(error)
        else:
            self._compare(Seen(f"{self.path.name}/{name}", found if self.size is None else (self.size, self.size), mode))

    def decoded(self, content: bytes, name: str) -> np.ndarray | None:
        """An image's values (C, H, W); None for one that cannot be used."""
        try:
            image, mode = decode(content, f"{self.path.name}/{name}", self.size, self.convert)
        except ValueError as error:
            self._refuse(error)
            return None
        return image if self._compare(Seen(f"{self.path.name}/{name}", (image.shape[1], image.shape[2]), mode)) else None

    def _compare(self, seen: Seen) -> bool:
        self.seen += 1
        self.first = seen if self.first is None else self.first
        self.kinds.setdefault((seen.size, seen.mode), []).append(seen.name)
        return (seen.size, seen.mode) == (self.first.size, self.first.mode)

    def _refuse(self, error: ValueError) -> None:
        self.seen += 1
        self.refused.append(error)

    def check(self) -> None:
        """ValueError where an image that was looked at cannot be used: the first of them, and how many there are."""
        total = f"{self.total or self.seen:,}"
        if len(self.refused) == 1:
            raise self.refused[0]
        if self.refused:
            listed = first_and_count([str(error).partition(";")[0].removeprefix(f"{self.path.name}/") for error in self.refused])
            cure = " (a mode, --mode rgb, converts many)" if self.convert is None else ""
            raise ValueError(f"{self.path.name}: {len(self.refused):,} of {total} images cannot be used{cure}: {listed}")
        if len(self.kinds) < 2:
            return
        usual = max(self.kinds, key=lambda kind: len(self.kinds[kind]))
        odd = [Seen(name, *kind) for kind, names in self.kinds.items() if kind != usual for name in names]
        sizes, modes = any(seen.size != usual[0] for seen in odd), any(seen.mode != usual[1] for seen in odd)
        cures = ["data.size=N (--image-size N) to resize all"] * sizes + ["mode (--mode grey, rgb or rgba) to convert all"] * modes
        listed = first_and_count(list(map(str, odd)))
        which = f"{listed}: {len(odd):,} of {total} images are" if len(odd) > 1 else f"{listed} is"
        like = Seen(self.kinds[usual][0], *usual)
        raise ValueError(f"{which} not like {like}: one size and mode for all images is needed, or {' and '.join(cures)}")
