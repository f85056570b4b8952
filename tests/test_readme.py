"""The README is short, and what it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 200
    assert len(README.encode()) <= 12_000


def test_the_files_to_read_are_there() -> None:
    files = re.findall(r"`(\w+/\w+\.py)`", README[README.index("## Read it in an afternoon") :])
    assert len(files) == 8
    for file in files:
        assert (ROOT / "sde_gen" / file).is_file(), file


def test_each_row_of_what_it_does_has_a_page() -> None:
    table = README[README.index("## What it does") : README.index("## Measured")]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 10 and all("](docs/" in row for row in rows)


def test_one_training_time_is_given() -> None:
    assert len(re.findall(r"in (\d+) s\b", README)) == 1


def test_the_version_of_python_is_the_one_that_is_required() -> None:
    assert "python_requires = >=3.11" in (ROOT / "setup.cfg").read_text(encoding="utf-8") and "Python 3.11 or 3.12" in README
