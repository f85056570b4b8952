"""A cause of bad samples that was found, and when a difference counts as real."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SIGNIFICANCE = 4.0
"""Standard errors beyond which a difference is taken for real: one false alarm in 30,000 tests of normal statistics."""

MUCH = 0.2
"""Another explanation, or other weights, is named where it is better by this share of what can be learned."""


@dataclass(frozen=True)
class Finding:
    """One cause of bad samples.

    name: the cause, always in the same words.
    severity: "fault" or "warning".
    evidence: one line that says what was measured.
    advice: one line that says what to do.
    numbers: the measured values by name.
    """

    name: str
    severity: str
    evidence: str
    advice: str
    numbers: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.severity:<10}{self.name}: {self.evidence}\n{'':<10}-> {self.advice}"


def std_error(values: Tensor) -> float:
    """The standard error of the mean of `values` (n,)."""
    return float(values.std()) / math.sqrt(len(values))


def significant(values: Tensor) -> bool:
    """Whether the mean of `values` (n,) is above 0 by more than `SIGNIFICANCE` standard errors."""
    return float(values.mean()) > SIGNIFICANCE * std_error(values)
