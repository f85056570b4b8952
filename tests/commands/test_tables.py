"""Tables of kinds through the command line: what the columns are taken for, training, samples as they came, and bad input."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import yaml
from toys import TINY_RUN, Command

from sde_gen.commands.of_columns import column_table, compare_columns
from sde_gen.commands.recipes import TABLES
from sde_gen.data import load_dataset

COUNT = 80


def write(path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [["city", "id", "rain", "wind direction", "hours", "site"]]
    for k in range(COUNT):
        amount, hours = round(rng.gamma(1, 5), 3) if k % 2 else 0, "" if k % 9 == 0 else str(int(rng.poisson(30)))
        rows.append([["Bern", "Chur", "Genf"][k % 3], f"r{k}", str(amount), str(int(rng.integers(360))), hours, "ab"[k % 2]])
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def test_a_table_of_kinds_trains_and_its_samples_are_a_table(sde_gen_command: Command, tmp_path: Path) -> None:
    write(tmp_path / "t.csv")
    (tmp_path / "kinds.yaml").write_text("id: drop\nhours: {kind: integer, low: 0, high: 168}\n")
    arguments = ["run", *TINY_RUN, "--solver", "ddim", "--data", "t.csv", "--columns", "kinds.yaml", "--condition", "site"]
    code, out, err = sde_gen_command(*arguments)
    assert (code, err) == (0, [])
    for said in (
        "rain: zero_inflated, log + quantile: 50 % exact zeros",
        "wind direction: angle",
        "hours: integer, .*: as asked",
        "id: dropped",
    ):
        assert any(line.startswith("data      column    ") and said.split(", .*")[0] in line for line in out), said
    run = tmp_path / "runs" / "t.csv-vp"
    assert any(re.match(r"columns   margins of \d of 4 differ .*; correlations by at most 0.\d+ \(", line) for line in out)
    of_table = json.loads((run / "metrics.json").read_text())["solvers"]["ddim"]["table"]
    assert [row["name"] for row in of_table["columns"]] == ["city", "rain", "wind direction", "hours"]
    assert of_table["columns"][1]["zeros"][1] > 0.2 and of_table["columns"][3]["missing"][1] >= 0
    assert (run / "solvers" / "ddim" / "columns.png").stat().st_size > 1000
    page = (run / "report.html").read_text()
    assert "Columns of samples drawn with ddim" in page and "Margins of the columns" in page
    code, out, err = sde_gen_command("likelihood", "--run", str(run), "--images", "4", "--tolerance", "0.05")
    assert (code, err) == (0, []) and any("nats/dim (bound on log P of a row, over its columns;" in line for line in out)
    (tmp_path / "kinds.yaml").unlink()  # the run keeps what it says
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["columns"]["id"] == "drop"
    code, out, err = sde_gen_command(*arguments[: arguments.index("--columns")], "--config", str(run / "config.yaml"))
    assert (code, err) == (0, []) and any(line.startswith("reusing") for line in out)
    (tmp_path / "t.csv").unlink()  # and what the columns are
    code, out, err = sde_gen_command("sample", "--run", str(run), "--samples", "50", "--cond", "site=b", "--out", "new.csv")
    assert (code, err) == (0, []), err
    with (tmp_path / "new.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["city", "rain", "wind direction", "hours", "site"] and len(rows) == 50
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert set(columns["city"]) <= {"Bern", "Chur", "Genf"} and set(columns["site"]) == {"b"}
    assert all(float(cell) >= 0 for cell in columns["rain"]) and "0.0" in columns["rain"]
    assert all(0 <= int(cell) < 360 for cell in columns["wind direction"]) and all(0 <= int(c) <= 168 for c in columns["hours"] if c)
    code, out, err = sde_gen_command("sample", "--run", str(run), "--samples", "20", "--out", "new.parquet")
    assert (code, err) == (0, []) and list(pandas.read_parquet(tmp_path / "new.parquet").columns) == header[:-1]
    code, out, err = sde_gen_command("sample", "--run", str(run), "--samples", "20", "--out", "new.npz")
    assert code == 0 and any("features of the table's columns; .csv, .tsv, .parquet hold the table" in line for line in out)
    assert np.load(tmp_path / "new.npz")["x"].shape == (20, 3 + 2 + 2 + 2)


def test_gaps_as_a_condition_are_sampled_as_the_data_have_them_as_asked_or_not_at_all(sde_gen_command: Command, tmp_path: Path) -> None:
    write(tmp_path / "t.csv")
    (tmp_path / "kinds.yaml").write_text("id: drop\n")
    arguments = ["run", *TINY_RUN, "--solver", "ddim", "--data", "t.csv", "--columns", "kinds.yaml", "--missing", "condition"]
    code, out, err = sde_gen_command(*arguments, "--condition", "site")
    assert (code, err) == (0, []), err
    assert any("gaps are a condition, 'valid', of 11.3 % of the rows" in line for line in out)
    run = tmp_path / "runs" / "t.csv-vp"
    of_table = json.loads((run / "metrics.json").read_text())["solvers"]["ddim"]["table"]
    assert of_table["columns"][3]["name"] == "hours" and of_table["columns"][3]["missing"][0] > 0

    def drawn(*more: str, name: str = "new.csv") -> tuple[list[dict[str, str]], list[str]]:
        code, out, err = sde_gen_command("sample", "--run", str(run), "--overwrite", "--out", name, *more)
        assert (code, err) == (0, []), err
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file)), out

    rows, out = drawn("--samples", "90", "--cond", "site=b")
    assert 5 <= sum(row["hours"] == "" for row in rows) <= 15 and all(row["rain"] and row["city"] for row in rows)
    assert any("gaps      in hours: as the training data have them (--cond valid= draws rows without gaps)" in line for line in out)
    assert not any("valid" in line and "not given" in line for line in out)
    rows, out = drawn("--samples", "30", "--cond", "valid=")
    assert all(row["hours"] for row in rows) and any(line == "gaps      in hours: none" for line in out)
    (tmp_path / "gaps.csv").write_text("city,rain,wind direction,hours\n" + "Bern,1,2,\nBern,1,2,3\n" * 4)
    rows, out = drawn("--samples", "8", "--cond", "valid=gaps.csv")
    assert [row["hours"] == "" for row in rows] == [True, False] * 4 and any("condition valid=gaps.csv" in line for line in out)
    code, out, err = sde_gen_command("sample", "--run", str(run), "--samples", "8", "--out", "new.npz", "--cond", "valid=gaps.csv")
    held = np.load(tmp_path / "new.npz")
    assert code == 0 and np.isnan(held["x"][:, -1]).tolist() == [True, False] * 4 and np.isfinite(held["x"][:, :-1]).all()
    assert held["valid"].shape == held["x"].shape
    for asked, said in (("gaps.csv", "it has 8 rows for 9 samples"), ("hours", "a table or a .npy file, whose gaps")):
        code, _, err = sde_gen_command("sample", "--run", str(run), "--samples", "9", "--out", "x.csv", "--cond", f"valid={asked}")
        assert code == 2 and len(err) == 1 and f"--cond valid={asked}: {said}" in err[0]
    code, out, err = sde_gen_command("score", "t.csv", "--run", str(run), "--tolerance", "0.05", "--out", "scored.csv", "--no-progress")
    assert (code, err) == (0, []), err
    with (tmp_path / "scored.csv").open(encoding="utf-8", newline="") as file:
        scored = list(csv.DictReader(file))
    assert all(row["log_prob"] for row in scored) and sum(row["hours"] == "" for row in scored) == 9
    (tmp_path / "one.csv").write_text("city,id,rain,wind direction,hours,site\nBern,r1,,40,3,a\nBern,r1,2,40,,a\n")
    code, out, err = sde_gen_command("score", "one.csv", "--run", str(run), "--tolerance", "0.05", "--out", "s1.csv", "--no-progress")
    assert code == 0 and any("1 of 2 have none (gaps" in line for line in out)
    code, out, err = sde_gen_command("score", "new.npz", "--run", str(run), "--tolerance", "0.05", "--out", "s2.npz", "--no-progress")
    assert code == 0 and np.isfinite(np.load(tmp_path / "s2.npz")["log_prob"]).all()
    code, out, err = sde_gen_command("likelihood", "--run", str(run), "--images", "4", "--tolerance", "0.05")
    assert (code, err) == (0, []) and any("nats/dim (bound on log P of a row, over its columns;" in line for line in out)


@pytest.mark.parametrize("made", [True, False])
def test_samples_stand_beside_the_law_where_it_is_known_and_held_out_rows_elsewhere(made: bool, tmp_path: Path) -> None:
    data = load_dataset("rain")
    data = data if made else replace(data, name="days.csv")
    found = compare_columns(data, data.train[:3000], tmp_path)["table"]
    assert (found["truth"], found["rows"]) == (("rows of the law", 50_000) if made else ("held-out rows", 2000))
    assert all(row["distance"] < 1.4 * row["chance"] for row in found["columns"]) and found["correlations"]["largest"] < 0.1
    assert data.test is not None and (tmp_path / "columns.png").stat().st_size > 1000
    shifted = compare_columns(data, data.train[:3000].index_fill(1, torch.tensor([0]), 2.0), tmp_path)["table"]
    rain = shifted["columns"][0]
    assert rain["name"] == "rain_north" and rain["zeros"][0] == 1 and rain["zeros"][1] == pytest.approx(0.59, abs=0.03)
    of_columns, of_pairs = column_table("heun", json.loads(json.dumps(found)))
    text = [[cell.text for cell in row] for row in of_columns.rows]
    assert text[0][0] == "rain_north" and " .. " in text[0][2] and text[2][4].count(",") == 2 and len(of_pairs.rows) == 5
    assert ("rows of the law" if made else "held-out rows") in of_columns.notes


def test_a_tables_gaps_are_filled_in_its_own_form(sde_gen_command: Command, tmp_path: Path) -> None:
    write(tmp_path / "t.csv")
    (tmp_path / "kinds.yaml").write_text("id: drop\n")
    arguments = ["run", *TINY_RUN, "--solver", "ddim", "--data", "t.csv", "--columns", "kinds.yaml", "--label-column", "site", "--labels"]
    assert sde_gen_command(*arguments)[0] == 0
    run = tmp_path / "runs" / "t.csv-vp"
    (tmp_path / "gappy.csv").write_text("note,city,rain,wind direction,hours,site\nx,Bern,,40,30,a\ny,,2,NA,,b\nz,Chur,2.50,90,,\n")
    restore = ["restore", "--run", str(run), "--samples", "8", "--steps", "6", "--method", "mmps", "--no-progress"]
    code, _, err = sde_gen_command(*restore, "--input", "gappy.csv", "--out", "full")
    assert (code, err) == (0, []), err
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == [
        "filled.csv",
        *(f"sample-{k}.csv" for k in range(1, 6)),
        "uncertainty.csv",
    ]
    for path in (tmp_path / "full").iterdir():
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["note"] for row in rows] == ["x", "y", "z"] and [row["site"] for row in rows] == ["a", "b", ""]
        if path.name == "uncertainty.csv":
            assert float(rows[0]["hours"]) == 0 == float(rows[0]["city"]) and float(rows[1]["hours"]) > 0
        else:
            assert (rows[0]["city"], rows[0]["hours"], rows[1]["rain"], rows[2]["rain"]) == ("Bern", "30", "2", "2.50")
            assert float(rows[0]["rain"]) >= 0 and rows[1]["city"] in ("Bern", "Chur", "Genf") and 0 <= int(rows[1]["wind direction"]) < 360
            assert all(row["hours"].isdigit() for row in rows)
    code, _, err = sde_gen_command(*restore, "--input", "gappy.csv", "--out", "no", "--operator", "mask random 0.5")
    assert code == 2 and err == [
        "sde-gen: gappy.csv: rows of a table of kinds (words, counts, gaps) are restored from their gaps alone, not by 'mask random'"
    ]
    (tmp_path / "odd.csv").write_text("city,rain,wind direction,hours\nRom,,40,30\n")
    code, _, err = sde_gen_command(*restore, "--input", "odd.csv", "--out", "no")
    assert code == 2 and len(err) == 1 and "odd.csv: holds what the run's table cannot: city 'Rom'" in err[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "none.yaml"], "cannot read the configuration none.yaml"),
        (["--columns", "list.yaml"], "the configuration list.yaml must be a mapping"),
        (["--columns", "town.yaml"], "t.csv: columns names 'town', which the table does not have; its columns are city, id"),
        (["--columns", "infer"], "t.csv: column 'id' holds 80 different words in 80 cells.*id: drop"),
        (["--data", "digits", "--columns", "infer"], "data 'digits' takes no .*columns"),
    ],
)
def test_bad_columns_are_one_line(arguments: list[str], message: str, sde_gen_command: Command, tmp_path: Path) -> None:
    write(tmp_path / "t.csv")
    (tmp_path / "list.yaml").write_text("[city]\n")
    (tmp_path / "town.yaml").write_text("town: category\n")
    code, _, err = sde_gen_command("run", *TINY_RUN, "--data", "t.csv", *arguments)
    assert code == 2 and len(err) == 1
    assert re.search(message, err[0]), err


def test_the_recipe_of_tables(sde_gen_command: Command, tmp_path: Path) -> None:
    write(tmp_path / "t.csv")
    (tmp_path / "kinds.yaml").write_text("id: drop\n")
    code, out, err = sde_gen_command("run", "--dry-run", "--data", "t.csv", "--columns", "kinds.yaml")
    assert (code, err) == (0, [])
    found = yaml.safe_load("\n".join(out))
    assert found["training"]["steps"] == TABLES["training"]["steps"] and found["sampling"]["solver"] == "heun"
