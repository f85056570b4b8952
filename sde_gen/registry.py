"""Names to objects: every registry of the package is a plain dict, read through these two functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def lookup(registry: Mapping[str, T], what: str, name: str) -> T:
    """The entry `name`, or ValueError with the names allowed."""
    if name not in registry:
        raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(registry)}")
    return registry[name]


def build(registry: Mapping[str, Callable[..., T]], what: str, name: str, settings: Mapping[str, Any]) -> T:
    """The entry `name` called with `settings`, or ValueError with the settings that it takes."""
    entry = lookup(registry, what, name)
    allowed = list(inspect.signature(entry).parameters)
    unknown = [key for key in settings if key not in allowed]
    if unknown:
        raise ValueError(f"{what} {name!r} has no setting {', '.join(unknown)}; it takes {', '.join(allowed) or 'none'}")
    return entry(**settings)
