"""Degraded data restored: `python experiments/restore.py --run runs/digits-vp --operator "mask box 4"`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["restore", *sys.argv[1:]]))
