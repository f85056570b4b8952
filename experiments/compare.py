"""DDPM ancestral against ODE sampling and the rest on one network: `python experiments/compare.py`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
