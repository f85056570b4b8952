import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import Command

import sde_gen
from sde_gen.commands.config import resolve
from sde_gen.commands.runs import open_run


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
