"""Why the samples of a run are bad: `python experiments/doctor.py --run runs/digits-vp`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
