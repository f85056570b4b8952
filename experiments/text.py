"""From a sentence to a picture: `python experiments/text.py --quick --prompt "a green heart"`; `--help` says the rest."""

import sys

from sde_gen.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["text", *sys.argv[1:]]))
