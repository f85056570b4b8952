"""Train a score network and sample it: `python experiments/run.py --sde vp --solver pc`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
