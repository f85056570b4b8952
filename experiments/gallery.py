"""The gallery: every idea of the field in a picture made by this code. `python experiments/gallery.py` makes all pictures and the page
docs/gallery.md; with names, only those. `--help` lists them."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lecture import LESSONS, Skipped, Studio
from lecture.lesson import STEPS, Lesson, Numbers

from sde_gen.commands.config import ConfigError
from sde_gen.report.files import atomic_path

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEAD = """# The gallery

[Back to the README](../README.md)

A first lecture on score-based diffusion, in pictures. Every picture is made by the command beside it, of real data or of exact scores, and
every number on this page is printed by that command: `python experiments/gallery.py` makes the whole page. Where a lesson speaks of the
digits network, it is the README's default one on scikit-learn's 8x8 digits after 700 training steps instead of 1,800: a sketch that is made
in a minute, with samples less sharp than the README's. "+- e" is one standard error.

Throughout, x_0 is a data item, epsilon is standard Gaussian noise, and at time t

$$x_t = \\alpha(t)\\, x_0 + \\sigma(t)\\, \\epsilon, \\qquad \\mathrm{d}x = f(t)\\, x\\, \\mathrm{d}t + g(t)\\, \\mathrm{d}w .$$

"""


def section(name: str, lesson: Lesson, numbers: Numbers) -> str:
    """A lesson as Markdown: heading, text, picture, command and what it prints."""
    said = "\n".join(lines(lesson, numbers))
    command = f"$ python experiments/gallery.py {name}\n{said}"
    place = list(LESSONS).index(name) + 1
    text = fill(lesson.text.strip(), numbers)
    return f"## {place}. {lesson.title}\n\n{text}\n\n![{lesson.alt}](gallery/{name}.png)\n\n```\n{command}\n```\n"


def lines(lesson: Lesson, numbers: Numbers) -> list[str]:
    """What the command prints of a lesson."""
    return [fill(line, numbers) for line in lesson.says]


def fill(text: str, numbers: Numbers) -> str:
    """The text with <<name:format>> replaced by that number: LaTeX has the braces."""
    return re.sub(r"<<(\w+):?([^<>]*)>>", lambda found: format(numbers[found[1]], found[2]), text)


def page(known: str, made: dict[str, str]) -> str:
    """The page with the sections just made, and those of `known`, the page as it was, for the rest."""
    sections = dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", known, re.DOTALL)) | made
    return HEAD + "\n".join(f"<!-- {name} -->\n{sections[name]}<!-- end -->\n" for name in LESSONS if name in sections)


def main(argv: Sequence[str] | None = None) -> int:
    titles = "\n".join(f"  {name:<22}{lesson.title}" for name, lesson in LESSONS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"lessons:\n{titles}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="lessons (default: all)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where gallery.md and gallery/ are written (default: docs)")
    parser.add_argument("--run", type=Path, default=Path("runs/gallery"), help="run directory of the digits network (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the samples and steps, to try a lesson out")
    parser.add_argument("--train-steps", type=int, default=STEPS, help="of the digits networks (default: %(default)s)")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in LESSONS]
    if unknown:
        print(f"gallery.py: unknown lesson {unknown[0]!r}; choose from {', '.join(LESSONS)}", file=sys.stderr)
        return 2
    if not 0 < args.scale <= 1:
        print(f"gallery.py: --scale must be above 0 and at most 1, got {args.scale:g}", file=sys.stderr)
        return 2
    studio = Studio(args.docs / "gallery", args.run, args.scale, args.train_steps)
    try:
        studio.place.mkdir(parents=True, exist_ok=True)
        file = args.docs / "gallery.md"
        known = file.read_text(encoding="utf-8") if file.exists() else ""
        began = time.monotonic()
        made = {}
        for name in args.names or LESSONS:
            start = time.monotonic()
            try:
                numbers = LESSONS[name].draw(studio)
            except Skipped as reason:
                print(f"{name} is skipped: {reason}")
                continue
            made[name] = section(name, LESSONS[name], numbers)
            print(f"{name} ({time.monotonic() - start:.0f} s): {studio.place / name}.png")
            for line in lines(LESSONS[name], numbers):
                print(f"  {line}", flush=True)
        with atomic_path(file) as temporary:
            temporary.write_text(page(known, made), encoding="utf-8")
    except (ConfigError, OSError) as error:
        print(f"gallery.py: {error}", file=sys.stderr)
        return 2
    print(f"{file}: {len(made)} of {len(LESSONS)} lessons made in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
