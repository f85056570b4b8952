"""A run's samples as files: `python experiments/sample.py --run runs/digits-vp --samples 99 --out digits.npz`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
