"""How far long work has come: a bar on a terminal, elsewhere one line at most every half minute, on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from tqdm import tqdm

SECONDS = 30.0
"""Between two lines where there is no terminal."""


class Progress(Protocol):
    """What `bar` gives; to be used in a `with` block. `disable`: nothing is shown, and nobody need call `update`."""

    @property
    def disable(self) -> bool | None: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> Any: ...

    def update(self, n: int = 1) -> Any: ...

    def set_description(self, desc: str) -> Any: ...

    def set_postfix(self, ordered_dict: Mapping[str, object], refresh: bool = False) -> Any: ...


def bar(total: int | None, desc: str, unit: str, show: bool = True, initial: int = 0, leave: bool = True) -> Progress:
    """Progress of `total` things (None: not known), of which `initial` are done, named `unit` in the singular.

    On a terminal it is a tqdm bar, which stays at its end where `leave` is set. Where stderr is no terminal it is a line every
    `SECONDS`, also in the middle of one long step; work that is shorter says nothing. `show` False: nothing at all.
    """
    if not show or sys.stderr.isatty():
        return tqdm(total=total, desc=desc, unit=unit, initial=initial, leave=leave, disable=not show)
    return Lines(total, desc, unit, initial)


class Lines:
    """Progress as lines: a thread writes one every `SECONDS` until the block ends."""

    def __init__(self, total: int | None, desc: str, unit: str, initial: int = 0) -> None:
        self.total, self.desc, self.unit, self.initial = total, desc, unit, initial
        self.disable = False
        self.done = initial
        self.values: Mapping[str, object] = {}
        self.began = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join()

    def update(self, n: int = 1) -> None:
        self.done += n

    def set_description(self, desc: str) -> None:
        self.desc = desc

    def set_postfix(self, ordered_dict: Mapping[str, object], refresh: bool = False) -> None:
        self.values = ordered_dict

    def line(self) -> str:
        """Where the work stands now: "training  340 of 1800 steps, 60 s, about 258 s to go (loss 0.1234)"."""
        seconds, fresh = time.monotonic() - self.began, self.done - self.initial
        parts = [f"{seconds:.0f} s"]
        if self.total is not None:
            parts.insert(0, f"{self.done} of {self.total} {self.unit}s")
            if fresh:
                parts.append(f"about {seconds * (self.total - self.done) / fresh:.0f} s to go")
        values = ", ".join(f"{name} {value}" for name, value in self.values.items())
        return f"{self.desc:<9} {', '.join(parts)}" + (f" ({values})" if values else "")

    def _write(self) -> None:
        while not self.ended.wait(SECONDS):
            print(self.line(), file=sys.stderr, flush=True)
