"""How the errors of other readers are said in one line."""

from __future__ import annotations

from collections.abc import Sequence


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks and at most 200 characters."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


def first_and_count(names: Sequence[str], most: int = 8) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
