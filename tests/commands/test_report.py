"""report.html: everything that the commands leave is on it, in a real browser too; nothing that is read breaks it or runs in it."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, open_browser
from toys import Command

from sde_gen.commands.cli import main
from sde_gen.commands.report import MOST_BYTES, _summary, write_report
from sde_gen.commands.saved_run import read_run, warnings
from sde_gen.metrics import features

TINY = ["--no-progress", "--network", "mlp", "--train-steps", "20", "--samples", "40", "--set", "training.evaluations=2"]
HOSTILE = "<script>window.harmed=1</script>"


@pytest.fixture(scope="module", autouse=True)
def quick_features() -> Iterator[None]:
    """How well classes are told apart is not the claim here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_SETTINGS", features._SETTINGS | {"epochs": 2, "least_steps": 40})
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that every command has added to."""
    place = tmp_path_factory.mktemp("report") / "tiny run"
    shape = ["--set", "model.options={width: 32, depth: 1}", "--out", str(place)]
    assert main(["run", *TINY, *shape, "--solver", "ddim"]) == 0
    assert main(["run", *TINY, *shape, "--solver", "dpm", "--steps", "6"]) == 0
    chosen = ["--run", str(place), "--no-progress"]
    assert main(["compare", *chosen, "--solvers", "ancestral,dpm", "--calls", "4,10", "--samples", "40"]) == 0
    assert main(["likelihood", *chosen, "--images", "20", "--tolerance", "1e-2"]) == 0
    return place


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


class Outline(HTMLParser):
    """The tags, the text, and what every attribute refers to."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] not in ("script", "style"):
            self.text += data


def outline(path: Path) -> Outline:
    found = Outline()
    found.feed(path.read_text(encoding="utf-8"))
    assert not found.stack
    return found


def test_the_commands_write_the_page_and_it_has_all_that_they_measured(run: Path) -> None:
    page = outline(run / "report.html")
    for heading in (
        "At a glance",
        "Samples",
        "What the network learnt",
        "Does it memorise?",
        "Solvers compared",
        "Likelihood",
        "How to run it",
    ):
        assert heading in page.text
    metrics = json.loads((run / "metrics.json").read_text())
    for name, scores in metrics["solvers"].items():
        assert f"{scores['frechet_distance']['value']:.2f} ± {scores['frechet_distance']['std_error']:.2f}" in page.text
        assert f"--solver {name} " in page.text
    for part in json.loads((run / "likelihood" / "likelihood.json").read_text())["parts"].values():
        assert f"{part['value']:.3f} ± {part['std_error']:.3f}" in page.text
    for row in json.loads((run / "compare" / "compare.json").read_text())["rows"]:
        assert f"{row['distance']['value']:.2f} ± {row['distance']['std_error']:.2f}" in page.text
    assert metrics["training"]["environment"]["torch"] in page.text
    assert "t = 1.000" in page.text or any("t = " in (attrs.get("data-label") or "") for _, attrs in page.tags)


def test_the_page_is_one_small_file_that_asks_for_nothing(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    for tag, attrs in outline(run / "report.html").tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attrs.get(name) is None or str(attrs[name]).startswith("data:"), (tag, attrs)
        if tag == "img":
            assert attrs.get("alt")
    assert "url(" not in re.sub(r"data:[^\"]*", "", text)


def test_the_commands_on_the_page_give_the_same_numbers(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "tiny run"
    shutil.copytree(run, copy)
    write_report([copy])
    lines = [line for line in html.unescape((copy / "report.html").read_text()).splitlines() if "python experiments/" in line]
    before = json.loads((copy / "metrics.json").read_text())["solvers"]["ddim"]
    command = next(line for line in lines if "--solver ddim" in line)
    assert "--set sampling.steps=null --set sampling.grid=null" in command, "config.yaml has the last solver's"
    words = shlex.split(command[command.index("python experiments/") :].split("<")[0])
    assert main(["run", *words[2:], "--no-progress"]) == 0
    assert "reusing" in capfd.readouterr().out
    after = json.loads((copy / "metrics.json").read_text())["solvers"]["ddim"]
    assert {**before, "seconds": 0} == {**after, "seconds": 0}
    assert {words[1] for words in map(str.split, (line[line.index("python") :] for line in lines))} == {
        f"experiments/{name}.py" for name in ("run", "compare", "likelihood")
    }


def test_distances_of_unlike_numbers_of_items_say_so(run: Path) -> None:
    found = read_run(run)
    found.solvers["dpm"]["distance_size"] = 17
    table = _summary([found])
    column = list(table.columns).index("at N items")
    assert [row[column].text for row in table.rows] == ["40", "17"]
    assert "'at N items': compare those of one number" in table.notes and "at the same one" not in table.notes


def test_names_and_settings_are_text_not_markup(run: Path, tmp_path: Path) -> None:
    place = tmp_path / HOSTILE.replace("/", "_")
    shutil.copytree(run, place)
    metrics = json.loads((place / "metrics.json").read_text())
    metrics["solvers"][HOSTILE] = metrics["solvers"]["ddim"]
    metrics["training"]["environment"]["device"] = '"><img src=x onerror=alert(1)>'
    (place / "metrics.json").write_text(json.dumps(metrics))
    (place / "doctor.json").write_text(json.dumps([{"name": HOSTILE, "severity": "fault", "evidence": "'\"</li>", "advice": "&amp;"}]))
    page = outline(write_report([place]))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any("onerror" in attrs or attrs.get("src") == "x" for _, attrs in page.tags)
    assert HOSTILE in page.text
    assert HOSTILE.replace("/", "_") in page.text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", "{"),
        ("metrics.json", "[]"),
        ("metrics.json", '{"training": {"steps": "many"}, "solvers": {"pc": {"frechet_distance": 3}}}'),
        ("metrics.json", '{"solvers": [1, 2]}'),
        ("metrics.json", '{"solvers": 3}'),
        ("history.json", '{"history": [], "linear": {}}'),
        ("history.json", "[" * 100_000),
        ("likelihood/likelihood.json", '{"unit": "bits/dim", "parts": {"held-out": {}}}'),
        ("likelihood/likelihood.json", '{"unit": 1, "parts": 2}'),
        ("compare/compare.json", '{"rows": [{"solver": "pc"}], "held_out": null, "distance": "none", "answer": 1}'),
        ("doctor.json", '[{"name": 1}]'),
        ("samples.png", "no picture"),
        ("solvers/ddim/denoising.gif", "no film"),
    ],
)
def test_files_that_are_not_what_the_commands_write_cost_their_part_alone(run: Path, tmp_path: Path, file: str, content: str) -> None:
    place = tmp_path / "run"
    shutil.copytree(run, place)
    for part in ("compare", "likelihood"):  # their charts take a second
        if not file.startswith(part):
            shutil.rmtree(place / part)
    (place / file).write_text(content)
    page = outline(write_report([place]))
    assert "How to run it again" in page.text
    if file.endswith(".json"):
        assert "cannot be read" in page.text or "not what the commands write" in page.text


def test_a_bare_run_directory_has_a_page(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.yaml", tmp_path / "config.yaml")
    page = outline(write_report([tmp_path]))
    assert "no readable checkpoint" in page.text


def test_several_runs_stand_side_by_side_below_the_limit(
    run: Path, sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sde_gen.commands.report.MOST_BYTES", 1_000_000)
    names = [f"run-{k}" for k in range(3)]
    for name in names:
        shutil.copytree(run, tmp_path / name)
    code, out, _ = sde_gen_command("report", *names)
    assert code == 0
    assert out == [f"report    {tmp_path / 'report.html'}"]
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    page = outline(tmp_path / "report.html")
    assert all(page.text.count(name) >= 3 for name in names)
    assert sum(tag == "details" for tag, _ in page.tags) == 2 * len(names)


def test_a_damaged_run_costs_its_row_alone(run: Path, tmp_path: Path) -> None:
    for name, content in (("bad", '{"solvers": {"pc": {"frechet_distance": 3}}}'), ("good", (run / "metrics.json").read_text())):
        (tmp_path / name).mkdir()
        shutil.copy(run / "config.yaml", tmp_path / name / "config.yaml")
        (tmp_path / name / "metrics.json").write_text(content)
    page = outline(write_report([tmp_path / "bad", tmp_path / "good"]))
    assert "bad: the run's files are not what the commands write" in page.text
    assert sum(tag == "details" for tag, _ in page.tags) == 4 and page.text.count("ddim") >= 2


def test_runs_of_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "same").mkdir(parents=True)
        shutil.copy(run / "config.yaml", tmp_path / place / "same" / "config.yaml")
    page = outline(write_report([tmp_path / "a" / "same", tmp_path / "b" / "same"], tmp_path / "page.html"))
    assert str(tmp_path / "a" / "same") in page.text and str(tmp_path / "b" / "same") in page.text


def test_what_does_not_fit_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_gen.commands.report.MOST_BYTES", 300_000)
    page = write_report([run], tmp_path / "small.html")
    assert "Left out, to keep this file below" in outline(page).text
    assert page.stat().st_size < 300_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run directory"),
        (["RUN", "--out", "nowhere/page.html"], "there is no directory nowhere"),
        ([], "RUN"),
    ],
)
def test_bad_input_is_one_line(run: Path, sde_gen_command: Command, arguments: list[str], message: str) -> None:
    code, out, err = sde_gen_command("report", *(str(run) if word == "RUN" else word for word in arguments))
    assert (code, out, len(err)) == (2, [], 1)
    assert message in err[0]


def test_warnings_say_what_is_wrong_and_nothing_of_what_is_right(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(run, place)

    def change(file: str, edit: Any) -> list[str]:
        path = place / file
        before = path.read_text() if path.exists() else None
        value = json.loads(before) if before else []
        edit(value)
        path.write_text(json.dumps(value))
        lines = warnings(read_run(place))
        path.unlink() if before is None else path.write_text(before)
        return lines

    base = warnings(read_run(place))
    exact = {"value": 0.4, "std_error": 0.01}
    edits: dict[str, tuple[str, Any]] = {
        "7 training steps were skipped": ("metrics.json", lambda v: v["training"].update(skipped=7)),
        "0.400 ± 0.010 of the samples are nearer": ("metrics.json", lambda v: v["solvers"]["dpm"].update(memorised_fraction=exact)),
        "dpm: the Fréchet distance is not finite": (
            "metrics.json",
            lambda v: v["solvers"]["dpm"].update(frechet_distance={"value": float("nan"), "std_error": 0.0}),
        ),
        "samples were not finite": ("compare/compare.json", lambda v: v["rows"][0].update(failed=3)),
        "the solver's estimate of its own error is 3": ("likelihood/likelihood.json", lambda v: v["parts"]["held-out"].update(solver=3.0)),
        "25.0% of the items did not converge": ("likelihood/likelihood.json", lambda v: v["parts"]["training"].update(converged=0.75)),
        "doctor: EMA too young": ("doctor.json", lambda v: v.append({"name": "EMA too young", "evidence": "a", "advice": "b"})),
        "worse than zero": ("history.json", lambda v: v["history"][-1].update(level_loss=[9.0] * len(v["history"][-1]["level_loss"]))),
    }
    for message, (file, edit) in edits.items():
        assert not any(message in line for line in base), message
        assert any(message in line for line in change(file, edit)), message
    shutil.rmtree(place / "checkpoint")
    assert any("no readable checkpoint" in line for line in warnings(read_run(place)))


# ---------------------------------------------------------------- in a browser


def test_in_a_browser_the_slider_moves_the_film(run: Path, browser: Browser) -> None:
    browser.open(run / "report.html")
    script = "return [...document.querySelectorAll('.film')[0].querySelectorAll('img')].map((image) => image.checkVisibility())"
    assert browser.run(script)[-1] is True
    assert sum(browser.run(script)) == 1
    slider = browser.find(".film input")[0]
    slider.send_keys(browser.keys.HOME)
    assert browser.run(script)[0] is True
    first = browser.find(".film output")[0].text
    slider.send_keys(browser.keys.ARROW_RIGHT)
    assert browser.run(script)[1] is True
    assert sum(browser.run(script)) == 1
    assert browser.find(".film output")[0].text != first
    assert slider.get_attribute("aria-valuetext") == browser.find(".film output")[0].text
    browser.find(".film .play")[0].click()
    browser.wait(lambda: browser.run(script)[-1] is True)
    browser.check()


def test_in_a_browser_every_table_sorts_by_every_column_both_ways(run: Path, browser: Browser) -> None:
    browser.open(run / "report.html")
    keys = (
        "return [...arguments[0].tBodies[0].rows].map((row) => [row.cells[arguments[1]].dataset.key, row.cells[arguments[1]].textContent])"
    )
    for table in browser.find("table"):
        for column, button in enumerate(table.find_elements("css selector", "thead button")):
            for down in (False, True):
                browser.run("arguments[0].click()", button)
                values = browser.run(keys, table, column)
                numbers = [float(key) for key, _ in values if key]
                assert numbers == sorted(numbers, reverse=down)
                assert all(key for key, _ in values[: len(numbers)])  # what has no number comes last
                assert browser.run("return arguments[0].parentElement.getAttribute('aria-sort')", button) == (
                    "descending" if down else "ascending"
                )
    browser.check()


def test_in_a_browser_a_hostile_name_is_harmless(run: Path, browser: Browser, tmp_path: Path) -> None:
    place = tmp_path / HOSTILE.replace("/", "_")
    shutil.copytree(run, place)
    (place / "doctor.json").write_text(json.dumps([{"name": HOSTILE, "severity": "fault", "evidence": "", "advice": ""}]))
    browser.open(write_report([place, run], tmp_path / "both.html"))
    assert browser.run("return window.harmed") is None
    assert HOSTILE in browser.run("return document.body.textContent")
    browser.check()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_in_a_browser_the_page_fits_and_is_legible(run: Path, browser: Browser, width: int, dark: bool) -> None:
    browser.look(width, dark)
    browser.open(run / "report.html")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return [...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    for selector in ("body", ".notes", ".warnings li", "th button", "summary"):
        for element in browser.find(selector)[:1]:
            assert browser.contrast(element) >= 4.5, selector
    # everything that can be used is reached by the keyboard
    usable = browser.run("return [...document.querySelectorAll('button, input, summary, pre, .table')].every((e) => e.tabIndex >= 0)")
    assert usable
    browser.check()
