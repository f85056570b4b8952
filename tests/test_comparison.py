import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sde_gen.cli import main
from sde_gen.comparison import answer, budgets
from sde_gen.solvers import SOLVERS, make_solver

QUICK = ["--train-steps", "12", "--batch", "16", "--samples", "32", "--no-progress", "--network", "mlp", "--steps", "3"]
TINY = [*QUICK, "--set", "model.options={width: 16, depth: 1}", "--set", "training.evaluations=1"]
Command = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`sde-gen` in an empty directory: its exit code and the lines of stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, list[str], list[str]]:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out.splitlines(), err.splitlines()

    return call


def test_a_comparison_leaves_its_table_and_pictures(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    assert command("run", *TINY, "--out", str(run))[0] == 0
    code, out, err = command("compare", "--run", str(run), "--solvers", "ancestral,ddim,pc,ode", "--calls", "4,20", "--samples", "24")
    assert (code, err) == (0, [])
    assert out[-1].startswith("answer    ancestral")
    saved = json.loads((run / "compare" / "compare.json").read_text())
    assert [(row["solver"], row["calls"]) for row in saved["rows"][:6]] == [
        ("ancestral", 4), ("ancestral", 20), ("ddim", 4), ("ddim", 20), ("pc", 3), ("pc", 19),
    ]  # fmt: skip
    assert saved["rows"][0]["distance"]["std_error"] > 0 and len(saved["rows"]) == 9
    table = (run / "compare" / "table.md").read_text()
    assert all(line in table for line in out if line.startswith("| `"))
    for name in ("distance.png", "samples.png"):
        with Image.open(run / "compare" / name) as image:
            assert min(image.size) > 100


def test_points_are_compared_by_their_sliced_distance(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "points"
    assert command("run", *TINY, "--data", "gaussians8", "--out", str(run))[0] == 0
    code, out, err = command("compare", "--run", str(run), "--solvers", "ddim", "--calls", "4", "--samples", "24")
    assert (code, err) == (0, []) and "sliced Wasserstein" in out[1] and "not in these rows" in out[-1]
    assert not (run / "compare" / "samples.png").exists() and (run / "compare" / "distance.png").exists()


@pytest.mark.parametrize("name", SOLVERS)
def test_budgets_are_kept(name: str) -> None:
    found = budgets(name, (20, 50))
    each = make_solver(name).calls
    if not make_solver(name).adaptive and each is not None:
        assert [option["steps"] * each + 1 <= calls for option, calls in zip(found, (20, 50), strict=True)] == [True, True]


def row(solver: str, calls: int, value: float) -> dict[str, Any]:
    return {"solver": solver, "calls": calls, "distance": {"value": value, "std_error": 0.3}}


def test_the_answer_is_the_first_budget_within_an_error_bar() -> None:
    rows = [row("ancestral", calls, value) for calls, value in ((10, 9.0), (50, 2.0), (100, 1.3), (1000, 0.9))]
    rows += [row("ddim", 20, 4.0), row("dpm", 20, 1.0), row("dpm", 100, 0.5)]
    assert "needs 100 calls (1.30 +- 0.30) to match the flow at 20 calls (`dpm`, 1.00 +- 0.30)" in answer(rows)
    assert "does not match" in answer([*rows[:2], row("dpm", 20, 1.0)])
    assert "not in these rows" in answer(rows[:4])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--solvers", "euler"], "unknown solver 'euler'"),
        (["--solvers", "pc,pc"], "solvers must be different names"),
        (["--calls", "ten"], "--calls takes whole numbers"),
        (["--calls", "1"], "calls must be whole numbers of at least 2"),
        (["--samples", "3"], "samples must be a whole number of at least 20"),
        (["--run", "nowhere"], "nowhere is not a run directory"),
    ],
)
def test_bad_input_is_one_line(command: Command, arguments: list[str], said: str) -> None:
    code, out, err = command("compare", *arguments)
    assert code == 2 and out == [] and len(err) == 1 and said in err[0]
