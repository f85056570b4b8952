"""Guidance: Denoisers made of Denoisers, which every solver and every likelihood takes like any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..models.denoiser import Denoiser
from ..registry import Registry, build
from .apg import AdaptiveProjected
from .cfg import ClassifierFree
from .cfg_zero import ZeroStar
from .cfgpp import CFGPlusPlus
from .combine import Combine, Guided
from .gradient import Classifier, Energy

__all__ = [
    "GUIDANCE",
    "AdaptiveProjected",
    "CFGPlusPlus",
    "Classifier",
    "ClassifierFree",
    "Combine",
    "Energy",
    "Guided",
    "ZeroStar",
    "guide",
]

GUIDANCE: Registry[Callable[..., Guided]] = Registry(
    {
        "cfg": ClassifierFree,
        "cfgpp": CFGPlusPlus,
        "apg": AdaptiveProjected,
        "cfg_zero": ZeroStar,
    },
    aliases={"cfg++": "cfgpp", "cfg-zero*": "cfg_zero", "auto": "cfg"},
)
"""Rules of guidance by name, each a class of (model, strength, drop, interval, against, options of its own)."""


def guide(
    model: Denoiser,
    strength: float,
    drop: Sequence[str] | None = None,
    interval: tuple[float, float] | None = None,
    rule: str = "cfg",
    against: Denoiser | None = None,
    **options: Any,
) -> Guided:
    """`model` guided towards the conditions that `sample(..., cond={...})` gives: another Denoiser, for every solver and likelihood.

        D = D_null + strength (D_cond - D_null)

    strength: 1 is the conditional model, 0 the null branch, above 1 beyond the conditional model.
    drop: the conditions that the null branch is not given; None: all of them.
    interval: (low, high) in half log-SNR outside of which there is no guidance.
    rule: a name in GUIDANCE, with its `options`.
    against: another model as the null branch, given all conditions (autoguidance: a weaker model of the same data).

    Raises ValueError for an unknown rule or option and for values that are not allowed. See `Guided` and the rules for their papers.
    """
    settings = {"model": model, "strength": strength, "drop": drop, "interval": interval, "against": against}
    return build(GUIDANCE, "guidance rule", rule, settings | options)
