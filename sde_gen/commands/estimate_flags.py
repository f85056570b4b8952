"""The flags that `likelihood` and `score` share: how the log-likelihood of each item is estimated."""

from __future__ import annotations

import argparse
from typing import Protocol

from ..likelihood.bits_per_dim import DEQUANTISATIONS
from ..likelihood.divergence import DIVERGENCES
from ..likelihood.flow import EXACT_UP_TO


class Estimate(Protocol):
    """Settings with these defaults."""

    @property
    def dequantization(self) -> str: ...

    @property
    def draws(self) -> int: ...

    @property
    def probes(self) -> int: ...

    @property
    def tolerance(self) -> float: ...

    @property
    def seed(self) -> int: ...

    @property
    def batch(self) -> int: ...


def add_estimate_flags(parser: argparse.ArgumentParser, default: Estimate, item: str) -> None:
    """Add them; `item`: what one item is called."""
    names = ", ".join(DEQUANTISATIONS)
    parser.add_argument("--dequantization", metavar="NAME", default=default.dequantization, help=f"{names} (default %(default)s)")
    parser.add_argument("--draws", metavar="N", type=int, default=default.draws, help=f"dequantisations of each {item} (%(default)s)")
    divergences = f"{', '.join(DIVERGENCES)} (default: exact up to {EXACT_UP_TO} dimensions, else resampled)"
    parser.add_argument("--divergence", metavar="NAME", help=divergences)
    parser.add_argument("--probes", metavar="N", type=int, default=default.probes, help="random vectors of a divergence (%(default)s)")
    parser.add_argument("--tolerance", metavar="X", type=float, default=default.tolerance, help="of the integrator (%(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=default.seed, help="of all draws (%(default)s)")
    parser.add_argument("--batch", metavar="N", type=int, default=default.batch, help=f"{item}s at a time (%(default)s)")
