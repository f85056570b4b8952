"""CLIP on captioned pictures: `python experiments/clip.py --data emoji --steps 1200`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["clip", *sys.argv[1:]]))
