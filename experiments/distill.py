"""A flow map of a run's network: `python experiments/distill.py --run runs/digits-vp --out runs/digits-few`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
