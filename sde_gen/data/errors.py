"""How the errors of other readers are said in one line."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks and at most 200 characters."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]
