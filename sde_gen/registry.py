"""Names to objects: every registry of the package is a dict that lies where its entries do, read through these functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dict of named entries; `aliases` are the field's other names for them, which iteration does not show."""

    def __init__(self, entries: Mapping[str, T], aliases: Mapping[str, str] | None = None) -> None:
        super().__init__(entries)
        self.aliases = dict(aliases or {})


def canonical(registry: Mapping[str, Any], what: str, name: str) -> str:
    """The name under which `name`, an entry's own or an alias of it, is registered, or ValueError with the names allowed."""
    aliases: Mapping[str, str] = getattr(registry, "aliases", {})
    found = aliases.get(name, name) if isinstance(name, str) else name
    if not isinstance(found, str) or found not in registry:
        others = f" (also {', '.join(aliases)})" if aliases else ""
        raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(registry)}{others}")
    return found


def lookup(registry: Mapping[str, T], what: str, name: str) -> T:
    """The entry `name`, or ValueError with the names allowed."""
    return registry[canonical(registry, what, name)]


def build(registry: Mapping[str, Callable[..., T]], what: str, name: str, settings: Mapping[str, Any]) -> T:
    """The entry `name` called with `settings`, or ValueError with the settings that it takes."""
    entry = lookup(registry, what, name)
    allowed = list(inspect.signature(entry).parameters)
    unknown = [key for key in settings if key not in allowed]
    if unknown:
        raise ValueError(f"{what} {name!r} has no setting {', '.join(unknown)}; it takes {', '.join(allowed) or 'none'}")
    return entry(**settings)
