"""What must be known of a foreign network beside its weights: each fact is in the file, or given, or asked for; none is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEANINGS = {
    "size": "the pictures' edge in pixels",
    "sde": "ve, vp or subvp",
    "continuous": "whether it was trained at all times (true) or at the points of a chain (false)",
    "centered": "whether its data are -1 .. 1 (true) or 0 .. 1 (false)",
    "scale_by_sigma": "whether its output is divided by sigma",
    "skip_rescale": "whether its sums are divided by sqrt(2)",
    "fir": "whether it resamples with the filter 1, 3, 3, 1 (true) or with 1, 1 (false)",
    "beta_min": "the rate of the noise at t = 0",
    "beta_max": "the rate of the noise at t = 1",
    "sigma_min": "the smallest noise, in units of the data's own range",
    "sigma_max": "the largest noise, in units of the data's own range",
    "steps": "the number of steps of the chain",
    "schedule": "linear or cosine",
    "prediction": "what the output is: noise or data, or edm",
    "heads": "the number of attention heads; or head_channels, the channels of each",
    "head_channels": "the channels of each attention head",
    "attention_order": "legacy (heads first, then queries, keys and values) or new (queries, keys and values first)",
    "rescale_timesteps": "whether steps are told as 0 .. 1000 whatever their number is",
    "precond": "EDMPrecond, VPPrecond, VEPrecond or iDDPMPrecond",
    "sigma_data": "the standard deviation of its data that it is scaled for",
    "objective": "pred_noise, pred_x0 or pred_v",
    "auto_normalize": "whether its data are 0 .. 1 outside of it",
}


class Facts:
    """What is known of a network, and whence.

    given: what the caller says, checked against what the file says; a fact whose name is not in `names` is a ValueError.
    """

    def __init__(self, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ValueError(f"config has {', '.join(map(repr, unknown))}, which this format does not know; known: {', '.join(names)}")
        self.given = dict(given)
        self.found: dict[str, tuple[Any, str]] = {name: (value, "given") for name, value in given.items()}

    def find(self, name: str, value: Any, origin: str = "file") -> None:
        """Note what the file says; ValueError where the caller says otherwise."""
        if name in self.given and not _same(self.given[name], value):
            raise ValueError(
                f"config says {name} = {self.given[name]!r}, but the file {value!r}: it is not the network of this configuration"
            )
        self.found[name] = (value, origin)

    def know(self, name: str) -> bool:
        return name in self.found

    def __getitem__(self, name: str) -> Any:
        return self.found[name][0]

    def get(self, name: str, default: Any = None) -> Any:
        """For what changes nothing but further training."""
        return self.found[name][0] if name in self.found else default

    def need(self, *names: str) -> None:
        """ValueError that lists those of `names` that are not known."""
        missing = [name for name in names if name not in self.found]
        if missing:
            lines = "; ".join(f"{name} ({MEANINGS[name]})" for name in missing)
            raise ValueError(f"the file does not say {lines}: give config={{{missing[0]!r}: ...}}, or a preset's name")

    def choose(self, name: str, allowed: tuple[Any, ...]) -> Any:
        """The fact `name`, one of `allowed`; ValueError for another."""
        if self[name] not in allowed or (isinstance(self[name], bool) != isinstance(allowed[0], bool)):
            raise ValueError(f"config says {name} = {self[name]!r}; allowed: {', '.join(map(repr, allowed))}")
        return self[name]

    def whole(self, name: str) -> int:
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 16:
            raise ValueError(f"config says {name} = {value!r}; a whole number from 1 to {1 << 16} is needed")
        return value

    def number(self, name: str) -> float:
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"config says {name} = {value!r}; a positive number is needed")
        return float(value)

    def told(self) -> dict[str, dict[str, Any]]:
        """All facts with where they are from, JSON-able."""
        return {name: {"value": _plain(value), "from": origin} for name, (value, origin) in sorted(self.found.items())}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, float):
        return bool(abs(one - other) <= 1e-6 * abs(other))
    return bool(_plain(one) == _plain(other))


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
