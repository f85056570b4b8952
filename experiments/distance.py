"""FID and its kin of a folder of images, without any run: `python experiments/distance.py`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["distance", *sys.argv[1:]]))
