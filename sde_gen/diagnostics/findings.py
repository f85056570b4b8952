"""What the doctor hands back, and when a difference is taken for real."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SURE = 4.0
"""Standard errors beyond which a difference is taken for real: one false alarm in 30,000 tests of normal statistics."""


@dataclass(frozen=True)
class Finding:
    """One cause of bad samples. severity: "fault" or "warning"; evidence, advice: one line each; numbers: what was measured."""

    name: str
    severity: str
    evidence: str
    advice: str
    numbers: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.severity:<10}{self.name}: {self.evidence}\n{'':<10}-> {self.advice}"


def std_error(values: Tensor) -> float:
    """Of the mean of `values` (n,)."""
    return float(values.std()) / math.sqrt(len(values))


def sure(values: Tensor) -> bool:
    """Whether the mean of `values` (n,) is above 0 beyond its error."""
    return float(values.mean()) > SURE * std_error(values)
