"""Bits per dimension of a run's data with error bars: `python experiments/likelihood.py --run runs/digits-vp`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["likelihood", *sys.argv[1:]]))
