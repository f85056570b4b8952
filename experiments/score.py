"""Log-likelihoods and p-values of one's own items: `python experiments/score.py FILE --run runs/digits-vp`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
