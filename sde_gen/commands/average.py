"""The width of a run's average of the weights, chosen after its training."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..locks import held
from ..training import choose_average
from .config import ConfigError
from .run_data import config_of_run

EXAMPLES = """examples:
  sde-gen run --set training.ema_widths=[0.02,0.1,0.2] --out runs/a        keeps averages of these widths beside the recipe's 0.05
  %(prog)s --run runs/a --ema-width 0.08          from here on every command uses weights averaged over 0.08
  %(prog)s --run runs/a --ema-width 0.05          the recipe's again

A width is the standard deviation of the average's weights along the training, over its length."""


def add_average_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `average`."""
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="run directory")
    parser.add_argument("--ema-width", metavar="W", type=float, required=True, help="relative width, between those that were kept")


def average_run(directory: Path, width: float, say: Callable[[str], None] = print) -> None:
    """Make the weights averaged over `width` those that every command takes from the run in `directory`, and say how exactly.
    ConfigError where the training kept no averages that reach it; LockError where another process writes to the directory."""
    config_of_run(directory)
    with held(directory):
        try:
            missed = choose_average(directory, width)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    again = "samples and numbers in the run are of the weights before: run its commands again"
    say(f"average   weights of relative width {width:g}, whose profile is missed by {missed:.1%}; {again}")


AVERAGE = (
    lambda arguments: average_run(arguments.run, arguments.ema_width),
    (add_average_flags,),
    "the width of a run's averaged weights, chosen afterwards",
    "Choose the width of the average of the weights that every command takes from a run, of those that its training kept.",
    EXAMPLES,
)
"""What `average` does, its flags, a brief word, its description and examples."""
