"""The gallery's command and page, with every lesson at a small share of its samples."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen import make_sde
from sde_gen.commands.config import resolve
from sde_gen.exact.mixtures import MixtureData

ROOT = Path(__file__).parents[2]


def _load() -> ModuleType:
    """experiments/gallery.py as a module: experiments/ is no package, and its lessons are found beside it."""
    spec = importlib.util.spec_from_file_location("experiment_gallery", ROOT / "experiments" / "gallery.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "experiments"))
    return module


gallery = _load()
LESSONS = gallery.LESSONS
NAMES = sys.modules["lecture"].NAMES
MNIST = sys.modules["lecture.lesson"].MNIST
QUICK = ("reverse_kernel", "chain", "predictor_corrector")
"""Lessons that need no network, in the order of the page."""


TINY = {"model": {"network": "mlp", "options": {"width": 16, "depth": 1}}, "training": {"batch": 16, "evaluations": 1}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the lessons of this module find, or train, the digits network: a tiny one, the recipe's own would take a minute."""
    lesson = sys.modules["lecture.lesson"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesson, "resolve", lambda asked: resolve(asked, TINY))
        yield tmp_path_factory.mktemp("run") / "digits"


def make(docs: Path, run: Path, *names: str) -> list[str]:
    """What the command prints of these lessons, made quickly; it must succeed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = gallery.main([*names, "--docs", str(docs), "--run", str(run), "--scale", "0.03", "--train-steps", "3"])
    assert code == 0
    return out.getvalue().splitlines()


def sections(docs: Path) -> dict[str, str]:
    """The page's sections by name, in its order."""
    return dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", (docs / "gallery.md").read_text(encoding="utf-8"), re.DOTALL))


def check_picture(path: Path) -> None:
    assert 2_000 < path.stat().st_size < 300_000
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width >= 700 and image.height >= 250
        grey = np.asarray(image.convert("L"))
    assert 0.02 < (grey < 250).mean() < 0.98 and grey.std() > 5  # neither blank nor all ink


def expected(name: str) -> re.Pattern[str]:
    """What a section must be: the lesson's own words, with anything on the same line in the place of a number."""
    lesson = LESSONS[name]
    whole = (
        f"## {list(LESSONS).index(name) + 1}. {lesson.title}\n\n{lesson.text.strip()}\n\n![{lesson.alt}](gallery/{name}.png)\n\n"
        f"```\n$ python experiments/gallery.py {name}\n" + "\n".join(lesson.says) + "\n```\n"
    )
    return re.compile("(.+)".join(re.escape(part) for part in re.split(r"<<[^<>]*>>", whole)))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(name == "larger_digits" and not MNIST.is_dir(), reason=f"no MNIST files in {MNIST}"))
        for name in LESSONS
    ],
)
def test_a_lesson_makes_its_picture_and_its_section(name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    section = gallery.section
    monkeypatch.setattr(gallery, "section", lambda name, lesson, numbers: seen.update(numbers) or section(name, lesson, numbers))
    printed = make(tmp_path, run, name)
    check_picture(tmp_path / "gallery" / f"{name}.png")
    assert [path.name for path in (tmp_path / "gallery").iterdir()] == [f"{name}.png"]
    numbers = {key: value for key, value in seen.items() if isinstance(value, int | float)}
    assert numbers and all(math.isfinite(value) for value in numbers.values()), numbers

    (text,) = sections(tmp_path).values()
    assert "<<" not in text and ">>" not in text
    assert expected(name).fullmatch(text), text
    block = re.findall(r"```\n(.*?)```\n", text, re.DOTALL)[-1].splitlines()
    assert block[0] == f"$ python experiments/gallery.py {name}"
    assert LESSONS[name].says and len(block) == 1 + len(LESSONS[name].says)
    start = next(i for i, line in enumerate(printed) if line.startswith(f"{name} ("))
    assert printed[start].endswith(f"s): {tmp_path / 'gallery' / name}.png")
    assert printed[start + 1 : -1] == [f"  {line}" for line in block[1:]]
    assert printed[-1].startswith(f"{tmp_path / 'gallery.md'}: 1 of {len(LESSONS)} lessons made in ")


def test_sections_are_in_the_lectures_order_and_a_remade_lesson_keeps_the_others(run: Path, tmp_path: Path) -> None:
    first, second, third = QUICK
    make(tmp_path, run, third, first)
    assert list(sections(tmp_path)) == [first, third]
    make(tmp_path, run, second)
    before = sections(tmp_path)
    assert list(before) == [first, second, third]
    file = tmp_path / "gallery.md"
    file.write_text(
        file.read_text(encoding="utf-8").replace(before[third], "of an earlier day\n").replace(before[first], "lost\n"), encoding="utf-8"
    )
    make(tmp_path, run, first)
    assert sections(tmp_path) == {first: before[first], second: before[second], third: "of an earlier day\n"}
    text = file.read_text(encoding="utf-8")
    assert text.startswith(gallery.HEAD) and text.count("# The gallery\n") == 1


def test_a_lesson_without_its_data_is_skipped_in_a_sentence_and_keeps_its_section(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["lecture.lesson"], "MNIST", tmp_path / "nowhere")
    (tmp_path / "gallery.md").write_text("<!-- larger_digits -->\nof an earlier day\n<!-- end -->\n", encoding="utf-8")
    printed = make(tmp_path, run, "larger_digits", QUICK[0])
    assert printed[0] == (
        f"larger_digits is skipped: it needs MNIST's four IDX files in {tmp_path / 'nowhere'}"
        " (SDE_GEN_DATA names another place than its parent)"
    )
    assert printed[-1].startswith(f"{tmp_path / 'gallery.md'}: 1 of {len(LESSONS)} lessons made in ")
    assert list(sections(tmp_path)) == [QUICK[0], "larger_digits"] and sections(tmp_path)["larger_digits"] == "of an earlier day\n"


def test_mnist_is_looked_for_by_the_rule_of_the_tests_of_data() -> None:
    parent = Path(os.environ.get("SDE_GEN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    assert parent / "mnist" == MNIST


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("forwards",), "unknown lesson 'forwards'; choose from forward, "),
        (("forward", "../forward"), "unknown lesson '../forward'"),
        (("forward", "--scale", "0"), "--scale must be above 0 and at most 1, got 0"),
        (("forward", "--scale", "1.5"), "--scale must be above 0 and at most 1, got 1.5"),
        (("forward", "--scale", "nan"), "--scale must be above 0 and at most 1, got nan"),
    ],
)
def test_bad_arguments_are_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gallery.main([*arguments, "--docs", str(tmp_path / "docs")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("gallery.py: ") and message in err
    assert not (tmp_path / "docs").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert gallery.main(["solvers", "--docs", str(tmp_path / "file")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("gallery.py: ")


def test_a_number_that_draw_did_not_return_is_no_silent_gap() -> None:
    assert gallery.fill("<<a:.1f>> of <<b>>, <<c:,>>", {"a": 1.25, "b": "x", "c": 1000}) == "1.2 of x, 1,000"
    with pytest.raises(KeyError, match="missing"):
        gallery.fill("<<missing:.1f>>", {"a": 1.0})


@pytest.mark.skipif(not (ROOT / "docs" / "gallery.md").exists(), reason="docs/gallery.md is not made yet")
def test_the_committed_page_is_whole_and_says_what_the_lessons_say() -> None:
    docs = ROOT / "docs"
    known = (docs / "gallery.md").read_text(encoding="utf-8")
    assert gallery.page(known, {}) == known  # nothing was written into it by hand outside the sections
    assert tuple(sections(docs)) == tuple(LESSONS) == NAMES and len(NAMES) == 15
    assert sorted(path.name for path in (docs / "gallery").iterdir()) == sorted(f"{name}.png" for name in NAMES)
    for name, text in sections(docs).items():
        assert expected(name).fullmatch(text), f"docs/gallery.md: section {name} is not that of lecture/{name}.py: make it again"
        check_picture(docs / "gallery" / f"{name}.png")


def test_f_and_g_make_the_alpha_and_sigma_that_the_first_lesson_says() -> None:
    lesson = sys.modules["lecture.forward"]
    for sde in lesson.schedules().values():
        alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(0.5, dtype=torch.float64)))
        mean, std = lesson.simulated(sde, 0.5, 4000, 200)
        assert abs(mean - alpha) < 4 * sigma / math.sqrt(4000) and abs(std / sigma - 1) < 4 / math.sqrt(8000) + 0.02


def test_the_mean_noise_in_a_state_is_the_score_that_the_second_lesson_says() -> None:
    lesson = sys.modules["lecture.score_matching"]
    sde = make_sde("cosine")
    data = MixtureData(torch.tensor(lesson.WEIGHTS), torch.tensor(lesson.MEANS)[:, None], torch.full((3, 1, 1), lesson.STD**2))
    t = torch.full((400_000,), lesson.TIME, dtype=torch.float64)
    x, noise = lesson.noised(sde, data.sample(len(t), seed=0).float(), t, seed=1)
    exact = lesson.exact_noise(data, sde, x, t)
    for low in (-1.5, -0.5, 0.5, 1.4):
        own = ((x > low) & (x < low + 0.1))[:, 0]
        error = float(noise[own].std()) / math.sqrt(int(own.sum()))
        assert abs(float(noise[own].mean() - exact[own].mean())) < 4 * error < 0.1


def test_classes_are_read_from_clean_digits_and_guessed_from_noise() -> None:
    lesson = sys.modules["lecture.larger_digits"]
    known = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 10
    assert torch.equal(lesson.class_read(known, labels, known, 4.0), labels)
    few = lesson.class_read(known, torch.where(labels < 3, 3, labels), known, -6.0)
    assert float((few == 3).double().mean()) > 0.9  # the largest class, whatever is shown
    shares = torch.sigmoid(2 * (lesson.FINE + 1)).mul(0.8).add(0.1).tolist()
    assert lesson.half_way(shares) == pytest.approx(-1, abs=0.02)
