"""`sde-gen score` of fields: maps that a network is told, from files of each kind, and masks."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from PIL import Image
from safetensors.numpy import save_file
from toys import Command

import sde_gen
from sde_gen.commands.config import resolve
from sde_gen.commands.runs import open_run
from sde_gen.likelihood.outliers import p_values

SMALL = ("--run", "run", "--no-progress", "--tolerance", "1e-2")
EXACT = {"rtol": 1e-2, "atol": 1e-2}


def trained(place: Path, data: dict[str, Any]) -> sde_gen.ScoreModel:
    """A network that a few steps have moved from where it began, of a run directory."""
    model = {"network": "mlp", "options": {"width": 16, "depth": 1}}
    training = {"steps": 12, "batch": 16, "lr": 0.03, "evaluations": 1}
    return open_run(resolve({"data": data, "model": model, "training": training}), place, progress=False, say=lambda line: None).model


def as_netcdf(path: Path, x: np.ndarray, low: np.ndarray, dose: np.ndarray) -> None:
    fields = {"x": (("time", "lat", "lon"), x[:, 0]), "low": (("time", "b", "a"), low[:, 0]), "dose": (("time",), dose)}
    xarray.Dataset(fields).to_netcdf(path, engine="h5netcdf")


def test_maps_are_read_from_files_of_every_kind(sde_gen_command: Command, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(1e5, 300.0, (60, 1, 4, 6)).cumsum(3)
    low, dose = x.reshape(60, 1, 2, 2, 3, 2).mean((3, 5)), random.normal(size=60)
    as_netcdf(tmp_path / "data.nc", x, low, dose)
    model = trained(
        tmp_path / "run", {"name": str(tmp_path / "data.nc"), "variable": "x", "conditions": ["coarse=low", "dose"], "missing": -9999}
    )
    arrays = {"x": x[:3], "low": low[:3], "dose": np.array([dose[0], -9999.0, np.nan])}  # of which the last two say the same
    as_netcdf(tmp_path / "new.nc", **arrays)
    np.savez(tmp_path / "new.npz", **arrays)
    torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, tmp_path / "new.pt")
    save_file({"x": arrays["x"], "coarse": arrays["low"], "dose": arrays["dose"]}, tmp_path / "new.safetensors")  # as samples are written
    xarray.open_dataset(tmp_path / "new.nc").to_netcdf(tmp_path / "new.h5", engine="h5netcdf")
    cond = {"coarse": torch.from_numpy(low[:3]), "dose": torch.tensor([[dose[0]], [torch.nan], [torch.nan]])}
    right = sde_gen.log_likelihood(model, torch.from_numpy(x[:3]), cond=cond, **EXACT).log_prob.tolist()
    untold = sde_gen.log_likelihood(model, torch.from_numpy(x[:3]), cond={"dose": cond["dose"]}, **EXACT).log_prob.tolist()
    assert min(abs(a - b) for a, b in zip(right, untold, strict=True)) > 1e-3  # what is told counts
    for name in ("new.nc", "new.npz", "new.pt", "new.safetensors", "new.h5"):
        code, out, err = sde_gen_command("score", name, *SMALL, "--held-out", "4", "--out", f"{name}.csv")
        assert (code, err) == (0, []) and not any("not in the file" in line for line in out), (name, out, err)
        rows = list(csv.DictReader((tmp_path / f"{name}.csv").open()))
        assert [float(row["log_prob"]) for row in rows] == pytest.approx(right, abs=1e-5), name
    as_netcdf(tmp_path / "gap.nc", np.where(np.arange(6) == 2, -9999.0, x[:2]), low[:2], dose[:2])
    code, _, err = sde_gen_command("score", "gap.nc", *SMALL)
    assert code == 2 and err == ["sde-gen: gap.nc: every item has a gap; items without one are needed"]
    for name, odd, words in (
        ("grid.npz", arrays | {"low": low[:3, :, 0]}, "condition 'coarse': it has shape (3, 1, 3); (3, 1, 2, 3) is needed"),
        ("few.npz", arrays | {"dose": dose[:2]}, "condition 'dose': it has shape (2,) for 3 items; (3, ...) is needed"),
    ):
        np.savez(tmp_path / name, **odd)
        code, _, err = sde_gen_command("score", name, *SMALL)
        assert code == 2 and len(err) == 1 and words in err[0], err


def test_images_are_scored_with_a_folder_of_their_maps(sde_gen_command: Command, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for folder, names in (("data", [f"{k:02d}" for k in range(40)]), ("new", ["b", "a", "c"])):
        for name in names:
            image = random.integers(0, 256, (6, 6)).astype(np.uint8)
            for place, values in ((folder, image), (f"{folder}_maps", image[::2, ::2])):
                (tmp_path / place).mkdir(exist_ok=True)
                Image.fromarray(values).save(tmp_path / place / f"{name}.{'png' if place == folder else 'bmp'}")
    model = trained(tmp_path / "run", {"name": str(tmp_path / "data"), "condition_map": str(tmp_path / "data_maps")})
    code, out, err = sde_gen_command("score", "new", *SMALL, "--held-out", "3", "--cond", "map=new_maps", "--out", "scores.csv")
    assert (code, err) == (0, []) and not any("not in the file" in line for line in out), (out, err)
    found = {row["file"]: float(row["bits_per_dim"]) for row in csv.DictReader((tmp_path / "scores.csv").open())}
    images, maps = (
        torch.stack([torch.from_numpy(np.array(Image.open(tmp_path / f"{place}/{name}")))[None].long() for name in names])
        for place, names in (("new", ["a.png", "b.png", "c.png"]), ("new_maps", ["a.bmp", "b.bmp", "c.bmp"]))
    )
    right = sde_gen.bits_per_dim(model, images, 256, "truncated_normal", cond={"map": maps.float()}, seed=0, **EXACT).each.tolist()
    assert [found[f"{name}.png"] for name in "abc"] == pytest.approx(right, abs=1e-5)
    (tmp_path / "new_maps" / "c.bmp").unlink()
    code, _, err = sde_gen_command("score", "new", *SMALL, "--cond", "map=new_maps")
    assert code == 2 and len(err) == 1 and "new_maps: no map of 1 of 3 images, the first c; a map of the same name" in err[0]


def test_items_with_masks_of_their_own_are_compared_entry_by_entry(sde_gen_command: Command, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    x = np.array([1e-3, 1e-7]).reshape(2, 1, 1) + random.normal(size=(120, 2, 4, 6)) * np.array([1e-6, 1e-8]).reshape(2, 1, 1)
    x[random.random((120, 1, 4, 6)).repeat(2, 1) < 0.4] = np.nan
    np.save(tmp_path / "data.npy", np.nan_to_num(x, nan=1e20).astype(np.float32))
    model = trained(tmp_path / "run", {"name": str(tmp_path / "data.npy"), "missing": "mask=1e20"})
    new = x[:4].copy()
    new[0, :, :, 1:] = np.nan  # one column is left
    new[1] = np.nan
    new[2, 0, 0] = 2e-3  # nothing that the data have
    for name, values in (("new.npy", np.nan_to_num(new, nan=1e20).astype(np.float32)), ("nan.npy", new.astype(np.float32))):
        np.save(tmp_path / name, values)
    found = {}
    for name in ("new.npy", "nan.npy"):
        code, out, err = sde_gen_command("score", name, *SMALL, "--held-out", "12", "--out", f"{name}.npz")
        assert (code, err) == (0, []) and "1 of 4 have none" in out[0], (out, err)
        with np.load(tmp_path / f"{name}.npz") as file:
            found[name] = {key: file[key] for key in ("log_prob", "p_low")}
    assert all(np.array_equal(found["new.npy"][key], found["nan.npy"][key], equal_nan=True) for key in ("log_prob", "p_low"))

    def of_entries(items: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-densities, and those of one valid entry in normalised units."""
        values = torch.from_numpy(items.astype(np.float32)).double()
        valid = ~values.isnan().any(1, keepdim=True)
        nats = sde_gen.log_likelihood(model, values, cond={"valid": valid}, **EXACT).log_prob.double()
        assert model.normalizer is not None
        units = model.normalizer.log_det(torch.where(valid, values, 0.0), valid.expand(values.shape)).double()
        return nats, (nats - units) / (2 * valid.flatten(1).sum(1))

    nats, each = of_entries(new[[0, 2, 3]])
    np.testing.assert_allclose(found["new.npy"]["log_prob"][[0, 2, 3]], nats.numpy(), rtol=1e-6)
    data = sde_gen.load_dataset(tmp_path / "data.npy", missing="mask=1e20")
    assert data.test is not None
    held = torch.where(data.test_cond["valid"], data.test.double(), torch.nan).numpy()
    low = found["new.npy"]["p_low"]
    np.testing.assert_allclose(low[[0, 2, 3]], p_values(each, of_entries(held)[1])[0].numpy())
    assert np.isnan(low[1]) and low[2] == pytest.approx(1 / 13) and low[0] > 0.2
    assert float(p_values(nats, of_entries(held)[0])[0][0]) == pytest.approx(1 / 13)  # of few entries, which are not unlike the data


def test_whole_numbers_with_a_mark_are_scored_and_what_lies_on_land_changes_nothing(sde_gen_command: Command, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    x = random.integers(0, 200, (80, 1, 4, 5)).astype(np.uint8)
    x[..., 1:3, 2:4] = 255
    np.save(tmp_path / "data.npy", x)
    trained(tmp_path / "run", {"name": str(tmp_path / "data.npy"), "missing": "mask=255"})
    other = x[:3].copy()
    other[..., 1:3, 2:4] = 16
    gap = x[:3].copy()
    gap[1, 0, 0, 0] = 255  # where the data are never missing
    columns = {}
    for name, values in (("same", x[:3]), ("other", other), ("gap", gap)):
        np.save(tmp_path / f"{name}.npy", values)
        code, _, err = sde_gen_command("score", f"{name}.npy", *SMALL, "--held-out", "6", "--out", f"{name}.npz")
        assert (code, err) == (0, []), err
        with np.load(tmp_path / f"{name}.npz") as file:
            columns[name] = file["bits_per_dim"]
    assert np.isfinite(columns["same"]).all() and np.array_equal(columns["same"], columns["other"])
    assert np.isnan(columns["gap"]).tolist() == [False, True, False]
