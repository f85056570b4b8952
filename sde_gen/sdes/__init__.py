"""The forward processes. A new one is a file with a class and a line in `SDES`."""

from __future__ import annotations

from typing import Any

from ..registry import build
from .base import SDE
from .cosine import CosineVPSDE
from .ddpm import BETAS, DDPMSDE, ChainSDE
from .subvp import SubVPSDE
from .ve import VESDE
from .vp import VPSDE

SDES: dict[str, type[SDE]] = {
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "cosine": CosineVPSDE,
    "ddpm": DDPMSDE,
}


def make_sde(name: str, **settings: Any) -> SDE:
    """The registered SDE `name` with its constructor's settings, for example `make_sde("vp", beta_max=20.0)`.

    Raises ValueError for an unknown name or setting, with the ones allowed, and for a value out of its range.
    """
    return build(SDES, "SDE", name, settings)


def register_sde(name: str, kind: type[SDE]) -> None:
    """Let checkpoints, `train` and the command line know an SDE's class as `name`; it is rebuilt by `kind(**sde.settings)`.

    Raises TypeError for what is no such class, ValueError for a name that another class has.
    """
    if not (isinstance(kind, type) and issubclass(kind, SDE)):
        raise TypeError(f"kind must be a class of SDE, got {kind!r}")
    if SDES.get(name, kind) is not kind:
        raise ValueError(f"SDE {name!r} is registered already, as {SDES[name].__name__}")
    SDES[name] = kind


__all__ = ["BETAS", "DDPMSDE", "SDE", "SDES", "VESDE", "VPSDE", "ChainSDE", "CosineVPSDE", "SubVPSDE", "make_sde", "register_sde"]
