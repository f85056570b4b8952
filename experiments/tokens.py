"""Discrete diffusion of text or images of few levels: `python experiments/tokens.py --data book.txt`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["tokens", *sys.argv[1:]]))
