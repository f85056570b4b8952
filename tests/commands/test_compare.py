import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toys import TINY_RUN, Command

from sde_gen.commands.compare import answer, budgets
from sde_gen.metrics import features
from sde_gen.solvers import SOLVERS, make_solver


@pytest.fixture(autouse=True)
def short_feature_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here asks how good the features are."""
    monkeypatch.setitem(features._SETTINGS, "steps", 20)


def test_a_comparison_leaves_its_table_and_pictures(sde_gen_command: Command, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    assert sde_gen_command("run", *TINY_RUN, "--out", str(run))[0] == 0
    solvers = ["--solvers", "ancestral,ddim,pc,ode", "--calls", "4,20", "--samples", "24"]
    code, out, err = sde_gen_command("compare", "--run", str(run), *solvers)
    assert (code, err) == (0, [])
    assert out[-2].startswith("answer    ancestral") and out[-1].startswith("report    ")
    saved = json.loads((run / "compare" / "compare.json").read_text())
    assert [(row["solver"], row["calls"]) for row in saved["rows"][:6]] == [
        ("ancestral", 4), ("ancestral", 20), ("ddim", 4), ("ddim", 20), ("pc", 3), ("pc", 19),
    ]  # fmt: skip
    assert saved["rows"][0]["distance"]["std_error"] > 0 and len(saved["rows"]) == 9
    table = (run / "compare" / "table.md").read_text()
    assert all(line in table for line in out if line.startswith("| "))
    assert saved["rows"][0]["neighbour_ratio"]["value"] > 1.5 and 0 <= saved["rows"][0]["memorised_fraction"]["value"] <= 1
    # as many held-out data as samples, at the ratio of new data by its definition, but for which of them are taken
    assert saved["held_out"]["neighbour_ratio"]["value"] == pytest.approx(1, abs=0.2) and "held-out data | - | - |" in table
    assert next(line for line in out if line.startswith("| solver")).endswith("| memorised | neighbour ratio |")
    for name in ("distance.png", "samples.png"):
        with Image.open(run / "compare" / name) as image:
            assert min(image.size) > 100


def test_points_are_compared_by_their_sliced_distance(sde_gen_command: Command, tmp_path: Path) -> None:
    run = tmp_path / "points"
    assert sde_gen_command("run", *TINY_RUN, "--data", "gaussians8", "--set", "data.limit=500", "--out", str(run))[0] == 0
    code, out, err = sde_gen_command("compare", "--run", str(run), "--solvers", "ddim", "--calls", "4", "--samples", "24")
    assert (code, err) == (0, []) and "sliced Wasserstein" in out[1] and "not in these rows" in out[-2]
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
def test_bad_input_is_one_line(sde_gen_command: Command, arguments: list[str], said: str) -> None:
    code, out, err = sde_gen_command("compare", *arguments)
    assert code == 2 and out == [] and len(err) == 1 and said in err[0]


def test_auto_says_what_it_took_and_fitted_grids_are_named(sde_gen_command: Command, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    arguments = (*TINY_RUN, "--data", "gaussians8", "--set", "data.limit=500", "--out", str(run))
    code, out, err = sde_gen_command("run", *arguments, "--solver", "auto", "--steps", "3", "--grid", "fitted")
    assert (code, err) == (0, []) and "auto      angle, 3 steps: the nearest to the flow at 5 to 50 calls" in out
    scores = json.loads((run / "metrics.json").read_text())["solvers"]["angle"]
    assert scores["auto"] == "angle, 3 steps: the nearest to the flow at 5 to 50 calls" and scores["fitted"]
    assert (run / "solvers" / "angle" / "samples.npz").is_file() and any("with angle, fitted grid: 4 network calls" in line for line in out)
    code, out, err = sde_gen_command("compare", "--run", str(run), "--solvers", "auto,heun", "--calls", "4,6", "--samples", "24")
    assert (code, err) == (0, [])
    assert [line.split(" | ")[0] for line in out if line.startswith("| `")] == [
        "| `auto` (angle), fitted", "| `auto` (angle)", "| `heun`", "| `heun`",
    ]  # fmt: skip
    rows = json.loads((run / "compare" / "compare.json").read_text())["rows"]
    assert (
        rows[0]["auto"].startswith("angle, 3 steps on a fitted grid: fitted to this model") and rows[0]["fitted"] and "auto" not in rows[2]
    )
    code, out, err = sde_gen_command("sample", "--run", str(run), "--solver", "auto", "--steps", "3", "--samples", "16", "--out", "s.npy")
    assert (code, err) == (0, []) and out[0].startswith("auto      angle, 3 steps on a fitted grid: fitted to this model")
    assert out[1].startswith("grid      fitted to this network for 3 steps: distance to the exact flow ")
    code, out, err = sde_gen_command("sample", "--run", str(run), "--solver", "heun", "--steps", "3", "--samples", "16", "--out", "t.npy")
    assert (code, err) == (0, []) and not any(line.startswith(("auto", "grid")) for line in out)
    code, _, err = sde_gen_command("run", *arguments, "--solver", "auto", "--set", "sampling.options.order=3")
    assert code == 2 and len(err) == 1 and "solver 'auto' has no options, got order" in err[0]
