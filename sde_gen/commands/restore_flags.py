"""The flags of restore."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..inverse import METHODS
from .flags import add_named_run_flags
from .measurement_text import OPERATORS
from .restore_settings import RestoreSettings

RESTORE_EXAMPLES = """examples:
  %(prog)s --run runs/digits-vp --operator "mask box 4" --noise 0.1      held-out digits without their middle
  %(prog)s --operator "downsample 2" --method twisted --method mmps      two methods beside one another
  %(prog)s --operator "mask random 0.5" --calibrate 200                  is the posterior calibrated? 200 problems, twice
  %(prog)s --run runs/energy.csv-vp --input gaps.csv                     a table's empty cells, filled in
  %(prog)s --run runs/faces-vp --operator grey --input grey/ --out coloured

restore/<operator> in the run directory gets restore.json, a picture of each method, calibration.png and, of an input, the restored items in
its own form and units: mean, standard deviation and samples."""


def add_restore_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `restore`."""
    default = RestoreSettings()
    usages = ", ".join(usage for usage, *_ in OPERATORS.values())
    add_named_run_flags(parser)
    parser.add_argument("--operator", metavar="WORDS", help=f"what is measured: {usages} (default, of an --input: gaps)")
    noise = "share of the data's range (a table's columns: of their standard deviation), or gaussian STD, poisson GAIN, quantised STEP STD"
    parser.add_argument("--noise", metavar="X", help=f"{noise} (default 0.05; of gaps 0)")
    parser.add_argument("--method", metavar="NAME", action="append", help=f"{', '.join(METHODS)} (default twisted; repeatable)")
    parser.add_argument("--input", metavar="PATH", help="your own degraded items: images, .npy, .npz or a table; NaN, empty: a gap")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where an input's restored items go (default: the run's restore/)")
    parser.add_argument("--written", metavar="N", type=int, default=default.written, help="samples of an input to write (%(default)s)")
    parser.add_argument("--items", metavar="N", type=int, default=default.items, help="held-out items, without --input (%(default)s)")
    parser.add_argument("--samples", metavar="N", type=int, default=default.samples, help="of each posterior (%(default)s)")
    parser.add_argument("--particles", metavar="N", type=int, help="of a group of method twisted (default: --samples)")
    parser.add_argument("--label", metavar="LABEL", help="of a conditional network: the class of all items (default: their own)")
    parser.add_argument(
        "--calibrate", metavar="N", type=int, default=0, help="test calibration on N truths of the model, and on held-out data"
    )
    parser.add_argument("--solver", metavar="NAME", default=default.solver, help="sampler (%(default)s)")
    parser.add_argument("--steps", metavar="N", type=int, default=default.steps, help="solver steps (%(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=default.seed, help="of items, noise and samples (%(default)s)")
    parser.add_argument("--batch", metavar="N", type=int, default=default.batch, help="states at a time (%(default)s)")
