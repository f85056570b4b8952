import math
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import Command

from sde_gen.commands.config import resolve
from sde_gen.commands.runs import open_run
from sde_gen.data import Dataset, load_dataset
from sde_gen.data.arrays import load_npy
from sde_gen.data.write import DataDescription
from sde_gen.report.fields import picture_fields

LAND = np.random.default_rng(5).random((6, 7)) < 0.3
LAND[0, 0] = False


def fields(count: int = 60) -> np.ndarray:
    """Two variables of scales 1e5 and 1e-8 on a grid of 6 x 7."""
    x: np.ndarray = np.random.default_rng(0).normal(size=(count, 2, 6, 7)) * np.array([100.0, 1e-8]).reshape(2, 1, 1)
    return (x + np.array([1e5, 1e-7]).reshape(2, 1, 1)).astype(np.float32)


def check_static(data: Dataset, x: np.ndarray, missing: float) -> None:
    assert data.valid is not None and torch.equal(data.valid, torch.from_numpy(~LAND).expand(2, 6, 7)) and not data.cond
    assert data.missing == missing or (math.isnan(missing) and math.isnan(data.missing))
    assert bool(torch.isfinite(data.train).all()) and set(data.train[:, 0, 0, 0].tolist()) <= set(x[:, 0, 0, 0].tolist())
    assert any("are no data" in note and "the same entries in all items" in note for note in data.notes)


def test_a_mask_is_found_in_nan_and_in_a_fill_value(tmp_path: Path):
    x = fields()
    x[:, :, LAND] = np.nan
    np.save(tmp_path / "nan.npy", x)
    np.save(tmp_path / "fill.npy", np.nan_to_num(x, nan=-9999.0))
    found = [load_dataset(tmp_path / "nan.npy", missing="mask"), load_dataset(tmp_path / "fill.npy", missing="mask=-9999")]
    for data, mark in zip(found, (math.nan, -9999.0), strict=True):
        check_static(data, x, mark)
    assert torch.equal(found[0].train, found[1].train)  # what lay there is gone
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_dataset(tmp_path / "nan.npy")


def test_items_with_masks_of_their_own_have_them_as_a_condition(tmp_path: Path):
    x = fields()
    clouds = np.random.default_rng(1).random((60, 1, 6, 7)) < 0.4
    clouds[:, :, 0, 0] = False
    np.save(tmp_path / "x.npy", np.where(clouds, np.nan, x))
    data = load_dataset(tmp_path / "x.npy", missing="mask", split="tail")
    assert data.valid is None and data.cond["valid"].dtype == torch.bool and data.cond["valid"].shape == (54, 1, 6, 7)
    np.testing.assert_array_equal(data.test_cond["valid"].sum((0, 1)), (~clouds[54:]).sum((0, 1)))
    first = int(np.flatnonzero(x[:54, 0, 0, 0] == float(data.train[0, 0, 0, 0]))[0])
    np.testing.assert_array_equal(data.cond["valid"][0].numpy(), ~clouds[first])
    on_disk = load_npy(tmp_path / "x.npy", missing="mask", split="tail", in_memory=9000)
    assert on_disk.source is not None
    rows = torch.arange(5)
    assert torch.equal(on_disk.source_cond["valid"][rows].bool(), data.cond["valid"][rows])
    x = np.where(np.stack([clouds[:, 0], clouds[:, 0][::-1]], 1), np.nan, fields())  # another one for each channel
    np.save(tmp_path / "two.npy", x)
    assert load_dataset(tmp_path / "two.npy", missing="mask").cond["valid"].shape[1:] == (2, 6, 7)


def test_bad_masks_are_one_line(tmp_path: Path):
    x = fields()
    x[3] = np.nan
    np.save(tmp_path / "empty.npy", x)
    x = fields()
    x[:, 1] = np.nan
    np.save(tmp_path / "channel.npy", x)
    np.save(tmp_path / "rows.npy", np.where(np.eye(40, 5) > 0, np.nan, 1.0))
    (tmp_path / "t.csv").write_text("a,b\n1,2\n,3\n")
    for name, missing, words in (
        ("empty.npy", "mask", "item 3 has no entry that is data"),
        ("channel.npy", "mask", "channel 1 has no entry that is data"),
        ("rows.npy", "mask", "is for fields, signals and images"),
        ("t.csv", "mask", "is for fields and signals"),
        ("rows.npy", "mask=", "'mask=VALUE' is needed"),
        ("rows.npy", "mask=x", "missing 'x'; a number"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            load_dataset(tmp_path / name, missing=missing)
        assert "\n" not in str(error.value)


def test_a_series_with_gaps_is_windows_with_masks(tmp_path: Path):
    lines = [f"{math.sin(k)},{'' if k % 7 == 0 else math.cos(k)}" for k in range(300)]
    (tmp_path / "s.csv").write_text("\n".join(["a,b", *lines]))
    data = load_dataset(tmp_path / "s.csv", missing="mask", window=8, stride=3)
    assert data.cond["valid"].shape[1:] == (2, 8) and bool(data.cond["valid"][:, 0].all()) and not bool(data.cond["valid"][:, 1].all())


@pytest.mark.parametrize("kind", ["nan", "fill", "bytes", "clouds"])
def test_what_is_written_has_the_marks_again(sde_gen_command: Command, tmp_path: Path, kind: str):
    x = fields()
    if kind == "bytes":
        x = np.random.default_rng(0).integers(0, 200, (60, 1, 6, 7)).astype(np.uint8)
    hole = np.broadcast_to(LAND, x.shape)
    if kind == "clouds":
        hole = np.random.default_rng(3).random(x.shape) < 0.3
        hole[:, :, 0, 0] = False
    mark = {"nan": np.nan, "clouds": np.nan, "fill": -1e10, "bytes": 255}[kind]
    np.save(tmp_path / "x.npy", np.where(hole, np.array(mark, dtype=x.dtype), x))
    missing = "mask" if math.isnan(mark) else f"mask={mark:g}"
    config = resolve(
        {
            "data": {"name": str(tmp_path / "x.npy"), "missing": missing},
            "model": {"network": "mlp", "options": {"width": 8, "depth": 1}},
            "training": {"steps": 4, "batch": 16, "evaluations": 1},
        }
    )
    run = open_run(config, tmp_path / "run", progress=False, say=lambda line: None)
    small = ("--no-progress", "--steps", "3", "--solver", "ddim")
    told = ()
    if kind == "clouds":
        np.save(tmp_path / "mask.npy", ~hole[:3])
        told = ("--cond", "valid=mask.npy")
    code, _, err = sde_gen_command("sample", "--run", "run", "--samples", "3", "--out", "new.npz", *small, *told)
    assert (code, err) == (0, [])
    with np.load(tmp_path / "new.npz") as found:
        new = found["x"]
    assert new.dtype == (np.uint8 if kind == "bytes" else np.float32)
    marked = np.isnan(new) if math.isnan(mark) else new == mark
    np.testing.assert_array_equal(marked if kind != "bytes" else marked & hole[:3], hole[:3])
    assert DataDescription.from_config(DataDescription.of(run.data).to_config()).missing == ("nan" if math.isnan(mark) else mark)
    if kind in ("fill", "clouds"):
        code, out, err = sde_gen_command("score", "x.npy", "--run", "run", "--held-out", "3", "--tolerance", "1e-1", "--no-progress")
        assert (code, err) == (0, []) and out[0].startswith("scored    60 items"), (out, err)
        with np.load(run.directory / "score" / "x.npz") as found:
            assert bool(np.isfinite(found["log_prob"]).all())
    if kind in ("nan", "bytes"):
        code, out, err = sde_gen_command("likelihood", "--run", "run", "--images", "4", "--tolerance", "1e-1", "--no-progress")
        assert (code, err) == (0, []) and any(line.startswith("held-out") for line in out)


@pytest.mark.parametrize("kind", ["land", "clouds"])
def test_a_run_pictures_fields_beside_held_out_ones_without_what_is_no_data(
    sde_gen_command: Command, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    x = fields()
    hole = np.broadcast_to(LAND, x.shape) if kind == "land" else (np.random.default_rng(3).random((60, 1, 6, 7)) < 0.3).repeat(2, 1)
    np.save(tmp_path / "x.npy", np.where(hole, np.nan, x))
    seen = []
    monkeypatch.setattr("sde_gen.commands.of_fields.picture_fields", lambda *parts: seen.append(parts) or picture_fields(*parts))
    flags = ("--train-steps", "4", "--batch", "16", "--samples", "16", "--steps", "2", "--network", "mlp", "--set", "model.options.width=8")
    code, _, err = sde_gen_command("run", "--data", "x.npy", "--missing", "mask", "--out", "run", "--no-progress", *flags)
    assert (code, err) == (0, [])
    (samples, held_out, path, valid, held_out_valid, names), *more = seen
    assert not more and names is None and path.exists() and len(samples) == 16 and len(held_out) == 6
    there = held_out_valid.expand(held_out.shape)
    assert bool(valid.any()) and not bool(valid.all())
    rows = [int(np.flatnonzero((np.where(hole, 0.0, x) == np.where(there[k], held_out[k], 0.0)).all((1, 2, 3)))[0]) for k in range(6)]
    np.testing.assert_array_equal(there.numpy(), ~hole[rows])
