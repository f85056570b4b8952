"""Runs on one page: `python experiments/report.py runs/digits-vp runs/digits-ve`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
