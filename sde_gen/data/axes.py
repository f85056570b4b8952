"""Which axis of an array is what: rows, channels and space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LEVELS = {"bool": 2, "uint8": 256, "uint16": 65536}
_SPACES = ("", "L", "HW", "DHW")
_FEW = 4  # so many channels at most are told from a length by their number alone
_ALLOWED = "the letters N, C and L, HW or DHW in the array's own order, such as NCHW, NHWC or NDHW, are allowed"


@dataclass(frozen=True)
class Layout:
    """How a batch (B, *) of an array is turned into (B, D) or (B, C, *spatial).

    Attributes:
        axes: a letter for each axis of the array: N items, C channels or columns, L or D, H, W space. Without C there is one channel.
        item: shape of one item after `apply`.
        note: one line that says how the array was read, with its axes and its type.
    """

    axes: str
    item: tuple[int, ...]
    note: str

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """The batch with its channels first, a view where numpy can."""
        space = [letter for letter in "DHWL" if letter in self.axes]
        if "C" not in self.axes:
            return batch.transpose([0, *(self.axes.index(letter) for letter in space)])[:, None]
        return batch.transpose([0, *(self.axes.index(letter) for letter in ("C", *space))])


def levels_of(dtype: np.dtype) -> int | None:
    """How many levels 0 .. levels - 1 values of this type have; None: they are taken as continuous."""
    return _LEVELS.get(dtype.name)


def check_axes(axes: str) -> str:
    """The letters in capitals; ValueError where they name no array."""
    letters = axes.upper() if isinstance(axes, str) else ""
    space = "".join(letter for letter in "DHWL" if letter in letters)
    unknown = set(letters) - set("NCDHWL")
    if unknown or len(set(letters)) != len(letters) or "N" not in letters or space not in _SPACES or letters == "N":
        raise ValueError(f"axes {axes!r}; {_ALLOWED}")
    return letters


def read_layout(name: str, shape: Sequence[int], dtype: np.dtype, axes: str | None = None, channels_first: bool = False) -> Layout:
    """How an array of this shape (N, *) and type is read.

    With `axes` it is read as they say. Without them only what its shape leaves in no doubt is read; at most 4 channels are "few":

        (N, D)            columns
        (N, A, B)         one channel of images for 8- and 16-bit or Boolean values and for A = B >= 8; signals (N, C, L) with A = 1,
                          or A few and B not; signals (N, L, 1) with B = 1
        (N, A, B, E)      images (N, C, H, W) with A = 1, with A few and E not, and with A few and B = E; (N, H, W, C) with E = 1, and
                          with E few and A not for 8- and 16-bit values
        (N, A, B, E, F)   volumes, by the same rules

    Args:
        name: of the file, for messages.
        shape: of the whole array, (N, *), N first.
        dtype: of its values.
        axes: a letter for each axis, N first, as `check_axes` returns them; or None.
        channels_first: read (N, C, *spatial) where the shape leaves a doubt, as PyTorch's layers do.

    Raises:
        ValueError: axes that do not fit the shape, or a shape that can be read in more ways than one.
    """
    shape = tuple(int(n) for n in shape)
    if axes is None:
        axes = _guess(shape, dtype)
        if axes is None:
            likely = {3: ("NCL", "NLC", "NHW"), 4: ("NCHW", "NHWC", "NDHW"), 5: ("NCDHW", "NDHWC")}[len(shape)]
            if not channels_first:
                ways = "; ".join(f"{way} is {_words(way, shape)}" for way in likely)
                raise ValueError(f"{name}: shape {shape} can be read in several ways: {ways}; say which with axes (--axes {likely[0]})")
            axes = likely[0]
    elif len(axes) != len(shape):
        raise ValueError(f"{name}: axes {axes} for an array of shape {shape}; one letter for each of its {len(shape)} axes is needed")
    by_letter = dict(zip(axes, shape, strict=True))
    item = (by_letter.get("C", 1), *(by_letter[letter] for letter in "DHWL" if letter in by_letter))
    levels = levels_of(dtype)
    kind = f"{dtype.name}, continuous" if levels is None else f"{dtype.name}, levels 0 .. {levels - 1}"
    moved = ", channels put first" if "C" in axes[2:] else ""
    return Layout(axes, item, f"read as {shape[0]:,} {_words(axes, shape)} (axes {axes}{moved}; {kind})")


def _words(axes: str, shape: Sequence[int]) -> str:
    by_letter = dict(zip(axes, shape, strict=True))
    channels = by_letter.get("C", 1)
    if len(axes) == 2 and "C" in by_letter:
        return f"rows of {channels:,} column{'s' * (channels != 1)}"
    size = " x ".join(str(by_letter[letter]) for letter in "DHWL" if letter in by_letter)
    kind = "signals" if "L" in by_letter else "volumes" if "D" in by_letter else "images"
    return f"{kind} of {channels:,} channel{'s' * (channels != 1)}, {'length ' if kind == 'signals' else ''}{size}"


def _guess(shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """The axes that the shape leaves in no doubt, or None."""
    rank, first, last, small = len(shape), shape[1], shape[-1], levels_of(dtype) is not None
    if rank == 2:
        return "NC"
    space = {3: "L", 4: "HW", 5: "DHW"}[rank]
    few_first, few_last = first <= _FEW, last <= _FEW
    if rank == 3:
        if (small and not few_first and not few_last) or first == last >= 8:
            return "NHW"
        if last == 1 and first > 1:
            return "NLC"
        return "NCL" if (first == 1 and last > 1) or (few_first and not few_last) else None
    if first == 1 or (few_first and not few_last):
        return f"NC{space}"
    if last == 1 or (few_last and not few_first and small):
        return f"N{space}C"
    if few_first and len(set(shape[2:])) == 1:
        return f"NC{space}"
    return None
