import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from toys import Command

import sde_gen
from sde_gen.commands.config import resolve
from sde_gen.commands.runs import open_run
from sde_gen.data.columns import Codec, Column
from sde_gen.training import read_extra
from sde_gen.training.checkpoint import checkpoint_of


def trained(place: Path, data: dict[str, Any]) -> Path:
    """A run directory with a network that a few steps have moved from where it began."""
    model = {"network": "mlp", "options": {"width": 16, "depth": 1}}
    training = {"steps": 12, "batch": 16, "lr": 0.03, "evaluations": 1}
    return open_run(resolve({"data": data, "model": model, "training": training}), place, progress=False, say=lambda line: None).directory


def write_table(path: Path, count: int = 120) -> None:
    random = np.random.default_rng(0)
    site = random.integers(0, 3, count)
    a = random.normal(1e5 + 100.0 * site, 30.0)
    with path.open("w") as file:
        file.write("site,a,age,kind,b\n")
        for k in range(count):
            file.write(f"{'nsw'[site[k]]},{a[k]:.3f},{random.normal(50, 9):.2f},{'uv'[k % 2]},{random.normal(-3, 1e-3):.6f}\n")


def test_a_tables_rows_are_scored_with_their_own_conditions(sde_gen_command: Command, tmp_path: Path) -> None:
    write_table(tmp_path / "data.csv")
    told = {"label_column": "kind", "labels": True, "conditions": ["place=site", "age"]}
    run = trained(tmp_path / "run", {"name": str(tmp_path / "data.csv"), **told})
    (tmp_path / "new.csv").write_text("id,b,kind,site,age,a\n7,-3.0,u,w,41,100190\n8,,v,n,44,100000\n9,-2.5,,s,,103000\n")
    code, out, err = sde_gen_command("score", "new.csv", "--run", "run", "--no-progress", "--tolerance", "1e-3")
    assert (code, err) == (0, [])
    rows = list(csv.DictReader((run / "score" / "new.csv").open()))
    assert [row["id"] for row in rows] == ["7", "8", "9"] and rows[0]["b"] == "-3.0"
    assert rows[1]["log_prob"] == "" and "1 of 3 have none" in out[0]
    model = sde_gen.load(run)
    x = torch.tensor([[100190, -3.0], [103000, -2.5]], dtype=torch.float64)
    cond = {"label": torch.tensor([0, 2]), "place": torch.tensor([2, 1]), "age": torch.tensor([[41.0], [np.nan]])}
    same = {"rtol": 1e-3, "atol": 1e-3}
    right = sde_gen.log_likelihood(model, x, cond=cond, **same).log_prob.tolist()
    assert [float(rows[k]["log_prob"]) for k in (0, 2)] == pytest.approx(right, abs=1e-7, rel=1e-7)
    unknown = sde_gen.log_likelihood(model, x, cond={name: model.null(name, value) for name, value in cond.items()}, **same)
    assert abs(float(unknown.log_prob[0]) - right[0]) > 1e-5  # what is told counts
    held = [float(row["p_low"]) for row in rows if row["p_low"]]
    assert held[1] == pytest.approx(1 / 13) and 0 < held[0] <= 1  # 12 held-out rows, of which none is as unlikely as the last
    kept = list((run / "score").glob("held-out-*.json"))
    assert len(kept) == 1
    (tmp_path / "data.csv").unlink()  # held-out scores are kept, so that the data need not be there
    code, again, err = sde_gen_command("score", "new.csv", "--run", "run", "--no-progress", "--tolerance", "1e-3", "--cond", "place=n")
    assert (code, err) == (0, []) and any(line.startswith("held-out  12 items") for line in again)
    other = list(csv.DictReader((run / "score" / "new.csv").open()))
    assert other[0]["log_prob"] != rows[0]["log_prob"] and other[0]["p_low"] != ""
    for flags, words in (
        (("gone.csv",), "no such file"),
        (("new.csv", "--cond", "place=x"), "no such class"),
        (("new.csv", "--out", "x.png"), ".csv, .tsv or .npz is needed"),
        (("new.csv", "--out", "new.csv"), "is there already"),
        (("new.csv", "--draws", "0"), "draws must be a whole number of at least 1"),
        (("new.csv", "--held-out", "0"), "held_out must be a whole number of at least 1"),
    ):
        code, _, err = sde_gen_command("score", *flags, "--run", "run", "--no-progress")
        assert code == 2 and len(err) == 1 and words in err[0], (flags, err)
    (tmp_path / "odd.csv").write_text("b,kind,site,age,a\n-3.0,u,nowhere,41,100190\n")
    code, _, err = sde_gen_command("score", "odd.csv", "--run", "run")
    assert code == 2 and len(err) == 1 and "odd.csv: condition 'place': it holds 'nowhere'; choose from n, s, w" in err[0]


def test_digits_are_scored_in_bits_from_arrays_and_pictures(sde_gen_command: Command, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"name": "digits", "labels": True})
    digits = sde_gen.load_dataset("digits").test[:3]
    np.savez(tmp_path / "new.npz", x=np.concatenate((digits.numpy(), 16 - digits[:1].numpy())).astype(np.uint8), label=[1, 2, 3, 4])
    small = ("--no-progress", "--tolerance", "1e-2", "--held-out", "20")
    code, out, err = sde_gen_command("score", "new.npz", "--run", "run", *small)
    assert (code, err) == (0, []) and "bits/dim" in out[0]
    with np.load(run / "score" / "new.npz") as found:
        assert {"x", "label", "bits_per_dim", "std_error", "solver_error", "p_low", "p_two_sided"} == set(found)
        bits = found["bits_per_dim"]
        assert found["p_low"][3] == pytest.approx(1 / 21) and bool((found["std_error"] > 0).all())
    for k, digit in enumerate(digits):
        place = tmp_path / "pictures" / str(k + 1)
        place.mkdir(parents=True)
        Image.fromarray(np.rint(digit[0].numpy() * 255 / 16).astype(np.uint8)).save(place / "digit.png")
    code, out, err = sde_gen_command("score", "pictures", "--run", "run", *small, "--out", "scores.tsv")
    assert (code, err) == (0, [])
    rows = list(csv.DictReader((tmp_path / "scores.tsv").open(), delimiter="\t"))
    assert [row["file"] for row in rows] == ["1/digit.png", "2/digit.png", "3/digit.png"]
    assert [float(row["bits_per_dim"]) for row in rows] == pytest.approx(bits[:3].tolist(), rel=1e-5)
    np.save(tmp_path / "odd.npy", digits.numpy() + 0.5)
    code, _, err = sde_gen_command("score", "odd.npy", "--run", "run")
    assert code == 2 and len(err) == 1 and "whole numbers 0 .. 16" in err[0]


def test_rows_of_a_table_of_kinds_are_scored_by_the_bound_on_their_probability(sde_gen_command: Command, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    with (tmp_path / "data.csv").open("w") as file:
        file.write("site,tree,rings,age,depth\n")
        for k in range(120):
            rings = "-9" if random.uniform() < 0.2 else str(random.integers(3, 6))
            file.write(
                f"{'nsw'[k % 3]},{random.choice(['oak', 'fir'])},{rings},{random.normal(50, 9):.2f},{'?' if k % 4 else random.poisson(2)}\n"
            )
    told = {"conditions": ["site"], "columns": {"age": "drop", "depth": "drop"}, "missing": -9}
    run = trained(tmp_path / "run", {"name": str(tmp_path / "data.csv"), **told})
    possible = [(tree, rings) for tree in ("oak", "fir") for rings in ("3", "4", "5", "-9", "NA")]
    rows = [*possible, ("ash", "3"), ("oak", "3.5"), ("oak", "17"), ("", "3")]
    (tmp_path / "new.csv").write_text("rings,extra,tree,site\n" + "".join(f"{rings},é,{tree},n\n" for tree, rings in rows))
    small = ("--run", "run", "--no-progress", "--tolerance", "1e-3", "--held-out", "12")
    code, out, err = sde_gen_command("score", "new.csv", *small, "--draws", "8")
    assert (code, err) == (0, [])
    assert "3 rows hold what the run's table cannot (tree 'ash', rings '3.5'): their log P is -inf" in "\n".join(out)
    assert any(line.startswith("bound     on log P of each row") for line in out) and "(gaps, or not converged)" in out[0]
    found = list(csv.DictReader((run / "score" / "new.csv").open()))
    assert list(found[0])[:4] == ["rings", "extra", "tree", "site"] and found[3]["rings"] == "-9"
    log_p = [float(row["log_prob"] or "nan") for row in found]
    # A bound on the probabilities of all rows that there are: together at most 1. A network of a few steps has not learned that values
    # lie in a quarter of each cell, and loses for each column what lies beside it.
    total = sum(np.exp(value) for value, (_, rings) in zip(log_p, possible, strict=False) if rings != "NA")
    assert 0.02 < total < 1.02, total
    model, codec = sde_gen.load(run), Codec.from_config(read_extra(checkpoint_of(run))["data_description"]["codec"])
    column, tree = np.array([np.nan]), np.array(["oak"])
    missing = [Column("tree", tree, np.array([False])), Column("rings", column, np.array([True]))]
    features = torch.from_numpy(np.concatenate([codec.encode(missing, k) for k in range(64)]))
    each = sde_gen.log_likelihood(model, features, cond={"site": torch.zeros(64, dtype=torch.long)}, rtol=1e-3, atol=1e-3).log_prob
    assert log_p[3] == pytest.approx(float((each - torch.from_numpy(codec.log_q(features.numpy()))).mean()), abs=0.3)
    assert log_p[3] == pytest.approx(log_p[4], abs=0.5) and log_p[10:13] == [-np.inf] * 3 and np.isnan(log_p[13])
    assert [float(row["p_low"]) for row in found[10:13]] == [pytest.approx(1 / 13)] * 3 and float(found[0]["std_error"]) > 0
    frame = pandas.DataFrame({"tree": ["oak", "fir", None], "rings": [3.0, np.nan, 5.0], "site": ["n", "n", "w"]}, index=[5, 6, 7])
    frame.to_parquet(tmp_path / "new.parquet")
    code, out, err = sde_gen_command("score", "new.parquet", *small)
    assert (code, err) == (0, [])
    again = pandas.read_parquet(run / "score" / "new.parquet")
    assert list(again.columns[:4]) == ["tree", "rings", "site", "log_prob"] and list(again.index) == [5, 6, 7]
    assert float(again["log_prob"].iloc[0]) == pytest.approx(log_p[0], abs=3.0) and np.isnan(again["log_prob"].iloc[2])
    code, out, err = sde_gen_command("score", "new.parquet", *small, "--out", "scored.csv")
    assert (code, err) == (0, []) and (tmp_path / "scored.csv").read_text().splitlines()[2].startswith("fir,,n,")
    assert sde_gen_command("sample", "--run", "run", "--samples", "5", "--steps", "4", "--out", "drawn.npy")[0] == 0
    code, out, err = sde_gen_command("score", "drawn.npy", *small)  # features, of the rows that they are
    assert (code, err) == (0, []) and np.isfinite(np.load(run / "score" / "drawn.npz")["log_prob"]).all()
    (tmp_path / "word.csv").write_text("tree,rings\noak,many\n")
    (tmp_path / "lacks.csv").write_text("tree,ring\noak,3\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    for flags, words in (
        (("word.csv",), "word.csv: line 2, column 'rings' holds 'many'; a finite number or a gap is needed"),
        (("lacks.csv",), "lacks.csv: column rings of the run's table is not there"),
        (("bad.parquet",), "bad.parquet: cannot be read as a parquet file"),
        (("new.csv", "--out", "x.parquet"), "--out x.parquet: .csv, .tsv or .npz is needed"),
    ):
        code, _, err = sde_gen_command("score", *flags, *small)
        assert code == 2 and len(err) == 1 and words in err[0], (flags, err)
